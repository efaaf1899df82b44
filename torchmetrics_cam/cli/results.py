"""What a comparison says, as ``results.json`` and ``samples.csv`` hold it."""

import csv
import json
import math
import platform
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchmetrics_cam.__about__ import __version__
from torchmetrics_cam.lightning.resume import write_atomically
from torchmetrics_cam.metrics.comparison.metric import CURVES, CAMComparison

FORMAT = 1
_PACKAGES = (
    "torch",
    "torchvision",
    "torchmetrics",
    "lightning",
    "timm",
    "transformers",
    "torchcam",
    "grad-cam",
)


def results_of(comparison: CAMComparison, class_names: Sequence[str] | None) -> dict[str, Any]:
    """All that the states of a comparison say, for JSON; call it on one rank that has the sums of all."""
    table = comparison.table()
    measures = [measure.name for measure in comparison.measures]
    return {
        "format": FORMAT,
        "methods": list(comparison.methods),
        "comparison": json.loads(table.to_json()),
        "protocol_text": str(table.protocol),
        "win_rates": {name: _win_rate(comparison, name) for name in measures},
        "paired": [
            {
                "measure": name,
                "first": first,
                "second": second,
                **_difference(comparison, first, second, name),
            }
            for name in measures
            for first, second in combinations(comparison.methods, 2)
        ],
        "per_class": _per_class(comparison, class_names),
        "curves": _curves(comparison),
    }


def circumstances(*, processes: int) -> dict[str, Any]:
    """When, and with what, for JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "torchmetrics-cam": __version__,
            **{name: found for name in _PACKAGES if (found := _version(name))},
        },
        "hardware": {
            "platform": f"{platform.system()} {platform.machine()}",
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "processes": processes,
            "threads": torch.get_num_threads(),
        },
    }


def write_json(results: dict[str, Any], path: Path) -> None:
    """Write a file that is whole or not there.

    File names that are not in UTF-8 are written with the escapes that JSON has for them.
    """
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path, text.encode("utf-8", errors="backslashreplace"))


def write_samples(comparison: CAMComparison, name_of: Callable[[int], str], path: Path) -> None:
    """Write a row an image: what the model says of it, and every method's values."""
    samples = comparison.samples()
    measures = [measure.name for measure in comparison.measures]
    columns = ["masked_score", "valid", *measures]
    header = [f"{method}/{column}" for method in comparison.methods for column in columns]
    order = samples["index"].argsort().tolist()
    values = torch.stack([samples[column].double() for column in columns], 2).flatten(1).tolist()
    index, classes, scores = (samples[name].tolist() for name in ("index", "class_idx", "score"))
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "file", "class_idx", "score", *header])
        for row in order:
            writer.writerow([index[row], name_of(index[row]), classes[row], scores[row], *values[row]])


def _curves(comparison: CAMComparison) -> dict[str, Any]:
    """Mean deletion and insertion curves of every method, if the comparison has any."""
    found: dict[str, Any] = {}
    for measure in [one.name for one in comparison.measures if one.name in CURVES]:
        shares, scores = comparison.curve(measure)
        found["fractions"] = shares.tolist()
        found[measure.removesuffix("_auc")] = {
            method: [_number(score) for score in curve]
            for method, curve in zip(comparison.methods, scores, strict=True)
        }
    return found


def _per_class(comparison: CAMComparison, class_names: Sequence[str] | None) -> list[dict[str, Any]]:
    samples = comparison.samples()
    found = []
    for number in sorted(set(samples["class_idx"].tolist())):
        of_it = samples["class_idx"] == number
        named = class_names is not None and 0 <= number < len(class_names)
        valid = samples["valid"][of_it]
        values = {
            method: {
                measure.name: _number(samples[measure.name][of_it][:, place][valid[:, place]].mean())
                for measure in comparison.measures
            }
            for place, method in enumerate(comparison.methods)
        }
        name = class_names[number] if class_names is not None and named else str(number)
        found.append({"class_idx": number, "name": name, "n": int(of_it.sum()), "values": values})
    return found


def _win_rate(comparison: CAMComparison, measure: str) -> dict[str, Any]:
    wins, ties = comparison.win_rate(measure)
    return {"wins": _nested(wins), "ties": _nested(ties)}


def _difference(comparison: CAMComparison, first: str, second: str, measure: str) -> dict[str, Any]:
    found = comparison.paired_difference(first, second, measure)
    numbers = {name: _number(getattr(found, name)) for name in ("mean", "lower", "upper", "p_value")}
    return {**numbers, "count": int(found.count)}


def _number(value: Tensor) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _nested(values: Tensor) -> list[list[float | None]]:
    return [[_number(one) for one in row] for row in values]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
