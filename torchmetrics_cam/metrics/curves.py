"""Deletion, insertion and ROAD: the scores as pixels are removed or inserted in the order of the map."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from torchmetrics_cam.functional.curves import area_under_curve, resampled_curve
from torchmetrics_cam.functional.road import road_score
from torchmetrics_cam.functional.statistics import Estimate, estimate
from torchmetrics_cam.metrics.mean import MeasureMetric
from torchmetrics_cam.metrics.measures import MEASURES, Measure
from torchmetrics_cam.metrics.single_source import SingleSourceMetric
from torchmetrics_cam.model.scores import ClassIndex, Target
from torchmetrics_cam.pipeline.batch import Batch
from torchmetrics_cam.protocol import EvaluationProtocol


def curve_fractions(protocol: EvaluationProtocol) -> list[float]:
    """Return the fractions of pixels at which curves are summed, whatever the size of the images."""
    return [point / protocol.curve_steps for point in range(protocol.curve_steps + 1)]


def resampled_curves(batch: Batch) -> Tensor:
    """Return the deletion and the insertion curve of a batch at `curve_fractions`, ``(P, 2, N)``."""
    both = torch.stack([batch.deletion_scores, batch.insertion_scores], 1)
    return resampled_curve(both, batch.fractions, batch.protocol.curve_steps + 1)


class CurveMetric(SingleSourceMetric):
    """A metric that sums two curves over the fraction of perturbed pixels, beside its values.

    Attributes:
        curves: sums of the two curves and of their squares, float64, ``(P, 2, 2)``.
    """

    curves: Tensor

    def _add_curves(self) -> None:
        shape = (len(self._fractions()), 2, 2)
        self.add_state("curves", self._zeros(torch.float64, *shape), dist_reduce_fx="sum")

    def plot(
        self,
        val: Any = None,
        ax: _AX_TYPE | None = None,
    ) -> _PLOT_OUT_TYPE:
        """Plot the mean curves with their 95 % intervals, or values over time; every rank must call it.

        Args:
            val: what `compute` or `forward` returned, or a list of it; None plots the curves.
            ax: a matplotlib axis to draw on; None makes a figure.

        Returns:
            Figure and axis.

        Raises:
            ModuleNotFoundError: if matplotlib is missing; ``pip install "torchmetrics-cam[plot]"`` has it.
        """
        if val is not None:
            return super().plot(val, ax)
        from torchmetrics_cam.plots import curve_figure

        with self._all_ranks():
            mean, has_range = self._mean_curves(), not self.outside_count.any()
        parts = (mean.mean, *(mean.interval(low=0, high=1) if has_range else mean.interval()))
        curves = {
            name: tuple(part[:, index] for part in parts) for index, name in self._curve_names().items()
        }
        return curve_figure(self._fractions(), curves, ax)

    @abstractmethod
    def _curve_names(self) -> dict[int, str]:
        """Return the names of the curves that are plotted, by their index."""

    @abstractmethod
    def _fractions(self) -> list[float]:
        """Return the fraction of pixels at each point of the curves."""

    def _sum_of_curves(self, batch: Batch, curves: Tensor, valid: Tensor) -> Tensor:
        """Sum the curves of a batch, ``(P, 2, N)``, and their squares over its valid images."""
        curves = torch.where(valid, curves, 0).movedim(2, 0)
        return self._sum(batch, torch.stack([curves, curves.square()], -1))

    def _mean_curves(self) -> Estimate:
        """Return the mean of both curves over the images of all ranks and classes, ``(P, 2)``."""
        with self._all_ranks():
            curves, total = self.curves, self.total
        if self.average != "micro":
            curves, total = curves.sum(0), total.sum()
        return estimate(total, *curves.unbind(-1))


class DeletionInsertionMetric(CurveMetric):
    """The states and the update of deletion and insertion, which share their end points.

    Metrics with the same source and protocol have equal states, so that a `MetricCollection` updates only one
    of them.

    Attributes:
        deletion: sum of the areas under the deletion curves, float64.
        insertion: sum of the areas under the insertion curves, float64.
    """

    # The index of this metric's curve.
    curve_index: ClassVar[int]

    deletion: Tensor
    insertion: Tensor

    def _add_states(self) -> None:
        self.add_state("deletion", self._zeros(torch.float64), dist_reduce_fx="sum")
        self.add_state("insertion", self._zeros(torch.float64), dist_reduce_fx="sum")
        self._add_counts()
        self._add_curves()

    def update(
        self,
        input_tensor: Tensor,
        class_idx: ClassIndex | None = None,
        *,
        targets: Target | list[Target] | None = None,
        cams: Tensor | None = None,
    ) -> None:
        """Explain a batch, score its deletion and insertion curves and accumulate.

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
            deletion = area_under_curve(batch.deletion_scores, batch.fractions)
            insertion = area_under_curve(batch.insertion_scores, batch.fractions)
            curves = resampled_curves(batch)
        valid = batch.counted & deletion.isfinite() & insertion.isfinite()
        self.deletion = self.deletion + self._sum(batch, deletion.where(valid, 0))
        self.insertion = self.insertion + self._sum(batch, insertion.where(valid, 0))
        self.curves = self.curves + self._sum_of_curves(batch, curves, valid)
        self._count(batch, valid)

    def curve(self) -> tuple[Tensor, Tensor]:
        """Return the mean curve over the images of all ranks; every rank must call it.

        Returns:
            The fraction of pixels that is perturbed, ``(curve_steps + 1,)``, and the mean score there.
        """
        mean = self._mean_curves().mean[:, self.curve_index]
        return torch.tensor(self._fractions(), device=mean.device), mean

    def _curve_names(self) -> dict[int, str]:
        return {self.curve_index: type(self).__name__}

    def _fractions(self) -> list[float]:
        return curve_fractions(self.protocol)


