"""``--group``: the groups of the images of a run, and whether predictions are right."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cli.data import Images
from torchmetrics_cam.cli.digests import text_digest
from torchmetrics_cam.cli.errors import UsageError, usage_error
from torchmetrics_cam.metrics.comparison.grouped import PREDICTION
from torchmetrics_cam.metrics.comparison.metric import CAMComparison
from torchmetrics_cam.model.guard import ModelGuard
from torchmetrics_cam.model.scores import ScoreFunction
from torchmetrics_cam.protocol import EvaluationProtocol
from torchmetrics_cam.report.text import printable
from torchmetrics_cam.report.write import cell_text

CORRECT = "correct"
OPTION_CORRECT = f"--group {CORRECT}"
MOST_GROUPS = 50
_LISTED = 3


@dataclass(frozen=True)
class Groups:
    """The groups of the images of a run.

    Args:
        title: the name of the column that they come from.
        names: the names of the groups.
        indices: the index of the group of each image, -1 for an image without one that cannot be read.
        description: where they come from, with a note on rows that are not used.
    """

    title: str
    names: list[str]
    indices: list[int]
    description: str

    def fingerprint(self) -> str:
        """Return a checksum that changes with the group of any image."""
        return text_digest(json.dumps([self.title, self.names, self.indices]))


def load_groups(value: str | None, images: Images) -> Groups | None:
    """Return the groups of the images of a run.

    Args:
        value: that of ``--group``.
        images: the images.

    Returns:
        The groups; None without the option, and for ``correct``, which needs the predictions.

    Raises:
        UsageError: if it is neither a file nor a column, an image has no group, or there are too many groups.
    """
    if value is None or value == CORRECT:
        return None
    option = f"--group {value}"
    if value in images.origin.columns:
        values = images.origin.column(value, images.positions)  # type: ignore[union-attr]
        origin = f"column {value} of the dataset"
        return _groups(value, values, images, option, origin, "value in this column")
    with usage_error(f"--group {value!r} is not a path"):
        is_file = Path(value).is_file()
    if not is_file:
        columns = ", ".join(images.origin.columns)
        has = f", and the dataset has the columns {columns}" if columns else ""
        raise UsageError(
            f"{option} is no file{has}; give a CSV file with the name and the group of each image, a column"
            f" of a saved dataset, or `{CORRECT}`"
        )
    return _from_file(Path(value), images, option)


def check_option(arguments: Any) -> None:
    """Refuse ``--group correct`` with mosaics, which show several classes.

    Raises:
        UsageError: if both are given.
    """
    if arguments.mosaic and arguments.group == CORRECT:
        raise UsageError(
            f"{OPTION_CORRECT} cannot be given with --mosaic: a mosaic shows several classes, so that no"
            " prediction of it is right; omit one of them"
        )


def why_not_separated(
    images: Images,
    groups: Groups | None,
    arguments: Any,
    *,
    model: nn.Module,
    image: Tensor,
    protocol: EvaluationProtocol,
) -> str | None:
    """Return why right and wrong predictions are not separated, and what to do; None if they are.

    They are separated wherever the classes are known.

    Args:
        images: the images. If their labels serve for nothing else, and do not fit the network, they are used
            no longer.
        groups: the groups that were given.
        arguments: the options of the command.
        model: the network.
        image: an image as the network takes it, ``(C, H, W)``.
        protocol: the main protocol.

    Raises:
        UsageError: if they are, and a group has the name of one of theirs.
    """
    reason = _reason_against(images, arguments, model, image, protocol)
    if reason is None:
        taken = [] if groups is None else [name for name in groups.names if name in PREDICTION.names]
        if taken:
            raise UsageError(
                f"--group {arguments.group} has the group {taken[0]!r}, and right and wrong predictions are"
                f" separated in this run, in groups with the names {' and '.join(PREDICTION.names)}; rename"
                " the group"
            )
        return None
    if arguments.explain != "label":
        images.drop_labels()
    return f"right and wrong predictions are not separated in this run, because {reason}"


def inputs_of(
    comparison: CAMComparison, groups: Groups | None, arguments: Any
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return the function from a batch of images to the arguments of ``update``.

    Args:
        comparison: the comparison.
        groups: the groups that were given.
        arguments: the options of the command.
    """
    names = {"input_tensor": "image", "index": "index"}
    if arguments.explain == "label":
        names["class_idx"] = "label"
    if arguments.mosaic:
        names["objects"] = "objects"
    if PREDICTION in comparison.groupings:
        names["labels"] = "label"
    return partial(_update_arguments, names=names, groups=None if groups is None else groups.indices)


def _update_arguments(
    batch: Mapping[str, Any], *, names: Mapping[str, str], groups: Sequence[int] | None
) -> dict[str, Any]:
    arguments = {argument: batch[part] for argument, part in names.items()}
    if groups is not None:
        arguments["group"] = [groups[index] for index in batch["index"]]
    return arguments


def _reason_against(
    images: Images, arguments: Any, model: nn.Module, image: Tensor, protocol: EvaluationProtocol
) -> str | None:
    """Return why right and wrong predictions cannot be separated, and what to do; None if they can."""
    if arguments.mosaic:
        return "a mosaic shows several classes; omit --mosaic"
    if not images.has_class_indices:
        return images.unmatched_reason
    if arguments.explain == "label" or arguments.group == CORRECT:
        return None
    number = _number_of_classes(model, image, protocol)
    if number == images.model_classes:
        return None
    has = "this one has another kind of output" if number is None else f"this one has {number}"
    return (
        f"the labels are for a network with {images.model_classes} outputs, and {has}; return the names of"
        " its classes from the function of --model"
    )


