"""Digests of values, functions, networks and datasets, to compare those of two processes."""

import copyreg
import functools
import hashlib
import inspect
import random
import re
import site
import sys
import sysconfig
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from torchmetrics_cam.cams.source import library_classes
from torchmetrics_cam.model.random_numbers import RandomStream
from torchmetrics_cam.model.weights import tensor_bytes

# Number of items of a dataset that its digest covers.
SAMPLES = 16
_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
_PATHS = sysconfig.get_paths()
_LIBRARY_FOLDERS = {
    *(_PATHS[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    *site.getsitepackages(),
    site.getusersitepackages(),
    str(Path(__file__).parents[1]),
}
# Entries of a class that depend on the position of its source, or are written by the interpreter.
_NOT_CONTENT = {
    "__dict__",
    "__weakref__",
    "__doc__",
    "__module__",
    "__firstlineno__",
    "__static_attributes__",
}


# The kind of a value, its own bytes, and the values in it.
_Content = tuple[str, bytes | memoryview, Iterable[Any]]


class UnidentifiedError(Exception):
    """A value whose content cannot be compared with that of another process; the message names its type."""


@dataclass(frozen=True)
class _IfPossible:
    """A value that is represented by its type where its content cannot be compared."""

    value: Any


def digest(value: Any) -> str:
    """Return a digest of the content of a value, which is the same in every process.

    A function is represented by its code, its defaults, the values of its closure, and the global functions,
    classes and values that it names; a class by its methods and attributes. Functions and classes of
    installed packages are trusted to be the same if they have the same code, or for classes the same name. A
    network is represented by its structure, the classes of its modules, and its weights; other objects by
    what they pickle.

    Args:
        value: any object.

    Returns:
        Hexadecimal digits.

    Raises:
        UnidentifiedError: if it contains an object whose content cannot be read, such as an open file.
    """
    try:
        return _Digests().of(value).hex()[:16]
    except RecursionError as error:
        raise UnidentifiedError(f"a {type(value).__name__} that is nested too deeply") from error


def dataset_digest(dataset: Any) -> str:
    """Return a digest of at most 16 items of a dataset: the first, the last and evenly spaced ones.

    The items are read with a fixed seed of the global random generators, whose states are restored.

    Args:
        dataset: a dataset with a length.

    Returns:
        Hexadecimal digits.

    Raises:
        UnidentifiedError: as `digest`, or if an item is different each time it is read.
    """
    last = len(dataset) - 1
    positions = sorted({round(last * step / (SAMPLES - 1)) for step in range(SAMPLES)}) if last >= 0 else []
    with RandomStream().drawn(torch.device("cpu")):
        digests = [_item_digest(dataset, position) for position in positions]
        if digests and _item_digest(dataset, 0) != digests[0]:
            raise UnidentifiedError(f"a {type(dataset).__name__} whose items differ each time they are read")
    return digest(digests)


def structure(network: nn.Module) -> Any:
    """Return what determines the output of a network beside its weights, for `digest`."""
    modules = [
        # `code` is that of a TorchScript or FX module.
        (name, _IfPossible(plain_settings(module)), getattr(module, "code", None))
        for name, module in network.named_modules()
    ]
    return without_addresses(repr(network)), modules


def plain_settings(value: Any) -> Any:
    """Return the class of an object and its public settings, for `digest`: numbers, texts and functions.

    Other attributes, such as hooks and activations, differ from process to process.

    Args:
        value: the object, or a list of objects.
    """
    if isinstance(value, list | tuple):
        return list(map(plain_settings, value))
    if _is_setting(value):
        return value
    settings: dict[str, Any] = getattr(value, "__dict__", {})
    return type(value), {
        name: setting
        for name, setting in settings.items()
        # The guard of a metric changes the mode.
        if _is_setting(setting) and not name.startswith("_") and name != "training"
    }


def _is_setting(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_setting, value))
    if isinstance(value, dict):
        return all(map(_is_setting, (*value, *value.values())))
    return isinstance(value, (*_PLAIN, types.FunctionType, functools.partial))


def without_addresses(text: str) -> str:
    """Return a repr without the memory addresses in it, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _item_digest(dataset: Any, position: int) -> str:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    return digest(dataset[position])


class _Digests:
    """The digests of a value and of everything in it, each computed once."""

    def __init__(self) -> None:
        # The value is kept beside its digest, because the id of a deleted object is used again.
        self._known: dict[int, tuple[Any, bytes]] = {}
        self._unfinished: list[int] = []

    def of(self, value: Any) -> bytes:
        if id(value) in self._known:
            return self._known[id(value)][1]
        if id(value) in self._unfinished:
            # An object that contains itself, such as a recursive function.
            return f"object {self._unfinished.index(id(value))}".encode()
        if isinstance(value, _IfPossible):
            try:
                return self.of(value.value)
            except UnidentifiedError:
                return self.of(_name(type(value.value)))
        self._unfinished.append(id(value))
        try:
            kind, content, parts = _read(value)
            digests = [self.of(part) for part in parts]
        finally:
            self._unfinished.pop()
        if isinstance(value, set | frozenset | dict):
            # A dict that was made from a set has another order in another process.
            digests.sort()
        checksum = hashlib.sha256()
        for part in (kind.encode(), content, *digests):
            checksum.update(len(part).to_bytes(8, "big"))
            checksum.update(part)
        self._known[id(value)] = value, checksum.digest()
        return checksum.digest()


def _read(value: Any) -> _Content:
    """Return the kind of a value, its own content, and the values in it."""
    kind = type(value)
    if kind in _PLAIN:
        return kind.__name__, repr(value).encode(errors="surrogatepass"), ()
    if kind in (list, tuple, set, frozenset):
        return kind.__name__, b"", value
    if kind in (dict, types.MappingProxyType):
        return "dict", b"", value.items()
    if isinstance(value, Tensor):
        return _read_tensor(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return "array", np.ascontiguousarray(value).tobytes(), (str(value.dtype), value.shape)
    if "Image" in library_classes(value, "PIL.Image"):
        return "image", value.tobytes(), (value.mode, value.size, value.getpalette())
    if isinstance(value, RemovableHandle):
        # It counts the hooks of the process.
        return "hook", b"", ()
    if isinstance(value, nn.Module):
        state = value.state_dict()
        if isinstance(value, torch.jit.ScriptModule) and not state:
            # A frozen module has its weights in its code.
            raise UnidentifiedError("a TorchScript module without weights")
        return "module", b"", (structure(value), dict(state))
    code = _read_code(value)
    return _read_state(value) if code is None else code


def _read_tensor(tensor: Tensor) -> _Content:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise UnidentifiedError(f"a tensor of {tensor.layout} and {tensor.dtype} on {tensor.device}")
    return "tensor", tensor_bytes(tensor), (str(tensor.dtype), tuple(tensor.shape))


def _read_code(value: Any) -> _Content | None:
    """Return kind, content and parts of a function, class or module; None for other objects."""
    if isinstance(value, types.CodeType):
        arguments = value.co_varnames[: value.co_argcount + value.co_kwonlyargcount]
        parts = (value.co_consts, value.co_names, value.co_freevars, arguments, value.co_flags)
        return "code", value.co_code, parts
    if isinstance(value, types.FunctionType):
        return "function", b"", list(_function_parts(value))
    if isinstance(value, types.MethodType):
        return "method", b"", (value.__func__, value.__self__)
    if isinstance(value, staticmethod | classmethod):
        return type(value).__name__, b"", (value.__func__,)
    if isinstance(value, property):
        return "property", b"", (value.fget, value.fset, value.fdel)
    if isinstance(value, functools.cached_property):
        return "property", b"", (value.func,)
    if isinstance(value, type):
        return "class", _name(value).encode(), () if _of_library(value) else list(_class_parts(value))
    if isinstance(value, types.ModuleType):
        return "module", value.__name__.encode(), ()
    if inspect.isbuiltin(value):
        owner = value.__self__
        return "built-in", value.__qualname__.encode(), (owner if owner is not None else value.__module__,)
    if inspect.ismethoddescriptor(value) and hasattr(value, "__objclass__"):
        return "method", value.__name__.encode(), (value.__objclass__,)
    if isinstance(value, functools._lru_cache_wrapper):
        return "wrapper", b"", (value.__wrapped__,)
    return None


def _function_parts(function: types.FunctionType) -> Iterator[Any]:
    is_library = _in_library(function.__code__.co_filename)
    yield function.__code__
    yield function.__defaults__
    yield function.__kwdefaults__
    if is_library and hasattr(function, "__wrapped__"):
        # The closure of torch.compile and other decorators also holds what they need at run time.
        yield function.__wrapped__
        return
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            yield "a variable that is not assigned"
    if is_library:
        return
    names = sorted(_names(function.__code__))
    found = {name: function.__globals__[name] for name in names if name in function.__globals__}
    for name, value in found.items():
        yield name, _IfPossible(value)
        if isinstance(value, types.ModuleType) and not _in_library(getattr(value, "__file__", None)):
            yield [_IfPossible(vars(value)[name]) for name in names if name in vars(value)]


def _class_parts(cls: type) -> Iterator[Any]:
    yield cls.__bases__
    for name, member in vars(cls).items():
        if name not in _NOT_CONTENT:
            yield name, _IfPossible(member)


def _read_state(value: Any) -> _Content:
    """Return kind, content and parts of an object as it would be pickled."""
    try:
        reduce = copyreg.dispatch_table.get(type(value))
        reduced = value.__reduce_ex__(2) if reduce is None else reduce(value)
        if isinstance(reduced, str):
            return "object", reduced.encode(), (type(value),)
        function, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        return "object", b"", (function, arguments, state, list(items or ()), list(pairs or ()))
    except Exception as error:
        # Which error it is depends on the object.
        raise UnidentifiedError(f"a {_name(type(value))}") from error


def _names(code: types.CodeType) -> set[str]:
    """Return the names of globals and attributes in the code of a function and of those inside it."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*map(_names, inner))


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _of_library(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    # A module without a file is built in, or a notebook or an interactive session.
    return cls.__module__ != "__main__" and _in_library(getattr(module, "__file__", None))


def _in_library(file: str | None) -> bool:
    """Return whether a file belongs to Python or to an installed package, or is None."""
    if file is None or file.startswith("<frozen"):
        return True
    return any(file.startswith(f"{folder}/") for folder in _LIBRARY_FOLDERS)
