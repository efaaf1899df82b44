"""The arguments of a comparison: measures, sources with controls, and the indices of images."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.controls import CenterMap, RandomMap, UniformMap
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.pipeline.sources import index_of, named_sources
from torchmetrics_cam.protocol import EvaluationProtocol, as_protocol

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


def protocols_in_order(
    protocol: EvaluationProtocol | str | None, protocols: Sequence[EvaluationProtocol | str] | None
) -> list[EvaluationProtocol]:
    """Return the protocols of a comparison.

    Raises:
        ValueError: if ``protocol`` and ``protocols`` are both given, there is none, or two have one name.
        TypeError: if ``protocols`` is no list or tuple, or one is neither a protocol nor a name.
        ModuleNotFoundError: if the package krippendorff is missing; the message has the pip command.
    """
    if protocols is None:
        return [as_protocol(protocol)]
    if protocol is not None:
        raise ValueError("protocol and protocols were both given; pass one of them")
    if not isinstance(protocols, list | tuple):
        raise TypeError(f'protocols is {protocols!r}; pass a tuple, such as ("paper", "score_cam")')
    resolved = [as_protocol(one) for one in protocols]
    names = [one.name for one in resolved]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"the names of protocols are {names}; give one or more with different names, as in"
            ' protocol.replace(baseline="blur", name="blur")'
        )
    if len(names) > 1 and find_spec("krippendorff") is None:
        raise ModuleNotFoundError(
            "several protocols need the package krippendorff, for the agreement of their rankings:"
            ' pip install "torchmetrics-cam[rankings]"'
        )
    return resolved


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
