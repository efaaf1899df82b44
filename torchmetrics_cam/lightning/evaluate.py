"""evaluate(): a metric over a whole dataset on any number of devices, each image exactly once."""

import atexit
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric, MetricCollection, MetricTracker
from torchmetrics.wrappers.abstract import WrapperMetric

from torchmetrics_cam.lightning.data import (
    BatchInputs,
    IndexedBatch,
    custom_selection,
    shard,
    update_arguments,
)
from torchmetrics_cam.lightning.progress import with_progress_bar
from torchmetrics_cam.lightning.resume import (
    AnyMetric,
    PartialResult,
    copy_states,
    restore_states,
    run_key,
    unidentified_parts,
    updated_metrics,
)
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
    keep_partial: bool = False,
    assume_unchanged: bool = False,
    **trainer_arguments: Any,
) -> Any:
    """Compute a metric over a dataset on any number of devices, each image exactly once.

    The usual distributed samplers repeat images until every rank has the same number, and repeated images
    count twice. Here, of ``n`` ranks, rank ``r`` evaluates the images ``r``, ``r + n``, ``r + 2n`` and so on,
    without repetition.

    Afterwards the metric on rank 0 holds the sums over all ranks, so ``metric.total`` and
    ``metric.nan_count`` are those of the whole dataset; the metrics on the other ranks are empty. With
    ``ddp_spawn``, the metric passed to the function holds the sums. `CAMComparison.table` and similar methods
    gather the states again: with ``torchrun`` or ``ddp``, call them on every rank and print on one. The model
    keeps its device and dtype. After an error the metric is empty.

    Args:
        metric: an empty metric of this package, or a `MetricCollection` or wrapper that contains one.
        data: a dataset with a length, or a dataloader of one. The settings of a dataloader are kept, except
            ``shuffle`` and ``drop_last``. A dataloader that selects images with a sampler of its own, or
            that is a subclass of `DataLoader`, runs unchanged on one device and is refused on several. The
            indices in `CAMComparison.samples` are those of the dataset, for an iterable dataset the positions
            in its stream, and -1 where they are not known: from a subclass of `DataLoader`, from workers of
            an iterable dataset, and in batches whose collate function, or ``inputs``, leaves out images that
            are not None. Those functions must keep the order, or ``inputs`` must give ``"index"``.
        inputs: a function from the batch to its images, or to the arguments of ``update`` by name, such as
            ``lambda batch: {"input_tensor": batch[0], "class_idx": batch[1]}``. None takes the images of
            ``(images, labels)`` or of a dict, and explains the model's top class. A dict of
            ``"input_tensor"``, ``"class_idx"`` and ``"objects"``, as `MosaicDataset` gives it, is taken as
            it is.
        batch_size: the number of images in a batch of one device; ignored if ``data`` is a dataloader.
        num_workers: the number of processes that load images; ignored if ``data`` is a dataloader.
        partial: a folder in which each rank saves its partial result. After an interruption, the same call
            continues from there and returns the same value, bit for bit. Another call is refused: functions
            are compared by their code and the values that they refer to, and the dataset by its length and
            the content of 16 items, the first, the last and evenly spaced ones.
        save_every: the number of batches between two saves of the partial result.
        keep_partial: whether to keep the files of the partial result at the end, so that the same call
            returns the value again without an evaluation; by default they are removed.
        assume_unchanged: whether to continue also where a part of the run cannot be compared with the
            interrupted run, such as a function that holds an open file. A warning names it when the run
            starts.
        trainer_arguments: arguments of `lightning.Trainer`, such as ``accelerator``, ``devices``,
            ``num_nodes``, ``strategy`` (``"ddp"``, ``"ddp_spawn"`` or a strategy object) and ``precision``.
            The default of ``devices`` is all devices, and under ``torchrun`` the number of processes that it
            started.

    Returns:
        The value of ``metric.compute()`` over all ranks, on every rank.

    Raises:
        TypeError: if ``metric`` is not a metric, or contains none of this package.
        ValueError: if the metric already holds images, the data cannot be split over several ranks, the
            function was called in a process group that the Trainer does not manage, or ``partial`` belongs to
            another run, or may do so.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> from torchmetrics_cam import AverageDrop
        >>> from torchmetrics_cam.cams import CallableSource
        >>> from torchmetrics_cam.lightning import evaluate
        >>> # The scores are the mean brightness of the left and of the right half of an image.
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten())
        >>> images = torch.zeros(5, 1, 4, 4)
        >>> images[..., :2] = 1
        >>> # Maps that highlight the upper half hide one half of the bright pixels: a drop of 0.5.
        >>> upper = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 4, 1)
        >>> source = CallableSource(model, lambda model, images, class_idx: upper.expand(len(images), 4, 4))
        >>> metric = AverageDrop(source, logits_fn=nn.Identity())
        >>> trainer = {"accelerator": "cpu", "enable_progress_bar": False}
        >>> float(evaluate(metric, TensorDataset(images), batch_size=2, **trainer))
        0.5

    """
    _check_metric(metric)
    defaults: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        # A Trainer on the CPU does not take the number of processes from torchrun.
        "devices": int(os.environ.get("LOCAL_WORLD_SIZE", 0)) or "auto",
    }
    arguments = defaults | with_progress_bar(trainer_arguments) | {"use_distributed_sampler": False}
    trainer = Trainer(**arguments)
    _check_process_group(trainer)
    if not isinstance(data, DataLoader):
        data = DataLoader(data, batch_size, num_workers=num_workers)
    selection = custom_selection(data)
    if selection is not None and (trainer.world_size > 1 or partial is not None):
        raise ValueError(
            f"a {selection} cannot be split over ranks so that each image counts once; pass a dataset with a"
            " length, such as torch.utils.data.Subset(dataset, indices)"
        )

    cam_metrics = [member for member in metric.modules() if isinstance(member, CAMMetric)]
    models = [member.model for member in cam_metrics]
    surrogates = [member.surrogate for member in cam_metrics if member.surrogate is not None]
    networks = nn.ModuleList(dict.fromkeys([*models, *surrogates]))
    with (
        ModelGuard(networks),
        weights_kept(networks),
        _device_restored(metric),
        tempfile.TemporaryDirectory() as folder,
    ):
        module = _TestLoop(
            metric,
            networks,
            data,
            inputs,
            outcome=Path(folder) / "outcome",
            partial_folder=None if partial is None else Path(partial).absolute(),
            save_every=save_every,
            keep_partial=keep_partial,
            assume_unchanged=assume_unchanged,
        )
        try:
            trainer.test(module, verbose=False)
        except BaseException:
            module.save()
            metric.reset()
            raise
        module.load_outcome()
    return module.value


