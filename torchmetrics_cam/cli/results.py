"""The results of a run and the files with them, and the partial result of an interrupted run."""

import csv
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from torchmetrics_cam.__about__ import __version__
from torchmetrics_cam.cli.digests import text_digest
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.folder import (
    SAMPLE_COLUMNS,
    check_files,
    check_partial,
    remove_partial_files,
    write_errors,
)
from torchmetrics_cam.lightning.resume import write_atomically
from torchmetrics_cam.metrics.comparison.metric import CURVES, CAMComparison
from torchmetrics_cam.report.write import GENERATOR, cell_text, write_csv, write_report

FORMAT = 1
_LIBRARIES = (
    "torch",
    "torchvision",
    "torchmetrics",
    "lightning",
    "timm",
    "transformers",
    "torchcam",
    "grad-cam",
)
# Options that may differ between an interrupted run and the run that resumes it. The batch size may, because
# the first one may have been too large for the memory.
_CHANGEABLE = (
    "fresh",
    "assume_unchanged",
    "out",
    "pictures",
    "save_every",
    "num_workers",
    "batch_size",
    "halve_on_oom",
    "fail_if",
)


def results_of(comparison: CAMComparison, class_names: Sequence[str] | None) -> dict[str, Any]:
    """Return all results of a comparison, for JSON.

    Args:
        comparison: the comparison, with the states of all ranks.
        class_names: the names of the classes; None if they are not known.
    """
    table = comparison.table()
    measures = [measure.name for measure in comparison.measures]
    return {
        "written_by": f"{GENERATOR} {__version__}",
        "format": FORMAT,
        "methods": list(comparison.methods),
        "comparison": json.loads(table.to_json()),
        "protocol_text": "\n".join(protocol.caption(measures) for protocol in comparison.protocols),
        "win_rates": {measure.name: _win_rate(comparison, measure.name) for measure in comparison.measures},
        "paired": _paired_differences(comparison),
        "per_class": _per_class(comparison, class_names),
        "curves": _curves(comparison),
    }


def compilation_of(comparison: CAMComparison) -> dict[str, Any]:
    """Return the time of compilation in this process, and why the network itself ran if it did, for JSON."""
    if comparison.compilation is None:
        # The images were scored before this run was resumed, or by other processes.
        return {"seconds": None, "failure": None}
    return vars(comparison.compilation)


