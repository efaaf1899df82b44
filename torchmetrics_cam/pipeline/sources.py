"""The sources of one model by name, and the maps that were computed beforehand for them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from torchmetrics_cam.cams.callables import PrecomputedMaps
from torchmetrics_cam.cams.resolve import as_source
from torchmetrics_cam.cams.source import CAMSource


def named_sources(sources: Any) -> dict[str, CAMSource]:
    """Return the sources by name.

    Raises:
        TypeError: if the sources have no names, or one gives no maps.
        ValueError: if they have different models, or one has two names.
    """
    if not isinstance(sources, Mapping) or not sources or not all(isinstance(name, str) for name in sources):
        raise TypeError(
            f"sources is {sources!r}; give each a name, as in {{'Grad-CAM': GradCAM(model, 'layer4')}}"
        )
    first_names: dict[int, str] = {}
    for name, source in sources.items():
        if first_names.setdefault(id(source), name) != name:
            raise ValueError(
                f"{first_names[id(source)]!r} and {name!r} are one source; give each source one name"
            )
    named = {name: as_source(source) for name, source in sources.items()}
    first, *others = named
    for name in others:
        if named[name].model is not named[first].model:
            raise ValueError(
                f"{name!r} explains another model than {first!r}; a comparison is of one model, so make one"
                " comparison for each model"
            )
    return named


def maps_by_source(
    sources: Mapping[str, CAMSource], cams: Tensor | Mapping[str, Tensor] | None
) -> dict[CAMSource, Tensor]:
    """Return the maps that were computed beforehand, by their source.

    Raises:
        ValueError: if they belong to no source, or it is not clear to which.
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
            f"cams is one tensor, and {len(precomputed)} sources take maps; pass cams={{method: maps}}"
        )
    return {precomputed[0]: cams}


def index_of(name: str, names: Sequence[str], kind: str) -> int:
    """Return the index of a name.

    Raises:
        ValueError: if it is not among the names.
    """
    if name not in names:
        raise ValueError(f"{name!r} is no {kind}; available are {list(names)}")
    return list(names).index(name)


def refuse_precomputed_maps(sources: Sequence[CAMSource], measure: str, further_maps: str) -> None:
    """Refuse sources that have no other maps than those of the images.

    Args:
        sources: the sources.
        measure: the title of the measure that needs others.
        further_maps: what it needs the maps of, such as ``"the masked images"``.

    Raises:
        ValueError: if there is one.
    """
    if any(isinstance(source, PrecomputedMaps) for source in sources):
        raise ValueError(
            f"{measure} needs the maps of {further_maps} too, and PrecomputedMaps has only those that come"
            " with the batch; pass the CAM that made them"
        )
