"""The sums of each group of images, and the arguments that say which group an image belongs to."""

from collections.abc import Sequence
from itertools import product
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from torchmetrics_cam.metrics.comparison.contributions import ComparedBatch
from torchmetrics_cam.metrics.comparison.groups import Grouping, GroupStatistics
from torchmetrics_cam.metrics.comparison.samples import SampleMetric
from torchmetrics_cam.pipeline.batch import Batch
from torchmetrics_cam.protocol import EvaluationProtocol

PREDICTION = Grouping("prediction", ("correct", "wrong"))
Group = Tensor | Sequence[str] | Sequence[int]
Labels = Tensor | Sequence[int]


class GroupedMetric(SampleMetric):
    """A metric of several methods and measures that can have the values of groups of images.

    Attributes:
        group_count: number of images of each group, of all groupings.
        group_defined: number of values of each group, measure and method.
        group_sums: their sum.
        group_squares: the sum of their squares.
    """

    group_count: Tensor
    group_defined: Tensor
    group_sums: Tensor
    group_squares: Tensor
    outside_count: Tensor

    def _add_groupings(self, groups: Sequence[str] | None, by_correctness: bool) -> None:
        """Validate the groups, and add their states where there are any."""
        given = () if groups is None else (Grouping("group", _checked_names(groups)),)
        self.groupings = (*given, PREDICTION) if by_correctness else given
        _check_keys(self.methods, self._pipeline.protocols, self.groupings)
        if self.groupings:
            number = sum(len(grouping.names) for grouping in self.groupings)
            shape = (number, len(self.measures), len(self.methods))
            self.add_state("group_count", self._zeros(torch.int64, number), dist_reduce_fx="sum")
            self.add_state("group_defined", self._zeros(torch.int64, *shape), dist_reduce_fx="sum")
            self.add_state("group_sums", self._zeros(torch.float64, *shape), dist_reduce_fx="sum")
            self.add_state("group_squares", self._zeros(torch.float64, *shape), dist_reduce_fx="sum")

    def _check_groups(self, images: Any, group: Group | None, labels: Labels | None, targets: Any) -> None:
        """Validate the groups and the labels of a batch, before the model runs.

        Raises:
            TypeError: if they are of a wrong type.
            ValueError: if they are missing, were not asked for, or do not fit the images or the groups.
        """
        if not isinstance(images, Tensor):
            return
        kinds = {grouping.kind: grouping.names for grouping in self.groupings}
        if group is not None and "group" not in kinds:
            raise ValueError(
                "group was given, and the comparison has no groups; create it with their names, as in"
                ' groups=("footwear", "tops")'
            )
        if labels is not None and "prediction" not in kinds:
            raise ValueError(
                "labels were given, which tell right from wrong predictions; create the comparison with"
                " by_correctness=True, or pass class_idx=labels to explain them"
            )
        read_values = bool(self._pipeline.validate_args)
        if "group" in kinds:
            _check_group(group, kinds["group"], len(images), read_values=read_values)
        if "prediction" in kinds:
            if targets is not None:
                raise ValueError(
                    "targets were given, and whether a prediction is right needs a class; pass class_idx"
                    " instead, or create the comparison without by_correctness"
                )
            _check_labels(labels, len(images), read_values=read_values)

    def _members(self, batch: Batch, group: Group | None, labels: Labels | None) -> Tensor:
        """Return which images belong to each group, of all groupings, bool, ``(N, G)``.

        Raises:
            ValueError: if a label is no class of the model.
        """
        parts, device = [], batch.images.device
        for grouping in self.groupings:
            if grouping.kind == "group":
                indices = _indices(group, grouping.names).to(device)
                numbers = torch.arange(len(grouping.names), device=device)
                parts.append(indices.unsqueeze(1) == numbers)
                continue
            assert labels is not None
            assert batch.top_class is not None
            if self._pipeline.validate_args:
                _check_range(labels, batch.num_classes or 0)
            is_correct = batch.top_class == torch.as_tensor(labels).as_subclass(Tensor).to(device)
            parts.append(torch.stack([is_correct, ~is_correct], 1))
        return torch.cat(parts, 1)

    def _add_to_groups(self, batch: Batch, compared: ComparedBatch, members: Tensor) -> None:
        """Add the values of a batch under the first protocol to the sums of the groups.

        Args:
            batch: the batch.
            compared: its values.
            members: which images belong to each group, ``(N, G)``.
        """
        defined, values = compared.in_groups(members)
        counted = members & compared.valid.any(0).unsqueeze(1)
        self.group_count = self.group_count + self._sum(batch, counted)
        self.group_defined = self.group_defined + self._sum(batch, defined)
        self.group_sums = self.group_sums + self._sum(batch, values)
        self.group_squares = self.group_squares + self._sum(batch, values.square())

    def _group_indices(self, members: Tensor) -> list[Tensor]:
        """Return the index of the group of each image in each grouping, ``(N,)``; -1 for none."""
        parts = torch.split(members, [len(grouping.names) for grouping in self.groupings], 1)
        return [torch.where(part.any(1), part.int().argmax(1), -1) for part in parts]

    def _group_statistics(self) -> list[GroupStatistics]:
        """Return the statistics of each grouping under the first protocol."""
        found, start = [], 0
        for grouping in self.groupings:
            part = slice(start, start := start + len(grouping.names))
            found.append(
                GroupStatistics(
                    grouping,
                    self.measures,
                    self.average,
                    self.protocol,
                    self.group_count[..., part],
                    self.group_defined[..., part, :, :],
                    self.group_sums[..., part, :, :],
                    self.group_squares[..., part, :, :],
                    self.outside_count[..., 0, :],
                )
            )
        return found

    def _values_of_groups(self) -> dict[str, Tensor]:
        """Return the mean of every group, method and measure, and the bounds of its 95 % interval."""
        values: dict[str, Tensor] = {}
        for statistics in self._group_statistics():
            for number, measure in enumerate(self.measures):
                bounds = statistics.mean(number)
                values |= {
                    f"{group}/{method}/{measure.name}{suffix}": value[..., row, column].to(self.dtype)
                    for row, group in enumerate(statistics.grouping.names)
                    for column, method in enumerate(self.methods)
                    for suffix, value in zip(("", "_lower", "_upper"), bounds, strict=True)
                }
        return values


