"""Overhead of a Lightning Trainer: validation with a metric, relative to the same loop written by hand.

    python tests/benchmarks/trainer.py [--model resnet18] [--layer layer4] [--batch 16] [--batches 8] [--rounds 7]

The exit code is 1 if the metric in ``trainer.validate`` misses its target.
"""

import logging
import sys
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
import torchvision
from results import THREADS, environment, interleaved, parser, ratio_text, summary, table, write
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torchmetrics_cam import AverageDrop
from torchmetrics_cam.cams import GradCAM
from torchmetrics_cam.lightning import CAMEvaluation, evaluate

TARGET = 1.03
BASELINE, TARGETED = "AverageDrop, loop by hand", "AverageDrop in trainer.validate"
SIDE = 224
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


class Validation(pl.LightningModule):
    """A module that updates the metric in its validation step."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model = model
        self.metric = AverageDrop(GradCAM(model, layer))

    def validation_step(self, batch: list[Tensor], _batch_idx: int) -> None:
        self.metric.update(batch[0])
        self.log("average_drop", self.metric)


class Idle(pl.LightningModule):
    """A module with an empty validation step; the callback does the evaluation."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def validation_step(self, batch: list[Tensor], _batch_idx: int) -> None:
        pass


def by_hand(model: nn.Module, layer: str, loader: DataLoader[Any]) -> float:
    """Evaluate in a plain loop, the reference; in inference mode, as in the Trainer."""
    metric = AverageDrop(GradCAM(model, layer))
    with torch.inference_mode():
        for (images,) in loader:
            metric.update(images)
    return metric.compute().item()


def in_validate(model: nn.Module, layer: str, loader: DataLoader[Any]) -> float:
    """Evaluate with the metric in the validation step."""
    trainer = pl.Trainer(**QUIET)
    return trainer.validate(Validation(model, layer), loader, verbose=False)[0]["average_drop"]


def in_callback(model: nn.Module, layer: str, loader: DataLoader[Any]) -> float:
    """Evaluate with the callback and its three measures, without the figure."""
    callback = CAMEvaluation({"Grad-CAM": GradCAM(model, layer)}, max_batches=None, num_images=0)
    trainer = pl.Trainer(**QUIET, callbacks=[callback])
    return trainer.validate(Idle(model), loader, verbose=False)[0]["cam/Grad-CAM/average_drop"]


def in_evaluate(model: nn.Module, layer: str, loader: DataLoader[Any]) -> float:
    """Evaluate with `evaluate`."""
    return float(evaluate(AverageDrop(GradCAM(model, layer)), loader, **QUIET))


CASES: dict[str, Callable[[nn.Module, str, DataLoader[Any]], float]] = {
    BASELINE: by_hand,
    TARGETED: in_validate,
    "CAMEvaluation in trainer.validate": in_callback,
    "evaluate()": in_evaluate,
}


def times(model: nn.Module, layer: str, loader: DataLoader[Any], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each case in every round, after a check that all cases compute the same value."""
    values = {name: case(model, layer, loader) for name, case in CASES.items()}
    assert max(values.values()) - min(values.values()) < 1e-5, values
    return interleaved({name: partial(case, model, layer, loader) for name, case in CASES.items()}, rounds)


def report(result: dict[str, Any]) -> str:
    """Return the page of the results."""
    settings = result["settings"]
    rows = [
        (name, f"{seconds['median']:.2f}", ratio_text(seconds)) for name, seconds in result["seconds"].items()
    ]
    return f"""# Overhead of a Lightning Trainer

Duration of one validation, including start and end of the Trainer: {settings["model"]} with random weights, target layer
{settings["layer"]}, {settings["batches"]} batches of {settings["batch"]} images of {SIDE} x {SIDE} pixels,
{result["environment"]["threads"]} CPU threads. Medians of {settings["rounds"]} interleaved rounds; the load average at the
start was {result["environment"]["load_average"][0]}. Written by `trainer.py`; all numbers are in `trainer.json`.

{table(("", "time, s", "ratio (quartiles)"), rows)}

Target: {TARGETED} takes at most {TARGET} times the loop by hand. It is {"met" if result["target_met"] else "not met"}."""


def main() -> int:
    """Measure, write the results, and check the target."""
    options = parser(__doc__, __file__)
    options.add_argument("--model", default="resnet18", help="name of a torchvision network")
    options.add_argument("--layer", default="layer4", help="target layer")
    options.add_argument("--batch", type=int, default=16, help="images per batch")
    options.add_argument("--batches", type=int, default=8, help="number of batches")
    options.add_argument("--rounds", type=int, default=7, help="number of rounds, at least 2")
    arguments = options.parse_args()

    torch.set_num_threads(THREADS)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    torch.manual_seed(0)
    machine = environment()
    model = torchvision.models.get_model(arguments.model, weights=None).eval()
    images = torch.randn(arguments.batch * arguments.batches, 3, SIDE, SIDE)
    loader = DataLoader(TensorDataset(images), batch_size=arguments.batch)
    seconds = summary(times(model, arguments.layer, loader, arguments.rounds), BASELINE)
    result = {
        "environment": machine,
        "settings": {name: value for name, value in vars(arguments).items() if name != "out"},
        "seconds": seconds,
        "target_met": seconds[TARGETED]["ratio"] <= TARGET,
    }
    write(arguments.out, result, report(result))
    return 0 if result["target_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
