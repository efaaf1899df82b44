"""ADCC and its part Coherency."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from torchmetrics_cam.functional.adcc import adcc
from torchmetrics_cam.functional.complexity import complexity
from torchmetrics_cam.functional.confidence import average_drop
from torchmetrics_cam.metrics.arguments import Average
from torchmetrics_cam.metrics.mean import MeasureMetric
from torchmetrics_cam.metrics.measures import MEASURES, Measure
from torchmetrics_cam.metrics.single_source import SingleSourceMetric
from torchmetrics_cam.model.scores import ClassIndex, Target
from torchmetrics_cam.pipeline.pipeline import Scorer, ValidateArgs
from torchmetrics_cam.protocol import EvaluationProtocol


class Coherency(MeasureMetric):
    r"""Coherency: the similarity of the map of an image and the map of the masked image.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{r\big(M(x_i),\, M(x_i \odot M(x_i))\big) + 1}{2}

    with Pearson's correlation :math:`r`. Higher is better. The source explains every image twice. Two equal
    constant maps are coherent (1), a constant and another one are not (0.5).

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``coherency`` (:class:`~torch.Tensor`): a float32 scalar in [0, 1]; NaN if no image was counted. With
      ``average="none"`` it is ``(num_classes,)``

    Args:
        cam_extractor: the source of the maps: ``GradCAM(model, "layer4")`` and the other sources of
            `torchmetrics_cam.cams`, or an object of torchcam, pytorch-grad-cam, captum or MONAI. It has to
            explain the masked images too, which `PrecomputedMaps` cannot.
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
        ValueError: if the source is `PrecomputedMaps`, the protocol or the average is unknown, ``batch_size``
            or ``num_classes`` is not positive, or an average over classes lacks ``num_classes``; in
            ``update``, if an argument does not fit the model or the others, or scorer and model disagree.

    Attributes:
        value: sum of the coherencies, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Poppi et al., ADCC, https://arxiv.org/abs/2104.10252

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import Coherency
        >>> from torchmetrics_cam.cams import CallableSource
        >>> def edges(model, images, class_idx):  # the change from left to right
        ...     return images.mean(1).diff(dim=2)
        >>> metric = Coherency(CallableSource(nn.Flatten(), edges))
        >>> metric.update(torch.tensor([[[[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0]]]]))
        >>> metric.compute()  # the edges of the masked image lie where those of the image do, but for one
        tensor(0.9138)

    """

    higher_is_better: bool = True
    measure: ClassVar[Measure] = MEASURES["coherency"]


class ADCC(SingleSourceMetric):
    r"""Average DCC: the harmonic mean of coherency, of 1 - complexity and of 1 - Average Drop.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{3}{\frac{1}{\mathrm{coherency}_i} +
              \frac{1}{1 - \mathrm{complexity}_i} + \frac{1}{1 - \mathrm{drop}_i}}

    Higher is better; where a part is 0, ADCC is 0. The drop is the relative one, whatever the protocol's is.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``adcc`` (:class:`~torch.Tensor`): a float32 scalar in [0, 1]; NaN if no image was counted. With
      ``average="none"`` it is ``(num_classes,)``

    Attributes:
        value: sum of the values of the images, float64.
        coherency: sum of the coherencies, float64.
        complexity: sum of the complexities, float64.
        drop: sum of the relative drops, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Args:
        cam_extractor: the source of the maps: ``GradCAM(model, "layer4")`` and the other sources of
            `torchmetrics_cam.cams`, or an object of torchcam, pytorch-grad-cam, captum or MONAI. It has to
            explain the masked images too, which `PrecomputedMaps` cannot.
        logits_fn: from the model's raw output to scores ``(N, K)``. None takes the protocol's: a softmax, or
            the raw output in the presets ``"torchcam"`` and ``"xplique"``.
        averaged_parts: take the harmonic mean once, of the three means over all images, instead of the mean
            over the images of the harmonic mean of each.
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
        ValueError: if the source is `PrecomputedMaps`, the protocol or the average is unknown, ``batch_size``
            or ``num_classes`` is not positive, or an average over classes lacks ``num_classes``; in
            ``update``, if an argument does not fit the model or the others, or scorer and model disagree.

    Source: Poppi et al., https://arxiv.org/abs/2104.10252

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import ADCC
        >>> from torchmetrics_cam.cams import CallableSource
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> def first_column(model, images, class_idx):
        ...     return torch.tensor([1.0, 0.0]).expand(len(images), 2, 2)
        >>> metric = ADCC(CallableSource(model, first_column), logits_fn=lambda scores: scores)
        >>> metric.update(torch.full((1, 1, 2, 2), 0.8))
        >>> metric.compute()  # coherency 1, complexity 0.5 and drop 0.5: 3 / (1 + 2 + 2)
        tensor(0.6000)

    """

    higher_is_better: bool = True

    value: Tensor
    coherency: Tensor
    complexity: Tensor
    drop: Tensor

    def __init__(
        self,
        cam_extractor: Any,
        logits_fn: Callable[[Any], Any] | None = None,
        *,
        averaged_parts: bool = False,
        protocol: EvaluationProtocol | str | None = None,
        scorer: Scorer | None = None,
        surrogate: nn.Module | None = None,
        batch_size: int | None = None,
        num_classes: int | None = None,
        average: Average = "micro",
        validate_args: ValidateArgs = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            cam_extractor,
            logits_fn,
            protocol=protocol,
            scorer=scorer,
            surrogate=surrogate,
            batch_size=batch_size,
            num_classes=num_classes,
            average=average,
            validate_args=validate_args,
            **kwargs,
        )
        self.averaged_parts = averaged_parts

    def _add_states(self) -> None:
        MEASURES["adcc"].check([self.source])
        self.add_state("value", self._zeros(torch.float64), dist_reduce_fx="sum")
        self.add_state("coherency", self._zeros(torch.float64), dist_reduce_fx="sum")
        self.add_state("complexity", self._zeros(torch.float64), dist_reduce_fx="sum")
        self.add_state("drop", self._zeros(torch.float64), dist_reduce_fx="sum")
        self._add_counts()

    def update(
        self,
        input_tensor: Tensor,
        class_idx: ClassIndex | None = None,
        *,
        targets: Target | list[Target] | None = None,
        cams: Tensor | None = None,
    ) -> None:
        """Explain a batch and its masked images, and accumulate.

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
        with self.explained(input_tensor, class_idx, targets=targets, cams=cams) as batch:
            coherencies = batch.coherency
            complexities = complexity(batch.normalized_maps, reduction="none")
            drops = average_drop(batch.scores, batch.masked_scores, reduction="none")
            value = adcc(coherencies, complexities, drops)
        valid = batch.counted & value.isfinite() & coherencies.isfinite() & drops.isfinite()
        self.value = self.value + self._sum(batch, value.where(valid, 0))
        self.coherency = self.coherency + self._sum(batch, coherencies.where(valid, 0))
        self.complexity = self.complexity + self._sum(batch, complexities.where(valid, 0))
        self.drop = self.drop + self._sum(batch, drops.where(valid, 0))
        self._count(batch, valid)

    def compute(self) -> Tensor:
        """Return the mean over all images, or with ``averaged_parts`` ADCC of the means."""
        if not self.averaged_parts:
            return self._mean(self.value, relative=True)
        parts = (
            self._mean(self.coherency),
            self._mean(self.complexity),
            self._mean(self.drop, relative=True),
        )
        return adcc(*parts)
