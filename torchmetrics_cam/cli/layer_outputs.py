"""The outputs of all layers in one run of a network, and their spatial grids."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf, log, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from torchmetrics_cam.cams import swin_grid, vit_grid
from torchmetrics_cam.cli.errors import usage_error
from torchmetrics_cam.model.scores import logits_of

Reshape = Callable[[Tensor], Tensor]
Grid = tuple[int, int]

_LAYERS_LISTED = 12
# A class token, a distillation token and registers; no network has more tokens before its grid.
_MAX_PREFIX_TOKENS = 16
_CHANNELS_FIRST_MODULES = (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d)


@dataclass(eq=False)
class LayerOutput:
    """The output of a module in the run.

    Args:
        shape: the shape of its first tensor; empty if it returned none.
        in_attention: whether the module is part of an attention module.
        tensor: the tensor, if it is in the autograd graph.
        grid: height and width of the spatial grid, if it has one.
        prefix_tokens: the number of tokens before the grid.
        reshape: a function from the output to a channels-first grid; None if the output is one.
        positions_used: the number of positions of the grid that the score depends on; None if unknown.
        prefix_used: whether the score depends on tokens before the grid.
    """

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    in_attention: bool
    tensor: Tensor | None = None
    grid: Grid | None = None
    prefix_tokens: int = 0
    reshape: Reshape | None = None
    positions_used: int | None = None
    prefix_used: bool = False

    @property
    def in_branch(self) -> bool:
        """Whether the output is a part of a computation, such as the keys of an attention."""
        return self.in_attention or (len(self.shape) == 3 and isinstance(self.module, nn.Linear))

    @property
    def used(self) -> bool:
        """Whether the score depends on the grid; a single token that it depends on is a class token."""
        return self.positions_used is None or self.positions_used > (len(self.shape) == 3)

    @property
    def used_token_in_grid(self) -> bool:
        """Whether the score depends on one token only, which is in the place of a patch."""
        return (
            len(self.shape) == 3 and self.positions_used == 1 and not self.prefix_used and not self.in_branch
        )


@dataclass
class NetworkRun:
    """The outputs of all modules in one run of the model, in the order in which they returned.

    Args:
        image_size: height and width of the image.
        names: the names of the modules; the model itself has none.
        traced: whether the autograd graph is recorded, for `trace`.
        outputs: the outputs.
        calls: the number of calls of each module, by its name.
    """

    image_size: tuple[int, int]
    names: dict[nn.Module, str]
    traced: bool
    outputs: list[LayerOutput] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    _attention_depth: int = 0
    _grids: dict[Grid, None] = field(default_factory=dict)
    _token_counts: set[int] = field(default_factory=set)
    _channels_first_shapes: set[tuple[int, ...]] = field(default_factory=set)

    def before(self, module: nn.Module, arguments: Any) -> None:
        """Record the beginning of the call of a module."""
        self._attention_depth += _is_attention(module)
        if self.traced:
            # Also a backbone that runs under no_grad is explained, with the graph from the target layer on.
            torch.set_grad_enabled(True)

    def after(self, module: nn.Module, arguments: Any, result: Any) -> Any:
        """Record the output of a module."""
        self._attention_depth -= _is_attention(module)
        if module not in self.names:
            return None
        sequence = result if isinstance(result, tuple | list) else (result,)
        first = sequence[0] if sequence and isinstance(sequence[0], Tensor) else None
        output = LayerOutput(
            self.names[module],
            module,
            () if first is None else tuple(first.shape),
            in_attention=self._attention_depth > 0,
        )
        self.outputs.append(output)
        self.calls[output.name] += 1
        if first is None or not first.numel():
            return None
        self._find_grid(output)
        if not first.requires_grad or not (result is first or type(result) in (tuple, list)):
            return None
        # A view, so that the gradient of an output that is also the input covers only the network after it.
        output.tensor = first.view_as(first)
        return output.tensor if result is first else type(result)((output.tensor, *sequence[1:]))

    def trace(self, score: Tensor) -> None:
        """Determine which positions of the grids the score depends on.

        The gradient NaN reaches every position that the score is computed from, also through weights that are
        0, as those of a classifier before its training.
        """
        outputs = [output for output in self.outputs if output.grid and output.tensor is not None]
        tensors = [output.tensor for output in outputs if output.tensor is not None]
        gradients = torch.autograd.grad(score, tensors, torch.full_like(score, torch.nan), allow_unused=True)
        for output in self.outputs:
            output.positions_used = 0
        for output, gradient in zip(outputs, gradients, strict=True):
            if gradient is not None:
                reached = gradient.isnan()
                on_grid = reached if output.reshape is None else output.reshape(reached)
                output.positions_used = int(on_grid.any(1).sum())
                output.prefix_used = bool(reached.sum() > on_grid.sum())

    def last(self, name: str) -> LayerOutput | None:
        """Return the last output of a module."""
        return next((output for output in reversed(self.outputs) if output.name == name), None)

    def layers_with_grid(self) -> str:
        """Return the end of a message: the last layers that have a spatial grid and run once."""
        once = [output for output in self.outputs if output.grid and self.calls[output.name] == 1]
        shapes = {output.name: output.shape for output in once}
        if not shapes:
            return "No layer of the model has a spatial grid and runs once."
        listed = [f"{name} {shape}" for name, shape in shapes.items()][-_LAYERS_LISTED:]
        return f"The last layers with a spatial grid are {', '.join(listed)}"

    def _find_grid(self, output: LayerOutput) -> None:
        """Find the spatial grid of an output, and the function that brings it to channels first."""
        shape = output.shape
        if len(shape) == 3 and 1 in shape[:2] and shape[2] > 1:
            self._find_grid_of_tokens(output, prod(shape[:2]))
        elif len(shape) == 4 and shape[0] == 1:
            self._find_grid_of_image(output)

    def _find_grid_of_tokens(self, output: LayerOutput, tokens: int) -> None:
        """Find the grid of tokens with the fewest tokens before it.

        It is a grid that an earlier output had, half of one, or one of square patches that fill the image.
        """
        height, width = self.image_size
        halves = [((rows + 1) // 2, (columns + 1) // 2) for rows, columns in self._grids]
        filling = [
            (rows, rows * width // height)
            for rows in range(1, height + 1)
            if not height % rows and not rows * width % height
        ]
        grids = [grid for grid in (*reversed(self._grids), *halves, *filling) if grid != (1, 1)]
        for prefix in range(min(_MAX_PREFIX_TOKENS, tokens // 2) + 1):
            grid = next((grid for grid in grids if prod(grid) == tokens - prefix), None)
            if grid:
                reshape = self._vit_grid(prefix, grid)
                # Sequence first, as in torch.nn.Transformer by default.
                output.reshape = reshape if output.shape[0] == 1 else partial(_sequence_first, reshape)
                output.grid, output.prefix_tokens = grid, prefix
                self._grids[grid] = None
                self._token_counts.add(tokens)
                return

    def _find_grid_of_image(self, output: LayerOutput) -> None:
        """Find the grid of an output with two spatial axes, before or after the channels."""
        shape = output.shape
        if isinstance(output.module, _CHANNELS_FIRST_MODULES):
            self._channels_first_shapes.add(shape)
        is_image = shape in self._channels_first_shapes
        first, last = (shape[1], shape[2]), (shape[2], shape[3])
        # Of two interpretations, that with the aspect ratio closer to the image's; if equal, channels first.
        channels_last = not is_image and self._distortion(*first) < self._distortion(*last)
        grid = first if channels_last else last
        fits = self._fits(grid)
        # Queries, keys and attention weights have one axis for the tokens, or two.
        of_attention = not is_image and self._token_counts & set(grid if fits else shape)
        if grid != (1, 1) and not of_attention:
            output.grid, output.reshape = grid, swin_grid if channels_last else None
            if fits or is_image:
                self._grids[grid] = None

    def _vit_grid(self, prefix: int, grid: Grid) -> Reshape:
        # Without a given grid, images of other sizes have other grids.
        if grid[0] == grid[1] and self.image_size[0] == self.image_size[1]:
            return vit_grid if prefix == 1 else partial(vit_grid, prefix_tokens=prefix)
        return partial(vit_grid, prefix_tokens=prefix, grid=grid)

    def _distortion(self, height: int, width: int) -> float:
        return abs(log(height / width) - log(self.image_size[0] / self.image_size[1]))

    def _fits(self, grid: Grid) -> bool:
        """Return whether one stride along both axes of the image gives the grid, rounded up or down."""
        axes = list(zip(self.image_size, grid, strict=True))
        smallest = max(size / (length + 1) for size, length in axes)
        return smallest < min(size / (length - 1) if length > 1 else inf for size, length in axes)


def run_network(model: nn.Module, images: Tensor, *, traced: bool = False) -> NetworkRun:
    """Run the network on the first image in evaluation mode; trace its score on request."""
    names = {module: name for name, module in model.named_modules() if name}
    run = NetworkRun((int(images.shape[-2]), int(images.shape[-1])), names, traced)
    message = f"the model does not accept images of shape {tuple(images.shape[1:])}"
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with (
            usage_error(message, "; try another --image-size, such as the one it was trained with"),
            torch.set_grad_enabled(traced),
        ):
            with (
                register_module_forward_pre_hook(run.before),
                register_module_forward_hook(run.after),
            ):
                # Layers may work in place, but not on a leaf of the graph.
                scores = logits_of(model(images[:1].clone().requires_grad_(traced).clone()))
            # Without the hooks, because checkpointed layers run again here.
            if traced:
                run.trace(scores.flatten()[scores.argmax()])
    finally:
        for module in training:
            module.training = True
    return run


def _is_attention(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return "attention" in name or "attn" in name


def _sequence_first(reshape: Reshape, tokens: Tensor) -> Tensor:
    return reshape(tokens.transpose(0, 1))
