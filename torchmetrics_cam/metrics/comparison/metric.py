"""CAMComparison: many CAM methods of one model in one pass, with intervals and controls."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.metrics.arguments import Average, check_objects
from torchmetrics_cam.metrics.comparison.contributions import ComparedBatch
from torchmetrics_cam.metrics.comparison.grouped import Group, GroupedMetric, Labels
from torchmetrics_cam.metrics.comparison.inputs import (
    CONTROLS,
    check_index,
    check_measures,
    protocols_in_order,
    sources_with_controls,
)
from torchmetrics_cam.metrics.comparison.rankings import Rankings
from torchmetrics_cam.metrics.comparison.statistics import ComparisonStatistics
from torchmetrics_cam.metrics.comparison.table import (
    ComparisonTable,
    PairedDifference,
    comparison_table,
    rows_of_values,
)
from torchmetrics_cam.metrics.compute_groups import keep_own
from torchmetrics_cam.metrics.curves import curve_fractions, resampled_curves
from torchmetrics_cam.metrics.measures import DEFAULT_MEASURES, MEASURES
from torchmetrics_cam.metrics.score_range import warn_scores_outside_unit_interval
from torchmetrics_cam.model.scores import ClassIndex, ScoreFunction, Target
from torchmetrics_cam.pipeline.batch import Batch
from torchmetrics_cam.pipeline.pipeline import Pipeline, Scorer, ValidateArgs
from torchmetrics_cam.pipeline.sources import index_of, maps_by_source
from torchmetrics_cam.protocol import EvaluationProtocol

# The index of each measure's curve.
CURVES = {"deletion_auc": 0, "insertion_auc": 1}


class CAMComparison(GroupedMetric):
    r"""Several CAM methods of one model on the same images, with 95 % intervals and paired comparisons.

    One forward pass on the clean images serves all methods, gradient CAMs of a layer share its activation and
    gradient, and the model runs on the masked images of all methods in chunks. Methods that run the model
    themselves (Score-CAM, objects of other libraries) add forward passes of their own.

    As input to ``forward`` and ``update`` the metric accepts the following input:

    - ``input_tensor`` (:class:`~torch.Tensor`): images ``(N, C, *spatial)`` as the model takes them
    - ``class_idx`` (int, list of int or :class:`~torch.Tensor`): the target class of all images, or of each,
      ``(N,)``; by default the model's top class of each image

    As output of ``forward`` and ``compute`` the metric returns the following output:

    - a flat dict of float32 scalars (:class:`~torch.Tensor`): for every method and measure the mean as
      ``"{method}/{measure}"``, and the bounds of its interval as ``"{method}/{measure}_lower"`` and
      ``"..._upper"``

    An image counts for a method if its pixels, its map and all of its scores are finite, under all protocols.
    A mean is over those of them for which the measure is defined. Intervals are those of Student's t
    distribution, in the range of the measure, and for proportions Wilson's; for a single image only Wilson's
    are defined, the others are NaN.

    Another protocol can change the ranking of the methods. With several ``protocols`` the images are
    evaluated under each, with the same clean forward pass and, where a protocol does not ask for others, the
    same maps; only the passes of perturbed images multiply. The keys of further protocols are
    ``"{protocol}/{method}/{measure}"``. `table` then holds the values under each protocol, and `rankings`
    says which orders of the methods hold under all of them. Samples, curves, win rates, paired differences,
    figures and groups are about the first protocol.

    The values of groups of images show for which images the maps fail. With ``groups``, ``update`` takes the
    ``group`` of each image. With ``by_correctness=True``, it takes the ``labels``, and images that the model
    classifies correctly are told from the others by the class with the largest output in the clean pass. The
    further keys are ``"{group}/{method}/{measure}"``, ``"correct/{method}/{measure}"`` and ``"wrong/..."``
    with their bounds, and ``table().groups`` has the worst group of each method and measure, with its gap to
    all other images, see `GroupTable`.

    The states are sums whose size does not depend on the number of images. An entry ``[k, l]`` is over the
    images that are valid for both methods, and an entry ``[p]`` is under protocol p.

    Attributes:
        count: number of images, int64, ``(K, K)``.
        defined: number of images that have a value of both methods, int64, for each protocol and measure,
            ``(P, M, K, K)``. It is lower than ``count`` where a measure is not defined, as Single Deletion of
            a constant map.
        sums: sum of the values of method k, float64, for each protocol and measure, ``(P, M, K, K)``.
        squares: sum of the squared differences of the two methods, and on the diagonal of the squared values.
        wins: number of images on which method k is better than l; differences up to 1e-6 are ties.
        differing: number of images on which the two methods yield different scores or, in a measure of the
            map, different values, ``(P, K, K)``.
        nan_count: number of images that were excluded for each method, because a pixel, a score or a value of
            the map is not finite, ``(K,)``.
        degenerate_count: number of the counted images with a constant map, ``(K,)``.
        outside_count: number of the counted images with a score outside of [0, 1], ``(P, K)``.
        curves: sums of the deletion and the insertion curves, ``(P, 2, K)``, if one of them is a measure.
        group_count: with groups, the number of images of each group, int64, ``(G,)``: those of ``groups``,
            then the correct and the wrong ones. An image counts if it is valid for a method.
        group_defined: number of values of each group, measure and method, int64, ``(G, M, K)``.
        group_sums: their sum, float64.
        group_squares: the sum of their squares, float64.

    Args:
        sources: the sources of the maps by the name of the method, all of one model:
            ``GradCAM(model, "layer4")`` and the other sources of `torchmetrics_cam.cams`, or objects of
            torchcam, pytorch-grad-cam, captum or MONAI.
        logits_fn: from the model's raw output to scores ``(N, K)``. None takes the protocol's: a softmax, or
            the raw output in the presets ``"torchcam"`` and ``"xplique"``.
        measures: the names of the measures; the first one orders the table. ``"average_drop"``,
            ``"increase_in_confidence"`` and ``"average_gain"`` by default; ``"drop_in_deletion"``,
            ``"deletion_auc"``, ``"insertion_auc"``, ``"symmetric_relevance_gain"``, ``"road"``,
            ``"single_deletion"``, ``"faithfulness_correlation"``, ``"complexity"``, ``"sparseness"``,
            ``"entropy"``, ``"coherency"``, ``"adcc"``, ``"relative_drop"`` (ADCC's, whatever the protocol's
            is), ``"max_sensitivity"``, ``"average_sensitivity"``, ``"class_sensitivity"`` and, with
            ``objects`` in ``update``, ``"energy_pointing_game"``, ``"pointing_game"``, ``"mask_iou"``,
            ``"relevance_rank_accuracy"``, ``"localization_auc"`` and ``"top_k_intersection"``.
        controls: whether `UniformMap`, `RandomMap` and `CenterMap` are compared too.
        per_sample: whether to keep a row for each image, for `samples`. Memory then grows with their number.
        groups: the names of groups of images, such as ``("footwear", "tops")``, of which ``update`` then
            takes the ``group`` of each image.
        by_correctness: whether to separate the images that the model classifies correctly, by the ``labels``
            that ``update`` then takes.
        protocol: an `EvaluationProtocol` or the name of a preset: ``"paper"`` (default), ``"torchcam"``,
            ``"grad_cam"``, ``"score_cam"``, ``"xplique"`` or ``"rise"``.
        protocols: instead of one protocol, several, with different names; needs
            ``pip install "torchmetrics-cam[rankings]"``.
        scorer: from images to the model's raw output, run on perturbed images in place of the model, or
            ``"compile"`` for a compiled copy of the model. On the first batch its scores must equal the
            model's to 1e-3.
        surrogate: a network that scores clean and perturbed images in place of the model, such as a copy
            that was fine-tuned on masked images (`RandomMasking`); maps and target classes are the model's.
            It runs once more, on the clean images.
        batch_size: the largest number of perturbed images in one forward pass, which may be those of several
            methods; None for the number of images in the batch.
        num_classes: the number of classes of the model; needed unless ``average`` is ``"micro"``.
        average: ``"micro"`` for the mean over the images, ``"macro"`` for the mean over the target classes of
            the mean of each, ``"none"`` for one mean for each class, ``(num_classes,)``.
        validate_args: False skips the checks that read values off the device, and the comparison of scorer
            and model. ``"determinism"`` also scores the first batch again, whole and in halves, and warns if
            the scores differ, as with dropout that ``eval()`` does not turn off.
        kwargs: as for every `torchmetrics.Metric`.

    Raises:
        TypeError: if a source gives no maps, the sources have no names, the groups are no names,
            ``logits_fn`` or ``scorer`` is not callable, or the protocol is of another type.
        ValueError: if sources have different models, a measure is unknown, a name is taken twice, the
            protocol or the average is unknown, two protocols have one name, ``batch_size`` or ``num_classes``
            is not positive, or an average over classes lacks ``num_classes``; in ``update``, if an argument
            does not fit the model or the others, or scorer and model disagree.
        ModuleNotFoundError: if several protocols are given and the package krippendorff is missing; ``pip
            install "torchmetrics-cam[rankings]"`` has it.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import CAMComparison
        >>> from torchmetrics_cam.cams import UniformMap
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> sources = {"half": UniformMap(model, 0.5), "all": UniformMap(model, 1.0)}
        >>> comparison = CAMComparison(sources, controls=False, logits_fn=lambda scores: scores)
        >>> comparison.update(torch.rand(8, 1, 4, 4))
        >>> values = comparison.compute()
        >>> values["half/average_drop"], values["all/average_drop"]  # half of all pixels, half of the score
        (tensor(0.5000), tensor(0.))
        >>> comparison.table().rows[0]["method"]
        'all'

    """

    higher_is_better: bool | None = None

    count: Tensor
    defined: Tensor
    sums: Tensor
    squares: Tensor
    wins: Tensor
    differing: Tensor
    nan_count: Tensor
    degenerate_count: Tensor
    outside_count: Tensor
    curves: Tensor

    def __init__(
        self,
        sources: Mapping[str, Any],
        logits_fn: Callable[[Any], Any] | None = None,
        *,
        measures: Sequence[str] = DEFAULT_MEASURES,
        controls: bool = True,
        per_sample: bool = False,
        groups: Sequence[str] | None = None,
        by_correctness: bool = False,
        protocol: EvaluationProtocol | str | None = None,
        protocols: Sequence[EvaluationProtocol | str] | None = None,
        scorer: Scorer | None = None,
        surrogate: nn.Module | None = None,
        batch_size: int | None = None,
        num_classes: int | None = None,
        average: Average = "micro",
        validate_args: ValidateArgs = True,
        **kwargs: Any,
    ) -> None:
        check_measures(measures)
        named = sources_with_controls(sources, with_controls=controls)
        first, *further = protocols_in_order(protocol, protocols)
        pipeline = Pipeline(
            list(named.values()),
            ScoreFunction(logits_fn, first),
            further_protocols=further,
            explains_other_class=any(MEASURES[name].further_maps == "another class" for name in measures),
            scorer=scorer,
            surrogate=surrogate,
            batch_size=batch_size,
            validate_args=validate_args,
        )
        super().__init__(pipeline, num_classes=num_classes, average=average, **kwargs)
        self.methods = tuple(named)
        self.controls = tuple(CONTROLS) if controls else ()
        self.measures = tuple(MEASURES[name] for name in measures)
        for measure in self.measures:
            measure.check(self._pipeline.sources)
        self._add_groupings(groups, by_correctness)
        self.per_sample = per_sample
        if per_sample:
            self.add_state("records", [], dist_reduce_fx="cat")
        methods, number = len(self.methods), len(self.protocols)
        pairs, measured_pairs = (methods, methods), (number, len(self.measures), methods, methods)
        self.add_state("count", self._zeros(torch.int64, *pairs), dist_reduce_fx="sum")
        self.add_state("defined", self._zeros(torch.int64, *measured_pairs), dist_reduce_fx="sum")
        self.add_state("differing", self._zeros(torch.int64, number, *pairs), dist_reduce_fx="sum")
        self.add_state("sums", self._zeros(torch.float64, *measured_pairs), dist_reduce_fx="sum")
        self.add_state("squares", self._zeros(torch.float64, *measured_pairs), dist_reduce_fx="sum")
        self.add_state("wins", self._zeros(torch.int64, *measured_pairs), dist_reduce_fx="sum")
        self.add_state("nan_count", self._zeros(torch.int64, methods), dist_reduce_fx="sum")
        self.add_state("degenerate_count", self._zeros(torch.int64, methods), dist_reduce_fx="sum")
        self.add_state("outside_count", self._zeros(torch.int64, number, methods), dist_reduce_fx="sum")
        self._has_curves = any(measure in CURVES for measure in measures)
        if self._has_curves:
            points = len(curve_fractions(self.protocol))
            self.add_state("curves", self._zeros(torch.float64, points, 2, methods), dist_reduce_fx="sum")
        self.add_state("identity", self._identity(), dist_reduce_fx=keep_own)

    @property
    def sources(self) -> dict[str, CAMSource]:
        """The sources by method; controls come last."""
        return dict(zip(self.methods, self._pipeline.sources, strict=True))

    @property
    def protocols(self) -> tuple[EvaluationProtocol, ...]:
        """The protocols; the first one is also `protocol`."""
        return tuple(self._pipeline.protocols)

    def explained(
        self,
        input_tensor: Tensor,
        class_idx: ClassIndex | None = None,
        *,
        targets: Target | list[Target] | None = None,
        cams: Tensor | Mapping[str, Tensor] | None = None,
        objects: Tensor | None = None,
    ) -> AbstractContextManager[Batch]:
        """Explain a batch by every method, and guard the model until the context ends.

        Args:
            input_tensor: as for `update`.
            class_idx: as for `update`.
            targets: as for `update`.
            cams: as for `update`.
            objects: as for `update`.

        Returns:
            A context manager that gives the `Batch`, whose attributes have a leading dimension K.
        """
        maps = maps_by_source(self.sources, cams)
        if objects is not None or any(measure.needs_objects for measure in self.measures):
            check_objects(objects, input_tensor)
        for measure, protocol in product(self.measures, self.protocols):
            measure.check_batch(input_tensor, targets, protocol)
        return self._explained(
            input_tensor, class_idx, targets=targets, cams=maps, objects=objects, methods=self.methods
        )

    def update(
        self,
        input_tensor: Tensor,
        class_idx: ClassIndex | None = None,
        *,
        targets: Target | list[Target] | None = None,
        cams: Tensor | Mapping[str, Tensor] | None = None,
        objects: Tensor | None = None,
        index: Tensor | Sequence[int] | None = None,
        group: Group | None = None,
        labels: Labels | None = None,
    ) -> None:
        """Explain a batch by every method, score its perturbed images and accumulate.

        Args:
            input_tensor: images ``(N, C, *spatial)`` with one to three spatial dimensions, as the model takes
                them.
            class_idx: the target class: an int for all images, a list or LongTensor ``(N,)`` with one for
                each, or None for the model's top class of each image.
            targets: instead of a class, one callable for all images or one for each, from the output of a
                sample to a scalar. It receives all parts of a tuple or dict. It is applied to the scores, and
                for the gradient of a CAM to the output that the protocol's ``cam_of`` names.
            cams: maps computed beforehand ``(N, *any spatial)``, by the name of the method; a tensor alone,
                where one source is `PrecomputedMaps`.
            objects: the annotated object of each image, ``(N, *spatial)`` of the images' size, bool or 0 and
                1, for the localization measures.
            index: the index of each image in its dataset, ``(N,)``, for `samples`, -1 where it is not known;
                None counts the images that this metric holds.
            group: the group of each image, for a comparison with ``groups``: the indices in ``groups``,
                ``(N,)``, or a list of the names. With ``validate_args=False`` an image whose index is out of
                range belongs to no group.
            labels: the true class of each image, ``(N,)``, for a comparison with ``by_correctness=True``.
                It does not change which class is explained. With ``validate_args=False`` a label that is no
                class of the model counts as a wrong prediction.

        Raises:
            TypeError: if an argument is of a wrong type.
            ValueError: if an argument does not fit the model or the others. The states are unchanged then.
        """
        check_index(index, input_tensor)
        if self.groupings or group is not None or labels is not None:
            self._check_groups(input_tensor, group, labels, targets)
        with self.explained(input_tensor, class_idx, targets=targets, cams=cams, objects=objects) as batch:
            self.accumulate(batch, index, self._members(batch, group, labels) if self.groupings else None)

    def accumulate(
        self, batch: Batch, index: Tensor | Sequence[int] | None = None, members: Tensor | None = None
    ) -> None:
        """Add a batch to the states; called by `update` while the model is guarded.

        Args:
            batch: of the context `explained`.
            index: as for `update`.
            members: which images belong to each group, of all groupings, bool, ``(N, G)``.
        """
        compared = ComparedBatch.under_each_protocol(batch, self.measures)
        first, valid = compared[0], compared[0].valid
        self.count = self.count + self._sum(batch, first.counted_for_both)
        self.defined = self.defined + self._sum_of_each(batch, [one.defined_for_both for one in compared])
        self.differing = self.differing + self._sum_of_each(
            batch, [one.differing(self.measures) for one in compared]
        )
        self.sums = self.sums + self._sum_of_each(batch, [one.sums() for one in compared])
        self.squares = self.squares + self._sum_of_each(batch, [one.squares() for one in compared])
        self.wins = self.wins + self._sum_of_each(batch, [one.wins(self.measures) for one in compared])
        self.nan_count = self.nan_count + self._sum(batch, ~valid.T)
        self.degenerate_count = self.degenerate_count + self._sum(batch, (batch.degenerate & valid).T)
        self.outside_count = self.outside_count + self._sum_of_each(
            batch, [(one.outside & valid).T for one in (batch, *batch.under_further_protocols)]
        )
        if self._has_curves:
            curves = torch.stack([resampled_curves(one) for one in batch], 2)
            curves = torch.where(valid, curves, torch.zeros_like(curves))
            self.curves = self.curves + self._sum(batch, curves.movedim(3, 0))
        if members is not None:
            self._add_to_groups(batch, first, members)
        self._count_outputs(batch, valid.any(0))
        self._record(first, batch.class_idx, index, () if members is None else self._group_indices(members))

    def _sum_of_each(self, batch: Batch, values: Sequence[Tensor]) -> Tensor:
        """Sum values ``(N, *shape)`` under each protocol, ``(P, *shape)``."""
        return self._sum(batch, torch.stack(list(values), 1))

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of every method and measure, and the bounds of its 95 % interval."""
        for protocol, outside in zip(self.protocols, self.outside_count.unbind(-2), strict=True):
            if any(measure.needs_fractions(protocol) for measure in self.measures):
                under = f" under the protocol {protocol.name!r}" if len(self.protocols) > 1 else ""
                warn_scores_outside_unit_interval(outside.amax(-1), under)
        values: dict[str, Tensor] = {}
        for number, protocol in enumerate(self.protocols):
            prefix = f"{protocol.name}/" if number else ""
            statistics = self._statistics(number)
            means = [statistics.mean(index) for index in range(len(self.measures))]
            values |= {
                f"{prefix}{method}/{measure.name}{suffix}": value[..., index].to(self.dtype)
                for index, method in enumerate(self.methods)
                for measure, bounds in zip(self.measures, means, strict=True)
                for suffix, value in zip(("", "_lower", "_upper"), bounds, strict=True)
            }
        return values | self._values_of_groups()

    def table(self) -> ComparisonTable:
        """Return all values with intervals, ranks and counts; the classes of ``average="none"`` are pooled.

        It gathers the sums of all ranks, so every rank must call it, as with `compute`.
        """
        with self._all_ranks():
            failure = self.compilation and self.compilation.failure
            surrogate = self._pipeline.surrogate
            notes = (self._pipeline.nondeterminism, failure, self._describe_outputs())
            return comparison_table(
                [self._statistics(number).pooled() for number in range(len(self.protocols))],
                sources=self.sources,
                controls=self.controls,
                excluded=self.nan_count,
                degenerate=self.degenerate_count,
                model=type(self.model).__name__,
                surrogate=None if surrogate is None else surrogate.name,
                score_functions=self._pipeline.score_functions,
                notes=[note for note in notes if note],
                groups=[statistics.pooled() for statistics in self._group_statistics()],
            )

    def rankings(self, measure: str | None = None) -> Rankings:
        """Return how the ranking of the methods depends on the protocol; every rank must call it.

        Args:
            measure: the name of the measure; None for the first.

        Returns:
            The ranks and leaders under each protocol, the orders of two methods that hold under all protocols
            and those that reverse, and the agreement of the protocols. Controls are left out.

        Raises:
            ValueError: if there is no such measure, or only one protocol.
        """
        measure_index = self._measure_index(measure)
        if len(self.protocols) == 1:
            raise ValueError(
                "there is one protocol, so no ranking to compare with; create the comparison with"
                ' protocols=("paper", "score_cam"), for example'
            )
        return self.table().rankings[measure_index]

    def win_rate(self, measure: str | None = None) -> tuple[Tensor, Tensor]:
        """Return how often one method is better than another on the same image; every rank must call it.

        Two methods tie on an image if their values differ by at most 1e-6, which is within the rounding
        errors of float32 scores.

        Args:
            measure: the name of the measure; None for the first.

        Returns:
            The fraction of images on which method k is better than method l, ``(K, K)`` in the order of
            ``methods``, and the fraction of ties. With ``average="none"`` both are ``(num_classes, K, K)``.

        Raises:
            ValueError: if there is no such measure.

        Source: Chattopadhyay et al., Grad-CAM++, https://arxiv.org/abs/1710.11063
        """
        measure_index = self._measure_index(measure)
        with self._all_ranks():
            return self._statistics().win_rate(measure_index)

    def paired_difference(self, first: str, second: str, measure: str | None = None) -> PairedDifference:
        """Return the mean difference of two methods on the same images; every rank must call it.

        Args:
            first: a method.
            second: another.
            measure: the name of the measure; None for the first.

        Returns:
            Mean of ``first`` minus ``second``, 95 % bounds and p-value: scalars, or ``(num_classes,)``.

        Raises:
            ValueError: if there is no such method or measure.
        """
        measure_index = self._measure_index(measure)
        row, column = (index_of(method, self.methods, "method") for method in (first, second))
        with self._all_ranks():
            statistics = self._statistics()
        difference = statistics.difference(measure_index)
        values = (
            difference.mean,
            *difference.interval(),
            statistics.p_value(measure_index),
            statistics.defined[..., measure_index, :, :],
        )
        mean, lower, upper, p_value, count = (value[..., row, column] for value in values)
        return PairedDifference(
            mean, lower, upper, p_value, count.sum() if self.average == "macro" else count
        )

    def curve(self, measure: str) -> tuple[Tensor, Tensor]:
        """Return the mean deletion or insertion curve of every method; every rank must call it.

        Args:
            measure: ``"deletion_auc"`` or ``"insertion_auc"``, if it is one of the measures.

        Returns:
            The fraction of pixels that is perturbed, ``(curve_steps + 1,)``, and the mean score there of each
            method, ``(K, curve_steps + 1)``. Classes are pooled.

        Raises:
            ValueError: if the measure has no curve, or is not one of the measures.
        """
        with_curve = [one.name for one in self.measures if one.name in CURVES]
        curve_index = CURVES[with_curve[index_of(measure, with_curve, "measure with a curve")]]
        with self._all_ranks():
            total, count = self.curves[..., curve_index, :], self.count.diagonal(dim1=-2, dim2=-1)
        if self.average != "micro":
            total, count = total.sum(0), count.sum(0)
        return torch.tensor(curve_fractions(self.protocol), device=total.device), (total / count).T

    def plot(self, val: Any = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plot every method's value with its 95 % interval, in one panel for each measure.

        Args:
            val: what `compute` or `forward` returned, or a list of it, which is plotted over time; None plots
                `table`, and every rank must call it.
            ax: a matplotlib axis for each measure to draw on; None makes a figure.

        Returns:
            Figure and axes: one axis for a single measure, else a list.

        Raises:
            ModuleNotFoundError: if matplotlib is missing; ``pip install "torchmetrics-cam[plot]"`` has it.
            ValueError: if there is not one axis for each measure.
        """
        from torchmetrics_cam.plots import comparison_figure, comparison_history_figure

        if val is None:
            table = self.table()
            return comparison_figure(table.measures, table.rows, ax)
        measures = [measure.summary() for measure in self.measures]
        steps = [val] if isinstance(val, Mapping) else list(val)
        rows = [rows_of_values(step, self.methods, self.controls, self.measures) for step in steps]
        if isinstance(val, Mapping):
            return comparison_figure(measures, rows[0], ax)
        return comparison_history_figure(measures, rows, ax)

    def _statistics(self, protocol: int = 0) -> ComparisonStatistics:
        """Return the statistics under one of the protocols."""
        return ComparisonStatistics(
            self.measures,
            self.average,
            self.protocols[protocol],
            self.count,
            self.defined[..., protocol, :, :, :],
            self.sums[..., protocol, :, :, :],
            self.squares[..., protocol, :, :, :],
            self.wins[..., protocol, :, :, :],
            self.differing[..., protocol, :, :],
            self.outside_count[..., protocol, :],
        )

    def _measure_index(self, measure: str | None) -> int:
        names = [one.name for one in self.measures]
        return 0 if measure is None else index_of(measure, names, "measure")

    def _settings_of_sums(self) -> dict[str, Any]:
        measures = [measure.name for measure in self.measures]
        own = {"methods": list(self.methods), "measures": measures, "per_sample": self.per_sample}
        own["groups"] = {grouping.kind: list(grouping.names) for grouping in self.groupings}
        if len(self.protocols) > 1:
            own["protocols"] = list(self.protocols)
        return super()._settings_of_sums() | own

    def _kind_of_sums(self) -> list[Any]:
        return [*(measure.name for measure in self.measures), *self.groupings]

    def __repr__(self) -> str:
        sources = [f"{method!r}: {source!r}" for method, source in self.sources.items()]
        return f"{type(self).__name__}({{{', '.join(sources)}}}, {self._described_settings()})"
