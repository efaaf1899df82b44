"""Average Drop, Increase in Confidence and Average Gain: three readings of one masked forward pass."""

from typing import ClassVar

from torch import Tensor

from torchmetrics_cam.metrics.source_metric import SourceMetric


class ConfidenceMetric(SourceMetric):
    """The states that the three share, so that one extraction serves them in a `MetricCollection`.

    Attributes:
        drop: sum of the drops, float64.
        gain: sum of the gains, float64.
        increase: how many scores rose.
    """

    sums: ClassVar[dict[str, str]] = {
        "drop": "average_drop",
        "increase": "increase_in_confidence",
        "gain": "average_gain",
    }

    drop: Tensor
    gain: Tensor
    increase: Tensor


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

    Attributes:
        total: how many images were counted.
        nan_count: how many were left out, because a pixel, a score or a value of the map is not finite.
        degenerate_count: how many of those that count had a constant map.
        outside_count: how many of them had a score outside of [0, 1], of which a share means nothing.

    Args:
        cam_extractor: where the maps come from: ``GradCAM(model, "layer4")`` and the other sources of
            `torchmetrics_cam.cams`, or an object of torchcam, pytorch-grad-cam, captum or MONAI.
        logits_fn: turns the model's raw output into scores ``(N, K)``. None takes the protocol's: a softmax,
            or the raw output in the presets ``"torchcam"`` and ``"xplique"``.
        protocol: an `EvaluationProtocol` or the name of a preset: ``"paper"`` (default), ``"torchcam"``,
            ``"grad_cam"``, ``"score_cam"`` or ``"xplique"``.
        scorer: scores the masked images in place of the model, from images to the model's raw output, such as
            ``torch.compile(model)``. On the first batch it must agree with the model to 1e-3.
        batch_size: at most so many masked images in one forward pass; None for the whole batch.
        num_classes: how many classes the model scores; ``average`` needs it.
        average: ``"micro"`` is the mean over the images, ``"macro"`` the mean over the classes that were
            explained of the mean of each, ``"none"`` one mean a class.
        validate_args: False skips the checks that read values off the device, and the comparison of scorer
            and model.
        kwargs: as for every `torchmetrics.Metric`.

    Raises:
        TypeError: if the extractor gives no maps, ``logits_fn`` or ``scorer`` cannot be called, or the
            protocol is of another type.
        ValueError: if the protocol or the average is unknown, ``batch_size`` or ``num_classes`` is not
            positive, or an average over classes lacks ``num_classes``; in ``update``, if scorer and model
            disagree.

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
