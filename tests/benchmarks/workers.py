"""Time each case in a separate process with given settings of the memory allocator.

By default glibc returns large blocks to the system and requests them again. How often depends on what ran earlier in the
process: on a network with large activations the time of the same forward passes varies by a factor of two. A separate
process removes the influence of other cases, and the settings `KEEP_BLOCKS` make the allocator keep freed blocks.
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
KEEP_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(4 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}
# The case of a worker process.
_prepared: list[Case] = []


def in_processes(
    cases: Mapping[str, Callable[[], Case]], rounds: int, allocator: Mapping[str, str]
) -> dict[str, list[float]]:
    """Time all cases, each in a separate process.

    Args:
        cases: functions that create a case in its process, by name; they must be picklable.
        rounds: the number of rounds.
        allocator: environment variables for the allocator of the processes.

    Returns:
        The seconds of each case in every round.
    """
    with ExitStack() as stack:
        # glibc reads the variables when a process starts.
        stack.callback(_set_environment, {name: os.environ.get(name) for name in KEEP_BLOCKS})
        _set_environment(dict.fromkeys(KEEP_BLOCKS) | dict(allocator))
        timed = {name: partial(_time_in, stack.enter_context(_process(make))) for name, make in cases.items()}
        return interleaved(timed, rounds, clock=lambda time_case: time_case())


def _set_environment(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _process(make: Callable[[], Case]) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), initializer=_prepare, initargs=(make,))


def _time_in(process: ProcessPoolExecutor) -> float:
    return process.submit(_run).result()


def _prepare(make: Callable[[], Case]) -> None:
    _prepared.append(make())


def _run() -> float:
    return seconds_of(_prepared[0])
