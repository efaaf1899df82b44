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
        self._states: list[Any] | None = None

    @contextmanager
    def drawn(self, device: torch.device) -> Iterator[None]:
        """Inside, the global generators give this stream; afterwards they stand where they stood."""
        generators = _generators(device)
        before = [get() for get, _ in generators]
        own = before if self._states is None else self._states
        try:
            _put(generators, own)
            yield
        finally:
            self._states = [get() for get, _ in generators]
            _put(generators, before)


def _put(generators: list[_Generator], states: list[Any]) -> None:
    for (_, put), state in zip(generators, states, strict=False):
        put(state)


def _generators(device: torch.device) -> list[_Generator]:
    """The global generators, those that are always there first."""
    generators: list[_Generator] = [
        (random.getstate, random.setstate),
        (torch.get_rng_state, torch.set_rng_state),
    ]
    if device.type in ("cuda", "mps", "xpu"):
        module = torch.get_device_module(device)
        place = () if device.type == "mps" else (device,)
        generators.append(
            (lambda: module.get_rng_state(*place), lambda state: module.set_rng_state(state, *place))
        )
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        generators.append((numpy.random.get_state, numpy.random.set_state))
    return generators
