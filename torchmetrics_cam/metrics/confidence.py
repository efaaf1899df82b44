"""Average Drop, Increase in Confidence and Average Gain: three readings of one masked forward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchmetrics_cam.cams.resolve import as_source
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.metrics.base import CAMMetric, warn_scores_outside_unit_interval
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.metrics.settings import Average
from torchmetrics_cam.protocol import EvaluationProtocol
from torchmetrics_cam.scoring import ClassIndex, Target


class ConfidenceMetric(CAMMetric):
    """The states and the update that the three share; their sums are exact over any split of the images.

    With ``average="macro"`` or ``"none"`` each state holds one value a class, ``(num_classes,)``.

    Attributes:
        drop: sum of the drops, float64.
        gain: sum of the gains, float64.
        increase: how many scores rose.
        total: how many images were counted.
        nan_count: how many images left the metric, because a pixel, a score or a value of the map was not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].
    """

    drop: Tensor
    gain: Tensor
    increase: Tensor
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
            logits_fn,
            protocol=protocol,
            scorer=scorer,
            batch_size=batch_size,
            num_classes=num_classes,
            average=average,
            validate_args=validate_args,
            **kwargs,
        )
        for name in ("drop", "gain"):
            self._add_sum(name, torch.float64)
        for name in ("increase", "total", "nan_count", "degenerate_count", "outside_count"):
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
        """Explain a batch, mask it, score it again and add the result to the states.

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
        (explanation,), (masked,) = self._explained(input_tensor, class_idx, targets, handed)
        valid = explanation.valid & masked.isfinite()
        scores, masked = (
            torch.where(valid, score, torch.zeros_like(score)) for score in (explanation.scores, masked)
        )
        for name, values in {
            "drop": MEASURES["average_drop"].of(scores, masked, self.protocol),
            "gain": MEASURES["average_gain"].of(scores, masked, self.protocol),
            "increase": MEASURES["increase_in_confidence"].of(scores, masked, self.protocol),
            "total": valid,
            "nan_count": ~valid,
            "degenerate_count": explanation.degenerate & valid,
            "outside_count": (scores < 0) | (scores > 1),
        }.items():
            self._add(name, values, explanation.selection)

    def _mean(self, name: str) -> Tensor:
        """A sum over the number of images, NaN for none; for ``"macro"`` the mean over the classes seen."""
        if name == "gain" or (name == "drop" and self.protocol.drop == "relative"):
            warn_scores_outside_unit_interval(self.outside_count)
        means: Tensor = getattr(self, name).to(self.drop.dtype) / self.total
        return means.nanmean() if self.average == "macro" else means

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, protocol={self.protocol.name!r})"


class AverageDrop(ConfidenceMetric):
    r"""Average Drop: the share of the confidence that is lost when all but the highlighted part is hidden.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{\max(0, p_i - o_i)}{p_i}

    where :math:`p` is the score of a class on the image and :math:`o` its score on the masked image. 0 is
    best. A map that hides nothing has drop 0 too, so read it beside a control (`UniformMap`).

    As input to ``forward`` and ``update`` the metric accepts images ``(N, C, *spatial)``, and a class as an
    int, a list or a LongTensor ``(N,)``.

    As output of ``forward`` and ``compute`` the metric returns a scalar tensor, a fraction in [0, 1] where
    scores are probabilities; NaN if no image was counted. With ``average="none"`` it is ``(num_classes,)``,
    NaN for a class that was not explained.

    Args:
        cam_extractor: where the maps come from: ``GradCAM(model, "layer4")`` and the other sources of
            `torchmetrics_cam.cams`, or an object of torchcam, pytorch-grad-cam, captum or MONAI.
        logits_fn: turns the model's raw output into scores ``(N, K)``. None takes the protocol's: a softmax,
            or the raw output in the ``"torchcam"`` preset.
        protocol: an `EvaluationProtocol` or the name of a preset: ``"paper"`` (default), ``"torchcam"``,
            ``"grad_cam"``, ``"score_cam"`` or ``"xplique"``.
        scorer: scores the masked images in place of the model, from images to the model's raw output, such as
            ``torch.compile(model)``. On the first batch it must agree with the model to 1e-3.
        batch_size: at most so many masked images in one forward pass; None for the whole batch.
        num_classes: how many classes the model scores; ``average`` needs it.
        average: ``"micro"`` is the mean over the images, ``"macro"`` the mean over the classes that were
            explained of the mean of each, ``"none"`` one mean a class.
        validate_args: False skips the checks that read values off the device.
        kwargs: as for every `torchmetrics.Metric`.

    Raises:
        TypeError: if the extractor is none.
        ValueError: if the protocol is unknown, or an average over classes lacks ``num_classes``; in
            ``update``, if scorer and model disagree.

    Source: Chattopadhyay et al., Grad-CAM++, https://arxiv.org/abs/1710.11063

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import AverageDrop
        >>> from torchmetrics_cam.cams import GradCAM
        >>> _ = torch.manual_seed(0)
        >>> head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head)
        >>> metric = AverageDrop(GradCAM(model, "1"))
        >>> metric.update(torch.rand(2, 3, 16, 16), class_idx=[0, 3])
        >>> bool(0 <= metric.compute() <= 1)
        True

    """

    higher_is_better: bool = False

    def compute(self) -> Tensor:
        """The mean drop over all images."""
        return self._mean("drop")


class IncreaseInConfidence(ConfidenceMetric):
    r"""Increase in Confidence: how often the highlighted part alone convinces more than the whole image.

    .. math:: \frac{1}{N} \sum_{i=1}^N [p_i < o_i]

    Higher is better. Input, output, arguments and errors are those of `AverageDrop`.

    Source: Chattopadhyay et al., Grad-CAM++, https://arxiv.org/abs/1710.11063

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import IncreaseInConfidence
        >>> from torchmetrics_cam.cams import UniformMap
        >>> metric = IncreaseInConfidence(UniformMap(nn.Flatten()))
        >>> metric.update(torch.rand(2, 1, 4, 4))
        >>> float(metric.compute())
        0.0

    """

    higher_is_better: bool = True

    def compute(self) -> Tensor:
        """The share of images whose score rose."""
        return self._mean("increase")


class AverageGain(ConfidenceMetric):
    r"""Average Gain: how much of the confidence that was missing the highlighted part alone adds.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{\max(0, o_i - p_i)}{1 - p_i}

    Higher is better. Input, output, arguments and errors are those of `AverageDrop`.

    Source: Zhang et al., Opti-CAM, https://arxiv.org/abs/2301.07002

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import AverageGain
        >>> from torchmetrics_cam.cams import UniformMap
        >>> metric = AverageGain(UniformMap(nn.Flatten()))
        >>> metric.update(torch.rand(2, 1, 4, 4))
        >>> float(metric.compute())
        0.0

    """

    higher_is_better: bool = True

    def compute(self) -> Tensor:
        """The mean gain over all images."""
        return self._mean("gain")
