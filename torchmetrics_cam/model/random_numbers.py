"""A separate stream of random numbers for a metric, so that those of the user's training do not change."""

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_Generator = tuple[Callable[[], Any], Callable[[Any], None]]


class RandomStream:
    """A stream of random numbers that starts from the global generators and then continues separately.

    It starts from the state that the global generators have at its first use.

    Methods such as SmoothGrad and Random-CAM draw from the global generators of Python, torch and NumPy.
    Without a separate stream, a metric would change the random numbers of the training around it.
    """

    def __init__(self) -> None:
        # The state of each generator at the end of the last use, by its name.
        self._states: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the stream, which torch.load reads with weights_only=True."""
        states = dict(self._states)
        if "numpy" in states:
            name, keys, *rest = states["numpy"]
            states["numpy"] = (name, list(map(int, keys)), *rest)
        return states

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Continue from the states of another stream."""
        self._states = states

    @contextmanager
    def drawn(self, device: torch.device) -> Iterator[None]:
        """Let the global generators draw from this stream inside the context, and restore them afterwards."""
        generators = _generators(device)
        before = {name: get() for name, (get, _) in generators.items()}
        try:
            _set_states(generators, before | self._states)
            yield
        finally:
            self._states |= {name: get() for name, (get, _) in generators.items()}
            _set_states(generators, before)


def _set_states(generators: dict[str, _Generator], states: dict[str, Any]) -> None:
    for name, (_, set_state) in generators.items():
        set_state(states[name])


def _generators(device: torch.device) -> dict[str, _Generator]:
    """Return how to get and set the state of each global generator, by its name."""
    generators: dict[str, _Generator] = {
        "python": (random.getstate, random.setstate),
        "torch": (torch.get_rng_state, torch.set_rng_state),
    }
    if device.type in ("cuda", "mps", "xpu"):
        module = torch.get_device_module(device)
        arguments = () if device.type == "mps" else (device,)
        generators[str(device)] = (
            lambda: module.get_rng_state(*arguments),
            lambda state: module.set_rng_state(state, *arguments),
        )
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        generators["numpy"] = (numpy.random.get_state, numpy.random.set_state)
    return generators
