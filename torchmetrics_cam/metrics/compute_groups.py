"""The identity of a metric's source and protocol, so that a MetricCollection merges only equal metrics.

TorchMetrics merges metrics whose states have the same names and, after the first batch, equal values. Two
layers whose maps were all zero on that batch would be merged, and one of them would report the other's value
from then on. Therefore one state of each metric identifies its source and protocol. It consists of bits,
because states are compared with a tolerance. The identity is not part of the state's name, because wrappers
and `merge_state` look states up by name, also in a copy with another model and therefore another identity.
"""

import hashlib
import itertools
import weakref
from dataclasses import fields, is_dataclass
from functools import partial
from numbers import Number
from typing import Any

import torch
from torch import Tensor

_counter = itertools.count()
_serial_numbers: dict[int, int] = {}
_kept_alive: list[Any] = []


def identity(*parts: Any) -> Tensor:
    """Return 64 bits that are equal for equal parts.

    Values and named functions are identified by their content and name, and objects such as models by the
    order of their first use. The bits are equal on all ranks that create their metrics in the same order.
    """
    digest = hashlib.sha256("\n".join(map(_description, parts)).encode()).digest()[:8]
    return torch.tensor([byte >> bit & 1 for byte in digest for bit in range(8)])


def keep_own(identities: Tensor) -> Tensor:
    """Return the metric's own identity after a sync or a merge, which comes last."""
    return identities[-1]


def _description(part: Any) -> str:
    if part is None or isinstance(part, str | Number):
        return repr(part)
    if isinstance(part, tuple | list):
        return f"[{', '.join(map(_description, part))}]"
    if isinstance(part, dict):
        pairs = sorted(f"{_description(key)}: {_description(value)}" for key, value in part.items())
        return f"{{{', '.join(pairs)}}}"
    if is_dataclass(part) and not isinstance(part, type):
        values = {field.name: getattr(part, field.name) for field in fields(part)}
        return f"{type(part).__qualname__}({_description(values)})"
    if isinstance(part, partial):
        return f"partial({_description((part.func, part.args, part.keywords))})"
    name = getattr(part, "__qualname__", "<")
    if "<" not in name and getattr(part, "__self__", None) is None:
        return f"{getattr(part, '__module__', None)}.{name}"
    return f"{type(part).__qualname__} {_serial_number(part)}"


def _serial_number(part: Any) -> int:
    if id(part) not in _serial_numbers:
        _serial_numbers[id(part)] = next(_counter)
        try:
            weakref.finalize(part, _serial_numbers.pop, id(part))
        except TypeError:
            # It has no weak references, so it is kept alive: another object must not get its id.
            _kept_alive.append(part)
    return _serial_numbers[id(part)]
