"""What a batch says of every method and measure, and what it adds to the sums of a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchmetrics_cam.explanation import Explanation
from torchmetrics_cam.metrics.measures import Measure
from torchmetrics_cam.metrics.settings import sum_dtype
from torchmetrics_cam.protocol import EvaluationProtocol
from torchmetrics_cam.scoring import Selection

# Differences that float32 scores cannot tell from none.
TIE = 1e-6


@dataclass(frozen=True)
class BatchValues:
    """N images, K methods and M measures.

    Args:
        selection: what is explained.
        scores: on the images, ``(N,)``.
        masked: on the masked images, ``(K, N)``.
        valid: which images count for which method, ``(K, N)``.
        degenerate: which maps are constant, ``(K, N)``.
        values: of each measure, ``(M, K, N)``; those of images that do not count mean nothing.
    """

    selection: Selection
    scores: Tensor
    masked: Tensor
    valid: Tensor
    degenerate: Tensor
    values: Tensor

    @classmethod
    def of(
        cls,
        explanations: Sequence[Explanation],
        masked: Tensor,
        measures: Sequence[Measure],
        protocol: EvaluationProtocol,
    ) -> "BatchValues":
        """The values of a batch, from its explanation by each method and its masked scores."""
        first = explanations[0]
        valid = torch.stack([one.valid for one in explanations]) & masked.isfinite()
        before, after = (
            torch.where(valid, scores, torch.zeros_like(scores)).flatten()
            for scores in (first.scores.expand_as(masked), masked)
        )
        values = [measure.of(before, after, protocol).view_as(masked) for measure in measures]
        degenerate = torch.stack([one.degenerate for one in explanations])
        return cls(first.selection, first.scores, masked, valid, degenerate, torch.stack(values))

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
        scores = torch.stack([self.scores.expand_as(self.masked), self.masked])
        outside = ((scores < 0) | (scores > 1)).any(0).T
        return {
            "count": both,
            "sums": each * counted,
            "squares": torch.where(own, each, apart).square() * counted,
            "wins": torch.stack(better, 1) & counted,
            "nan_count": ~valid,
            "degenerate_count": self.degenerate.T & valid,
            "outside_count": outside & valid,
        }

    def distance(self) -> Tensor:
        """How far the masked scores of two methods are apart at most, as a share of the score, ``(K, K)``."""
        first, second = self.masked.unsqueeze(1), self.masked.unsqueeze(0)
        apart = first - second
        scale = torch.stack([one.abs().expand_as(apart) for one in (self.scores, first, second)]).amax(0)
        both = self.valid.unsqueeze(1) & self.valid.unsqueeze(0)
        share = apart.abs() / scale.clamp(min=1e-12)
        return torch.where(both, share, torch.zeros_like(share)).amax(2)
