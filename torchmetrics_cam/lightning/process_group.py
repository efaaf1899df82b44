"""The processes that an evaluation runs on."""

import time

import torch
from lightning.pytorch import Trainer


def check_process_group(trainer: Trainer) -> None:
    """Where processes talk to each other already, the Trainer must know, or each does all the work."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    size = torch.distributed.get_world_size()
    cluster = getattr(trainer.strategy, "cluster_environment", None)
    joined = cluster is not None and cluster.creates_processes_externally and trainer.world_size == size
    if size > 1 and not joined:
        raise ValueError(
            f"evaluate() was called in a process group of {size}, and its Trainer has {trainer.world_size}"
            ' processes of its own; start the processes with torchrun and pass strategy="ddp", or leave the'
            " process group to evaluate()"
        )


def leave_process_group() -> None:
    """End the group of this process, if it is in one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Before torch 2.8 the end of a gloo group waits for its threads and keeps the interpreter from
        # them; one that has yet to let go of a tensor gets the interpreter here.
        time.sleep(0.05)
        torch.distributed.destroy_process_group()
