"""Which metrics measure the same thing, so that a MetricCollection may compute their states once.

TorchMetrics merges metrics whose states have the same names and, after the first batch, equal values. Two
layers whose maps were all zero on that batch would be merged, and one of them would report the other's number
from then on. So one state of each metric is the identity of its source and protocol, in bits: values are
compared with a tolerance, which cannot blur a 0 and a 1. It is not in the state's name, because wrappers and
`merge_state` look states up by name, also in a copy that has another model and so another identity.
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
_ordinals: dict[int, int] = {}
_kept: list[Any] = []


def identity(*parts: Any) -> Tensor:
    """64 bits: equal for equal parts, and the same on all ranks, which build their metrics in one order.

    Values and named functions are known by what they are, objects such as models by the order in which they
    were first seen.
    """
    digest = hashlib.sha256("\n".join(map(_described, parts)).encode()).digest()[:8]
    return torch.tensor([byte >> place & 1 for byte in digest for place in range(8)])


def own(identities: Tensor) -> Tensor:
    """The identity after a sync or a merge: that of the metric itself, which comes last."""
    return identities[-1]


def _described(part: Any) -> str:
    if part is None or isinstance(part, str | Number):
        return repr(part)
    if isinstance(part, tuple | list):
        return f"[{', '.join(map(_described, part))}]"
    if isinstance(part, dict):
        pairs = sorted(f"{_described(key)}: {_described(value)}" for key, value in part.items())
        return f"{{{', '.join(pairs)}}}"
    if is_dataclass(part) and not isinstance(part, type):
        values = {field.name: getattr(part, field.name) for field in fields(part)}
        return f"{type(part).__qualname__}({_described(values)})"
    if isinstance(part, partial):
        return f"partial({_described((part.func, part.args, part.keywords))})"
    name = getattr(part, "__qualname__", "<")
    if "<" not in name and getattr(part, "__self__", None) is None:
        return f"{getattr(part, '__module__', None)}.{name}"
    return f"{type(part).__qualname__} {_ordinal(part)}"


def _ordinal(part: Any) -> int:
    if id(part) not in _ordinals:
        _ordinals[id(part)] = next(_counter)
        try:
            weakref.finalize(part, _ordinals.pop, id(part))
        except TypeError:
            # It cannot be watched, so it is kept: its id must not come to mean another object.
            _kept.append(part)
    return _ordinals[id(part)]
