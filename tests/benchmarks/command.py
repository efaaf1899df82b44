"""``torchmetrics-cam evaluate`` on the 10,000 test images of Fashion-MNIST: eight methods and three controls.

A small network is trained. The command then evaluates it in one process, in two processes, and in one process that is
interrupted three times at random times and started again. The interrupted run must give the numbers of the uninterrupted one
bit for bit; values, intervals, ranks and counts of two processes must agree to 1e-6. Win rates may differ by a few images:
values that differ by less than the rounding error of a forward pass can be a tie in one run and a win in the other. The time
of the command is compared with that of the bare forward passes that it needs.

    python tests/benchmarks/command.py [--limit 10000]

The exit code is 1 if the numbers differ by more.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from fashion_mnist import DATA, TARGET_LAYER, SmallCNN, accuracy, load, trained
from results import THREADS, environment, parser, table, write
from torch import Tensor, nn
from torch.utils.data import TensorDataset

METHODS = (
    *("grad_cam", "grad_cam_plus_plus", "xgrad_cam", "layer_cam", "hires_cam"),
    *("torchcam:ScoreCAM", "pytorch_grad_cam:EigenCAM", "pytorch_grad_cam:EigenGradCAM"),
)
CONTROLS, BATCH, INTERRUPTS, SEED = 3, 250, 3, 0
# Score-CAM runs one forward pass per channel of the target layer (64); sources of other libraries need a clean
# forward pass each.
PASSES_OF_METHODS, PASSES_OF_SCORE_CAM, CLEAN_PASSES = len(METHODS) + CONTROLS, 64, 1 + 3


def network() -> nn.Module:
    """Return the network for ``--model command:network``; ``--checkpoint`` loads its weights.

    Its layout is that of the trained network, in which the bare forward passes run.
    """
    return SmallCNN().to(memory_format=torch.channels_last)


def images() -> TensorDataset:
    """Return the test images and their labels for ``--data command:images``."""
    return TensorDataset(*load(DATA, "t10k"))


def start(out: Path, weights: Path, limit: int, *options: str) -> subprocess.Popen[str]:
    """Start the command in a separate process."""
    line = [sys.executable, "-m", "torchmetrics_cam", "evaluate"]
    line += ["--model", "command:network", "--checkpoint", str(weights), "--data", "command:images"]
    line += ["--methods", ",".join(METHODS), "--layer", TARGET_LAYER, "--limit", str(limit)]
    line += ["--batch-size", str(BATCH), "--save-every", "2", "--accelerator", "cpu"]
    line += ["--out", str(out), *options]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    # One thread per process: then two processes use twice the cores of one, as the bare forward passes use one.
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, cwd=Path(__file__).parent, env=environ, **streams)


def finish(out: Path, weights: Path, limit: int, *options: str) -> tuple[dict[str, Any], float]:
    """Run the command to its end, and return its results and its duration in seconds.

    Raises:
        RuntimeError: if the command fails; the message is its error output.
    """
    started = time.perf_counter()
    process = start(out, weights, limit, *options)
    _, errors = process.communicate()
    seconds = time.perf_counter() - started
    if process.returncode:
        raise RuntimeError(errors)
    return json.loads((out / "results.json").read_text()), seconds


def interrupted(
    out: Path, weights: Path, limit: int, uninterrupted_seconds: float
) -> tuple[dict[str, Any], list[int]]:
    """Interrupt the command three times, and return the results of the last run and the exit codes of the others."""
    delays = random.Random(SEED)
    saved, codes = out / "partial" / "rank-0.pt", []
    for _ in range(INTERRUPTS):
        saved_before = saved.stat().st_mtime_ns if saved.exists() else 0
        process = start(out, weights, limit, "--devices", "1")
        while process.poll() is None and (not saved.exists() or saved.stat().st_mtime_ns == saved_before):
            time.sleep(0.05)
        time.sleep(delays.uniform(0.0, 0.2) * uninterrupted_seconds)
        process.send_signal(signal.SIGINT)
        process.communicate()
        codes.append(process.returncode)
    return finish(out, weights, limit, "--devices", "1")[0], codes


def bare_seconds(model: nn.Module, pixels: Tensor) -> float:
    """Return the seconds of the forward passes of the whole evaluation, without anything else."""
    torch.set_num_threads(1)
    passes = CLEAN_PASSES + PASSES_OF_METHODS + PASSES_OF_SCORE_CAM
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in pixels.split(BATCH):
            for _ in range(passes):
                model(batch)
    return time.perf_counter() - started


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """Return the results that must not depend on how the command was run."""
    return {name: result[name] for name in ("comparison", "paired", "win_rates", "per_class")}


def largest_difference(first: Any, second: Any) -> float:
    """Return the largest difference between the numbers of two results; infinity if anything else differs."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return max((largest_difference(first[key], second[key]) for key in first), default=0.0)
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return max((largest_difference(*pair) for pair in zip(first, second, strict=True)), default=0.0)
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second)
    return 0.0 if first == second else float("inf")


