"""All that touches the user's model: every context here puts back what it found, also after an error."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

_HOOK_TABLES = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@contextmanager
def untouched(model: nn.Module, *, compiled: bool = False) -> Iterator[None]:
    """Evaluation mode inside; afterwards modes, gradients, buffers and hooks are what they were.

    Parameters have no ``.grad`` inside, so that a source which calls ``backward`` or ``zero_grad`` cannot
    reach the user's gradients. What is compiled runs as it is written, so that hooks are seen, unless
    ``compiled``.
    """
    with ExitStack() as stack:
        if not compiled:
            stack.enter_context(_uncompiled())
        stack.enter_context(_no_cached_weights())
        stack.enter_context(_submodules_kept(model))
        stack.enter_context(_hooks_kept(model))
        stack.enter_context(_parameters_kept(model))
        # Observers of quantization write to their buffers in evaluation mode too; batch norm does not.
        stack.enter_context(buffers_kept(model, but=_NormBase))
        stack.enter_context(_evaluating(model))
        yield


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside of wrappers that change how it runs, not what it computes.

    `DistributedDataParallel` talks to the other ranks in every forward pass, also in evaluation, and never
    returns where their batches are uneven. A compiled module does not see hooks.
    """
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Modules that are compiled inside of the model run as they are written."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    with modes_kept(model):
        if any(module.training for module in model.modules()):
            model.eval()
        yield


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Training and evaluation modes of all modules are afterwards what they were."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        # Through train(): some modules override it to change their weights with the mode, as adapters do.
        for module, training in modes:
            if module.training is not training:
                module.train(training)
        for module, training in modes:
            module.training = training


@contextmanager
def _parameters_kept(model: nn.Module) -> Iterator[None]:
    before = [(parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient, requires_grad in before:
            if parameter.requires_grad is not requires_grad:
                parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


@contextmanager
def buffers_kept(model: nn.Module, *, but: type[nn.Module] | tuple[()] = ()) -> Iterator[None]:
    """Buffers of all modules ``but`` those of a type are afterwards what they were."""
    before = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        if not isinstance(module, but)
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_inference() and not _is_expanded(buffer)
    ]
    try:
        yield
    finally:
        for module, name, buffer, value in before:
            module._buffers[name] = buffer
            # Through .data: a graph of the user may hold the buffer, and would see that it was written to.
            buffer.data.copy_(value)


def _is_expanded(tensor: torch.Tensor) -> bool:
    """Whether values share memory: nobody can write to such a tensor in place, not even to put it back."""
    return tensor.layout is torch.strided and any(
        step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards weights and buffers are the tensors that they were: same values, dtype and device."""
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, tensors in buffers:
            module._buffers.update(tensors)


@contextmanager
def _submodules_kept(model: nn.Module) -> Iterator[None]:
    """Layers that were exchanged for others, as Ablation-CAM does, are back in their places."""
    before = [(module, dict(module._modules)) for module in model.modules()]
    try:
        yield
    finally:
        for module, submodules in before:
            # A scripted module has a table of its own kind, which is equal to none.
            if dict(module._modules) != submodules:
                module._modules.clear()
                module._modules.update(submodules)


@contextmanager
def _hooks_kept(model: nn.Module) -> Iterator[None]:
    """Hooks that were added are removed. One that removed itself stays away: that is what it is made for."""
    modules = list(model.modules())
    before = [[set(getattr(module, table)) for table in _HOOK_TABLES] for module in modules]
    kinds = [module._is_full_backward_hook for module in modules]
    try:
        yield
    finally:
        for module, tables, kind in zip(modules, before, kinds, strict=True):
            module._is_full_backward_hook = kind
            for name, known in zip(_HOOK_TABLES, tables, strict=True):
                table = getattr(module, name)
                for added in set(table) - known:
                    del table[added]


@contextmanager
def _no_cached_weights() -> Iterator[None]:
    """A weight that autocast or `parametrize.cached` made without a graph would stay in their cache.

    It would cut the gradients of a training step in the same region.
    """
    autocast, enabled, cache = (
        torch.is_autocast_cache_enabled(),
        parametrize._cache_enabled,
        parametrize._cache,
    )
    try:
        torch.set_autocast_cache_enabled(False)
        parametrize._cache_enabled, parametrize._cache = 0, {}
        yield
    finally:
        torch.set_autocast_cache_enabled(autocast)
        parametrize._cache_enabled, parametrize._cache = enabled, cache


def refuse_lazy_modules(model: nn.Module) -> None:
    """A lazy module takes its shape from the first images that it sees, which must not be those of a metric.

    Raises:
        ValueError: if a parameter or buffer has no shape yet.
    """
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(f"the model's {name!r} is lazy and has no shape yet; run the model once before")


@contextmanager
def hooks_muted(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """These hooks are taken off, and afterwards stand again among the others in their old order."""
    before = []
    for handle in handles:
        table = handle.hooks_dict_ref()
        if table is not None and handle.id in table:
            before.append((table, dict(table), handle.id))
            del table[handle.id]
    try:
        yield
    finally:
        for table, hooks, muted in reversed(before):
            now = dict(table)
            table.clear()
            table.update({key: hook for key, hook in hooks.items() if key in now or key == muted})
            table.update(now)


@contextmanager
def attributes_kept(*objects: Any) -> Iterator[None]:
    """Attributes that were set, changed or removed are afterwards what they were."""
    before = [(one, dict(vars(one))) for one in objects]
    try:
        yield
    finally:
        for one, attributes in before:
            vars(one).clear()
            vars(one).update(attributes)
