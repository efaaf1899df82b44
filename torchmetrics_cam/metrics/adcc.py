"""ADCC and its parts, Coherency and Complexity."""

from typing import Any, ClassVar

from torch import Tensor

from torchmetrics_cam.functional.adcc import adcc
from torchmetrics_cam.metrics.source_metric import SourceMetric


class Complexity(SourceMetric):
    """Complexity: the mean of the map in [0, 1]. A map of few positions is simple; lower is better.

    It asks the model for nothing but the map, and shows what Average Drop cannot: that a map which hides
    nothing explains nothing.

    Input, output, arguments and errors are those of `AverageDrop`.

    Source: Poppi et al., ADCC, https://arxiv.org/abs/2104.10252

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import Complexity
        >>> from torchmetrics_cam.cams import UniformMap
        >>> metric = Complexity(UniformMap(nn.Flatten(), value=0.25))
        >>> metric.update(torch.rand(2, 1, 4, 4))
        >>> float(metric.compute())
        0.25

    """

    higher_is_better: bool = False
    sums: ClassVar[dict[str, str]] = {"value": "complexity"}

    value: Tensor

    def compute(self) -> Tensor:
        """The mean over all images."""
        return self._mean("value")


class Coherency(SourceMetric):
    r"""Coherency: how alike the map of an image and that of what it leaves of the image are.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{r\big(M(x_i),\, M(x_i \odot M(x_i))\big) + 1}{2}

    with Pearson's :math:`r`. Higher is better. The source explains every image twice. Two equal constant maps
    are coherent (1), a constant and another one are not (0.5).

    Input, output and arguments are those of `AverageDrop`.

    Raises:
        ValueError: if the source is `PrecomputedMaps`, which has no map of a masked image; and as of
            `AverageDrop`.

    Source: Poppi et al., ADCC, https://arxiv.org/abs/2104.10252

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import Coherency
        >>> from torchmetrics_cam.cams import CenterMap
        >>> metric = Coherency(CenterMap(nn.Flatten()))
        >>> metric.update(torch.rand(2, 1, 4, 4))
        >>> float(metric.compute())  # it looks at no image
        1.0

    """

    higher_is_better: bool = True
    sums: ClassVar[dict[str, str]] = {"value": "coherency"}

    value: Tensor

    def compute(self) -> Tensor:
        """The mean over all images."""
        return self._mean("value")


class ADCC(SourceMetric):
    r"""Average DCC: the harmonic mean of coherency, of 1 - complexity and of 1 - Average Drop.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{3}{\frac{1}{\mathrm{coherency}_i} +
              \frac{1}{1 - \mathrm{complexity}_i} + \frac{1}{1 - \mathrm{drop}_i}}

    Higher is better; where a part is 0, ADCC is 0. The drop is the relative one.

    Input, output, errors and the other arguments are those of `Coherency`.

    Args:
        averaged_parts: take the harmonic mean once, of the three means over all images, instead of the mean
            over the images of each one's.

    Source: Poppi et al., https://arxiv.org/abs/2104.10252

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import ADCC
        >>> from torchmetrics_cam.cams import UniformMap
        >>> metric = ADCC(UniformMap(nn.Flatten()))
        >>> metric.update(torch.rand(2, 1, 4, 4))
        >>> float(metric.compute())  # its complexity is 1
        0.0

    """

    higher_is_better: bool = True
    sums: ClassVar[dict[str, str]] = {
        "value": "adcc",
        "coherency": "coherency",
        "complexity": "complexity",
        "drop": "relative_drop",
    }

    value: Tensor
    coherency: Tensor
    complexity: Tensor
    drop: Tensor

    def __init__(
        self, cam_extractor: Any, logits_fn: Any = None, *, averaged_parts: bool = False, **settings: Any
    ) -> None:
        super().__init__(cam_extractor, logits_fn, **settings)
        self.averaged_parts = averaged_parts

    def compute(self) -> Tensor:
        """The mean over all images, or ADCC of the means."""
        if not self.averaged_parts:
            return self._mean("value")
        return adcc(self._mean("coherency"), self._mean("complexity"), self._mean("drop"))
