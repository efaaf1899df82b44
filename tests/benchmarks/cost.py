"""Time and memory of an evaluation, as ratios to the bare forward passes that it cannot do without.

K methods need one pass of the images and K of the masked images. What is taken beyond them is the price of the
explanations, for us and for the libraries that measure the same.

    python tests/benchmarks/cost.py                     # the whole table, hours on two cores
    python tests/benchmarks/cost.py --networks resnet50 --batches 32 --methods 1 4
    python tests/benchmarks/cost.py --render            # cost.md from cost.json

A run replaces its own cells of cost.json and leaves the others. It ends with status 1 if a target is missed.
"""

import argparse
import copy
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytorch_grad_cam
import torch
import torchcam.methods
import torchcam.metrics
import torchvision
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from results import THREADS, environment, interleaved, parser, summary, table, with_quartiles, write
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from torchmetrics_cam import AverageDrop, CAMComparison
from torchmetrics_cam.cams import (
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    PytorchGradCAMSource,
    XGradCAM,
    vit_grid,
)
from torchmetrics_cam.demo import load_model

SIDE = 224
WARM_UP_BATCH, MEMORY_REPEATS, MEMORY_BATCH = 2, 3, 32
LAYERS = {
    "resnet18": "layer4",
    "resnet50": "layer4",
    "mobilenet_v3_large": "features",
    "convnext_tiny": "features",
    "vit_b_16": "encoder.layers.encoder_layer_11.ln_1",
    "efficientnet_lite0": "_blocks.15",
}
OWN = (GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, HiResCAM)
THEIRS = ("GradCAM", "GradCAMPlusPlus", "XGradCAM", "LayerCAM")
TORCHCAMS = ("GradCAM", "GradCAMpp", "XGradCAM", "LayerCAM")
BASELINE, OURS, COMPILED = "bare forwards", "ours", "ours, channels last and compiled scorer"
FOLDED = "the same, batch norms folded"
TORCHCAM, GRAD_CAM, ON_GRAD_CAM = "torchcam", "pytorch-grad-cam", "ours on pytorch-grad-cam's object"

# The most that may be taken: (case, network, methods) -> share of the bare forwards.
TARGETS = {
    (OURS, "resnet50", 1): 1.05,
    (OURS, "resnet50", 4): 1.05,
    (OURS, "mobilenet_v3_large", 4): 1.05,
    (OURS, "resnet18", 4): 1.12,
    (OURS, "resnet50", 8): 1.05,
    (OURS, "mobilenet_v3_large", 8): 1.05,
    (OURS, "resnet18", 8): 1.12,
    (COMPILED, "resnet50", 4): 0.70,
    (COMPILED, "mobilenet_v3_large", 4): 0.55,
}
MEMORY_TARGET = 1.15

# glibc raises its thresholds while a program frees large blocks, and from then on keeps freed blocks of up to
# 32 MiB: every case, the bare forwards too, then peaks anywhere between 400 and 640 MiB. A threshold that is
# set, here to its own initial value, stays, and what is resident is what is alive.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}


