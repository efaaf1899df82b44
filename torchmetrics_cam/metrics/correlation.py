"""Single Deletion and Faithfulness Correlation: whether the map predicts what hiding a part changes."""

from typing import ClassVar

from torchmetrics_cam.metrics.mean import MeasureMetric
from torchmetrics_cam.metrics.measures import MEASURES, Measure


class SingleDeletion(MeasureMetric):
    r"""Single Deletion: whether the map ranks parts of the image as the model does. Higher is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N
              r_s\left( \sum_{j \in C_1} M_{ij}, \dots, \sum_{j \in C_S} M_{ij};\
              d_{i1}, \dots, d_{iS} \right)

    with Spearman's rank correlation :math:`r_s`, in which equal values have the mean of their ranks, over the
    S cells :math:`C` of a regular grid with the protocol's ``deletion_grid`` cells along each axis: the sum
    of the map :math:`M` in a cell, and the drop :math:`d` of the logit of the target class when the cell
    alone shows the protocol's ``baseline``. A map without information has 0 on average.

    The S perturbed images do not depend on the map, so that a `CAMComparison` scores them once for all
    methods. The score after a softmax is not used: it hides the drop of a confident prediction.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``single_deletion`` (:class:`~torch.Tensor`): a float32 scalar in [-1, 1]; NaN if no image was counted.
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
            fit the model or the others, scorer and model disagree, ``targets`` are given, the model does
            not return one output for each class, or an axis of the images has fewer pixels than the grid has
            cells.

    Attributes:
        value: sum of the values of the images, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite, the map is constant, or all cells have the same sum or the same drop.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Hesse et al., Benchmarking the Attribution Quality of Vision Models,
    https://arxiv.org/abs/2407.11910, without its fine-tuning of the model on images with hidden cells

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import EvaluationProtocol, SingleDeletion
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> protocol = EvaluationProtocol(scores="raw", deletion_grid=2)
        >>> metric = SingleDeletion(PrecomputedMaps(model), protocol=protocol)
        >>> images = torch.tensor([[[[0.8, 0.4], [0.2, 0.0]]]])  # the logit drops by a quarter of each pixel
        >>> metric.update(images, 0, cams=torch.tensor([[[1.0, 0.2], [0.6, 0.0]]]))
        >>> metric.compute()  # the ranks 4, 3, 2, 1 and 4, 2, 3, 1: 1 - 6 * 2 / (4 * 15)
        tensor(0.8000)

    """

    higher_is_better: bool = True
    plot_lower_bound: float = -1.0
    measure: ClassVar[Measure] = MEASURES["single_deletion"]


class FaithfulnessCorrelation(MeasureMetric):
    r"""Faithfulness Correlation: that of the map with the score. Higher is better.

    It says whether the drop of the score is correlated with the sum of the map over the hidden pixels.

    .. math:: \frac{1}{N} \sum_{i=1}^N
              r\left( \sum_{j \in S_1} M_{ij}, \dots, \sum_{j \in S_n} M_{ij};\ d_{i1}, \dots, d_{in} \right)

    with Pearson's correlation :math:`r`: the sum of the map :math:`M` over a random subset :math:`S` of the
    image, and the drop :math:`d` of the score when the subset shows the protocol's ``baseline``. A map
    without information has 0 on average. Each of the ``correlation_subsets`` n subsets has the fraction
    ``correlation_fraction`` of the cells of a grid with ``correlation_grid`` cells along each axis; with as
    many cells as pixels they are subsets of pixels, as in the paper.

    The subsets are computed from a hash of the image, the same in any batch and rank. They do not depend on
    the map, so that a `CAMComparison` scores them once for all methods.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``faithfulness_correlation`` (:class:`~torch.Tensor`): a float32 scalar in [-1, 1]; NaN if no image was
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
            fit the model or the others, scorer and model disagree, or an axis of the images has fewer
            pixels than the grid has cells.

    Attributes:
        value: sum of the values of the images, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite, the map is constant, or all subsets have the same sum or the same drop.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Bhatt et al., Evaluating and Aggregating Feature-based Model Explanations,
    https://arxiv.org/abs/2005.00631

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import EvaluationProtocol, FaithfulnessCorrelation
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> protocol = EvaluationProtocol(scores="raw", correlation_grid=2, correlation_fraction=0.5)
        >>> metric = FaithfulnessCorrelation(PrecomputedMaps(model), protocol=protocol)
        >>> images = torch.tensor([[[[0.8, 0.4], [0.2, 0.0]]]])
        >>> metric.update(images, cams=images[:, 0])  # the map is the image: the drop is a quarter of its sum
        >>> metric.compute()
        tensor(1.)

    """

    higher_is_better: bool = True
    plot_lower_bound: float = -1.0
    measure: ClassVar[Measure] = MEASURES["faithfulness_correlation"]
