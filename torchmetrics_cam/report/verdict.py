"""The verdict on a comparison: three sentences that can be quoted, and what their reader must also know."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torchmetrics_cam.metrics.comparison.groups import FEWEST_IMAGES
from torchmetrics_cam.metrics.comparison.rankings import join_names

# Measures for which the uniform map, which masks nothing, has the best value that there is.
_BEST_FOR_UNIFORM = {"average_drop": 0, "relative_drop": 0}
_UNIFORM = "uniform map"
# From this share of constant maps on, a reader is warned.
_MANY_CONSTANT = 0.1

Row = Mapping[str, Any]


def verdict(results: Mapping[str, Any]) -> list[str]:
    """Return three sentences that can be quoted: the best method, the controls, and what was evaluated.

    They are about the first measure.

    Args:
        results: the content of ``results.json``.
    """
    comparison = results["comparison"]
    measure = comparison["measures"][0]
    name, title = measure["name"], measure["title"]
    rows = [row for row in comparison["rows"] if row[name]["value"] is not None]
    rows.sort(key=lambda row: row[name]["value"], reverse=bool(measure["higher_is_better"]))
    methods = [row for row in rows if not row["control"]]
    controls = [row for row in rows if row["control"]]
    scope = _describe_scope(results, methods[0]["n"] if methods else 0)
    if not methods:
        return [
            f"No method has a value of {title}.",
            "The methods can be compared neither with each other nor with the controls.",
            scope,
        ]
    best, *others = methods
    return [
        _describe_best(best, others, name, title),
        _compare_with_controls(best, controls, name, title),
        scope,
    ]


def findings(results: Mapping[str, Any]) -> list[str]:
    """Return sentences on what a reader of the verdict must also know: constant maps, and the worst groups.

    Args:
        results: the content of ``results.json``.
    """
    comparison = results["comparison"]
    sentences = [*_describe_constant_maps([row for row in comparison["rows"] if not row["control"]])]
    if comparison.get("surrogate"):
        sentences.append(
            f"A surrogate scores the clean and the perturbed images in place of the network:"
            f" {comparison['surrogate']}."
        )
    for grouping in comparison.get("groups") or []:
        sentences += _describe_worst_groups(grouping, comparison["measures"])
    return sentences


def title_in_sentence(grouping: Mapping[str, Any]) -> str:
    """Return the title of a grouping for the middle of a sentence; the name of a user's column as it is."""
    title = str(grouping["title"])
    return title.lower() if title.lower() == grouping["grouping"] else title


def _describe_best(best: Row, others: Sequence[Row], name: str, title: str) -> str:
    """Return a sentence on the best method, and on those from which it is not significantly different."""
    first = f"{best['method']} has the best {title}, {_format_value(best[name])}"
    if not others:
        return f"{first}, and is the only method with a value."
    identical = [row["method"] for row in others if row["method"] in best["coincides_with"]]
    similar = [
        row["method"]
        for row in others
        if row["method"] in best[name]["indistinct_from"] and row["method"] not in identical
    ]
    parts = [f"its scores are identical to those of {join_names(identical)}"] if identical else []
    if similar:
        parts.append(f"it is not significantly different from {join_names(similar)} at the 5 % level")
    elif len(identical) < len(others):
        every = "every further" if identical else "every other"
        parts.append(f"it is significantly different from {every} method at the 5 % level")
    return f"{first}; {', and '.join(parts)}."


