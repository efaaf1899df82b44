"""Max-Sensitivity, Average Sensitivity and Class Sensitivity: what changes the map, and what should."""

from typing import ClassVar

import torch
from torch import Tensor

from torchmetrics_cam.metrics.mean import MeasureMetric
from torchmetrics_cam.metrics.measures import MEASURES, Measure
from torchmetrics_cam.pipeline.batch import Batch


class SensitivityMetric(MeasureMetric):
    """The states of both sensitivities to noise, which need the same noisy passes.

    Metrics with the same source and protocol have equal states, so that a `MetricCollection` updates only one
    of them.

    Attributes:
        largest_change: sum of the largest change of each image, float64.
        mean_change: sum of the mean change of each image, float64.
    """

    plot_upper_bound: float | None = None  # type: ignore[assignment]

    largest_change: Tensor
    mean_change: Tensor

    def _add_states(self) -> None:
        self.measure.check([self.source])
        self.add_state("largest_change", self._zeros(torch.float64), dist_reduce_fx="sum")
        self.add_state("mean_change", self._zeros(torch.float64), dist_reduce_fx="sum")
        self._add_counts()

    def _accumulate(self, batch: Batch) -> None:
        largest = MEASURES["max_sensitivity"].values(batch)
        mean = MEASURES["average_sensitivity"].values(batch)
        # The maximum and the mean are finite for the same images.
        valid = batch.counted & mean.isfinite()
        self.largest_change = self.largest_change + self._sum(batch, largest.where(valid, 0))
        self.mean_change = self.mean_change + self._sum(batch, mean.where(valid, 0))
        self._count(batch, valid)

    def _kind_of_sums(self) -> str:
        return "sensitivity"


class MaxSensitivity(SensitivityMetric):
    r"""Max-Sensitivity: the largest relative change of the map under noise on the image. Lower is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N \max_{k = 1}^R
              \frac{\lVert M(x_i + \delta_k) - M(x_i) \rVert_2}{\lVert M(x_i) \rVert_2},
              \qquad \lVert \delta_k \rVert_\infty \le r

    The protocol's ``sensitivity_samples`` is R, and ``sensitivity_radius`` is r, in units of the model's
    input. The noise is uniform and computed from a hash of the image, the same in any batch and rank. The
    explained class is that of the image without noise, whatever the model says to the noisy one. In half
    precision a noisy image is rounded as any image is, so choose a radius well above its resolution.

    A map that never changes, such as a constant one, has the best value, 0: read it beside
    `ClassSensitivity`. The R noisy passes serve all methods of a `CAMComparison` that share one, and in a
    `MetricCollection` both sensitivities of a source.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``max_sensitivity`` (:class:`~torch.Tensor`): a float32 scalar of at least 0; NaN if no image was
      counted. With ``average="none"`` it is ``(num_classes,)``

    Args:
        cam_extractor: the source of the maps: ``GradCAM(model, "layer4")`` and the other sources of
            `torchmetrics_cam.cams`, or an object of torchcam, pytorch-grad-cam, captum or MONAI; not
            `PrecomputedMaps`, which has no maps of further images.
        logits_fn: from the model's raw output to scores ``(N, K)``. None takes the protocol's: a softmax, or
            the raw output in the presets ``"torchcam"`` and ``"xplique"``.
        protocol: an `EvaluationProtocol` or the name of a preset: ``"paper"`` (default), ``"torchcam"``,
            ``"grad_cam"``, ``"score_cam"``, ``"xplique"`` or ``"rise"``.
        scorer: from images to the model's raw output, run on perturbed images in place of the model, or
            ``"compile"`` for a compiled copy of the model. On the first batch its scores must equal the
            model's to 1e-3. Maps of noisy images need no scorer.
        surrogate: a network that scores clean and perturbed images in place of the model, such as a copy
            that was fine-tuned on masked images (`RandomMasking`); maps and target classes are the model's.
            It runs once more, on the clean images.
        batch_size: the largest number of perturbed images in one forward pass; None for the whole batch.
            Noisy images are explained a whole batch at a time.
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
            positive, an average over classes lacks ``num_classes``, or the source is `PrecomputedMaps`; in
            ``update``, if an argument does not fit the model or the others, or scorer and model disagree.

    Attributes:
        largest_change: sum of the largest change of each image, float64.
        mean_change: sum of the mean change of each image, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of a map is not finite,
            or the map is zero everywhere and that of a noisy image is not.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Yeh et al., On the (In)fidelity and Sensitivity of Explanations, https://arxiv.org/abs/1901.09392,
    who do not divide by the norm of the map; captum's ``sensitivity_max`` does

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import EvaluationProtocol, MaxSensitivity
        >>> from torchmetrics_cam.cams import CallableSource
        >>> def left_or_both(model, images, class_idx):  # both pixels if the image is not the clean one
        ...     is_noisy = (images != 0.5).any()
        ...     return torch.stack([torch.ones(()), is_noisy.float()]).view(1, 1, 2)
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> protocol = EvaluationProtocol(scores="raw", normalize="none")
        >>> metric = MaxSensitivity(CallableSource(model, left_or_both), protocol=protocol)
        >>> metric.update(torch.full((1, 2, 1, 2), 0.5))
        >>> metric.compute()  # from the map (1, 0) to (1, 1), for each noise: |(0, 1)| / |(1, 0)|
        tensor(1.)

    """

    higher_is_better: bool = False
    measure: ClassVar[Measure] = MEASURES["max_sensitivity"]

    def compute(self) -> Tensor:
        """Return the mean of the largest change over all images."""
        return self._mean(self.largest_change)


