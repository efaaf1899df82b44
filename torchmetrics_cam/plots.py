"""Matplotlib figures of comparisons and curves."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from math import nan
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Measure = Mapping[str, Any]
Row = Mapping[str, Any]

# The colors of maps over images. Their lightness increases monotonically, so values stay distinguishable in
# gray and for color-blind readers.
COLORMAP = "inferno"
OPACITY = 0.65
# The colors of Okabe and Ito without the two that are too light on white or too dark on black.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":")


def comparison_figure(
    measures: Sequence[Measure], rows: Sequence[Row], axes: Any = None
) -> tuple["Figure", Any]:
    """Draw the value and the interval of every method, in one panel for each measure.

    Filled markers are methods, hollow markers are controls.

    Args:
        measures: the name, the title and ``higher_is_better`` of each measure, as in
            `ComparisonTable.measures`.
        rows: one row for each method, from top to bottom, as in `ComparisonTable.rows`.
        axes: one matplotlib axis for each measure, or a single axis for a single measure; None makes a
            figure.

    Returns:
        The figure and its axes: one axis for a single measure, else a list.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if the number of axes is not the number of measures.
    """
    figure, panels = _panels("comparison_figure", measures, axes, height=1.1 + 0.28 * len(rows), sharey=True)
    for panel, measure in zip(panels, measures, strict=True):
        interval_panel(panel, measure, rows)
    return figure, panels[0] if len(panels) == 1 else panels


def comparison_history_figure(
    measures: Sequence[Measure], steps: Sequence[Sequence[Row]], axes: Any = None
) -> tuple["Figure", Any]:
    """Draw the value of every method over several evaluations, in one panel for each measure.

    Each method is a line with its interval as a light band; controls are dashed gray lines.

    Args:
        measures: the name, the title and ``higher_is_better`` of each measure, as in
            `ComparisonTable.measures`.
        steps: the rows of each evaluation in order, as in `ComparisonTable.rows`. A method may be missing
            from some of them.
        axes: one matplotlib axis for each measure, or a single axis for a single measure; None makes a
            figure.

    Returns:
        The figure and its axes: one axis for a single measure, else a list.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if the number of axes is not the number of measures.
    """
    figure, panels = _panels("comparison_history_figure", measures, axes, height=3.2, sharey=False)
    is_control = {row["method"]: row["control"] for rows in steps for row in rows}
    for panel, measure in zip(panels, measures, strict=True):
        for method, style in line_styles(is_control).items():
            cells = [_cell(rows, method, measure["name"]) for rows in steps]
            value, lower, upper = (
                [nan if cell.get(key) is None else cell[key] for cell in cells]
                for key in ("value", "lower", "upper")
            )
            panel.plot(range(len(steps)), value, label=plain_text(method), marker="o", markersize=3, **style)
            panel.fill_between(range(len(steps)), lower, upper, color=style["color"], alpha=0.15, linewidth=0)
        _style_panel(panel, measure, grid="y")
        panel.set_xlabel("step", fontsize=9)
        panel.locator_params(axis="x", integer=True)
    panels[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure, panels[0] if len(panels) == 1 else panels


def interval_panel(panel: "Axes", measure: Measure, rows: Sequence[Row]) -> None:
    """Draw the value and the interval of every method in one measure; hollow markers are controls.

    Args:
        panel: the matplotlib axis to draw on.
        measure: the name, the title and ``higher_is_better`` of the measure.
        rows: one row for each method, from top to bottom, as in `ComparisonTable.rows`.
    """
    for position, row in enumerate(rows):
        cell = row[measure["name"]]
        if cell["value"] is None:
            continue
        if cell["lower"] is not None:
            panel.plot([cell["lower"], cell["upper"]], [position, position], color="black", linewidth=1.2)
        fill_color = "white" if row["control"] else "black"
        panel.plot(cell["value"], position, "o", color="black", markerfacecolor=fill_color, markersize=5)
    _style_panel(panel, measure, grid="x")
    panel.set_yticks(range(len(rows)), [plain_text(row["method"]) for row in rows], fontsize=9)
    panel.set_ylim(len(rows) - 0.5, -0.5)


def curve_figure(
    fractions: Sequence[float], curves: Mapping[str, Sequence[Tensor]], axis: Any = None
) -> tuple["Figure", Any]:
    """Draw mean scores over the fraction of perturbed pixels, with their intervals.

    Args:
        fractions: the fraction of perturbed pixels at each point, from 0 to 1.
        curves: by name, the mean, the lower and the upper bound at each point; at most two curves.
        axis: the matplotlib axis to draw on; None makes a figure.

    Returns:
        The figure and its axis.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    if axis is None:
        axis = _figure_class("curve_figure")(figsize=(4.5, 3.2), dpi=150, layout="constrained").subplots()
    for (name, (mean, lower, upper)), style in zip(curves.items(), ("-", "--"), strict=False):
        axis.fill_between(fractions, lower.tolist(), upper.tolist(), color="0.85", alpha=0.7)
        axis.plot(fractions, mean.tolist(), style, color="black", label=name)
    axis.set(title=" and ".join(curves), xlabel="fraction of pixels perturbed", ylabel="score")
    if len(curves) > 1:
        axis.set_title("")
        axis.legend(fontsize=8)
    return axis.figure, axis


