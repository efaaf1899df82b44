"""``torchmetrics-cam compare``: the results of two runs, with paired differences on the images of both."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchmetrics_cam.cli.digests import text_digest
from torchmetrics_cam.cli.errors import GateError, UsageError
from torchmetrics_cam.cli.gates import regressions
from torchmetrics_cam.cli.results import FORMAT
from torchmetrics_cam.functional.statistics import Estimate, estimate
from torchmetrics_cam.protocol import reads
from torchmetrics_cam.report.text import printable
from torchmetrics_cam.report.write import cell_text

_OPTIONS = ("image_size", "precision", "compile", "num_classes", "seed")
# The digest of an image, and how many images before it in the run have the same digest.
ImageKey = tuple[str, int]


@dataclass(frozen=True)
class Sample:
    """An image of a run.

    Args:
        file: the name of its file.
        class_idx: the class that is explained.
        values: the value of each measure by method and name of the measure, for the methods for which the
            image is valid.
    """

    file: str
    class_idx: int
    values: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Run:
    """What two runs are compared by.

    Args:
        description: the model, the layer, the data and the surrogate.
        settings: the settings by name that must be equal for values to be comparable.
        options: the options that may differ, as models do, and that the description does not contain.
        titles: the title of each measure by its name.
        higher_is_better: the direction of each measure that has one, by its name.
        controls: the methods that are controls.
        values: the value of each measure by method and name of the measure; None if it is not known.
        over_classes: whether values are averages over classes.
        samples: the images.
        in_order: the index, the digest and the class of each image, on which all mosaics depend.
    """

    description: str
    settings: dict[str, Any]
    options: dict[str, Any]
    titles: dict[str, str]
    higher_is_better: dict[str, bool]
    controls: list[str]
    values: dict[str, dict[str, float | None]]
    over_classes: bool
    samples: dict[ImageKey, Sample]
    in_order: list[tuple[str, str, str]]


def run(arguments: Any) -> None:
    """Print the values of every method in both runs, and their paired difference.

    Raises:
        UsageError: if a file was not written by a run, the runs have no method or measure in common, or
            ``--fail-if-worse`` is given and the runs are not comparable.
        GateError: if ``--fail-if-worse`` is given and B is worse than A.
    """
    first, second = _read_run(arguments.first), _read_run(arguments.second)
    measures = [name for name in second.titles if name in first.titles]
    methods = [method for method in first.values if method in second.values]
    if not methods or not measures:
        raise UsageError("the two runs have no method or no measure in common and cannot be compared")
    shared = [key for key in first.samples if key in second.samples]
    lines = [f"A: {arguments.first}: {first.description}", f"B: {arguments.second}: {second.description}"]
    lines += [*_describe_images(first, second, shared), *_only_in_one(first, second), ""]
    different = _different_settings(first.settings, second.settings)
    reported = [text for name, text in different.items() if reads(measures, name)]
    if reported:
        lines += [f"Warning: the values of A and B are not comparable: {', '.join(reported)} differ.", ""]
    if options := _different_settings(first.options, second.options):
        lines += [f"Other settings that differ: {', '.join(options.values())}.", ""]
    lines.append("| method | measure | A | B | A - B on the same images (95 % interval) |")
    lines.append("| --- | --- | ---: | ---: | ---: |")
    differences = {}
    for measure in measures:
        for method in methods:
            values = " | ".join(_format_value(run.values[method][measure]) for run in (first, second))
            difference = differences[method, measure] = _difference(first, second, shared, method, measure)
            lines.append(
                f"| {method} | {first.titles[measure]} | {values} | {_format_difference(difference)} |"
            )
    print(*map(printable, lines), sep="\n")
    if arguments.fail_if_worse:
        judged = {
            (method, measure): difference
            for (method, measure), difference in differences.items()
            if method not in second.controls and measure in second.higher_is_better
        }
        _check_comparable(first, second, shared, reported, are_judged=bool(judged))
        if violations := regressions(judged, second.higher_is_better, second.titles):
            raise GateError(*violations)
        print("Gate passed: B is not significantly worse than A.")


def _check_comparable(
    first: Run, second: Run, shared: Sequence[ImageKey], different: Sequence[str], *, are_judged: bool
) -> None:
    """Refuse a gate on runs whose values or images have nothing to do with each other.

    Args:
        first: run A.
        second: run B.
        shared: the images that are in both runs.
        different: the settings that differ and that the values depend on.
        are_judged: whether the runs have a method that is no control, and a measure with a direction.
    """
    problem = ""
    if different:
        problem = f"{', '.join(different)} differ"
    elif _mosaics_differ(first, second):
        problem = "images are among others in their mosaics in A than in B"
    elif len(shared) < 2:
        problem = f"{len(shared)} images are in both runs, and a comparison needs two or more"
    elif not are_judged:
        problem = "the methods in both runs are controls, or no measure in both says which values are better"
    if problem:
        raise UsageError(
            f"--fail-if-worse: the values of A and B are not comparable, because {problem}; evaluate B with"
            " the options and the images of A"
        )


def _different_settings(first: dict[str, Any], second: dict[str, Any]) -> dict[str, str]:
    """Return the name and both values, as text, of what differs in two dicts, by its name."""
    return {
        name: f"{name} ({first.get(name)} and {second.get(name)})"
        for name in {**first, **second}
        if first.get(name) != second.get(name)
    }


def _describe_images(first: Run, second: Run, shared: Sequence[ImageKey]) -> list[str]:
    """Return sentences on the images of both runs, and on what may surprise about their pairs."""
    sentences = [f"{len(shared)} images are in both runs."]
    others = [
        {sample.file for key, sample in samples.items() if key not in other}
        for samples, other in ((first.samples, second.samples), (second.samples, first.samples))
    ]
    if _mosaics_differ(first, second):
        sentences.append(
            "Warning: an image is among others in its mosaic in A than in B, because the images of the runs,"
            " their order or their classes differ."
        )
    if changed := len(others[0] & others[1]):
        sentences.append(
            f"Warning: {changed} of the other images have the same name in both runs, but different content."
        )
    reclassified = sum(first.samples[key].class_idx != second.samples[key].class_idx for key in shared)
    if reclassified:
        sentences.append(f"{reclassified} of them are explained for another class in B than in A.")
        if first.over_classes and second.over_classes:
            sentences.append("Their differences are averaged over the classes in A.")
    return sentences


def _only_in_one(first: Run, second: Run) -> list[str]:
    """Return a sentence on the methods and measures that only one run has."""
    alone = [*(first.values.keys() ^ second.values.keys()), *(first.titles.keys() ^ second.titles.keys())]
    return [f"Not compared, because only one run has them: {', '.join(sorted(alone))}."] if alone else []


def _mosaics_differ(first: Run, second: Run) -> bool:
    have_mosaics = all(run.settings["--mosaic"] for run in (first, second))
    return have_mosaics and first.in_order != second.in_order


def _read_run(file: Path) -> Run:
    try:
        results = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not JSON ({error}); give the results.json of a run") from error
    if not isinstance(results, dict) or "format" not in results or "comparison" not in results:
        message = f"{file} was not written by torchmetrics-cam evaluate; give the results.json of a run"
        raise UsageError(message)
    if results["format"] != FORMAT:
        raise UsageError(
            f"{file} has format {results['format']!r}, and this version reads format {FORMAT}; evaluate again"
            " with this version"
        )
    rows = _read_samples(file, results.get("samples_sha256"))
    try:
        return _run_of(results, rows)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(f"{file} is damaged ({reason}); evaluate again") from error


def _run_of(results: dict[str, Any], rows: Sequence[dict[str, str]]) -> Run:
    model, data, comparison = results["model"], results["data"], results["comparison"]
    titles = {str(measure["name"]): str(measure["title"]) for measure in comparison["measures"]}
    surrogate = results["surrogate"] if comparison["surrogate"] else None
    settings = {
        "--explain": data["explained"],
        "--mosaic": data.get("mosaic"),
        "--average": comparison["average"],
        "logits_fn": comparison["logits_fn"],
        # A file can be moved, and overwritten by other weights.
        "surrogate": surrogate and f"{surrogate['class']} with the weights {surrogate['weights_checksum']}",
        **{name: value for name, value in comparison["protocol"].items() if name != "name"},
    }
    scored_by = f", surrogate {comparison['surrogate']}" if surrogate else ""
    values = {
        str(row["method"]): {
            name: None if row[name]["value"] is None else float(row[name]["value"]) for name in titles
        }
        for row in comparison["rows"]
    }
    samples, seen = {}, Counter[str]()
    for row in rows:
        sha256 = row["sha256"]
        # The content of an image that could not be read again is not known.
        if sha256:
            samples[sha256, seen[sha256]] = _sample(row, list(values), list(titles))
            seen[sha256] += 1
    return Run(
        description=f"{model['name']}, checkpoint {model['checkpoint']}, layer {', '.join(model['layer'])},"
        f" {data['images']} images of {data['name']}{scored_by}",
        settings=settings,
        options={f"--{name.replace('_', '-')}": results["settings"].get(name) for name in _OPTIONS},
        titles=titles,
        higher_is_better={
            str(measure["name"]): bool(measure["higher_is_better"])
            for measure in comparison["measures"]
            if measure["higher_is_better"] is not None
        },
        controls=[str(row["method"]) for row in comparison["rows"] if row["control"]],
        values=values,
        over_classes=comparison["average"] == "macro",
        samples=samples,
        in_order=[(row["index"], row["sha256"], row["class_idx"]) for row in rows],
    )


def _sample(row: dict[str, str], methods: Sequence[str], measures: Sequence[str]) -> Sample:
    values = {
        method: {name: float(row[cell_text(f"{method}/{name}")]) for name in measures}
        for method in methods
        if float(row[cell_text(f"{method}/valid")])
    }
    return Sample(row["file"], int(row["class_idx"]), values)


def _read_samples(results: Path, digest: Any) -> list[dict[str, str]]:
    """Return the rows of the ``samples.csv`` beside a ``results.json``.

    Args:
        results: the file of the results.
        digest: the digest of ``samples.csv`` that the results contain.
    """
    file = results.with_name("samples.csv")
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        message = f"{file} cannot be read: {error.strerror}; a run writes it beside {results.name}"
        raise UsageError(message) from error
    except UnicodeDecodeError:
        text = ""
    if text_digest(text) != digest:
        raise UsageError(
            f"{file} is not the file that the run of {results} has written: it was changed, damaged or"
            " replaced by that of another run; put both files of one run into one folder, or evaluate again"
        )
    return list(csv.DictReader(io.StringIO(text)))


def _difference(
    first: Run, second: Run, shared: Sequence[ImageKey], method: str, measure: str
) -> Estimate | None:
    """Return the mean difference over the images that have a value in both runs; None if there is none."""
    pairs = [(first.samples[key], second.samples[key]) for key in shared]
    pairs = [(a, b) for a, b in pairs if method in a.values and method in b.values]
    found = [(a.values[method][measure] - b.values[method][measure], a.class_idx) for a, b in pairs]
    # NaN where the measure is not defined for the image.
    found = [(difference, class_idx) for difference, class_idx in found if not math.isnan(difference)]
    if not found:
        return None
    differences, explained = map(list, zip(*found, strict=True))
    over_classes = first.over_classes and second.over_classes
    classes = torch.tensor(explained if over_classes else [0] * len(explained))
    _, group, count = torch.unique(classes, return_inverse=True, return_counts=True)
    values = torch.tensor(differences, dtype=torch.float64)
    total, squares = (values.new_zeros(len(count)).index_add(0, group, one) for one in (values, values**2))
    return estimate(count, total, squares, over_groups=True)


def _format_difference(difference: Estimate | None) -> str:
    """Return a mean difference with its interval."""
    if difference is None:
        return "-"
    lower, upper = (float(end) for end in difference.interval())
    interval = "" if math.isnan(lower) else f" ({lower:+.3f} to {upper:+.3f})"
    return f"{float(difference.mean):+.3f}{interval}"


def _format_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
