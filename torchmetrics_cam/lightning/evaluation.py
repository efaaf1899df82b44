"""evaluate(): a metric over a whole dataset, on as many devices as there are, each image exactly once."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)
from torchmetrics import Metric, MetricCollection

from torchmetrics_cam.guard import untouched, weights_kept
from torchmetrics_cam.lightning.batches import BatchInputs, update_arguments
from torchmetrics_cam.metrics.base import CAMMetric


def evaluate(
    metric: Metric | MetricCollection,
    data: Dataset[Any] | DataLoader[Any],
    *,
    inputs: BatchInputs | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    **trainer_settings: Any,
) -> Any:
    """The value of a metric over a dataset, each image exactly once over all devices.

    The samplers that a distributed run usually has repeat images until every rank has equally many, and those
    images count twice. Here rank r of n takes the images r, r + n, r + 2n and so on, and no more.

    Afterwards the metric of rank zero (with ``ddp_spawn``: the one that was passed) holds the sums over all
    ranks and the others are empty, so that ``metric.total`` and ``metric.nan_count`` are those of the whole
    dataset. The model is where it was, in the dtype that it had.

    Args:
        metric: an empty metric of this package, or a `MetricCollection` or wrapper with at least one in it.
        data: a dataset with a length, or a dataloader over one. Of the dataloader all settings are kept but
            the order of the images and ``drop_last``.
        inputs: from a batch to its images, or to the arguments of ``update`` by name, such as
            ``lambda batch: {"input_tensor": batch[0], "class_idx": batch[1]}``. None takes the images of
            ``(images, labels)`` or of a dict, and explains the model's top class.
        batch_size: images in a batch and device, if ``data`` is a dataset.
        num_workers: processes that load images, if ``data`` is a dataset.
        trainer_settings: ``accelerator``, ``devices``, ``num_nodes``, ``strategy`` (``"ddp"``,
            ``"ddp_spawn"`` or their objects), ``precision`` and whatever else `lightning.Trainer` takes.
            ``devices`` is by default all of them, and under ``torchrun`` as many as it has started.

    Returns:
        What ``metric.compute()`` gives over all ranks, on every rank.

    Raises:
        TypeError: if the metric is none, or has none of this package in it.
        ValueError: if the metric already holds images, or the data cannot be split over several ranks.

    Example:
        >>> import torch
        >>> from torch import nn
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
    trainer = Trainer(**(settings | trainer_settings), use_distributed_sampler=False)
    if not isinstance(data, DataLoader):
        data = DataLoader(data, batch_size, num_workers=num_workers)
    if trainer.world_size > 1:
        _check_divisible(data)

    networks = _networks(metric)
    with (
        untouched(networks),
        weights_kept(networks),
        _on_its_device(metric),
        tempfile.TemporaryDirectory() as folder,
    ):
        module = _Evaluation(metric, networks, data, inputs, Path(folder))
        trainer.test(module, verbose=False)
        module.finish()
    return module.value


class _Evaluation(LightningModule):
    """The loop: update on every batch, and the sums over all ranks at the end."""

    def __init__(
        self,
        metric: Metric | MetricCollection,
        networks: nn.ModuleList,
        loader: DataLoader[Any],
        inputs: BatchInputs | None,
        folder: Path,
    ) -> None:
        super().__init__()
        # The networks first: a copy of this module then has the metric follow the copied networks.
        self.networks = networks
        self.metric = metric
        self.loader = loader
        self.inputs = inputs
        self.outcome = folder / "outcome"
        self.process = os.getpid()
        self.value: Any = None

    def test_dataloader(self) -> DataLoader[Any]:
        return _share(self.loader, self.trainer.global_rank, self.trainer.world_size)

    def test_step(self, batch: Any) -> None:
        if batch is not None:
            self.metric.update(**update_arguments(batch, self.inputs))

    def on_test_epoch_end(self) -> None:
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


def _share(loader: DataLoader[Any], rank: int, world_size: int) -> DataLoader[Any]:
    """The part of the data that one rank looks at."""
    if not _covers_the_dataset_once(loader):
        return loader
    indices = range(rank, len(loader.dataset), world_size)  # type: ignore[arg-type]
    if not indices:
        # A rank without a batch would leave the loop early, and the others would wait for it at the end.
        return DataLoader([None], batch_size=None)  # type: ignore[arg-type]
    return DataLoader(
        Subset(loader.dataset, indices),
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
    )


def _covers_the_dataset_once(loader: DataLoader[Any]) -> bool:
    batches_are_the_users = loader.batch_size is None and loader.batch_sampler is not None
    if isinstance(loader.dataset, IterableDataset) or batches_are_the_users:
        return False
    sampler = loader.sampler
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    return type(sampler) in (SequentialSampler, DistributedSampler)


def _check_divisible(loader: DataLoader[Any]) -> None:
    if not _covers_the_dataset_once(loader):
        kind = type(loader.dataset if isinstance(loader.dataset, IterableDataset) else loader.sampler)
        raise ValueError(
            f"a dataloader with a {kind.__name__} cannot be split over ranks so that each image counts once;"
            " pass a dataset with a length, such as torch.utils.data.Subset(dataset, indices)"
        )


def _check_metric(metric: Any) -> None:
    if not isinstance(metric, nn.Module) or not any(isinstance(m, CAMMetric) for m in metric.modules()):
        raise TypeError(
            f"metric is a {type(metric).__name__}; pass a metric of torchmetrics_cam, or a MetricCollection"
            " or wrapper with one in it"
        )
    for member in metric.modules():
        if isinstance(member, Metric) and member.update_called:
            raise ValueError(
                f"{member!r} already holds {member.update_count} updates, which every rank would count again;"
                " call reset() first, or pass a new metric"
            )


def _members(metric: Metric | MetricCollection) -> Iterator[tuple[str, Metric]]:
    for name, member in metric.named_modules():
        if isinstance(member, Metric):
            yield name, member


def _restore(metric: Metric | MetricCollection, states: dict[str, tuple[int, dict[str, Any]]]) -> None:
    for name, member in _members(metric):
        member._update_count, values = states[name]
        for state, value in values.items():
            setattr(member, state, value)
        member._computed = None


def _networks(metric: nn.Module) -> nn.ModuleList:
    """The networks behind a metric, each once."""
    found = [member.source.model for member in metric.modules() if isinstance(member, CAMMetric)]
    return nn.ModuleList(dict.fromkeys(found))


@contextmanager
def _on_its_device(metric: Metric | MetricCollection) -> Iterator[None]:
    """The Trainer moves the metric to the device of the run, and from there to the CPU."""
    devices = [(member, member.device) for _, member in _members(metric)]
    try:
        yield
    finally:
        for member, device in devices:
            member.to(device)