def randomization_figure(
    layers: Sequence[str], curves: Mapping[str, Tensor], axis: Any = None
) -> tuple["Figure", Any]:
    """Draw the similarity of the maps to the original maps as more layers are randomized.

    Args:
        layers: the layer randomized at each step.
        curves: by name, the similarity after each step; at most two curves.
        axis: the matplotlib axis to draw on; None makes a figure.

    Returns:
        The figure and its axis.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    if axis is None:
        size = (max(4.5, 0.35 * len(layers)), 3.6)
        axis = _figure_class("randomization_figure")(figsize=size, dpi=150, layout="constrained").subplots()
    for (name, values), style in zip(curves.items(), ("o-", "s--"), strict=False):
        axis.plot(range(len(layers)), values.tolist(), style, color="black", markersize=4, label=name)
    axis.set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=8)
    axis.set(xlabel="randomized from the output down to", ylabel="similarity to the original map")
    axis.legend(fontsize=8)
    return axis.figure, axis


def rankings_figure(
    rankings: Sequence[Mapping[str, Any]], titles: Mapping[str, str], axes: Any = None
) -> tuple["Figure", Any]:
    """Draw the rank and the value of every method under each protocol, in one panel for each measure.

    Each method is a line from protocol to protocol; where two lines cross, their order reverses.

    Args:
        rankings: the fields of `Rankings`, for each measure.
        titles: the titles of the measures by name.
        axes: one matplotlib axis for each measure, or a single axis for a single measure; None makes a
            figure.

    Returns:
        The figure and its axes: one axis for a single measure, else a list.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if the number of axes is not the number of measures.
    """
    methods = list(next(iter(rankings[0]["ranks"].values())))
    height = 1.4 + 0.36 * len(methods)
    figure, panels = _panels("rankings_figure", rankings, axes, height=height, sharey=True)
    for panel, one in zip(panels, rankings, strict=True):
        positions = range(len(one["protocols"]))
        for method, style in line_styles(dict.fromkeys(methods, False)).items():
            ranks = [one["ranks"][protocol][method] for protocol in one["protocols"]]
            heights = [nan if rank is None else rank for rank in ranks]
            panel.plot(positions, heights, marker="o", markersize=4, label=plain_text(method), **style)
            for position, protocol, rank in zip(positions, one["protocols"], ranks, strict=True):
                if rank is not None:
                    value = f"{one['values'][protocol][method]:.3f}"
                    place = {"xytext": (0, 5), "textcoords": "offset points", "ha": "center"}
                    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
                    panel.annotate(value, (position, rank), fontsize=7, bbox=behind, **place)
        names = [plain_text(protocol) for protocol in one["protocols"]]
        panel.set_xticks(positions, names, rotation=20, ha="right", fontsize=8)
        panel.set_xlim(-0.4, len(names) - 0.6)
        panel.set_title(plain_text(titles[one["measure"]]), fontsize=9)
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.locator_params(axis="y", integer=True)
    panels[0].set_ylim(len(methods) + 0.4, 0.4)
    panels[0].set_ylabel("rank", fontsize=9)
    panels[-1].legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure, panels[0] if len(panels) == 1 else panels


def line_styles(is_control: Mapping[str, bool]) -> dict[str, dict[str, Any]]:
    """Return the color and the dashes of each method's line; controls are gray and never solid.

    Args:
        is_control: by method, whether it is a control.
    """
    methods = [method for method, control in is_control.items() if not control]
    controls = [method for method, control in is_control.items() if control]
    styles = {
        method: {"color": color, "linestyle": dashes, "linewidth": 1.6}
        for method, color, dashes in zip(methods, cycle(_COLORS), cycle(_DASHES), strict=False)
    }
    gray = {
        control: {"color": "0.55", "linestyle": dashes, "linewidth": 1.6}
        for control, dashes in zip(controls, cycle(_DASHES[1:]), strict=False)
    }
    return styles | gray


def plain_text(name: str) -> str:
    """Return a name that matplotlib neither reads as mathematics nor leaves out of a legend."""
    return name.replace("$", r"\$").lstrip("_") or name


def _style_panel(panel: "Axes", measure: Measure, *, grid: Literal["x", "y"]) -> None:
    direction = "higher" if measure["higher_is_better"] else "lower"
    panel.set_title(f"{measure['title']}\n({direction} is better)", fontsize=9)
    panel.grid(axis=grid, color="0.9")
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8)


def _cell(rows: Sequence[Row], method: str, measure: str) -> Mapping[str, Any]:
    return next((row[measure] for row in rows if row["method"] == method), {})


def _panels(
    function: str, measures: Sequence[Any], axes: Any, *, height: float, sharey: bool
) -> tuple["Figure", list[Any]]:
    """Return the given axes, or those of a new figure, one for each measure."""
    if axes is None:
        figure = _figure_class(function)(
            figsize=(1.8 + 2.6 * len(measures), height), dpi=150, layout="constrained"
        )
        return figure, list(figure.subplots(1, len(measures), sharey=sharey, squeeze=False)[0])
    panels = list(axes) if isinstance(axes, Iterable) else [axes]
    if len(panels) != len(measures):
        raise ValueError(f"ax holds {len(panels)} axes; give one for each of the {len(measures)} measures")
    return panels[0].figure, panels


def _figure_class(function: str) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{function} needs matplotlib: pip install "torchmetrics-cam[plot]"', name="matplotlib"
        ) from error
    return Figure
