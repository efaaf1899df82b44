"""From the sums of a comparison to means with intervals, paired differences, wins and ranks."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchmetrics_cam.functional.statistics import Estimate, estimate, holm, wilson_interval
from torchmetrics_cam.metrics.arguments import Average
from torchmetrics_cam.metrics.measures import Measure
from torchmetrics_cam.protocol import EvaluationProtocol

# Methods coincide if they yield different scores on no more than this fraction of the images.
COINCIDENCE = 0.01
_SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class ComparisonStatistics:
    """The states of a `CAMComparison` over all ranks, and the statistics that follow from them.

    Args:
        measures: the measures.
        average: over images, or over classes.
        protocol: the settings that the values depend on.
        count: number of images that are valid for both methods, ``(*classes, K, K)``.
        defined: number of those that have a value of both methods, ``(*classes, M, K, K)``.
        sums: sum of the values of the first method, ``(*classes, M, K, K)``.
        squares: sum of the squared differences; on the diagonal of the squared values.
        wins: number of images on which the first method is better.
        differing: number of images on which the two methods yield different scores or, in a measure of the
            map, different values, ``(*classes, K, K)``.
        outside: number of images with a score outside of [0, 1], for which measures of the scores have no
            range, ``(*classes, K)``.
    """

    measures: tuple[Measure, ...]
    average: Average
    protocol: EvaluationProtocol
    count: Tensor
    defined: Tensor
    sums: Tensor
    squares: Tensor
    wins: Tensor
    differing: Tensor
    outside: Tensor

    def mean(self, measure: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean of each method with its bounds, ``(K,)``, or ``(classes, K)`` for each class."""
        count, total, squares = (
            state.diagonal(dim1=-2, dim2=-1)
            for state in (
                self.defined[..., measure, :, :],
                self.sums[..., measure, :, :],
                self.squares[..., measure, :, :],
            )
        )
        return mean_with_bounds(
            self.measures[measure],
            count,
            total,
            squares,
            average=self.average,
            protocol=self.protocol,
            outside=self.outside,
        )

    def number_defined(self, measure: int) -> Tensor:
        """Return the number of images, of all classes, that have a value of each method, ``(K,)``."""
        methods = self.defined.shape[-1]
        return self.defined[..., measure, :, :].diagonal(dim1=-2, dim2=-1).reshape(-1, methods).sum(0)

    def difference(self, measure: int) -> Estimate:
        """Return the mean paired difference of every two methods, first minus second, ``(K, K)``."""
        total = self.sums[..., measure, :, :]
        return estimate(
            self.defined[..., measure, :, :],
            total - total.mT,
            _without_diagonal(self.squares[..., measure, :, :]),
            over_groups=self.average == "macro",
        )

    def p_value(self, measure: int) -> Tensor:
        """Return the two-sided p-value of each difference, ``(K, K)``; 1 where two methods coincide."""
        p_value = self.difference(measure).p_value()
        return torch.where(self.coincide() & ~p_value.isnan(), torch.ones_like(p_value), p_value)

    def win_rate(self, measure: int) -> tuple[Tensor, Tensor]:
        """Return the fraction of images on which the first method is better, and that of ties, ``(K, K)``.

        ``wins`` counts no image on which two values differ by at most 1e-6, so these are ties.
        """
        wins = self.wins[..., measure, :, :].to(self.sums.dtype) / self.defined[..., measure, :, :]
        ties = 1 - wins - wins.mT
        return (wins.nanmean(0), ties.nanmean(0)) if self.average == "macro" else (wins, ties)

    def coincide(self) -> Tensor:
        """Return which methods coincide, ``(K, K)``: on 99 of 100 images they yield identical scores.

        Measures of the map, such as Complexity, must have identical values too. The relation is transitive:
        two methods that coincide with a third coincide.
        """
        has_classes = self.count.ndim > 2
        count, differing = (part.sum(0) if has_classes else part for part in (self.count, self.differing))
        coincide = (count > 0) & (differing <= COINCIDENCE * count)
        for _ in range(len(coincide)):
            coincide = coincide | ((coincide.double() @ coincide.double()) > 0)
        return coincide

    def ranks(self, measure: int) -> list[int | None]:
        """Return the rank of each method, 1 for the best, None for one without a value.

        Methods that coincide share the best of their ranks.
        """
        means = self.mean(measure)[0]
        better = self.measures[measure].better(means.unsqueeze(0), means.unsqueeze(1))
        coincide = self.coincide()
        better_methods = (better & ~coincide).sum(1)
        worst = torch.full_like(better_methods, len(means)).unsqueeze(0)
        ranks = torch.where(coincide, better_methods, worst).amin(1)
        return [
            None if is_unknown else 1 + rank
            for is_unknown, rank in zip(means.isnan().tolist(), ranks.tolist(), strict=True)
        ]

    def not_significantly_different(self, measure: int) -> Tensor:
        """Return which methods do not differ at the 5 % level, adjusted for all pairs (Holm), ``(K, K)``."""
        p_values = self.p_value(measure)
        upper = torch.triu_indices(len(p_values), len(p_values), 1, device=p_values.device)
        adjusted = torch.full_like(p_values, torch.nan)
        adjusted[upper[0], upper[1]] = holm(p_values[upper[0], upper[1]])
        adjusted = torch.where(adjusted.isnan(), adjusted.mT, adjusted)
        return _without_diagonal(~(adjusted < _SIGNIFICANCE))

    def pooled(self) -> "ComparisonStatistics":
        """Return the statistics over the images of all classes, where each class had its own values."""
        if self.average != "none":
            return self
        states = (self.count, self.defined, self.sums, self.squares, self.wins, self.differing, self.outside)
        return ComparisonStatistics(
            self.measures, "micro", self.protocol, *(state.sum(0) for state in states)
        )


def mean_with_bounds(
    measure: Measure,
    count: Tensor,
    total: Tensor,
    squares: Tensor,
    *,
    average: Average,
    protocol: EvaluationProtocol,
    outside: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a mean with the bounds of its 95 % interval, which lies in the range of the measure.

    Args:
        measure: the measure.
        count: number of values, ``(*shape)``, for ``"macro"`` with a leading dimension of classes.
        total: their sum.
        squares: the sum of their squares.
        average: over images, or over classes.
        protocol: the settings that the range depends on.
        outside: number of images with a score outside of [0, 1], for which measures of the scores have no
            range, of any shape.
    """
    mean = estimate(count, total, squares, over_groups=average == "macro")
    if measure.proportion and average != "macro":
        return mean.mean, *wilson_interval(count, total)
    low, high = measure.range_in(protocol)
    if measure.range_needs_fractions and outside.any():
        low, high = -math.inf, math.inf
    return mean.mean, *mean.interval(low=low, high=high)


def number_or_none(value: float) -> float | None:
    """Return a number for JSON, which has no NaN."""
    return None if math.isnan(value) else value


def interval_text(cell: Mapping[str, Any]) -> str:
    """Return ``"value"`` with its ``"lower"`` and ``"upper"`` bound in words; a dash if it is None."""
    if cell["value"] is None:
        return "-"
    if cell["lower"] is None:
        return f"{cell['value']:.3f}"
    return f"{cell['value']:.3f} ({cell['lower']:.3f} to {cell['upper']:.3f})"


def _without_diagonal(pairs: Tensor) -> Tensor:
    diagonal = torch.eye(pairs.shape[-1], dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(diagonal, 0)