class _TestLoop(LightningModule):
    """Test loop that updates the metric with every batch and computes it over all ranks at the end.

    Args:
        metric: the metric, collection or wrapper.
        networks: the networks behind it.
        loader: the dataloader over the whole dataset.
        inputs: the function from a batch to the arguments of ``update``.
        outcome: the file through which a spawned process returns its result.
        partial_folder: the folder of the partial results; None to keep none.
        save_every: the number of batches between two saves.
        keep_partial: whether to keep the partial results at the end.
        assume_unchanged: whether to continue from a partial result that may be of another run.
    """

    def __init__(
        self,
        metric: AnyMetric,
        networks: nn.ModuleList,
        loader: DataLoader[Any],
        inputs: BatchInputs | None,
        *,
        outcome: Path,
        partial_folder: Path | None,
        save_every: int,
        keep_partial: bool,
        assume_unchanged: bool,
    ) -> None:
        super().__init__()
        # Before the metric, so that in a deep copy of this module the metric refers to the copied networks.
        self.networks = networks
        self.metric = metric
        self.loader = loader
        self.inputs = inputs
        self.takes_objects = _takes_objects(metric)
        self.outcome = outcome
        self.starting_process = os.getpid()
        self.partial_folder = partial_folder
        self.save_every = save_every
        self.keep_partial = keep_partial
        self.assume_unchanged = assume_unchanged
        self.partial: PartialResult | None = None
        self.images_done = 0
        self.updating = False
        self.value: Any = None

    def test_dataloader(self) -> DataLoader[Any]:
        rank, ranks = self.trainer.global_rank, self.trainer.world_size
        if self.partial_folder is not None:
            key = run_key(
                self.metric,
                self.networks,
                self.loader,
                inputs=self.inputs,
                precision=self.trainer.precision,
                processes=ranks,
            )
            unidentified = unidentified_parts(key)
            if unidentified and not self.assume_unchanged:
                rank_zero_warn(
                    f"after an interruption, this evaluation continues only with assume_unchanged=True:"
                    f" {unidentified} cannot be compared with that of the interrupted run"
                )
            partial = PartialResult(self.partial_folder, rank, key, assume_unchanged=self.assume_unchanged)
            self.images_done = partial.load(self.metric)
            # Set after loading: the file of another run, which load refuses, must not be overwritten.
            self.partial = partial
        return shard(self.loader, rank, ranks, self.images_done)

    def on_test_start(self) -> None:
        # Lightning leaves a gloo group open until the process exits, and its threads may then abort it.
        atexit.unregister(_leave_process_group)
        atexit.register(_leave_process_group)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.updating = True
        indexed = batch if isinstance(batch, IndexedBatch) else IndexedBatch(None, [], batch)
        if indexed.content is not None:
            arguments = update_arguments(indexed.content, self.inputs)
            if self.inputs is None and not self.takes_objects:
                arguments.pop("objects", None)
            if _keeps_samples(self.metric):
                arguments.setdefault("index", indexed.index_of_images(len(arguments["input_tensor"])))
            self.metric.update(**arguments)
        # Images that the collate_fn has left out are done as well.
        self.images_done += len(indexed.indices or [])
        self.updating = False
        if (batch_idx + 1) % self.save_every == 0:
            self.save()

    def save(self) -> None:
        """Save the partial result of this rank, unless an update of the states is incomplete."""
        if self.partial is not None and not self.updating:
            self.partial.save(self.images_done, self.metric)

    def on_test_epoch_end(self) -> None:
        self.save()
        with _synced_on_compute(self.metric):
            self.value = self.metric.compute()
        states = {}
        for name, member in updated_metrics(self.metric):
            with member.sync_context():
                states[name] = copy_states(member)
        if not self.trainer.is_global_zero:
            self.metric.reset()
        elif os.getpid() == self.starting_process:
            restore_states(self.metric, states)
        else:
            # A spawned process ends with the run, so it hands the result to the starting process in a file.
            torch.save((self.value, states), self.outcome)
        if self.partial is not None and not self.keep_partial:
            # Not before every rank has the value: if one fails before, the others can continue too.
            self.trainer.strategy.barrier()
            self.partial.remove()

    def load_outcome(self) -> None:
        """Take over the result of a spawned process, if there is one."""
        if self.outcome.exists():
            self.value, states = torch.load(self.outcome, map_location="cpu", weights_only=False)
            restore_states(self.metric, states)


