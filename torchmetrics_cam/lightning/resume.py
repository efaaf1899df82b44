"""Partial results: one file for each rank, from which an interrupted evaluation continues."""

import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric, MetricCollection, MetricTracker

from torchmetrics_cam.baselines import display_name
from torchmetrics_cam.cams import adapters
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.lightning.digest import (
    UnidentifiedError,
    dataset_digest,
    digest,
    plain_settings,
    structure,
    without_addresses,
)
from torchmetrics_cam.metrics.base import CAMMetric
from torchmetrics_cam.model.weights import weights_checksum

AnyMetric = Metric | MetricCollection | MetricTracker
# The start of a text in the key of a run, for what cannot be compared with the same of another process.
UNIDENTIFIED = "not identified: "
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


class PartialResultError(ValueError):
    """A partial result that this run must not continue.

    Args:
        problem: what is wrong with it.
        what_to_do: the ways out.
        may_be_unchanged: whether it may be one of this run.
    """

    def __init__(self, problem: str, what_to_do: str, *, may_be_unchanged: bool = False) -> None:
        super().__init__(f"{problem}; {what_to_do}")
        self.problem = problem
        self.may_be_unchanged = may_be_unchanged


def run_key(
    metric: nn.Module,
    networks: nn.ModuleList,
    loader: DataLoader[Any],
    *,
    inputs: Any,
    precision: Any,
    processes: int,
) -> dict[str, str]:
    """Return everything that must be equal in the interrupted and the continued run.

    Functions are compared by their code, and the dataset by a digest of some of its items.

    Args:
        metric: the metric, collection or wrapper.
        networks: the networks that are evaluated.
        loader: the dataloader over the whole dataset.
        inputs: the function from a batch to the arguments of ``update``.
        precision: that of the Trainer.
        processes: the number of ranks.

    Returns:
        The texts to compare. One that starts with `UNIDENTIFIED` is of a value that cannot be compared.
    """
    metrics = [member for member in metric.modules() if isinstance(member, CAMMetric)]
    functions = [one._pipeline.score_function.logits_fn for one in metrics]
    sources = [source for one in metrics for source in one._pipeline.sources]
    protocols = [protocol for one in metrics for protocol in one._pipeline.protocols]
    return {
        "metric": without_addresses(str(metric)),
        "protocol": _described(
            [protocol.caption() for protocol in protocols], lambda: [vars(protocol) for protocol in protocols]
        ),
        "measures": str([one._kind_of_sums() for one in metrics]),
        "average": str([one.average for one in metrics]),
        "num_classes": str([one.num_classes for one in metrics]),
        "logits_fn": _described(list(map(display_name, functions)), lambda: functions),
        "scorer": _described([], lambda: [one._pipeline.scorer for one in metrics]),
        "settings of sources": _described([], lambda: [_settings(source) for source in sources]),
        "network": _described([], lambda: [structure(network) for network in networks]),
        "weights": ", ".join(map(weights_checksum, networks)),
        "precision": str(precision),
        "inputs": _described([], lambda: inputs),
        "collate_fn": _described([], lambda: loader.collate_fn),
        "images": str(len(loader.dataset)),  # type: ignore[arg-type]
        "content of the images": _described([], lambda: dataset_digest(loader.dataset)),
        "processes": str(processes),
    }


def _described(names: list[str], content: Callable[[], Any]) -> str:
    """Return names for people and the digest of a content, or that it has none."""
    try:
        return " ".join([*map(without_addresses, names), digest(content())])
    except UnidentifiedError as error:
        return f"{UNIDENTIFIED}{error}"


def _settings(source: CAMSource) -> Any:
    """Return the class of a source and what determines its maps beside the network."""
    of_network = {id(module) for module in source.model.modules()}
    settings = {name: value for name, value in vars(source).items() if id(value) not in of_network}
    if type(source).__module__.startswith(adapters.__name__):
        settings = {
            # The objects of other libraries have hooks and activations.
            name: value if name in ("call_arguments", "reshape_transform") else plain_settings(value)
            for name, value in settings.items()
        }
    return type(source), settings


class PartialResult:
    """The file of one rank: how many of its images are done, and the states of the metrics after them.

    Args:
        folder: the folder with the files of all ranks.
        rank: the rank of this process.
        key: what `run_key` returns for this run.
        assume_unchanged: whether to continue although a part of the key is not identified.
    """

    def __init__(
        self, folder: Path, rank: int, key: dict[str, str], *, assume_unchanged: bool = False
    ) -> None:
        self.file = folder / f"rank-{rank}.pt"
        self.key = key
        self.assume_unchanged = assume_unchanged

    def save(self, done: int, metric: AnyMetric) -> None:
        """Write the file atomically.

        Args:
            done: the number of images of this rank that are done.
            metric: the metric with the states after them.
        """
        random_states = {
            name: member._pipeline.random_stream.state_dict()
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
            PartialResultError: if the file belongs to another run, cannot be read, or it is not known whether
                it belongs to this run.
        """
        if not self.file.exists():
            return 0
        try:
            found = torch.load(self.file, map_location="cpu", weights_only=True)
            key, done, states, random_states = (found[name] for name in ("key", "done", "states", "random"))
        except Exception as error:
            # torch's own message recommends to load the file without weights_only, which is unsafe.
            raise PartialResultError(
                f"{self.file} is not a partial result of an evaluation ({type(error).__name__})",
                "remove it to start over",
            ) from error
        for name, value in self.key.items():
            if key.get(name) != value:
                raise PartialResultError(
                    f"{self.file} belongs to a run with {name}={key.get(name)!r}, and this run has {value!r}",
                    "repeat that run unchanged, or remove the folder to start over",
                )
        unidentified = unidentified_parts(self.key)
        if unidentified and not self.assume_unchanged:
            raise PartialResultError(
                f"{self.file} may belong to another run: {unidentified} cannot be compared with that of the"
                " interrupted run",
                "pass assume_unchanged=True if nothing has changed, or remove the folder to start over",
                may_be_unchanged=True,
            )
        restore_states(metric, states)
        for name, member in updated_metrics(metric):
            if isinstance(member, CAMMetric):
                member._pipeline.random_stream.load_state_dict(random_states[name])
        return int(done)

    def remove(self) -> None:
        """Delete the file, if there is one."""
        self.file.unlink(missing_ok=True)


def unidentified_parts(key: dict[str, str]) -> str:
    """Return the parts of the key of a run that cannot be compared, with their reasons; empty for none."""
    return ", ".join(
        f"{name} ({value.removeprefix(UNIDENTIFIED)})"
        for name, value in key.items()
        if value.startswith(UNIDENTIFIED)
    )


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
