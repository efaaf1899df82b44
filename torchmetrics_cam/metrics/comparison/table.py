"""The table of a comparison: a row for each method, with the settings that the values depend on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from torchmetrics_cam.baselines import display_name
from torchmetrics_cam.metrics.comparison.coverage import coverage_notes
from torchmetrics_cam.metrics.comparison.groups import GroupStatistics, GroupTable, describe_groups
from torchmetrics_cam.metrics.comparison.rankings import (
    FEWEST_METHODS,
    Rankings,
    correlation_over_methods,
    describe_rankings,
    join_names,
    rankings_of,
)
from torchmetrics_cam.metrics.comparison.statistics import (
    ComparisonStatistics,
    interval_text,
    number_or_none,
)
from torchmetrics_cam.metrics.measures import Measure
from torchmetrics_cam.model.scores import ScoreFunction
from torchmetrics_cam.protocol import BASELINES, EvaluationProtocol

# Of more pairs of measures, a sentence lists those that agree least and most.
_MOST_PAIRS = 10


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two methods on the same images.

    Args:
        mean: the first method's value minus the second's, averaged over the images.
        lower: lower bound of its 95 % interval.
        upper: upper bound.
        p_value: the two-sided p-value of no difference, of this pair alone, not adjusted for the number of
            pairs. 1 where the two methods coincide.
        count: number of images on which the measure has a value for both.
    """

    mean: Tensor
    lower: Tensor
    upper: Tensor
    p_value: Tensor
    count: Tensor


