"""Adapter for MONAI: its CAM, GradCAM and GradCAMpp, on images and volumes."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor, nn

from torchmetrics_cam.cams.layers import layer_names
from torchmetrics_cam.cams.source import CAMSource, ForwardPass, Sharing, SourceMaps
from torchmetrics_cam.model.guard import attributes_kept


class MonaiSource(CAMSource):
    """Maps from a ``CAM``, ``GradCAM`` or ``GradCAMpp`` of MONAI.

    The maps differ from the result of the MONAI object in two ways. They are taken before its
    post-processing, whose default inverts the map (the most important position gets 0). And each image is
    explained for its own class: MONAI itself explains the sum of the scores of a batch, so that the map of an
    image depends on the classes of the others. Here an image has the map that MONAI computes for it alone.

    Args:
        cam: the MONAI object; the network that it was created with is explained.
        layer_idx: the index of the target layer to use, if the object has several.

    Raises:
        ValueError: in ``update``, if MONAI's hooks are no longer on the target layer, or if ``targets`` are
            given for a ``CAM``, which explains classes only.

    Example:
        MONAI's Grad-CAM weights each channel by its mean gradient. The target layer returns the image
        unchanged, two channels of 2 x 2 pixels, and the first row of the weights gives the mean gradients 0.1
        and 0.2: the map is 0.1 times the first channel plus 0.2 times the second.

        >>> import torch
        >>> from monai.visualize import GradCAM
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import MonaiSource
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 2, bias=False))
        >>> model[2].weight.data[0] = torch.tensor([0.8, 0.0, 0.0, -0.4, 0.2, 0.2, 0.2, 0.2])
        >>> images = torch.tensor([[[[1.0, 2.0], [4.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]]])
        >>> explain(MonaiSource(GradCAM(model, "0")), images, class_idx=0).maps[0]
        tensor([[0.5000, 0.2000],
                [0.4000, 0.5000]])

    """

    sharing: Sharing = "scores"
    differentiates: bool = True

    def __init__(self, cam: Any, *, layer_idx: int = -1) -> None:
        self.cam = self.hooked = cam
        self.model = cam.nn_module.model
        self.layer_idx = layer_idx
        self.supports_targets = cam.nn_module.register_backward

    @property
    def counted_layers(self) -> Sequence[nn.Module]:
        """The layers with MONAI's hooks."""
        names = layer_names(self.model, self.cam.nn_module.target_layers)
        return [self.model.get_submodule(name) for name in names]

    def check(self, images: Tensor, cams: Tensor | None) -> None:
        """Validate the batch and MONAI's hooks before the model runs.

        Raises:
            ValueError: if precomputed maps were passed, or MONAI's hooks are no longer on the target layer.
        """
        super().check(images, cams)
        for name in layer_names(self.model, self.cam.nn_module.target_layers):
            if not any(map(self._is_own_hook, self.model.get_submodule(name)._forward_hooks.values())):
                raise ValueError(
                    f"{self!r} has no hook on layer {name!r}: the hook was removed, the layer was replaced,"
                    " as by SyncBatchNorm.convert_sync_batchnorm, or the network was copied, and the"
                    " copied hooks belong to the MONAI object of the original. Create a new MONAI object"
                    " for the current network"
                )

    def _is_own_hook(self, hook: Any) -> bool:
        """Return whether a forward hook belongs to this MONAI object and not to another one."""
        cells = getattr(hook, "__closure__", None) or ()
        return _is_monai_hook(hook) and any(cell.cell_contents is self.cam.nn_module for cell in cells)

    def maps(self, forward: ForwardPass) -> SourceMaps:
        """Return MONAI's maps of the target layer, before its post-processing."""

        def class_score(output: Any, _class_idx: Any) -> Tensor:
            # MONAI multiplies the score with gradients (N, channels, *spatial).
            scores = forward.selector.select(forward.explained_output_of(output))
            return scores.view(-1, *(1,) * (forward.images.ndim - 1))

        if not self.supports_targets:
            forward.require_output_per_class(self)
        images = forward.images.clone().requires_grad_()
        class_idx = forward.selector.class_idx
        # class_score ignores the classes, but MONAI requires some.
        classes = [0] * len(images) if class_idx is None else class_idx.tolist()
        self.cam.nn_module.class_score = class_score
        maps = self.cam.compute_map(images, class_idx=classes, layer_idx=self.layer_idx)
        return SourceMaps([maps.squeeze(1)])

    def recording(self) -> AbstractContextManager[None]:
        """Let MONAI run the unwrapped model; restore its state afterwards."""
        return self.muted()

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Discard afterwards what MONAI's hooks record; MONAI keeps no handles to disable them."""
        wrapper = self.cam.nn_module
        with attributes_kept(wrapper):
            wrapper.model, wrapper.activations, wrapper.gradients = self.model, {}, {}
            yield

    def remove_hooks(self) -> None:
        """Remove MONAI's hooks from the target layers."""
        for layer in self.counted_layers:
            for table in (layer._forward_hooks, layer._backward_hooks):
                for key in [key for key, hook in table.items() if _is_monai_hook(hook)]:
                    del table[key]

    def __repr__(self) -> str:
        layer = self.cam.nn_module.target_layers[self.layer_idx]
        return f"{type(self.cam).__name__}({type(self.model).__name__}, {layer})"


def _is_monai_hook(hook: Any) -> bool:
    return getattr(hook, "__qualname__", "").startswith("ModelWithHooks.")
