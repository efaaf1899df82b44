"""Time and memory of an evaluation, relative to the bare forward passes that it needs.

K methods need one forward pass of the images and K of the masked images; everything beyond is the cost of the explanations.
The same is measured for torchcam and pytorch-grad-cam.

    python tests/benchmarks/cost.py                     # the whole table; takes hours on two cores
    python tests/benchmarks/cost.py --networks resnet50 --batches 32 --methods 1 4
    python tests/benchmarks/cost.py --glibc --batches 32 --networks resnet18 resnet50 mobilenet_v3_large
    python tests/benchmarks/cost.py --render            # write cost.md from cost.json

Times depend on the memory allocator of the C library. By default it is set to keep freed blocks, as PyTorch's allocator on
a GPU does; with --glibc it has the default settings of glibc, and the results are written to cost_glibc.json and .md. A run
replaces the cells that it measures and keeps the others. The exit code is 1 if a target is missed.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import (
    BASELINE,
    COMPILED,
    FOLDED,
    GRAD_CAM,
    LAYERS,
    ON_GRAD_CAM,
    OURS,
    SIDE,
    TORCHCAM,
    WORD,
    Setting,
    case_of,
)
from results import THREADS, environment, parser, ratio_text, summary, table, write
from workers import KEEP_BLOCKS, in_processes

WARM_UP_BATCH, MEMORY_REPEATS, MEMORY_BATCH = 2, 3, 32
# (case, network, methods) -> largest time, as a multiple of the bare forward passes.
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

# When a program frees large blocks, glibc raises its thresholds and then keeps freed blocks of up to 32 MiB: the
# peak of every case, the bare forward passes included, then varies between 400 and 640 MiB. A threshold that is
# set explicitly, here to its initial value, does not change, so that resident memory is memory in use.
FIXED_THRESHOLD = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}


def peak_extra_bytes(case: str, setting: Setting) -> int:
    """Return how far the resident memory rises above its level before the call; runs in a separate process."""
    run = setting.cases()[case]
    run(setting.images[:WARM_UP_BATCH])
    gc.collect()
    # Resets the peak to the memory that is resident now.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run(setting.images)
    return _status("VmHWM") - before


def memory(network: str, batch: int, methods: int) -> dict[str, list[int]]:
    """Return the peak extra bytes of each case, measured several times in separate processes."""
    # The memory that compilation needs once is not that of a run.
    cases = [
        name for name in Setting(network, batch, methods).cases() if name not in (COMPILED, FOLDED, WORD)
    ]
    peaks: dict[str, list[int]] = {name: [] for name in cases}
    for _ in range(MEMORY_REPEATS):
        for name in cases:
            command = [sys.executable, __file__, "--peak-of", name, "--networks", network]
            finished = subprocess.run(
                [*command, "--batches", str(batch), "--methods", str(methods)],
                env=os.environ | FIXED_THRESHOLD,
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            peaks[name].append(int(finished.stdout))
    return peaks


def measured(
    network: str, batch: int, methods: int, rounds: int, allocator: dict[str, str]
) -> dict[str, Any]:
    """Return the times of one cell of the table."""
    print(f"{network}, batch {batch}, {methods} methods", flush=True)
    machine = environment()
    names = list(Setting(network, batch, methods).cases())
    cases = {name: partial(case_of, name, network, batch, methods) for name in names}
    return {
        "network": network,
        "batch": batch,
        "methods": methods,
        "rounds": rounds,
        "environment": machine | {"load_average_at_end": environment()["load_average"]},
        "process_per_case": True,
        "seconds": summary(in_processes(cases, rounds, allocator), BASELINE),
    }


def missed(cells: list[dict[str, Any]]) -> list[str]:
    """Return a text for each target that was measured and missed."""
    texts = []
    for cell in cells:
        for case, seconds in cell["seconds"].items():
            target = TARGETS.get((case, cell["network"], cell["methods"]))
            if cell["batch"] == MEMORY_BATCH and target is not None and seconds["ratio"] > target:
                texts.append(f"{_named(cell)}: {case} takes {seconds['ratio']:.3f}, the target is {target}")
        peak = cell.get("bytes", {}).get(OURS)
        if cell["methods"] == 1 and peak and peak["ratio"] > MEMORY_TARGET:
            texts.append(f"{_named(cell)}: memory is {peak['ratio']:.2f}, the target is {MEMORY_TARGET}")
    return texts


def report(cells: list[dict[str, Any]], *, glibc: bool) -> str:
    """Return the page of the results."""
    names = (OURS, COMPILED, FOLDED, WORD, TORCHCAM, GRAD_CAM, ON_GRAD_CAM)
    rows = []
    for cell in cells:
        seconds = cell["seconds"]
        ratios = [ratio_text(seconds[name]) if name in seconds else "" for name in names]
        rows.append((_named(cell), f"{seconds[BASELINE]['median']:.2f}", *ratios))
    loads = [cell["environment"]["load_average"][0] for cell in cells]
    missed_targets = missed(cells)
    older_rows = "" if all(cell.get("process_per_case") for cell in cells) else _OLDER_ROWS
    return f"""# Cost of an evaluation{", with the default settings of glibc" if glibc else ""}