@dataclass(frozen=True)
class ProtocolRows:
    """The values of a comparison under one further protocol.

    Args:
        protocol: the settings that the values depend on.
        rows: as in `ComparisonTable`.
    """

    protocol: EvaluationProtocol
    rows: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class ComparisonTable:
    """The values of a comparison with the settings that they depend on; ``str(table)`` is Markdown.

    Args:
        measures: ``"name"``, ``"title"`` and ``"higher_is_better"`` of each measure.
        rows: a row for each method, the best of the first measure first. ``"method"``, ``"source"``,
            ``"control"``, ``"n"``, ``"excluded"``, ``"degenerate"``, ``"coincides_with"``, and for every
            measure, under its name, ``"n"``, the number of images for which it is defined, ``"value"``,
            ``"lower"``, ``"upper"``, ``"rank"`` and ``"indistinct_from"``: the methods that are not
            significantly different from it at the 5 % level, adjusted for all pairs.
        model: the class name of the network.
        protocol: the settings that the values depend on; of several protocols the first.
        logits_fn: the name of the function that computed the scores instead of the protocol, or None.
        average: over images or over classes.
        notes: limitations that a reader must know.
        further: the values under each further protocol.
        surrogate: the network that scored the images in place of the model, or None.
        rankings: how the ranking depends on the protocol, for each measure; empty for one protocol.
        groups: the values of each group of images under the first protocol, for each grouping.
    """

    measures: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]
    model: str
    protocol: EvaluationProtocol
    logits_fn: str | None
    average: str
    notes: Sequence[str]
    further: Sequence[ProtocolRows] = ()
    surrogate: str | None = None
    rankings: Sequence[Rankings] = ()
    groups: Sequence[GroupTable] = ()

    def to_json(self) -> str:
        """Return the table as JSON; an unknown value is ``null``."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        parts["protocol"] = _settings(self.protocol)
        parts["further"] = [
            {"protocol": _settings(one.protocol), "rows": list(one.rows)} for one in self.further
        ]
        titles = {measure["name"]: measure["title"] for measure in self.measures}
        parts["rankings"] = [
            {**asdict(one), "description": describe_rankings(one, titles[one.measure])}
            for one in self.rankings
        ]
        parts["groups"] = list(map(asdict, self.groups))
        return json.dumps({**parts, "agreement": agreement(self)}, indent=2)

    def __str__(self) -> str:
        titles = {measure["name"]: measure["title"] for measure in self.measures}
        scores = [f"Scores by logits_fn={self.logits_fn}, not the protocol's."] if self.logits_fn else []
        parts = [*self._table(self.rows, self.protocol), *scores, *self.notes, *_agreement_note(self)]
        for grouping in self.groups:
            parts += describe_groups(grouping, titles)
        for one in self.further:
            parts += ["", *self._table(one.rows, one.protocol)]
        if self.rankings:
            parts += ["", *(describe_rankings(one, titles[one.measure]) for one in self.rankings)]
        return "\n".join(parts)

    def _table(self, rows: Sequence[Mapping[str, Any]], protocol: EvaluationProtocol) -> list[str]:
        """Return the lines of a Markdown table, with the settings of the protocol."""
        header = ["method", *(one["title"] for one in self.measures), "N", "excluded", "degenerate"]
        lines = [header, ["---", *["---:"] * (len(header) - 1)]]
        for row in rows:
            name = f"control: {row['method']}" if row["control"] else row["method"]
            values = [interval_text(row[one["name"]]) for one in self.measures]
            lines.append([name, *values, *(str(row[key]) for key in ("n", "excluded", "degenerate"))])
        caption = protocol.caption(measure["name"] for measure in self.measures)
        caption += f", surrogate={self.surrogate}" if self.surrogate else ""
        return [*(f"| {' | '.join(line)} |" for line in lines), "", f"Protocol {caption}"]


def agreement(table: ComparisonTable) -> dict[str, dict[str, float | None]]:
    """Return Spearman's rank correlation of every two measures over the methods.

    It is 1 where two measures rank the methods alike, from best to worst, and -1 where one reverses the
    ranking of the other. Controls and methods without a value are left out.

    Args:
        table: of a comparison of three methods or more.

    Returns:
        The correlation by the names of both measures, None where a measure has the same value for all
        methods; empty where fewer than three methods have values.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import CAMComparison, agreement
        >>> from torchmetrics_cam.cams import UniformMap
        >>> model = nn.Flatten()
        >>> sources = {f"{value}": UniformMap(model, value) for value in (0.2, 0.5, 0.9)}
        >>> comparison = CAMComparison(sources, measures=["average_drop", "complexity"])
        >>> comparison.update(torch.rand(4, 1, 4, 4))
        >>> correlations = agreement(comparison.table())
        >>> round(correlations["average_drop"]["complexity"], 3)  # a map that hides less drops less
        -1.0

    """
    names = [measure["name"] for measure in table.measures]
    rows = [row for row in table.rows if not row["control"]]
    rows = [row for row in rows if all(row[name]["value"] is not None for name in names)]
    if len(rows) < FEWEST_METHODS:
        return {}
    oriented = {
        measure["name"]: torch.tensor(
            [row[measure["name"]]["value"] * (1 if measure["higher_is_better"] else -1) for row in rows],
            dtype=torch.float64,
        )
        for measure in table.measures
    }
    return {
        first: {second: correlation_over_methods(oriented[first], oriented[second]) for second in names}
        for first in names
    }


def comparison_table(
    statistics: Sequence[ComparisonStatistics],
    *,
    sources: Mapping[str, Any],
    controls: Sequence[str],
    excluded: Tensor,
    degenerate: Tensor,
    model: str,
    surrogate: str | None,
    score_functions: Sequence[ScoreFunction],
    notes: Sequence[str],
    groups: Sequence[GroupStatistics] = (),
) -> ComparisonTable:
    """Return the table of a comparison.

    Args:
        statistics: under each protocol, pooled over the classes.
        sources: the sources by method.
        controls: the methods that are controls.
        excluded: number of images that were excluded for each method, ``(*classes, K)``.
        degenerate: number of constant maps of each method, ``(*classes, K)``.
        model: the class name of the network.
        surrogate: the class name of the network that scored the images in place of the model, or None.
        score_functions: each protocol, and the ``logits_fn`` if there is one.
        notes: limitations that come before those of the statistics.
        groups: the statistics of each grouping, pooled over the classes.
    """
    methods = list(sources)
    first = statistics[0]
    counts, excluded_counts, degenerate_counts = (
        part.view(-1, len(methods)).sum(0).tolist()
        for part in (first.count.diagonal(dim1=-2, dim2=-1).contiguous(), excluded, degenerate)
    )
    described = [
        {
            "method": method,
            "source": repr(sources[method]),
            "control": method in controls,
            "n": counts[index],
            "excluded": excluded_counts[index],
            "degenerate": degenerate_counts[index],
        }
        for index, method in enumerate(methods)
    ]
    rows, *further_rows = [_rows(one, described) for one in statistics]
    protocols = [function.protocol for function in score_functions]
    logits_fn = score_functions[0].logits_fn
    # What a protocol shares with the first is not repeated.
    shared = _notes(rows, counts, first)
    further_notes = [
        f"Under {protocol.name}: {note}"
        for protocol, one, others in zip(protocols[1:], statistics[1:], further_rows, strict=True)
        for note in _notes(others, counts, one)
        if note not in shared
    ]
    names = [protocol.name for protocol in protocols]
    rankings = [
        rankings_of(statistics, index, protocols=names, methods=methods, controls=controls)
        for index in (range(len(first.measures)) if len(names) > 1 else ())
    ]
    return ComparisonTable(
        measures=[measure.summary() for measure in first.measures],
        rows=rows,
        model=model,
        protocol=protocols[0],
        logits_fn=None if logits_fn is None else display_name(logits_fn),
        average=first.average,
        notes=[*notes, *shared, *further_notes],
        further=[
            ProtocolRows(protocol, rows) for protocol, rows in zip(protocols[1:], further_rows, strict=True)
        ],
        surrogate=surrogate,
        rankings=rankings,
        groups=[one.table(methods, rows) for one in groups],
    )


def _rows(statistics: ComparisonStatistics, described: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of the methods under one protocol, the best of the first measure first.

    Args:
        statistics: under the protocol.
        described: what is known of each method without its values.
    """
    methods = [row["method"] for row in described]
    coincide = _others(statistics.coincide(), methods)
    rows: list[dict[str, Any]] = [
        {**row, "coincides_with": others if row["n"] else []}
        for row, others in zip(described, coincide, strict=True)
    ]
    for index, measure in enumerate(statistics.measures):
        bounds = zip(*(part.tolist() for part in statistics.mean(index)), strict=True)
        ranks = statistics.ranks(index)
        not_different = _others(statistics.not_significantly_different(index), methods)
        defined = statistics.number_defined(index).tolist()
        for row, numbers, number, rank, others in zip(
            rows, bounds, defined, ranks, not_different, strict=True
        ):
            value, lower, upper = map(number_or_none, numbers)
            row[measure.name] = {
                "n": number,
                "value": value,
                "lower": lower,
                "upper": upper,
                "rank": rank,
                "indistinct_from": others,
            }
    first = statistics.measures[0].name
    rows.sort(key=lambda row: row[first]["rank"] or len(rows) + 1)
    return rows


