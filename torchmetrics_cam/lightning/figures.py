"""Logging of figures: to every logger that accepts images, else to a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_figure(trainer: Trainer, name: str, figure: "Figure", directory: Path | None = None) -> None:
    """Log a figure to the loggers of a trainer; call it on rank 0 only.

    A logger with ``log_image(key, images, step=)`` (`WandbLogger`) gets an image. A logger whose
    ``experiment`` has ``add_figure`` (`TensorBoardLogger`) or ``log_figure`` (`CometLogger`, `MLFlowLogger`)
    gets the figure. For other loggers, and without a logger, the figure is written to
    ``<directory>/<name>/epoch=…-step=….png``.

    Args:
        trainer: the trainer.
        name: the name of the figure.
        figure: a figure of matplotlib.
        directory: the directory of the files; None for that of the logger, or the trainer's default.
    """
    step = trainer.global_step
    loggers = [logger for logger in trainer.loggers if not isinstance(logger, DummyLogger)]
    without_images = [logger for logger in loggers if not _log_image(logger, name, figure, step)]
    if loggers and not without_images:
        return
    folder = directory or _directory(trainer, without_images[0] if without_images else None)
    file = folder / name / f"epoch={trainer.current_epoch}-step={step}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)


def _log_image(logger: Logger, name: str, figure: "Figure", step: int) -> bool:
    """Log a figure to one logger; return False if the logger accepts no images."""
    if callable(log_image := getattr(logger, "log_image", None)):
        log_image(name, [_pixels(figure)], step=step)
        return True
    experiment = getattr(logger, "experiment", None)
    if callable(add_figure := getattr(experiment, "add_figure", None)):
        add_figure(name, figure, global_step=step)
        return True
    if callable(log_figure := getattr(experiment, "log_figure", None)):
        if hasattr(logger, "run_id"):
            # MLflow stores figures as files of a run.
            log_figure(logger.run_id, figure, f"{name}/step={step}.png")
        else:
            log_figure(figure_name=name, figure=figure, step=step)
        return True
    return False


def _directory(trainer: Trainer, logger: Logger | None) -> Path:
    # Not trainer.log_dir: it is a collective operation, and this runs on one rank.
    of_logger = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)
    return Path(of_logger or trainer.default_root_dir)


def _pixels(figure: "Figure") -> "np.ndarray[Any, Any]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
