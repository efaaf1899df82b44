"""The autograd graph of a forward pass, from the target layers to the output."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

Activations = dict[nn.Module, Tensor]


class ActivationGraph(dict[nn.Module, Tensor]):
    """A context in which the autograd graph of a forward pass starts at the target layers.

    With ``head_only`` the layers before the first target layer run without a graph. The gradient with respect
    to an activation does not need it, and it would take most of the memory. Without ``head_only`` the
    gradient mode is left to the model, for models that switch it themselves. A forward pass under ``no_grad``
    is not changed.

    It maps each target layer to its activation in the last forward pass, with respect to which a score can be
    differentiated, and is emptied when the context ends.

    Args:
        model: the network.
        layers: its target layers.
        head_only: whether the layers before the target layers run without a graph.

    Raises:
        ValueError: in a forward pass, if a layer runs for the second time or returns no floating point
            numbers.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], *, head_only: bool = True) -> None:
        super().__init__()
        self.model = model
        self.layers = layers
        self.head_only = head_only
        self._modes: list[bool] = []

    def __enter__(self) -> "ActivationGraph":
        self._handles = [
            *_hooked(self.layers, self._record),
            self.model.register_forward_hook(self._leave, always_call=True),
            self.model.register_forward_pre_hook(self._enter),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self.clear()

    def _enter(self, _module: nn.Module, _args: Any) -> None:
        self.clear()
        self._modes.append(torch.is_grad_enabled())
        if self.head_only:
            torch.set_grad_enabled(False)

    def _record(self, module: nn.Module, _args: Any, output: Any) -> Any:
        if not self._modes or not self._modes[-1]:
            return None
        if self.head_only:
            torch.set_grad_enabled(True)
        activation, with_tensor = _first_tensor(output)
        if activation is None:
            return None
        if module in self:
            raise _repeated(self.model, module)
        if not activation.is_floating_point():
            raise ValueError(
                f"layer {name_of(self.model, module)!r} returns {activation.dtype}, which has no gradient."
                f" {why_no_gradient(self.model)}"
            )
        with torch.enable_grad():
            if not activation.requires_grad:
                activation = activation.detach().requires_grad_()
            self[module] = activation
            # The network continues with a clone, so that an in-place ReLU does not change the activation.
            return with_tensor(activation.clone())

    def _leave(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if self._modes:
            torch.set_grad_enabled(self._modes.pop())


@contextmanager
def activations_of(
    model: nn.Module,
    layers: Sequence[nn.Module],
    activations: Activations,
    *,
    counted: Sequence[nn.Module] = (),
) -> Iterator[None]:
    """Record the activations of layers in the forward pass inside the context, without a graph.

    Args:
        model: the network.
        layers: its layers.
        activations: where the activation of each layer is added, in the order in which the layers run.
        counted: layers that are not recorded, but may not run twice either.

    Raises:
        ValueError: when a layer runs for the second time.
    """
    executed = set()

    def record(module: nn.Module, _args: Any, output: Any) -> Any:
        count(module)
        activation, with_tensor = _first_tensor(output)
        if activation is None:
            return None
        activations[module] = activation
        # The network continues with a clone, as above.
        return with_tensor(activation.clone())

    def count(module: nn.Module, *_: Any) -> None:
        if module in executed:
            raise _repeated(model, module)
        executed.add(module)

    # A recorded layer is counted already.
    others = [layer for layer in counted if layer not in layers]
    handles = [*_hooked(layers, record), *_hooked(others, count)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _repeated(model: nn.Module, layer: nn.Module) -> ValueError:
    return ValueError(
        f"layer {name_of(model, layer)!r} runs several times in a forward pass of {type(model).__name__}, and"
        " a map is computed from one run; choose a layer that runs once, such as the block that contains it."
        " If the whole network runs several times, as in test-time augmentation or a siamese network, explain"
        " that network by itself"
    )


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


def _hooked(layers: Sequence[nn.Module], hook: Callable[..., Any]) -> list[RemovableHandle]:
    """Register a forward hook on layers; it runs first, so that hooks of an extractor see what it returns."""
    return [layer.register_forward_hook(hook, prepend=True) for layer in dict.fromkeys(layers)]


def _first_tensor(output: Any) -> tuple[Tensor | None, Callable[[Tensor], Any]]:
    """Return the tensor of a layer's output, alone or first in a tuple, and how to replace it there."""
    if type(output) in (tuple, list) and output and isinstance(output[0], Tensor):
        return output[0], lambda tensor: type(output)((tensor, *output[1:]))
    return (output if isinstance(output, Tensor) else None), lambda tensor: tensor
