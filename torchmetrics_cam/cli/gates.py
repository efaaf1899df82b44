"""Gates: limits on the values of a run, and the comparison with an earlier run, that fail a pipeline."""

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from torchmetrics_cam.cli.errors import GateError, UsageError
from torchmetrics_cam.cli.names import did_you_mean
from torchmetrics_cam.functional.statistics import Estimate, holm
from torchmetrics_cam.metrics.comparison.contributions import TIE
from torchmetrics_cam.metrics.comparison.inputs import CONTROLS
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.report.text import printable

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
# A name may contain any character. The last operator is that of the gate.
_GATE = re.compile(r"(.*?)([<>=!]+)([^<>=!]*)", re.DOTALL)
_FORM = (
    "A gate is [PROTOCOL/ or GROUP/][METHOD/]MEASURE and a limit. Groups need --group, and are those of the"
    " first protocol, which needs no name"
)
# The end of a key, and the name of this number in a row of the results.
_BOUNDS = {"": "value", "_lower": "lower", "_upper": "upper"}
_SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Gate:
    """A condition on values of a run under which the command fails.

    Args:
        text: the gate as it was given.
        scope: the protocol or group, as in the keys of `CAMComparison.compute`; empty for the first protocol
            and all images.
        method: the method; None for all methods.
        quantity: the name of a measure, or of a bound of its interval, such as ``"average_drop_lower"``.
        operator: ``">"``, ``">="``, ``"<"`` or ``"<="``.
        limit: the number that the value is compared with.
    """

    text: str
    scope: str
    method: str | None
    quantity: str
    operator: str
    limit: float

    def keys(self, methods: Sequence[str]) -> list[str]:
        """Return the keys of the values that the gate is about.

        Args:
            methods: the methods for which a gate is that names none.
        """
        beginning = f"{self.scope}/" if self.scope else ""
        named = methods if self.method is None else [self.method]
        return [f"{beginning}{method}/{self.quantity}" for method in named]

    def is_met_by(self, value: float) -> bool:
        """Return whether a value meets the condition, so that the gate fails."""
        return _OPERATORS[self.operator](value, self.limit)


def parse_gates(
    texts: Sequence[str],
    measures: Sequence[str],
    methods: Sequence[str],
    prefixes: Sequence[str],
    *,
    unavailable: Mapping[str, str] | None = None,
) -> list[Gate]:
    """Return the gates of ``--fail-if``.

    Args:
        texts: gates such as ``"average_drop > 0.4"`` and ``"Grad-CAM/average_drop_upper > 0.4"``.
        measures: the measures of the run.
        methods: the methods of the run, without the controls, which a gate can name too.
        prefixes: what may stand before the method in a key: the names of further protocols and of groups.
        unavailable: names that this run does not have, with the reason and what to do.

    Raises:
        UsageError: if a text is not a gate, or has a name that the run does not have, or that can be read in
            two ways.
    """
    return [_parse(text, measures, [*methods, *CONTROLS], prefixes, unavailable or {}) for text in texts]


def _parse(
    text: str,
    measures: Sequence[str],
    methods: Sequence[str],
    prefixes: Sequence[str],
    unavailable: Mapping[str, str],
) -> Gate:
    option = f"--fail-if {text!r}"
    parts = _GATE.fullmatch(text)
    if not parts:
        raise UsageError(
            f"{option} has no comparison; give a measure, one of {' '.join(_OPERATORS)} and a number, as in"
            ' "average_drop > 0.4"'
        )
    name, comparison, number = (part.strip() for part in parts.groups())
    if comparison not in _OPERATORS:
        raise UsageError(
            f"{option}: {comparison!r} is not an operator; the operators are {' '.join(_OPERATORS)}"
        )
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UsageError(f"{option}: {number!r} is not a number; give one such as 0.4")
    # Names of methods and protocols may contain a slash, those of measures do not.
    prefix, _, quantity = name.rpartition("/")
    measure = quantity.removesuffix("_lower").removesuffix("_upper")
    if measure not in MEASURES or quantity not in [f"{measure}{bound}" for bound in _BOUNDS]:
        raise UsageError(
            f"{option}: {quantity!r} is not a measure or a bound of its interval, as"
            f" average_drop_lower{did_you_mean(measure, MEASURES)} {_FORM}"
        )
    if measure not in measures:
        raise UsageError(f"{option}: {measure} is not measured; add it to --measures")
    subjects = _subjects(methods, prefixes)
    if prefix not in subjects:
        for absent, reason in unavailable.items():
            if f"{prefix}/".startswith(f"{absent}/"):
                raise UsageError(f"{option}: {reason}")
        raise UsageError(
            f"{option}: {prefix!r} is not one of"
            f" {', '.join([*methods, *prefixes])}{did_you_mean(prefix, subjects)} {_FORM}"
        )
    if len(subjects[prefix]) > 1:
        meanings = " and ".join(_describe(*subject) for subject in subjects[prefix])
        raise UsageError(f"{option}: {prefix!r} is both {meanings}; rename one of them")
    return Gate(text, *subjects[prefix][0], quantity, comparison, limit)


