"""ADCC and its component coherency; the other two are `complexity` and `average_drop`."""

import torch
from torch import Tensor

from torchmetrics_cam.functional.correlation import pearson_correlation


def map_correlation(maps: Tensor, others: Tensor) -> Tensor:
    r"""Compute the coherency of pairs of maps: their Pearson correlation, rescaled to [0, 1].

    .. math:: \frac{1}{2} \left( 1 + \frac{\mathrm{cov}(A, B)}{\sigma_A \sigma_B} \right)

    1 means that one map is a positive multiple of the other plus a constant, 0.5 that they are uncorrelated,
    0 that one is a negative multiple plus a constant. Higher is better. The correlation with a constant map
    is undefined: the value is then 1 if the two maps are equal, and 0.5 otherwise.

    Args:
        maps: :math:`A`, the maps of the clean images, ``(N, *spatial)``, in any unit.
        others: :math:`B`, the maps of the masked images, of the same shape.

    Returns:
        A tensor ``(N,)``; NaN where a map has values that are not finite.

    Source: Poppi et al., Revisiting The Evaluation of Class Activation Mapping for Explainability,
    https://arxiv.org/abs/2104.10252

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import map_correlation
        >>> maps = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
        >>> map_correlation(maps, torch.tensor([[0.1, 0.3, 0.5], [0.5, 0.1, 0.3]]))
        tensor([1.0000, 0.2500])

    """
    flat = maps.flatten(1), others.flatten(1)
    correlation = pearson_correlation(*flat, of_constant=0.0)
    equal = (maps == others).flatten(1).all(1)
    return torch.where(equal & ~correlation.isnan(), 1, (correlation + 1) / 2)


def adcc(coherency: Tensor, complexity: Tensor, drop: Tensor) -> Tensor:
    r"""Compute ADCC: the harmonic mean of coherency, 1 - complexity and 1 - drop. Higher is better.

    .. math:: \frac{3}{\frac{1}{\mathrm{coherency}} + \frac{1}{1 - \mathrm{complexity}} +
              \frac{1}{1 - \mathrm{drop}}}

    The value is 0 where one of the three terms is 0.

    Args:
        coherency: in [0, 1], of any shape; see `map_correlation`.
        complexity: in [0, 1], of the same shape; see `complexity`.
        drop: the relative drop in [0, 1], of the same shape; see `average_drop`.

    Returns:
        A tensor of the same shape, in [0, 1].

    Source: Poppi et al., Revisiting The Evaluation of Class Activation Mapping for Explainability,
    https://arxiv.org/abs/2104.10252

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import adcc
        >>> adcc(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 0.2]), torch.tensor([0.5, 0.1]))
        tensor([0.5000, 0.0000])

    """
    terms = torch.stack([coherency, 1 - complexity, 1 - drop])
    mean = 3 / (1 / terms).sum(0)
    return torch.where((terms <= 0).any(0), torch.zeros_like(mean), mean)
