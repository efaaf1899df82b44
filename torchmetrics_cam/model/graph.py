"""The autograd graph of a forward pass, from the target layers to the output."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Activations = dict[nn.Module, Tensor]


@contextmanager
def gradients_on() -> Iterator[None]:
    """Enable autograd inside the context, also within ``no_grad`` or ``inference_mode``."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def activation_graph(
    model: nn.Module, layers: Sequence[nn.Module], *, head_only: bool = True
) -> Iterator[Activations]:
    """Build the autograd graph of the forward passes inside the context from the target layers to the output.

    With ``head_only`` the layers before the first target layer run without a graph. The gradient with respect
    to an activation does not need it, and it would take most of the memory. Without ``head_only`` the
    gradient mode is left to the model, for models that switch it themselves.

    A forward pass under ``no_grad`` is not changed.

    Args:
        model: the network.
        layers: its target layers.
        head_only: whether the layers before the target layers run without a graph.

    Yields:
        The activation of each target layer in the last forward pass, with respect to which a score can be
        differentiated. The dict is emptied when the context ends.
    """
    activations: Activations = {}
    modes: list[bool] = []

    def enter(_module: nn.Module, _args: Any) -> None:
        modes.append(torch.is_grad_enabled())
        if head_only:
            torch.set_grad_enabled(False)

    def record(module: nn.Module, _args: Any, output: Any) -> Any:
        if not modes or not modes[-1]:
            return None
        if head_only:
            torch.set_grad_enabled(True)
        activation, with_tensor = _first_tensor(output)
        if activation is None:
            return None
        if not activation.is_floating_point():
            raise ValueError(
                f"layer {name_of(model, module)!r} returns {activation.dtype}, which has no gradient."
                f" {why_no_gradient(model)}"
            )
        with torch.enable_grad():
            if not activation.requires_grad:
                activation = activation.detach().requires_grad_()
            activations[module] = activation
            # The network continues with a clone, so that an in-place ReLU does not change the activation.
            return with_tensor(activation.clone())

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        if modes:
            torch.set_grad_enabled(modes.pop())

    with ExitStack() as stack:
        stack.callback(activations.clear)
        # Prepended, so that the hooks of an extractor see the tensor at which the graph starts.
        for layer in dict.fromkeys(layers):
            stack.callback(layer.register_forward_hook(record, prepend=True).remove)
        stack.callback(model.register_forward_hook(leave, always_call=True).remove)
        stack.callback(model.register_forward_pre_hook(enter).remove)
        yield activations


@contextmanager
def activations_of(layers: Sequence[nn.Module]) -> Iterator[Activations]:
    """Record the activations of layers in the forward passes inside the context, without a graph.

    Yields:
        The activation of each layer, in the order in which the layers ran.
    """
    activations: Activations = {}

    def record(module: nn.Module, _args: Any, output: Any) -> Any:
        activation, with_tensor = _first_tensor(output)
        if activation is None:
            return None
        activations[module] = activation
        # The network continues with a clone, as above.
        return with_tensor(activation.clone())

    with ExitStack() as stack:
        for layer in dict.fromkeys(layers):
            stack.callback(layer.register_forward_hook(record, prepend=True).remove)
        yield activations


@contextmanager
def refusing_repeats(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Refuse target layers that run several times in the forward pass inside the context.

    Raises:
        ValueError: when a layer runs for the second time.
    """
    executed = set()

    def count(layer: nn.Module, _args: Any, _output: Any) -> None:
        if layer in executed:
            raise ValueError(
                f"layer {name_of(model, layer)!r} runs several times in a forward pass of"
                f" {type(model).__name__}, and a map is computed from one run; choose a layer that runs once,"
                " such as the block that contains it. If the whole network runs several times, as in"
                " test-time augmentation or a siamese network, explain that network by itself"
            )
        executed.add(layer)

    with ExitStack() as stack:
        for layer in dict.fromkeys(layers):
            stack.callback(layer.register_forward_hook(count).remove)
        yield


def name_of(model: nn.Module, layer: nn.Module) -> str:
    """Return the name of a layer in the model."""
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    return names[layer]


def quantized_layer(model: nn.Module) -> str | None:
    """Return the name of the first quantized layer of the model; None if there is none."""
    quantized = (
        name for name, module in model.named_modules() if ".quantized." in f"{type(module).__module__}."
    )
    return next(quantized, None)


def why_no_gradient(model: nn.Module) -> str:
    """Return a sentence with the likely reason why a score has no gradient, and what to do."""
    quantized = quantized_layer(model)
    if quantized is not None:
        return (
            f"The model's {quantized!r} is quantized, and quantized layers have no gradient; explain the"
            " network as it was before quantization"
        )
    return (
        "If the score does not depend on the layer, choose another target_layer; otherwise remove what cuts"
        " the path between them from the model's forward and from logits_fn: no_grad, inference_mode, detach,"
        " or torch.utils.checkpoint with use_reentrant=True"
    )


def _first_tensor(output: Any) -> tuple[Tensor | None, Callable[[Tensor], Any]]:
    """Return the tensor of a layer's output, alone or first in a tuple, and how to replace it there."""
    if type(output) in (tuple, list) and output and isinstance(output[0], Tensor):
        return output[0], lambda tensor: type(output)((tensor, *output[1:]))
    return (output if isinstance(output, Tensor) else None), lambda tensor: tensor