def _subjects(methods: Sequence[str], prefixes: Sequence[str]) -> dict[str, list[tuple[str, str | None]]]:
    """Return what can stand before the measure, with its protocol or group and its method.

    A name that can be read in two ways has two of them.
    """
    found: dict[str, list[tuple[str, str | None]]] = {}
    # A protocol and a group with one name are refused by the comparison.
    for scope, method in product(["", *dict.fromkeys(prefixes)], [*methods, None]):
        found.setdefault("/".join(part for part in (scope, method) if part), []).append((scope, method))
    return found


def _describe(scope: str, method: str | None) -> str:
    named = "all methods" if method is None else f"the method {method}"
    return f"{named} in the group or under the protocol {scope}" if scope else named


def values_by_key(comparison: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the values of a comparison by key, as `CAMComparison.compute` names them; None if unknown.

    Args:
        comparison: the comparison as `ComparisonTable.to_json` returns it.
    """
    parts = [("", comparison["rows"])]
    parts += [(f"{one['protocol']['name']}/", one["rows"]) for one in comparison["further"]]
    measures = [measure["name"] for measure in comparison["measures"]]
    values = {
        f"{prefix}{row['method']}/{measure}{bound}": row[measure][number]
        for prefix, rows in parts
        for row, measure, (bound, number) in product(rows, measures, _BOUNDS.items())
    }
    for grouping in comparison["groups"]:
        for row, measure in product(grouping["rows"], measures):
            for name, cell in zip(grouping["names"], row["values"][measure], strict=True):
                key = f"{name}/{row['method']}/{measure}"
                values |= {f"{key}{bound}": cell[number] for bound, number in _BOUNDS.items()}
    return values


def check_gates(
    gates: Sequence[Gate], values: Mapping[str, float | None], methods: Sequence[str]
) -> list[dict[str, Any]]:
    """Return every gate with a sentence for each value that fails it, for JSON.

    Args:
        gates: the gates.
        values: the values by key; None for one that is not defined, which fails a gate.
        methods: the methods for which a gate is that names none.
    """
    return [{"gate": gate.text, "violations": _violations(gate, values, methods)} for gate in gates]


def _violations(gate: Gate, values: Mapping[str, float | None], methods: Sequence[str]) -> list[str]:
    sentences = []
    for key in gate.keys(methods):
        value = values.get(key)
        if value is None or math.isnan(value):
            sentences.append(f"{key} has no value, so the gate {gate.text!r} cannot be checked and fails.")
        elif gate.is_met_by(value):
            sentences.append(f"{key} is {_format(value, gate)}, so the gate {gate.text!r} fails.")
    return sentences


def report_gates(checked: Sequence[Mapping[str, Any]]) -> None:
    """Print the gates that passed.

    Args:
        checked: the gates with their violations, as `check_gates` returns them.

    Raises:
        GateError: if a gate failed, with a sentence for each violation.
    """
    for gate in checked:
        if not gate["violations"]:
            print(printable(f"Gate passed: {gate['gate']}"))
    if violations := [sentence for gate in checked for sentence in gate["violations"]]:
        raise GateError(*violations)


def _format(value: float, gate: Gate) -> str:
    """Return a value with three digits, or with as many as show on which side of the limit it is."""
    texts = [f"{value:.{digits}g}" for digits in range(3, 18)]
    return next(text for text in texts if gate.is_met_by(float(text)))


def regressions(
    differences: Mapping[tuple[str, str], Estimate | None],
    higher_is_better: Mapping[str, bool],
    titles: Mapping[str, str],
) -> list[str]:
    """Return a sentence for each method and measure in which run B is significantly worse than run A.

    A difference is significant if its p-value, adjusted for the number of differences by Holm's method, is
    below 5 %. Two equally good runs are then reported with a probability of at most 5 %, however many methods
    and measures there are; Bonferroni's method has the same bound and finds fewer regressions. Means of at
    most 1e-6 are rounding errors of the scores.

    Args:
        differences: the mean paired difference A - B by method and measure; None without common values.
        higher_is_better: the direction of each measure.
        titles: the title of each measure.
    """
    p_values = [math.nan if one is None else float(one.p_value()) for one in differences.values()]
    adjusted = holm(torch.tensor(p_values, dtype=torch.float64)).tolist()
    tests = sum(not math.isnan(p_value) for p_value in p_values)
    sentences = []
    for ((method, measure), difference), p_value in zip(differences.items(), adjusted, strict=True):
        if difference is None or math.isnan(p_value):
            sentences.append(
                f"{method}: {titles[measure]} has no values on two images of both runs or more, so B cannot"
                " be compared with A."
            )
            continue
        # Positive if B is worse.
        sign = 1 if higher_is_better[measure] else -1
        mean, *bounds = (sign * float(number) for number in (difference.mean, *difference.interval()))
        if p_value < _SIGNIFICANCE and mean > TIE:
            sentences.append(
                f"{method}: {titles[measure]} is worse in B than in A by {mean:.3g} on the same images (95 %"
                f" interval {min(bounds):.3g} to {max(bounds):.3g}; p = {p_value:.2g}, adjusted for"
                f" {tests} differences)."
            )
    return sentences
