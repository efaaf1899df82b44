"""Extractors of torchcam 0.5, and every hand-written object that behaves like one."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from torchmetrics_cam.cams.source import CAMSource, ForwardPass, Graph, SourceMaps
from torchmetrics_cam.functional.maps import min_max, rectify
from torchmetrics_cam.model.guard import unwrapped

_SWITCHES = ("_hooks_enabled", "_ihook_enabled")


class TorchcamSource(CAMSource):
    """Maps from an object with ``.model``, ``__call__(class_idx, scores)`` and ``.fuse_cams(list)``.

    Hooks are switched with ``_hooks_off()`` or ``disable_hooks`` and ``enable_hooks`` where the object has
    them, and are afterwards as they were before; an object with the two methods alone cannot say how its
    hooks were, and ends with them on. A protocol that normalizes after the resize asks torchcam for its raw
    maps; those of RefineCAM have no negative values for ``rectify="abs"`` to find.

    Args:
        extractor: the extractor; its ``model`` is the network that is evaluated.

    Raises:
        ValueError: if the extractor has hooks on a wrapper around the model.
    """

    def __init__(self, extractor: Any) -> None:
        wrapper = extractor.model
        handles = getattr(getattr(extractor, "base_cam", extractor), "hook_handles", ())
        if wrapper is not unwrapped(wrapper) and any(
            handle.hooks_dict_ref() is wrapper._forward_pre_hooks for handle in handles
        ):
            raise ValueError(
                f"{type(extractor).__name__} has hooks on a {type(wrapper).__name__}, which is left out"
                " because it waits for other ranks or skips hooks; build the extractor on the model inside"
            )
        self.model = extractor.model
        self.extractor = self.hooked = extractor
        self.graph = _graph_of(self._base)
        self.supports_targets = getattr(self._base, "_targets_supported", True)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The extractor's target layers, where it is torchcam's own."""
        if self.graph != "head":
            return ()
        return [self._base.submodule_dict[name] for name in self._base.target_names]

    def check(self, images: Tensor, cams: Tensor | None) -> None:
        """Refuse a batch before the model runs.

        Raises:
            ValueError: if maps were handed in, or hooks of the extractor are gone from the model.
        """
        super().check(images, cams)
        # Known by torchcam's own table of layers; what another object calls its handles is its own affair.
        if hasattr(self._base, "submodule_dict") and not self._is_hooked():
            raise ValueError(
                f"hooks of {self!r} are gone from the model: remove_hooks() was called, its `with` block was"
                " left, or its layers were replaced, as SyncBatchNorm.convert_sync_batchnorm does; make a new"
                " extractor"
            )

    def maps(self, clean: ForwardPass) -> SourceMaps:
        """The extractor's maps of all its layers, fused by the extractor."""
        rectification = clean.protocol.rectify
        extractor_normalizes = rectification == "source" and clean.protocol.normalize == "before_resize"
        if extractor_normalizes or "normalized" not in inspect.signature(self.extractor.__call__).parameters:
            return SourceMaps(
                [self.extractor.fuse_cams(self._called(clean))], normalized=extractor_normalizes
            )
        if rectification == "source" or self._rectifies_first:
            maps = self._called(clean, normalized=False)
        else:
            # Negative values have to reach the protocol's own rectification.
            with _set(self._base, {"_relu": False}):
                maps = [rectify(layer, rectification) for layer in self._called(clean, normalized=False)]
        if len(maps) > 1:
            maps = [min_max(layer) for layer in maps]
        return SourceMaps([self.extractor.fuse_cams(maps)], rectified=True)

    @property
    def _rectifies_first(self) -> bool:
        """Whether it normalizes its layers before it multiplies them: a ReLU after that is too late."""
        return type(self.extractor).__name__ == "RefineCAM"

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The extractor's hooks are live, also where the user had switched them off.

        An extractor that runs the model itself runs it without its wrappers.
        """
        live: dict[str, Any] = dict.fromkeys(_SWITCHES, True)
        if self.extractor.model is not self.model:
            live["model"] = self.model
        with _set(self._base, live):
            yield

    @contextmanager
    def muted(self) -> Iterator[None]:
        """The extractor's hooks are silent."""
        if any(hasattr(self._base, switch) for switch in _SWITCHES):
            with _set(self._base, dict.fromkeys(_SWITCHES, False)):
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

    def remove_hooks(self) -> None:
        """Take the extractor's hooks off the model."""
        if hasattr(self.extractor, "remove_hooks"):
            self.extractor.remove_hooks()

    def release(self) -> None:
        """Drop activations, gradients with their graph, and the images that some extractors keep."""
        if hasattr(self.extractor, "reset_hooks"):
            self.extractor.reset_hooks()
        self._base.__dict__.pop("_input", None)

    def _is_hooked(self) -> bool:
        handles, layers = self._base.hook_handles, self._base.submodule_dict
        now = dict(self.extractor.model.named_modules())
        return (
            bool(handles)
            and all(map(_is_live, handles))
            and all(layers[name] is now.get(name) for name in self._base.target_names)
        )

    @property
    def _base(self) -> Any:
        return getattr(self.extractor, "base_cam", self.extractor)

    def _called(self, clean: ForwardPass, **settings: bool) -> list[Tensor]:
        """The call as torchcam's own metric makes it: a class as int or list, never as a tensor."""
        if clean.selector.targets is not None:
            targets = list(clean.selector.targets)
            return self.extractor(scores=clean.explained, targets=targets, **settings)  # type: ignore[no-any-return]
        class_idx = clean.class_idx
        if not isinstance(class_idx, int | list):
            assert clean.selector.class_idx is not None
            class_idx = clean.selector.class_idx.tolist()
        return self.extractor(class_idx, clean.explained, **settings)  # type: ignore[no-any-return]

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


@contextmanager
def _set(extractor: Any, values: dict[str, Any]) -> Iterator[None]:
    """Attributes that the extractor has, set to a value inside and back to their own afterwards."""
    before = {name: getattr(extractor, name) for name in values if hasattr(extractor, name)}
    try:
        for name in before:
            setattr(extractor, name, values[name])
        yield
    finally:
        for name, value in before.items():
            setattr(extractor, name, value)


def _is_live(handle: Any) -> bool:
    hooks = handle.hooks_dict_ref()
    return hooks is not None and handle.id in hooks


def is_torchcam_like(candidate: Any) -> bool:
    """Whether an object behaves as an extractor of torchcam."""
    return (
        callable(candidate)
        and callable(getattr(candidate, "fuse_cams", None))
        and isinstance(getattr(candidate, "model", None), nn.Module)
    )
