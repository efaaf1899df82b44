"""One row a sample: what a comparison keeps with ``per_sample=True``."""

from collections.abc import Sequence

import torch
from torch import Tensor

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
    columns = [*shared, *batch.masked, *batch.valid, *batch.values.flatten(0, 1)]
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
