"""Adapter for the extractors of torchcam 0.5, and for objects with the same methods."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from torchmetrics_cam.cams.layers import patch_grid
from torchmetrics_cam.cams.source import CAMSource, ForwardPass, Graph, SourceMaps
from torchmetrics_cam.functional.maps import min_max, rectify
from torchmetrics_cam.model.guard import unwrapped

_HOOK_SWITCHES = ("_hooks_enabled", "_ihook_enabled")


class TorchcamSource(CAMSource):
    """Maps from an extractor of torchcam, or from an object with the same methods.

    The object has an attribute ``model``, a method ``__call__(class_idx, scores)`` that returns a list of
    maps ``(N, *spatial)``, one per layer, and a method ``fuse_cams(maps)`` that combines them to one. If it
    has hooks, it also has a context manager ``_hooks_off()``, or the methods ``disable_hooks`` and
    ``enable_hooks``. Hooks are disabled during the forward passes on perturbed images and restored to their
    previous state afterwards; an object with only ``disable_hooks`` and ``enable_hooks`` does not reveal that
    state, and its hooks are enabled.

    A protocol that normalizes after the resize gets torchcam's maps before its own normalization. The maps of
    ``RefineCAM`` have no negative values, so that ``rectify="abs"`` has no effect on them.

    Args:
        extractor: the extractor; the network ``extractor.model`` is explained.

    Raises:
        ValueError: if the extractor has hooks on a wrapper of the network, such as ``DataParallel``; in
            ``update``, if its hooks are no longer on the network, or if ``targets`` are given for an
            extractor that explains classes only.

    Example:
        torchcam's Grad-CAM weights each channel by its mean gradient. The target layer returns the image
        unchanged, two channels of 2 x 2 pixels, and the first row of the weights gives the mean gradients 0.1
        and 0.2: the map is 0.1 times the first channel plus 0.2 times the second.

        >>> import torch
        >>> from torch import nn
        >>> from torchcam.methods import GradCAM
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import TorchcamSource
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 2, bias=False))
        >>> model[2].weight.data[0] = torch.tensor([0.8, 0.0, 0.0, -0.4, 0.2, 0.2, 0.2, 0.2])
        >>> images = torch.tensor([[[[1.0, 2.0], [4.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]]])
        >>> explain(TorchcamSource(GradCAM(model, "0")), images, class_idx=0).maps[0]
        tensor([[0.5000, 0.2000],
                [0.4000, 0.5000]])

    """

    def __init__(self, extractor: Any) -> None:
        wrapper = extractor.model
        handles = getattr(getattr(extractor, "base_cam", extractor), "hook_handles", ())
        if wrapper is not unwrapped(wrapper) and any(
            handle.hooks_dict_ref() is wrapper._forward_pre_hooks for handle in handles
        ):
            raise ValueError(
                f"{type(extractor).__name__} has hooks on a {type(wrapper).__name__}, but the evaluation runs"
                " the network without this wrapper, which synchronizes with other processes or skips hooks;"
                " create the extractor on the model inside"
            )
        self.model = extractor.model
        self.extractor = self.hooked = extractor
        self.graph = _required_graph(self._base)
        self.supports_targets = getattr(self._base, "_targets_supported", True)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The target layers, if the extractor is torchcam's own and needs their gradients."""
        return self._target_layers() if self.graph == "head" else ()

    @property
    def counted_layers(self) -> Sequence[nn.Module]:
        """The target layers, if the extractor is torchcam's own and records them itself."""
        return () if self.graph == "head" else self._target_layers()

    def _target_layers(self) -> list[nn.Module]:
        if not hasattr(self._base, "submodule_dict"):
            return []
        return [self._base.submodule_dict[name] for name in self._base.target_names]

    def check(self, images: Tensor, cams: Tensor | None) -> None:
        """Validate the batch and the extractor's hooks before the model runs.

        Raises:
            ValueError: if precomputed maps were passed, or the extractor's hooks are no longer on the model.
        """
        super().check(images, cams)
        # Only torchcam's own extractors have this table of layers; other objects are not checked.
        if hasattr(self._base, "submodule_dict") and not self._is_hooked():
            raise ValueError(
                f"hooks of {self!r} are gone from the model: remove_hooks() was called, its `with` block has"
                " ended, or its layers were replaced, as by SyncBatchNorm.convert_sync_batchnorm; make a new"
                " extractor for the current model"
            )

    def maps(self, forward: ForwardPass) -> SourceMaps:
        """Return the extractor's maps, combined over its layers by the extractor."""
        if self.graph == "none":
            forward.require_output_per_class(self)
        rectification = forward.protocol.rectify
        extractor_normalizes = rectification == "source" and forward.protocol.normalize == "before_resize"
        if extractor_normalizes or "normalized" not in inspect.signature(self.extractor.__call__).parameters:
            return SourceMaps(
                [self.extractor.fuse_cams(self._call(forward))], normalized=extractor_normalizes
            )
        # RefineCAM rectifies and normalizes the maps of its layers before it multiplies them.
        if rectification == "source" or type(self.extractor).__name__ == "RefineCAM":
            maps = self._call(forward, normalized=False)
        else:
            # Without torchcam's ReLU, negative values are kept for the rectification of the protocol.
            with _attributes_set(self._base, {"_relu": False}):
                maps = [rectify(layer, rectification) for layer in self._call(forward, normalized=False)]
        if len(maps) > 1:
            maps = [min_max(layer) for layer in maps]
        return SourceMaps([self.extractor.fuse_cams(maps)], rectified=True)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Enable the extractor's hooks, even if the user has disabled them; restore them afterwards.

        An extractor that runs the model itself runs it without its wrappers.
        """
        enabled: dict[str, Any] = dict.fromkeys(_HOOK_SWITCHES, True)
        if self.extractor.model is not self.model:
            enabled["model"] = self.model
        with _attributes_set(self._base, enabled):
            yield

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Disable the extractor's hooks; restore them afterwards."""
        if any(hasattr(self._base, switch) for switch in _HOOK_SWITCHES):
            with _attributes_set(self._base, dict.fromkeys(_HOOK_SWITCHES, False)):
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
        """Remove the extractor's hooks from the model."""
        if hasattr(self.extractor, "remove_hooks"):
            self.extractor.remove_hooks()

    def release(self) -> None:
        """Release the activations, gradients and images that the extractor has kept from the last batch."""
        if hasattr(self.extractor, "reset_hooks"):
            self.extractor.reset_hooks()
        self._base.__dict__.pop("_input", None)

    def _is_hooked(self) -> bool:
        """Return whether all hooks of the extractor are still on the current layers of the model."""
        handles, layers = self._base.hook_handles, self._base.submodule_dict
        current = dict(self.extractor.model.named_modules())
        return (
            bool(handles)
            and all(map(_is_registered, handles))
            and all(layers[name] is current.get(name) for name in self._base.target_names)
        )

    @property
    def _base(self) -> Any:
        """The extractor, or the one that it wraps, which has the hooks."""
        return getattr(self.extractor, "base_cam", self.extractor)

    def _call(self, forward: ForwardPass, **normalized: bool) -> list[Tensor]:
        """Return the maps of each layer; ``normalized=False`` asks torchcam for maps before normalization.

        The class is passed as an int or a list, as torchcam's own metric does; it accepts no tensor.
        """
        with _attributes_set(self._base, self._grid_shape(forward.images)):
            if forward.selector.targets is not None:
                targets = list(forward.selector.targets)
                return self.extractor(scores=forward.explained_output, targets=targets, **normalized)  # type: ignore[no-any-return]
            class_idx = forward.class_idx
            if not isinstance(class_idx, int | list):
                assert forward.selector.class_idx is not None
                class_idx = forward.selector.class_idx.tolist()
            return self.extractor(class_idx, forward.explained_output, **normalized)  # type: ignore[no-any-return]

    def _grid_shape(self, images: Tensor) -> dict[str, Any]:
        """Return the grid of the tokens for LeGrad, which assumes a square one if it was given none."""
        attention = next(iter(getattr(self._base, "hook_attn", ())), None)
        if attention is None or self._base.grid_shape is not None:
            return {}
        patches = attention.shape[-1] - self._base.prefix_tokens
        what_to_do = "set prefix_tokens and grid_shape of LeGrad"
        return {"grid_shape": patch_grid(patches, images.shape[2:], what_to_do)}

    def __repr__(self) -> str:
        return f"{self.extractor!r}"


def _required_graph(base: Any) -> Graph:
    """Return the autograd graph that an extractor needs; objects of other libraries get the whole graph."""
    if not type(base).__module__.startswith("torchcam."):
        return "input"
    if hasattr(base, "_hook_outputs"):
        return "head"
    # LeGrad needs gradients of the attention inside its target blocks; CAM and the Score-CAMs need none.
    return "input" if hasattr(base, "hook_attn") else "none"


@contextmanager
def _attributes_set(target: Any, values: dict[str, Any]) -> Iterator[None]:
    """Set those of the attributes that the object has, and restore them afterwards."""
    before = {name: getattr(target, name) for name in values if hasattr(target, name)}
    try:
        for name in before:
            setattr(target, name, values[name])
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)


def _is_registered(handle: Any) -> bool:
    hooks = handle.hooks_dict_ref()
    return hooks is not None and handle.id in hooks


def is_torchcam_like(candidate: Any) -> bool:
    """Return whether an object has the methods of a torchcam extractor."""
    return (
        callable(candidate)
        and callable(getattr(candidate, "fuse_cams", None))
        and isinstance(getattr(candidate, "model", None), nn.Module)
    )
