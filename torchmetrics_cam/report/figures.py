"""The figures of a report, as pieces of HTML that need no other file."""

import base64
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from torchmetrics_cam.plots import COLORMAP, OPACITY, interval_panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE = 224
_QUALITY = 80
# Okabe and Ito's colors without the two that fade on white or on black; lines also differ in their dashes.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", "-.", ":")
# Numbers on the cells of a heat map keep their color when the page turns dark, so they are not pure.
_DARK_INK, _LIGHT_INK = "#010101", "#fefefe"


def interval_svg(measure: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The value and interval of every method in one measure; hollow marks are controls."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 0.9 + 0.27 * len(rows)), layout="constrained")
    interval_panel(figure.subplots(), measure, rows)
    return _svg(figure, f"{measure['title']} of every method with its 95 % interval")


def curves_svg(
    fractions: Sequence[float], curves: Mapping[str, Sequence[float | None]], title: str, controls: set[str]
) -> str:
    """The mean score of every method over the share of positions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis = figure.subplots()
    for place, (method, values) in enumerate(curves.items()):
        color = "0.55" if method in controls else _COLORS[place % len(_COLORS)]
        heights = [float("nan") if value is None else value for value in values]
        dashes = _DASHES[place % len(_DASHES)]
        axis.plot(fractions, heights, dashes, color=color, linewidth=1.6, label=_plain(method))
    axis.set_title(title, fontsize=10, loc="left")
    axis.set_xlabel("share of positions", fontsize=9)
    axis.set_ylabel("mean score", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return _svg(figure, f"{title}: mean score of every method over the share of positions")


def agreement_svg(agreement: Mapping[str, Mapping[str, float | None]], titles: Mapping[str, str]) -> str:
    """Rank correlations of the measures, a square each, with its number."""
    from matplotlib.figure import Figure

    names = list(agreement)
    values = [[agreement[first].get(second) for second in names] for first in names]
    filled = [[float("nan") if value is None else value for value in line] for line in values]
    side = 1.9 + 0.62 * len(names)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axis = figure.subplots()
    axis.pcolormesh(filled, cmap="cividis", vmin=-1, vmax=1, edgecolors="none")
    axis.set_aspect("equal")
    axis.invert_yaxis()
    for down, line in enumerate(values):
        for right, value in enumerate(line):
            ink = _DARK_INK if value is not None and value > 0.2 else _LIGHT_INK
            text, ink = ("-", "black") if value is None else (f"{value:.2f}", ink)
            axis.text(right + 0.5, down + 0.5, text, ha="center", va="center", fontsize=9, color=ink)
    places = [place + 0.5 for place in range(len(names))]
    shown = [_plain(titles.get(name, name)) for name in names]
    axis.set_xticks(places, shown, rotation=35, ha="right", fontsize=8)
    axis.set_yticks(places, shown, fontsize=8)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return _svg(figure, "Rank correlation of every two measures over the methods")


def photo(image: Tensor) -> str:
    """A picture, colors in [0, 1], ``(3, H, W)``, as the address of a JPEG of at most 224 pixels a side."""
    from PIL import Image

    small = _small(image.detach().float().cpu())
    pixels = (small.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def overlay(image: Tensor, mask: Tensor) -> str:
    """The map in colors over the image in gray."""
    import torch
    from matplotlib import colormaps

    small = _small(image.detach().float().cpu())
    gray = small.mean(0, keepdim=True).expand(3, -1, -1)
    heights = F.interpolate(mask.detach().float().cpu()[None, None], small.shape[1:], mode="bilinear")[0, 0]
    colors = torch.as_tensor(colormaps[COLORMAP](heights.clamp(0, 1).numpy())[..., :3]).float()
    return photo(OPACITY * colors.permute(2, 0, 1) + (1 - OPACITY) * gray)


def _small(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    scale = _SIDE / max(height, width)
    if scale >= 1:
        return image
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def _svg(figure: "Figure", label: str) -> str:
    """Inline SVG whose black is the ink of the page and whose white is its paper, light or dark."""
    import matplotlib
    from markupsafe import escape

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "font.family": "sans-serif"}):
        nothing = {key: None for key in ("Date", "Creator", "Format", "Type")}
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # A page has one style sheet, which has these two rules for lines.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    # Groups are named alike in every figure, and a name may stand once in a page.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = text.replace("#000000", "currentColor").replace("#ffffff", "var(--paper)")
    text = text.replace("#e6e6e6", "var(--line)")
    text = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font-size: \1", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


def _plain(name: str) -> str:
    """A name without what matplotlib would read as mathematics, or as a line that the legend leaves out."""
    return name.replace("$", r"\$").lstrip("_") or name
