"""Random numbers of an evaluation: a stream of its own, so that none are taken from a training around it."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_Generator = tuple[Callable[[], Any], Callable[[Any], None]]


class OwnRandomNumbers:
    """A stream that starts where the global generators stand at its first use, and then goes on by itself.

    Methods such as SmoothGrad and Random-CAM draw from the global generators of torch and NumPy. An
    evaluation that let them would change the training around it.
    """

    def __init__(self) -> None:
        # Where each generator stands; nothing before the first use.
        self.states: dict[str, Any] = {}

    @contextmanager
    def drawn(self, device: torch.device) -> Iterator[None]:
        """Inside, the global generators give this stream; afterwards they stand where they stood."""
        generators = _generators(device)
        before = {name: get() for name, (get, _) in generators.items()}
        try:
            _put(generators, before | self.states)
            yield
        finally:
            self.states |= {name: get() for name, (get, _) in generators.items()}
            _put(generators, before)


def _put(generators: dict[str, _Generator], states: dict[str, Any]) -> None:
    for name, (_, put) in generators.items():
        put(states[name])


def _generators(device: torch.device) -> dict[str, _Generator]:
    """The global generators by name: Python's, torch's, that of the device, and NumPy's if it is in use."""
    generators: dict[str, _Generator] = {
        "python": (random.getstate, random.setstate),
        "torch": (torch.get_rng_state, torch.set_rng_state),
    }
    if device.type in ("cuda", "mps", "xpu"):
        module = torch.get_device_module(device)
        place = () if device.type == "mps" else (device,)
        generators[str(device)] = (
            lambda: module.get_rng_state(*place),
            lambda state: module.set_rng_state(state, *place),
        )
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        generators["numpy"] = (lambda: _plain(numpy.random.get_state()), numpy.random.set_state)
    return generators


def _plain(state: Any) -> tuple[Any, ...]:
    """A state of NumPy in plain numbers, which a file may hold that is read without running its code."""
    name, keys, *rest = state
    return (name, keys.tolist(), *rest)
