"""The warning about scores outside of [0, 1]."""

import warnings

from torch import Tensor


def warn_scores_outside_unit_interval(count: Tensor, under: str = "") -> None:
    """Warn if values relative to scores outside of [0, 1] were accumulated; ``under`` names the protocol."""
    if count.any():
        warnings.warn(
            f"{int(count.sum())} scores{under} lie outside of [0, 1], and a change relative to such a score"
            " means nothing; pass logits_fn, for instance functools.partial(torch.softmax, dim=-1)",
            UserWarning,
            stacklevel=3,
        )
