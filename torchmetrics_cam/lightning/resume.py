"""What a rank has so far of an evaluation, in a file, so that an interrupted run goes on from there."""

import re
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchmetrics import Metric

from torchmetrics_cam.lightning.atomic_file import write_whole
from torchmetrics_cam.lightning.fingerprint import of_settings, of_weights
from torchmetrics_cam.metrics.base import CAMMetric

States = dict[str, tuple[int, dict[str, Any]]]


def key_of(metric: nn.Module, networks: nn.ModuleList, images: int, processes: int) -> dict[str, Any]:
    """What must be the same in a run that goes on with the partial result of another."""
    own = [member for member in metric.modules() if isinstance(member, CAMMetric)]
    named = {"metric": metric, **of_settings(own)}
    return {
        # Functions are named with where they are in memory.
        **{name: re.sub(r" at 0x[0-9a-f]+", "", str(part)) for name, part in named.items()},
        "weights": ", ".join(map(of_weights, networks)),
        "images": images,
        "processes": processes,
    }


class PartialResult:
    """The file of one rank: how many places of its share are done, and the states that they gave.

    Args:
        folder: where the files of all ranks are.
        rank: the rank of this process.
        key: of `key_of`.
    """

    def __init__(self, folder: Path, rank: int, key: dict[str, Any]) -> None:
        self.file = folder / f"rank-{rank}.pt"
        self.key = key

    def save(self, done: int, members: Iterable[tuple[str, Metric]]) -> None:
        """Write the file anew; a run that is killed meanwhile leaves the old one."""
        states, drawn = {}, {}
        for name, metric in members:
            states[name] = (metric._update_count, metric._copy_state_dict())
            if isinstance(metric, CAMMetric):
                drawn[name] = metric._pipeline.random_stream.states
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # torch.save into a file says nothing of use when the disk is full.
        content = BytesIO()
        torch.save({"key": self.key, "done": done, "states": states, "random": drawn}, content)
        write_whole(self.file, content.getbuffer())

    def load(self) -> tuple[int, States, dict[str, Any]]:
        """How many places are done, the states, and where random numbers go on; 0 and nothing without a file.

        Raises:
            ValueError: if the file is of another run, or cannot be read.
        """
        if not self.file.exists():
            return 0, {}, {}
        try:
            found = torch.load(self.file, map_location="cpu", weights_only=True)
            key, done, states, drawn = (found[name] for name in ("key", "done", "states", "random"))
        except Exception as error:
            # Not in torch's own words, which would have people load the file unchecked.
            kind = type(error).__name__
            message = f"{self.file} is no partial result ({kind}); remove it to begin anew"
            raise ValueError(message) from error
        for name, value in self.key.items():
            if key.get(name) != value:
                raise ValueError(
                    f"{self.file} is of a run with {name}={key.get(name)!r}, and this one has {value!r}; run"
                    " the same again, or remove the folder to begin anew"
                )
        return done, states, drawn
