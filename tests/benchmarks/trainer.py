"""What a Lightning Trainer adds to a metric: one validation with it, over the same loop written by hand.

    python tests/benchmarks/trainer.py [--model resnet18] [--layer layer4] [--batch 16] [--batches 8] [--rounds 7]

It ends with status 1 if the metric in ``trainer.validate`` misses its target.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torchvision
from results import THREADS, environment, interleaved, summary, table, with_quartiles, write
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
    """A network and its metric."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model = model
        self.metric = AverageDrop(GradCAM(model, layer))

    def validation_step(self, batch: list[Tensor], _batch_idx: int) -> None:
        self.metric.update(batch[0])
        self.log("average_drop", self.metric)


class Idle(pl.LightningModule):
    """A network of which the callback does all that is done."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def validation_step(self, batch: list[Tensor], _batch_idx: int) -> None:
        pass


def by_hand(model: nn.Module, layer: str, loader: DataLoader[Any]) -> float:
    """The floor: the metric over the batches, in inference mode as the Trainer runs it."""
    metric = AverageDrop(GradCAM(model, layer))
    with torch.inference_mode():
        for (images,) in loader:
            metric.update(images)
    return metric.compute().item()


def in_validate(model: nn.Module, layer: str, loader: DataLoader[Any]) -> float:
    """The metric in the validation step."""
    trainer = pl.Trainer(**QUIET)
    return trainer.validate(Validation(model, layer), loader, verbose=False)[0]["average_drop"]


def in_callback(model: nn.Module, layer: str, loader: DataLoader[Any]) -> float:
    """The callback with its three values, and without the figure."""
    callback = CAMEvaluation({"Grad-CAM": GradCAM(model, layer)}, max_batches=None, num_images=0)
    trainer = pl.Trainer(**QUIET, callbacks=[callback])
    return trainer.validate(Idle(model), loader, verbose=False)[0]["cam/Grad-CAM/average_drop"]


def in_evaluate(model: nn.Module, layer: str, loader: DataLoader[Any]) -> float:
    """evaluate()."""
    return float(evaluate(AverageDrop(GradCAM(model, layer)), loader, **QUIET))


CASES: dict[str, Callable[[nn.Module, str, DataLoader[Any]], float]] = {
    BASELINE: by_hand,
    TARGETED: in_validate,
    "CAMEvaluation in trainer.validate": in_callback,
    "evaluate()": in_evaluate,
}


def times(model: nn.Module, layer: str, loader: DataLoader[Any], rounds: int) -> dict[str, list[float]]:
    """Seconds of every case in every round; all cases give one value."""
    values = {name: case(model, layer, loader) for name, case in CASES.items()}
    assert max(values.values()) - min(values.values()) < 1e-5, values
    return interleaved({name: partial(case, model, layer, loader) for name, case in CASES.items()}, rounds)


def report(result: dict[str, Any]) -> str:
    """What was found, for people."""
    settings = result["settings"]
    rows = [
        (name, f"{seconds['median']:.2f}", with_quartiles(seconds))
        for name, seconds in result["seconds"].items()
    ]
    return f"""# What a Trainer adds to a metric

{settings["model"]}, random weights, layer {settings["layer"]}, {settings["batches"]} batches of {settings["batch"]},
{SIDE} px, on {result["environment"]["threads"]} threads of a CPU; start and end of the Trainer included. Median of
{settings["rounds"]} interleaved rounds. The load average at the start was
{result["environment"]["load_average"][0]}. Written by `trainer.py`; all figures are in `trainer.json`.

{table(("", "time, s", "ratio (quartiles)"), rows)}

The target of {TARGETED}: {TARGET} of the loop by hand.
{"It is met." if result["target_met"] else "It is not met."}"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and write JSON and Markdown beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--layer", default="layer4")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(""))
    options = parser.parse_args(arguments)

    torch.set_num_threads(THREADS)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    torch.manual_seed(0)
    circumstances = environment()
    model = torchvision.models.get_model(options.model, weights=None).eval()
    images = torch.randn(options.batch * options.batches, 3, SIDE, SIDE)
    loader = DataLoader(TensorDataset(images), batch_size=options.batch)
    seconds = summary(times(model, options.layer, loader, options.rounds), BASELINE)
    result = {
        "environment": circumstances,
        "settings": {name: value for name, value in vars(options).items() if name != "out"},
        "seconds": seconds,
        "target_met": seconds[TARGETED]["ratio"] <= TARGET,
    }
    write(options.out, result, report(result))
    return 0 if result["target_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
