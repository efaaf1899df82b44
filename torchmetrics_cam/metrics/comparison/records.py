"""One row a sample: what a comparison keeps with ``per_sample=True``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchmetrics_cam.metrics.base import CAMMetric
from torchmetrics_cam.metrics.batch_values import BatchValues
from torchmetrics_cam.metrics.settings import sum_dtype


def record_length(methods: int, measures: int) -> int:
    """How many numbers are kept of a sample."""
    return 3 + methods * (2 + measures)


def as_list(records: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The records of all batches; after a sync over ranks they are one tensor."""
    return [records] if isinstance(records, Tensor) else list(records)


def packed(index: Tensor, batch: BatchValues) -> Tensor:
    """A row a sample, float64, which holds indices exactly.

    Args:
        index: the number of each sample, ``(N,)``.
        batch: what was found of it.
    """
    classes = batch.selection.class_idx
    classes = torch.full_like(batch.scores, -1) if classes is None else classes
    shared = [index.to(classes.device), classes, batch.scores]
    # The sums have 0 where an image does not count; here it must not look like a perfect one.
    values = torch.where(batch.valid, batch.values, torch.nan)
    columns = [*shared, *batch.masked, *batch.valid, *values.flatten(0, 1)]
    return torch.stack([column.to(sum_dtype(column.device)) for column in columns], 1)


def unpacked(records: Tensor, methods: int, measures: Sequence[str]) -> dict[str, Tensor]:
    """The columns by name; those with a value for each method are ``(N, K)``."""
    masked, valid, *values = records[:, 3:].reshape(len(records), 2 + len(measures), methods).unbind(1)
    return {
        "index": records[:, 0].long(),
        "class_idx": records[:, 1].long(),
        "score": records[:, 2],
        "masked_score": masked,
        "valid": valid.bool(),
        **dict(zip(measures, values, strict=True)),
    }


class RecordingMetric(CAMMetric):
    """A metric of several methods that can keep a row a sample.

    Args:
        per_sample: whether it does.
        methods: their names.
        arguments: of `CAMMetric`.
        settings: of `CAMMetric`.
    """

    sums: Tensor
    records: list[Tensor]

    def __init__(self, *arguments: Any, per_sample: bool, methods: Sequence[str], **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.methods = tuple(methods)
        self.per_sample = per_sample
        self._seen = self._seen_before_forward = 0
        if per_sample:
            self.add_state("records", [], dist_reduce_fx="cat")

    def samples(self) -> dict[str, Tensor]:
        """What ``per_sample=True`` kept of every image, over all ranks; every rank must call it.

        Returns:
            ``"index"``, ``"class_idx"`` (-1 for a target) and ``"score"``, ``(N,)``; ``"masked_score"``,
            ``"valid"`` and each measure under its name, ``(N, K)`` in the order of ``methods``; NaN where an
            image does not count.

        Raises:
            ValueError: if nothing was kept.
        """
        if not self.per_sample:
            raise ValueError("no sample was kept; make the comparison with per_sample=True")
        with self._all_ranks():
            records = torch.cat([self._no_record(), *as_list(self.records)])
        return unpacked(records, len(self.methods), [measure.name for measure in self.measures])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As of any metric of CAMs; a batch that is refused is not counted as seen."""
        self._seen_before_forward = self._seen
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            self._seen = self._seen_before_forward
            raise

    def reset(self) -> None:
        """Begin anew."""
        super().reset()
        # Within forward the batch may be evaluated a second time, and its images have their numbers already.
        self._seen = self._seen_before_forward if self._in_forward else 0

    def _record(self, batch: BatchValues, index: Tensor | Sequence[int] | None) -> None:
        """Keep a batch, whose samples have these numbers; None counts those that were seen."""
        if not self.per_sample:
            return
        seen = torch.arange(self._seen, self._seen + len(batch.scores), device=batch.scores.device)
        self._seen += len(batch.scores)
        numbers = seen if index is None else torch.as_tensor(index)
        self.records = [*as_list(self.records), packed(numbers, batch).to(self._no_record())]

    def _sync_dist(self, *arguments: Any, **settings: Any) -> None:
        """A rank without an image takes part with no record, in the shape of the others'."""
        if self.per_sample:
            self.records = [self._no_record(), *as_list(self.records)]
        super()._sync_dist(*arguments, **settings)

    def _no_record(self) -> Tensor:
        """On the device of those that are kept, which ``compute_on_cpu=True`` moves away from the sums."""
        kept = as_list(self.records)
        like = kept[0] if kept else self.sums
        return like.new_zeros(0, record_length(len(self.methods), len(self.measures)))
