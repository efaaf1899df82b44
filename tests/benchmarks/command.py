"""``torchmetrics-cam evaluate`` on the 10,000 test images of Fashion-MNIST: eight methods and three controls.

A small network is trained, and then the command evaluates it as one process, as two, and as one that is interrupted
three times at random and called again. The interrupted run must have the numbers of the whole one bit for bit, and
the values, intervals, ranks and counts of two processes must be the same to 1e-6. Win rates may differ by single images,
because two values that lie 1e-6 apart are a tie or a win by the last bit of a forward pass. Its time stands beside the
forward passes that it cannot do without.

    python tests/benchmarks/command.py [--limit 10000]

It ends with status 1 if a number differs.
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
# Score-CAM asks the network once for each of the 64 channels, and each object of another library once more.
PASSES_OF_METHODS, PASSES_OF_SCORE_CAM, CLEAN_PASSES = len(METHODS) + CONTROLS, 64, 1 + 3


def network() -> nn.Module:
    """What ``--model command:network`` builds; ``--checkpoint`` fills it."""
    return SmallCNN()


def images() -> TensorDataset:
    """What ``--data command:images`` returns: the test images and their labels."""
    return TensorDataset(*load(DATA, "t10k"))


def start(out: Path, weights: Path, limit: int, *more: str) -> subprocess.Popen[str]:
    """The command, as a process of its own."""
    line = [sys.executable, "-m", "torchmetrics_cam", "evaluate"]
    line += ["--model", "command:network", "--checkpoint", str(weights), "--data", "command:images"]
    line += ["--methods", ",".join(METHODS), "--layer", TARGET_LAYER, "--limit", str(limit)]
    line += ["--batch-size", str(BATCH), "--save-every", "2", "--accelerator", "cpu"]
    line += ["--out", str(out), *more]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    # One thread a process: two processes then have twice the cores, and one is compared with bare forwards of one.
    environ = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(line, cwd=Path(__file__).parent, env=environ, **streams)


def finish(out: Path, weights: Path, limit: int, *more: str) -> tuple[dict[str, Any], float]:
    """What the command wrote, and how many seconds it took.

    Raises:
        RuntimeError: if it failed; the message is the command's own.
    """
    started = time.perf_counter()
    running = start(out, weights, limit, *more)
    _, said = running.communicate()
    seconds = time.perf_counter() - started
    if running.returncode:
        raise RuntimeError(said)
    return json.loads((out / "results.json").read_text()), seconds


def interrupted(
    out: Path, weights: Path, limit: int, whole_seconds: float
) -> tuple[dict[str, Any], list[int]]:
    """The result of a run that Ctrl-C ends three times, and the exit codes on the way."""
    chance = random.Random(SEED)
    kept, codes = out / "partial" / "rank-0.pt", []
    for _ in range(INTERRUPTS):
        before = kept.stat().st_mtime_ns if kept.exists() else 0
        running = start(out, weights, limit, "--devices", "1")
        while running.poll() is None and (not kept.exists() or kept.stat().st_mtime_ns == before):
            time.sleep(0.05)
        time.sleep(chance.uniform(0.0, 0.2) * whole_seconds)
        running.send_signal(signal.SIGINT)
        running.communicate()
        codes.append(running.returncode)
    return finish(out, weights, limit, "--devices", "1")[0], codes


def bare_seconds(model: nn.Module, pixels: Tensor) -> float:
    """The forward passes of the whole evaluation and nothing else."""
    torch.set_num_threads(1)
    passes = CLEAN_PASSES + PASSES_OF_METHODS + PASSES_OF_SCORE_CAM
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in pixels.split(BATCH):
            for _ in range(passes):
                model(batch)
    return time.perf_counter() - started


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """All that may not depend on how the run was done."""
    return {name: result[name] for name in ("comparison", "paired", "win_rates", "per_class")}


def largest_difference(first: Any, second: Any) -> float:
    """Between two results, over every number in them; infinite where anything else differs."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return max((largest_difference(first[key], second[key]) for key in first), default=0.0)
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return max((largest_difference(*pair) for pair in zip(first, second, strict=True)), default=0.0)
    if isinstance(first, float) and isinstance(second, float):
        return abs(first - second)
    return 0.0 if first == second else float("inf")


def report(result: dict[str, Any]) -> str:
    """What was found, for people."""
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
    return f"""# The command on Fashion-MNIST: one process, two, and interrupted

{result["images"]:,} test images, {len(METHODS)} methods and {CONTROLS} controls, a CNN of three convolutions with
{result["accuracy"]:.1%} accuracy. Written by `command.py`; all figures are in `command.json`.

{table(header, rows)}

Two processes have the values, intervals, ranks and counts of one to {result["difference_of_two_processes"]:.1e}, and its
win rates to {result["difference_of_their_win_rates"]:.1e}. A run that Ctrl-C ended after {INTERRUPTS} random times (exit codes
{", ".join(map(str, result["exit_codes"]))}), called again, differs by {result["difference_when_interrupted"]} in any number.

One process of one thread took {seconds["one"]:.0f} s with its start, its report and the samples of each image; two took
{seconds["two"]:.0f} s. The forward passes alone take {seconds["bare"]:.0f} s of one thread: {CLEAN_PASSES} clean ones,
{PASSES_OF_METHODS} masked ones and the {PASSES_OF_SCORE_CAM} of Score-CAM an image. The network is so small that a
forward pass of an image takes {1e6 * seconds["bare"] / result["forward_passes"]:.0f} microseconds."""


def main() -> int:
    """Train, run the command in three ways, write the results, and compare them."""
    options = parser(__doc__, __file__)
    options.add_argument("--limit", type=int, default=10_000, help="how many test images")
    arguments = options.parse_args()
    torch.set_num_threads(THREADS)
    circumstances = environment()
    model = trained(*load(DATA, "train"), SEED)
    pixels, labels = load(DATA, "t10k")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        weights = place / "weights.pt"
        torch.save(model.state_dict(), weights)
        bare = [bare_seconds(model, pixels[: arguments.limit])]
        one, seconds = finish(place / "one", weights, arguments.limit, "--devices", "1")
        # Before and after: the load of a machine changes.
        bare.append(bare_seconds(model, pixels[: arguments.limit]))
        two, seconds_of_two = finish(
            place / "two", weights, arguments.limit, "--devices", "2", "--strategy", "ddp"
        )
        resumed, codes = interrupted(place / "interrupted", weights, arguments.limit, seconds)
    result = {
        "claim": "two processes and an interrupted run have the numbers of one whole run",
        "environment": circumstances,
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
