"""Processes that the tests start: the ranks of a gloo group, and the command.

They are forked from a server that has imported the large libraries once. A spawned process imports them anew, which
takes about eight seconds.
"""

import datetime
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

START_METHOD = "forkserver"
multiprocessing.set_forkserver_preload(
    [
        "torchmetrics_cam.cli.evaluate",
        "torchmetrics_cam.lightning",
        "matplotlib.figure",
        "sklearn.datasets",
        "torchcam.methods",
        "torchmetrics.wrappers",
    ]
)
# A hang fails after a minute.
TIMEOUT = datetime.timedelta(seconds=60)


def results_of(function: Callable[[int, int], Any], world_size: int, folder: Path) -> list[Any]:
    """Return the result of ``function(rank, world_size)`` of each rank."""
    torch.multiprocessing.start_processes(
        _run_rank, (function, world_size, str(folder)), nprocs=world_size, start_method=START_METHOD
    )
    return [torch.load(folder / f"{rank}", weights_only=False) for rank in range(world_size)]


def _run_rank(rank: int, function: Callable[[int, int], Any], world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=world_size, timeout=TIMEOUT
    )
    try:
        torch.save(function(rank, world_size), f"{folder}/{rank}")
    finally:
        # As in lightning/evaluate.py: before torch 2.8, threads of the group may still need the interpreter.
        time.sleep(0.05)
        torch.distributed.destroy_process_group()


class Command:
    """The command ``torchmetrics-cam`` in a separate process, run in ``folder``, with its output in the folder ``log``."""

    def __init__(self, arguments: Sequence[str], folder: Path, log: Path) -> None:
        self._log = log
        context = multiprocessing.get_context(START_METHOD)
        self.process = context.Process(target=_run_command, args=(list(arguments), str(folder), str(log)))
        self.process.start()

    def finish(self, timeout: float = 180) -> tuple[int, str, str]:
        """Wait for the process and return the exit code, standard output and standard error."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(f"the command did not finish within {timeout} seconds")
        printed, errors = ((self._log / name).read_text() for name in ("stdout", "stderr"))
        return self.process.exitcode, printed, errors


def _run_command(arguments: list[str], folder: str, log: str) -> None:
    from torchmetrics_cam.cli import main

    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{log}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    torch.set_num_threads(1)
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.exit(main(arguments))
