"""CAMComparison: many CAM methods of one model in one pass, with intervals and controls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.metrics.base import warn_scores_outside_unit_interval
from torchmetrics_cam.metrics.batch_values import BatchValues
from torchmetrics_cam.metrics.comparison.inputs import (
    CONTROLS,
    check_index,
    check_measures,
    handed_maps,
    known,
    named_sources,
)
from torchmetrics_cam.metrics.comparison.records import RecordingMetric
from torchmetrics_cam.metrics.comparison.statistics import ComparisonStatistics
from torchmetrics_cam.metrics.comparison.table import ComparisonTable, PairedDifference, comparison_table
from torchmetrics_cam.metrics.curve_sums import CURVES, both_curves, curve_contributions, curve_shares
from torchmetrics_cam.metrics.measures import DEFAULT_MEASURES
from torchmetrics_cam.model.scores import ClassIndex, Target
from torchmetrics_cam.pipeline.batch import Readings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CAMComparison(RecordingMetric):
    r"""Several CAM methods of one model on the same images, with 95 % intervals and paired comparisons.

    One clean forward pass serves all methods, gradient CAMs of a layer share its activation and gradient, and
    the masked images of all go through the model in chunks. Methods that run the model by themselves
    (Score-CAM, objects of other libraries) take part with passes of their own.

    As input to ``forward`` and ``update`` the metric accepts images ``(N, C, *spatial)``, and a class as an
    int, a list or a LongTensor ``(N,)``.

    As output of ``forward`` and ``compute`` it returns a flat dict of scalar tensors: for every method and
    measure the mean as ``"{method}/{measure}"``, and the bounds of its interval as
    ``"{method}/{measure}_lower"`` and ``"..._upper"``. A mean is that of the single metric, over the images
    of which every measure knows the method's value: one with a score that is not finite leaves them all.
    Intervals are those of the normal distribution, of a proportion Wilson's, and of one image NaN.

    The states are sums whose size does not depend on the number of images. An entry ``[k, l]`` is over the
    images that are valid for both methods.

    Attributes:
        count: how many images, ``(K, K)``.
        sums: of the values of method k, for each measure, ``(M, K, K)``.
        squares: of the squared differences of the two methods, and on the diagonal of the squared values.
        wins: on how many images method k is better than l; differences up to 1e-6 are ties.
        nan_count, degenerate_count, outside_count: as of `AverageDrop`, ``(K,)``.
        apart: on how many images the model, or a measure of the map, says something else to the two,
            ``(K, K)``.
        curves: sums of the deletion and the insertion curves, ``(P, 2, K)``, if one of them is asked for.

    Args:
        sources: the methods by name: whatever `AverageDrop` takes, all of one model.
        logits_fn: as for `AverageDrop`.
        measures: the names of the measures; the first one orders the table. ``"average_drop"``,
            ``"increase_in_confidence"`` and ``"average_gain"`` by default; ``"drop_in_deletion"``,
            ``"deletion_auc"``, ``"insertion_auc"``, ``"road"``, ``"complexity"``, ``"coherency"``,
            ``"adcc"``, ``"relative_drop"`` (ADCC's, whatever the protocol's is) and, with ``masks`` in
            ``update``, ``"energy_pointing_game"``, ``"pointing_game"`` and ``"mask_iou"``.
        controls: whether `UniformMap`, `RandomMap` and `CenterMap` stand beside the methods.
        per_sample: keep a row an image, for `samples`. Memory then grows with the number of images.
        settings: ``protocol``, ``scorer``, ``batch_size`` (masked images of one method or of several),
            ``num_classes``, ``average`` and the others of `AverageDrop`. With ``average="none"`` the values
            are ``(num_classes,)``.

    Raises:
        TypeError: if a source is none, or they have no names.
        ValueError: if sources have different models, a measure is not known, or a name is taken twice.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import CAMComparison
        >>> from torchmetrics_cam.cams import GradCAM, LayerCAM
        >>> _ = torch.manual_seed(0)
        >>> head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head)
        >>> comparison = CAMComparison({"Grad-CAM": GradCAM(model, "1"), "Layer-CAM": LayerCAM(model, "1")})
        >>> comparison.update(torch.rand(8, 3, 16, 16))
        >>> comparison.compute()["Grad-CAM/average_drop_lower"] >= 0
        tensor(True)
        >>> comparison.table().rows[0]["method"]
        'uniform map'

    """

    higher_is_better: bool | None = None

    count: Tensor
    sums: Tensor
    squares: Tensor
    wins: Tensor
    nan_count: Tensor
    degenerate_count: Tensor
    outside_count: Tensor
    apart: Tensor
    curves: Tensor

    def __init__(
        self,
        sources: Mapping[str, Any],
        logits_fn: Callable[[Any], Any] | None = None,
        *,
        measures: Sequence[str] = DEFAULT_MEASURES,
        controls: bool = True,
        per_sample: bool = False,
        **settings: Any,
    ) -> None:
        check_measures(measures)
        named = named_sources(sources, with_controls=controls)
        settings |= {"per_sample": per_sample, "methods": list(named)}
        super().__init__(list(named.values()), measures, logits_fn, **settings)
        self.controls = tuple(CONTROLS) if controls else ()
        pairs = (len(self.measures), len(named), len(named))
        self._add_sum("count", torch.int64, *pairs[1:])
        self._add_sum("apart", torch.int64, *pairs[1:])
        self._add_sum("sums", torch.float64, *pairs)
        self._add_sum("squares", torch.float64, *pairs)
        self._add_sum("wins", torch.int64, *pairs)
        for name in ("nan_count", "degenerate_count", "outside_count"):
            self._add_sum(name, torch.int64, len(named))
        if any(measure in CURVES for measure in measures):
            self._add_sum("curves", torch.float64, len(curve_shares(self.protocol)), 2, len(named))

    @property
    def sources(self) -> dict[str, CAMSource]:
        """Where the maps come from, by method; controls come last."""
        return dict(zip(self.methods, self._evaluation.sources, strict=True))

    def update(
        self,
        input_tensor: Tensor,
        class_idx: ClassIndex | None = None,
        *,
        targets: Target | list[Target] | None = None,
        cams: Tensor | Mapping[str, Tensor] | None = None,
        masks: Tensor | None = None,
        index: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Explain a batch by every method, mask it, score it again and add the results to the states.

        Args:
            input_tensor: as for `AverageDrop`.
            class_idx: as for `AverageDrop`.
            targets: as for `AverageDrop`.
            cams: maps computed beforehand ``(N, *any spatial)``, by the name of the method; alone, where one
                source is `PrecomputedMaps`.
            masks: of objects, as for `EnergyPointingGame`.
            index: the number of each image in its dataset, ``(N,)``, for `samples`; None counts the images
                that this process has seen.

        Raises: as `AverageDrop`; nothing accumulated is lost.
        """
        with self._uncounted_if_refused():
            handed = handed_maps(self.sources, cams)
            check_index(index, input_tensor)
        batch = self._evaluated(input_tensor, class_idx, targets, handed, masks)
        for name, contribution in batch.contributions(self.measures).items():
            self._add(name, contribution, batch.selection)
        if batch.curves is not None:
            self._add("curves", curve_contributions(batch), batch.selection)
        self._record(batch, index)

    def compute(self) -> dict[str, Tensor]:
        """The mean of every method and measure, and the bounds of its 95 % interval."""
        statistics = self._statistics()
        if any(measure.warns(self.protocol) for measure in self.measures):
            warn_scores_outside_unit_interval(self.outside_count.amax(-1))
        means = [statistics.mean(place) for place in range(len(self.measures))]
        return {
            f"{method}/{measure.name}{suffix}": part[..., place]
            for place, method in enumerate(self.methods)
            for measure, parts in zip(self.measures, means, strict=True)
            for suffix, part in zip(("", "_lower", "_upper"), parts, strict=True)
        }

    def table(self) -> ComparisonTable:
        """All values with intervals, ranks and counts; the classes of ``average="none"`` pooled.

        It gathers the sums of all ranks, so every rank must call it, as with `compute`.
        """
        with self._all_ranks():
            return comparison_table(
                self._statistics().pooled(),
                sources=self.sources,
                controls=self.controls,
                excluded=self.nan_count,
                degenerate=self.degenerate_count,
                model=type(self.model).__name__,
                scoring=self._evaluation.scoring,
            )

    def win_rate(self, measure: str | None = None) -> tuple[Tensor, Tensor]:
        """How often one method is better than another on the same image; every rank must call it.

        Args:
            measure: the name of the measure; None for the first.

        Returns:
            The share of images on which method k is better than method l, ``(K, K)`` in the order of
            ``methods``, and the share of ties. With ``average="none"`` both are ``(num_classes, K, K)``.

        Raises:
            ValueError: if there is no such measure.

        Source: Chattopadhyay et al., Grad-CAM++, https://arxiv.org/abs/1710.11063
        """
        place = self._place(measure)
        with self._all_ranks():
            return self._statistics().win_rate(place)

    def paired_difference(self, first: str, second: str, measure: str | None = None) -> PairedDifference:
        """The mean difference of two methods on the same images, with its interval; every rank must call it.

        Args:
            first: a method.
            second: another.
            measure: the name of the measure; None for the first.

        Returns:
            Mean of ``first`` minus ``second``, bounds and p-value: scalars, or ``(num_classes,)``.

        Raises:
            ValueError: if there is no such method or measure.
        """
        place = self._place(measure)
        pair = tuple(known(method, self.methods, "method") for method in (first, second))
        with self._all_ranks():
            statistics = self._statistics()
        difference = statistics.difference(place)
        parts = (difference.mean, *difference.interval(), statistics.p_value(place), statistics.count)
        mean, lower, upper, p_value, count = (part[..., pair[0], pair[1]] for part in parts)
        return PairedDifference(
            mean, lower, upper, p_value, count.sum() if self.average == "macro" else count
        )

    def curve(self, measure: str) -> tuple[Tensor, Tensor]:
        """The mean deletion or insertion curve of every method; every rank must call it.

        Args:
            measure: ``"deletion_auc"`` or ``"insertion_auc"``, if it is one of the measures.

        Returns:
            The share of positions that is perturbed, ``(curve_steps + 1,)``, and the mean score there of each
            method, ``(K, curve_steps + 1)``. Classes are pooled.

        Raises:
            ValueError: if the measure has no curve, or was not asked for.
        """
        asked = [one.name for one in self.measures if one.name in CURVES]
        which = CURVES[asked[known(measure, asked, "measure with a curve")]]
        with self._all_ranks():
            total, count = self.curves[..., which, :], self.count.diagonal(dim1=-2, dim2=-1)
        if self.average != "micro":
            total, count = total.sum(0), count.sum(0)
        return torch.tensor(curve_shares(self.protocol), device=total.device), (total / count).T

    def plot(self, val: ComparisonTable | None = None, ax: Any = None) -> tuple["Figure", Any]:  # type: ignore[override]
        """Every method's value with its interval, a panel a measure; every rank must call it.

        Args:
            val: what `table` returned; None calls it.
            ax: a matplotlib axis for each measure to draw on; None makes a figure.

        Returns: figure and axes.
        """
        from torchmetrics_cam.plots import comparison_figure

        return comparison_figure(self.table() if val is None else val, ax)

    def _statistics(self) -> ComparisonStatistics:
        states = (self.count, self.sums, self.squares, self.wins, self.apart)
        return ComparisonStatistics(self.measures, self.average, *states)

    def _read(self, read: Readings) -> BatchValues:
        batch = super()._read(read)
        return replace(batch, curves=both_curves(read)) if "curves" in self._defaults else batch

    def _place(self, measure: str | None) -> int:
        return 0 if measure is None else known(measure, [one.name for one in self.measures], "measure")

    def _sums_of(self) -> dict[str, Any]:
        measures = [measure.name for measure in self.measures]
        kept = {"methods": list(self.methods), "measures": measures, "per_sample": self.per_sample}
        return super()._sums_of() | kept

    def __repr__(self) -> str:
        sources = [f"{method!r}: {source!r}" for method, source in self.sources.items()]
        return f"{type(self).__name__}({{{', '.join(sources)}}}, protocol={self.protocol.name!r})"
