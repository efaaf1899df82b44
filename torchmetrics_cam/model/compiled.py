"""A compiled copy of a network, which scores perturbed images in place of the network."""

import copy
import itertools
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from torchmetrics_cam.model.guard import eager

# By type of convolution: its function, and the batch norm after it. Subclasses of the batch norms and
# parametrized modules have other types, and may compute something else.
_FOLDABLE: dict[type[nn.Module], Any] = {
    nn.Conv1d: (nn.functional.conv1d, nn.BatchNorm1d),
    nn.Conv2d: (nn.functional.conv2d, nn.BatchNorm2d),
    nn.Conv3d: (nn.functional.conv3d, nn.BatchNorm3d),
}
# In half precision, and in the TF32 of GPUs, folded weights are rounded by more than scores may differ.
_FOLDED_TENSORS = ({(torch.float32, "cpu")}, {(torch.float64, "cpu")})
_LONGEST_REASON = 300

_numbers = itertools.count()


@dataclass(frozen=True)
class Compilation:
    """How a network was compiled.

    Args:
        seconds: the time of all compilations up to now, for all metrics of the network.
        failure: a sentence on why the network itself runs; None if the compiled copy runs.
    """

    seconds: float
    failure: str | None


class CompiledCopy:
    """A compiled copy of a network, in evaluation mode and without gradients; the network stays unchanged.

    Batch norms are folded into the convolutions before them where this is exact. Images ``(N, C, H, W)`` and
    the weights for them have the channels-last layout. The number of images is not part of the compiled code,
    so that only a single image is compiled apart from others. If something cannot be compiled, the network
    itself runs.

    Weights are inputs of the compiled code and not constants in it, so that `follow` replaces them without
    another compilation. On a CPU this is nearly as fast as the constants of inductor's freezing.

    Attributes:
        seconds: the time of all compilations up to now, with the forward passes in which they happened.
        failure: why the network itself runs; None if the copy runs.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.failure: str | None = None
        self._network: nn.Module | None = None
        self._weights: list[Any] | None = None
        self._structure: list[Any] | None = None
        self._foldable: list[tuple[str, str]] = []
        self._is_laid_out = False
        self._is_compiled = False
        self._buffers: list[tuple[int, int]] = []
        self._has_changed_itself = False
        self._run: Any = None

    def follow(self, model: nn.Module, *, is_new: bool) -> None:
        """Copy the network again if a parameter or buffer has changed since the last call.

        A change through ``.data`` keeps the tensor and its version, and is only seen with ``is_new``.

        Args:
            model: the network, in evaluation mode.
            is_new: whether to copy it in any case.
        """
        weights = _versions(model)
        if self.failure is not None or not (is_new or weights is None or weights != self._weights):
            return
        # The old copy goes first, so that no more than two networks are in memory.
        self._network, self._weights = None, weights
        try:
            # Tensors that are made in inference mode are compiled apart from others.
            with torch.inference_mode(False), torch.no_grad():
                structure = _structure(model)
                if structure != self._structure:
                    self._foldable = list(_foldable_batch_norms(_copied(model)))
                    self._structure = structure
                network = _copied(model)
                for parameter in network.parameters():
                    parameter.requires_grad_(False)
                _fold_batch_norms(network, self._foldable)
                self._network = network
                self._is_laid_out = self._has_changed_itself = False
        except Exception as error:
            self._fail(error)

    def __call__(self, model: nn.Module, images: Tensor) -> Any:
        """Return the raw output of the copy, or of the network if it cannot be compiled."""
        if self._has_changed_itself:
            self.follow(model, is_new=True)
        if self.failure is None:
            try:
                return self._output(images)
            except Exception as error:
                # An error of the network itself is raised again here, and says nothing about the compiler.
                with eager():
                    output = model(images)
                self._fail(error)
                return output
        with eager():
            return model(images)

    def _output(self, images: Tensor) -> Any:
        network = self._network
        assert network is not None
        layout = torch.channels_last if images.ndim == 4 else torch.contiguous_format
        started, graphs = time.perf_counter(), _compiled_graphs()
        try:
            with torch.inference_mode(False), torch.no_grad():
                if not self._is_laid_out:
                    if images.ndim == 4:
                        network.to(memory_format=layout)
                    self._is_laid_out, self._buffers = True, _buffer_versions(network)
                    self._run = self._run or _compiled_call()
                # A new tensor: those of the user keep no mark, and all have the same layout.
                batch = images.clone(memory_format=layout)
                torch._dynamo.maybe_mark_dynamic(batch, 0)
                # The user may have set it, and frozen weights would need a compilation for each copy.
                with torch._inductor.config.patch(freezing=False):
                    output = self._run(network, batch)
        finally:
            if _compiled_graphs() > graphs or not self._is_compiled:
                self.seconds += time.perf_counter() - started
        if not self._is_compiled and _compiled_graphs() == graphs:
            raise RuntimeError("torch.compile found nothing in it to compile")
        self._is_compiled = True
        # As the guard does for the network, each pass starts from the same buffers.
        self._has_changed_itself = _buffer_versions(network) != self._buffers
        return output

    def _fail(self, error: Exception) -> None:
        # The compiler's advice to its developers follows after an empty line.
        reason = " ".join(f"{type(error).__name__}: {error}".partition("\n\n")[0].split())
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]}…"
        self._network = None
        self.failure = (
            f"The network could not be compiled, so it scores the perturbed images itself ({reason})."
        )
        warnings.warn(self.failure, UserWarning, stacklevel=2)


_copies: WeakKeyDictionary[nn.Module, CompiledCopy] = WeakKeyDictionary()


def compiled_copy(model: nn.Module) -> CompiledCopy:
    """Return the compiled copy of a network, the same for all metrics; it is kept as long as the network."""
    if model not in _copies:
        _copies[model] = CompiledCopy()
    return _copies[model]


def existing_copy(model: nn.Module) -> CompiledCopy | None:
    """Return the compiled copy of a network if a metric has made one in this process."""
    return _copies.get(model)


def _compiled_call() -> Any:
    """Return a compiled function that calls a network.

    The code of each is an object of its own with its own name. The compiler keeps its results by code, and
    gives up after eight of them; and what it has learned about sizes it keeps by name.
    """

    def call(network: nn.Module, images: Tensor) -> Any:
        return network(images)

    call.__code__ = call.__code__.replace(co_name=f"call_{next(_numbers)}")
    return torch.compile(call)


def _compiled_graphs() -> int:
    """Return the number of graphs that torch.compile has compiled in this process."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _versions(model: nn.Module) -> list[tuple[int, int, int]] | None:
    """Return what changes with the parameters and buffers; None if their changes are not counted."""
    tensors = list(chain(model.parameters(), model.buffers()))
    if any(tensor.is_inference() for tensor in tensors):
        return None
    return [(id(tensor), tensor.data_ptr(), tensor._version) for tensor in tensors]


