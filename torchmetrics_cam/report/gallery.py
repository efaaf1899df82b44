"""Explained images: the selection of the best and the worst of an evaluation, and a figure of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from textwrap import fill
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchmetrics_cam.metrics.comparison.metric import CAMComparison
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.pipeline.batch import Batch, explain
from torchmetrics_cam.pipeline.perturb import apply_mask
from torchmetrics_cam.plots import COLORMAP, OPACITY, plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches. A caption such as "0.95 → 0.61" is legible at this width, and fits between two rows.
_CELL = 1.3
_BETWEEN_ROWS = 0.24
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.45, 0.3, 0.35, 0.75

_NOTE = "each pair: map over the image, masked image; below: score before → after masking"
_NOTE_WIDTH, _NOTE_LINE, _LETTERS_AN_INCH = 5.3, 0.17, 16


@dataclass(frozen=True)
class ExplainedImage:
    """One image with the masks, the masked images and the scores of K methods, on the CPU.

    Args:
        image: the image as the model takes it, ``(C, H, W)``, or its colors (`in_colors`), ``(3, H, W)``.
        label: the name of the target class.
        score: the score of the target class on the image.
        methods: the names of the methods.
        masks: their masks in [0, 1], ``(K, H, W)``.
        masked_images: the image masked by each of them, ``(K, C, H, W)``.
        masked_scores: the score of the target class on each masked image.
        drops: the drop of the score from the image to each masked image.
        index: the index of the image in its dataset, if it is known.
        file: the name of its file, if it has one.
        objects: the pixels of the object that the map is compared with, bool, ``(H, W)``, if there is one.
    """

    image: Tensor
    label: str
    score: float
    methods: Sequence[str]
    masks: Tensor
    masked_images: Tensor
    masked_scores: Sequence[float]
    drops: Sequence[float]
    index: int | None = None
    file: str | None = None
    objects: Tensor | None = None

    @property
    def box(self) -> dict[str, float] | None:
        """The smallest box around the object, as fractions of the image; None without an object."""
        if self.objects is None or not self.objects.any():
            return None
        height, width = self.objects.shape
        rows, columns = (self.objects.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        return {
            "left": columns[0] / width,
            "top": rows[0] / height,
            "width": (columns[-1] + 1 - columns[0]) / width,
            "height": (rows[-1] + 1 - rows[0]) / height,
        }

    @property
    def drop(self) -> float:
        """The mean of the drops over the methods."""
        return sum(self.drops) / len(self.drops)

    def in_colors(self, to_colors: Callable[[Tensor], Tensor] | None = None) -> "ExplainedImage":
        """Return a copy whose image and masked images are colors in [0, 1], ``(3, H, W)``.

        Args:
            to_colors: the function from images ``(N, C, H, W)`` as the model takes them to colors in [0, 1],
                ``(N, 3, H, W)`` or ``(N, 1, H, W)``; None maps the range of the image to [0, 1].
        """
        images = torch.cat([self.image.unsqueeze(0), self.masked_images])
        if to_colors is None:
            lowest, highest = self.image.aminmax()
            colors = (images - lowest) / (highest - lowest).clamp(min=torch.finfo(images.dtype).tiny)
        else:
            colors = to_colors(images)
        if colors.shape[1] != 3:
            colors = colors.mean(1, keepdim=True).expand(-1, 3, -1, -1)
        colors = colors.float().clamp(0, 1)
        return replace(self, image=colors[0], masked_images=colors[1:])


def explained_images(
    batches: Sequence[Batch], indices: Sequence[int], class_names: Sequence[str] | None = None
) -> list[ExplainedImage]:
    """Return the masks, masked images and scores of all methods for selected images of a batch.

    Args:
        batches: the same images, explained by the methods of one model each.
        indices: the indices of the selected images in the batch.
        class_names: the names of the classes; a class without a name is shown by its number.
    """
    selected = list(indices)
    first, drops = batches[0], _drops(batches)
    images, scores = first.images[selected], next(iter(first)).scores
    masks, masked_images, masked_scores = [], [], []
    for batch in batches:
        for one in batch:
            masks.append(one.masks[selected])
            # `one.masked_images` would mask all images of the batch.
            masked_images.append(apply_mask(images, masks[-1], one.protocol))
            masked_scores.append(one.masked_scores[selected])
    return [
        ExplainedImage(
            image=_on_cpu(images[position]),
            label=_label(first, index, class_names),
            score=float(scores[index]),
            methods=[method for batch in batches for method in batch.methods],
            masks=torch.stack([_on_cpu(one[position]) for one in masks]),
            masked_images=torch.stack([_on_cpu(one[position]) for one in masked_images]),
            masked_scores=[float(one[position]) for one in masked_scores],
            drops=drops[:, index].tolist(),
        )
        for position, index in enumerate(selected)
    ]


def _label(batch: Batch, index: int, class_names: Sequence[str] | None) -> str:
    if batch.class_idx is None:
        return "target"
    class_idx = int(batch.class_idx[index])
    if class_names is None or not 0 <= class_idx < len(class_names):
        return f"class {class_idx}"
    return class_names[class_idx]


def worst_explained(
    batches: Sequence[Batch], count: int, class_names: Sequence[str] | None = None
) -> list[ExplainedImage]:
    """Return the images of a batch with the highest drop, the mean over the methods.

    Signals and volumes cannot be shown: without images ``(N, C, H, W)`` the list is empty.

    Args:
        batches: the same images, explained by the methods of one model each.
        count: the largest number of images.
        class_names: the names of the classes; a class without a name is shown by its number.
    """
    if batches[0].images.ndim != 4:
        return []
    drops = _drops(batches).mean(0)
    counted = torch.stack([one.counted for batch in batches for one in batch]).all(0)
    ranked = _ranked(drops, counted, higher_is_better=False)
    return explained_images(batches, ranked[::-1][:count], class_names)


def gallery(
    comparison: CAMComparison,
    *,
    image_of: Callable[[int], Tensor],
    file_of: Callable[[int], str],
    class_names: Sequence[str] | None,
    to_colors: Callable[[Tensor], Tensor],
    count: int,
    objects_of: Callable[[int], Tensor] | None = None,
) -> dict[str, list[ExplainedImage]]:
    """Return the images with the best and the worst values of the first measure, averaged over the methods.

    They are explained again, because a comparison keeps no images and no maps.

    Args:
        comparison: a comparison with the samples of all ranks (``per_sample=True``).
        image_of: the function from an index to the image as the model takes it, ``(C, H, W)``.
        file_of: the function from an index to the name of the file.
        class_names: the names of the classes; a class without a name is shown by its number.
        to_colors: the function from images ``(N, C, H, W)`` to their colors in [0, 1].
        count: the largest number of images of each kind.
        objects_of: the function from an index to the object of the image, ``(H, W)``; None without objects.

    Returns:
        The images in colors, under ``"best"`` the best first, under ``"worst"`` the worst first.

    Raises:
        ValueError: if the index of one of these images is not known.
    """
    samples, measure = comparison.samples(), comparison.measures[0]
    methods = len(comparison.methods) - len(comparison.controls)
    values, valid = samples[measure.name][:, :methods].mean(1), samples["valid"].all(1)
    ranked = _ranked(values, valid, higher_is_better=measure.higher_is_better)
    best = ranked[: max(count, 0)]
    worst = ranked[::-1][: min(len(best), len(ranked) - len(best))]

    def explained(sample: int) -> ExplainedImage:
        index, class_idx = int(samples["index"][sample]), int(samples["class_idx"][sample])
        if index < 0:
            raise ValueError(
                "the index of an image in its dataset is not known, so the image cannot be shown; pass"
                " update(images, index=...)"
            )
        images = image_of(index).unsqueeze(0)
        batch = explain(comparison.sources, images, class_idx, protocol=comparison.protocol)
        (image,) = explained_images([batch], [0], class_names)
        objects = None if objects_of is None else objects_of(index)
        return replace(image.in_colors(to_colors), index=index, file=file_of(index), objects=objects)

    return {kind: [explained(one) for one in found] for kind, found in (("best", best), ("worst", worst))}


def _drops(batches: Sequence[Batch]) -> Tensor:
    """Return the drop of each image by each method, ``(K, N)``."""
    return torch.stack([MEASURES["average_drop"].values(one) for batch in batches for one in batch])


def _ranked(values: Tensor, valid: Tensor, *, higher_is_better: bool) -> list[int]:
    """Return the positions of the valid values, the best first."""
    positions = valid.nonzero().flatten()
    order = values[positions].argsort(descending=higher_is_better, stable=True)
    ranked: list[int] = positions[order].tolist()
    return ranked


def _on_cpu(tensor: Tensor) -> Tensor:
    """Return a copy on the CPU that does not keep the batch in memory."""
    return tensor.detach().float().cpu().clone()


def explanation_figure(explained: Sequence[ExplainedImage]) -> "Figure":
    """Draw explained images: two columns for each image, one row for each method.

    A row has the map over the image and the masked image; below are the scores before and after masking.

    Args:
        explained: images in colors (`ExplainedImage.in_colors`), all with the same methods.

    Returns:
        A figure that is not registered with ``pyplot``; ``figure.savefig(path)`` writes it.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
    """
    try:
        from matplotlib.cm import ScalarMappable
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'explanation_figure needs matplotlib: pip install "torchmetrics-cam[plot]"', name="matplotlib"
        ) from error

    methods = explained[0].methods
    widths = [*[1.0, 1.0, 0.25] * (len(explained) - 1), 1.0, 1.0]
    heights = [1.6, *[1.0] * len(methods)]
    width = _LEFT + sum(widths) * _CELL + _RIGHT
    note_left = (_LEFT + 2.3 * _CELL) / width
    fits_beside = width * (1 - note_left) >= _NOTE_WIDTH
    note = _NOTE if fits_beside else fill(_NOTE, int((width - _LEFT) * _LETTERS_AN_INCH))
    below = 0.0 if fits_beside else (note.count("\n") + 1) * _NOTE_LINE + 0.1
    bottom = _BOTTOM + below
    height = _TOP + sum(heights) * _CELL + len(methods) * _BETWEEN_ROWS + bottom
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
    for column, one in zip(range(0, len(widths), 3), explained, strict=True):
        whole = figure.add_subplot(grid[0, column : column + 2])
        _show(whole, one.image)
        whole.set_title(f"{plain_text(one.label)}  {one.score:.2f}", fontsize=11, fontweight="bold", pad=5)
        for row, method in enumerate(methods):
            overlay = figure.add_subplot(grid[row + 1, column])
            # Gray, so that every color in the overlay belongs to the map.
            _show(overlay, one.image.mean(0, keepdim=True).expand(3, -1, -1))
            overlay.imshow(one.masks[row].numpy(), cmap=COLORMAP, vmin=0, vmax=1, alpha=OPACITY)
            if column == 0:
                overlay.set_ylabel(plain_text(method), fontsize=10, fontweight="bold")
            masked = figure.add_subplot(grid[row + 1, column + 1])
            _show(masked, one.masked_images[row])
            change = f"{one.score:.2f} → {one.masked_scores[row]:.2f}"
            masked.text(0, -0.04, change, transform=masked.transAxes, ha="center", va="top", fontsize=9)

    bar = figure.add_axes((_LEFT / width, (0.38 + below) / height, 2 * _CELL / width, 0.1 / height))
    figure.colorbar(ScalarMappable(cmap=COLORMAP), cax=bar, orientation="horizontal")
    bar.set_xticks([0, 1], ["0 hidden", "1 kept"], fontsize=9)
    if fits_beside:
        figure.text(note_left, 0.43 / height, note, va="center", fontsize=9)
    else:
        figure.text(0.1 / width, below / height, note, va="top", fontsize=9)
    return figure


def _show(axes: "Axes", image: Tensor) -> None:
    axes.imshow(image.permute(1, 2, 0).numpy())
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
