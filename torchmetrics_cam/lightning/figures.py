"""Where a figure goes: to every logger that takes images, else to a file beside what the logger writes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_figure(trainer: Trainer, name: str, figure: "Figure", directory: Path | None = None) -> None:
    """Hand a figure to the loggers of a trainer; called on the process of rank zero.

    A logger with ``log_image(key, images, step=)`` gets the picture (`WandbLogger`), one whose ``experiment``
    has ``add_figure`` (`TensorBoardLogger`) or ``log_figure`` (`CometLogger`, `MLFlowLogger`) the figure. For
    others, and where there is none, it is written to ``<directory>/<name>/epoch=…-step=….png``.

    Args:
        trainer: the trainer.
        name: the name of the figure.
        figure: a figure of matplotlib.
        directory: where files go; None for the logger's own directory, or the trainer's default.
    """
    step = trainer.global_step
    loggers = [logger for logger in trainer.loggers if not isinstance(logger, DummyLogger)]
    shown = [_shown(logger, name, figure, step) for logger in loggers]
    if all(shown) and loggers:
        return
    unseen = next((logger for logger, done in zip(loggers, shown, strict=True) if not done), None)
    folder = directory or _directory(trainer, unseen)
    file = folder / name / f"epoch={trainer.current_epoch}-step={step}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def _shown(logger: Logger, name: str, figure: "Figure", step: int) -> bool:
    if callable(log_image := getattr(logger, "log_image", None)):
        log_image(name, [_pixels(figure)], step=step)
        return True
    experiment = getattr(logger, "experiment", None)
    if callable(add_figure := getattr(experiment, "add_figure", None)):
        add_figure(name, figure, global_step=step)
        return True
    if callable(log_figure := getattr(experiment, "log_figure", None)):
        if hasattr(logger, "run_id"):
            # MLflow keeps figures as the files of a run.
            log_figure(logger.run_id, figure, f"{name}/step={step}.png")
        else:
            log_figure(figure_name=name, figure=figure, step=step)
        return True
    return False


def _directory(trainer: Trainer, logger: Logger | None) -> Path:
    """Not ``trainer.log_dir``, which is a collective: only one rank is here."""
    own = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)
    return Path(own or trainer.default_root_dir)


def _pixels(figure: "Figure") -> "np.ndarray[Any, Any]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
