"""Deletion and insertion: the area under the score while the most relevant positions go, or come."""

from abc import abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from torchmetrics_cam.functional.statistics import Estimate, estimate
from torchmetrics_cam.metrics.batch_values import BatchValues
from torchmetrics_cam.metrics.curve_sums import CURVES, both_curves, curve_contributions, curve_shares
from torchmetrics_cam.metrics.source_metric import SourceMetric
from torchmetrics_cam.pipeline.batch import Readings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CurveMetric(SourceMetric):
    """A metric that adds up two curves over the share of positions that is perturbed, beside its values.

    Attributes:
        curves: sums of the two curves and of their squares, ``(P, 2, 2)``.
    """

    curves: Tensor

    def __init__(self, cam_extractor: Any, logits_fn: Any = None, **settings: Any) -> None:
        super().__init__(cam_extractor, logits_fn, **settings)
        self._add_sum("curves", torch.float64, len(self._shares()), 2, 2)

    def plot(self, val: Any = None, ax: Any = None) -> tuple["Figure", Any]:
        """The mean curves with their 95 % intervals; every rank must call it.

        Args:
            val: values over time as of any metric, which are plotted instead.
            ax: a matplotlib axis to draw on; None makes a figure.

        Returns:
            Figure and axis.
        """
        if val is not None:
            return super().plot(val, ax)
        from torchmetrics_cam.plots import curve_figure

        found = self._mean_curves()
        parts = (found.mean, *found.interval())
        curves = {name: tuple(part[:, place] for part in parts) for place, name in self._names().items()}
        return curve_figure(self._shares(), curves, ax)

    @abstractmethod
    def _names(self) -> dict[int, str]:
        """Which of the two curves are plotted, and under what names."""

    @abstractmethod
    def _shares(self) -> list[float]:
        """The shares of positions, one a point."""

    @abstractmethod
    def _curves_of(self, read: Readings) -> Tensor:
        """The two curves of a batch, ``(P, 2, K, N)``."""

    def _read(self, read: Readings) -> BatchValues:
        return replace(super()._read(read), curves=self._curves_of(read))

    def _accumulate(self, batch: BatchValues) -> None:
        super()._accumulate(batch)
        curves = curve_contributions(batch)[..., 0]
        self._add("curves", torch.stack([curves, curves.square()], -1), batch.selection)

    def _mean_curves(self) -> Estimate:
        """The mean of both over the images of all ranks and classes, ``(P, 2)``."""
        with self._all_ranks():
            curves, total = self.curves, self.total
        if self.average != "micro":
            curves, total = curves.sum(0), total.sum()
        return estimate(total, *curves.unbind(-1))


class DeletionOrInsertion(CurveMetric):
    """The states that the two share, so that one pass serves them in a `MetricCollection`.

    Attributes:
        deletion: sum of the areas under the deletion curves, float64.
        insertion: sum of the areas under the insertion curves.
    """

    sums: ClassVar[dict[str, str]] = {"deletion": "deletion_auc", "insertion": "insertion_auc"}
    # Which of the two curves is this metric's.
    which: ClassVar[int]

    deletion: Tensor
    insertion: Tensor

    def compute(self) -> Tensor:
        """The mean area over all images."""
        return self._mean(list(self.sums)[self.which])

    def curve(self) -> tuple[Tensor, Tensor]:
        """The mean curve over the images of all ranks; every rank must call it.

        Returns:
            The share of positions that is perturbed, ``(curve_steps + 1,)``, and the mean score there.
        """
        mean = self._mean_curves().mean[:, self.which]
        return torch.tensor(self._shares(), device=mean.device), mean

    def _names(self) -> dict[int, str]:
        return {self.which: type(self).__name__}

    def _shares(self) -> list[float]:
        return curve_shares(self.protocol)

    def _curves_of(self, read: Readings) -> Tensor:
        return both_curves(read)


class DeletionAUC(DeletionOrInsertion):
    r"""Deletion: the area under the score while the most relevant positions are taken away. Lower is better.

    .. math:: \int_0^1 s(x \text{ without its share } f \text{ of the most relevant positions})\, df

    Positions are ranked by the map, of equal ones the first in row-major order goes first. Both end points
    are part of the curve, and the area is taken against the true share of positions. What taken positions
    show is the protocol's ``deletion_baseline`` (zeros, as in RISE), and ``curve_steps`` is how many steps
    there are. One update makes both curves: with `InsertionAUC` in a `MetricCollection` it runs once.

    Input, output, arguments and errors are those of `AverageDrop`.

    Source: Petsiuk et al., RISE, https://arxiv.org/abs/1806.07421

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import DeletionAUC
        >>> from torchmetrics_cam.cams import RandomMap
        >>> metric = DeletionAUC(RandomMap(nn.Flatten()), protocol="paper")
        >>> metric.update(torch.rand(2, 1, 8, 8))
        >>> fractions, scores = metric.curve()
        >>> fractions.shape, bool(scores[0] > scores[-1])
        (torch.Size([21]), True)

    """

    higher_is_better: bool = False
    which: ClassVar[int] = CURVES["deletion_auc"]


class InsertionAUC(DeletionOrInsertion):
    """Insertion: the area under the score while the most relevant positions come. Higher is better.

    As `DeletionAUC`, from an image that shows the protocol's ``insertion_baseline`` everywhere (a blur of
    kernel 11 and sigma 5, as in RISE) to the image.

    Source: Petsiuk et al., RISE, https://arxiv.org/abs/1806.07421

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import InsertionAUC
        >>> from torchmetrics_cam.cams import RandomMap
        >>> metric = InsertionAUC(RandomMap(nn.Flatten()))
        >>> metric.update(torch.rand(2, 1, 8, 8))
        >>> bool(0 < metric.compute() < 1)
        True

    """

    higher_is_better: bool = True
    which: ClassVar[int] = CURVES["insertion_auc"]