def _compare_with_controls(best: Row, controls: Sequence[Row], name: str, title: str) -> str:
    """Return a sentence on the controls; a warning if some are better than the best method, or not worse.

    The uniform map is no yardstick for a measure whose best value it always has.
    """
    aside = ""
    if name in _BEST_FOR_UNIFORM and any(row["method"] == _UNIFORM for row in controls):
        controls = [row for row in controls if row["method"] != _UNIFORM]
        aside = f" (the {_UNIFORM} masks nothing, so its {title} is always {_BEST_FOR_UNIFORM[name]})"
    if not controls:
        return f"There is no control with which {title} can be compared{aside}."
    best_rank = best[name]["rank"] or 0
    similar = [row["method"] for row in controls if row["method"] in best[name]["indistinct_from"]]
    ahead = [row["method"] for row in controls if (row[name]["rank"] or 0) < best_rank]
    better = [method for method in ahead if method not in similar]
    beaten = [row["method"] for row in controls if row["method"] not in [*similar, *better]]
    beats = f"significantly better than {_named_controls(beaten)}" if beaten else ""
    if not similar and not better:
        return f"It is {beats}{aside}."
    parts = []
    if better:
        parts.append(f"{_named_controls(better)} {_is(better)} significantly better")
    if similar:
        parts.append(f"it is not significantly different from {_named_controls(similar)}")
        leading = [method for method in similar if method in ahead]
        if leading:
            values = "a better value" if len(leading) == 1 else "better values"
            which = "which" if similar == leading else f"of which {join_names(leading)}"
            parts[-1] += f", {which} {_has(leading)} {values}"
    but = f", though it is {beats}" if beats else ""
    return (
        f"Warning: {', and '.join(parts)}{but}; so this measure does not show here that a method explains the"
        f" network{aside}."
    )


def _describe_scope(results: Mapping[str, Any], images: int) -> str:
    """Return a sentence on the images, the network and the protocol, and a warning about random weights."""
    model, comparison = results["model"], results["comparison"]
    layer = f"layer {', '.join(model['layer'])}"
    protocol = f"the protocol {comparison['protocol']['name']!r}"
    number = "1 image" if images == 1 else f"{images} images"
    of_data = f"{number} of {results['data']['name']}"
    if model["checkpoint"] == "random":
        return (
            f"Warning: the weights of {model['name']} are random, so the values ({of_data}, {layer},"
            f" {protocol}) say nothing about a trained network."
        )
    return f"This holds for {of_data} and {model['name']}, {layer}, under {protocol}."


def _describe_constant_maps(methods: Sequence[Row]) -> Iterator[str]:
    """Yield warnings about methods with many constant maps."""
    counts = [(row["method"], row["degenerate"], row["n"]) for row in methods if row["n"]]
    every = [method for method, constant, number in counts if constant == number]
    if every:
        yield (
            f"Warning: every map of {join_names(every)} is constant. This happens at a layer whose spatial"
            " positions do not affect the class scores; choose an earlier layer."
        )
    for method, constant, number in counts:
        if _MANY_CONSTANT <= constant / number < 1:
            yield f"Warning: {constant} of {number} maps of {method} are constant, and highlight nothing."


def _describe_worst_groups(
    grouping: Mapping[str, Any], measures: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Yield sentences on the groups with a significantly worse value than all other images, by measure."""
    is_prediction = grouping["grouping"] == "prediction"
    where = "Between correct and wrong predictions" if is_prediction else f"By {title_in_sentence(grouping)}"
    if sum(number >= FEWEST_IMAGES for number in grouping["n"]) < 2:
        yield (
            f"{where}, nothing can be compared: fewer than two groups have {FEWEST_IMAGES} images or more."
        )
        return
    has_significant = False
    for measure in measures:
        by_group: dict[str, list[str]] = {}
        for row in grouping["rows"]:
            worst = row["worst"].get(measure["name"])
            if worst and worst["significant"] and not row["control"]:
                values = f"{worst['value']:.3f} against {worst['others']:.3f}"
                by_group.setdefault(worst["group"], []).append(f"{row['method']} {values}")
        if by_group:
            has_significant = True
            groups = join_names([f"{group} ({'; '.join(values)})" for group, values in by_group.items()])
            yield f"{where}, {measure['title']} is significantly worse than on all other images for {groups}."
    if not has_significant:
        yield f"{where}, no group is significantly worse than all other images in any measure."
    untested = [
        f"{row['method']} in {measure['title']}"
        for measure in measures
        for row in grouping["rows"]
        if (row["worst"].get(measure["name"]) or {"significant": False})["significant"] is None
    ]
    if untested:
        yield f"{where}, these gaps could not be tested, for too few images: {join_names(untested)}."


def _named_controls(names: Sequence[str]) -> str:
    return f"the control{'s' if len(names) > 1 else ''} {join_names(names)}"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _has(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _format_value(cell: Mapping[str, Any]) -> str:
    if cell["lower"] is None or cell["upper"] is None:
        return f"{cell['value']:.3f}"
    return f"{cell['value']:.3f} (95 % interval {cell['lower']:.3f} to {cell['upper']:.3f})"