class DeletionAUC(DeletionInsertionMetric):
    r"""Deletion: the area under the score as the most relevant pixels are deleted. Lower is better.

    .. math:: \int_0^1 s(x \text{ without the fraction } f \text{ of its most relevant pixels})\, df

    Pixels are ranked by the map, and pixels of equal value in row-major order. The curve includes both end
    points, and its abscissa is the exact fraction of pixels. The protocol's ``deletion_baseline`` replaces
    deleted pixels (zeros, as in RISE), and ``curve_steps`` is the number of steps. One update computes both
    curves, so that a `MetricCollection` with `InsertionAUC` runs it once.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``deletion_auc`` (:class:`~torch.Tensor`): a float32 scalar, the mean score over the curve, in [0, 1]
      where scores are probabilities; NaN if no image was counted. With ``average="none"`` it is
      ``(num_classes,)``

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
        deletion: sum of the areas under the curves, float64.
        curves: sums of the deletion and insertion curves and of their squares, float64, ``(P, 2, 2)``.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Petsiuk et al., RISE, https://arxiv.org/abs/1806.07421

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import DeletionAUC, EvaluationProtocol
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> protocol = EvaluationProtocol(scores="raw", curve_steps=4)
        >>> metric = DeletionAUC(PrecomputedMaps(model), protocol=protocol)
        >>> images = torch.tensor([[[[0.8, 0.0], [0.0, 0.0]]]])
        >>> metric.update(images, cams=torch.tensor([[[1.0, 0.5], [0.4, 0.0]]]))
        >>> metric.curve()[1]  # the first pixel makes all of the score
        tensor([0.2000, 0.0000, 0.0000, 0.0000, 0.0000], dtype=torch.float64)
        >>> metric.compute()
        tensor(0.0250)

    """

    higher_is_better: bool = False
    curve_index: ClassVar[int] = 0

    def compute(self) -> Tensor:
        """Return the mean area under the deletion curve over all images."""
        return self._mean(self.deletion)


class InsertionAUC(DeletionInsertionMetric):
    r"""Insertion: the area under the score as the most relevant pixels are inserted. Higher is better.

    .. math:: \int_0^1 s(b \text{ with the fraction } f \text{ of the most relevant pixels of } x)\, df

    It begins with an image :math:`b` that is the protocol's ``insertion_baseline`` everywhere (a blur of
    kernel 11 and sigma 5, as in RISE) and ends with the image. Ranks, steps and the area are those of
    `DeletionAUC`.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``insertion_auc`` (:class:`~torch.Tensor`): a float32 scalar, the mean score over the curve, in [0, 1]
      where scores are probabilities; NaN if no image was counted. With ``average="none"`` it is
      ``(num_classes,)``

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
        insertion: sum of the areas under the curves, float64.
        curves: sums of the deletion and insertion curves and of their squares, float64, ``(P, 2, 2)``.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Petsiuk et al., RISE, https://arxiv.org/abs/1806.07421

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import EvaluationProtocol, InsertionAUC
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> protocol = EvaluationProtocol(scores="raw", curve_steps=4, insertion_baseline=0.0)
        >>> metric = InsertionAUC(PrecomputedMaps(model), protocol=protocol)
        >>> images = torch.tensor([[[[0.8, 0.0], [0.0, 0.0]]]])
        >>> metric.update(images, cams=torch.tensor([[[1.0, 0.5], [0.4, 0.0]]]))
        >>> metric.curve()[1]  # the first pixel makes all of the score
        tensor([0.0000, 0.2000, 0.2000, 0.2000, 0.2000], dtype=torch.float64)
        >>> metric.compute()
        tensor(0.1750)

    """

    higher_is_better: bool = True
    curve_index: ClassVar[int] = 1

    def compute(self) -> Tensor:
        """Return the mean area under the insertion curve over all images."""
        return self._mean(self.insertion)


