"""``torchmetrics-cam compare``: the results of two runs, with paired differences on the images of both."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import torch

from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.results import FORMAT
from torchmetrics_cam.functional.statistics import estimate

# The rows of samples.csv by the file of the image.
Samples = dict[str, dict[str, str]]


def run(arguments: Any) -> None:
    """Print the values of every method in both runs, and their paired difference.

    Raises:
        UsageError: if a file was not written by a run, or the runs have no method or measure in common.
    """
    first, second = _read_results(arguments.first), _read_results(arguments.second)
    first_samples, second_samples = _read_samples(arguments.first), _read_samples(arguments.second)
    shared_images = [name for name in first_samples if name in second_samples]
    first_rows, second_rows = (
        {row["method"]: row for row in results["comparison"]["rows"]} for results in (first, second)
    )
    titles = {measure["name"]: measure["title"] for measure in first["comparison"]["measures"]}
    measures = [m["name"] for m in second["comparison"]["measures"] if m["name"] in titles]
    methods = [method for method in first_rows if method in second_rows]
    if not methods or not measures:
        raise UsageError("the two runs have no method or no measure in common and cannot be compared")
    for letter, results, file in (("A", first, arguments.first), ("B", second, arguments.second)):
        model = results["model"]
        print(
            f"{letter}: {file}: {model['name']}, checkpoint {model['checkpoint']}, layer"
            f" {', '.join(model['layer'])}, {results['data']['images']} images of {results['data']['name']}"
        )
    print(f"{len(shared_images)} images are in both runs.\n")
    if first["comparison"]["protocol"] != second["comparison"]["protocol"]:
        print("The protocols differ, so the values of the two runs are not comparable.\n")
    print("| method | measure | A | B | A - B on the same images (95 % interval) |")
    print("| --- | --- | ---: | ---: | ---: |")
    for measure in measures:
        for method in methods:
            values = " | ".join(_value(rows[method][measure]) for rows in (first_rows, second_rows))
            difference = _difference(first_samples, second_samples, shared_images, method, measure)
            print(f"| {method} | {titles[measure]} | {values} | {difference} |")


def _read_results(file: Path) -> dict[str, Any]:
    try:
        results = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{file} is not JSON ({error}); give the results.json of a run") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT or "comparison" not in results:
        message = f"{file} was not written by torchmetrics-cam evaluate; give the results.json of a run"
        raise UsageError(message)
    return results


def _read_samples(results: Path) -> Samples:
    file = results.with_name("samples.csv")
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return {row["file"]: row for row in csv.DictReader(lines)}
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror}; a run writes it beside {results.name}"
        raise UsageError(message) from error
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file} was not written by torchmetrics-cam evaluate with {results}") from error


def _difference(first: Samples, second: Samples, images: list[str], method: str, measure: str) -> str:
    """Return the mean difference over the images that are valid in both runs, with its interval."""
    try:
        differences = [
            float(first[image][f"{method}/{measure}"]) - float(second[image][f"{method}/{measure}"])
            for image in images
            if all(float(samples[image][f"{method}/valid"]) for samples in (first, second))
        ]
    except (KeyError, ValueError, TypeError) as error:
        raise UsageError(f"a samples.csv has no values of {method}/{measure}") from error
    if not differences:
        return "-"
    values = torch.tensor(differences, dtype=torch.float64)
    count = torch.tensor(len(differences))
    lower, upper = (float(end) for end in estimate(count, values.sum(), values.square().sum()).interval())
    interval = "" if math.isnan(lower) else f" ({lower:+.3f} to {upper:+.3f})"
    return f"{float(values.mean()):+.3f}{interval}"


def _value(cell: dict[str, Any]) -> str:
    return "-" if cell["value"] is None else f"{cell['value']:.3f}"
