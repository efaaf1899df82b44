"""Partial results: one file for each rank, from which an interrupted evaluation continues."""

import os
import re
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection, MetricTracker

from torchmetrics_cam.baselines import display_name
from torchmetrics_cam.metrics.base import CAMMetric

AnyMetric = Metric | MetricCollection | MetricTracker
# By name of the metric: its update count, and its states by name.
States = dict[str, tuple[int, dict[str, Any]]]


def write_atomically(file: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: if writing fails or the process is killed, the previous file stays.

    Args:
        file: the file; the content is first written to a temporary file beside it.
        content: the whole content.
    """
    unfinished = file.with_suffix(f".{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def weights_checksum(model: nn.Module) -> str:
    """Return a CRC-32 checksum of the names and values of all weights and buffers, as hexadecimal digits."""
    checksum = 0
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            checksum = zlib.crc32(name.encode(), checksum)
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            checksum = zlib.crc32(content.numpy().data, checksum)
    return f"{checksum:08x}"


def run_key(metric: nn.Module, networks: nn.ModuleList, images: int, processes: int) -> dict[str, Any]:
    """Return everything that must be equal in the interrupted and the continued run.

    Functions are compared by their names.

    Args:
        metric: the metric, collection or wrapper.
        networks: the networks that are evaluated.
        images: the number of images of the dataset.
        processes: the number of ranks.
    """
    metrics = [member for member in metric.modules() if isinstance(member, CAMMetric)]
    settings = {
        "metric": metric,
        "protocol": [one.protocol.caption() for one in metrics],
        "measures": [one._kind_of_sums() for one in metrics],
        "average": [one.average for one in metrics],
        "num_classes": [one.num_classes for one in metrics],
        "logits_fn": [display_name(one._pipeline.score_function.logits_fn) for one in metrics],
        "settings of sources": [
            {name: value for name, value in vars(source).items() if isinstance(value, str | int | float)}
            for one in metrics
            for source in one._pipeline.sources
        ],
    }
    return {
        # The repr of a function contains its memory address, which differs between processes.
        **{name: re.sub(r" at 0x[0-9a-f]+", "", str(setting)) for name, setting in settings.items()},
        "weights": ", ".join(map(weights_checksum, networks)),
        "images": images,
        "processes": processes,
    }


class PartialResult:
    """The file of one rank: how many of its images are done, and the states of the metrics after them.

    Args:
        folder: the folder with the files of all ranks.
        rank: the rank of this process.
        key: what `run_key` returns for this run.
    """

    def __init__(self, folder: Path, rank: int, key: dict[str, Any]) -> None:
        self.file = folder / f"rank-{rank}.pt"
        self.key = key

    def save(self, done: int, metric: AnyMetric) -> None:
        """Write the file atomically.

        Args:
            done: the number of images of this rank that are done.
            metric: the metric with the states after them.
        """
        random_states = {
            name: member._pipeline.random_stream.states
            for name, member in updated_metrics(metric)
            if isinstance(member, CAMMetric)
        }
        states = {name: copy_states(member) for name, member in updated_metrics(metric)}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # torch.save into a file hides the system's error when the disk is full, so write the bytes ourselves.
        content = BytesIO()
        torch.save({"key": self.key, "done": done, "states": states, "random": random_states}, content)
        write_atomically(self.file, content.getbuffer())

    def load(self, metric: AnyMetric) -> int:
        """Restore the states of a metric and of its random number generators, if there is a file.

        Args:
            metric: an empty metric with the settings of the key.

        Returns:
            The number of images of this rank that are done; 0 without a file.

        Raises:
            ValueError: if the file belongs to another run, or cannot be read.
        """
        if not self.file.exists():
            return 0
        try:
            found = torch.load(self.file, map_location="cpu", weights_only=True)
            key, done, states, random_states = (found[name] for name in ("key", "done", "states", "random"))
        except Exception as error:
            # torch's own message recommends to load the file without weights_only, which is unsafe.
            raise ValueError(
                f"{self.file} is not a partial result of an evaluation ({type(error).__name__}); remove it to"
                " start over"
            ) from error
        for name, value in self.key.items():
            if key.get(name) != value:
                raise ValueError(
                    f"{self.file} belongs to a run with {name}={key.get(name)!r}, and this run has {value!r};"
                    " repeat that run unchanged, or remove the folder to start over"
                )
        restore_states(metric, states)
        for name, member in updated_metrics(metric):
            if isinstance(member, CAMMetric):
                member._pipeline.random_stream.states = random_states[name]
        return int(done)


def updated_metrics(metric: AnyMetric) -> Iterator[tuple[str, Metric]]:
    """Yield name and object of each metric that ``update`` reaches; of a tracker, those of its last step."""
    current: nn.Module = metric[-1] if isinstance(metric, MetricTracker) and len(metric) else metric
    for name, member in current.named_modules():
        if isinstance(member, Metric):
            yield name, member


def copy_states(metric: Metric) -> tuple[int, dict[str, Any]]:
    """Return the update count and a copy of the states of a metric."""
    return metric._update_count, metric._copy_state_dict()


def restore_states(metric: AnyMetric, states: States) -> None:
    """Set the update counts and the states of a metric and of its members, on the device of each."""
    for name, member in updated_metrics(metric):
        member._update_count, values = states[name]
        for state, value in values.items():
            # This state identifies the model object, which differs between processes.
            if state != "identity":
                # A list state comes back from a gather as one tensor.
                parts = [value] if member._defaults[state] == [] and isinstance(value, Tensor) else value
                setattr(member, state, move_data_to_device(parts, member.device))
        member._computed = None