class SymmetricRelevanceGain(MeasureMetric):
    r"""Symmetric Relevance Gain: insertion minus deletion, with one baseline. Higher is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N \int_0^1
              s(b_i \text{ with the fraction } f \text{ of the most relevant pixels of } x_i)
              - s(x_i \text{ without them})\, df

    The protocol's ``deletion_baseline`` :math:`b` replaces pixels in both curves, so that the first integral
    is the area under the score as the least relevant pixels are deleted. A map whose order of the pixels is
    reversed has the same value with the opposite sign, and a random order has 0 on average: an effect of the
    masking alone, which is the same in both curves, cancels. Ranks, steps and areas are those of
    `DeletionAUC`. Both curves share their end points, so that the model scores 2 ``curve_steps`` - 1
    perturbed images for each image.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``symmetric_relevance_gain`` (:class:`~torch.Tensor`): a float32 scalar, in [-1, 1] where scores are
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
        value: sum of the values of the images, float64.
        total: how many images were counted.
        nan_count: how many images were excluded, because a pixel, a score or a value of the map is not
            finite.
        degenerate_count: how many of the counted images have a constant map.
        outside_count: how many of the counted images have a score outside of [0, 1].

    Source: Blücher et al., Decoupling Pixel Flipping and Occlusion Strategy for Consistent XAI Benchmarks,
    https://arxiv.org/abs/2401.06654

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import EvaluationProtocol, SymmetricRelevanceGain
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> protocol = EvaluationProtocol(scores="raw", curve_steps=4)
        >>> metric = SymmetricRelevanceGain(PrecomputedMaps(model), protocol=protocol)
        >>> images = torch.tensor([[[[0.8, 0.0], [0.0, 0.0]]]])
        >>> metric.update(images, cams=torch.tensor([[[1.0, 0.5], [0.4, 0.0]]]))
        >>> metric.compute()  # insertion: 0, then 0.2; deletion: 0.2, then 0; areas 0.175 and 0.025
        tensor(0.1500)

    """

    higher_is_better: bool = True
    plot_lower_bound: float = -1.0
    measure: ClassVar[Measure] = MEASURES["symmetric_relevance_gain"]


class ROAD(CurveMetric):
    r"""Remove And Debias: the scores with pixels imputed from their neighbors, which leaves natural images.

    .. math:: \frac{1}{|F|} \sum_{f \in F} \frac{\mathrm{LeRF}(f) - \mathrm{MoRF}(f)}{2}

    where :math:`\mathrm{MoRF}(f)` is the score with the fraction :math:`f` of the most relevant pixels
    imputed, and :math:`\mathrm{LeRF}(f)` that with the least relevant. Higher is better; a map without
    information has 0, and the value lies in [-0.5, 0.5] where scores are fractions.

    The imputation is `functional.road.linear_imputation` with noise of the protocol's ``road_noise``; the
    fractions are its ``road_fractions``, and exactly that fraction of the pixels is imputed. The noise is a
    hash of the image, the same in any batch and rank.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - ``road`` (:class:`~torch.Tensor`): a float32 scalar in [-0.5, 0.5] where scores are probabilities; NaN
      if no image was counted. With ``average="none"`` it is ``(num_classes,)``

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

    Source: Rong et al., https://arxiv.org/abs/2202.00449

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import ROAD, EvaluationProtocol
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> protocol = EvaluationProtocol(scores="raw", road_fractions=(0.25,), road_noise=0.0)
        >>> metric = ROAD(PrecomputedMaps(model), protocol=protocol)
        >>> images = torch.tensor([[[[0.8, 0.0], [0.0, 0.0]]]])
        >>> metric.update(images, cams=torch.tensor([[[1.0, 0.5], [0.4, 0.0]]]))
        >>> metric.compute()  # without the first pixel the score is 0, without the last more than 0.2
        tensor(0.1200)

    """

    higher_is_better: bool = True
    plot_lower_bound: float = -0.5
    plot_upper_bound: float = 0.5

    value: Tensor

    def _add_states(self) -> None:
        self.add_state("value", self._zeros(torch.float64), dist_reduce_fx="sum")
        self._add_counts()
        self._add_curves()

    def update(
        self,
        input_tensor: Tensor,
        class_idx: ClassIndex | None = None,
        *,
        targets: Target | list[Target] | None = None,
        cams: Tensor | None = None,
    ) -> None:
        """Explain a batch, score its imputed images and accumulate.

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
            most_first, least_first = batch.road_scores.unbind(1)
            value = road_score(most_first, least_first)
        valid = batch.counted & value.isfinite()
        self.value = self.value + self._sum(batch, value.where(valid, 0))
        self.curves = self.curves + self._sum_of_curves(batch, batch.road_scores, valid)
        self._count(batch, valid)

    def compute(self) -> Tensor:
        """Return the mean over all images and fractions."""
        return self._mean(self.value)

    def curve(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean scores over the images of all ranks; every rank must call it.

        Returns:
            The fraction of pixels that is imputed, ``(F,)``, and the mean scores with the most and with the
            least relevant pixels imputed.
        """
        most, least = self._mean_curves().mean.unbind(1)
        return torch.tensor(self._fractions(), device=most.device), most, least

    def _curve_names(self) -> dict[int, str]:
        return {0: "most relevant first", 1: "least relevant first"}

    def _fractions(self) -> list[float]:
        return list(self.protocol.road_fractions)
