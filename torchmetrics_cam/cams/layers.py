"""Target layers: lookup by name or module, their activations as sources use them, and token grids."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches
from math import isqrt, prod

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.source import CAMSource, ForwardPass, Sharing, SourceMaps
from torchmetrics_cam.functional.maps import rectify
from torchmetrics_cam.model.guard import unwrapped

TargetLayer = nn.Module | str | Sequence[nn.Module | str]

# A reshape_transform receives only the output of the layer, but a grid of tokens depends on the images.
_IMAGE_SIZE: ContextVar[tuple[int, ...] | None] = ContextVar("image_size", default=None)


class LayerSource(CAMSource):
    """Base class of sources that compute a map from the activation of a target layer.

    A subclass implements `maps`; `GradientCAM` is the base class for methods that also use the gradient.

    Args:
        model: the explained network; it returns logits ``(N, K)`` for images ``(N, C, *spatial)``.
        target_layer: a module of the model, its name as in ``model.named_modules()``, or a list of these.
            The maps of several layers are rectified, min-max normalized, resized to the largest and combined
            by their maximum.
        reshape_transform: a function from the layer's output to ``(N, channels, *spatial)``, such as
            `vit_grid` or `swin_grid`; None if the output already has this shape.

    Raises:
        ValueError: if a layer is not in the model (the message lists similar names) or the list is empty.
        TypeError: if ``model`` is not a module or is a scripted one, if a layer is neither a name nor a
            module, or if ``reshape_transform`` is not callable.

    Example:
        A source that returns the mean activation of the layer over its channels. The target layer returns the
        image unchanged, two channels of one row of two pixels.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import LayerSource, SourceMaps
        >>> class MeanActivation(LayerSource):
        ...     def maps(self, forward):
        ...         return SourceMaps([forward.activations[layer].mean(1) for layer in self.layers])
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten())
        >>> images = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])
        >>> explain(MeanActivation(model, "0"), images).maps
        tensor([[[2., 1.]]])

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
        model = self.model
        return tuple([model.get_submodule(name) for name in self.layer_names])

    def _activations(self, forward: ForwardPass) -> list[tuple[str, nn.Module, Tensor]]:
        """Return the name, the module and the recorded output of each target layer."""
        layers = self.layers
        for name, layer in zip(self.layer_names, layers, strict=True):
            if layer not in forward.activations:
                for module in (self.model, layer):
                    if type(module).__call__ is not nn.Module.__call__:
                        raise RuntimeError(
                            f"layer {name!r} was not recorded: {type(module).__name__} overrides __call__,"
                            " which runs no hooks; rename it to forward"
                        )
                raise RuntimeError(
                    f"layer {name!r} returned no tensor in the forward pass: it was not executed, or its"
                    " output is not a tensor or a tuple that starts with one; choose another target_layer"
                )
        return [
            (name, layer, forward.activations[layer])
            for name, layer in zip(self.layer_names, layers, strict=True)
        ]

    def _grid(self, name: str, tensor: Tensor) -> Tensor:
        """Return the activation or gradient of a layer as ``(N, channels, *spatial)``, at least float32."""
        if self.reshape_transform is not None:
            tensor = self.reshape_transform(tensor)
        if tensor.ndim < 3:
            raise ValueError(
                f"layer {name!r} has output of shape {tuple(tensor.shape)}, without spatial dimensions;"
                " choose a target_layer before the pooling, or pass reshape_transform"
            )
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))

    def _source_maps(self, maps: list[Tensor], forward: ForwardPass) -> SourceMaps:
        """Return the maps; apply the papers' ReLU if the protocol leaves rectification to the source."""
        if forward.protocol.rectify == "source":
            return SourceMaps([rectify(layer, "relu") for layer in maps], rectified=True)
        return SourceMaps(maps)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__}, {', '.join(self.layer_names)})"


def weighted_sum(activation: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum over the channels, without a copy of the activation.

    Args:
        activation: shape ``(N, channels, *spatial)``.
        weights: one weight per image and channel, ``(N, channels)``.

    Returns:
        A tensor of shape ``(N, *spatial)``.
    """
    summed = torch.bmm(weights.unsqueeze(1), activation.flatten(2))
    return summed.view(len(activation), *activation.shape[2:])


def layer_names(model: nn.Module, target_layer: TargetLayer) -> tuple[str, ...]:
    """Return the names of the target layers in the model.

    Args:
        model: the network.
        target_layer: a module of the model, its name, or a list of these.

    Returns:
        One name per layer, as in ``model.named_modules()``.

    Raises:
        ValueError: if a name or module is not in the model, or the list is empty.
        TypeError: if ``model`` is not a module or is a scripted one, or if a layer is neither a name nor a
            module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "a scripted or traced model has no layers to record; pass the module that it was created from"
        )
    if isinstance(target_layer, str | nn.Module):
        return (_layer_name(model, target_layer),)
    if not isinstance(target_layer, Sequence):
        raise TypeError(f"target_layer is {target_layer!r}; it must be a module, a name, or a list of these")
    if not target_layer:
        raise ValueError("target_layer is an empty list; pass at least one module or name")
    return tuple(_layer_name(model, layer) for layer in target_layer)


def _layer_name(model: nn.Module, layer: nn.Module | str) -> str:
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(layer, nn.Module):
        # For a wrapped layer, the layer inside is looked up: its output is recorded.
        layer = unwrapped(layer)
        names: list[str] = [name for name, module in modules.items() if module is layer]
        if not names:
            raise ValueError(
                f"target_layer {type(layer).__name__} is not a module of this {type(model).__name__};"
                " pass a module of the model that is passed with it, or a name"
            )
        return names[0]
    if not isinstance(layer, str):
        raise TypeError(f"target_layer contains {layer!r}; each layer must be a module or a name")
    if layer not in modules:
        # The name may come from the model inside its wrappers (DataParallel, torch.compile).
        layer = re.sub(r"^((module|_orig_mod)\.)+", "", layer)
    if layer not in modules:
        near = get_close_matches(layer, modules, n=3, cutoff=0.4) or list(modules)[1:4]
        raise ValueError(
            f"target_layer {layer!r} is not in the model; the nearest names are {near}, and"
            " dict(model.named_modules()) lists all"
        )
    return layer