def report(result: dict[str, Any]) -> str:
    """Return the page of the results."""
    header = ("method", "Average Drop (95 % interval)", "two processes", "interrupted three times")
    rows = []
    for one, two, resumed in zip(*(result["rows"][run] for run in ("one", "two", "resumed")), strict=True):
        drop = one["average_drop"]
        rows.append(
            (
                ("control: " if one["control"] else "") + one["method"],
                f"{drop['value']:.4f} ({drop['lower']:.4f} to {drop['upper']:.4f})",
                f"{two['average_drop']['value']:.4f}",
                f"{resumed['average_drop']['value']:.4f}",
            )
        )
    seconds = result["seconds"]
    return f"""# The command on Fashion-MNIST: one process, two processes, interrupted

{result["images"]:,} test images, {len(METHODS)} methods and {CONTROLS} controls, a CNN of three convolutional layers with
{result["accuracy"]:.1%} accuracy. Written by `command.py`; all numbers are in `command.json`.

{table(header, rows)}

Between one and two processes, values, intervals, ranks and counts differ by at most
{result["difference_of_two_processes"]:.1e} and win rates by at most {result["difference_of_their_win_rates"]:.1e}. Between an
uninterrupted run and one that was interrupted with Ctrl-C at {INTERRUPTS} random times (exit codes
{", ".join(map(str, result["exit_codes"]))}) and started again, the largest difference is
{result["difference_when_interrupted"]}.

One process with one thread took {seconds["one"]:.0f} s, including its start, the report and the values of each image; two
processes took {seconds["two"]:.0f} s. The bare forward passes take {seconds["bare"]:.0f} s on one thread: per image
{CLEAN_PASSES} on the clean image, {PASSES_OF_METHODS} on masked images and {PASSES_OF_SCORE_CAM} of Score-CAM. The network is
small: a forward pass takes {1e6 * seconds["bare"] / result["forward_passes"]:.0f} microseconds per image."""


def main() -> int:
    """Train a network, run the command in three ways, compare the numbers, and write the results."""
    options = parser(__doc__, __file__)
    options.add_argument("--limit", type=int, default=10_000, help="number of test images")
    arguments = options.parse_args()
    torch.set_num_threads(THREADS)
    machine = environment()
    model = trained(*load(DATA, "train"), SEED)
    pixels, labels = load(DATA, "t10k")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        weights = root / "weights.pt"
        torch.save(model.state_dict(), weights)
        bare = [bare_seconds(model, pixels[: arguments.limit])]
        one, seconds = finish(root / "one", weights, arguments.limit, "--devices", "1")
        # Timed before and after the command, because the load of a machine changes.
        bare.append(bare_seconds(model, pixels[: arguments.limit]))
        two, seconds_of_two = finish(
            root / "two", weights, arguments.limit, "--devices", "2", "--strategy", "ddp"
        )
        resumed, codes = interrupted(root / "interrupted", weights, arguments.limit, seconds)
    result = {
        "claim": "two processes and an interrupted run give the numbers of one uninterrupted process",
        "environment": machine,
        "images": one["comparison"]["rows"][0]["n"],
        "accuracy": accuracy(model, pixels, labels),
        "forward_passes": arguments.limit * (CLEAN_PASSES + PASSES_OF_METHODS + PASSES_OF_SCORE_CAM),
        "seconds": {
            "one": seconds,
            "two": seconds_of_two,
            "bare": statistics.mean(bare),
            "bare_before_and_after": bare,
        },
        "exit_codes": codes,
        "difference_of_two_processes": largest_difference(one["comparison"], two["comparison"]),
        "difference_of_their_win_rates": largest_difference(one["win_rates"], two["win_rates"]),
        "difference_when_interrupted": largest_difference(numbers(one), numbers(resumed)),
        "rows": {
            name: run["comparison"]["rows"]
            for name, run in (("one", one), ("two", two), ("resumed", resumed))
        },
    }
    holds = result["difference_of_two_processes"] <= 1e-6 and result["difference_when_interrupted"] == 0
    result["claim_holds"] = holds
    write(arguments.out, result, report(result))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
