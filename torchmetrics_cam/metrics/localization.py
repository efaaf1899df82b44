"""Localization: whether the map highlights the annotated object."""

from typing import ClassVar

from torch import Tensor

from torchmetrics_cam.metrics.arguments import check_objects
from torchmetrics_cam.metrics.mean import MeasureMetric
from torchmetrics_cam.metrics.measures import MEASURES, Measure
from torchmetrics_cam.model.scores import ClassIndex, Target


class LocalizationMetric(MeasureMetric):
    """The update of the metrics that compare maps with annotated objects."""

    higher_is_better: bool = True

    def update(
        self,
        input_tensor: Tensor,
        class_idx: ClassIndex | None = None,
        *,
        objects: Tensor | None = None,
        targets: Target | list[Target] | None = None,
        cams: Tensor | None = None,
    ) -> None:
        """Explain a batch and compare its maps with the objects.

        Args:
            input_tensor: images ``(N, C, *spatial)`` with one to three spatial dimensions, as the model takes
                them.
            class_idx: the target class: an int for all images, a list or LongTensor ``(N,)`` with one for
                each, or None for the model's top class of each image.
            objects: the annotated object of each image, ``(N, *spatial)`` of the images' size, bool or 0 and
                1; `boxes_to_objects` converts boxes.
            targets: instead of a class, one callable for all images or one for each, from the output of a
                sample to a scalar. It receives all parts of a tuple or dict. It is applied to the scores, and
                for the gradient of a CAM to the output that the protocol's ``cam_of`` names.
            cams: maps computed beforehand ``(N, *any spatial)``, if the source is `PrecomputedMaps`.

        Raises:
            TypeError: if an argument is of a wrong type.
            ValueError: if the objects are missing, or an argument does not fit the model or the others. The
                states are unchanged then.
        """
        check_objects(objects, input_tensor)
        self.measure.check_batch(input_tensor, targets, self.protocol)
        with self.explained(input_tensor, class_idx, targets=targets, cams=cams, objects=objects) as batch:
            self._accumulate(batch)


class EnergyPointingGame(LocalizationMetric):
    r"""Energy-based pointing game: the fraction of the map that lies on the object. Higher is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{\sum_{j \in \mathrm{object}} M_{ij}}{\sum_j M_{ij}}

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image
    - ``objects`` (:class:`~torch.Tensor`): the annotated object of each image, ``(N, *spatial)`` of the
      images' size, bool or 0 and 1

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``energy_pointing_game`` (:class:`~torch.Tensor`): a float32 scalar in [0, 1]; NaN if no image was
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
        value: sum of the values of the images, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Wang et al., Score-CAM, https://arxiv.org/abs/1910.01279

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import EnergyPointingGame
        >>> from torchmetrics_cam.cams import UniformMap
        >>> from torchmetrics_cam.functional import boxes_to_objects
        >>> metric = EnergyPointingGame(UniformMap(nn.Flatten()))
        >>> objects = boxes_to_objects(torch.tensor([[0, 0, 2, 2]]), (4, 4))
        >>> metric.update(torch.randn(1, 1, 4, 4), objects=objects)
        >>> metric.compute()  # the object covers a quarter of the image
        tensor(0.2500)

    """

    measure: ClassVar[Measure] = MEASURES["energy_pointing_game"]


class PointingGame(LocalizationMetric):
    """Pointing game: the fraction of images whose highest pixel lies on the object. Higher is better.

    The protocol's ``pointing_tolerance`` is the largest distance from the object, in pixels, that still
    counts. Of several highest pixels, the fraction that lies there counts.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image
    - ``objects`` (:class:`~torch.Tensor`): the annotated object of each image, ``(N, *spatial)`` of the
      images' size, bool or 0 and 1

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``pointing_game`` (:class:`~torch.Tensor`): a float32 scalar in [0, 1]; NaN if no image was counted.
      With ``average="none"`` it is ``(num_classes,)``

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
        value: sum of the values of the images, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Zhang et al., Excitation Backprop, https://arxiv.org/abs/1608.00507

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import EvaluationProtocol, PointingGame
        >>> from torchmetrics_cam.cams import CenterMap
        >>> from torchmetrics_cam.functional import boxes_to_objects
        >>> metric = PointingGame(CenterMap(nn.Flatten()), protocol=EvaluationProtocol(pointing_tolerance=0))
        >>> objects = boxes_to_objects(torch.tensor([[2, 2, 3, 3], [0, 0, 1, 1]]), (5, 5))
        >>> metric.update(torch.randn(2, 1, 5, 5), objects=objects)
        >>> metric.compute()  # the first object lies in the center, the second in a corner
        tensor(0.5000)

    """

    measure: ClassVar[Measure] = MEASURES["pointing_game"]