@contextmanager
def image_size_known(images: Tensor) -> Iterator[None]:
    """Let `vit_grid` derive the grid of the tokens from the size of these images inside the context."""
    token = _IMAGE_SIZE.set(tuple(images.shape[2:]))
    try:
        yield
    finally:
        _IMAGE_SIZE.reset(token)


def patch_grid(patches: int, image_size: Sequence[int] | None, what_to_do: str) -> tuple[int, ...]:
    """Return the grid of patches: of square patches of the images, or square where these do not fit.

    A network that makes its images square first has a square grid whatever their size.

    Args:
        patches: the number of patches.
        image_size: the size of the images, without batch and channels; None if it is not known.
        what_to_do: the end of a message: how to set the grid.

    Raises:
        ValueError: if no such grid has this number of patches, or two different ones have.
    """
    side = isqrt(max(patches, 0))
    grids = dict.fromkeys((_square_patches(patches, image_size), (side, side)))
    fitting = [grid for grid in grids if grid and prod(grid) == patches]
    if len(fitting) == 1 or (fitting and len(fitting[0]) != 2):
        return fitting[0]
    images = "" if image_size is None else f" of images of {_by(image_size)} pixels"
    if not fitting:
        raise ValueError(f"{patches} patches{images} do not fill a grid of square patches; {what_to_do}")
    raise ValueError(
        f"{patches} patches{images} are a grid of {fitting[0]}, or of {fitting[1]} if the network makes the"
        f" images square; {what_to_do}"
    )


def _square_patches(patches: int, image_size: Sequence[int] | None) -> tuple[int, ...]:
    """Return the grid of this number of square patches of the images; empty if there is none."""
    if not image_size or patches < 1:
        return ()
    side = (prod(image_size) / patches) ** (1 / len(image_size))
    grid = tuple(round(length / side) for length in image_size)
    return grid if prod(grid) == patches else ()


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def vit_grid(tokens: Tensor, prefix_tokens: int = 1, grid: tuple[int, ...] | None = None) -> Tensor:
    """Reshape the tokens of a vision transformer to a grid of patches, channels first.

    To be passed as ``reshape_transform``. `functools.partial` sets its arguments:
    ``reshape_transform=partial(vit_grid, prefix_tokens=5)``.

    Args:
        tokens: the output of a layer, ``(N, T, D)``: first the prefix tokens, then one token per patch in
            row-major order.
        prefix_tokens: the number of tokens before the patches (class token, registers); they are dropped.
        grid: the number of patches along each axis; None for the grid of square patches that fits the images,
            or a square grid if none fits or no metric calls the function.

    Returns:
        A tensor of shape ``(N, D, *grid)``.

    Raises:
        ValueError: if ``tokens`` is not three-dimensional; if the number of patches does not match the grid;
            if ``grid`` is None, the images are not square and the patches fit them and a square alike; or if
            ``grid`` fits only the transposed images.

    Example:
        ViT-B/16 divides an image of 224 x 224 pixels into 14 x 14 patches.

        >>> import torch
        >>> vit_grid(torch.zeros(2, 1 + 14 * 14, 768)).shape
        torch.Size([2, 768, 14, 14])

        One class token (9) and four patches, each with one channel:

        >>> vit_grid(torch.tensor([[[9.0], [1.0], [2.0], [3.0], [4.0]]]))
        tensor([[[[1., 2.],
                  [3., 4.]]]])

    """
    if tokens.ndim != 3:
        raise ValueError(
            f"vit_grid needs tokens (N, T, D), but the layer's output has shape {tuple(tokens.shape)}; choose"
            " a layer whose output is tokens, or another reshape_transform"
        )
    patches = tokens.shape[1] - prefix_tokens
    image_size = _IMAGE_SIZE.get()
    what_to_do = (
        f"the layer's output has {tokens.shape[1]} tokens, {prefix_tokens} of them before the patches: set"
        " prefix_tokens and grid with functools.partial(vit_grid, ...)"
    )
    if grid is None:
        grid = patch_grid(patches, image_size, what_to_do)
    elif prod(grid) != patches or patches < 1:
        raise ValueError(f"{patches} patches do not fill a grid of {grid}; {what_to_do}")
    elif image_size and tuple(grid) != tuple(grid)[::-1] == _square_patches(patches, image_size):
        raise ValueError(
            f"grid is {grid}, but images of {_by(image_size)} pixels have a grid of {tuple(grid)[::-1]}; give"
            " all images one shape"
        )
    return tokens[:, prefix_tokens:].transpose(1, 2).reshape(len(tokens), -1, *grid)


def swin_grid(activation: Tensor) -> Tensor:
    """Move the channels of a channels-last activation to dimension 1.

    To be passed as ``reshape_transform`` for Swin transformers of torchvision and timm.

    Args:
        activation: the output of a layer, ``(N, *spatial, D)``.

    Returns:
        A tensor of shape ``(N, D, *spatial)``.

    Example:
        The last stage of Swin-T has 7 x 7 positions of 768 channels.

        >>> import torch
        >>> swin_grid(torch.zeros(2, 7, 7, 768)).shape
        torch.Size([2, 768, 7, 7])

    """
    return activation.movedim(-1, 1)
