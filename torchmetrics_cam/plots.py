"""Pictures of explanations: the map, what it leaves of the image, and what the model says to that."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from torchmetrics_cam.metrics.comparison.table import ComparisonTable

# Its lightness rises evenly, so color-blind readers and gray prints can tell the values apart.
COLORMAP = "inferno"
OPACITY = 0.65

# Inches. A caption such as "0.95 → 0.61" is legible at this width, and fits into the space between two rows.
_CELL = 1.3
_BETWEEN_ROWS = 0.24
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.45, 0.3, 0.35, 0.75

_NOTE = "each pair: the map, and the image that it leaves to the model; below: score before → after"
_NOTE_WIDTH, _NOTE_LINE, _LETTERS_AN_INCH = 5.3, 0.17, 16


@dataclass(frozen=True)
class ExplanationRow:
    """What one method made of every image.

    Args:
        method: its name.
        masks: its maps as masks in [0, 1], ``(N, H, W)`` or ``N`` of ``(H, W)``.
        masked_images: what the masks leave of the images, colors in [0, 1], ``(N, 3, H, W)``.
        masked_scores: the score of the explained class on the masked images, ``(N,)``.
    """

    method: str
    masks: Tensor | Sequence[Tensor]
    masked_images: Tensor | Sequence[Tensor]
    masked_scores: Tensor


def explanation_figure(
    images: Tensor | Sequence[Tensor],
    rows: Sequence[ExplanationRow],
    *,
    labels: Sequence[str],
    scores: Tensor,
) -> "Figure":
    """A pair of columns an image and a row a method: the map over the image, and what it leaves of the image.

    Under each pair stands the score on the image, and the score on what is left.

    Args:
        images: colors in [0, 1], ``(N, 3, H, W)``.
        rows: the methods, from top to bottom.
        labels: the name of the explained class of each image.
        scores: the score of the explained class on each image, ``(N,)``.

    Returns:
        A figure that no window and no ``pyplot`` knows of; ``figure.savefig(path)`` writes it.

    Raises:
        ModuleNotFoundError: if matplotlib is missing.
    """
    try:
        from matplotlib.cm import ScalarMappable
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'explanation_figure needs matplotlib: pip install "torchmetrics-cam[plot]"', name="matplotlib"
        ) from error

    widths = [*[1.0, 1.0, 0.25] * (len(images) - 1), 1.0, 1.0]
    heights = [1.6, *[1.0] * len(rows)]
    width = _LEFT + sum(widths) * _CELL + _RIGHT
    beside_bar = (_LEFT + 2.3 * _CELL) / width
    fits_beside = width * (1 - beside_bar) >= _NOTE_WIDTH
    note = _NOTE if fits_beside else fill(_NOTE, int((width - _LEFT) * _LETTERS_AN_INCH))
    below = 0.0 if fits_beside else (note.count("\n") + 1) * _NOTE_LINE + 0.1
    bottom = _BOTTOM + below
    height = _TOP + sum(heights) * _CELL + len(rows) * _BETWEEN_ROWS + bottom
    figure = Figure(figsize=(width, height), dpi=150)
    grid = figure.add_gridspec(
        len(heights),
        len(widths),
        width_ratios=widths,
        height_ratios=heights,
        left=_LEFT / width,
        right=1 - _RIGHT / width,
        top=1 - _TOP / height,
        bottom=bottom / height,
        wspace=0.03,
        hspace=_BETWEEN_ROWS * len(heights) / (sum(heights) * _CELL),
    )
    for index, (image, label, score) in enumerate(zip(images, labels, scores.tolist(), strict=True)):
        column = 3 * index
        whole = figure.add_subplot(grid[0, column : column + 2])
        _show(whole, image)
        whole.set_title(f"{label}  {score:.2f}", fontsize=11, fontweight="bold", pad=5)
        for place, row in enumerate(rows, start=1):
            overlay = figure.add_subplot(grid[place, column])
            # Gray, so that every color in the overlay belongs to the map.
            _show(overlay, image.mean(0, keepdim=True).expand(3, -1, -1))
            mask = row.masks[index].cpu().numpy()
            overlay.imshow(mask, cmap=COLORMAP, vmin=0, vmax=1, alpha=OPACITY)
            if index == 0:
                overlay.set_ylabel(row.method, fontsize=10, fontweight="bold")
            rest = figure.add_subplot(grid[place, column + 1])
            _show(rest, row.masked_images[index])
            change = f"{score:.2f} → {row.masked_scores[index].item():.2f}"
            rest.text(0, -0.04, change, transform=rest.transAxes, ha="center", va="top", fontsize=9)

    bar = figure.add_axes((_LEFT / width, (0.38 + below) / height, 2 * _CELL / width, 0.1 / height))
    figure.colorbar(ScalarMappable(cmap=COLORMAP), cax=bar, orientation="horizontal")
    bar.set_xticks([0, 1], ["0 hidden", "1 kept"], fontsize=9)
    if fits_beside:
        figure.text(beside_bar, 0.43 / height, note, va="center", fontsize=9)
    else:
        figure.text(0.1 / width, below / height, note, va="top", fontsize=9)
    return figure


def comparison_figure(table: "ComparisonTable", axes: Any = None) -> tuple["Figure", Any]:
    """Every method's value with its interval, a panel a measure, the methods in the order of the table.

    Args:
        table: what is shown; hollow marks are controls.
        axes: a matplotlib axis a measure, or one axis for a single measure; None makes a figure.

    Returns:
        Figure and axes: one axis for a single measure, else a list.

    Raises:
        ModuleNotFoundError: if matplotlib is missing.
        ValueError: if there is not one axis a measure.
    """
    measures = table.measures
    if axes is None:
        height = 1.1 + 0.28 * len(table.rows)
        figure = _figure_class("comparison_figure")(
            figsize=(1.8 + 2.6 * len(measures), height), dpi=150, layout="constrained"
        )
        panels = list(figure.subplots(1, len(measures), sharey=True, squeeze=False)[0])
    else:
        panels = list(axes) if isinstance(axes, Iterable) else [axes]
        if len(panels) != len(measures):
            raise ValueError(
                f"ax holds {len(panels)} axes; give one for each of the {len(measures)} measures"
            )
        figure = panels[0].figure
    for panel, measure in zip(panels, measures, strict=True):
        interval_panel(panel, measure, table.rows)
    return figure, panels[0] if len(panels) == 1 else panels


def interval_panel(panel: Any, measure: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw every method's value in one measure with its interval; hollow marks are controls.

    Args:
        panel: a matplotlib axis to draw on.
        measure: its name and title, and which way is better.
        rows: those of a `ComparisonTable`, from top to bottom.
    """
    for place, row in enumerate(rows):
        cell = row[measure["name"]]
        if cell["value"] is None:
            continue
        if cell["lower"] is not None:
            panel.plot([cell["lower"], cell["upper"]], [place, place], color="black", linewidth=1.2)
        filling = "white" if row["control"] else "black"
        panel.plot(cell["value"], place, "o", color="black", markerfacecolor=filling, markersize=5)
    better = "higher" if measure["higher_is_better"] else "lower"
    panel.set_title(f"{measure['title']}\n({better} is better)", fontsize=9)
    # A dollar sign in a name would begin mathematics.
    names = [row["method"].replace("$", r"\$") for row in rows]
    panel.set_yticks(range(len(rows)), names, fontsize=9)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.grid(axis="x", color="0.9")
    panel.set_axisbelow(True)
    panel.tick_params(axis="x", labelsize=8)


