"""One row for each image: what a comparison keeps with ``per_sample=True``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchmetrics_cam.functional.statistics import sum_dtype
from torchmetrics_cam.metrics.base import CAMMetric
from torchmetrics_cam.metrics.comparison.contributions import ComparedBatch
from torchmetrics_cam.metrics.measures import Measure


class SampleMetric(CAMMetric):
    """A metric of several methods and measures that can keep a row for each image.

    Attributes:
        methods: the names of the sources.
        measures: the measures.
        per_sample: whether rows are kept.
        records: the rows of each batch.
    """

    methods: tuple[str, ...]
    measures: tuple[Measure, ...]
    per_sample: bool
    sums: Tensor
    records: list[Tensor]
    _images_seen: int = 0
    _images_seen_before_forward: int = 0

    def samples(self) -> dict[str, Tensor]:
        """Return the rows of all images on all ranks; every rank must call it.

        Returns:
            ``"index"``, ``"class_idx"`` (-1 for a target) and ``"score"``, ``(N,)``; ``"masked_score"``,
            ``"valid"`` and each measure under its name, ``(N, K)`` in the order of ``methods``; NaN where an
            image is not counted.

        Raises:
            ValueError: if the comparison was made without ``per_sample=True``.
        """
        if not self.per_sample:
            raise ValueError("no rows were kept; create the comparison with per_sample=True")
        with self._all_ranks():
            records = torch.cat([self._no_records(), *_as_list(self.records)])
        columns = records[:, 3:].reshape(len(records), 2 + len(self.measures), len(self.methods))
        masked_score, valid, *values = columns.unbind(1)
        return {
            "index": records[:, 0].long(),
            "class_idx": records[:, 1].long(),
            "score": records[:, 2],
            "masked_score": masked_score,
            "valid": valid.bool(),
            **dict(zip((measure.name for measure in self.measures), values, strict=True)),
        }

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Update the states and return the value of this batch; an error leaves the states unchanged."""
        self._images_seen_before_forward = self._images_seen
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            self._images_seen = self._images_seen_before_forward
            raise

    def reset(self) -> None:
        """Reset the states, and number images from 0 again."""
        super().reset()
        # Within forward a batch may be evaluated twice, and its images keep their numbers.
        self._images_seen = self._images_seen_before_forward if self._in_forward else 0

    def _record(
        self, compared: ComparedBatch, class_idx: Tensor | None, index: Tensor | Sequence[int] | None
    ) -> None:
        """Keep a row for each image of a batch, in float64, which holds indices exactly.

        Args:
            compared: the values of the batch.
            class_idx: its target classes, None for targets.
            index: the number of each image in its dataset; None counts the images of this process.
        """
        if not self.per_sample:
            return
        scores = compared.scores
        seen = torch.arange(self._images_seen, self._images_seen + len(scores), device=scores.device)
        self._images_seen += len(scores)
        index = seen if index is None else torch.as_tensor(index).to(scores.device)
        classes = torch.full_like(scores, -1) if class_idx is None else class_idx
        # An image that is not counted adds 0 to the sums; in a row, 0 would look like the best drop.
        values = torch.where(compared.valid, compared.values, torch.nan)
        columns = [index, classes, scores, *compared.masked_scores, *compared.valid, *values.flatten(0, 1)]
        rows = torch.stack([column.to(sum_dtype(column.device)) for column in columns], 1)
        self.records = [*_as_list(self.records), rows.to(self._no_records())]

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        """Synchronize the states; a rank without images contributes an empty tensor of rows."""
        if self.per_sample:
            self.records = [self._no_records(), *_as_list(self.records)]
        super()._sync_dist(*args, **kwargs)

    def _no_records(self) -> Tensor:
        """Return an empty tensor of rows, on their device (the CPU with ``compute_on_cpu=True``)."""
        kept = _as_list(self.records)
        like = kept[0] if kept else self.sums
        return like.new_zeros(0, 3 + len(self.methods) * (2 + len(self.measures)))


def _as_list(records: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the rows of all batches as a list; after a sync over ranks they are one tensor."""
    return [records] if isinstance(records, Tensor) else list(records)
