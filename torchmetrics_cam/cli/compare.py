"""``torchmetrics-cam compare``: two runs side by side, paired where the images are the same."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import torch

from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.results import FORMAT
from torchmetrics_cam.functional.statistics import estimate

Samples = dict[str, dict[str, str]]


def run(arguments: Any) -> None:
    """Print every method's values of both runs, and their paired difference.

    Raises:
        UsageError: if a file is not what a run wrote, or the two have nothing in common.
    """
    first, second = _results(arguments.first), _results(arguments.second)
    samples = _samples(arguments.first), _samples(arguments.second)
    shared = [name for name in samples[0] if name in samples[1]]
    rows = ({row["method"]: row for row in one["comparison"]["rows"]} for one in (first, second))
    of_first, of_second = rows
    names = {one["name"]: one["title"] for one in first["comparison"]["measures"]}
    measures = [one["name"] for one in second["comparison"]["measures"] if one["name"] in names]
    methods = [method for method in of_first if method in of_second]
    if not methods or not measures:
        raise UsageError("the two runs have no method or no measure in common; nothing can be compared")
    for letter, one, file in (("A", first, arguments.first), ("B", second, arguments.second)):
        model = one["model"]
        print(
            f"{letter}: {file}: {model['name']}, checkpoint {model['checkpoint']}, layer"
            f" {', '.join(model['layer'])}, {one['data']['images']} images of {one['data']['name']}"
        )
    print(f"{len(shared)} images are the same.\n")
    if first["comparison"]["protocol"] != second["comparison"]["protocol"]:
        print("The protocols differ, so the numbers do not measure the same.\n")
    print("| method | measure | A | B | A - B on the same images (95 % interval) |")
    print("| --- | --- | ---: | ---: | ---: |")
    for measure in measures:
        for method in methods:
            values = (_shown(one[method][measure]) for one in (of_first, of_second))
            difference = _difference(*samples, shared, method, measure)
            print(f"| {method} | {names[measure]} | {' | '.join(values)} | {difference} |")


def _results(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file} is no JSON ({error}); give the results.json of a run") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT or "comparison" not in found:
        raise UsageError(f"{file} is no result of torchmetrics-cam evaluate; give the results.json of a run")
    return found


def _samples(results: Path) -> Samples:
    file = results.with_name("samples.csv")
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return {row["file"]: row for row in csv.DictReader(lines)}
    except OSError as error:
        raise UsageError(
            f"{file} cannot be read: {error.strerror}; it is written beside {results}"
        ) from error
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file} is not what torchmetrics-cam evaluate wrote beside {results}") from error


def _difference(first: Samples, second: Samples, shared: list[str], method: str, measure: str) -> str:
    """The mean of the differences on images that count in both runs, with its interval."""
    try:
        gaps = [
            float(first[name][f"{method}/{measure}"]) - float(second[name][f"{method}/{measure}"])
            for name in shared
            if all(float(one[name][f"{method}/valid"]) for one in (first, second))
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"a samples.csv does not have the values of {method}/{measure}") from error
    if not gaps:
        return "-"
    apart = torch.tensor(gaps, dtype=torch.float64)
    count = torch.tensor(len(gaps))
    lower, upper = estimate(count, apart.sum(), apart.square().sum()).interval()
    mean = float(apart.mean())
    if math.isnan(float(lower)):
        return f"{mean:+.3f}"
    return f"{mean:+.3f} ({float(lower):+.3f} to {float(upper):+.3f})"


def _shown(cell: dict[str, Any]) -> str:
    return "-" if cell["value"] is None else f"{cell['value']:.3f}"
