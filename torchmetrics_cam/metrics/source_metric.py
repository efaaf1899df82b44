"""SourceMetric: a metric over the maps of one source, which adds up the values of its measures."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchmetrics_cam.cams.resolve import as_source
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.metrics.base import CAMMetric, warn_scores_outside_unit_interval
from torchmetrics_cam.metrics.batch_values import BatchValues
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.metrics.settings import Average
from torchmetrics_cam.model.scores import ClassIndex, Target
from torchmetrics_cam.protocol import EvaluationProtocol


class SourceMetric(CAMMetric):
    """One state a measure, and the counts. Sums are exact over any split of the images.

    With ``average="macro"`` or ``"none"`` each state holds one value a class, ``(num_classes,)``.

    Attributes:
        total: how many images were counted.
        nan_count: how many images left the metric, because a pixel, a score or a value of the map was not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].
    """

    # Which state adds up which measure.
    sums: ClassVar[dict[str, str]]

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
        scorer: Callable[[Tensor], Any] | None = None,
        batch_size: int | None = None,
        num_classes: int | None = None,
        average: Average = "micro",
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            [as_source(cam_extractor)],
            list(self.sums.values()),
            logits_fn,
            protocol=protocol,
            scorer=scorer,
            batch_size=batch_size,
            num_classes=num_classes,
            average=average,
            validate_args=validate_args,
            **kwargs,
        )
        for name, measure in self.sums.items():
            self._add_sum(name, torch.int64 if MEASURES[measure].proportion else torch.float64)
        for name in ("total", "nan_count", "degenerate_count", "outside_count"):
            self._add_sum(name, torch.int64)

    @property
    def source(self) -> CAMSource:
        """Where the maps come from."""
        return self._evaluation.sources[0]

    def update(
        self,
        input_tensor: Tensor,
        class_idx: ClassIndex | None = None,
        *,
        targets: Target | list[Target] | None = None,
        cams: Tensor | None = None,
    ) -> None:
        """Explain a batch, perturb it, score it again and add the result to the states.

        Args:
            input_tensor: images ``(N, C, *spatial)`` with one to three spatial dimensions, as the model takes
                them.
            class_idx: the class that is explained: an int for all, a list or LongTensor ``(N,)`` for one an
                image, or None for the model's top class of each image.
            targets: instead of a class, one callable for all images or one an image, from a sample's output
                to a scalar; of a tuple or dict it sees every part. The drop takes it of the scores, the CAM
                of what the protocol takes the CAM of: by default the sample after the softmax, and before it.
            cams: maps ``(N, *any spatial)`` computed beforehand, where the source is `PrecomputedMaps`.

        Raises:
            TypeError: if an argument is of a wrong type.
            ValueError: if an argument does not fit the model or the others. Nothing accumulated is lost.
        """
        handed = {} if cams is None else {self.source: cams}
        self._accumulate(self._evaluated(input_tensor, class_idx, targets, handed))

    def _accumulate(self, batch: BatchValues) -> None:
        for name, values in {
            **dict(zip(self.sums, batch.values[:, 0], strict=True)),
            "total": batch.valid[0],
            **{name: counted[:, 0] for name, counted in batch.counts().items()},
        }.items():
            self._add(name, values, batch.selection)

    def _mean(self, name: str) -> Tensor:
        """A sum over the number of images, NaN for none; for ``"macro"`` the mean over the classes seen."""
        if MEASURES[self.sums[name]].warns(self.protocol):
            warn_scores_outside_unit_interval(self.outside_count)
        state: Tensor = getattr(self, name)
        means = (state if state.is_floating_point() else state.double()) / self.total
        return means.nanmean() if self.average == "macro" else means

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, protocol={self.protocol.name!r})"