def curve_figure(
    shares: Sequence[float], curves: Mapping[str, Sequence[Tensor]], axis: Any = None
) -> tuple["Figure", Any]:
    """Mean curves over the share of positions, with their intervals.

    Args:
        shares: from 0 to 1.
        curves: mean, lower and upper bound at each share, by name; one of them or two.
        axis: a matplotlib axis to draw on; None makes a figure.

    Returns:
        Figure and axis.

    Raises:
        ModuleNotFoundError: if matplotlib is missing.
    """
    if axis is None:
        axis = _figure_class("curve_figure")(figsize=(4.5, 3.2), dpi=150, layout="constrained").subplots()
    for (name, (mean, lower, upper)), style in zip(curves.items(), ("-", "--"), strict=False):
        axis.fill_between(shares, lower.tolist(), upper.tolist(), color="0.85", alpha=0.7)
        axis.plot(shares, mean.tolist(), style, color="black", label=name)
    axis.set(title=" and ".join(curves), xlabel="share of positions", ylabel="score")
    if len(curves) > 1:
        axis.set_title("")
        axis.legend(fontsize=8)
    return axis.figure, axis


def randomization_figure(
    layers: Sequence[str], curves: Mapping[str, Tensor], axis: Any = None
) -> tuple["Figure", Any]:
    """Similarities over the layers that were randomized, one line each.

    Args:
        layers: the steps.
        curves: the similarity after each step, by name; one of them or two.
        axis: a matplotlib axis to draw on; None makes a figure.

    Returns:
        Figure and axis.

    Raises:
        ModuleNotFoundError: if matplotlib is missing.
    """
    if axis is None:
        size = (max(4.5, 0.35 * len(layers)), 3.6)
        axis = _figure_class("randomization_figure")(figsize=size, dpi=150, layout="constrained").subplots()
    for (name, values), style in zip(curves.items(), ("o-", "s--"), strict=False):
        axis.plot(range(len(layers)), values.tolist(), style, color="black", markersize=4, label=name)
    axis.set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=8)
    axis.set(xlabel="randomized from the top down to", ylabel="similarity to the first map")
    axis.legend(fontsize=8)
    return axis.figure, axis


def _figure_class(function: str) -> Any:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{function} needs matplotlib: pip install "torchmetrics-cam[plot]"', name="matplotlib"
        ) from error
    return Figure


def _show(axes: "Axes", image: Tensor) -> None:
    axes.imshow(image.permute(1, 2, 0).cpu().numpy())
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