def _checked_names(groups: Any) -> tuple[str, ...]:
    """Return the names of the groups.

    Raises:
        TypeError: if they are not a list or tuple of texts.
        ValueError: if there is none, one is empty, or one is given twice.
    """
    if not isinstance(groups, list | tuple) or not all(isinstance(name, str) for name in groups):
        raise TypeError(f'groups is {groups!r}; pass a tuple of names, such as ("footwear", "tops")')
    if not groups or not all(groups) or len(set(groups)) < len(groups):
        raise ValueError(f"groups is {groups!r}; give one or more different names, none of them empty")
    return tuple(groups)


def _check_keys(
    methods: Sequence[str], protocols: Sequence[EvaluationProtocol], groupings: Sequence[Grouping]
) -> None:
    """Refuse names with which two values of a comparison would have one key.

    Raises:
        ValueError: if there are such names.
    """
    names = [name for grouping in groupings for name in grouping.names]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{name!r} is a group, and by_correctness=True makes the groups {PREDICTION.names}; rename it"
            )
    owners = {method: f"the method {method}" for method in methods}
    prefixes = [(protocol.name, f"under the protocol {protocol.name}") for protocol in protocols[1:]]
    prefixes += [(name, f"in the group {name}") for name in names]
    for (prefix, where), method in product(prefixes, methods):
        key = f"{prefix}/{method}"
        if key in owners:
            raise ValueError(f"{owners[key]} has the name of {method} {where}; rename one of them")
        owners[key] = f"{method} {where}"


def _check_group(group: Any, names: Sequence[str], images: int, *, read_values: bool) -> None:
    if group is None:
        raise ValueError(
            f"group is missing: pass the name or the index of the group of each image, of {list(names)}"
        )
    _check_length(group, "group", "a LongTensor (N,), or a list of names", images)
    if isinstance(group, Tensor):
        indices = group.tolist() if read_values else []
    else:
        unknown = [name for name in group if isinstance(name, str) and name not in names]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no group; available are {list(names)}")
        indices = [index for index in group if not isinstance(index, str)]
    wrong = [index for index in indices if not 0 <= index < len(names)]
    if wrong:
        raise ValueError(
            f"group {wrong[0]} is out of range: the comparison has {len(names)} groups, {list(names)}"
        )


def _check_labels(labels: Any, images: int, *, read_values: bool) -> None:
    if labels is None:
        raise ValueError(
            "labels are missing: by_correctness=True compares the prediction of the model with the class of"
            " each image; pass update(images, labels=...)"
        )
    _check_length(labels, "labels", "a LongTensor (N,), or a list of integers", images)
    values = labels if read_values or not isinstance(labels, Tensor) else []
    values = values.tolist() if isinstance(values, Tensor) else values
    wrong = [value for value in values if isinstance(value, str) or value < 0]
    if wrong:
        raise ValueError(
            f"label {wrong[0]!r} is no class: labels are indices of the model's outputs, and each image needs"
            " one"
        )


def _check_range(labels: Labels, classes: int) -> None:
    largest = max(labels.tolist() if isinstance(labels, Tensor) else labels)
    if largest >= classes:
        raise ValueError(
            f"label {largest} is out of range: the model has {classes} classes; labels are indices of its"
            " outputs"
        )


def _check_length(values: Any, argument: str, needed: str, images: int) -> None:
    """Validate that there is an integer or a name for each image.

    Raises:
        TypeError: if they are of a wrong type.
        ValueError: if their number is another.
    """
    if isinstance(values, Tensor):
        if values.dtype == torch.bool or values.is_floating_point() or values.is_complex():
            raise TypeError(f"{argument} is a tensor of {values.dtype}; pass {needed}")
        shape = tuple(values.shape)
    else:
        if not isinstance(values, list | tuple) or not all(map(_is_name_or_integer, values)):
            raise TypeError(f"{argument} is {values!r}; pass {needed}")
        shape = (len(values),)
    if shape != (images,):
        raise ValueError(
            f"{argument} has shape {shape} but input_tensor holds {images} images; pass one for each"
        )


def _is_name_or_integer(value: Any) -> bool:
    return isinstance(value, str | Integral) and not isinstance(value, bool)


def _indices(group: Any, names: Sequence[str]) -> Tensor:
    """Return the index of the group of each image, ``(N,)``."""
    if isinstance(group, Tensor):
        return group.as_subclass(Tensor)
    return torch.tensor([names.index(one) if isinstance(one, str) else int(one) for one in group])