class Setting:
    """A network with a batch of images, and what is compared on it."""

    def __init__(self, network: str, batch: int, methods: int) -> None:
        torch.manual_seed(0)
        self.layer = LAYERS[network]
        if network == "efficientnet_lite0":
            self.model = load_model()
        else:
            self.model = torchvision.models.get_model(network, weights=None).eval()
        self.reshape = vit_grid if network.startswith("vit") else None
        self.images = torch.randn(batch, 3, SIDE, SIDE)
        self.methods = methods
        self.fast: dict[str, tuple[nn.Module, Callable[[Tensor], Any]]] = {}
        with torch.inference_mode():
            self.classes = self.model(self.images).argmax(1).tolist()

    def cases(self) -> dict[str, Callable[[Tensor], Any]]:
        """What is timed, by name, as functions of the images."""
        cases: dict[str, Callable[[Tensor], Any]] = {BASELINE: self.bare, OURS: self.ours}
        if self.reshape is None:
            cases[TORCHCAM] = self.torchcam
        if self.methods == 1:
            cases |= {GRAD_CAM: self.grad_cam, ON_GRAD_CAM: self.on_grad_cam}
        if self.methods == 4:
            cases[COMPILED] = self.compiled
            # torch.fx folds into plain convolutions, and those of EfficientNet-Lite are a class of their own.
            if {nn.Conv2d, nn.BatchNorm2d} <= {type(module) for module in self.model.modules()}:
                cases[FOLDED] = self.folded
        return cases

    def bare(self, images: Tensor) -> None:
        """The floor: the model once for the images and once for each method's, in inference mode."""
        with torch.inference_mode():
            for _ in range(1 + self.methods):
                self.model(images)

    def ours(
        self,
        images: Tensor,
        model: nn.Module | None = None,
        scorer: Callable[[Tensor], Any] | None = None,
    ) -> None:
        """Ours, in the default protocol: for one method the single metric, for more a comparison."""
        model = model or self.model
        made = [
            method(model, self.layer, reshape_transform=self.reshape)
            for method in islice(cycle(OWN), self.methods)
        ]
        if self.methods == 1:
            AverageDrop(made[0]).update(images)
        else:
            sources = {f"{place} {source!r}": source for place, source in enumerate(made)}
            # What the scorer says is compared with the model once an evaluation, and not once a batch.
            comparison = CAMComparison(sources, controls=False, scorer=scorer, validate_args=scorer is None)
            comparison.update(images)

    def compiled(self, images: Tensor) -> None:
        """The same with a network in channels-last layout, and the masked images through it compiled and frozen."""
        self._with_scorer(images, COMPILED, copy.deepcopy)

    def folded(self, images: Tensor) -> None:
        """The same once more, with batch norms folded into the convolutions before them in the clean pass too."""
        self._with_scorer(images, FOLDED, folded)

    def _with_scorer(self, images: Tensor, case: str, copied: Callable[[nn.Module], nn.Module]) -> None:
        if case not in self.fast:
            torch._inductor.config.freezing = True
            model = copied(self.model).to(memory_format=torch.channels_last)
            frozen = torch.compile(model)
            self.fast[case] = (
                model,
                lambda masked: frozen(masked.contiguous(memory_format=torch.channels_last)),
            )
        self.ours(images.contiguous(memory_format=torch.channels_last), *self.fast[case])

    def torchcam(self, images: Tensor) -> None:
        """torchcam's metric as its documentation shows it, one method after the other."""
        for name in islice(cycle(TORCHCAMS), self.methods):
            with getattr(torchcam.methods, name)(self.model, self.layer) as extractor:
                softmax = partial(torch.softmax, dim=-1)
                torchcam.metrics.ClassificationMetric(extractor, softmax).update(images)

    def grad_cam(self, images: Tensor) -> None:
        """pytorch-grad-cam's own metric as its tutorial shows it, the classes known."""
        classes = self.classes[: len(images)]
        with self._object() as cam:
            maps = cam(images, targets=[ClassifierOutputTarget(index) for index in classes])
            softmax = [ClassifierOutputSoftmaxTarget(index) for index in classes]
            DropInConfidence()(images, maps, softmax, self.model)

    def on_grad_cam(self, images: Tensor) -> None:
        """Our metric on its object."""
        with self._object() as cam:
            metric = AverageDrop(PytorchGradCAMSource(cam), protocol="grad_cam")
            metric.update(images, class_idx=self.classes[: len(images)])

    def _object(self) -> Any:
        layers = [self.model.get_submodule(self.layer)]
        return pytorch_grad_cam.GradCAM(self.model, layers, reshape_transform=self.reshape)


