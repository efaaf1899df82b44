"""Average Drop, Increase in Confidence, Average Gain and Drop in Deletion, from scores of masked images."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from torchmetrics_cam.functional.confidence import (
    average_drop,
    average_gain,
    increase_in_confidence,
)
from torchmetrics_cam.metrics.mean import MeasureMetric
from torchmetrics_cam.metrics.measures import MEASURES, Measure
from torchmetrics_cam.metrics.single_source import SingleSourceMetric
from torchmetrics_cam.model.scores import ClassIndex, Target


class ConfidenceMetric(SingleSourceMetric):
    """The states and the update of the three measures that need one masked forward pass.

    Metrics with the same source and protocol have equal states, so that a `MetricCollection` updates only one
    of them.

    Attributes:
        drop: sum of the drops, float64.
        increase: number of images whose score rose, int64.
        gain: sum of the gains, float64.
    """

    drop: Tensor
    increase: Tensor
    gain: Tensor

    def _add_states(self) -> None:
        self.add_state("drop", self._zeros(torch.float64), dist_reduce_fx="sum")
        self.add_state("increase", self._zeros(torch.int64), dist_reduce_fx="sum")
        self.add_state("gain", self._zeros(torch.float64), dist_reduce_fx="sum")
        self.add_state("total", self._zeros(torch.int64), dist_reduce_fx="sum")
        self.add_state("nan_count", self._zeros(torch.int64), dist_reduce_fx="sum")
        self.add_state("degenerate_count", self._zeros(torch.int64), dist_reduce_fx="sum")
        self.add_state("outside_count", self._zeros(torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        input_tensor: Tensor,
        class_idx: ClassIndex | None = None,
        *,
        targets: Target | list[Target] | None = None,
        cams: Tensor | None = None,
    ) -> None:
        """Explain a batch, score its masked images and accumulate drop, increase and gain.

        Args:
            input_tensor: images ``(N, C, *spatial)`` with one to three spatial dimensions, as the model takes
                them.
            class_idx: the target class: an int for all images, a list or LongTensor ``(N,)`` with one for
                each, or None for the model's top class of each image.
            targets: instead of a class, one callable for all images or one for each, from the output of a
                sample to a scalar. It receives all parts of a tuple or dict. It is applied to the scores (by
                default after the softmax), and for the gradient of a CAM to the output that the protocol's
                ``cam_of`` names (by default before the softmax).
            cams: maps computed beforehand ``(N, *any spatial)``, if the source is `PrecomputedMaps`.

        Raises:
            TypeError: if an argument is of a wrong type.
            ValueError: if an argument does not fit the model or the others. The states are unchanged then.
        """
        protocol = self.protocol
        with self.explained(input_tensor, class_idx, targets=targets, cams=cams) as batch:
            scores, masked_scores = batch.scores, batch.masked_scores
            drop = average_drop(
                scores,
                masked_scores,
                relative=protocol.drop == "relative",
                eps=protocol.drop_eps,
                reduction="none",
            )
            increase = increase_in_confidence(scores, masked_scores, reduction="none")
            gain = average_gain(scores, masked_scores, eps=protocol.gain_eps, reduction="none")
        valid = batch.counted & drop.isfinite() & gain.isfinite()
        self.drop = self.drop + self._sum(batch, drop.where(valid, 0))
        self.increase = self.increase + self._sum(batch, (increase == 1) & valid)
        self.gain = self.gain + self._sum(batch, gain.where(valid, 0))
        self._count(batch, valid)


class AverageDrop(ConfidenceMetric):
    r"""Average Drop: the fraction of the confidence that is lost when only the highlighted part is kept.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{\max(0, p_i - o_i)}{p_i}

    where :math:`p` is the score of the target class on the image and :math:`o` its score on the masked image,
    :math:`M \odot x + (1 - M) \odot b` with the map :math:`M`, normalized to [0, 1], and the baseline
    :math:`b`. Lower is better. A map that hides nothing has drop 0 too, so read it beside a control
    (`UniformMap`).

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``average_drop`` (:class:`~torch.Tensor`): a float32 scalar, a fraction in [0, 1] where scores are
      probabilities; NaN if no image was counted. With ``average="none"`` it is ``(num_classes,)``, NaN for a
      class that was not explained

    Attributes:
        drop: sum of the drops, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1], for which a relative
            change has no meaning.

    Args:
        cam_extractor: the source of the maps: ``GradCAM(model, "layer4")`` and the other sources of
            `torchmetrics_cam.cams`, or an object of torchcam, pytorch-grad-cam, captum or MONAI.
        logits_fn: from the model's raw output to scores ``(N, K)``. None takes the protocol's: a softmax, or
            the raw output in the presets ``"torchcam"`` and ``"xplique"``.
        protocol: an `EvaluationProtocol` or the name of a preset: ``"paper"`` (default), ``"torchcam"``,
            ``"grad_cam"``, ``"score_cam"``, ``"xplique"`` or ``"rise"``.
        scorer: from images to the model's raw output, run on masked images in place of the model, or
            ``"compile"`` for a compiled copy of the model. On the first batch its scores must equal the
            model's to 1e-3.
        surrogate: a network that scores clean and perturbed images in place of the model, such as a copy
            that was fine-tuned on masked images (`RandomMasking`); maps and target classes are the model's.
            It runs once more, on the clean images.
        batch_size: the largest number of masked images in one forward pass; None for the whole batch.
        num_classes: how many classes the model scores; needed unless ``average`` is ``"micro"``.
        average: ``"micro"`` for the mean over the images, ``"macro"`` for the mean over the target classes of
            the mean of each, ``"none"`` for one mean for each class.
        validate_args: False skips the checks that read values off the device, and the comparison of scorer
            and model. ``"determinism"`` also scores the first batch again, whole and in halves, and warns if
            the scores differ, as with dropout that ``eval()`` does not turn off.
        kwargs: as for every `torchmetrics.Metric`.

    Raises:
        TypeError: if the extractor gives no maps, ``logits_fn`` or ``scorer`` is not callable, or the
            protocol is of another type.
        ValueError: if the protocol or the average is unknown, ``batch_size`` or ``num_classes`` is not
            positive, or an average over classes lacks ``num_classes``; in ``update``, if scorer and model
            disagree.

    Source: Chattopadhyay et al., Grad-CAM++, https://arxiv.org/abs/1710.11063

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import AverageDrop
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> metric = AverageDrop(PrecomputedMaps(model), logits_fn=lambda scores: scores)
        >>> images = torch.tensor([[[[0.4, 0.4], [0.0, 0.0]]]])
        >>> metric.update(images, cams=torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
        >>> metric.compute()  # the map keeps one of the two pixels that make the score
        tensor(0.5000)

    """

    higher_is_better: bool = False

    def compute(self) -> Tensor:
        """Return the mean drop over all images."""
        return self._mean(self.drop, relative=self.protocol.drop == "relative")


class IncreaseInConfidence(ConfidenceMetric):
    r"""Increase in Confidence: the fraction of images that score higher with the highlighted part alone.

    .. math:: \frac{1}{N} \sum_{i=1}^N [p_i < o_i]

    where :math:`p` is the score of the target class on the image and :math:`o` its score on the masked image.
    Higher is better. The comparison is strict: an unchanged score is no increase.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``increase_in_confidence`` (:class:`~torch.Tensor`): a float32 scalar, a fraction in [0, 1]; NaN if no
      image was counted. With ``average="none"`` it is ``(num_classes,)``

    Args:
        cam_extractor: the source of the maps: ``GradCAM(model, "layer4")`` and the other sources of
            `torchmetrics_cam.cams`, or an object of torchcam, pytorch-grad-cam, captum or MONAI.
        logits_fn: from the model's raw output to scores ``(N, K)``. None takes the protocol's: a softmax, or
            the raw output in the presets ``"torchcam"`` and ``"xplique"``.
        protocol: an `EvaluationProtocol` or the name of a preset: ``"paper"`` (default), ``"torchcam"``,
            ``"grad_cam"``, ``"score_cam"``, ``"xplique"`` or ``"rise"``.
        scorer: from images to the model's raw output, run on perturbed images in place of the model, or
            ``"compile"`` for a compiled copy of the model. On the first batch its scores must equal the
            model's to 1e-3.
        surrogate: a network that scores clean and perturbed images in place of the model, such as a copy
            that was fine-tuned on masked images (`RandomMasking`); maps and target classes are the model's.
            It runs once more, on the clean images.
        batch_size: the largest number of perturbed images in one forward pass; None for the whole batch.
        num_classes: the number of classes of the model; needed unless ``average`` is ``"micro"``.
        average: ``"micro"`` for the mean over the images, ``"macro"`` for the mean over the target classes of
            the mean of each, ``"none"`` for one mean for each class.
        validate_args: False skips the checks that read values off the device, and the comparison of scorer
            and model. ``"determinism"`` also scores the first batch again, whole and in halves, and warns if
            the scores differ, as with dropout that ``eval()`` does not turn off.
        kwargs: as for every `torchmetrics.Metric`.

    Raises:
        TypeError: if the extractor gives no maps, ``logits_fn`` or ``scorer`` is not callable, or the
            protocol is of another type.
        ValueError: if the protocol or the average is unknown, ``batch_size`` or ``num_classes`` is not
            positive, or an average over classes lacks ``num_classes``; in ``update``, if an argument does not
            fit the model or the others, or scorer and model disagree.

    Attributes:
        increase: number of images whose score rose, int64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Chattopadhyay et al., Grad-CAM++, https://arxiv.org/abs/1710.11063

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import IncreaseInConfidence
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> metric = IncreaseInConfidence(PrecomputedMaps(model), logits_fn=lambda scores: scores)
        >>> images = torch.tensor([[[[0.4, -0.4], [0.0, 0.0]]], [[[0.4, 0.4], [0.0, 0.0]]]])
        >>> metric.update(images, cams=torch.tensor([[[1.0, 0.0], [0.0, 0.0]]] * 2))
        >>> metric.compute()  # without its negative pixel the first image scores higher, the second lower
        tensor(0.5000)

    """

    higher_is_better: bool = True

    def compute(self) -> Tensor:
        """Return the fraction of images whose score rose."""
        return self._mean(self.increase)


class AverageGain(ConfidenceMetric):
    r"""Average Gain: the fraction of the missing confidence that the highlighted part alone adds.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{\max(0, o_i - p_i)}{1 - p_i}

    where :math:`p` is the score of the target class on the image and :math:`o` its score on the masked image.
    Higher is better.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``average_gain`` (:class:`~torch.Tensor`): a float32 scalar, a fraction in [0, 1] where scores are
      probabilities; NaN if no image was counted. With ``average="none"`` it is ``(num_classes,)``

    Args:
        cam_extractor: the source of the maps: ``GradCAM(model, "layer4")`` and the other sources of
            `torchmetrics_cam.cams`, or an object of torchcam, pytorch-grad-cam, captum or MONAI.
        logits_fn: from the model's raw output to scores ``(N, K)``. None takes the protocol's: a softmax, or
            the raw output in the presets ``"torchcam"`` and ``"xplique"``.
        protocol: an `EvaluationProtocol` or the name of a preset: ``"paper"`` (default), ``"torchcam"``,
            ``"grad_cam"``, ``"score_cam"``, ``"xplique"`` or ``"rise"``.
        scorer: from images to the model's raw output, run on perturbed images in place of the model, or
            ``"compile"`` for a compiled copy of the model. On the first batch its scores must equal the
            model's to 1e-3.
        surrogate: a network that scores clean and perturbed images in place of the model, such as a copy
            that was fine-tuned on masked images (`RandomMasking`); maps and target classes are the model's.
            It runs once more, on the clean images.
        batch_size: the largest number of perturbed images in one forward pass; None for the whole batch.
        num_classes: the number of classes of the model; needed unless ``average`` is ``"micro"``.
        average: ``"micro"`` for the mean over the images, ``"macro"`` for the mean over the target classes of
            the mean of each, ``"none"`` for one mean for each class.
        validate_args: False skips the checks that read values off the device, and the comparison of scorer
            and model. ``"determinism"`` also scores the first batch again, whole and in halves, and warns if
            the scores differ, as with dropout that ``eval()`` does not turn off.
        kwargs: as for every `torchmetrics.Metric`.

    Raises:
        TypeError: if the extractor gives no maps, ``logits_fn`` or ``scorer`` is not callable, or the
            protocol is of another type.
        ValueError: if the protocol or the average is unknown, ``batch_size`` or ``num_classes`` is not
            positive, or an average over classes lacks ``num_classes``; in ``update``, if an argument does not
            fit the model or the others, or scorer and model disagree.

    Attributes:
        gain: sum of the gains, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Zhang et al., Opti-CAM, https://arxiv.org/abs/2301.07002

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import AverageGain
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> metric = AverageGain(PrecomputedMaps(model), logits_fn=lambda scores: scores)
        >>> images = torch.tensor([[[[2.0, -2.0], [0.0, 0.0]]]])
        >>> metric.update(images, cams=torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
        >>> metric.compute()  # from a score of 0 to one of 0.5
        tensor(0.5000)

    """

    higher_is_better: bool = True

    def compute(self) -> Tensor:
        """Return the mean gain over all images."""
        return self._mean(self.gain, relative=True)


class ClassificationMetric(ConfidenceMetric):
    """Average Drop and Increase in Confidence as ``torchcam.metrics.ClassificationMetric`` computes them.

    It differs from `AverageDrop` in one way that can change the ranking of methods: gradient CAMs are
    computed from the scores after ``logits_fn``. With a softmax these maps differ from those that torchcam
    draws and from those of the papers. For the numbers of the papers use `AverageDrop`, or
    ``protocol="paper"`` here.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - a dict with ``avg_drop`` and ``conf_increase`` (:class:`~torch.Tensor`): float32 scalars, NaN if no
      image was counted

    Args:
        cam_extractor: the source of the maps: ``GradCAM(model, "layer4")`` and the other sources of
            `torchmetrics_cam.cams`, or an object of torchcam, pytorch-grad-cam, captum or MONAI.
        logits_fn: from the model's raw output to scores ``(N, K)``. None takes the protocol's: the raw output
            in the presets ``"torchcam"`` and ``"xplique"``, else a softmax.
        protocol: an `EvaluationProtocol` or the name of a preset: ``"torchcam"`` (default), ``"paper"``,
            ``"grad_cam"``, ``"score_cam"``, ``"xplique"`` or ``"rise"``.
        scorer: from images to the model's raw output, run on perturbed images in place of the model, or
            ``"compile"`` for a compiled copy of the model. On the first batch its scores must equal the
            model's to 1e-3.
        surrogate: a network that scores clean and perturbed images in place of the model, such as a copy
            that was fine-tuned on masked images (`RandomMasking`); maps and target classes are the model's.
            It runs once more, on the clean images.
        batch_size: the largest number of perturbed images in one forward pass; None for the whole batch.
        num_classes: the number of classes of the model; needed unless ``average`` is ``"micro"``.
        average: ``"micro"`` for the mean over the images, ``"macro"`` for the mean over the target classes of
            the mean of each, ``"none"`` for one mean for each class.
        validate_args: False skips the checks that read values off the device, and the comparison of scorer
            and model. ``"determinism"`` also scores the first batch again, whole and in halves, and warns if
            the scores differ, as with dropout that ``eval()`` does not turn off.
        kwargs: as for every `torchmetrics.Metric`.

    Raises:
        TypeError: if the extractor gives no maps, ``logits_fn`` or ``scorer`` is not callable, or the
            protocol is of another type.
        ValueError: if the protocol or the average is unknown, ``batch_size`` or ``num_classes`` is not
            positive, or an average over classes lacks ``num_classes``; in ``update``, if an argument does not
            fit the model or the others, or scorer and model disagree.

    Attributes:
        drop: sum of the drops, float64.
        increase: number of images whose score rose, int64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Chattopadhyay et al., Grad-CAM++, https://arxiv.org/abs/1710.11063

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import ClassificationMetric
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> metric = ClassificationMetric(PrecomputedMaps(model))
        >>> images = torch.tensor([[[[0.4, 0.4], [0.0, 0.0]]]])
        >>> metric.update(images, cams=torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
        >>> {name: round(value, 4) for name, value in metric.summary().items()}
        {'avg_drop': 0.5, 'conf_increase': 0.0}

    """

    higher_is_better: bool | None = None
    default_protocol: ClassVar[str] = "torchcam"

    def compute(self) -> dict[str, Tensor]:
        """Return Average Drop and Increase in Confidence over all images."""
        relative = self.protocol.drop == "relative"
        return {
            "avg_drop": self._mean(self.drop, relative=relative),
            "conf_increase": self._mean(self.increase),
        }

    def summary(self) -> dict[str, Any]:
        """Return the values of `compute` as floats, or as lists with ``average="none"``.

        Raises:
            AssertionError: if no image was counted yet.
        """
        if not self.total.any():
            raise AssertionError("you need to update the metric before getting the summary")
        return {name: value.tolist() for name, value in self.compute().items()}


class DropInDeletion(MeasureMetric):
    r"""Average Drop in Deletion: the fraction of the confidence that is lost with the highlighted part.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{p_i - d_i}{p_i}

    where :math:`p` is the score of the target class on the image and :math:`d` its score on the complement,
    the image with the highlighted part hidden. Higher is better. It is not clamped: where the rest scores
    higher than the whole image, a value is negative. A uniform map of 1 hides everything and does well, so
    read it beside Average Drop.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``drop_in_deletion`` (:class:`~torch.Tensor`): a float32 scalar, at most 1 where scores are
      probabilities; NaN if no image was counted. With ``average="none"`` it is ``(num_classes,)``

    Args:
        cam_extractor: the source of the maps: ``GradCAM(model, "layer4")`` and the other sources of
            `torchmetrics_cam.cams`, or an object of torchcam, pytorch-grad-cam, captum or MONAI.
        logits_fn: from the model's raw output to scores ``(N, K)``. None takes the protocol's: a softmax, or
            the raw output in the presets ``"torchcam"`` and ``"xplique"``.
        protocol: an `EvaluationProtocol` or the name of a preset: ``"paper"`` (default), ``"torchcam"``,
            ``"grad_cam"``, ``"score_cam"``, ``"xplique"`` or ``"rise"``.
        scorer: from images to the model's raw output, run on perturbed images in place of the model, or
            ``"compile"`` for a compiled copy of the model. On the first batch its scores must equal the
            model's to 1e-3.
        surrogate: a network that scores clean and perturbed images in place of the model, such as a copy
            that was fine-tuned on masked images (`RandomMasking`); maps and target classes are the model's.
            It runs once more, on the clean images.
        batch_size: the largest number of perturbed images in one forward pass; None for the whole batch.
        num_classes: the number of classes of the model; needed unless ``average`` is ``"micro"``.
        average: ``"micro"`` for the mean over the images, ``"macro"`` for the mean over the target classes of
            the mean of each, ``"none"`` for one mean for each class.
        validate_args: False skips the checks that read values off the device, and the comparison of scorer
            and model. ``"determinism"`` also scores the first batch again, whole and in halves, and warns if
            the scores differ, as with dropout that ``eval()`` does not turn off.
        kwargs: as for every `torchmetrics.Metric`.

    Raises:
        TypeError: if the extractor gives no maps, ``logits_fn`` or ``scorer`` is not callable, or the
            protocol is of another type.
        ValueError: if the protocol or the average is unknown, ``batch_size`` or ``num_classes`` is not
            positive, or an average over classes lacks ``num_classes``; in ``update``, if an argument does not
            fit the model or the others, or scorer and model disagree.

    Attributes:
        value: sum of the drops, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Jung and Oh, LIFT-CAM, https://arxiv.org/abs/2102.05228

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import DropInDeletion
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> metric = DropInDeletion(PrecomputedMaps(model), logits_fn=lambda scores: scores)
        >>> images = torch.tensor([[[[0.6, 0.2], [0.0, 0.0]]]])
        >>> metric.update(images, cams=torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
        >>> metric.compute()  # the hidden pixel made three quarters of the score
        tensor(0.7500)

    """

    higher_is_better: bool = True
    plot_lower_bound: float | None = None  # type: ignore[assignment]
    measure: ClassVar[Measure] = MEASURES["drop_in_deletion"]
