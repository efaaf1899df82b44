"""The result of a comparison as people and papers need it: rows, with all that a number depends on."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.regression import spearman_corrcoef

from torchmetrics_cam.baselines import described
from torchmetrics_cam.metrics.comparison.statistics import ComparisonStatistics
from torchmetrics_cam.model.scores import ScoreFunction
from torchmetrics_cam.protocol import BASELINES, EvaluationProtocol

# Below, the normal distribution makes intervals too short.
_FEW = 30
_FEWEST_METHODS = 3


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two methods on the same images.

    Args:
        mean: the first method's value minus the second's, averaged over the images.
        lower: lower bound of its 95 % interval.
        upper: upper bound.
        p_value: how probable a mean at least as far from 0 is if there is no difference, two-sided; of this
            pair alone, not adjusted for the number of pairs. 1 where the two methods coincide.
        count: on how many images both are valid.
    """

    mean: Tensor
    lower: Tensor
    upper: Tensor
    p_value: Tensor
    count: Tensor


@dataclass(frozen=True)
class ComparisonTable:
    """A comparison with the circumstances that its numbers depend on; ``str(table)`` is Markdown.

    Args:
        measures: name and title of each measure, and which way is better.
        rows: a row a method, the best of the first measure first. ``"method"``, ``"source"``, ``"control"``,
            ``"n"``, ``"excluded"``, ``"degenerate"``, ``"coincides_with"``, and for every measure, under its
            name, ``"value"``, ``"lower"``, ``"upper"``, ``"rank"`` and ``"indistinct_from"``: the methods
            that it cannot be told from at the 5 % level, over all pairs.
        model: the class of the network.
        protocol: every choice that the numbers depend on.
        logits_fn: what made the scores instead of the protocol, if something did.
        average: over images or over classes.
        notes: what a reader must know.
    """

    measures: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]
    model: str
    protocol: EvaluationProtocol
    logits_fn: str | None
    average: str
    notes: Sequence[str]

    def to_json(self) -> str:
        """All of it as JSON; a value that is not known is ``null``."""
        protocol = {field.name: getattr(self.protocol, field.name) for field in fields(self.protocol)}
        protocol |= {name: described(protocol[name]) for name in BASELINES}
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps({**parts, "protocol": protocol, "agreement": agreement(self)}, indent=2)

    def __str__(self) -> str:
        header = ["method", *(one["title"] for one in self.measures), "N", "excluded", "degenerate"]
        lines = [header, ["---", *["---:"] * (len(header) - 1)]]
        for row in self.rows:
            name = f"control: {row['method']}" if row["control"] else row["method"]
            values = [_shown(row[one["name"]]) for one in self.measures]
            lines.append([name, *values, *(str(row[key]) for key in ("n", "excluded", "degenerate"))])
        made = [f"Scores by logits_fn={self.logits_fn}, not the protocol's."] if self.logits_fn else []
        caption = self.protocol.caption(measure["name"] for measure in self.measures)
        notes = [f"Protocol {caption}", *made, *self.notes, *_agreement_note(self)]
        return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *notes])


def agreement(table: ComparisonTable) -> dict[str, dict[str, float | None]]:
    """Where the measures agree on the methods: Spearman's rank correlation of every two measures.

    Values are turned so that better is higher: 1 where two measures order the methods alike, -1 where one
    turns the order of the other round. Controls are left out, and methods without a value.

    Args:
        table: of a comparison of three methods or more.

    Returns:
        The correlation by the names of both measures, None where one of them is the same for all methods;
        empty where fewer than three methods have values.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import CAMComparison, agreement
        >>> from torchmetrics_cam.cams import UniformMap
        >>> model = nn.Flatten()
        >>> sources = {f"{value}": UniformMap(model, value) for value in (0.2, 0.5, 0.9)}
        >>> comparison = CAMComparison(sources, measures=["average_drop", "complexity"])
        >>> comparison.update(torch.rand(4, 1, 4, 4))
        >>> found = agreement(comparison.table())
        >>> round(found["average_drop"]["complexity"], 3)  # what hides less drops less
        -1.0

    """
    names = [measure["name"] for measure in table.measures]
    rows = [row for row in table.rows if not row["control"]]
    rows = [row for row in rows if all(row[name]["value"] is not None for name in names)]
    if len(rows) < _FEWEST_METHODS:
        return {}
    turned = {
        measure["name"]: torch.tensor(
            [row[measure["name"]]["value"] * (1 if measure["higher_is_better"] else -1) for row in rows],
            dtype=torch.float64,
        )
        for measure in table.measures
    }
    return {
        first: {second: _rank_correlation(turned[first], turned[second]) for second in names}
        for first in names
    }


