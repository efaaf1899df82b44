"""Time and memory of one metric update, as ratios to two bare forward passes in inference mode.

An update needs two forward passes, of the images and of the masked images; what it takes beyond them is the
price of the explanation.

    python tests/benchmarks/cost.py [--model resnet18] [--layer layer4] [--batch 32] [--rounds 7]

It ends with status 1 if `AverageDrop` misses its targets.
"""

import argparse
import gc
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchcam.methods
import torchcam.metrics
import torchvision
from results import THREADS, environment, interleaved, summary, table, with_quartiles, write
from torch import Tensor, nn

from torchmetrics_cam import AverageDrop, ClassificationMetric
from torchmetrics_cam.cams import GradCAM

TIME_TARGET, MEMORY_TARGET = 1.05, 1.15
BASELINE, TARGETED = "two bare forwards", "AverageDrop(GradCAM)"
SIDE = 224
WARM_UP_BATCH, MEMORY_REPEATS = 2, 3

# glibc raises its thresholds while a program frees large blocks, and from then on keeps freed blocks of up to
# 32 MiB: every case, the bare forwards too, then peaks anywhere between 400 and 640 MiB. A threshold that is
# set, here to its own initial value, stays, and what is resident is what is alive.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}


def bare(model: nn.Module, _layer: str, images: Tensor) -> None:
    """The floor: the model twice, in inference mode."""
    with torch.inference_mode():
        model(images)
        model(images)


def average_drop(model: nn.Module, layer: str, images: Tensor) -> None:
    """Ours, in the default protocol."""
    AverageDrop(GradCAM(model, layer)).update(images)


def torchcam_metric(model: nn.Module, layer: str, images: Tensor) -> None:
    """torchcam's metric as its documentation shows it."""
    with torchcam.methods.GradCAM(model, layer) as extractor:
        torchcam.metrics.ClassificationMetric(extractor, partial(torch.softmax, dim=-1)).update(images)


def classification_metric(model: nn.Module, layer: str, images: Tensor) -> None:
    """Our drop-in for it, on the same extractor."""
    with torchcam.methods.GradCAM(model, layer) as extractor:
        ClassificationMetric(extractor, partial(torch.softmax, dim=-1)).update(images)


CASES = {
    BASELINE: bare,
    TARGETED: average_drop,
    "ClassificationMetric(torchcam GradCAM)": classification_metric,
    "torchcam's ClassificationMetric(torchcam GradCAM)": torchcam_metric,
}


def network(name: str) -> nn.Module:
    """A torchvision model with random weights."""
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval()


def times(model_name: str, layer: str, batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every case in every round."""
    model, images = network(model_name), torch.randn(batch, 3, SIDE, SIDE)
    return interleaved({name: partial(case, model, layer, images) for name, case in CASES.items()}, rounds)


def peak_extra_bytes(case: str, model_name: str, layer: str, batch: int) -> int:
    """How far the resident memory rises above its level before the call; for a process of its own."""
    model, images = network(model_name), torch.randn(batch, 3, SIDE, SIDE)
    CASES[case](model, layer, images[:WARM_UP_BATCH])
    gc.collect()
    # Sets the peak back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    CASES[case](model, layer, images)
    return _status("VmHWM") - before


def memory(model_name: str, layer: str, batch: int) -> dict[str, list[int]]:
    """Peak extra bytes of every case, each measured several times in a process of its own."""
    peaks: dict[str, list[int]] = {name: [] for name in CASES}
    for _ in range(MEMORY_REPEATS):
        for name in CASES:
            command = [sys.executable, __file__, "--peak-of", name, "--model", model_name, "--layer", layer]
            finished = subprocess.run(
                [*command, "--batch", str(batch)],
                env=os.environ | ALLOCATOR,
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            peaks[name].append(int(finished.stdout))
    return peaks


def report(result: dict[str, Any]) -> str:
    """What was found, for people."""
    settings = result["settings"]
    rows = []
    for name, seconds in result["seconds"].items():
        peak = result["bytes"][name]
        rows.append(
            (
                name,
                f"{seconds['median']:.2f}",
                with_quartiles(seconds),
                f"{peak['median'] / 2**20:.0f}",
                f"{peak['ratio']:.2f}",
            )
        )
    header = ("", "time, s", "ratio (quartiles)", "peak extra memory, MiB", "ratio")
    load = result["environment"]["load_average"][0]
    return f"""# What one update costs

{settings["model"]}, random weights, layer {settings["layer"]}, batch {settings["batch"]}, {SIDE} px, on
{result["environment"]["threads"]} threads of a CPU. Time: median of {settings["rounds"]} interleaved rounds.
Memory: median of {MEMORY_REPEATS} fresh processes, above the level before the call. The load average at the
start was {load}. Written by `cost.py`; all figures are in `cost.json`.

{table(header, rows)}

The targets of {TARGETED}: {TIME_TARGET} of the time and {MEMORY_TARGET} of the memory of two bare forwards.
{"Both are met." if result["targets_met"] else "They are not met."}"""


def _status(field: str) -> int:
    """Bytes of a field of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> int:
    """Measure time, then memory, write both, and compare with the targets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet50", help="a name that torchvision.models knows")
    parser.add_argument("--layer", default="layer4", help="the target layer")
    parser.add_argument("--batch", type=int, default=32, help="images in the batch")
    parser.add_argument("--rounds", type=int, default=9, help="how often each case is timed, at least 2")
    parser.add_argument("--out", type=Path, default=Path(__file__), help="where the .json and .md go")
    parser.add_argument("--peak-of", choices=CASES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        parser.error("the peak of the memory is read from /proc, which only Linux has")
    torch.set_num_threads(THREADS)
    setting = (arguments.model, arguments.layer, arguments.batch)
    if arguments.peak_of:
        print(peak_extra_bytes(arguments.peak_of, *setting))
        return 0

    circumstances = environment()
    seconds = summary(times(*setting, arguments.rounds), BASELINE)
    peaks = summary(memory(*setting), BASELINE)
    met = seconds[TARGETED]["ratio"] <= TIME_TARGET and peaks[TARGETED]["ratio"] <= MEMORY_TARGET
    result = {
        "targets": {"case": TARGETED, "time_ratio": TIME_TARGET, "memory_ratio": MEMORY_TARGET},
        "targets_met": met,
        "environment": circumstances | {"load_average_at_end": environment()["load_average"]},
        "settings": {
            "model": arguments.model,
            "layer": arguments.layer,
            "batch": arguments.batch,
            "rounds": arguments.rounds,
            "warm_up_batch_of_memory": WARM_UP_BATCH,
            "allocator_of_memory": ALLOCATOR,
        },
        "seconds": seconds,
        "bytes": peaks,
    }
    write(arguments.out, result, report(result))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
