"""The base of the metrics that accumulate one measure and nothing else."""

from typing import ClassVar

import torch
from torch import Tensor

from torchmetrics_cam.metrics.measures import Measure
from torchmetrics_cam.metrics.single_source import SingleSourceMetric
from torchmetrics_cam.model.scores import ClassIndex, Target
from torchmetrics_cam.pipeline.batch import Batch


class MeasureMetric(SingleSourceMetric):
    """The mean of one measure over the images.

    Attributes:
        value: sum of the values of the images, float64.
    """

    measure: ClassVar[Measure]

    value: Tensor

    def _add_states(self) -> None:
        self.measure.check([self.source])
        self._pipeline.explains_other_class = self.measure.further_maps == "another class"
        self.add_state("value", self._zeros(torch.float64), dist_reduce_fx="sum")
        self._add_counts()

    def update(
        self,
        input_tensor: Tensor,
        class_idx: ClassIndex | None = None,
        *,
        targets: Target | list[Target] | None = None,
        cams: Tensor | None = None,
    ) -> None:
        """Explain a batch and accumulate the measure of each image.

        Args:
            input_tensor: images ``(N, C, *spatial)`` with one to three spatial dimensions, as the model takes
                them.
            class_idx: the target class: an int for all images, a list or LongTensor ``(N,)`` with one for
                each, or None for the model's top class of each image.
            targets: instead of a class, one callable for all images or one for each, from the output of a
                sample to a scalar. It receives all parts of a tuple or dict. It is applied to the scores, and
                for the gradient of a CAM to the output that the protocol's ``cam_of`` names.
            cams: maps computed beforehand ``(N, *any spatial)``, if the source is `PrecomputedMaps`.

        Raises:
            TypeError: if an argument is of a wrong type.
            ValueError: if an argument does not fit the model or the others. The states are unchanged then.
        """
        self.measure.check_batch(input_tensor, targets, self.protocol)
        with self.explained(input_tensor, class_idx, targets=targets, cams=cams) as batch:
            self._accumulate(batch)

    def compute(self) -> Tensor:
        """Return the mean over all images."""
        return self._mean(self.value, relative=self.measure.relative)

    def _accumulate(self, batch: Batch) -> None:
        value = self.measure.values(batch)
        valid = batch.counted & value.isfinite()
        self.value = self.value + self._sum(batch, value.where(valid, 0))
        self._count(batch, valid)

    def _kind_of_sums(self) -> str:
        return self.measure.name
