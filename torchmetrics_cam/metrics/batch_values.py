"""What a batch says of every method and measure, and what it adds to the sums of a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchmetrics_cam.metrics.measures import Measure
from torchmetrics_cam.metrics.settings import sum_dtype
from torchmetrics_cam.model.scores import ScoreSelector
from torchmetrics_cam.pipeline.batch import Readings

# Differences that float32 scores cannot tell from none.
TIE = 1e-6
# Two scores are the same up to this share of them, and of what they lack to 1, which float32 knows to 1e-7.
SAME, LEAST_LACKING = 1e-3, 1e-3


@dataclass(frozen=True)
class BatchValues:
    """N images, K methods and M measures.

    Args:
        selection: what is explained.
        scores: on the images, ``(N,)``.
        asked: on all perturbed images, ``(A, K, N)``.
        masked: on the masked images, ``(K, N)``; NaN if no measure needs it.
        valid: which images count for which method, ``(K, N)``.
        degenerate: which maps are constant, ``(K, N)``.
        values: of each measure, ``(M, K, N)``; 0 where an image does not count.
        curves: two scores at each of P shares of the positions, ``(P, 2, K, N)``, for metrics of curves.
    """

    selection: ScoreSelector
    scores: Tensor
    asked: Tensor
    masked: Tensor
    valid: Tensor
    degenerate: Tensor
    values: Tensor
    curves: Tensor | None = None

    @classmethod
    def read(cls, read: Readings, measures: Sequence[Measure]) -> "BatchValues":
        """The values of these measures."""
        values = torch.stack([measure.of(read) for measure in measures])
        valid = read.valid & values.isfinite().all(0)
        values = torch.where(valid, values, torch.zeros_like(values))
        masked = read.masked if "masked" in vars(read) else torch.full_like(read.scores, torch.nan)
        return cls(read.selection, read.scores[0], read.asked, masked, valid, read.degenerate, values)

    def counts(self) -> dict[str, Tensor]:
        """Which images are counted apart, for each method, by the names of the states, ``(N, K)``."""
        scores = torch.cat([self.scores.expand_as(self.masked).unsqueeze(0), self.asked])
        outside = ((scores < 0) | (scores > 1)).any(0)
        return {
            "nan_count": ~self.valid.T,
            "degenerate_count": (self.degenerate & self.valid).T,
            "outside_count": (outside & self.valid).T,
        }

    def contributions(self, measures: Sequence[Measure]) -> dict[str, Tensor]:
        """What each image adds to the states, by their names, ``(N, ...)``."""
        valid = self.valid.T
        both = valid.unsqueeze(2) & valid.unsqueeze(1)
        each = self.values.permute(2, 0, 1).unsqueeze(3).to(sum_dtype(valid.device))
        apart = each - each.mT
        better = [
            gap > TIE if measure.higher_is_better else gap < -TIE
            for measure, gap in zip(measures, apart.unbind(1), strict=True)
        ]
        own = torch.eye(len(self.valid), dtype=torch.bool, device=valid.device)
        counted = both.unsqueeze(1)
        return {
            "count": both,
            "apart": self._apart(measures).permute(2, 0, 1) & both,
            "sums": each * counted,
            "squares": torch.where(own, each, apart).square() * counted,
            "wins": torch.stack(better, 1) & counted,
            **self.counts(),
        }

    def _apart(self, measures: Sequence[Measure]) -> Tensor:
        """Where the model, or a measure of the map, says something else to two methods, ``(K, K, N)``."""
        dtype = sum_dtype(self.asked.device)
        found = _differ(self.asked.to(dtype), self.scores.to(dtype))
        of_map = [values for measure, values in zip(measures, self.values, strict=True) if measure.of_map]
        if of_map:
            found = found | _differ(torch.stack(of_map).to(dtype), self.scores.new_zeros((), dtype=dtype))
        return found


def _differ(values: Tensor, beside: Tensor) -> Tensor:
    """Where any of the values ``(A, K, N)`` differs between two methods, ``(K, K, N)``.

    A difference is taken as a share of the values, of what stands beside them, and of what these lack to 1:
    on a sure model .9999 and .99995 are far apart for a gain.
    """
    first, second = values.unsqueeze(2), values.unsqueeze(1)
    apart = (first - second).abs()
    parts = torch.stack([beside.expand_as(apart), first.expand_as(apart), second.expand_as(apart)])
    share = apart / parts.abs().amax(0).clamp(min=1e-12)
    lacking = apart / (1 - parts).amax(0).clamp(min=LEAST_LACKING)
    fractions = ((parts >= 0) & (parts <= 1)).all(0)
    return (torch.where(fractions, torch.maximum(share, lacking), share) > SAME).any(0)
