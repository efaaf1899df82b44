"""The guard of the user's model, and contexts that restore parts of its state."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import repeat
from operator import attrgetter
from statistics import mode
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

_hook_tables = attrgetter(
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


# A module with its submodules, training mode, kind of backward hooks, and the keys of its hooks by table.
_Module = tuple[nn.Module, dict[str, nn.Module | None], bool, bool | None, tuple[set[int], ...] | None]
# Module, name, buffer and a copy of its values.
_Buffer = tuple[nn.Module, str, Tensor, Tensor]


class ModelGuard:
    """A context in which the model is in evaluation mode, and after which its state is restored.

    Entering walks the module tree once and records submodules, modes, hooks, gradients, ``requires_grad``
    flags and buffers. Leaving restores what has changed, also after an error. Inside, the ``.grad`` of all
    parameters is None, so that a source that calls ``backward`` or ``zero_grad`` does not change the user's
    gradients. Parameters do not require gradients, so that an autograd graph keeps no activations for them
    and the user's gradient hooks do not run.

    Hooks that were added inside are removed. A hook that removed itself is not put back. Buffers of
    normalization layers are not copied, because in evaluation mode they are only read.

    Args:
        model: the network.
        role: what messages call it.

    Attributes:
        has_inference_tensors: whether a parameter or buffer was created in inference mode.

    Raises:
        ValueError: on entering, if a parameter or buffer is lazy, that is, has no shape yet.
    """

    def __init__(self, model: nn.Module, *, role: str = "model") -> None:
        self.model = model
        self.role = role

    def __enter__(self) -> "ModelGuard":
        self._note()
        self._is_used = False
        self._caches = (
            torch.is_autocast_cache_enabled(),
            parametrize._cache_enabled,
            parametrize._cache,
        )
        # A weight that autocast or `parametrize.cached` computes without a graph would remain in their cache,
        # and have no gradient in a training step of the same region.
        torch.set_autocast_cache_enabled(False)
        parametrize._cache_enabled, parametrize._cache = 0, {}
        try:
            self._prepare()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._restore()
        finally:
            autocast, parametrize._cache_enabled, parametrize._cache = self._caches
            torch.set_autocast_cache_enabled(autocast)
            del self._modules, self._parameters, self._buffers, self._caches

    def begin_pass(self) -> None:
        """Undo the changes that an earlier forward pass or a source has made to the model."""
        if self._is_used:
            _restore_buffers(self._buffers)
            self._restore_hooks_and_children()
            self._prepare()
        self._is_used = True

    def dtype_for(self, images: Tensor) -> torch.dtype:
        """Return the images' dtype if a parameter of the model has it, else that of most parameters.

        Raises:
            ValueError: if the model is on another device.
        """
        for parameter, _, _ in self._parameters[:1]:
            if parameter.device != images.device:
                raise ValueError(
                    f"input_tensor is on {images.device} but the {self.role} is on {parameter.device}; move"
                    f" one of them: images.to(device) or {self.role}.to(device)"
                )
        dtypes = [parameter.dtype for parameter, _, _ in self._parameters if parameter.is_floating_point()]
        return images.dtype if images.dtype in dtypes or not dtypes else mode(dtypes)

    def refuse_inference_tensors(self) -> None:
        """Refuse a model that was created in inference mode, because autograd cannot save its tensors.

        Raises:
            ValueError: always; the message names the first inference tensor.
        """
        name = _name_of(self.model, Tensor.is_inference)
        raise ValueError(
            f"the model's {name!r} was created under torch.inference_mode(), so autograd cannot use it;"
            " create or load the model outside of inference_mode, or copy it there with copy.deepcopy"
        )

    def _note(self) -> None:
        """Walk the module tree once and record its state."""
        self._modules: list[_Module] = []
        self._parameters: list[tuple[nn.Parameter, Tensor | None, bool]] = []
        self._buffers: list[_Buffer] = []
        self.has_inference_tensors = False
        modules, seen = [self.model], {id(self.model)}
        seen_parameters: set[int] = set()
        for module in modules:
            children = dict(module._modules)
            tables = _hook_tables(module)
            keys = tuple(map(set, tables)) if any(tables) else None
            self._modules.append((module, children, module.training, module._is_full_backward_hook, keys))
            for parameter in module._parameters.values():
                if parameter is not None and id(parameter) not in seen_parameters:
                    seen_parameters.add(id(parameter))
                    if isinstance(parameter, UninitializedTensorMixin):
                        self._refuse_lazy()
                    self.has_inference_tensors |= parameter.is_inference()
                    self._parameters.append((parameter, parameter.grad, parameter.requires_grad))
            for buffer in module._buffers.values():
                if buffer is not None:
                    if isinstance(buffer, UninitializedTensorMixin):
                        self._refuse_lazy()
                    self.has_inference_tensors |= buffer.is_inference()
            if module._buffers and not isinstance(module, _NormBase):
                self._buffers += _copied_buffers(module)
            for child in children.values():
                if child is not None and id(child) not in seen:
                    seen.add(id(child))
                    modules.append(child)

    def _refuse_lazy(self) -> None:
        """Refuse a lazy model, because the images of the metric would determine its shape.

        Raises:
            ValueError: always; the message names the first tensor that has no shape yet.
        """
        name = _name_of(self.model, lambda tensor: isinstance(tensor, UninitializedTensorMixin))
        raise ValueError(
            f"the {self.role}'s {name!r} is lazy and has no shape yet; run the {self.role} once before"
        )

    def _prepare(self) -> None:
        """Switch to evaluation mode, freeze the parameters, and set their gradients to None."""
        for module, *_ in self._modules:
            if module.training:
                self.model.eval()
                break
        for parameter, *_ in self._parameters:
            if parameter.grad is not None:
                parameter.grad = None
            if parameter.requires_grad and not self.has_inference_tensors:
                parameter.requires_grad_(False)

    def _restore(self) -> None:
        # The rest is restored even if the user's own train() fails, or a buffer has another shape now.
        try:
            _set_modes([(module, training) for module, _, training, *_ in self._modules])
        finally:
            try:
                _restore_buffers(self._buffers)
            finally:
                self._restore_parameters()
                self._restore_hooks_and_children()

    def _restore_parameters(self) -> None:
        for parameter, gradient, requires_grad in self._parameters:
            if parameter.requires_grad is not requires_grad:
                parameter.requires_grad_(requires_grad)
            if parameter.grad is not gradient:
                parameter.grad = gradient

    def _restore_hooks_and_children(self) -> None:
        for module, children, _, is_full_backward_hook, keys in self._modules:
            if module._is_full_backward_hook is not is_full_backward_hook:
                module._is_full_backward_hook = is_full_backward_hook
            tables = _hook_tables(module)
            # Most modules have no hooks before and after.
            if any(tables):
                for table, keys_before in zip(tables, keys or repeat(set()), strict=False):
                    for added in set(table) - keys_before:
                        del table[added]
            submodules = module._modules
            # The table of a scripted module is no dict, and not equal to one.
            if (submodules if type(submodules) is dict else dict(submodules)) != children:
                submodules.clear()
                submodules.update(children)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network without the wrappers of data parallelism and of ``torch.compile``.

    `DistributedDataParallel` communicates with the other ranks in every forward pass, also in evaluation
    mode, and hangs if the ranks have different numbers of batches. A compiled module does not run hooks.
    """
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def eager() -> AbstractContextManager[None]:
    """Return a context, to be entered at once, in which compiled modules run eagerly, so that hooks run."""
    return torch.compiler.set_stance("force_eager")  # type: ignore[no-any-return]


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the training or evaluation mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        _set_modes(modes)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Restore the values of all buffers afterwards."""
    buffers = [buffer for module in model.modules() for buffer in _copied_buffers(module)]
    try:
        yield
    finally:
        _restore_buffers(buffers)


@contextmanager
def weights_kept(model: nn.Module) -> Iterator[None]:
    """Restore the tensors of all weights and buffers afterwards, with their values, dtype and device."""
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
def hooks_muted(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove these hooks, and afterwards put them back in their old order among the others."""
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
    """Restore the attributes of these objects afterwards, whether added, changed or removed."""
    before = [(one, dict(vars(one))) for one in objects]
    try:
        yield
    finally:
        for one, attributes in before:
            vars(one).clear()
            vars(one).update(attributes)


def _set_modes(modes: Sequence[tuple[nn.Module, bool]]) -> None:
    # By train(): some modules, such as adapters, override it to change their weights with the mode.
    try:
        for module, training in modes:
            if module.training is not training:
                module.train(training)
    finally:
        for module, training in modes:
            if module.training is not training:
                module.training = training


def _copied_buffers(module: nn.Module) -> list[_Buffer]:
    """Return the buffers of a module that can be restored, with copies of their values."""
    return [
        (module, name, buffer, buffer.detach().clone())
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_inference() and not _is_expanded(buffer)
    ]


def _restore_buffers(buffers: Sequence[_Buffer]) -> None:
    for module, name, buffer, value in buffers:
        module._buffers[name] = buffer
        # Through .data, which does not invalidate the buffer in an autograd graph of the user.
        buffer.data.copy_(value)


def _is_expanded(tensor: Tensor) -> bool:
    """Return whether elements of a tensor share memory, so that it cannot be written to."""
    return tensor.layout is torch.strided and any(
        step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def _name_of(model: nn.Module, condition: Callable[[Tensor], bool]) -> str:
    """Return the name of the first parameter or buffer for which a condition is True."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return next(name for name, tensor in tensors if condition(tensor))