class MaskIoU(LocalizationMetric):
    r"""Intersection over union of the object and of the highest part of the map. Higher is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{|\{M_i \ge t\} \cap \mathrm{object}_i|}
              {|\{M_i \ge t\} \cup \mathrm{object}_i|}

    with the protocol's ``iou_threshold`` :math:`t`.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image
    - ``objects`` (:class:`~torch.Tensor`): the annotated object of each image, ``(N, *spatial)`` of the
      images' size, bool or 0 and 1

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``mask_iou`` (:class:`~torch.Tensor`): a float32 scalar in [0, 1]; NaN if no image was counted. With
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
        value: sum of the values of the images, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import MaskIoU
        >>> from torchmetrics_cam.cams import UniformMap
        >>> metric = MaskIoU(UniformMap(nn.Flatten()))
        >>> metric.update(torch.rand(1, 1, 2, 2), objects=torch.tensor([[[1, 0], [0, 0]]]))
        >>> metric.compute()  # the map is high everywhere, the object is one of four pixels
        tensor(0.2500)

    """

    measure: ClassVar[Measure] = MEASURES["mask_iou"]


class RelevanceRankAccuracy(LocalizationMetric):
    r"""Relevance rank accuracy: the fraction of the highest pixels that lies on the object. Higher is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{|\mathrm{top}_{K_i}(M_i) \cap \mathrm{object}_i|}{K_i}, \qquad
              K_i = |\mathrm{object}_i|

    As many of the highest pixels are taken as the object has. Pixels that tie for the last places share them,
    so a constant map has the fraction of the image that the object covers. An image without an object is not
    counted.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image
    - ``objects`` (:class:`~torch.Tensor`): the annotated object of each image, ``(N, *spatial)`` of the
      images' size, bool or 0 and 1

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``relevance_rank_accuracy`` (:class:`~torch.Tensor`): a float32 scalar in [0, 1]; NaN if no image was
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
        value: sum of the values of the images, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite, or the object is empty.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Arras et al., CLEVR-XAI, https://arxiv.org/abs/2003.07258

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import RelevanceRankAccuracy
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> metric = RelevanceRankAccuracy(PrecomputedMaps(nn.Flatten()))
        >>> cams, objects = torch.tensor([[[0.9, 0.6], [0.2, 0.1]]]), torch.tensor([[[1, 0], [1, 0]]])
        >>> metric.update(torch.rand(1, 1, 2, 2), cams=cams, objects=objects)
        >>> metric.compute()  # of the two highest pixels, one lies on the object
        tensor(0.5000)

    """

    measure: ClassVar[Measure] = MEASURES["relevance_rank_accuracy"]


class LocalizationAUC(LocalizationMetric):
    r"""Localization AUC: the area under the ROC curve of the map as a score for "inside". Higher is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N \Big( P(M_{ij} > M_{ik}) + \tfrac{1}{2} P(M_{ij} = M_{ik}) \Big)

    for a random pixel j of the object and a random pixel k of the rest of the image. A constant map has 0.5,
    whatever the size of the object. An image whose object is empty or covers it whole is not counted.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image
    - ``objects`` (:class:`~torch.Tensor`): the annotated object of each image, ``(N, *spatial)`` of the
      images' size, bool or 0 and 1

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``localization_auc`` (:class:`~torch.Tensor`): a float32 scalar in [0, 1]; NaN if no image was counted.
      With ``average="none"`` it is ``(num_classes,)``

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
        value: sum of the values of the images, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite, or the object is empty or covers the whole
            image.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Fawcett, An introduction to ROC analysis, https://doi.org/10.1016/j.patrec.2005.10.010

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import LocalizationAUC
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> metric = LocalizationAUC(PrecomputedMaps(nn.Flatten()))
        >>> cams, objects = torch.tensor([[[0.9, 0.6], [0.2, 0.1]]]), torch.tensor([[[1, 0], [1, 0]]])
        >>> metric.update(torch.rand(1, 1, 2, 2), cams=cams, objects=objects)
        >>> metric.compute()  # 3 of the 4 pairs of a pixel inside and one outside are in order
        tensor(0.7500)

    """

    measure: ClassVar[Measure] = MEASURES["localization_auc"]


class TopKIntersection(LocalizationMetric):
    r"""Top-K intersection: the fraction of the K highest pixels that lies on the object. Higher is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{|\mathrm{top}_K(M_i) \cap \mathrm{object}_i|}{K}

    with the protocol's ``top_k`` :math:`K`, 1000 by default, which must be smaller than the number of pixels.
    An object of fewer pixels cannot reach 1. Pixels that tie for the last places share them, so a constant
    map has the fraction of the image that the object covers. An image without an object is not counted.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image
    - ``objects`` (:class:`~torch.Tensor`): the annotated object of each image, ``(N, *spatial)`` of the
      images' size, bool or 0 and 1

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``top_k_intersection`` (:class:`~torch.Tensor`): a float32 scalar in [0, 1]; NaN if no image was
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
            fit the model or the others, the images do not have more than ``top_k`` pixels, or scorer and
            model disagree.

    Attributes:
        value: sum of the values of the images, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite, or the object is empty.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Theiner et al., https://arxiv.org/abs/2104.14995

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import EvaluationProtocol, TopKIntersection
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> metric = TopKIntersection(PrecomputedMaps(nn.Flatten()), protocol=EvaluationProtocol(top_k=3))
        >>> cams, objects = torch.tensor([[[0.9, 0.6], [0.2, 0.1]]]), torch.tensor([[[1, 0], [1, 0]]])
        >>> metric.update(torch.rand(1, 1, 2, 2), cams=cams, objects=objects)
        >>> metric.compute()  # of the three highest pixels, two lie on the object
        tensor(0.6667)

    """

    measure: ClassVar[Measure] = MEASURES["top_k_intersection"]
