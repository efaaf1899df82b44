"""LayerSource: what all sources share that make maps of what a layer of the network gives."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.layers import TargetLayer, layer_names
from torchmetrics_cam.cams.source import CAMSource, ForwardPass, Sharing, SourceMaps
from torchmetrics_cam.functional.maps import rectify


class LayerSource(CAMSource):
    """A source that has target layers, and looks at their activations as grids of channels.

    Args:
        model: the network, outputs ``(N, K)`` for images ``(N, C, *spatial)``.
        target_layer: a module of the model, its name, or a list of either. The maps of several layers are
            rectified, min-max normalized, resized to the largest and fused by the maximum.
        reshape_transform: from what the layer gives to ``(N, channels, *spatial)``; `vit_grid` and
            `swin_grid` serve transformers.

    Raises:
        ValueError: if a layer is not in the model; the nearest names are listed.
        TypeError: if a layer is neither a name nor a module.
    """

    sharing: Sharing = "pass"

    def __init__(
        self,
        model: nn.Module,
        target_layer: TargetLayer,
        *,
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if reshape_transform is not None and not callable(reshape_transform):
            raise TypeError(
                f"reshape_transform is {reshape_transform!r}; it must be a callable, such as vit_grid"
            )
        self.model = model
        self.layer_names = layer_names(self.model, target_layer)
        self.reshape_transform = reshape_transform

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The target layers."""
        return tuple(self.model.get_submodule(name) for name in self.layer_names)

    def _rectified(self, maps: list[Tensor], clean: ForwardPass) -> SourceMaps:
        if clean.protocol.rectify == "source":
            return SourceMaps([rectify(layer, "relu") for layer in maps], rectified=True)
        return SourceMaps(maps)

    def _recorded(self, clean: ForwardPass) -> list[Tensor]:
        """What each target layer gave in the clean pass."""
        for name, layer in zip(self.layer_names, self.layers, strict=True):
            if layer not in clean.activations:
                raise RuntimeError(
                    f"layer {name!r} gave no tensor in the forward pass: it did not run, or returns a"
                    " structure; choose a layer that does"
                )
        return [clean.activations[layer] for layer in self.layers]

    def _grid(self, name: str, tensor: Tensor) -> Tensor:
        if self.reshape_transform is not None:
            tensor = self.reshape_transform(tensor)
        if tensor.ndim < 3:
            raise ValueError(
                f"layer {name!r} gives shape {tuple(tensor.shape)}, which has no positions to map; choose a"
                " layer before the pooling, or pass reshape_transform"
            )
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, {', '.join(self.layer_names)})"


def weighted_sum(activation: Tensor, weights: Tensor) -> Tensor:
    """Sum of the channels with one weight each, without a copy of the activation."""
    summed = torch.bmm(weights.unsqueeze(1), activation.flatten(2))
    return summed.view(len(activation), *activation.shape[2:])
