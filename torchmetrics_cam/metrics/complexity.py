"""Complexity, Sparseness and Entropy: how much the map highlights."""

from typing import ClassVar

from torchmetrics_cam.metrics.mean import MeasureMetric
from torchmetrics_cam.metrics.measures import MEASURES, Measure


class Complexity(MeasureMetric):
    r"""Complexity: the mean of the map in [0, 1]. Lower is better: a map of few pixels is simple.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{1}{P} \sum_{j=1}^P M_{ij}

    with the map :math:`M` of :math:`P` pixels. It needs no masked forward pass. Read it beside Average Drop,
    which is best for a map that hides nothing.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``complexity`` (:class:`~torch.Tensor`): a float32 scalar in [0, 1]; NaN if no image was counted. With
      ``average="none"`` it is ``(num_classes,)``

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
        value: sum of the complexities, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Poppi et al., ADCC, https://arxiv.org/abs/2104.10252

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import Complexity
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> metric = Complexity(PrecomputedMaps(nn.Flatten()))
        >>> metric.update(torch.rand(1, 1, 2, 2), cams=torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
        >>> metric.compute()  # one of four pixels
        tensor(0.2500)

    """

    higher_is_better: bool = False
    measure: ClassVar[Measure] = MEASURES["complexity"]


class Sparseness(MeasureMetric):
    r"""Sparseness: the Gini index of the map. Higher is better: few pixels hold most of the map.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{\sum_{j=1}^P (2j - P - 1)\, M_{i(j)}}{P \sum_{j=1}^P M_{i(j)}}

    with the values :math:`M_{i(1)} \le \dots \le M_{i(P)}` of the map of :math:`P` pixels in ascending order.
    It is 0 for a constant map and :math:`1 - 1/P` for a single pixel. It needs no masked forward pass, and it
    says nothing about whether the highlighted pixels matter: read it beside a measure of faithfulness. A map
    that is zero everywhere has no sparseness; its image is not counted.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``sparseness`` (:class:`~torch.Tensor`): a float32 scalar in [0, 1); NaN if no image was counted. With
      ``average="none"`` it is ``(num_classes,)``

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
        value: sum of the sparsenesses, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite, or the normalized map is zero everywhere.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Chalasani et al., https://arxiv.org/abs/1810.06583

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import Sparseness
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> metric = Sparseness(PrecomputedMaps(nn.Flatten()))
        >>> metric.update(torch.rand(1, 1, 2, 2), cams=torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]))
        >>> metric.compute()  # one of four pixels: 1 - 1 / 4
        tensor(0.7500)

    """

    higher_is_better: bool = True
    measure: ClassVar[Measure] = MEASURES["sparseness"]


class Entropy(MeasureMetric):
    r"""Entropy: how widely the map is spread over the pixels, in nats. Lower is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N -\sum_{j=1}^P q_{ij} \ln q_{ij}, \qquad
              q_{ij} = \frac{M_{ij}}{\sum_{k=1}^P M_{ik}}

    with the map :math:`M` of :math:`P` pixels. It is 0 for a single pixel and :math:`\ln P` for a constant
    map, so only maps of one size can be compared. It needs no masked forward pass, and it says nothing about
    whether the highlighted pixels matter: read it beside a measure of faithfulness. A map that is zero
    everywhere has no entropy; its image is not counted.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``entropy`` (:class:`~torch.Tensor`): a float32 scalar of at least 0, in nats; NaN if no image was
      counted. With ``average="none"`` it is ``(num_classes,)``

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
        value: sum of the entropies, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite, or the normalized map is zero everywhere.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Bhatt et al., https://arxiv.org/abs/2005.00631, who call it complexity

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import Entropy
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> metric = Entropy(PrecomputedMaps(nn.Flatten()))
        >>> metric.update(torch.rand(1, 1, 2, 2), cams=torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))
        >>> metric.compute()  # two of four pixels: ln 2
        tensor(0.6931)

    """

    higher_is_better: bool = False
    plot_upper_bound: float | None = None  # type: ignore[assignment]
    measure: ClassVar[Measure] = MEASURES["entropy"]
