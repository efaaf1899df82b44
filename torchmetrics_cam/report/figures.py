"""The figures of the report: inline SVG for plots, data URLs for images."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from math import nan
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmetrics_cam.plots import (
    COLORMAP,
    OPACITY,
    interval_panel,
    line_styles,
    plain_text,
    rankings_figure,
)

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.figure import Figure

_IMAGE_SIZE = 224
_JPEG_QUALITY = 80
# `_svg` replaces pure black and white by the colors of the page; numbers in a heat map must keep theirs.
_DARK_TEXT, _LIGHT_TEXT = "#010101", "#fefefe"


def interval_svg(measure: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> "Markup":
    """Draw the value and the interval of every method for one measure; hollow markers are controls."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.9 + 0.27 * len(rows)), layout="constrained")
    interval_panel(figure.subplots(), measure, rows)
    return _svg(figure, f"{measure['title']} of every method with its 95 % interval")


def curves_svg(
    fractions: Sequence[float], curves: Mapping[str, Sequence[float | None]], title: str, controls: set[str]
) -> "Markup":
    """Draw the mean score of every method over the fraction of perturbed pixels; controls are gray."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    styles = line_styles({method: method in controls for method in curves})
    for method, values in curves.items():
        heights = [nan if value is None else value for value in values]
        axis.plot(fractions, heights, label=plain_text(method), **styles[method])
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel("fraction of pixels perturbed", fontsize=9)
    axis.set_ylabel("mean score", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure, f"{title}: mean score of every method over the fraction of perturbed pixels")


def agreement_svg(agreement: Mapping[str, Mapping[str, float | None]], titles: Mapping[str, str]) -> "Markup":
    """Draw the matrix of the rank correlations between the measures, with numbers."""
    from matplotlib.figure import Figure

    names = list(agreement)
    values = [[agreement[first].get(second) for second in names] for first in names]
    filled = [[nan if value is None else value for value in line] for line in values]
    side = 1.9 + 0.62 * len(names)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axis = figure.subplots()
    axis.pcolormesh(filled, cmap="cividis", vmin=-1, vmax=1, edgecolors="none")
    axis.set_aspect("equal")
    axis.invert_yaxis()
    for y, line in enumerate(values):
        for x, value in enumerate(line):
            color = _DARK_TEXT if value is not None and value > 0.2 else _LIGHT_TEXT
            text, color = ("-", "black") if value is None else (f"{value:.2f}", color)
            axis.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=9, color=color)
    centers = [position + 0.5 for position in range(len(names))]
    labels = [plain_text(titles.get(name, name)) for name in names]
    axis.set_xticks(centers, labels, rotation=35, ha="right", fontsize=8)
    axis.set_yticks(centers, labels, fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return _svg(figure, "Rank correlation of each pair of measures over the methods")


def rankings_svg(rankings: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> "Markup":
    """Draw the ranks and values of every method under each protocol."""
    figure, _ = rankings_figure(rankings, titles)
    return _svg(figure, "Ranks and values of every method under each protocol")


def photo(image: Tensor) -> str:
    """Return an image as the data URL of a JPEG of at most 224 x 224 pixels.

    Args:
        image: colors in [0, 1], ``(3, H, W)``.
    """
    from PIL import Image

    small = _small(image.detach().float().cpu())
    pixels = (small.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def overlay(image: Tensor, mask: Tensor) -> str:
    """Return the mask in colors over the image in gray, as a data URL like `photo`.

    Args:
        image: colors in [0, 1], ``(3, H, W)``.
        mask: values in [0, 1], ``(H, W)``.
    """
    from matplotlib import colormaps

    small = _small(image.detach().float().cpu())
    gray = small.mean(0, keepdim=True).expand(3, -1, -1)
    heights = F.interpolate(mask.detach().float().cpu()[None, None], small.shape[1:], mode="bilinear")[0, 0]
    colors = torch.as_tensor(colormaps[COLORMAP](heights.clamp(0, 1).numpy())[..., :3]).float()
    return photo(OPACITY * colors.permute(2, 0, 1) + (1 - OPACITY) * gray)


def _small(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    scale = _IMAGE_SIZE / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _svg(figure: "Figure", label: str) -> "Markup":
    """Return inline SVG whose black and white follow the text and background colors of the page."""
    import matplotlib
    from markupsafe import Markup, escape

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "font.family": "sans-serif"}):
        no_metadata = {key: None for key in ("Date", "Creator", "Format", "Type")}
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # The style sheet of the page has the rules for lines.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    # Every figure has the same group ids, and an id must be unique in a page.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = text.replace("#000000", "currentColor").replace("#ffffff", "var(--paper)")
    text = text.replace("#e6e6e6", "var(--line)")
    text = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", text)
    # The figure escapes its own text, so the template must not escape it again.
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1))
