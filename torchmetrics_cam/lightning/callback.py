"""CAMEvaluation: watches during training whether the explanations of a network are faithful."""

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
from torchmetrics_cam.lightning.batches import BatchInputs, update_arguments
from torchmetrics_cam.lightning.figures import log_figure
from torchmetrics_cam.metrics.arguments import check_scoring
from torchmetrics_cam.metrics.comparison.metric import CAMComparison
from torchmetrics_cam.model.guard import modes_kept
from torchmetrics_cam.pipeline.batch import Batch
from torchmetrics_cam.pipeline.explain import Explanation
from torchmetrics_cam.protocol import EvaluationProtocol, as_protocol
from torchmetrics_cam.report.worst import WorstExplained, worst, worst_figure, worst_of

Sources = Mapping[str, Any]


class CAMEvaluation(Callback):
    """Average Drop, Increase in Confidence and Average Gain of a network while it trains.

    It runs on the first batches of the validation, also of ``trainer.validate``, and needs nothing of the
    LightningModule. Its values are logged through Lightning as ``{name}/{method}/average_drop`` and so on, so
    that loggers, the progress bar, `ModelCheckpoint` and `EarlyStopping` know them. The images with the
    highest drop, the mean over the methods, go to the loggers as one figure: as a picture to those that take
    pictures, as a file to those that do not.

    During the sanity check it runs, so that a wrong layer is found before training, and logs nothing.
    Network, gradients and training are the same with and without it.

    Args:
        sources: where the maps come from, by the name of the method, or a function from the LightningModule
            to that, such as ``lambda module: {"Grad-CAM": GradCAM(module.model, "layer4")}``. The function is
            called when the network stands and is on its device; hooks of extractors that it makes are removed
            at the end. With ``ddp_spawn`` it is sent to other processes, so it must be a named function.
        every_n_epochs: of every n epochs the first that validates is evaluated. Its value stays in force
            until the next, so `EarlyStopping` needs a ``patience`` of at least n.
        max_batches: so many batches of a validation, on each device; None for all.
        inputs: from a batch to its images, or to the arguments of ``update`` by name, such as
            ``lambda batch: {"input_tensor": batch[0], "class_idx": batch[1]}``. None takes the images of
            ``(images, labels)`` or of a dict, and explains the model's top class.
        dataloader_idx: which of several validation dataloaders; a second callback, with another ``name``,
            can look at another.
        logits_fn, protocol, batch_size: as for `AverageDrop`.
        num_images: how many images the figure shows; 0 for no figure.
        to_colors: from images ``(N, C, H, W)`` as the model takes them to colors in [0, 1],
            ``(N, 3, H, W)``, for the figure; None stretches each image from its lowest to its highest
            value.
        class_names: the names of the classes, for the figure.
        directory: where figures go that no logger takes; None for the logger's own directory.
        name: the first part of every logged name, another for each callback of a Trainer.
        prog_bar: whether the values are shown in the progress bar.

    Raises:
        ModuleNotFoundError: if there is a figure to draw and matplotlib is missing.
        TypeError: if a setting is of a wrong type.
        ValueError: if a number is out of range, there is no such protocol or dataloader, or another
            CAMEvaluation of the Trainer has the same name.

    Example:
        >>> from torchmetrics_cam.cams import GradCAM
        >>> from torchmetrics_cam.lightning import CAMEvaluation
        >>> callback = CAMEvaluation(lambda module: {"Grad-CAM": GradCAM(module.model, "layer4")})

    """

    def __init__(
        self,
        sources: Sources | Callable[[LightningModule], Sources],
        *,
        every_n_epochs: int = 1,
        max_batches: int | None = 8,
        inputs: BatchInputs | None = None,
        dataloader_idx: int = 0,
        logits_fn: Callable[[Any], Any] | None = None,
        protocol: EvaluationProtocol | str | None = None,
        batch_size: int | None = None,
        num_images: int = 4,
        to_colors: Callable[[Tensor], Tensor] | None = None,
        class_names: Sequence[str] | None = None,
        directory: str | Path | None = None,
        name: str = "cam",
        prog_bar: bool = False,
    ) -> None:
        if not callable(sources):
            _check_sources(sources)
        for setting, value, least in (
            ("every_n_epochs", every_n_epochs, 1),
            ("max_batches", max_batches, 1),
            ("dataloader_idx", dataloader_idx, 0),
            ("num_images", num_images, 0),
        ):
            if value is None and setting == "max_batches":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{setting} is {value!r}; it must be an integer")
            if value < least:
                raise ValueError(f"{setting} is {value}; it must be at least {least}")
        check_scoring(logits_fn, None, batch_size)
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
        self.settings: dict[str, Any] = {
            "logits_fn": logits_fn,
            "protocol": as_protocol(protocol),
            "batch_size": batch_size,
        }
        self.num_images = num_images
        self.to_colors = to_colors
        self.class_names = class_names
        self.directory = None if directory is None else Path(directory)
        self.name = name
        self.prog_bar = prog_bar
        self._made: Sources = {}
        self._comparisons: list[_Comparison] = []
        self._worst: list[WorstExplained] = []
        self._last_epoch: int | None = None
        self._due, self._muted = False, ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to log under the names of another callback."""
        same = [one for one in _evaluations(trainer) if one.name == self.name]
        if len(same) > 1:
            raise ValueError(
                f"{len(same)} CAMEvaluation callbacks log under the name {self.name!r}, and Lightning would"
                ' mix their values; give each its own, such as CAMEvaluation(..., name="cam_shifted")'
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the metrics before the first batch, so that a wrong layer is found before training."""
        self._prepare(pl_module)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew, if this epoch is one to evaluate."""
        loaders = len(trainer.num_val_batches)
        if self.dataloader_idx >= loaders:
            raise ValueError(
                f"dataloader_idx is {self.dataloader_idx}, and there are {loaders} validation dataloaders"
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
        """Explain the batch, and mask and score it again, in the precision of the Trainer."""
        beyond = self.max_batches is not None and batch_idx >= self.max_batches
        if beyond or dataloader_idx != self.dataloader_idx or not self._due:
            return
        arguments = update_arguments(batch, self.inputs)
        self._muted.close()
        try:
            with trainer.precision_plugin.forward_context():
                for comparison in self._comparisons:
                    comparison.update(**arguments)
        finally:
            self._mute()
        explained = [one for comparison in self._comparisons for one in comparison.take()]
        if self.num_images:
            found = worst_of(
                explained,
                self.settings["protocol"],
                count=self.num_images,
                class_names=self.class_names,
            )
            self._worst = worst([*self._worst, *found], self.num_images)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the values over all ranks, and one figure."""
        if trainer.sanity_checking or not self._due:
            return
        for comparison in self._comparisons:
            for key, value in comparison.compute().items():
                if not key.endswith(("_lower", "_upper")):
                    # That of all ranks already; sync_dist tells Lightning, and leaves it as it is.
                    pl_module.log(f"{self.name}/{key}", value.float(), prog_bar=self.prog_bar, sync_dist=True)
        found = worst(_from_all_ranks(self._worst), self.num_images)
        if found and trainer.is_global_zero and not (trainer.fast_dev_run or trainer.barebones):  # type: ignore[attr-defined]
            methods = [method for comparison in self._comparisons for method in comparison.methods]
            figure = worst_figure(found, methods, self.to_colors)
            log_figure(trainer, f"{self.name}/worst_explained", figure, self.directory)
        self._worst = []

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing on the network, also after an error or an interrupt."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave nothing on the network."""
        self._release()

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return True
        epoch, last = trainer.current_epoch, self._last_epoch
        if last is not None and epoch != last and epoch // self.every_n_epochs == last // self.every_n_epochs:
            return False
        self._last_epoch = epoch
        return True

    def _prepare(self, pl_module: LightningModule) -> None:
        if not self._comparisons:
            # Making an object of pytorch-grad-cam switches to evaluation mode.
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
                self._comparisons.append(_Comparison(sources, controls=False, **self.settings))
            self._mute()
        for comparison in self._comparisons:
            comparison.to(pl_module.device)

    def _mute(self) -> None:
        """Objects of other libraries keep activations of every forward pass, also those of the training."""
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


class _Comparison(CAMComparison):
    """It keeps, until it is taken, what the last batch was."""

    last: Batch | None = None

    def take(self) -> list[tuple[Explanation, Tensor]]:
        assert self.last is not None
        batch, self.last = self.last, None
        return list(zip(batch._perturbed.explanations, batch.masked_scores, strict=True))

    def accumulate(self, batch: Batch, index: Any = None) -> None:
        super().accumulate(batch, index)
        self.last = batch


def _check_sources(sources: Any) -> None:
    if not isinstance(sources, Mapping) or not sources:
        raise TypeError(
            f"sources is {sources!r}; give each a name, such as {{'Grad-CAM': GradCAM(model, 'layer4')}}, or"
            " pass a function from the LightningModule to that"
        )
    for source in sources.values():
        as_source(source)


def _evaluations(trainer: Trainer) -> list[CAMEvaluation]:
    return [callback for callback in trainer.callbacks if isinstance(callback, CAMEvaluation)]  # type: ignore[attr-defined]


def _from_all_ranks(found: list[WorstExplained]) -> list[WorstExplained]:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return found
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, found)
    return [one for ranks in gathered for one in ranks]
