"""Shared parts of the benchmarks: timing, summaries, the environment of a measurement, and output files."""

import argparse
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import torchmetrics_cam

THREADS = 2


def parser(description: str | None, script: str) -> argparse.ArgumentParser:
    """Return an argument parser with the option ``--out``; by default the results are written beside the script."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--out",
        type=Path,
        default=Path(script),
        help="path of the results; the suffixes .json and .md are added (default: beside this script)",
    )
    return options


def environment() -> dict[str, Any]:
    """Return versions, threads, date, and the load average at the time of the call."""
    packages = ("torch", "torchvision", "torchmetrics", "torchcam", "grad-cam", "lightning")
    return {
        "versions": {
            "python": platform.python_version(),
            "torchmetrics_cam": torchmetrics_cam.__version__,
            **{package: version(package) for package in packages},
        },
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def write(out: Path, result: dict[str, Any], report: str) -> None:
    """Write the results to ``out`` with the suffix ``.json``, and the report with the suffix ``.md``."""
    out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    out.with_suffix(".md").write_text(report + "\n")
    print(f"\n{report}\n\nwritten: {out.with_suffix('.json')} and {out.with_suffix('.md')}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; all columns but the first are right-aligned."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def seconds_of(case: Callable[[], Any]) -> float:
    """Return the duration of one call in seconds."""
    gc.collect()
    started = time.perf_counter()
    case()
    return time.perf_counter() - started


def interleaved(
    cases: Mapping[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[Callable[[], Any]], float] = seconds_of,
) -> dict[str, list[float]]:
    """Time all cases in every round, after one warm-up call of each.

    Each round starts with a different case, so that no case always runs after the same other case.

    Args:
        cases: the functions to time, by name.
        rounds: the number of rounds.
        clock: calls a case and returns its duration in seconds.

    Returns:
        The seconds of each case in every round.
    """
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(clock(cases[name]))
        print(f"round {index + 1}:", ", ".join(f"{seconds[name][-1]:.2f} s" for name in names), flush=True)
    return seconds


def summary(measured: Mapping[str, Sequence[float]], baseline: str) -> dict[str, dict[str, Any]]:
    """Return median and quartiles of each case, and of its ratio to the baseline in the same round."""
    summaries = {}
    for name, values in measured.items():
        ratios = [value / reference for value, reference in zip(values, measured[baseline], strict=True)]
        summaries[name] = {
            "median": statistics.median(values),
            "quartiles": _quartiles(values),
            "ratio": statistics.median(ratios),
            "ratio_quartiles": _quartiles(ratios),
            "raw": list(values),
        }
    return summaries


def ratio_text(case: Mapping[str, Any]) -> str:
    """Return the median ratio of a case with its quartiles, as text."""
    low, high = case["ratio_quartiles"]
    return f"{case['ratio']:.3f} ({low:.3f} to {high:.3f})"


def _quartiles(values: Sequence[float]) -> list[float]:
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]