Time of K methods on one layer, as a multiple of 1 + K bare forward passes in inference mode: median and quartiles of
interleaved rounds, images of {SIDE} x {SIDE} pixels, {THREADS} CPU threads, random weights (EfficientNet-Lite0: ImageNet
weights). `ours` is this package. torchcam and pytorch-grad-cam run with their own metrics; `ours on pytorch-grad-cam's
object` is the metric of this package with the same pytorch-grad-cam object. Each case runs in a separate process.
The compiled scorers of the columns before `scorer='compile'` are made by hand, with inductor's freezing (`cases.py`).

{_GLIBC_DEFAULTS if glibc else _BLOCKS_KEPT}{older_rows}

The load average at the start of a cell was between {min(loads)} and {max(loads)}. Written by `cost.py`; all numbers are in
`{"cost_glibc" if glibc else "cost"}.json`.

## Time

{table(("", "bare, s", *names), rows)}
{_peaks(cells)}
{"Missed targets: " + "; ".join(missed_targets) if missed_targets else "All targets are met."}"""


_BLOCKS_KEPT = """The memory allocator is set to keep freed blocks, as PyTorch's allocator on a GPU does; `cost_glibc.md` has times with
the default settings of glibc."""
_OLDER_ROWS = """ Rows marked with * are an exception: they were measured with these default settings, with an older version of
the package, and with all cases in one process."""
_GLIBC_DEFAULTS = """The memory allocator has the default settings of glibc: it returns large blocks to the system and requests them again, so
that eager forward passes of a large batch take about twice as long as in `cost.md`. Compiled forward passes need fewer blocks
and take 1.3 to 1.6 times as long."""


def _peaks(cells: list[dict[str, Any]]) -> str:
    """Return the section on memory; empty if no cell has one."""
    names = (OURS, TORCHCAM, GRAD_CAM, ON_GRAD_CAM)
    rows = []
    for cell in cells:
        if "bytes" in cell:
            mebibytes = cell["bytes"][BASELINE]["median"] / 2**20
            ratios = [cell["bytes"].get(name) for name in names]
            rows.append(
                (
                    _named(cell),
                    f"{mebibytes:.0f}",
                    *[f"{ratio['ratio']:.2f}" if ratio else "" for ratio in ratios],
                )
            )
    if not rows:
        return ""
    return f"""
## Peak memory above the level before the call

Median over {MEMORY_REPEATS} separate processes, as a multiple of the peak of the bare forward passes.

{table(("", "bare, MiB", *names), rows)}
"""


def _named(cell: dict[str, Any]) -> str:
    mark = "" if cell.get("process_per_case") else " *"
    return f"{cell['network']}, batch {cell['batch']}, K = {cell['methods']}{mark}"


def _order(cell: dict[str, Any]) -> tuple[int, int, int]:
    return list(LAYERS).index(cell["network"]), cell["batch"], cell["methods"]


def _status(field: str) -> int:
    """Return a field of ``/proc/self/status`` in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> int:
    """Measure the requested cells, write the results of all, and check the targets."""
    options = parser(__doc__, __file__)
    options.add_argument("--networks", nargs="+", choices=LAYERS, default=list(LAYERS))
    options.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32], help="batch sizes")
    options.add_argument("--methods", nargs="+", type=int, default=[1, 4, 8], help="K, numbers of methods")
    options.add_argument("--rounds", type=int, default=5, help="number of rounds, at least 2")
    options.add_argument("--glibc", action="store_true", help="use the default settings of glibc's allocator")
    options.add_argument(
        "--time-only", action="store_true", help="keep the stored memory and do not measure it"
    )
    options.add_argument("--render", action="store_true", help="only write the .md from the .json")
    options.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if not Path("/proc/self/clear_refs").exists():
        options.error(
            "this system has no /proc/self/clear_refs to measure peak memory with; run this script on Linux"
        )
    torch.set_num_threads(THREADS)
    requested = [(n, b, k) for n in arguments.networks for b in arguments.batches for k in arguments.methods]
    if arguments.peak_of:
        print(peak_extra_bytes(arguments.peak_of, Setting(*requested[0])))
        return 0

    allocator = {} if arguments.glibc else KEEP_BLOCKS
    if arguments.glibc:
        arguments.out = arguments.out.with_stem(f"{arguments.out.stem}_glibc")
    stored = arguments.out.with_suffix(".json")
    cells = json.loads(stored.read_text())["cells"] if stored.exists() else []
    measured_cells = {(cell["network"], cell["batch"], cell["methods"]): cell for cell in cells}
    for key in [] if arguments.render else requested:
        peaks = measured_cells.get(key, {}).get("bytes")
        measured_cells[key] = measured(*key, arguments.rounds, allocator)
        if arguments.time_only and peaks:
            measured_cells[key]["bytes"] = peaks
        elif key[1] >= MEMORY_BATCH and not arguments.glibc:
            measured_cells[key]["bytes"] = summary(memory(*key), BASELINE)
        cells = sorted(measured_cells.values(), key=_order)
        # After every cell, so that an interrupted run of hours keeps its results.
        write(
            arguments.out,
            {"allocators": {"time": allocator, "memory": FIXED_THRESHOLD}, "cells": cells},
            report(cells, glibc=arguments.glibc),
        )
    if arguments.render:
        write(arguments.out, json.loads(stored.read_text()), report(cells, glibc=arguments.glibc))
    for text in missed(cells):
        print(text, file=sys.stderr)
    return 1 if missed(cells) else 0


if __name__ == "__main__":
    sys.exit(main())