def _rank_correlation(first: Tensor, second: Tensor) -> float | None:
    if any(bool((values == values[0]).all()) for values in (first, second)):
        return None
    return float(spearman_corrcoef(first, second))


def comparison_table(
    statistics: ComparisonStatistics,
    *,
    sources: Mapping[str, Any],
    controls: Sequence[str],
    excluded: Tensor,
    degenerate: Tensor,
    model: str,
    scoring: ScoreFunction,
) -> ComparisonTable:
    """The table of a comparison.

    Args:
        statistics: what the sums say, not class by class.
        sources: where the maps come from, by method.
        controls: the methods that are controls.
        excluded: how many images left each method, ``(*classes, K)``.
        degenerate: how many maps of each method were constant, ``(*classes, K)``.
        model: the class of the network.
        scoring: the protocol, and the ``logits_fn`` if there is one.
    """
    methods = list(sources)
    counts, left, constant = (
        part.view(-1, len(methods)).sum(0).tolist()
        for part in (statistics.count.diagonal(dim1=-2, dim2=-1).contiguous(), excluded, degenerate)
    )
    coincide = _sets(statistics.coincide(), methods)
    rows: list[dict[str, Any]] = [
        {
            "method": method,
            "source": repr(sources[method]),
            "control": method in controls,
            "n": counts[place],
            "excluded": left[place],
            "degenerate": constant[place],
            "coincides_with": coincide[place] if counts[place] else [],
        }
        for place, method in enumerate(methods)
    ]
    for place, measure in enumerate(statistics.measures):
        bounds = zip(*(part.tolist() for part in statistics.mean(place)), strict=True)
        ranks, indistinct = statistics.ranks(place), _sets(statistics.indistinct(place), methods)
        for row, numbers, rank, others in zip(rows, bounds, ranks, indistinct, strict=True):
            value, lower, upper = (None if math.isnan(number) else number for number in numbers)
            row[measure.name] = {
                "value": value,
                "lower": lower,
                "upper": upper,
                "rank": rank,
                "indistinct_from": others,
            }
    first = statistics.measures[0].name
    rows.sort(key=lambda row: row[first]["rank"] or len(rows) + 1)
    return ComparisonTable(
        measures=[
            {"name": one.name, "title": one.title, "higher_is_better": one.higher_is_better}
            for one in statistics.measures
        ],
        rows=rows,
        model=model,
        protocol=scoring.protocol,
        logits_fn=None if scoring.logits_fn is None else described(scoring.logits_fn),
        average=statistics.average,
        notes=_notes(rows, counts, statistics),
    )


def _sets(pairs: Tensor, methods: Sequence[str]) -> list[list[str]]:
    """The others that each method is paired with."""
    return [
        [
            method
            for other, (method, is_paired) in enumerate(zip(methods, row, strict=True))
            if is_paired and other != place
        ]
        for place, row in enumerate(pairs.tolist())
    ]


def _notes(
    rows: Sequence[Mapping[str, Any]], counts: Sequence[int], statistics: ComparisonStatistics
) -> list[str]:
    groups = {tuple(sorted([row["method"], *row["coincides_with"]])) for row in rows if row["coincides_with"]}
    notes = [
        f"{', '.join(group[:-1])} and {group[-1]} coincide: on 99 of 100 images the model says the same to"
        " them, to 0.1 % of the score. They are one method here, and share a rank."
        for group in sorted(groups)
    ]
    fewest = min((count for count in counts if count), default=_FEW)
    if fewest < _FEW:
        notes.append(
            f"{fewest} images are few: intervals of the normal distribution are too short below {_FEW}."
        )
    if statistics.average == "macro":
        alone = int((statistics.count.diagonal(dim1=1, dim2=2) == 1).any(1).sum())
        if alone:
            notes.append(f"{alone} classes have one image, so no interval is known of a mean over classes.")
    return notes


def _agreement_note(table: ComparisonTable) -> list[str]:
    """Where people must see that measures disagree: with more than two of them."""
    found = agreement(table)
    titles = {measure["name"]: measure["title"] for measure in table.measures}
    pairs = [
        f"{titles[first]} and {titles[second]} {correlation:.2f}"
        for first, second in combinations(found, 2)
        if (correlation := found[first][second]) is not None
    ]
    if len(found) <= 2 or not pairs:
        return []
    return [f"Agreement of the measures on the methods (Spearman's rank correlation): {', '.join(pairs)}."]


def _shown(cell: Mapping[str, Any]) -> str:
    if cell["value"] is None:
        return "-"
    if cell["lower"] is None:
        return f"{cell['value']:.3f}"
    return f"{cell['value']:.3f} ({cell['lower']:.3f} to {cell['upper']:.3f})"
