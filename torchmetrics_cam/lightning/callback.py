"""CAMEvaluation: a Lightning callback that measures the faithfulness of maps during training."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from torchmetrics_cam.cams.resolve import as_source
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.lightning.data import BatchInputs, update_arguments
from torchmetrics_cam.lightning.figures import log_figure
from torchmetrics_cam.metrics.comparison.metric import CAMComparison
from torchmetrics_cam.model.guard import modes_kept
from torchmetrics_cam.pipeline.batch import Batch
from torchmetrics_cam.pipeline.checks import check_scoring
from torchmetrics_cam.pipeline.pipeline import Scorer
from torchmetrics_cam.protocol import EvaluationProtocol, as_protocol
from torchmetrics_cam.report.gallery import ExplainedImage, explanation_figure, worst_explained

Sources = Mapping[str, Any]


class CAMEvaluation(Callback):
    """Average Drop, Increase in Confidence and Average Gain of a network during training.

    The callback evaluates the first batches of each validation, also in ``trainer.validate``, and needs no
    change in the LightningModule. It logs the values through Lightning as ``{name}/{method}/average_drop``,
    ``{name}/{method}/increase_in_confidence`` and ``{name}/{method}/average_gain``, so loggers, the progress
    bar, `ModelCheckpoint` and `EarlyStopping` can use them. It also logs one figure of the images with the
    highest drop (the mean over the methods): as an image to loggers that accept images, else as a file.

    In the sanity check before training, the callback runs without logging, so that a wrong layer is found
    early. The network, its gradients and the training are the same with and without the callback.

    Let p be the score of the target class on an image and o its score on the masked image. In the default
    protocol, Average Drop is the mean of max(0, p - o) / p, Increase in Confidence is the fraction of images
    with p < o (both arXiv 1710.11063), and Average Gain is the mean of max(0, o - p) / (1 - p) (arXiv
    2301.07002). All three lie in [0, 1].

    Args:
        sources: the sources of the maps by name of the method, or a function from the LightningModule to
            such a mapping, as ``lambda module: {"Grad-CAM": GradCAM(module.model, "layer4")}``. The function
            is called when the network is on its device; hooks of the extractors that it makes are removed at
            the end. With ``ddp_spawn`` it must be a module-level function, because it is pickled.
        every_n_epochs: the callback evaluates the first epoch with a validation of every n epochs. In
            between, the last value stays logged, so `EarlyStopping` needs a ``patience`` of at least n.
        max_batches: the number of batches of a validation to evaluate on each device; None for all.
        inputs: a function from the batch to its images, or to the arguments of ``update`` by name, such as
            ``lambda batch: {"input_tensor": batch[0], "class_idx": batch[1]}``. None takes the images of
            ``(images, labels)`` or of a dict, and explains the model's top class. A dict of
            ``"input_tensor"``, ``"class_idx"`` and ``"objects"``, as `MosaicDataset` gives it, is taken as
            it is.
        dataloader_idx: the index of the validation dataloader to evaluate. For another dataloader, add a
            second callback with another ``name``.
        logits_fn: a function from the model's raw output to scores ``(N, K)``; None takes the protocol's.
        protocol: an `EvaluationProtocol` or the name of a preset; None for ``"paper"``.
        scorer: a function from images to the model's raw output, run on masked images in place of the model,
            or ``"compile"`` for a compiled copy of the model, which follows its weights during the training
            and is compiled once.
        batch_size: the largest number of masked images in one forward pass; None for that of the batch.
        num_images: the number of images in the figure; 0 for no figure.
        to_colors: a function from images ``(N, C, H, W)`` as the model takes them to colors in [0, 1],
            ``(N, 3, H, W)``, for the figure; None maps the range of each image to [0, 1].
        class_names: the names of the classes, for the figure.
        directory: the directory for figures that no logger accepts; None for that of the logger.
        name: the first part of every logged name; it must differ between the callbacks of a Trainer.
        prog_bar: whether to show the values in the progress bar.

    Raises:
        ModuleNotFoundError: if ``num_images`` is positive and matplotlib is not installed.
        TypeError: if an argument has a wrong type.
        ValueError: if a number is out of range, the protocol or the dataloader does not exist, or another
            CAMEvaluation of the Trainer has the same name.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader
        >>> from torchmetrics_cam.cams import CallableSource
        >>> from torchmetrics_cam.lightning import CAMEvaluation
        >>> class Halves(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         # The scores are the mean brightness of the left and of the right half of an image.
        ...         self.model = nn.Sequential(nn.AdaptiveAvgPool2d((1, 2)), nn.Flatten())
        ...     def validation_step(self, batch, batch_idx):
        ...         pass
        >>> upper = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 4, 1)
        >>> def sources(module):
        ...     maps = lambda model, images, class_idx: upper.expand(len(images), 4, 4)
        ...     return {"upper half": CallableSource(module.model, maps)}
        >>> callback = CAMEvaluation(sources, logits_fn=nn.Identity(), num_images=0)
        >>> images = torch.zeros(6, 1, 4, 4)
        >>> images[..., :2] = 1
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = Trainer(accelerator="cpu", callbacks=[callback], **quiet)
        >>> (values,) = trainer.validate(Halves(), DataLoader(images, batch_size=3), verbose=False)
        >>> # The maps hide the lower half of the bright pixels, and with it half of the score.
        >>> values["cam/upper half/average_drop"]
        0.5

    """

    def __init__(
        self,
        sources: Callable[[LightningModule], Any] | Sources,
        *,
        every_n_epochs: int = 1,
        max_batches: int | None = 8,
        inputs: BatchInputs | None = None,
        dataloader_idx: int = 0,
        logits_fn: Callable[[Any], Any] | None = None,
        protocol: EvaluationProtocol | str | None = None,
        scorer: Scorer | None = None,
        batch_size: int | None = None,
        num_images: int = 4,
        to_colors: Callable[[Tensor], Any] | None = None,
        class_names: Sequence[str] | None = None,
        directory: str | Path | None = None,
        name: str = "cam",
        prog_bar: bool = False,
    ) -> None:
        if not callable(sources):
            _check_sources(sources)
        _check_integer("every_n_epochs", every_n_epochs, least=1)
        if max_batches is not None:
            _check_integer("max_batches", max_batches, least=1)
        _check_integer("dataloader_idx", dataloader_idx, least=0)
        _check_integer("num_images", num_images, least=0)
        check_scoring(logits_fn, scorer, batch_size)
        if num_images and find_spec("matplotlib") is None:
            raise ModuleNotFoundError(
                'the figure of CAMEvaluation needs matplotlib: pip install "torchmetrics-cam[plot]", or set'
                " num_images=0",
                name="matplotlib",
            )
        self.sources = sources
        self.every_n_epochs = every_n_epochs
        self.max_batches = max_batches
        self.inputs = inputs
        self.dataloader_idx = dataloader_idx
        self.logits_fn = logits_fn
        self.protocol = as_protocol(protocol)
        self.scorer = scorer
        self.batch_size = batch_size
        self.num_images = num_images
        self.to_colors = to_colors
        self.class_names = class_names
        self.directory = None if directory is None else Path(directory)
        self.name = name
        self.prog_bar = prog_bar
        self._made: Sources = {}
        self._comparisons: list[_Comparison] = []
        self._worst: list[ExplainedImage] = []
        self._last_epoch: int | None = None
        self._due, self._muted = False, ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that no other callback logs under the same names."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        same = [one for one in callbacks if isinstance(one, CAMEvaluation) and one.name == self.name]
        if len(same) > 1:
            raise ValueError(
                f"{len(same)} CAMEvaluation callbacks log under the name {self.name!r}, and Lightning would"
                ' mix their values; give each its own, such as CAMEvaluation(..., name="cam_shifted")'
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Create the metrics before the first batch, so that a wrong layer is found before training."""
        self._prepare(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset the metrics, and determine whether this epoch is evaluated."""
        loaders = len(trainer.num_val_batches)
        if self.dataloader_idx >= loaders:
            raise ValueError(
                f"dataloader_idx is {self.dataloader_idx}, but the number of validation dataloaders is"
                f" {loaders}; indices start at 0"
            )
        self._due = self._is_due(trainer)
        self._prepare(pl_module)
        self._worst = []
        for comparison in self._comparisons:
            comparison.reset()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Update the metrics with the batch, in the precision of the Trainer."""
        is_beyond = self.max_batches is not None and batch_idx >= self.max_batches
        if is_beyond or dataloader_idx != self.dataloader_idx or not self._due:
            return
        arguments = update_arguments(batch, self.inputs)
        self._muted.close()
        try:
            with trainer.precision_plugin.forward_context():
                for comparison in self._comparisons:
                    comparison.update(**arguments)
        finally:
            self._mute()
        batches = [comparison.take_batch() for comparison in self._comparisons]
        if self.num_images:
            found = worst_explained(batches, self.num_images, self.class_names)
            self._worst = self._highest_drops([*self._worst, *found])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the values over all ranks, and the figure."""
        if trainer.sanity_checking or not self._due:
            return
        for comparison in self._comparisons:
            for key, value in comparison.compute().items():
                if not key.endswith(("_lower", "_upper")):
                    # The value is that of all ranks already; sync_dist only prevents Lightning's warning.
                    pl_module.log(f"{self.name}/{key}", value.float(), prog_bar=self.prog_bar, sync_dist=True)
        worst = self._highest_drops(_from_all_ranks(self._worst))
        if worst and trainer.is_global_zero and not (trainer.fast_dev_run or trainer.barebones):  # type: ignore[attr-defined]
            figure = explanation_figure([one.in_colors(self.to_colors) for one in worst])
            log_figure(trainer, f"{self.name}/worst_explained", figure, self.directory)
        self._worst = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove all hooks from the network, also after an error or an interrupt."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove all hooks from the network."""
        self._release()

    def _is_due(self, trainer: Trainer) -> bool:
        """Return whether this epoch is the first with a validation of its ``every_n_epochs`` epochs."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return True
        epoch, last = trainer.current_epoch, self._last_epoch
        if last is not None and epoch != last and epoch // self.every_n_epochs == last // self.every_n_epochs:
            return False
        self._last_epoch = epoch
        return True

    def _prepare(self, pl_module: LightningModule) -> None:
        """Create one comparison for each network at the first call, and move them to the module's device."""
        if not self._comparisons:
            # The constructors of pytorch-grad-cam switch the network to evaluation mode.
            with modes_kept(pl_module):
                self._made = self.sources(pl_module) if callable(self.sources) else self.sources
            _check_sources(self._made)
            by_model: dict[nn.Module, dict[str, CAMSource]] = {}
            for method, source in self._made.items():
                source = as_source(source)
                by_model.setdefault(source.model, {})[method] = source
            for model, sources in by_model.items():
                if all(model is not module for module in pl_module.modules()):
                    rank_zero_warn(
                        f"the network of {next(iter(sources))!r} is not part of the LightningModule that is"
                        " validated, so its values do not follow the training; build the sources from the"
                        " module: CAMEvaluation(lambda module: {...})"
                    )
                self._comparisons.append(
                    _Comparison(
                        sources,
                        self.logits_fn,
                        controls=False,
                        protocol=self.protocol,
                        scorer=self.scorer,
                        batch_size=self.batch_size,
                    )
                )
            self._mute()
        for comparison in self._comparisons:
            comparison.to(pl_module.device)

    def _mute(self) -> None:
        """Mute the hooks of other libraries, which would store the activations of every training step."""
        for comparison in self._comparisons if callable(self.sources) else ():
            for source in comparison.sources.values():
                self._muted.enter_context(source.muted())

    def _release(self) -> None:
        self._muted.close()
        if callable(self.sources) and isinstance(self._made, Mapping):
            for source in self._made.values():
                with suppress(TypeError):
                    as_source(source).remove_hooks()
        self._made, self._comparisons, self._worst, self._last_epoch = {}, [], [], None

    def _highest_drops(self, explained: Sequence[ExplainedImage]) -> list[ExplainedImage]:
        return sorted(explained, key=lambda one: one.drop, reverse=True)[: self.num_images]


class _Comparison(CAMComparison):
    """Comparison that keeps the last batch for the figure until `take_batch` returns it."""

    _batch: Batch | None = None

    def accumulate(
        self, batch: Batch, index: Tensor | Sequence[int] | None = None, members: Tensor | None = None
    ) -> None:
        self._batch = batch
        super().accumulate(batch, index, members)

    def take_batch(self) -> Batch:
        assert self._batch is not None
        batch, self._batch = self._batch, None
        return batch


def _check_sources(sources: Any) -> None:
    if not isinstance(sources, Mapping) or not sources:
        raise TypeError(
            f"sources is {sources!r}; give each a name, such as {{'Grad-CAM': GradCAM(model, 'layer4')}}, or"
            " pass a function from the LightningModule to such a mapping"
        )
    for source in sources.values():
        as_source(source)


def _check_integer(argument: str, value: Any, *, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{argument} is {value!r}; it must be an integer")
    if value < least:
        raise ValueError(f"{argument} is {value}; it must be at least {least}")


def _from_all_ranks(explained: list[ExplainedImage]) -> list[ExplainedImage]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return explained
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, explained)
    return [one for rank in gathered for one in rank]
