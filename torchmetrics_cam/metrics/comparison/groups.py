"""Groups of images: the values of each group, and the worst group against all other images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from torchmetrics_cam.functional.statistics import estimate, mean_difference, sum_dtype
from torchmetrics_cam.metrics.arguments import Average
from torchmetrics_cam.metrics.comparison.contributions import TIE
from torchmetrics_cam.metrics.comparison.statistics import interval_text, mean_with_bounds, number_or_none
from torchmetrics_cam.metrics.measures import Measure
from torchmetrics_cam.protocol import EvaluationProtocol

# With fewer images a group cannot be the worst.
FEWEST_IMAGES = 2
_SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Grouping:
    """A division of the images into groups.

    Args:
        kind: ``"group"`` for those that are given, ``"prediction"`` for right and wrong predictions.
        names: the names of the groups.
    """

    kind: str
    names: tuple[str, ...]

    @property
    def title(self) -> str:
        """The title in tables and figures."""
        return self.kind.capitalize()


@dataclass(frozen=True)
class GroupTable:
    """The values of the groups of a grouping, and the worst group of each method and measure.

    The worst group is the one with the worst mean, of groups with the same mean to 1e-6 the first. Groups of
    fewer than two images cannot be the worst. There is no worst group where none is worse than all other
    images by more than 1e-6, for example in a single group.

    The gap is the mean of the worst group minus the mean of all other images of the grouping. Its interval
    and its p-value are the more cautious ones of Welch's and Student's t tests, see `mean_difference`, of
    this group alone. The gap is significant if the p-value times the number of groups of two images or more
    is below .05 (Bonferroni), because the worst of so many groups was picked. Methods and measures are not
    adjusted for.

    With ``average="macro"`` each mean is over the classes that the group, or the rest, has images of.

    Args:
        grouping: ``"group"`` or ``"prediction"``.
        title: as in tables and figures.
        names: the names of the groups.
        n: the number of images of each group that count for at least one method.
        rows: a row for each method, as ordered in the table. ``"method"``, ``"control"``, ``"values"``: for
            each measure a list over the groups of ``"value"``, ``"lower"`` and ``"upper"``, the bounds of the
            95 % interval, and ``"n"``, the number of values; and ``"worst"``: for each measure None or
            ``"group"``, ``"value"``, ``"others"``, the value of all other images, ``"gap"``, ``"lower"``,
            ``"upper"``, ``"p_value"`` and ``"significant"``. What is not known is None.
    """

    grouping: str
    title: str
    names: Sequence[str]
    n: Sequence[int]
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class GroupStatistics:
    """The sums of each group of a grouping over all ranks, and the statistics that follow from them.

    Args:
        grouping: the grouping.
        measures: the measures.
        average: over images, or over classes.
        protocol: the settings that the values depend on.
        count: number of images of each group, ``(*classes, G)``.
        defined: number of values of each measure and method, ``(*classes, G, M, K)``.
        sums: sum of the values.
        squares: sum of the squared values.
        outside: number of images with a score outside of [0, 1], for which measures of the scores have no
            range, ``(*classes, K)``.
    """

    grouping: Grouping
    measures: tuple[Measure, ...]
    average: Average
    protocol: EvaluationProtocol
    count: Tensor
    defined: Tensor
    sums: Tensor
    squares: Tensor
    outside: Tensor

    def mean(self, measure: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean of each group and method with its bounds, ``(G, K)`` or ``(classes, G, K)``."""
        return mean_with_bounds(
            self.measures[measure],
            *(state[..., measure, :] for state in (self.defined, self.sums, self.squares)),
            average=self.average,
            protocol=self.protocol,
            outside=self.outside,
        )

    def against_others(self, measure: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the mean of all other images, and of each group's gap to it the value, bounds and p-value.

        Each is ``(G, K)``.
        """
        dtype, groups = sum_dtype(self.sums.device), len(self.grouping.names)
        count, total, squares = (
            state[..., measure, :].to(dtype) for state in (self.defined, self.sums, self.squares)
        )
        # A sum of the other groups: a difference from the sum of all would lose the digits of small values.
        other = 1 - torch.eye(groups, dtype=dtype, device=total.device)
        others = other @ count, other @ total, other @ squares
        over_classes = self.average == "macro"
        mean = estimate(*others, over_groups=over_classes).mean
        return mean, *mean_difference((count, total, squares), others, over_groups=over_classes)

    def pooled(self) -> "GroupStatistics":
        """Return the statistics over the images of all classes, where each class had its own values."""
        if self.average != "none":
            return self
        states = {name: getattr(self, name).sum(0) for name in ("count", "defined", "sums", "squares")}
        return replace(self, average="micro", outside=self.outside.sum(0), **states)

    def table(self, methods: Sequence[str], ordered: Sequence[Mapping[str, Any]]) -> GroupTable:
        """Return the values of all groups; the classes must be pooled.

        Args:
            methods: the names of the methods.
            ordered: the rows of the table of the comparison, which has ``"method"`` and ``"control"``.
        """
        by_method: list[dict[str, Any]] = [{"values": {}, "worst": {}} for _ in methods]
        classes = self.defined.ndim - 3
        defined = self.defined.sum(0) if classes else self.defined
        for index, measure in enumerate(self.measures):
            numbers = defined[:, index].T.tolist()
            means = [part.T.tolist() for part in self.mean(index)]
            gaps = [part.T.tolist() for part in self.against_others(index)]
            for method, row in enumerate(by_method):
                cells = [
                    _cell(("value", "lower", "upper"), mean) | {"n": number}
                    for *mean, number in zip(*(part[method] for part in means), numbers[method], strict=True)
                ]
                against = [
                    _cell(("others", "gap", "lower", "upper", "p_value"), gap)
                    for gap in zip(*(part[method] for part in gaps), strict=True)
                ]
                row["values"][measure.name] = cells
                row["worst"][measure.name] = self._worst(measure, cells, against)
        count = self.count.sum(0) if classes else self.count
        return GroupTable(
            grouping=self.grouping.kind,
            title=self.grouping.title,
            names=list(self.grouping.names),
            n=count.tolist(),
            rows=[
                {"method": row["method"], "control": row["control"]} | by_method[methods.index(row["method"])]
                for row in ordered
            ],
        )

    def _worst(
        self, measure: Measure, cells: Sequence[Mapping[str, Any]], against: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any] | None:
        """Return the worst group of one method and measure."""
        sign = 1 if measure.higher_is_better else -1
        goodness = {
            index: sign * cell["value"]
            for index, cell in enumerate(cells)
            if cell["n"] >= FEWEST_IMAGES and cell["value"] is not None
        }
        lowest = min(goodness.values(), default=0.0)
        worst = next((index for index, value in goodness.items() if value <= lowest + TIE), None)
        if worst is None or against[worst]["gap"] is None or not sign * against[worst]["gap"] < -TIE:
            return None
        p_value = against[worst]["p_value"]
        return {
            "group": self.grouping.names[worst],
            "value": cells[worst]["value"],
            **against[worst],
            "significant": None if p_value is None else p_value * len(goodness) < _SIGNIFICANCE,
        }


def describe_groups(table: GroupTable, titles: Mapping[str, str]) -> list[str]:
    """Return the lines of two Markdown tables: the values of each group, and the worst groups.

    Args:
        table: the values of a grouping.
        titles: the title of each measure by its name.
    """
    lines = [["method", table.grouping, *titles.values(), "N"], ["---", "---", *["---:"] * (len(titles) + 1)]]
    worst = []
    for row in table.rows:
        method = f"control: {row['method']}" if row["control"] else row["method"]
        for index, (name, number) in enumerate(zip(table.names, table.n, strict=True)):
            cells = [row["values"][measure][index] for measure in titles]
            texts = [_text_with_number(cell, number) for cell in cells]
            lines.append([method, _escaped(name), *texts, str(number)])
        found = {titles[measure]: one for measure, one in row["worst"].items() if one is not None}
        for title, one in found.items():
            gap = interval_text({**one, "value": one["gap"]})
            p_value = "-" if one["p_value"] is None else f"{one['p_value']:.2g}"
            values = (f"{one[key]:.3f}" for key in ("value", "others"))
            significant = {True: "yes", False: "no", None: "-"}[one["significant"]]
            worst.append([method, title, _escaped(one["group"]), *values, gap, p_value, significant])
    parts = ["", f"Values by {table.grouping}:", "", *_markdown(lines)]
    if worst:
        header = ["method", "measure", f"worst {table.grouping}", "value", "all others", "gap", "p"]
        small = "" if min(table.n) >= FEWEST_IMAGES else "; a group of one image cannot be the worst"
        parts += [
            "",
            f"Worst {table.grouping} against all other images (t test, significant at the 5 % level, adjusted"
            f" for the number of groups{small}):",
            "",
            *_markdown([[*header, "significant"], [*["---"] * 3, *["---:"] * 5], *worst]),
        ]
    return parts


def _cell(names: Sequence[str], values: Sequence[float]) -> dict[str, Any]:
    return dict(zip(names, map(number_or_none, values), strict=True))


def _text_with_number(cell: Mapping[str, Any], number: int) -> str:
    """Return a value with its interval, and its number of images where not all of the group have a value."""
    text = interval_text(cell)
    return text if cell["n"] == number else f"{text}, N = {cell['n']}"


def _escaped(name: str) -> str:
    return name.replace("|", "\\|")


def _markdown(lines: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in lines]
