"""Extractors of torchcam 0.5, and every hand-written object that behaves like one."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from torchmetrics_cam.cams.source import CAMSource, CleanPass, Graph, SourceMaps
from torchmetrics_cam.functional.maps import min_max, rectify

_SWITCHES = ("_hooks_enabled", "_ihook_enabled")


class TorchcamSource(CAMSource):
    """Maps from an object with ``.model``, ``__call__(class_idx, scores)`` and ``.fuse_cams(list)``.

    Hooks are switched with ``_hooks_off()`` or ``disable_hooks`` and ``enable_hooks`` where the object has
    them, and are afterwards as they were before. A protocol that normalises after the resize asks torchcam
    for its raw maps.

    Args:
        extractor: the extractor; its ``model`` is the network that is evaluated.
    """

    def __init__(self, extractor: Any) -> None:
        self.extractor = extractor
        self.graph = _graph_of(self._base)

    @property
    def model(self) -> nn.Module:  # type: ignore[override]
        """The extractor's model."""
        return self.extractor.model  # type: ignore[no-any-return]

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The extractor's target layers, where it is torchcam's own."""
        if self.graph != "head":
            return ()
        return [self._base.submodule_dict[name] for name in self._base.target_names]

    def maps(self, clean: CleanPass) -> SourceMaps:
        """The extractor's maps of all its layers, fused by the extractor."""
        arguments = self._arguments(clean)
        extractor_normalizes = (
            clean.protocol.rectify == "source" and clean.protocol.normalize == "before_resize"
        )
        if extractor_normalizes or "normalized" not in inspect.signature(self.extractor.__call__).parameters:
            fused = self.extractor.fuse_cams(self.extractor(**arguments))
            return SourceMaps([fused], normalized=extractor_normalizes)
        maps = self.extractor(**arguments, normalized=False)
        if clean.protocol.rectify != "source":
            maps = [rectify(layer, clean.protocol.rectify) for layer in maps]
        if len(maps) > 1:
            maps = [min_max(layer) for layer in maps]
        return SourceMaps([self.extractor.fuse_cams(maps)], rectified=True)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The extractor's hooks are live, also where the user had switched them off."""
        with self._switched(on=True):
            yield

    @contextmanager
    def muted(self) -> Iterator[None]:
        """The extractor's hooks are silent."""
        if any(hasattr(self._base, switch) for switch in _SWITCHES):
            with self._switched(on=False):
                yield
        elif hasattr(self.extractor, "_hooks_off"):
            with self.extractor._hooks_off():
                yield
        elif hasattr(self.extractor, "disable_hooks"):
            self.extractor.disable_hooks()
            try:
                yield
            finally:
                self.extractor.enable_hooks()
        else:
            yield

    def release(self) -> None:
        """Drop activations, gradients with their graph, and the images that some extractors keep."""
        if hasattr(self.extractor, "reset_hooks"):
            self.extractor.reset_hooks()
        self._base.__dict__.pop("_input", None)

    @property
    def _base(self) -> Any:
        return getattr(self.extractor, "base_cam", self.extractor)

    @contextmanager
    def _switched(self, *, on: bool) -> Iterator[None]:
        base = self._base
        before = {switch: getattr(base, switch) for switch in _SWITCHES if hasattr(base, switch)}
        try:
            for switch in before:
                setattr(base, switch, on)
            yield
        finally:
            for switch, value in before.items():
                setattr(base, switch, value)

    def _arguments(self, clean: CleanPass) -> dict[str, Any]:
        """The call as torchcam's own metric makes it: a class as int or list, never as a tensor."""
        if clean.selection.targets is not None:
            return {"scores": clean.explained, "targets": list(clean.selection.targets)}
        class_idx = clean.class_idx
        if not isinstance(class_idx, int | list):
            assert clean.selection.class_idx is not None
            class_idx = clean.selection.class_idx.tolist()
        return {"class_idx": class_idx, "scores": clean.explained}

    def __repr__(self) -> str:
        return f"{self.extractor!r}"


def _graph_of(base: Any) -> Graph:
    """What graph an extractor needs; only torchcam's own classes are known to do with less than all of it."""
    if not type(base).__module__.startswith("torchcam."):
        return "input"
    if hasattr(base, "_hook_outputs"):
        return "head"
    # LeGrad differentiates attention probabilities inside its target blocks; CAM and the Score-CAMs need no
    # gradient.
    return "input" if hasattr(base, "hook_attn") else "none"


def is_torchcam_like(candidate: Any) -> bool:
    """Whether an object behaves as an extractor of torchcam."""
    return (
        callable(candidate)
        and callable(getattr(candidate, "fuse_cams", None))
        and isinstance(getattr(candidate, "model", None), nn.Module)
    )
