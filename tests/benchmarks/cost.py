"""Time and memory of an evaluation, as ratios to the bare forward passes that it cannot do without.

K methods need one pass of the images and K of the masked images. What is taken beyond them is the price of the
explanations, for us and for the libraries that measure the same.

    python tests/benchmarks/cost.py                     # the whole table, hours on two cores
    python tests/benchmarks/cost.py --networks resnet50 --batches 32 --methods 1 4
    python tests/benchmarks/cost.py --glibc --batches 32 --networks resnet18 resnet50 mobilenet_v3_large
    python tests/benchmarks/cost.py --render            # cost.md from cost.json

Times depend on the allocator of the C library. By default it is set to keep what it has, as PyTorch's own does on a
GPU; with --glibc it is as Python starts with, and the results go to cost_glibc.json and .md. A run replaces its own
cells of these files and leaves the others. It ends with status 1 if a target is missed.
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
    Setting,
    case_of,
)
from results import THREADS, environment, parser, summary, table, with_quartiles, write
from workers import KEEPING, in_processes

WARM_UP_BATCH, MEMORY_REPEATS, MEMORY_BATCH = 2, 3, 32
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
STEADY = {"MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}


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


def memory(network: str, batch: int, methods: int) -> dict[str, list[int]]:
    """Peak extra bytes of every case, each measured several times in a process of its own."""
    # Compiling takes memory once, which is not what a run takes.
    cases = [name for name in Setting(network, batch, methods).cases() if name not in (COMPILED, FOLDED)]
    peaks: dict[str, list[int]] = {name: [] for name in cases}
    for _ in range(MEMORY_REPEATS):
        for name in cases:
            command = [sys.executable, __file__, "--peak-of", name, "--networks", network]
            finished = subprocess.run(
                [*command, "--batches", str(batch), "--methods", str(methods)],
                env=os.environ | STEADY,
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            peaks[name].append(int(finished.stdout))
    return peaks


def measured(
    network: str, batch: int, methods: int, rounds: int, allocator: dict[str, str]
) -> dict[str, Any]:
    """One cell of the table without its memory."""
    print(f"{network}, batch {batch}, {methods} methods", flush=True)
    circumstances = environment()
    names = list(Setting(network, batch, methods).cases())
    cases = {name: partial(case_of, name, network, batch, methods) for name in names}
    return {
        "network": network,
        "batch": batch,
        "methods": methods,
        "rounds": rounds,
        "environment": circumstances | {"load_average_at_end": environment()["load_average"]},
        "a_process_a_case": True,
        "seconds": summary(in_processes(cases, rounds, allocator), BASELINE),
    }


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


def report(cells: list[dict[str, Any]], *, glibc: bool) -> str:
    """What was found, for people."""
    names = (OURS, COMPILED, FOLDED, TORCHCAM, GRAD_CAM, ON_GRAD_CAM)
    rows = []
    for cell in cells:
        seconds = cell["seconds"]
        shown = [with_quartiles(seconds[name]) if name in seconds else "" for name in names]
        rows.append((_named(cell), f"{seconds[BASELINE]['median']:.2f}", *shown))
    loads = [cell["environment"]["load_average"][0] for cell in cells]
    verdict = missed(cells)
    return f"""# What an evaluation costs{", with glibc as Python starts with it" if glibc else ""}

K methods on one layer, as a multiple of 1 + K bare forward passes in inference mode: median and quartiles of
interleaved rounds, {SIDE} px, {THREADS} threads of a CPU, random weights (EfficientNet-Lite0: ImageNet's). torchcam
and pytorch-grad-cam run with their own metrics, and `ours on pytorch-grad-cam's object` is our metric on the same
object. Each case runs in a process of its own.

{_AS_IT_IS if glibc else _KEEPING}

The load average at the start of a cell was between {min(loads)} and {max(loads)}. Written by `cost.py`; all figures
are in the `.json` beside it.

## Time

{table(("", "bare, s", *names), rows)}
{_peaks(cells)}
{"Targets missed: " + "; ".join(verdict) if verdict else "All targets are met."}"""


_KEEPING = """The allocator keeps what it has, as PyTorch's own does on a GPU. In `cost_glibc.md` it is as Python starts with it.
Where the name of a row ends with *, it is that here too, and all cases ran in one process."""
_AS_IT_IS = """The allocator has the settings of glibc that Python starts with: large blocks go back to the system and are fetched
again, by which eager passes of a large batch take up to twice as long as in `cost.md`. Compiled ones need fewer blocks,
and take a third longer."""


def _peaks(cells: list[dict[str, Any]]) -> str:
    """The table of memory, if any was measured."""
    names = (OURS, TORCHCAM, GRAD_CAM, ON_GRAD_CAM)
    rows = []
    for cell in cells:
        if "bytes" in cell:
            base = cell["bytes"][BASELINE]["median"] / 2**20
            ratios = [cell["bytes"].get(name) for name in names]
            rows.append(
                (_named(cell), f"{base:.0f}", *[f"{one['ratio']:.2f}" if one else "" for one in ratios])
            )
    if not rows:
        return ""
    return f"""
## Peak memory above the level before the call

Median of {MEMORY_REPEATS} fresh processes, as a multiple of that of the bare forward passes.

{table(("", "bare, MiB", *names), rows)}
"""


def _named(cell: dict[str, Any]) -> str:
    shared = "" if cell.get("a_process_a_case") else " *"
    return f"{cell['network']}, batch {cell['batch']}, K = {cell['methods']}{shared}"


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
    options.add_argument("--glibc", action="store_true", help="time with the allocator as it is")
    options.add_argument("--time-only", action="store_true", help="leave the memory that is known")
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

    allocator = {} if arguments.glibc else KEEPING
    if arguments.glibc:
        arguments.out = arguments.out.with_stem(f"{arguments.out.stem}_glibc")
    stored = arguments.out.with_suffix(".json")
    cells = json.loads(stored.read_text())["cells"] if stored.exists() else []
    known = {(cell["network"], cell["batch"], cell["methods"]): cell for cell in cells}
    for key in [] if arguments.render else asked:
        peaks = known.get(key, {}).get("bytes")
        known[key] = measured(*key, arguments.rounds, allocator)
        if arguments.time_only and peaks:
            known[key]["bytes"] = peaks
        elif key[1] >= MEMORY_BATCH and not arguments.glibc:
            known[key]["bytes"] = summary(memory(*key), BASELINE)
        cells = sorted(known.values(), key=_order)
        # After every cell: a table of hours is not lost in its last minute.
        write(
            arguments.out,
            {"allocators": {"time": allocator, "memory": STEADY}, "cells": cells},
            report(cells, glibc=arguments.glibc),
        )
    if arguments.render:
        write(arguments.out, json.loads(stored.read_text()), report(cells, glibc=arguments.glibc))
    for one in missed(cells):
        print(one, file=sys.stderr)
    return 1 if missed(cells) else 0


if __name__ == "__main__":
    sys.exit(main())
