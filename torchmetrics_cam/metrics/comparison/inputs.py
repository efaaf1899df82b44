"""The arguments of a comparison: measures, sources with controls, and the indices of images."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.controls import CenterMap, RandomMap, UniformMap
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.pipeline.sources import index_of, named_sources

CONTROLS: dict[str, Callable[[nn.Module], CAMSource]] = {
    "uniform map": UniformMap,
    "random map": RandomMap,
    "center map": CenterMap,
}


def check_measures(names: Sequence[str]) -> None:
    """Validate the names of measures.

    Raises:
        ValueError: if there is none, one is unknown, or one is given twice.
    """
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ValueError(f"measures is {names!r}; give a list of different names, of {sorted(MEASURES)}")
    for name in names:
        index_of(name, list(MEASURES), "measure")


def sources_with_controls(sources: Any, *, with_controls: bool) -> dict[str, CAMSource]:
    """Return the sources by name, followed by the controls.

    Raises:
        TypeError: as `named_sources`.
        ValueError: as `named_sources`, or if a source has the name of a control.
    """
    named = named_sources(sources)
    if not with_controls:
        return named
    taken = [name for name in CONTROLS if name in named]
    if taken:
        raise ValueError(f"{taken[0]!r} is the name of a control; choose another, or pass controls=False")
    model = next(iter(named.values())).model
    return named | {name: control(model) for name, control in CONTROLS.items()}


def check_index(index: Any, images: Any) -> None:
    """Validate the indices of images in their dataset.

    Raises:
        ValueError: if they are not one integer for each image.
    """
    if index is None or not isinstance(images, Tensor):
        return
    given = torch.as_tensor(index)
    if given.is_floating_point() or given.shape != (len(images),):
        raise ValueError(
            f"index is {given.dtype} of shape {tuple(given.shape)}; give one integer for each of the"
            f" {len(images)} images"
        )
