"""evaluate(): a metric over a whole dataset, on as many devices as there are, each image exactly once."""

import atexit
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric, MetricCollection, MetricTracker
from torchmetrics.wrappers.abstract import WrapperMetric

from torchmetrics_cam.lightning.batches import BatchInputs, update_arguments
from torchmetrics_cam.lightning.data import check_divisible, is_dealt_out, length, share
from torchmetrics_cam.lightning.process_group import check_process_group, leave_process_group
from torchmetrics_cam.lightning.resume import PartialResult, States, key_of
from torchmetrics_cam.metrics.base import CAMMetric
from torchmetrics_cam.metrics.comparison.metric import CAMComparison
from torchmetrics_cam.model.guard import ModelGuard, weights_kept


def evaluate(
    metric: Metric | MetricCollection | MetricTracker,
    data: Dataset[Any] | DataLoader[Any],
    *,
    inputs: BatchInputs | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    partial: Path | str | None = None,
    save_every: int = 20,
    **trainer_settings: Any,
) -> Any:
    """The value of a metric over a dataset, each image exactly once over all devices.

    The samplers that a distributed run usually has repeat images until every rank has equally many, and those
    images count twice. Here rank r of n takes the images r, r + n, r + 2n and so on, and no more.

    Afterwards the metric of rank zero (with ``ddp_spawn``: the one that was passed) holds the sums over all
    ranks and the others are empty, so that ``metric.total`` and ``metric.nan_count`` are those of the whole
    dataset. `CAMComparison.table` and the like gather once more: with ``torchrun`` or ``ddp`` call them on
    every rank, and print on one. The model is where it was, in the dtype that it had. After an error the
    metric is empty again.

    Args:
        metric: an empty metric of this package, or a `MetricCollection` or wrapper with at least one in it.
        data: a dataset with a length, or a dataloader over one. Of the dataloader all settings are kept but
            the order of the images and ``drop_last``. One that chooses the images by itself, with a sampler
            of its own or in a class of its own, is taken as it is on one device, and refused on several.
        inputs: from a batch to its images, or to the arguments of ``update`` by name, such as
            ``lambda batch: {"input_tensor": batch[0], "class_idx": batch[1]}``. None takes the images of
            ``(images, labels)`` or of a dict, and explains the model's top class.
        batch_size: images in a batch and device, if ``data`` is a dataset.
        num_workers: processes that load images, if ``data`` is a dataset.
        partial: a folder in which each rank keeps what it has so far, so that the same call goes on from
            there after an interrupt, to the same value bit for bit. It stays when all is done.
        save_every: after so many batches.
        trainer_settings: ``accelerator``, ``devices``, ``num_nodes``, ``strategy`` (``"ddp"``,
            ``"ddp_spawn"`` or their objects), ``precision`` and whatever else `lightning.Trainer` takes.
            ``devices`` is by default all of them, and under ``torchrun`` as many as it has started.

    Returns:
        What ``metric.compute()`` gives over all ranks, on every rank.

    Raises:
        TypeError: if the metric is none, or has none of this package in it.
        ValueError: if the metric already holds images, the data cannot be split over several ranks, or a
            process group exists that the Trainer cannot be part of, or ``partial`` holds another run's.

    Example:
        >>> import torch
        >>> from torch import Tensor, nn
        >>> from torch.utils.data import TensorDataset
        >>> from torchmetrics_cam import AverageDrop
        >>> from torchmetrics_cam.cams import UniformMap
        >>> from torchmetrics_cam.lightning import evaluate
        >>> metric = AverageDrop(UniformMap(nn.Flatten()))
        >>> quiet = {"accelerator": "cpu", "enable_progress_bar": False}
        >>> data = TensorDataset(torch.rand(5, 1, 4, 4))
        >>> float(evaluate(metric, data, batch_size=2, **quiet))
        0.0

    """
    _check_metric(metric)
    settings: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        # What torchrun has started; a Trainer on the CPU would take it for a mistake.
        "devices": int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or "auto",
    }
    trainer = Trainer(**(settings | trainer_settings | {"use_distributed_sampler": False}))
    check_process_group(trainer)
    if not isinstance(data, DataLoader):
        data = DataLoader(data, batch_size, num_workers=num_workers)
    if trainer.world_size > 1 or partial is not None:
        check_divisible(data)

    networks = _networks(metric)
    with (
        ModelGuard(networks),
        weights_kept(networks),
        _on_its_device(metric),
        tempfile.TemporaryDirectory() as folder,
    ):
        kept = None if partial is None else (Path(partial).absolute(), save_every)
        module = _TestLoop(metric, networks, data, inputs, Path(folder), kept)
        try:
            trainer.test(module, verbose=False)
        except BaseException:
            module.save()
            metric.reset()
            raise
        module.finish()
    return module.value