def _number_of_classes(model: nn.Module, image: Tensor, protocol: EvaluationProtocol) -> int | None:
    """Return the number of classes that the network scores; None if its output has another form."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), ModelGuard(model) as guard:
        scores = ScoreFunction(None, protocol)(model(image.unsqueeze(0).to(guard.dtype_for(image)))).scores
    return scores.shape[1] if isinstance(scores, Tensor) and scores.ndim == 2 else None


def _from_file(file: Path, images: Images, option: str) -> Groups:
    """Return the groups in a CSV file."""
    header, rows = _read(file, option)
    find = _finder(images)
    if find(header[0], option):
        raise UsageError(
            f"{option}: the first line names the image {header[0]!r}; write a header above it, such as"
            " file,group"
        )
    found: dict[int, str] = {}
    unused: list[str] = []
    for line, name, value in rows:
        positions = find(name, f"{option}, line {line}")
        if not positions:
            unused.append(name)
            continue
        if not value:
            raise UsageError(f"{option}, line {line}: {name!r} has no group; give it one, or remove the line")
        if found.setdefault(positions[0], value) != value:
            raise UsageError(
                f"{option}, line {line}: {name!r} has the group {value!r}, and {found[positions[0]]!r} in an"
                " earlier line; leave one of them"
            )
    description = f"column {header[1]} of {file}"
    if unused:
        rows_text = "row names" if len(unused) == 1 else "rows name"
        description += f"; {len(unused)} {rows_text} no image of the data, such as {unused[0]!r}"
    if not found:
        raise UsageError(
            f"{option}: no row names an image of the data; the first row has {rows[0][1]!r}, and the first"
            f" image is {images.file(0)!r}. Give the path of each image in the folder"
        )
    values = [found.get(position) for position in images.positions]
    return _groups(header[1], values, images, option, description, "row in this file")


def _read(file: Path, option: str) -> tuple[list[str], list[tuple[int, str, str]]]:
    """Return the header of a CSV file, and the line and the two cells of each row."""
    way_out = "write a header and two columns separated by a comma, the name of the image and its group"
    with (
        usage_error(f"{option} cannot be read as a CSV file in UTF-8"),
        file.open(newline="", encoding="utf-8-sig") as opened,
    ):
        reader = csv.reader(opened)
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(row)]
    for line, row in rows:
        if len(row) != 2:
            columns = "1 column" if len(row) == 1 else f"{len(row)} columns"
            raise UsageError(f"{option}, line {line} has {columns}; {way_out}")
    if len(rows) < 2:
        raise UsageError(f"{option} has no row below a header; {way_out}")
    return rows[0][1], [(line, *row) for line, row in rows[1:]]  # type: ignore[misc]


def _finder(images: Images) -> Callable[[str, str], Sequence[int]]:
    """Return a function from the name of an image to its position among all images of the data.

    An image is found by its name in samples.csv, or else by its path in the folder, or else by its name
    without subfolders. The function raises a `UsageError` for a name that several images have.
    """
    by_name: list[dict[str, list[int]]] = [{}, {}, {}]
    for position in range(len(images.origin)):
        names = [images.origin.name(position), *images.origin.short_names(position)]
        for level, name in zip(by_name, names, strict=False):
            for form in {name, printable(name), cell_text(name)}:
                level.setdefault(form, []).append(position)

    def find(name: str, where: str) -> Sequence[int]:
        positions = next((level[name] for level in by_name if name in level), [])
        if len(positions) > 1:
            raise UsageError(
                f"{where}: {len(positions)} images have the name {name!r}; give their paths in the folder"
            )
        return positions

    return find


def _groups(
    title: str, values: Sequence[str | None], images: Images, option: str, description: str, needed: str
) -> Groups:
    """Return the groups from the value of each image of the run.

    Raises:
        UsageError: if an image that can be read has no value, or there are too many values.
    """
    without = [index for index, value in enumerate(values) if value is None and images[index] is not None]
    if without:
        names = ", ".join(repr(images.file(index)) for index in without[:_LISTED])
        more = f" and {len(without) - _LISTED} more" if len(without) > _LISTED else ""
        verb = "has" if len(without) == 1 else "have"
        raise UsageError(
            f"{option}: {len(without)} of {len(images)} images {verb} no {needed}: {names}{more}; give each"
            " image a group"
        )
    found = _ordered({value for value in values if value is not None})
    if len(found) > MOST_GROUPS:
        raise UsageError(
            f"{option} has {len(found)} different values for {len(images)} images, and at most {MOST_GROUPS}"
            " groups are compared; give a column with fewer values, such as the kind of the object"
        )
    index_of: Mapping[str | None, int] = {name: index for index, name in enumerate(found)} | {None: -1}
    return Groups(
        printable(title),
        list(map(printable, found)),
        [index_of[value] for value in values],
        printable(description),
    )


def _ordered(values: set[str]) -> list[str]:
    """Return the values in order, numbers by size."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return sorted(values)
