"""Cases that are timed in processes of their own.

By itself glibc gives large blocks back to the system and fetches them again, more or less often depending on what ran
before in the process: on a network of large activations the same forward passes take half the time or twice. A process
for each case leaves nothing before it, and the settings of `KEEPING` make the allocator keep what it has.
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from typing import Any

from results import interleaved, seconds_of

Case = Callable[[], Any]
KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
# In the process of a case, what it runs.
_prepared: list[Case] = []


def in_processes(
    cases: Mapping[str, Callable[[], Case]], rounds: int, allocator: Mapping[str, str]
) -> dict[str, list[float]]:
    """Seconds of every case in every round; each is made and run in a process of its own with these settings."""
    with ExitStack() as stack:
        # glibc reads them when a process starts.
        stack.callback(_set_environment, {name: os.environ.get(name) for name in KEEPING})
        _set_environment(dict.fromkeys(KEEPING) | dict(allocator))
        asked = {name: partial(_ask, stack.enter_context(_process(make))) for name, make in cases.items()}
        return interleaved(asked, rounds, clock=lambda ask: ask())


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _process(make: Callable[[], Case]) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_prepare, initargs=(make,))


def _ask(process: ProcessPoolExecutor) -> float:
    return process.submit(_run).result()


def _prepare(make: Callable[[], Case]) -> None:
    _prepared.append(make())


def _run() -> float:
    return seconds_of(_prepared[0])
