"""Time and memory of an evaluation on a GPU, relative to the bare forward passes that it needs.

    python tests/benchmarks/gpu.py                                    # the whole table; some minutes
    python tests/benchmarks/gpu.py --networks resnet50 --batches 32 --methods 1

The cases are those of `cost.py`. All run in one process, one after the other in each round, and the clock waits for the GPU
before and after each. Peak memory is that of PyTorch's allocator above the level before the call. The exit code is 1 if a
target is missed.
"""

import gc
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from cases import BASELINE, GRAD_CAM, LAYERS, OURS, SIDE, TORCHCAM, UNCHECKED, WORD, Setting
from results import environment, interleaved, parser, ratio_text, seconds_of, summary, table, write

# EfficientNet-Lite0 needs an extra of the package, and differs little from MobileNetV3.
NETWORKS = [network for network in LAYERS if network != "efficientnet_lite0"]
NAMES = (OURS, UNCHECKED, WORD, TORCHCAM, GRAD_CAM)
# The largest time and memory of one method, as a multiple of those of torchcam's metric in the same round.
TARGET = 1.0


def seconds_on_gpu(case: Callable[[], Any]) -> float:
    """Return the duration of one call in seconds, until the GPU has finished its work."""
    torch.cuda.synchronize()

    def finished() -> None:
        case()
        torch.cuda.synchronize()

    return seconds_of(finished)


def peak_bytes(case: Callable[[], Any]) -> int:
    """Return how far the allocated memory rises above its level before the call."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    case()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measured(network: str, batch: int, methods: int, rounds: int, *, compiled: bool) -> dict[str, Any]:
    """Return the times and the peak memory of one cell of the table."""
    print(f"{network}, batch {batch}, {methods} methods", flush=True)
    names = [BASELINE, OURS, UNCHECKED, *[WORD] * compiled]
    names += [TORCHCAM] * (not network.startswith("vit")) + [GRAD_CAM] * (methods == 1)
    # Every case has a network of its own, so that no other extractor's hooks are on it.
    cases = {}
    for name in names:
        setting = Setting(network, batch, methods, "cuda")
        run = {**setting.cases(), UNCHECKED: setting.unchecked, WORD: setting.compiled_by_word}[name]
        cases[name] = partial(run, setting.images)
    # The collection before each measurement then skips what the libraries and the cases have created.
    gc.freeze()
    seconds = interleaved(cases, rounds, clock=seconds_on_gpu)
    peaks = {name: [peak_bytes(case) for _ in range(3)] for name, case in cases.items()}
    return {
        "network": network,
        "batch": batch,
        "methods": methods,
        "rounds": rounds,
        "seconds": summary(seconds, BASELINE),
        "bytes": summary(peaks, BASELINE),
    }


def missed(cells: list[dict[str, Any]]) -> list[str]:
    """Return a text for each case of one method that takes more than torchcam's metric."""
    return [
        f"{_named(cell)}, {cell[quantity][OURS]['ratio'] / cell[quantity][TORCHCAM]['ratio']:.2f} times the"
        f" {'time' if quantity == 'seconds' else 'memory'}"
        for cell in cells
        for quantity in ("seconds", "bytes")
        if cell["methods"] == 1
        and TORCHCAM in cell[quantity]
        and cell[quantity][OURS]["ratio"] > TARGET * cell[quantity][TORCHCAM]["ratio"]
    ]


def report(cells: list[dict[str, Any]], device: str, versions: dict[str, str]) -> str:
    """Return the page of the results."""
    times, memory = [], []
    for cell in cells:
        milliseconds = f"{1000 * cell['seconds'][BASELINE]['median']:.1f}"
        mebibytes = f"{cell['bytes'][BASELINE]['median'] / 2**20:.0f}"
        ratios = [ratio_text(cell["seconds"][name]) if name in cell["seconds"] else "" for name in NAMES]
        times.append((_named(cell), milliseconds, *ratios))
        peaks = [f"{cell['bytes'][name]['ratio']:.2f}" if name in cell["bytes"] else "" for name in NAMES]
        memory.append((_named(cell), mebibytes, *peaks))
    misses = missed(cells)
    return f"""# Cost of an evaluation on a GPU

Time of K methods on one layer, as a multiple of 1 + K bare forward passes in inference mode: median and quartiles of
interleaved rounds on one {device}, images of {SIDE} x {SIDE} pixels, float32 with the TF32 convolutions that PyTorch
{versions["torch"]} uses by default, random weights. `ours` is this package. torchcam and pytorch-grad-cam run with their own
metrics; that of pytorch-grad-cam computes maps on the CPU. `validate_args=False` skips the checks that read values off the GPU.
Small batches measure the host, which needs longer to start the operations than the GPU to finish them. Rows with a
compiled scorer were measured in a run of their own.

Written by `gpu.py`; all numbers are in `gpu.json`.

## Time

{table(("", "bare, ms", *NAMES), times)}

## Peak memory above the level before the call

{table(("", "bare, MiB", *NAMES), memory)}

{"Where one method takes more than torchcam's metric: " + "; ".join(misses) if misses else "One method takes at most the time and the memory of torchcam's metric."}"""


def _named(cell: dict[str, Any]) -> str:
    return f"{cell['network']}, batch {cell['batch']}, K = {cell['methods']}"


def main() -> int:
    """Measure the requested cells and write their results."""
    options = parser(__doc__, __file__)
    options.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    options.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 128], help="batch sizes")
    options.add_argument("--methods", nargs="+", type=int, default=[1, 4], help="K, numbers of methods")
    options.add_argument("--rounds", type=int, default=11, help="number of rounds, at least 2")
    options.add_argument("--compiled", nargs="*", default=[], help="networks to compile as well, with K > 1")
    options.add_argument("--render", action="store_true", help="only write the .md from the .json")
    arguments = options.parse_args()
    if arguments.render:
        result = json.loads(arguments.out.with_suffix(".json").read_text())
    else:
        result = {"device": torch.cuda.get_device_name(), "environment": environment(), "cells": []}
    requested = [(n, b, k) for n in arguments.networks for b in arguments.batches for k in arguments.methods]
    for network, batch, methods in [] if arguments.render else requested:
        compiled = network in arguments.compiled and methods > 1
        result["cells"].append(measured(network, batch, methods, arguments.rounds, compiled=compiled))
        write(arguments.out, result, "")
    versions = result["environment"]["versions"]
    write(arguments.out, result, report(result["cells"], result["device"], versions))
    return 1 if missed(result["cells"]) else 0


if __name__ == "__main__":
    sys.exit(main())