class AverageSensitivity(SensitivityMetric):
    r"""Average Sensitivity: the mean relative change of the map under noise on the image. Lower is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{1}{R} \sum_{k = 1}^R
              \frac{\lVert M(x_i + \delta_k) - M(x_i) \rVert_2}{\lVert M(x_i) \rVert_2},
              \qquad \lVert \delta_k \rVert_\infty \le r

    The protocol's ``sensitivity_samples`` is R, and ``sensitivity_radius`` is r, in units of the model's
    input. The noise is uniform and computed from a hash of the image, the same in any batch and rank. The
    explained class is that of the image without noise, whatever the model says to the noisy one. In half
    precision a noisy image is rounded as any image is, so choose a radius well above its resolution.

    A map that never changes, such as a constant one, has the best value, 0: read it beside
    `ClassSensitivity`. The R noisy passes serve all methods of a `CAMComparison` that share one, and in a
    `MetricCollection` both sensitivities of a source.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``average_sensitivity`` (:class:`~torch.Tensor`): a float32 scalar of at least 0; NaN if no image was
      counted. With ``average="none"`` it is ``(num_classes,)``

    Args:
        cam_extractor: the source of the maps: ``GradCAM(model, "layer4")`` and the other sources of
            `torchmetrics_cam.cams`, or an object of torchcam, pytorch-grad-cam, captum or MONAI; not
            `PrecomputedMaps`, which has no maps of further images.
        logits_fn: from the model's raw output to scores ``(N, K)``. None takes the protocol's: a softmax, or
            the raw output in the presets ``"torchcam"`` and ``"xplique"``.
        protocol: an `EvaluationProtocol` or the name of a preset: ``"paper"`` (default), ``"torchcam"``,
            ``"grad_cam"``, ``"score_cam"``, ``"xplique"`` or ``"rise"``.
        scorer: from images to the model's raw output, run on perturbed images in place of the model, or
            ``"compile"`` for a compiled copy of the model. On the first batch its scores must equal the
            model's to 1e-3. Maps of noisy images need no scorer.
        surrogate: a network that scores clean and perturbed images in place of the model, such as a copy
            that was fine-tuned on masked images (`RandomMasking`); maps and target classes are the model's.
            It runs once more, on the clean images.
        batch_size: the largest number of perturbed images in one forward pass; None for the whole batch.
            Noisy images are explained a whole batch at a time.
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
            positive, an average over classes lacks ``num_classes``, or the source is `PrecomputedMaps`; in
            ``update``, if an argument does not fit the model or the others, or scorer and model disagree.

    Attributes:
        largest_change: sum of the largest change of each image, float64.
        mean_change: sum of the mean change of each image, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of a map is not finite,
            or the map is zero everywhere and that of a noisy image is not.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Bhatt et al., Evaluating and Aggregating Feature-based Model Explanations,
    https://arxiv.org/abs/2005.00631, who do not divide by the norm of the map, as captum's
    ``sensitivity_max`` does for the maximum of Yeh et al., `MaxSensitivity`; the mean is steadier for few
    samples

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import AverageSensitivity, EvaluationProtocol
        >>> from torchmetrics_cam.cams import CallableSource
        >>> def left_or_both(model, images, class_idx):  # both pixels if the image is not the clean one
        ...     is_noisy = (images != 0.5).any()
        ...     return torch.stack([torch.ones(()), is_noisy.float()]).view(1, 1, 2)
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> protocol = EvaluationProtocol(scores="raw", normalize="none")
        >>> metric = AverageSensitivity(CallableSource(model, left_or_both), protocol=protocol)
        >>> metric.update(torch.full((1, 2, 1, 2), 0.5))
        >>> metric.compute()  # from the map (1, 0) to (1, 1), for each noise: |(0, 1)| / |(1, 0)|
        tensor(1.)

    """

    higher_is_better: bool = False
    measure: ClassVar[Measure] = MEASURES["average_sensitivity"]

    def compute(self) -> Tensor:
        """Return the mean of the mean change over all images."""
        return self._mean(self.mean_change)


