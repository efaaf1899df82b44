"""ROAD: what imputing the most relevant positions costs, against imputing the least relevant ones."""

from typing import ClassVar

import torch
from torch import Tensor

from torchmetrics_cam.metrics.curves import CurveMetric
from torchmetrics_cam.pipeline.batch import Readings


class ROAD(CurveMetric):
    r"""Remove And Debias: positions are imputed from their neighbors, which leaves an image like others.

    .. math:: \frac{1}{|F|} \sum_{f \in F} \frac{\mathrm{LeRF}(f) - \mathrm{MoRF}(f)}{2}

    where :math:`\mathrm{MoRF}(f)` is the score after the share :math:`f` of the most relevant positions was
    imputed, and :math:`\mathrm{LeRF}(f)` that after the least relevant. Higher is better; a map that knows
    nothing has 0, and the value lies in [-0.5, 0.5] where scores are fractions.

    The imputation is `functional.road.linear_imputation` with noise of the protocol's ``road_noise``; the
    shares are its ``road_fractions``, and of each exactly that share of the positions is imputed. The noise
    is a hash of the image, the same in any batch and rank.

    Input, output, arguments and errors are those of `AverageDrop`.

    Source: Rong et al., https://arxiv.org/abs/2202.00449

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import ROAD
        >>> from torchmetrics_cam.cams import UniformMap
        >>> metric = ROAD(UniformMap(nn.Flatten()))
        >>> metric.update(torch.rand(2, 1, 8, 8))
        >>> bool(abs(metric.compute()) < 0.5)
        True

    """

    higher_is_better: bool = True
    plot_lower_bound: float = -0.5
    plot_upper_bound: float = 0.5
    sums: ClassVar[dict[str, str]] = {"value": "road"}

    value: Tensor

    def compute(self) -> Tensor:
        """The mean over all images and shares."""
        return self._mean("value")

    def curve(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean scores over the images of all ranks; every rank must call it.

        Returns:
            The share of positions that is imputed, ``(F,)``, and the mean score after the most and after the
            least relevant were.
        """
        most, least = self._mean_curves().mean.unbind(1)
        return torch.tensor(self._shares(), device=most.device), most, least

    def _names(self) -> dict[int, str]:
        return {0: "most relevant first", 1: "least relevant first"}

    def _shares(self) -> list[float]:
        return list(self.protocol.road_fractions)

    def _curves_of(self, read: Readings) -> Tensor:
        return read.road