def _buffer_versions(network: nn.Module) -> list[tuple[int, int]]:
    return [(id(buffer), buffer._version) for buffer in network.buffers()]


def _copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a network; tensors of a graph, which have no copy, become constants."""
    attributes = chain.from_iterable(vars(module).values() for module in model.modules())
    in_graph = [value for value in attributes if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in in_graph})


def _foldable_batch_norms(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names of each convolution and the batch norm that alone reads its output.

    A subclass of a convolution, such as one that pads its input, counts if it calls the function of the
    convolution with its weight and bias.

    Args:
        model: a copy of the network, which changes. One that cannot be traced symbolically has none.
    """
    # As a submodule, its hooks and a forward of the object itself are traced too.
    root = nn.Sequential(model)
    for module in root.modules():
        if isinstance(module, tuple(_FOLDABLE)) and module.bias is None:
            # So that the trace shows whether the forward pass adds a bias, which folding introduces.
            module.bias = nn.Parameter(module.weight.new_zeros(module.out_channels))
    try:
        nodes = fx.symbolic_trace(root).graph.nodes
    except Exception:
        # Which error it is depends on the code of the model.
        return
    modules = dict(root.named_modules(remove_duplicate=False))
    names_of = Counter(map(id, modules.values()))
    uses: Counter[str] = Counter()
    for node in nodes:
        if node.op in ("call_module", "get_attr"):
            uses[str(node.target)] += 1 if node.op == "call_module" else len(node.users)
    for node in nodes:
        found = _convolution(node.args[0], modules) if node.op == "call_module" and node.args else None
        if found is None:
            continue
        (name, batch_norm), follower = found, str(node.target)
        pair = [modules[name], modules[follower]]
        if (
            type(pair[1]) is batch_norm
            and pair[1].running_var is not None
            and uses[follower] == 1
            and not any(used.startswith(f"{follower}.") for used in uses)
            # By its call or by its function, each is used once in the network.
            and all(uses[name] + uses[f"{name}.{part}"] == 1 for part in ("weight", "bias"))
            and all(names_of[id(module)] == 1 and not _has_hooks(module) for module in pair)
            and {kind for module in pair for kind in _tensor_kinds(module)} in _FOLDED_TENSORS
        ):
            yield name.removeprefix("0."), follower.removeprefix("0.")


def _convolution(node: Any, modules: dict[str, nn.Module]) -> tuple[str, type[nn.Module]] | None:
    """Return the name of the convolution whose output only one node reads, and the type of its batch norm."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return None
    for convolution, (function, batch_norm) in _FOLDABLE.items():
        name = str(node.target)
        if node.op == "call_module" and type(modules[name]) is convolution:
            return name, batch_norm
        if node.op == "call_function" and node.target is function:
            tensors = [str(getattr(tensor, "target", None)) for tensor in node.args[1:3]]
            name = tensors[0].removesuffix(".weight")
            if tensors == [f"{name}.weight", f"{name}.bias"] and isinstance(modules.get(name), convolution):
                return name, batch_norm
    return None


def _structure(model: nn.Module) -> list[Any]:
    """Return what determines which batch norms can be folded."""
    modules = model.named_modules()
    return [(name, type(module), _has_hooks(module), _tensor_kinds(module)) for name, module in modules]


def _tensor_kinds(module: nn.Module) -> list[tuple[torch.dtype, str]]:
    """Return the dtype and the type of device of the parameters and buffers of a module, without counters."""
    tensors = chain(module.parameters(recurse=False), module.buffers(recurse=False))
    return [(tensor.dtype, tensor.device.type) for tensor in tensors if tensor.is_floating_point()]


def _has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks that may change its output, such as those of `spectral_norm`."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fold_batch_norms(model: nn.Module, names: Iterable[tuple[str, str]]) -> None:
    """Fold batch norms into the convolutions before them, in place."""
    for convolution, batch_norm in names:
        folded: Any = fuse_conv_bn_eval(model.get_submodule(convolution), model.get_submodule(batch_norm))  # type: ignore[type-var, arg-type]
        model.set_submodule(convolution, folded)
        model.set_submodule(batch_norm, nn.Identity())
