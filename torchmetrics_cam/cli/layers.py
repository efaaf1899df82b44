"""``--layer``: which layer the maps are taken of, found by running the network once."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams import swin_grid, vit_grid
from torchmetrics_cam.cams.layers import layer_names
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.names import short

Reshape = Callable[[Tensor], Tensor]

_LISTED = 12
# A class token, a distillation token and registers: more than these come before no grid.
_MOST_PREFIX_TOKENS = 16


@dataclass(frozen=True)
class Choice:
    """Which layer, and why.

    Args:
        names: the names of the layers.
        reason: a sentence for people.
        reshape_transform: from what the layer gives to ``(N, channels, h, w)``; None where it gives that.
    """

    names: tuple[str, ...]
    reason: str
    reshape_transform: Reshape | None


@dataclass(frozen=True)
class _Output:
    """What a module gave.

    Args:
        started: when its call began, in steps of the run.
        ended: when it returned.
        shape: of its first tensor.
        reshape: to channels-first grids; None where it is one.
        grid: the positions, where it has any.
    """

    name: str
    module: nn.Module
    started: int
    ended: int
    shape: tuple[int, ...]
    reshape: Reshape | None = None
    grid: tuple[int, int] | None = None


@dataclass
class _Run:
    """What all modules gave in one run, in the order in which they returned."""

    side: tuple[int, int]
    outputs: list[_Output] = field(default_factory=list)
    ran: set[str] = field(default_factory=set)

    def last(self, name: str) -> _Output | None:
        """The last output of a module."""
        return next((output for output in reversed(self.outputs) if output.name == name), None)


def choose_layer(model: nn.Module, images: Tensor) -> Choice:
    """The layer for ``--layer auto``.

    It is the last one that gives a grid of positions: behind it are only the pooling and the classifier. In a
    transformer of tokens it is the norm before the last attention, because behind that attention only the
    class token counts and the positions have no gradient.

    Args:
        model: the network; it is as before afterwards.
        images: shape ``(N, C, H, W)``; the first is used.

    Raises:
        UsageError: if the network does not take the images, or no layer has positions.
    """
    run = _run(model, images)
    grids = [
        output
        for output in run.outputs
        if output.grid and len(output.shape) == 4 and not isinstance(output.module, _RESIZED)
    ]
    attention = [output for output in run.outputs if _is_attention(output)]
    last_grid = grids[-1] if grids else None
    if attention and (last_grid is None or last_grid.ended < max(output.ended for output in attention)):
        start = max(output.started for output in attention)
        norms = [
            output
            for output in run.outputs
            if output.ended < start and output.grid and len(output.shape) == 3 and _is_norm(output.module)
        ]
        if norms:
            chosen = norms[-1]
            height, width = chosen.grid or (0, 0)
            return Choice(
                (chosen.name,),
                f"{chosen.name} is the norm before the last attention, behind which only the class token"
                f" counts; it gives tokens {chosen.shape}, a grid of {height} x {width}",
                chosen.reshape,
            )
    if last_grid is None:
        raise UsageError(
            f"--layer auto found no layer of this {type(model).__name__} with positions to map; name one with"
            f" --layer. {_listed(run)}"
        )
    height, width = last_grid.grid or (0, 0)
    order = ", channels last" if last_grid.reshape is not None else ""
    return Choice(
        (last_grid.name,),
        f"{last_grid.name} is the last layer that gives a grid of positions, {height} x {width} (shape"
        f" {last_grid.shape}{order})",
        last_grid.reshape,
    )


def check_layer(model: nn.Module, images: Tensor, names: Sequence[str]) -> Reshape | None:
    """Make sure that the named layers have positions to map.

    Args:
        model: the network; it is as before afterwards.
        images: shape ``(N, C, H, W)``; the first is used.
        names: the names of the layers.

    Returns:
        How to bring what they give to ``(N, channels, h, w)``; None where they give that.

    Raises:
        UsageError: if a layer is not in the network, does not run, or has no positions, if layers need to be
            reshaped differently, or if the network does not take the images.
    """
    run = _run(model, images)
    try:
        found = layer_names(model, list(names))
    except (TypeError, ValueError) as error:
        message = str(error).replace("target_layer", "--layer").split(", and dict(")[0]
        raise UsageError(f"{message}. {_listed(run)}") from error
    outputs = []
    for name in found:
        output = run.last(name)
        if name == "" or output is None:
            what = "gives no tensor" if name in run.ran else "does not run"
            raise UsageError(
                f"--layer {name!r} {what} when the model classifies an image; name another. {_listed(run)}"
            )
        if output.grid is None:
            raise UsageError(
                f"--layer {name!r} gives shape {output.shape}, which has no positions to map; name a layer"
                f" before the pooling. {_listed(run)}"
            )
        outputs.append(output)
    if len({_kind(output) for output in outputs}) > 1:
        shapes = ", ".join(f"{output.name} {output.shape}" for output in outputs)
        raise UsageError(
            f"--layer names layers whose outputs are laid out differently ({shapes}); evaluate them in"
            " separate runs"
        )
    return outputs[0].reshape


# They give a grid of any size that was asked for, with no positions of its own.
_RESIZED = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def _kind(output: _Output) -> tuple[int, bool, tuple[int, int] | None]:
    tokens = len(output.shape) == 3
    return len(output.shape), output.reshape is None, output.grid if tokens else None


def _is_attention(output: _Output) -> bool:
    name = type(output.module).__name__.lower()
    return len(output.shape) == 3 and ("attention" in name or "attn" in name)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _listed(run: _Run) -> str:
    shapes = {output.name: output.shape for output in run.outputs if output.grid and output.name}
    if not shapes:
        return "No layer of the model has positions."
    listed = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[-_LISTED:])
    return f"Layers with positions, the last ones: {listed}"


def _run(model: nn.Module, images: Tensor) -> _Run:
    """Run the network on the first image, and note what every module gives."""
    run = _Run(side=(int(images.shape[-2]), int(images.shape[-1])))
    with _hooked(model, run), torch.no_grad():
        try:
            model(images[:1])
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            raise UsageError(
                f"the model does not take images of shape {tuple(images.shape[1:])}: {short(error)}; try"
                " another --image-size, such as the one it was trained with"
            ) from error
    return run


@contextmanager
def _hooked(model: nn.Module, run: _Run) -> Iterator[None]:
    handles = []
    training = [module for module in model.modules() if module.training]
    clock = iter(range(10**9))
    starts: dict[str, list[int]] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any) -> None:
            starts.setdefault(name, []).append(next(clock))

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, result: Any) -> None:
            run.ran.add(name)
            started, ended = starts[name].pop(), next(clock)
            tensor = _first_tensor(result)
            if tensor is not None:
                shape = tuple(tensor.shape)
                grid, reshape = _layout(shape, run)
                run.outputs.append(_Output(name, module, started, ended, shape, reshape, grid))

        return hook

    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(before(name)))
                handles.append(module.register_forward_hook(after(name)))
        model.eval()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True


def _first_tensor(result: Any) -> Tensor | None:
    if isinstance(result, Tensor):
        return result
    if isinstance(result, tuple | list) and result and isinstance(result[0], Tensor):
        return result[0]
    return None


def _layout(shape: tuple[int, ...], run: _Run) -> tuple[tuple[int, int] | None, Reshape | None]:
    """The grid that an output has, and what brings it to channels first."""
    if len(shape) == 4 and shape[0] == 1 and min(shape) > 0:
        _, first, second, third = shape
        # Of the two ways to read it, the one with the image's ratio of sides; channels first if in doubt.
        channels_last = _distortion(first, second, run) < _distortion(second, third, run)
        grid = (first, second) if channels_last else (second, third)
        return (grid, swin_grid if channels_last else None) if grid[0] * grid[1] > 1 else (None, None)
    if len(shape) == 3 and shape[0] == 1:
        return _token_grid(shape[1], run)
    return None, None


def _distortion(height: int, width: int, run: _Run) -> float:
    return abs(log(height / width) - log(run.side[0] / run.side[1]))


def _token_grid(tokens: int, run: _Run) -> tuple[tuple[int, int] | None, Reshape | None]:
    """The grid of tokens: that of the convolution before, else one of the image's ratio."""
    patches = [output.grid for output in run.outputs if len(output.shape) == 4 and output.grid]
    for height, width in reversed(patches):
        prefix = tokens - height * width
        if 0 <= prefix <= _MOST_PREFIX_TOKENS:
            return (height, width), _vit_grid(prefix, (height, width))
    for prefix in range(min(_MOST_PREFIX_TOKENS, tokens - 2) + 1):
        for height in range(1, tokens - prefix + 1):
            width, rest = divmod(tokens - prefix, height)
            if not rest and height * run.side[1] == width * run.side[0]:
                return (height, width), _vit_grid(prefix, (height, width))
    return None, None


def _vit_grid(prefix: int, grid: tuple[int, int]) -> Reshape:
    if grid[0] == grid[1]:
        return vit_grid if prefix == 1 else partial(vit_grid, prefix_tokens=prefix)
    return partial(vit_grid, prefix_tokens=prefix, grid=grid)
