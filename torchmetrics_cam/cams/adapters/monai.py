"""The CAMs of MONAI: CAM, GradCAM and GradCAMpp, on images and volumes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from torchmetrics_cam.cams.layers import layer_names
from torchmetrics_cam.cams.source import CAMSource, ForwardPass, Sharing, SourceMaps
from torchmetrics_cam.model.guard import attributes_kept

_LIBRARY = "monai.visualize"


class MonaiSource(CAMSource):
    """Maps from ``CAM``, ``GradCAM`` or ``GradCAMpp`` of MONAI.

    It takes the map as it is before MONAI's post-processing, whose default turns it over: there the most
    important position has the value 0. MONAI sums the scores of all classes of a batch where it should take
    one an image, so a map depends on the other images; here each image has its own class, and the map that
    MONAI gives it alone.

    Args:
        cam: the object; the network inside of it is the one that is evaluated.
        layer_idx: which of several target layers.

    Example:
        >>> from monai.visualize import GradCAM
        >>> from torch import nn
        >>> from torchmetrics_cam.cams import MonaiSource
        >>> model = nn.Sequential(nn.Conv3d(1, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten())
        >>> MonaiSource(GradCAM(model, "0"))
        GradCAM(Sequential, 0)

    """

    sharing: Sharing = "scores"
    freezes: bool = True

    def __init__(self, cam: Any, *, layer_idx: int = -1) -> None:
        self.cam = self.hooked = cam
        self.model = cam.nn_module.model
        self.layer_idx = layer_idx
        self.supports_targets = cam.nn_module.register_backward

    def check(self, images: Tensor, cams: Tensor | None) -> None:
        """Refuse a batch before the model runs.

        Raises:
            ValueError: if maps were handed in, or MONAI's hooks are not on the target layer any more.
        """
        super().check(images, cams)
        for name in layer_names(self.model, self.cam.nn_module.target_layers):
            if not any(map(self._has_hook, self.model.get_submodule(name)._forward_hooks.values())):
                raise ValueError(
                    f"{self!r} has no hook on the layer {name!r}: it or the layer was removed, as"
                    " SyncBatchNorm.convert_sync_batchnorm does, or the network was copied, and the copied"
                    " hooks are those of the first; make a new one"
                )

    def _has_hook(self, hook: Any) -> bool:
        cells = getattr(hook, "__closure__", None) or ()
        return _is_monais(hook) and any(cell.cell_contents is self.cam.nn_module for cell in cells)

    def maps(self, clean: ForwardPass) -> SourceMaps:
        """MONAI's map of the layer, one channel."""

        def class_score(output: Any, _class_idx: Any) -> Tensor:
            """One score an image, in a shape that multiplies its gradient."""
            return clean.selector.select(clean.explained_of(output)).view(-1, *(1,) * (clean.images.ndim - 1))

        images = clean.images.clone().requires_grad_()
        selected = clean.selector.class_idx
        classes = [0] * len(images) if selected is None else selected.tolist()
        self.cam.nn_module.class_score = class_score
        made = self.cam.compute_map(images, class_idx=classes, layer_idx=self.layer_idx)
        return SourceMaps([made.squeeze(1)])

    @contextmanager
    def recording(self) -> Iterator[None]:
        """What MONAI's hooks note is forgotten afterwards, and its ``backward`` reaches no parameter."""
        with self.muted():
            self.model.requires_grad_(False)
            yield

    @contextmanager
    def muted(self) -> Iterator[None]:
        """What MONAI's hooks note is forgotten afterwards; there is no handle to silence them by."""
        hooked = self.cam.nn_module
        with attributes_kept(hooked):
            hooked.model, hooked.activations, hooked.gradients = self.model, {}, {}
            yield

    def remove_hooks(self) -> None:
        """Take MONAI's hooks off the target layers."""
        for name in layer_names(self.model, self.cam.nn_module.target_layers):
            layer = self.model.get_submodule(name)
            for table in (layer._forward_hooks, layer._backward_hooks):
                for key in [key for key, hook in table.items() if _is_monais(hook)]:
                    del table[key]

    def __repr__(self) -> str:
        layer = self.cam.nn_module.target_layers[self.layer_idx]
        return f"{type(self.cam).__name__}({type(self.model).__name__}, {layer})"


def _is_monais(hook: Any) -> bool:
    return getattr(hook, "__qualname__", "").startswith("ModelWithHooks.")


def is_monai(candidate: Any) -> bool:
    """Whether an object is a CAM of MONAI, or of a class that is derived from one."""
    classes = type(candidate).__mro__
    return not isinstance(candidate, type) and any(
        one.__name__ == "CAMBase" and one.__module__.startswith(_LIBRARY) for one in classes
    )
