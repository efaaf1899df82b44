"""``--layer``: the target layer, checked or chosen by running the network once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import log
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from torchmetrics_cam.cams import swin_grid, vit_grid
from torchmetrics_cam.cams.layers import layer_names
from torchmetrics_cam.cli.errors import UsageError, usage_error

Reshape = Callable[[Tensor], Tensor]

_LAYERS_LISTED = 12
# A class token, a distillation token and registers; no network has more tokens before its grid.
_MAX_PREFIX_TOKENS = 16
# The size of their output is an argument, so a grid there does not show that the layer has spatial positions.
_RESIZING_MODULES = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class LayerChoice:
    """The target layers, and why they were chosen.

    Args:
        names: the names of the layers.
        reason: why they were chosen, for the report.
        reshape_transform: a function from the output of the layer to ``(N, channels, h, w)``; None if the
            output already has this shape.
    """

    names: tuple[str, ...]
    reason: str
    reshape_transform: Reshape | None


@dataclass(frozen=True)
class _Output:
    """The output of a module.

    Args:
        earlier: the number of outputs that existed when its call began.
        shape: the shape of its first tensor; empty if it returned none.
        grid: height and width of the spatial grid, if it has one.
        reshape: a function from the output to a channels-first grid; None if the output is one.
    """

    name: str
    module: nn.Module
    earlier: int
    shape: tuple[int, ...]
    grid: tuple[int, int] | None
    reshape: Reshape | None


@dataclass
class _Run:
    """The outputs of all modules in one run of the model, in the order in which they returned.

    Args:
        image_size: height and width of the image.
        names: the names of the modules; the model itself has none.
    """

    image_size: tuple[int, int]
    names: dict[nn.Module, str]
    outputs: list[_Output] = field(default_factory=list)
    _earlier: dict[nn.Module, list[int]] = field(default_factory=dict)

    def before(self, module: nn.Module, arguments: Any) -> None:
        """Record the number of outputs before the call of a module."""
        self._earlier.setdefault(module, []).append(len(self.outputs))

    def after(self, module: nn.Module, arguments: Any, result: Any) -> None:
        """Record the output of a module."""
        earlier = self._earlier[module].pop()
        if module in self.names:
            first = result[0] if isinstance(result, tuple | list) and result else result
            shape = tuple(first.shape) if isinstance(first, Tensor) else ()
            grid, reshape = _layout(shape, self)
            self.outputs.append(_Output(self.names[module], module, earlier, shape, grid, reshape))

    def last(self, name: str) -> _Output | None:
        """Return the last output of a module."""
        return next((output for output in reversed(self.outputs) if output.name == name), None)

    def layers_with_grid(self) -> str:
        """Return the end of a message: the last layers that have a spatial grid."""
        shapes = {output.name: output.shape for output in self.outputs if output.grid}
        if not shapes:
            return "No layer of the model has a spatial grid."
        listed = [f"{name} {shape}" for name, shape in shapes.items()][-_LAYERS_LISTED:]
        return f"The last layers with a spatial grid are {', '.join(listed)}"


def choose_layer(model: nn.Module, images: Tensor) -> LayerChoice:
    """Return the layer for ``--layer auto``.

    In a convolutional network, this is the last layer with a spatial grid: only pooling and the classifier
    follow. In a transformer with a class token, it is the normalization layer before the last attention:
    after that attention, only the class token reaches the classifier, and the other tokens have no gradient.

    Args:
        model: the network, which is not changed.
        images: shape ``(N, C, H, W)``; the first is used.

    Raises:
        UsageError: if the network does not accept the images, or no layer has a spatial grid.
    """
    run = _run(model, images)
    grids = [
        output
        for output in run.outputs
        if output.grid and len(output.shape) == 4 and not isinstance(output.module, _RESIZING_MODULES)
    ]
    attention = [output for output in run.outputs if _is_attention(output)]
    if attention and (not grids or run.outputs.index(grids[-1]) < run.outputs.index(attention[-1])):
        norms = [
            output
            for output in run.outputs[: max(output.earlier for output in attention)]
            if output.grid and len(output.shape) == 3 and _is_norm(output.module)
        ]
        if norms:
            norm = norms[-1]
            reason = (
                f"{norm.name} is the norm before the last attention, after which only the class token is"
                f" used; it outputs tokens {norm.shape}, a grid of {_size(norm)}"
            )
            return LayerChoice((norm.name,), reason, norm.reshape)
    if not grids:
        raise UsageError(
            f"--layer auto found no layer of this {type(model).__name__} with a spatial grid; name one with"
            f" --layer. {run.layers_with_grid()}"
        )
    last = grids[-1]
    order = ", channels last" if last.reshape is not None else ""
    reason = f"{last.name} is the last layer with a spatial grid, {_size(last)} (shape {last.shape}{order})"
    return LayerChoice((last.name,), reason, last.reshape)


def check_layer(model: nn.Module, images: Tensor, names: Sequence[str]) -> Reshape | None:
    """Check that the named layers have spatial grids.

    Args:
        model: the network, which is not changed.
        images: shape ``(N, C, H, W)``; the first is used.
        names: the names of the layers.

    Returns:
        The function from their outputs to ``(N, channels, h, w)``; None if the outputs have this shape.

    Raises:
        UsageError: if a layer is not in the network, does not run, or has no spatial grid, if layers need to
            be reshaped differently, or if the network does not accept the images.
    """
    run = _run(model, images)
    try:
        existing_names = layer_names(model, list(names))
    except (TypeError, ValueError) as error:
        message = str(error).replace("target_layer", "--layer").split(", and dict(")[0]
        raise UsageError(f"{message}. {run.layers_with_grid()}") from error
    outputs = []
    for name in existing_names:
        output = run.last(name)
        if output is None or not output.shape:
            problem = "does not run" if output is None else "returns no tensor"
            raise UsageError(
                f"--layer {name!r} {problem} when the model classifies an image; name another layer."
                f" {run.layers_with_grid()}"
            )
        if output.grid is None:
            raise UsageError(
                f"--layer {name!r} has output of shape {output.shape}, which has no spatial grid; name a"
                f" layer before the pooling. {run.layers_with_grid()}"
            )
        outputs.append(output)
    if len({_output_format(output) for output in outputs}) > 1:
        shapes = ", ".join(f"{output.name} {output.shape}" for output in outputs)
        raise UsageError(
            f"--layer names layers whose outputs have different formats ({shapes}); evaluate them in separate"
            " runs"
        )
    return outputs[0].reshape


def _size(output: _Output) -> str:
    height, width = output.grid or (0, 0)
    return f"{height} x {width}"


def _output_format(output: _Output) -> tuple[int, bool, tuple[int, int] | None]:
    dimensions = len(output.shape)
    return dimensions, output.reshape is None, output.grid if dimensions == 3 else None


def _is_attention(output: _Output) -> bool:
    name = type(output.module).__name__.lower()
    return len(output.shape) == 3 and ("attention" in name or "attn" in name)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _run(model: nn.Module, images: Tensor) -> _Run:
    """Run the network on the first image in evaluation mode."""
    names = {module: name for name, module in model.named_modules() if name}
    run = _Run((int(images.shape[-2]), int(images.shape[-1])), names)
    message = f"the model does not accept images of shape {tuple(images.shape[1:])}"
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with (
            usage_error(message, "; try another --image-size, such as the one it was trained with"),
            register_module_forward_pre_hook(run.before),
            register_module_forward_hook(run.after),
            torch.no_grad(),
        ):
            model(images[:1])
    finally:
        for module in training:
            module.training = True
    return run


def _layout(shape: tuple[int, ...], run: _Run) -> tuple[tuple[int, int] | None, Reshape | None]:
    """Return the grid of an output, and the function that brings it to channels first."""
    if len(shape) == 3 and shape[0] == 1:
        return _token_grid(shape[1], run)
    if len(shape) != 4 or shape[0] != 1 or min(shape) < 1:
        return None, None
    first, last = (shape[1], shape[2]), (shape[2], shape[3])
    # Of the two interpretations, that with the aspect ratio closer to the image's; if equal, channels first.
    channels_last = _distortion(*first, run) < _distortion(*last, run)
    grid = first if channels_last else last
    return (grid, swin_grid if channels_last else None) if grid != (1, 1) else (None, None)


def _distortion(height: int, width: int, run: _Run) -> float:
    return abs(log(height / width) - log(run.image_size[0] / run.image_size[1]))


def _token_grid(tokens: int, run: _Run) -> tuple[tuple[int, int] | None, Reshape | None]:
    """Return the grid of tokens: that of an earlier convolution, else one with the image's aspect ratio."""
    patch_grids = [output.grid for output in run.outputs if len(output.shape) == 4 and output.grid]
    for height, width in reversed(patch_grids):
        prefix = tokens - height * width
        if 0 <= prefix <= _MAX_PREFIX_TOKENS:
            return (height, width), _vit_grid(prefix, (height, width))
    for prefix in range(min(_MAX_PREFIX_TOKENS, tokens - 2) + 1):
        for height in range(1, tokens - prefix + 1):
            width, rest = divmod(tokens - prefix, height)
            if not rest and height * run.image_size[1] == width * run.image_size[0]:
                return (height, width), _vit_grid(prefix, (height, width))
    return None, None


def _vit_grid(prefix: int, grid: tuple[int, int]) -> Reshape:
    if grid[0] == grid[1]:
        return vit_grid if prefix == 1 else partial(vit_grid, prefix_tokens=prefix)
    return partial(vit_grid, prefix_tokens=prefix, grid=grid)