def folded(model: nn.Module) -> nn.Module:
    """A copy whose convolutions do what the batch norms behind them did; its modules keep their names."""
    copied, fused = copy.deepcopy(model), dict(fuse(model).named_modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            copied.set_submodule(name, fused[name])
        elif isinstance(module, nn.BatchNorm2d) and name not in fused:
            copied.set_submodule(name, nn.Identity())
    return copied


def peak_extra_bytes(case: str, setting: Setting) -> int:
    """How far the resident memory rises above its level before the call; for a process of its own."""
    run = setting.cases()[case]
    run(setting.images[:WARM_UP_BATCH])
    gc.collect()
    # Sets the peak back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run(setting.images)
    return _status("VmHWM") - before


def memory(network: str, batch: int, methods: int, cases: list[str]) -> dict[str, list[int]]:
    """Peak extra bytes of every case, each measured several times in a process of its own."""
    peaks: dict[str, list[int]] = {name: [] for name in cases}
    for _ in range(MEMORY_REPEATS):
        for name in cases:
            command = [sys.executable, __file__, "--peak-of", name, "--networks", network]
            finished = subprocess.run(
                [*command, "--batches", str(batch), "--methods", str(methods)],
                env=os.environ | ALLOCATOR,
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            peaks[name].append(int(finished.stdout))
    return peaks


def measured(network: str, batch: int, methods: int, rounds: int) -> dict[str, Any]:
    """One cell of the table: time, and for large batches memory."""
    print(f"{network}, batch {batch}, {methods} methods", flush=True)
    circumstances = environment()
    setting = Setting(network, batch, methods)
    cases = setting.cases()
    seconds = interleaved({name: partial(run, setting.images) for name, run in cases.items()}, rounds)
    cell = {
        "network": network,
        "batch": batch,
        "methods": methods,
        "rounds": rounds,
        "environment": circumstances | {"load_average_at_end": environment()["load_average"]},
        "seconds": summary(seconds, BASELINE),
    }
    if batch >= MEMORY_BATCH:
        # Compiling takes memory once, which is not what a run takes.
        names = [name for name in cases if name not in (COMPILED, FOLDED)]
        del setting, cases
        cell["bytes"] = summary(memory(network, batch, methods, names), BASELINE)
    return cell


def missed(cells: list[dict[str, Any]]) -> list[str]:
    """The targets that were measured and not met."""
    found = []
    for cell in cells:
        for case, figures in cell["seconds"].items():
            most = TARGETS.get((case, cell["network"], cell["methods"]))
            if cell["batch"] == MEMORY_BATCH and most is not None and figures["ratio"] > most:
                found.append(f"{_named(cell)}: {case} takes {figures['ratio']:.3f}, the target is {most}")
        peak = cell.get("bytes", {}).get(OURS)
        if cell["methods"] == 1 and peak and peak["ratio"] > MEMORY_TARGET:
            found.append(f"{_named(cell)}: memory is {peak['ratio']:.2f}, the target is {MEMORY_TARGET}")
    return found


def report(cells: list[dict[str, Any]]) -> str:
    """What was found, for people."""
    names = (OURS, COMPILED, FOLDED, TORCHCAM, GRAD_CAM, ON_GRAD_CAM)
    of_memory = [name for name in names if name not in (COMPILED, FOLDED)]
    rows, peaks = [], []
    for cell in cells:
        seconds = cell["seconds"]
        shown = [with_quartiles(seconds[name]) if name in seconds else "" for name in names]
        rows.append((_named(cell), f"{seconds[BASELINE]['median']:.2f}", *shown))
        if "bytes" in cell:
            base = cell["bytes"][BASELINE]["median"] / 2**20
            ratios = [cell["bytes"].get(name) for name in of_memory]
            shown = [f"{one['ratio']:.2f}" if one else "" for one in ratios]
            peaks.append((_named(cell), f"{base:.0f}", *shown))
    loads = [cell["environment"]["load_average"][0] for cell in cells]
    verdict = missed(cells)
    return f"""# What an evaluation costs

K methods on one layer, as a multiple of 1 + K bare forward passes in inference mode: median and quartiles of
interleaved rounds, {SIDE} px, {THREADS} threads of a CPU, random weights (EfficientNet-Lite0: ImageNet's). torchcam
and pytorch-grad-cam run with their own metrics, and `ours on pytorch-grad-cam's object` is our metric on the same
object. The load average at the start of a cell was between {min(loads)} and {max(loads)}. Written by `cost.py`;
all figures are in `cost.json`.

## Time

{table(("", "bare, s", *names), rows)}

## Peak memory above the level before the call

Median of {MEMORY_REPEATS} fresh processes, as a multiple of that of the bare forward passes.

{table(("", "bare, MiB", *of_memory), peaks)}

{"Targets missed: " + "; ".join(verdict) if verdict else "All targets are met."}"""


def _named(cell: dict[str, Any]) -> str:
    return f"{cell['network']}, batch {cell['batch']}, K = {cell['methods']}"


def _order(cell: dict[str, Any]) -> tuple[int, int, int]:
    return list(LAYERS).index(cell["network"]), cell["batch"], cell["methods"]


def _status(field: str) -> int:
    """Bytes of a field of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> int:
    """Measure the cells that are asked for, write all that are known, and compare with the targets."""
    options = parser(__doc__, __file__)
    options.add_argument("--networks", nargs="+", choices=LAYERS, default=list(LAYERS))
    options.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="images in the batch")
    options.add_argument("--methods", nargs="+", type=int, default=[1, 4, 8], help="K, the number of methods")
    options.add_argument("--rounds", type=int, default=5, help="how often each case is timed, at least 2")
    options.add_argument("--render", action="store_true", help="only write the .md anew")
    options.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        options.error("the peak of the memory is read from /proc, which only Linux has")
    torch.set_num_threads(THREADS)
    asked = [(n, b, k) for n in arguments.networks for b in arguments.batches for k in arguments.methods]
    if arguments.peak_of:
        print(peak_extra_bytes(arguments.peak_of, Setting(*asked[0])))
        return 0

    stored = arguments.out.with_suffix(".json")
    cells = json.loads(stored.read_text())["cells"] if stored.exists() else []
    for key in [] if arguments.render else asked:
        new = measured(*key, arguments.rounds)
        cells = [cell for cell in cells if (cell["network"], cell["batch"], cell["methods"]) != key]
        cells = sorted([*cells, new], key=_order)
        # After every cell: a table of hours is not lost in its last minute.
        write(arguments.out, {"allocator_of_memory": ALLOCATOR, "cells": cells}, report(cells))
    if arguments.render:
        write(arguments.out, json.loads(stored.read_text()), report(cells))
    for one in missed(cells):
        print(one, file=sys.stderr)
    return 1 if missed(cells) else 0


if __name__ == "__main__":
    sys.exit(main())