def environment(*, processes: int) -> dict[str, Any]:
    """Return the date, the versions of the libraries and the hardware, for JSON."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            "python": platform.python_version(),
            "torchmetrics-cam": __version__,
            **{name: installed for name in _LIBRARIES if (installed := _version(name))},
        },
        "hardware": {
            "platform": f"{platform.system()} {platform.machine()}",
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
            "processes": processes,
            "threads": torch.get_num_threads(),
        },
    }


def write_files(
    comparison: CAMComparison,
    results: dict[str, Any],
    pictures: Any,
    out: Path,
    file_of: Callable[[int], str],
    digests: Mapping[int, str],
    *,
    figures: Mapping[str, bytes] | None = None,
) -> None:
    """Write ``results.json``, ``results.csv``, ``samples.csv`` and ``report.html``.

    They replace the files of an earlier run only when all of them are complete.

    Args:
        comparison: the comparison, with the samples of all ranks.
        results: the content of ``results.json``.
        pictures: the explained images of the report, as `write_report` takes them.
        out: the output folder.
        file_of: the function from the index of an image to the name of its file.
        digests: the SHA-256 of each image by its index.
        figures: PNG files to write with them, by name.

    Raises:
        UsageError: if a file cannot be written, or would replace one that no run has written.
    """
    with write_errors(out), TemporaryDirectory(prefix="unfinished-", dir=out) as folder:
        unfinished = Path(folder)
        _write_samples(comparison, file_of, digests, unfinished / "samples.csv")
        # As it is read: where git or an editor has changed how lines end, the digest is the same.
        samples = (unfinished / "samples.csv").read_text("utf-8")
        results = {**results, "samples_sha256": text_digest(samples)}
        _write_json(results, unfinished / "results.json")
        write_csv(results, unfinished / "results.csv")
        write_report(results, unfinished / "report.html", gallery=pictures)
        for name, content in (figures or {}).items():
            (unfinished / name).write_bytes(content)
        files = list(unfinished.iterdir())
        # Again, because the evaluation may have taken hours.
        check_files(out, [file.name for file in files])
        for file in files:
            file.replace(out / file.name)


def settings_of(arguments: Any) -> dict[str, Any]:
    """Return the options of a run, for JSON."""
    options = {name: value for name, value in vars(arguments).items() if name not in ("config", "traceback")}
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def how_to_resume(arguments: Any) -> str:
    """Return the end of a message, which says how to resume the run."""
    command = "the same command without --fresh" if arguments.fresh else "the same command"
    return f"{command} resumes from it"


def start_or_resume(partial: Path, arguments: Any, fingerprints: Mapping[str, str]) -> None:
    """Prepare the folder of the partial result; keep its files if options, weights and images are the same.

    Args:
        partial: the folder of the partial result.
        arguments: the options of the command.
        fingerprints: checksums by the name of what must not change, such as ``"weights"``.

    Raises:
        UsageError: if the folder holds the partial result of another run, or files of the user.
    """
    check_partial(partial)
    settings = {name: value for name, value in settings_of(arguments).items() if name not in _CHANGEABLE}
    settings |= {f"state of the {name}": fingerprint for name, fingerprint in fingerprints.items()}
    # In the form in which they are read from the file: tuples become lists.
    settings = json.loads(json.dumps({"written_by": f"{GENERATOR} evaluate", **settings}, default=str))
    file = partial / "settings.json"
    if arguments.fresh:
        remove_partial_files(partial)
    if file.exists():
        try:
            stored = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise UsageError(f"{file} cannot be read; start again with --fresh") from error
        different = [
            name for name in settings if not isinstance(stored, dict) or stored.get(name) != settings[name]
        ]
        if different:
            raise UsageError(
                f"{partial} holds the partial result of another command: {', '.join(different)} differ; run"
                " that command again, or discard its partial result with --fresh"
            )
        return
    partial.mkdir(exist_ok=True)
    _write_json(settings, file)


def _write_json(results: dict[str, Any], file: Path) -> None:
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    # Characters of file names that are not UTF-8 are written as JSON escapes.
    write_atomically(file, text.encode("utf-8", errors="backslashreplace"))


def _write_samples(
    comparison: CAMComparison, file_of: Callable[[int], str], digests: Mapping[int, str], file: Path
) -> None:
    """Write a row per image: its digest, class, score and groups, and the values of every method."""
    samples = comparison.samples()
    columns = ["masked_score", "valid", *(measure.name for measure in comparison.measures)]
    header = [cell_text(f"{method}/{column}") for method in comparison.methods for column in columns]
    order = samples["index"].argsort().tolist()
    groups = [
        [cell_text(grouping.names[number]) for number in samples[grouping.kind].tolist()]
        for grouping in comparison.groupings
    ]
    values = torch.stack([samples[column].double() for column in columns], 2).flatten(1).tolist()
    indices, classes, scores = (samples[name].tolist() for name in ("index", "class_idx", "score"))
    with file.open("w", newline="", encoding="utf-8", errors="backslashreplace") as opened:
        writer = csv.writer(opened)
        writer.writerow([*SAMPLE_COLUMNS, *(grouping.kind for grouping in comparison.groupings), *header])
        for row in order:
            index = indices[row]
            name = cell_text(file_of(index))
            of_groups = [names[row] for names in groups]
            first = [index, name, digests[index], classes[row], scores[row]]
            writer.writerow([*first, *of_groups, *values[row]])


def _curves(comparison: CAMComparison) -> dict[str, Any]:
    """Return the mean deletion and insertion curves of every method, if the comparison has any."""
    curves: dict[str, Any] = {}
    for name in [measure.name for measure in comparison.measures if measure.name in CURVES]:
        fractions, scores = comparison.curve(name)
        curves["fractions"] = fractions.tolist()
        curves[name.removesuffix("_auc")] = dict(zip(comparison.methods, _numbers(scores), strict=True))
    return curves


def _per_class(comparison: CAMComparison, class_names: Sequence[str] | None) -> list[dict[str, Any]]:
    samples = comparison.samples()
    names = class_names or ()
    rows = []
    for class_idx in sorted(set(samples["class_idx"].tolist())):
        of_class = samples["class_idx"] == class_idx
        valid = samples["valid"][of_class]
        values = {
            method: {
                measure.name: _numbers(samples[measure.name][of_class][:, column][valid[:, column]].nanmean())
                for measure in comparison.measures
            }
            for column, method in enumerate(comparison.methods)
        }
        name = names[class_idx] if 0 <= class_idx < len(names) else str(class_idx)
        rows.append(
            {
                "class_idx": class_idx,
                "name": name,
                # A map that is not finite excludes an image for one method only.
                "n": int(valid.any(1).sum()),
                "counted": dict(zip(comparison.methods, valid.sum(0).tolist(), strict=True)),
                "values": values,
            }
        )
    return rows


def _win_rate(comparison: CAMComparison, measure: str) -> dict[str, Any]:
    wins, ties = comparison.win_rate(measure)
    return {"wins": _numbers(wins), "ties": _numbers(ties)}


def _paired_differences(comparison: CAMComparison) -> list[dict[str, Any]]:
    """Return the mean difference of each pair of methods in each measure, with its interval and p-value."""
    rows = []
    for measure in comparison.measures:
        for first, second in combinations(comparison.methods, 2):
            difference = vars(comparison.paired_difference(first, second, measure.name))
            numbers = {name: _numbers(value) for name, value in difference.items()}
            rows.append({"measure": measure.name, "first": first, "second": second, **numbers})
    return rows


def _numbers(values: Tensor) -> Any:
    """Return a tensor as a number or nested lists; NaN and infinity, which JSON lacks, as None."""
    if values.ndim:
        return [_numbers(value) for value in values]
    return values.item() if values.isfinite() else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
