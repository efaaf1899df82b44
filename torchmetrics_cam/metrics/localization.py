"""Localization: does the map point at the object that somebody has marked."""

from typing import ClassVar

from torch import Tensor

from torchmetrics_cam.metrics.source_metric import SourceMetric
from torchmetrics_cam.model.scores import ClassIndex, Target


class LocalizationMetric(SourceMetric):
    """What the three share: they compare the map with masks of objects, and ask the model for nothing else.

    Attributes:
        value: the sum over the images, float64.
    """

    higher_is_better: bool = True

    value: Tensor

    def update(
        self,
        input_tensor: Tensor,
        class_idx: ClassIndex | None = None,
        *,
        masks: Tensor | None = None,
        targets: Target | list[Target] | None = None,
        cams: Tensor | None = None,
    ) -> None:
        """Explain a batch and compare the maps with the objects.

        Args:
            input_tensor: as for `AverageDrop`.
            class_idx: as for `AverageDrop`.
            masks: where the object of each image is, ``(N, *spatial)`` of the images' size, bool or 0 and 1;
                `boxes_to_objects` makes them of boxes.
            targets: as for `AverageDrop`.
            cams: as for `AverageDrop`.

        Raises:
            TypeError: if an argument is of a wrong type.
            ValueError: if the masks are missing or do not fit the images; and as `AverageDrop`.
        """
        handed = {} if cams is None else {self.source: cams}
        self._accumulate(self._evaluated(input_tensor, class_idx, targets, handed, masks))

    def compute(self) -> Tensor:
        """The mean over all images."""
        return self._mean("value")


class EnergyPointingGame(LocalizationMetric):
    """Energy-based pointing game: the share of the map that lies on the object. Higher is better.

    Output, errors and the other arguments are those of `AverageDrop`; `update` takes ``masks``.

    Source: Wang et al., Score-CAM, https://arxiv.org/abs/1910.01279

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import EnergyPointingGame
        >>> from torchmetrics_cam.cams import UniformMap
        >>> from torchmetrics_cam.functional import boxes_to_objects
        >>> metric = EnergyPointingGame(UniformMap(nn.Flatten()))
        >>> objects = boxes_to_objects(torch.tensor([[0, 0, 2, 2]]), (4, 4))
        >>> metric.update(torch.rand(1, 1, 4, 4), masks=objects)
        >>> float(metric.compute())
        0.25

    """

    sums: ClassVar[dict[str, str]] = {"value": "energy_pointing_game"}


class PointingGame(LocalizationMetric):
    """Pointing game: on how many images the highest position lies on the object. Higher is better.

    The protocol's ``pointing_tolerance`` is how many pixels beside the object still count. Of several highest
    positions the share counts that lies there.

    Input, output, arguments and errors are those of `EnergyPointingGame`.

    Source: Zhang et al., Excitation Backprop, https://arxiv.org/abs/1608.00507

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import PointingGame
        >>> from torchmetrics_cam.cams import CenterMap
        >>> metric = PointingGame(CenterMap(nn.Flatten()))
        >>> metric.update(torch.rand(1, 1, 5, 5), masks=torch.ones(1, 5, 5))
        >>> float(metric.compute())
        1.0

    """

    sums: ClassVar[dict[str, str]] = {"value": "pointing_game"}


class MaskIoU(LocalizationMetric):
    """Intersection over union of the object and of where the map is high. Higher is better.

    High is what is at least the protocol's ``iou_threshold``.

    Input, output, arguments and errors are those of `EnergyPointingGame`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import MaskIoU
        >>> from torchmetrics_cam.cams import UniformMap
        >>> metric = MaskIoU(UniformMap(nn.Flatten()))
        >>> metric.update(torch.rand(1, 1, 2, 2), masks=torch.tensor([[[1, 0], [0, 0]]]))
        >>> float(metric.compute())
        0.25

    """

    sums: ClassVar[dict[str, str]] = {"value": "mask_iou"}