def rows_of_values(
    values: Mapping[str, Tensor],
    methods: Sequence[str],
    controls: Sequence[str],
    measures: Sequence[Measure],
) -> list[dict[str, Any]]:
    """Return rows for a figure from the values of `CAMComparison.compute`.

    Args:
        values: by ``"{method}/{measure}"``, with bounds; scalars, or ``(num_classes,)`` for one row for each
            method and class.
        methods: the names of the methods.
        controls: the methods that are controls.
        measures: the measures.

    Raises:
        ValueError: if a value of a method and measure is missing.
    """
    missing = [f"{method}/{one.name}" for method in methods for one in measures]
    missing = [key for key in missing if key not in values]
    if missing:
        raise ValueError(
            f"val has no {missing[0]!r}; pass what compute() or forward() of this comparison returned, or a"
            " list of it"
        )
    rows = []
    for method in methods:
        cells = {
            one.name: [
                values[f"{method}/{one.name}{suffix}"].flatten().tolist()
                for suffix in ("", "_lower", "_upper")
            ]
            for one in measures
        }
        classes = len(next(iter(cells.values()))[0])
        for class_idx in range(classes):
            row: dict[str, Any] = {
                "method": method
                if values[f"{method}/{measures[0].name}"].ndim == 0
                else f"{method}, {class_idx}",
                "control": method in controls,
            }
            for name, bounds in cells.items():
                value, lower, upper = (number_or_none(bound[class_idx]) for bound in bounds)
                row[name] = {"value": value, "lower": lower, "upper": upper}
            rows.append(row)
    return rows


