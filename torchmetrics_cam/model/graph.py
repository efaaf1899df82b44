"""The autograd graph of a clean forward pass: from the target layers on, and no further."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def gradients_on() -> Iterator[None]:
    """Autograd works inside, whatever ``no_grad`` or ``inference_mode`` surrounds it."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


class ActivationGraph:
    """What the target layers gave in the last forward, as tensors that a score can be differentiated by."""

    def __init__(self) -> None:
        self.activations: dict[nn.Module, Tensor] = {}


@contextmanager
def activation_graph(
    model: nn.Module, layers: Sequence[nn.Module], *, head_only: bool = True
) -> Iterator[ActivationGraph]:
    """Forwards inside build an autograd graph from the target layers on, and record what those layers give.

    With ``head_only`` the part of the network before the first layer reached runs without a graph: a gradient
    with respect to an activation needs nothing of it, and most of the memory goes there. Without it the model
    runs as it is written; that serves a model which turns gradients off and on by itself.

    Where gradients are off when the model is called (a source may run it under ``no_grad``), nothing is
    changed.
    """
    graph = ActivationGraph()
    modes: list[bool] = []

    def enter(_module: nn.Module, _args: Any) -> None:
        modes.append(torch.is_grad_enabled())
        if head_only:
            torch.set_grad_enabled(False)

    def reach(module: nn.Module, _args: Any, output: Any) -> Any:
        if not modes or not modes[-1]:
            return None
        if head_only:
            torch.set_grad_enabled(True)
        activation, replace = _first_tensor(output)
        if activation is None:
            return None
        with torch.enable_grad():
            if not activation.requires_grad:
                activation = activation.detach().requires_grad_()
            graph.activations[module] = activation
            # The clone is what goes on: an in-place ReLU may follow, and must not change what was recorded.
            return replace(activation.clone())

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        if modes:
            torch.set_grad_enabled(modes.pop())

    with ExitStack() as stack:
        stack.callback(graph.activations.clear)
        # First before the extractor's own hooks, so that those see the tensor that starts the graph.
        for layer in dict.fromkeys(layers):
            stack.callback(layer.register_forward_hook(reach, prepend=True).remove)
        stack.callback(model.register_forward_hook(leave, always_call=True).remove)
        stack.callback(model.register_forward_pre_hook(enter).remove)
        yield graph


@contextmanager
def activations_of(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """What the layers give in forwards inside, in the order in which they run; no graph is made for it."""
    activations: dict[nn.Module, Tensor] = {}

    def reach(module: nn.Module, _args: Any, output: Any) -> Any:
        activation, replace = _first_tensor(output)
        if activation is None:
            return None
        activations[module] = activation
        # The clone is what goes on, as above.
        return replace(activation.clone())

    with ExitStack() as stack:
        for layer in dict.fromkeys(layers):
            stack.callback(layer.register_forward_hook(reach, prepend=True).remove)
        yield activations


def refuse_inference_tensors(model: nn.Module) -> None:
    """Autograd cannot save a tensor that was made in inference mode.

    Raises:
        ValueError: if a parameter or buffer of the model is one.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_inference():
            raise ValueError(
                f"the model's {name!r} was made under torch.inference_mode(), and no gradient can pass such a"
                " tensor; build or load the model outside of inference_mode, or copy.deepcopy it there"
            )


def _first_tensor(output: Any) -> tuple[Tensor | None, Any]:
    """The tensor that a layer gives, alone or first in a tuple, and how to put another in its place."""
    if isinstance(output, Tensor):
        return output, lambda tensor: tensor
    if type(output) in (tuple, list) and output and isinstance(output[0], Tensor):
        return output[0], lambda tensor: type(output)((tensor, *output[1:]))
    return None, None