class ClassSensitivity(MeasureMetric):
    r"""Class Sensitivity: how little the map of one class resembles that of another. Higher is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N 1 - \max(0, r(M_i, M'_i))

    with Pearson's correlation :math:`r` over the pixels of the map :math:`M` of the target class and of the
    map :math:`M'` of the protocol's ``other_class``, by default the class with the highest score beside the
    target class. 0 means that the map does not tell the classes apart. Gradient CAMs explain both classes
    after one forward pass.

    A random map that is new for each class has a value near 1: read it beside `MaxSensitivity`. A map that is
    drawn once for each class deceives both; `SingleDeletion` and `SymmetricRelevanceGain` show that it is not
    faithful.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``class_sensitivity`` (:class:`~torch.Tensor`): a float32 scalar in [0, 1]; NaN if no image was counted.
      With ``average="none"`` it is ``(num_classes,)``

    Args:
        cam_extractor: the source of the maps: ``GradCAM(model, "layer4")`` and the other sources of
            `torchmetrics_cam.cams`, or an object of torchcam, pytorch-grad-cam, captum or MONAI; not
            `PrecomputedMaps`, which has no maps of further classes.
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
            positive, an average over classes lacks ``num_classes``, or the source is `PrecomputedMaps`; in
            ``update``, if an argument does not fit the model or the others, scorer and model disagree,
            ``targets`` are given, or the other class is not among those of the model.

    Attributes:
        value: sum of the values of the images, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of a map is not finite,
            or the other class is the target class.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Sixt et al., When Explanations Lie: Why Many Modified BP Attributions Fail,
    https://arxiv.org/abs/1912.09818, who compare with a random class by the structural similarity

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import ClassSensitivity
        >>> from torchmetrics_cam.cams import CallableSource
        >>> def own_channel(model, images, class_idx):
        ...     return images[range(len(images)), class_idx]
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> metric = ClassSensitivity(CallableSource(model, own_channel))
        >>> metric.update(torch.tensor([[[[0.0, 1.0, 2.0, 3.0]], [[1.0, 0.0, 2.0, 3.0]]]]))
        >>> metric.compute()  # the correlation is 0.8
        tensor(0.2000)

    """

    higher_is_better: bool = True
    measure: ClassVar[Measure] = MEASURES["class_sensitivity"]