def _settings(protocol: EvaluationProtocol) -> dict[str, Any]:
    """Return the fields of a protocol, for JSON."""
    values = {field.name: getattr(protocol, field.name) for field in fields(protocol)}
    return values | {name: display_name(values[name]) for name in BASELINES}


def _others(pairs: Tensor, methods: Sequence[str]) -> list[list[str]]:
    """Return the other methods that each method is paired with."""
    return [
        [
            method
            for column, (method, is_paired) in enumerate(zip(methods, paired, strict=True))
            if is_paired and column != row
        ]
        for row, paired in enumerate(pairs.tolist())
    ]


def _notes(
    rows: Sequence[Mapping[str, Any]], counts: Sequence[int], statistics: ComparisonStatistics
) -> list[str]:
    groups = {tuple(sorted([row["method"], *row["coincides_with"]])) for row in rows if row["coincides_with"]}
    notes = [
        f"{join_names(group)} coincide: on 99 of 100 images they yield identical scores,"
        " to 0.1 % of the score. They count as one method here, and share a rank."
        for group in sorted(groups)
    ]
    for index, measure in enumerate(statistics.measures):
        defined = [number for number in statistics.number_defined(index).tolist() if number]
        if defined:
            notes += coverage_notes([measure], min(defined))
        notes += _undefined_note(rows, measure)
    notes += _sensitivity_notes({measure.name for measure in statistics.measures})
    # For very few images it is the same sentence for each measure.
    notes = list(dict.fromkeys(notes))
    if statistics.average == "macro":
        single = int((statistics.count.diagonal(dim1=1, dim2=2) == 1).any(1).sum())
        if single:
            notes.append(f"{single} classes have one image, so a mean over classes has no interval.")
    return notes


def _sensitivity_notes(measures: set[str]) -> list[str]:
    """Return a sentence about a sensitivity that is measured without its counterpart."""
    has_noise = bool(measures & {"max_sensitivity", "average_sensitivity"})
    if has_noise and "class_sensitivity" not in measures:
        return [
            "A map that never changes has a sensitivity of 0, the best: class_sensitivity would catch it."
        ]
    if "class_sensitivity" in measures and not has_noise:
        return [
            "Noise that is new in each map has a class sensitivity near 1, the best: max_sensitivity would"
            " catch it."
        ]
    return []


def _undefined_note(rows: Sequence[Mapping[str, Any]], measure: Measure) -> list[str]:
    """Return a sentence about the images for which a measure is not defined, if there are any."""
    found = [
        f"{row['method']} has a value on {row[measure.name]['n']} of {row['n']} images"
        for row in rows
        if row[measure.name]["n"] < row["n"]
    ]
    return [f"{measure.title} is not defined for every map: {', '.join(found)}."] if found else []


def _agreement_note(table: ComparisonTable) -> list[str]:
    """Return a sentence about the agreement of measures, where there are more than two."""
    correlations = agreement(table)
    titles = {measure["name"]: measure["title"] for measure in table.measures}
    known = [
        (correlation, f"{titles[first]} and {titles[second]} {correlation:.2f}")
        for first, second in combinations(correlations, 2)
        if (correlation := correlations[first][second]) is not None
    ]
    if len(correlations) <= 2 or not known:
        return []
    pairs = [text for _, text in known]
    which = ""
    if len(pairs) > _MOST_PAIRS:
        half = _MOST_PAIRS // 2
        ordered = [text for _, text in sorted(known, key=lambda pair: pair[0])]
        pairs = [*ordered[:half], *ordered[-half:]]
        which = f", the {half} lowest and the {half} highest of {len(known)} pairs"
    return [
        f"Agreement of the measures on the methods (Spearman's rank correlation{which}): {', '.join(pairs)}."
    ]
