"""The arguments of a comparison: named sources of one model, measures, and maps by method."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.callables import PrecomputedMaps
from torchmetrics_cam.cams.controls import CenterMap, RandomMap, UniformMap
from torchmetrics_cam.cams.resolve import as_source
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.metrics.measures import MEASURES

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


def named_sources(sources: Any, *, with_controls: bool) -> dict[str, CAMSource]:
    """Return the sources by name, followed by the controls.

    Raises:
        TypeError: if the sources have no names, or one gives no maps.
        ValueError: if they have different models, or one has the name of a control.
    """
    if not isinstance(sources, Mapping) or not sources or not all(isinstance(name, str) for name in sources):
        raise TypeError(
            f"sources is {sources!r}; give each a name, as in {{'Grad-CAM': GradCAM(model, 'layer4')}}"
        )
    named = {name: as_source(source) for name, source in sources.items()}
    first_names: dict[int, str] = {}
    for name, source in sources.items():
        if first_names.setdefault(id(source), name) != name:
            raise ValueError(
                f"{first_names[id(source)]!r} and {name!r} are one source; give each source one name"
            )
    model = next(iter(named.values())).model
    for name, source in named.items():
        if source.model is not model:
            raise ValueError(
                f"{name!r} explains another model than {next(iter(named))!r}; a comparison is of one model,"
                " so make one comparison for each model"
            )
    taken = [name for name in CONTROLS if with_controls and name in named]
    if taken:
        raise ValueError(f"{taken[0]!r} is the name of a control; choose another, or pass controls=False")
    return named | ({name: control(model) for name, control in CONTROLS.items()} if with_controls else {})


def index_of(name: str, names: Sequence[str], kind: str) -> int:
    """Return the index of a name.

    Raises:
        ValueError: if it is not among the names.
    """
    if name not in names:
        raise ValueError(f"{name!r} is no {kind} of this comparison; it has {list(names)}")
    return list(names).index(name)


def check_index(index: Any, images: Any) -> None:
    """Validate the numbers of images.

    Raises:
        ValueError: if they are not one integer for each image.
    """
    if index is None:
        return
    given = torch.as_tensor(index)
    if given.is_floating_point() or given.shape != (len(images),):
        raise ValueError(
            f"index is {given.dtype} of shape {tuple(given.shape)}; give one integer for each of the"
            f" {len(images)} images"
        )


def maps_by_source(
    sources: Mapping[str, CAMSource], cams: Tensor | Mapping[str, Tensor] | None
) -> dict[CAMSource, Tensor]:
    """Return the maps that were computed beforehand, by their source.

    Raises:
        ValueError: if they belong to no method, or it is not clear to which.
    """
    if cams is None:
        return {}
    if isinstance(cams, Mapping):
        for name in cams:
            index_of(name, list(sources), "method")
        return {sources[name]: maps for name, maps in cams.items()}
    precomputed = [source for source in sources.values() if isinstance(source, PrecomputedMaps)]
    if len(precomputed) != 1:
        raise ValueError(
            f"cams is one tensor, and {len(precomputed)} methods of the comparison take maps; pass"
            " cams={method: maps}"
        )
    return {precomputed[0]: cams}
