"""One row for each image: what a comparison keeps with ``per_sample=True``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from torchmetrics_cam.functional.statistics import sum_dtype
from torchmetrics_cam.metrics.base import CAMMetric
from torchmetrics_cam.metrics.comparison.contributions import ComparedBatch
from torchmetrics_cam.metrics.comparison.groups import Grouping
from torchmetrics_cam.metrics.measures import Measure


class SampleMetric(CAMMetric):
    """A metric of several methods and measures that can keep a row for each image.

    Attributes:
        methods: the names of the sources.
        measures: the measures.
        groupings: the divisions of the images into groups; empty if none was asked for.
        per_sample: whether rows are kept.
        records: the rows of each batch.
    """

    methods: tuple[str, ...]
    measures: tuple[Measure, ...]
    groupings: tuple[Grouping, ...]
    per_sample: bool
    sums: Tensor
    records: list[Tensor]

    def samples(self) -> dict[str, Tensor]:
        """Return the rows of all images on all ranks; every rank must call it.

        Returns:
            ``"index"`` (-1 where it is not known), ``"class_idx"`` (-1 for a target) and ``"score"``,
            ``(N,)``; with groups ``"group"`` and by correctness ``"prediction"``, the index of the group, or
            -1 for none, and of ``("correct", "wrong")``, ``(N,)``; ``"masked_score"``, ``"valid"`` and each
            measure under its name, ``(N, K)`` in the order of ``methods``; NaN where an image is not counted,
            or a measure is not defined. Where ``update`` was given no index, it is the number of images
            before this one, and not known after images of several ranks or of several metrics were joined.

        Raises:
            ValueError: if the comparison was made without ``per_sample=True``.
        """
        if not self.per_sample:
            raise ValueError("no rows were kept; create the comparison with per_sample=True")
        with self._all_ranks():
            records = torch.cat([self._no_records(), *_as_list(self.records)])
        columns = records[:, self._single_columns :].reshape(
            len(records), 2 + len(self.measures), len(self.methods)
        )
        masked_score, valid, *values = columns.unbind(1)
        index = records[:, 0]
        before = torch.arange(len(records), device=index.device)
        return {
            "index": torch.where(index.isnan(), before, index.nan_to_num().long()),
            "class_idx": records[:, 1].long(),
            "score": records[:, 2],
            **{one.kind: records[:, 3 + number].long() for number, one in enumerate(self.groupings)},
            "masked_score": masked_score,
            "valid": valid.bool(),
            **dict(zip((measure.name for measure in self.measures), values, strict=True)),
        }

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the sums and the rows of another metric, such as a shard that was computed elsewhere.

        The index of an image is not known afterwards where ``update`` was given none, because both metrics
        counted from 0.

        Args:
            incoming_state: as for `CAMMetric.merge_state`.

        Raises:
            ValueError: as `CAMMetric.merge_state`.
        """
        own = sum(map(len, _as_list(self.records))) if self.per_sample else 0
        super().merge_state(incoming_state)
        if own and sum(map(len, _as_list(self.records))) > own:
            self.records = [_without_counted_index(rows) for rows in _as_list(self.records)]

    def _record(
        self,
        compared: ComparedBatch,
        class_idx: Tensor | None,
        index: Tensor | Sequence[int] | None,
        groups: Sequence[Tensor] = (),
    ) -> None:
        """Keep a row for each image of a batch, in float64, which holds indices exactly.

        Args:
            compared: the values of the batch.
            class_idx: its target classes, None for targets.
            index: the index of each image in its dataset; None if it is not given, which a row keeps as NaN.
            groups: the index of the group of each image in each grouping.
        """
        if not self.per_sample:
            return
        scores = compared.scores
        given = (
            torch.full_like(scores, torch.nan)
            if index is None
            else torch.as_tensor(index).as_subclass(Tensor)
        )
        classes = torch.full_like(scores, -1) if class_idx is None else class_idx
        values = torch.where(compared.defined, compared.values, torch.nan)
        first = [column.unsqueeze(0) for column in (given.to(scores.device), classes, scores, *groups)]
        blocks = [*first, compared.masked_scores, compared.valid, values.flatten(0, 1)]
        columns = torch.cat([block.to(sum_dtype(block.device)) for block in blocks])
        self.records = [*_as_list(self.records), columns.T.contiguous().to(self._no_records())]

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        """Synchronize the states; a rank without images contributes an empty tensor of rows."""
        if self.per_sample:
            # Every rank counted from 0; `unsync` restores the rows of this rank.
            rows = torch.cat([self._no_records(), *_as_list(self.records)])
            self.records = [
                rows if _number_of_ranks(self.process_group) == 1 else _without_counted_index(rows)
            ]
        super()._sync_dist(*args, **kwargs)

    @property
    def _single_columns(self) -> int:
        """The number of columns that do not depend on the method: index, class, score and groups."""
        return 3 + len(self.groupings)

    def _no_records(self) -> Tensor:
        """Return an empty tensor of rows, on their device (the CPU with ``compute_on_cpu=True``)."""
        kept = _as_list(self.records)
        like = kept[0] if kept else self.sums
        return like.new_zeros(0, self._single_columns + len(self.methods) * (2 + len(self.measures)))


def _as_list(records: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the rows of all batches as a list; after a sync over ranks they are one tensor."""
    return [records] if isinstance(records, Tensor) else list(records)


def _without_counted_index(rows: Tensor) -> Tensor:
    """Return rows in which an index that was not given is -1, which says that it is not known."""
    return torch.cat([rows[:, :1].nan_to_num(nan=-1.0), rows[:, 1:]], 1)


def _number_of_ranks(group: Any) -> int:
    """Return the number of ranks of a process group; 0 if Metric's ``dist_sync_fn`` needs none."""
    distributed = torch.distributed
    is_initialized = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size(group) if is_initialized else 0
