"""What a comparison is made of and fed with: named sources of one model, measures, maps by method."""

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
    """Refuse names of measures that are not known or named twice, or none.

    Raises:
        ValueError: if they are.
    """
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ValueError(f"measures is {names!r}; give a list of different names, of {sorted(MEASURES)}")
    for name in names:
        known(name, list(MEASURES), "measure")


def named_sources(sources: Any, *, with_controls: bool) -> dict[str, CAMSource]:
    """The sources by name, with the controls behind them.

    Raises:
        TypeError: if they have no names, or one is no source.
        ValueError: if they have different models, or one has the name of a control.
    """
    if not isinstance(sources, Mapping) or not sources or not all(isinstance(name, str) for name in sources):
        raise TypeError(
            f"sources is {sources!r}; give each a name, as in {{'Grad-CAM': GradCAM(model, 'layer4')}}"
        )
    named = {name: as_source(source) for name, source in sources.items()}
    first: dict[int, str] = {}
    for name, source in sources.items():
        if first.setdefault(id(source), name) != name:
            raise ValueError(f"{first[id(source)]!r} and {name!r} are one source; a method has one name")
    model = next(iter(named.values())).model
    for name, source in named.items():
        if source.model is not model:
            raise ValueError(
                f"{name!r} explains another model than {next(iter(named))!r}; a comparison is of one model,"
                " so make one for each"
            )
    taken = [name for name in CONTROLS if with_controls and name in named]
    if taken:
        raise ValueError(f"{taken[0]!r} is the name of a control; choose another, or pass controls=False")
    return named | ({name: control(model) for name, control in CONTROLS.items()} if with_controls else {})


def known(name: str, names: Sequence[str], what: str) -> int:
    """The place of a name among those that there are.

    Raises:
        ValueError: if it is not among them.
    """
    if name not in names:
        raise ValueError(f"{name!r} is no {what} of this comparison; it has {list(names)}")
    return list(names).index(name)


def check_index(index: Any, images: Any) -> None:
    """Refuse numbers of images that are not one integer an image.

    Raises:
        ValueError: if they are not.
    """
    if index is None:
        return
    given = torch.as_tensor(index)
    if given.is_floating_point() or given.shape != (len(images),):
        raise ValueError(
            f"index is {given.dtype} of shape {tuple(given.shape)}; give one integer for each of the"
            f" {len(images)} images"
        )


def handed_maps(
    sources: Mapping[str, CAMSource], cams: Tensor | Mapping[str, Tensor] | None
) -> dict[CAMSource, Tensor]:
    """The maps that were handed in, by the source that they are for.

    Raises:
        ValueError: if they are for no method, or it is not clear for which.
    """
    if cams is None:
        return {}
    if isinstance(cams, Mapping):
        for name in cams:
            known(name, list(sources), "method")
        return {sources[name]: maps for name, maps in cams.items()}
    waiting = [source for source in sources.values() if isinstance(source, PrecomputedMaps)]
    if len(waiting) != 1:
        raise ValueError(
            f"cams is one tensor, and {len(waiting)} methods of the comparison take maps; pass"
            " cams={method: maps}"
        )
    return {waiting[0]: cams}
