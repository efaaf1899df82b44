"""The values of a batch for every method and measure, and the contribution of each image to the sums."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from torchmetrics_cam.functional.statistics import sum_dtype
from torchmetrics_cam.metrics.measures import Measure
from torchmetrics_cam.pipeline.batch import Batch

# Differences up to this are ties: they are within the rounding errors of float32 scores.
TIE = 1e-6
# Scores count as identical if they differ by at most SCORE_TOLERANCE of the score s, and of 1 - s. The latter
# is at least SMALLEST_MISSING, because float32 resolves 1 - s only to 1e-7.
SCORE_TOLERANCE, SMALLEST_MISSING = 1e-3, 1e-3


@dataclass(frozen=True)
class ComparedBatch:
    """The values of N images for K methods and M measures.

    Args:
        scores: of the clean images, ``(N,)``.
        masked_scores: of the masked images, ``(K, N)``; NaN if no measure needs them.
        perturbed_scores: of all perturbed images, ``(A, K, N)``.
        valid: which images are counted for which method, ``(K, N)``.
        values: of each measure, ``(M, K, N)``; not finite where it is not defined.
    """

    scores: Tensor
    masked_scores: Tensor
    perturbed_scores: Tensor
    valid: Tensor
    values: Tensor

    @classmethod
    def of(cls, batch: Batch, measures: Sequence[Measure]) -> "ComparedBatch":
        """Compute the measures for a batch of several sources."""
        by_source = list(batch)
        values = torch.stack(
            [
                measure.values(batch)
                if measure.elementwise
                else torch.stack([measure.values(one) for one in by_source])
                for measure in measures
            ]
        )
        scores = batch.scores
        return cls(
            scores=scores[0],
            masked_scores=batch.masked_scores
            if batch.has_masked_scores
            else torch.full_like(scores, torch.nan),
            perturbed_scores=batch.perturbed_scores,
            valid=batch.counted,
            values=values,
        )

    @classmethod
    def under_each_protocol(cls, batch: Batch, measures: Sequence[Measure]) -> list["ComparedBatch"]:
        """Compute the measures under each protocol; an image counts if it is valid under all of them."""
        compared = [cls.of(one, measures) for one in (batch, *batch.under_further_protocols)]
        if len(compared) == 1:
            return compared
        valid = torch.stack([one.valid for one in compared]).all(0)
        return [replace(one, valid=valid) for one in compared]

    @cached_property
    def counted_for_both(self) -> Tensor:
        """Which images are counted for both of two methods, bool, ``(N, K, K)``."""
        valid = self.valid.T
        return valid.unsqueeze(2) & valid.unsqueeze(1)

    @cached_property
    def defined(self) -> Tensor:
        """Which of the counted images have a value of each measure, bool, ``(M, K, N)``."""
        return self.values.isfinite() & self.valid

    @cached_property
    def defined_for_both(self) -> Tensor:
        """Which images have a value of each measure for both of two methods, bool, ``(N, M, K, K)``."""
        defined = self.defined.permute(2, 0, 1)
        return defined.unsqueeze(3) & defined.unsqueeze(2)

    def sums(self) -> Tensor:
        """Return the value of the first method where both have one, ``(N, M, K, K)``."""
        return self._values * self.defined_for_both

    def squares(self) -> Tensor:
        """Return the squared difference of two methods, or on the diagonal the squared value."""
        values = self._values
        diagonal = torch.eye(len(self.valid), dtype=torch.bool, device=values.device)
        squares = torch.where(diagonal, values, values - values.mT).square()
        return squares * self.defined_for_both

    def wins(self, measures: Sequence[Measure]) -> Tensor:
        """Return where the first method is better than the second, bool, ``(N, M, K, K)``."""
        values = self._values
        differences = (values - values.mT).unbind(1)
        better = [
            difference > TIE if measure.higher_is_better else difference < -TIE
            for measure, difference in zip(measures, differences, strict=True)
        ]
        return torch.stack(better, 1) & self.defined_for_both

    def differing(self, measures: Sequence[Measure]) -> Tensor:
        """Return where two methods yield different scores or different values of the map, ``(N, K, K)``."""
        dtype = sum_dtype(self.scores.device)
        differing = _differ(self.perturbed_scores.to(dtype), self.scores.to(dtype))
        values = self.values.where(self.defined, 0)
        of_map = [each for measure, each in zip(measures, values, strict=True) if measure.of_map]
        if of_map:
            zero = self.scores.new_zeros((), dtype=dtype)
            differing = differing | _differ(torch.stack(of_map).to(dtype), zero)
        return differing.permute(2, 0, 1) & self.counted_for_both

    def in_groups(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """Return which images of each group have a value, bool, and the values, ``(N, G, M, K)``.

        Values are 0 where an image has none, or is of another group.

        Args:
            members: which images belong to each group, bool, ``(N, G)``.
        """
        defined = self.defined.permute(2, 0, 1).unsqueeze(1) & members[:, :, None, None]
        return defined, self._values.squeeze(3).unsqueeze(1) * defined

    @cached_property
    def _values(self) -> Tensor:
        """The values in the dtype of the sums, to be combined with their transpose, ``(N, M, K, 1)``.

        They are 0 where they are not defined.
        """
        values = self.values.where(self.defined, 0).to(sum_dtype(self.valid.device))
        return values.permute(2, 0, 1).unsqueeze(3)


def _differ(values: Tensor, reference: Tensor) -> Tensor:
    """Return where any of the values ``(A, K, N)`` differs between two methods, ``(K, K, N)``.

    The difference is divided by the largest of both values and the reference. Within [0, 1] it is also
    divided by the largest of 1 minus these: Average Gain is relative to it, and for a confident model .9999
    and .99995 then differ.
    """
    first, second = values.unsqueeze(2), values.unsqueeze(1)
    difference = (first - second).abs()
    parts = torch.stack([part.expand_as(difference) for part in (reference, first, second)])
    fraction = difference / parts.abs().amax(0).clamp(min=1e-12)
    fraction_of_missing = difference / (1 - parts).amax(0).clamp(min=SMALLEST_MISSING)
    in_unit_interval = ((parts >= 0) & (parts <= 1)).all(0)
    largest = torch.where(in_unit_interval, torch.maximum(fraction, fraction_of_missing), fraction)
    return (largest > SCORE_TOLERANCE).any(0)
