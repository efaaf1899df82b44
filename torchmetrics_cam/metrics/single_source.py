"""The base class of the metrics of one source: the mean of a value over the images."""

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.resolve import as_source
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.metrics.arguments import Average
from torchmetrics_cam.metrics.base import CAMMetric
from torchmetrics_cam.metrics.compute_groups import keep_own
from torchmetrics_cam.metrics.score_range import warn_scores_outside_unit_interval
from torchmetrics_cam.model.scores import ClassIndex, ScoreFunction, Target
from torchmetrics_cam.pipeline.batch import Batch
from torchmetrics_cam.pipeline.pipeline import Pipeline, Scorer, ValidateArgs
from torchmetrics_cam.protocol import EvaluationProtocol, as_protocol


class SingleSourceMetric(CAMMetric):
    """A metric over the maps of one source: the mean of a value over the images.

    A subclass adds its sums in ``_add_states``, explains a batch and accumulates in ``update``, and divides
    in ``compute``. Sums are exact over any split of the images into batches and ranks. With
    ``average="macro"`` or ``"none"`` each state holds one value for each class, ``(num_classes,)``.

    Attributes:
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].
    """

    default_protocol: ClassVar[str] = "paper"

    total: Tensor
    nan_count: Tensor
    degenerate_count: Tensor
    outside_count: Tensor

    def __init__(
        self,
        cam_extractor: Any,
        logits_fn: Callable[[Any], Any] | None = None,
        *,
        protocol: EvaluationProtocol | str | None = None,
        scorer: Scorer | None = None,
        surrogate: nn.Module | None = None,
        batch_size: int | None = None,
        num_classes: int | None = None,
        average: Average = "micro",
        validate_args: ValidateArgs = True,
        **kwargs: Any,
    ) -> None:
        pipeline = Pipeline(
            [as_source(cam_extractor)],
            ScoreFunction(logits_fn, as_protocol(protocol, self.default_protocol)),
            scorer=scorer,
            surrogate=surrogate,
            batch_size=batch_size,
            validate_args=validate_args,
        )
        super().__init__(pipeline, num_classes=num_classes, average=average, **kwargs)
        self._add_states()
        self.add_state("identity", self._identity(), dist_reduce_fx=keep_own)

    @property
    def source(self) -> CAMSource:
        """The source of the maps."""
        return self._pipeline.sources[0]

    @abstractmethod
    def _add_states(self) -> None:
        """Add the sums that `update` accumulates; called once by ``__init__``."""

    def explained(
        self,
        input_tensor: Tensor,
        class_idx: ClassIndex | None,
        *,
        targets: Target | list[Target] | None,
        cams: Tensor | None,
        objects: Tensor | None = None,
    ) -> AbstractContextManager[Batch]:
        """Explain a batch, and guard the model until the context ends.

        Args:
            input_tensor: as for `update`.
            class_idx: as for `update`.
            targets: as for `update`.
            cams: as for `update`.
            objects: the annotated object of each image, ``(N, *spatial)``.

        Returns:
            A context manager that gives the `Batch`.
        """
        maps = {} if cams is None else {self.source: cams}
        return self._explained(input_tensor, class_idx, targets=targets, cams=maps, objects=objects)

    def _add_counts(self) -> None:
        for name in ("total", "nan_count", "degenerate_count", "outside_count"):
            self.add_state(name, self._zeros(torch.int64), dist_reduce_fx="sum")

    def _count(self, batch: Batch, valid: Tensor) -> None:
        """Count the images of a batch; those that are ``valid``, ``(N,)``, are part of the sums."""
        self._count_outputs(batch, valid)
        # One sum for all four: beside a small model, small operations take most of the time.
        counted = [valid, ~valid, batch.degenerate & valid, batch.outside & valid]
        total, excluded, degenerate, outside = self._sum(batch, torch.stack(counted, 1)).unbind(-1)
        self.total = self.total + total
        self.nan_count = self.nan_count + excluded
        self.degenerate_count = self.degenerate_count + degenerate
        self.outside_count = self.outside_count + outside

    def _mean(self, sums: Tensor, *, relative: bool = False) -> Tensor:
        """Return a sum over the number of images, NaN for none; for ``"macro"`` the mean over the classes.

        Args:
            sums: a state.
            relative: whether the values are relative to a score, and undefined for scores outside of [0, 1].
        """
        if relative:
            warn_scores_outside_unit_interval(self.outside_count)
        means = sums.to(self._sum_dtype) / self.total
        return (means.nanmean() if self.average == "macro" else means).to(self.dtype)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, {self._described_settings()})"
