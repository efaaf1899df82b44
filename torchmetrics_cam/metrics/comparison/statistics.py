"""What the sums of a comparison say: means with intervals, paired differences, wins, ranks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from torchmetrics_cam.functional.statistics import Estimate, estimate, holm, wilson_interval
from torchmetrics_cam.metrics.measures import Measure
from torchmetrics_cam.metrics.settings import Average

# Methods coincide if the model says something else to them on no more than this share of the images.
COINCIDENCE = 0.01
_SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class ComparisonStatistics:
    """The states of a `CAMComparison` over all ranks, and what follows from them.

    Args:
        measures: what was measured.
        average: over images, or over classes.
        count: how many images were valid for both methods, ``(*classes, K, K)``.
        sums: the sum of the values of the first method, ``(*classes, M, K, K)``.
        squares: the sum of the squared differences; on the diagonal of the squared values.
        wins: on how many images the first method is better.
        apart: on how many images the model, or a measure of the map, says something else to the two methods,
            ``(*classes, K, K)``.
    """

    measures: tuple[Measure, ...]
    average: Average
    count: Tensor
    sums: Tensor
    squares: Tensor
    wins: Tensor
    apart: Tensor

    def mean(self, measure: int) -> tuple[Tensor, Tensor, Tensor]:
        """The mean of each method with its bounds, ``(K,)``, or ``(classes, K)`` where each has its own."""
        count, total, squares = (
            state.diagonal(dim1=-2, dim2=-1)
            for state in (self.count, self.sums[..., measure, :, :], self.squares[..., measure, :, :])
        )
        found = estimate(count, total, squares, over_groups=self.average == "macro")
        if self.measures[measure].proportion and self.average != "macro":
            return found.mean, *wilson_interval(count, total)
        return found.mean, *found.interval()

    def difference(self, measure: int) -> Estimate:
        """The mean difference of every two methods on the same images, first minus second, ``(K, K)``."""
        total = self.sums[..., measure, :, :]
        return estimate(
            self.count,
            total - total.mT,
            self._off_diagonal(self.squares[..., measure, :, :]),
            over_groups=self.average == "macro",
        )

    def p_value(self, measure: int) -> Tensor:
        """How probable the difference would be if there were none; 1 where two methods coincide."""
        p_value = self.difference(measure).p_value()
        return torch.where(self.coincide() & ~p_value.isnan(), torch.ones_like(p_value), p_value)

    def win_rate(self, measure: int) -> tuple[Tensor, Tensor]:
        """The share of images on which the first method is better, and that of ties, ``(K, K)``."""
        wins = self.wins[..., measure, :, :].to(self.sums.dtype) / self.count
        ties = 1 - wins - wins.mT
        return (wins.nanmean(0), ties.nanmean(0)) if self.average == "macro" else (wins, ties)

    def coincide(self) -> Tensor:
        """Which methods are one, ``(K, K)``: on 99 of 100 images the model says the same to them.

        Where measures of the map were asked for, such as Complexity, these have to say the same too.
        A method that is one with another is one with all that the other is one with.
        """
        classes = self.count.ndim > 2
        count, apart = (part.sum(0) if classes else part for part in (self.count, self.apart))
        together = (count > 0) & (apart <= COINCIDENCE * count)
        for _ in range(len(together)):
            together = together | ((together.double() @ together.double()) > 0)
        return together

    def ranks(self, measure: int) -> list[int | None]:
        """1 for the best method; those that coincide share the best of their ranks, none without a value."""
        means = self.mean(measure)[0]
        better = self.measures[measure].better(means.unsqueeze(0), means.unsqueeze(1))
        together = self.coincide()
        ahead = (better & ~together).sum(1)
        ranks = torch.where(together, ahead, torch.full_like(ahead, len(means)).unsqueeze(0)).amin(1)
        return [
            None if unknown else 1 + number
            for unknown, number in zip(means.isnan().tolist(), ranks.tolist(), strict=True)
        ]

    def indistinct(self, measure: int) -> Tensor:
        """Which methods cannot be told apart at the 5 % level, over all pairs (Holm), ``(K, K)``."""
        p_values = self.p_value(measure)
        upper = torch.triu_indices(len(p_values), len(p_values), 1, device=p_values.device)
        adjusted = torch.full_like(p_values, torch.nan)
        adjusted[upper[0], upper[1]] = holm(p_values[upper[0], upper[1]])
        adjusted = torch.where(adjusted.isnan(), adjusted.mT, adjusted)
        return self._off_diagonal(~(adjusted < _SIGNIFICANCE))

    def pooled(self) -> "ComparisonStatistics":
        """Over the images of all classes, where each class had its own values."""
        if self.average != "none":
            return self
        states = (self.count, self.sums, self.squares, self.wins, self.apart)
        return ComparisonStatistics(self.measures, "micro", *(state.sum(0) for state in states))

    @staticmethod
    def _off_diagonal(pairs: Tensor) -> Tensor:
        own = torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
        return pairs.masked_fill(own, 0)