def _check_metric(metric: Any) -> None:
    if not isinstance(metric, AnyMetric) or not any(isinstance(m, CAMMetric) for m in metric.modules()):
        raise TypeError(
            f"metric is a {type(metric).__name__}; pass a metric of torchmetrics_cam, or a MetricCollection"
            " or wrapper that contains one"
        )
    for _, member in updated_metrics(metric):
        # Some wrappers count an update in their constructor.
        if member.update_called and not isinstance(member, WrapperMetric):
            raise ValueError(
                f"{member!r} already holds {member.update_count} updates, which every rank would count again;"
                " call reset() first, or pass a new metric"
            )


def _check_process_group(trainer: Trainer) -> None:
    """Refuse a process group that the Trainer does not manage: every process would evaluate all images."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return
    size = torch.distributed.get_world_size()
    cluster = getattr(trainer.strategy, "cluster_environment", None)
    managed = cluster is not None and cluster.creates_processes_externally and trainer.world_size == size
    if size > 1 and not managed:
        raise ValueError(
            f"evaluate() was called in a process group of {size} processes, which its Trainer with"
            f" {trainer.world_size} of its own does not manage; start the processes with torchrun and pass"
            ' strategy="ddp", or call evaluate() before the process group is initialized'
        )


def _leave_process_group() -> None:
    """Destroy the process group of this process, if it is in one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # Before torch 2.8, destroying a gloo group blocks the interpreter while it waits for its threads,
        # and a thread that still has to release a tensor needs the interpreter: let it finish first.
        time.sleep(0.05)
        torch.distributed.destroy_process_group()


def _keeps_samples(metric: AnyMetric) -> bool:
    """Return whether ``update`` takes the index of each image, also inside a collection or a tracker."""
    current = metric[-1] if isinstance(metric, MetricTracker) else metric
    members = current.values() if isinstance(current, MetricCollection) else [current]
    return any(isinstance(member, CAMComparison) and member.per_sample for member in members)


def _takes_objects(metric: AnyMetric) -> bool:
    """Return whether ``update`` of a metric of this package takes objects, also inside a wrapper."""
    members = [member for member in metric.modules() if isinstance(member, CAMMetric)]
    return any("objects" in signature(member.update).parameters for member in members)


@contextmanager
def _synced_on_compute(metric: AnyMetric) -> Iterator[None]:
    """Let ``compute`` gather all ranks, also for metrics made with ``sync_on_compute=False``."""
    before = [(member, member._to_sync) for _, member in updated_metrics(metric)]
    try:
        for member, _ in before:
            member._to_sync = True
        yield
    finally:
        for member, to_sync in before:
            member._to_sync = to_sync


@contextmanager
def _device_restored(metric: AnyMetric) -> Iterator[None]:
    """Move the metric back to its devices: the Trainer moves it to that of the run, then to the CPU."""
    devices = [(member, member.device) for _, member in updated_metrics(metric)]
    try:
        yield
    finally:
        for member, device in devices:
            member.to(device)