class _TestLoop(LightningModule):
    """The loop: update on every batch, and the sums over all ranks at the end."""

    def __init__(
        self,
        metric: Metric | MetricCollection | MetricTracker,
        networks: nn.ModuleList,
        loader: DataLoader[Any],
        inputs: BatchInputs | None,
        folder: Path,
        kept: tuple[Path, int] | None,
    ) -> None:
        super().__init__()
        # The networks first: a copy of this module then has the metric follow the copied networks.
        self.networks = networks
        self.metric = metric
        self.loader = loader
        self.inputs = inputs
        self.outcome = folder / "outcome"
        self.process = os.getpid()
        self.kept = kept
        self.partial: PartialResult | None = None
        # Places of the dataset that this rank has done, and whether the states are between two of them.
        self.seen = 0
        self.updating = False
        self.value: Any = None

    def test_dataloader(self) -> DataLoader[Any]:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        if self.kept is not None:
            key = key_of(self.metric, self.networks, length(self.loader), ranks)
            partial = PartialResult(self.kept[0], rank, key)
            self.seen, states, drawn = partial.load()
            # From here on it is this run's: one that is refused leaves the file as it was.
            self.partial = partial
            if states:
                _restore(self.metric, states)
                for name, member in _members(self.metric):
                    if isinstance(member, CAMMetric):
                        member._pipeline.random_stream.states = drawn[name]
        return share(self.loader, rank, ranks, self.seen)

    def on_test_start(self) -> None:
        # Lightning leaves a gloo group to the end of the process, whose threads may then abort it.
        atexit.unregister(leave_process_group)
        atexit.register(leave_process_group)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.updating = True
        arguments = {} if batch is None else update_arguments(batch, self.inputs)
        count = len(arguments["input_tensor"]) if arguments else 0
        if arguments:
            if _keeps_samples(self.metric):
                # The places in the dataset of the images that this rank takes, as `share` deals them out.
                places = range(self.seen, self.seen + count)
                ranks = self.trainer.world_size
                arguments.setdefault("index", [self.trainer.global_rank + ranks * place for place in places])
            self.metric.update(**arguments)
        # A batch takes as many places of the dataset, also where the collate_fn left images out.
        self.seen += (self.loader.batch_size or 1) if is_dealt_out(self.loader) else count
        self.updating = False
        if self.kept is not None and (batch_idx + 1) % self.kept[1] == 0:
            self.save()

    def save(self) -> None:
        """Keep what this rank has, unless the states are halfway through a batch."""
        if self.partial is not None and not self.updating:
            self.partial.save(self.seen, _members(self.metric))

    def on_test_epoch_end(self) -> None:
        self.save()
        with _synced_on_compute(self.metric):
            self.value = self.metric.compute()
        states = {}
        for name, metric in _members(self.metric):
            with metric.sync_context():
                states[name] = (metric._update_count, metric._copy_state_dict())
        if self.trainer.is_global_zero:
            if os.getpid() == self.process:
                _restore(self.metric, states)
            else:
                # This process ends with the run, and the one that started it wants the numbers.
                torch.save((self.value, states), self.outcome)
        else:
            self.metric.reset()

    def finish(self) -> None:
        """In the process that started the others: take over what they found."""
        if self.outcome.exists():
            self.value, states = torch.load(self.outcome, map_location="cpu", weights_only=False)
            _restore(self.metric, states)


def _check_metric(metric: Any) -> None:
    if not isinstance(metric, Metric | MetricCollection | MetricTracker) or not any(
        isinstance(m, CAMMetric) for m in metric.modules()
    ):
        raise TypeError(
            f"metric is a {type(metric).__name__}; pass a metric of torchmetrics_cam, or a MetricCollection"
            " or wrapper with one in it"
        )
    for _, member in _members(metric):
        # Some wrappers count an update when they are made.
        if member.update_called and not isinstance(member, WrapperMetric):
            raise ValueError(
                f"{member!r} already holds {member.update_count} updates, which every rank would count again;"
                " call reset() first, or pass a new metric"
            )


def _members(metric: Metric | MetricCollection | MetricTracker) -> Iterator[tuple[str, Metric]]:
    """The metrics that are updated; of a tracker those of the present step."""
    current: nn.Module = metric[-1] if isinstance(metric, MetricTracker) and len(metric) else metric
    for name, member in current.named_modules():
        if isinstance(member, Metric):
            yield name, member


def _keeps_samples(metric: Metric | MetricCollection | MetricTracker) -> bool:
    """Whether places of images are kept; a collection hands them to those that take them."""
    members = metric.values() if isinstance(metric, MetricCollection) else [metric]
    return any(isinstance(member, CAMComparison) and member.per_sample for member in members)


def _restore(metric: Metric | MetricCollection | MetricTracker, states: States) -> None:
    for name, member in _members(metric):
        member._update_count, values = states[name]
        for state, value in values.items():
            # Each process has its own names for the models.
            if state != "identity":
                as_it_adds = [value] if member._defaults[state] == [] and isinstance(value, Tensor) else value
                setattr(member, state, _moved(as_it_adds, member.device))
        member._computed = None


def _moved(value: Tensor | list[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    """What was read from a file lies on the CPU."""
    return [one.to(device) for one in value] if isinstance(value, list) else value.to(device)


@contextmanager
def _synced_on_compute(metric: Metric | MetricCollection | MetricTracker) -> Iterator[None]:
    """The value is that of all ranks, also of a metric that was made with ``sync_on_compute=False``."""
    before = [(member, member._to_sync) for _, member in _members(metric)]
    try:
        for member, _ in before:
            member._to_sync = True
        yield
    finally:
        for member, to_sync in before:
            member._to_sync = to_sync


def _networks(metric: nn.Module) -> nn.ModuleList:
    """The networks behind a metric, each once."""
    found = [member.model for member in metric.modules() if isinstance(member, CAMMetric)]
    return nn.ModuleList(dict.fromkeys(found))


@contextmanager
def _on_its_device(metric: Metric | MetricCollection | MetricTracker) -> Iterator[None]:
    """The Trainer moves the metric to the device of the run, and from there to the CPU."""
    devices = [(member, member.device) for _, member in _members(metric)]
    try:
        yield
    finally:
        for member, device in devices:
            member.to(device)
