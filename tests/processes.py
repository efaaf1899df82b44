"""Real processes that talk over gloo, in which a hang is a failure within a minute."""

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing

TIMEOUT = datetime.timedelta(seconds=60)


def results_of(function: Callable[[int, int], Any], world_size: int, folder: Path) -> list[Any]:
    """What ``function(rank, world_size)`` returns on each rank."""
    torch.multiprocessing.spawn(_run, (function, world_size, str(folder)), nprocs=world_size)
    return [torch.load(folder / f"{rank}", weights_only=False) for rank in range(world_size)]


def _run(rank: int, function: Callable[[int, int], Any], world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    torch.distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=world_size, timeout=TIMEOUT
    )
    try:
        torch.save(function(rank, world_size), f"{folder}/{rank}")
    finally:
        # As in leave_process_group: before torch 2.8 the group's threads may need the interpreter first.
        time.sleep(0.05)
        torch.distributed.destroy_process_group()
