"""What the benchmarks share: the circumstances that a figure depends on, and how it is written down."""

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import torchmetrics_cam

THREADS = 2


def environment() -> dict[str, Any]:
    """Versions, threads, load and date; the load average is that of the moment of the call."""
    packages = ("torch", "torchvision", "torchmetrics", "torchcam")
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
