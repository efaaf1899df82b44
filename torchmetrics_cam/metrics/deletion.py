"""Drop in Deletion: what goes with the highlighted part."""

from typing import ClassVar

from torch import Tensor

from torchmetrics_cam.metrics.source_metric import SourceMetric


class DropInDeletion(SourceMetric):
    r"""Average Drop in Deletion: the share of the confidence that goes with the highlighted part.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{p_i - d_i}{p_i}

    where :math:`d` is the score on the complement of the mask. Higher is better. It is not clamped: where the
    rest convinces more than the whole image, a value is negative. A uniform map of 1 hides everything and
    does well, so read it beside Average Drop.

    Input, output, arguments and errors are those of `AverageDrop`; the scalar is at most 1.

    Source: Jung and Oh, LIFT-CAM, https://arxiv.org/abs/2102.05228

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import DropInDeletion
        >>> from torchmetrics_cam.cams import UniformMap
        >>> metric = DropInDeletion(UniformMap(nn.Flatten(), value=0.0))
        >>> metric.update(torch.rand(2, 1, 4, 4))
        >>> float(metric.compute())  # nothing was hidden
        0.0

    """

    higher_is_better: bool = True
    plot_lower_bound: float | None = None  # type: ignore[assignment]
    sums: ClassVar[dict[str, str]] = {"value": "drop_in_deletion"}

    value: Tensor

    def compute(self) -> Tensor:
        """The mean over all images."""
        return self._mean("value")
