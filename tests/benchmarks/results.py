"""What the benchmarks share: the circumstances that a figure depends on, and how it is written down."""

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
    """The options of a benchmark, with the one that all have: where its results go."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, default=Path(script), help="where the .json and .md go")
    return made


def environment() -> dict[str, Any]:
    """Versions, threads, load and date; the load average is that of the moment of the call."""
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
    """The figures as ``out`` with the suffix ``.json``, the report for people beside it as ``.md``."""
    out.with_suffix(".json").write_text(json.dumps(result, indent=2) + "\n")
    out.with_suffix(".md").write_text(report + "\n")
    print(f"\n{report}\n\nwritten: {out.with_suffix('.json')} and {out.with_suffix('.md')}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def seconds_of(case: Callable[[], Any]) -> float:
    """How long a call takes."""
    gc.collect()
    started = time.perf_counter()
    case()
    return time.perf_counter() - started


def interleaved(
    cases: Mapping[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[Callable[[], Any]], float] = seconds_of,
) -> dict[str, list[float]]:
    """Seconds of every case in every round; a round runs them all, each round starting with another."""
    for case in cases.values():
        case()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(clock(cases[name]))
        print(f"round {turn + 1}:", ", ".join(f"{seconds[name][-1]:.2f} s" for name in names), flush=True)
    return seconds


def summary(figures: Mapping[str, Sequence[float]], baseline: str) -> dict[str, dict[str, Any]]:
    """Median and quartiles of every case, and of its ratio to the baseline of the same round."""
    summaries = {}
    for name, values in figures.items():
        ratios = [value / floor for value, floor in zip(values, figures[baseline], strict=True)]
        summaries[name] = {
            "median": statistics.median(values),
            "quartiles": _quartiles(values),
            "ratio": statistics.median(ratios),
            "ratio_quartiles": _quartiles(ratios),
            "raw": list(values),
        }
    return summaries


def with_quartiles(one: Mapping[str, Any]) -> str:
    """The ratio of a case as people read it."""
    low, high = one["ratio_quartiles"]
    return f"{one['ratio']:.3f} ({low:.3f} to {high:.3f})"


def _quartiles(values: Sequence[float]) -> list[float]:
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return [first, third]
