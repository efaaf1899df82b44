"""How the ranking of methods by one measure depends on the protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import isnan

import torch
from torch import Tensor

from torchmetrics_cam.functional.correlation import rank_correlation
from torchmetrics_cam.metrics.comparison.statistics import ComparisonStatistics

# The rank correlation over two methods is always 1 or -1.
FEWEST_METHODS = 3


@dataclass(frozen=True)
class Order:
    """The order of two methods under several protocols.

    Args:
        better: the method that is better under the first protocol.
        worse: the other one.
        reversed_under: the protocols under which ``worse`` is the better one; empty if the order holds under
            all of them.
        is_significant: whether the two differ significantly (5 % level, adjusted for all pairs of methods):
            under every protocol if the order holds; else under one protocol of each direction, without an
            adjustment for the number of protocols.
    """

    better: str
    worse: str
    reversed_under: tuple[str, ...]
    is_significant: bool


@dataclass(frozen=True)
class Rankings:
    """The rankings of methods by one measure under several protocols. Controls are left out.

    Args:
        measure: the name of the measure.
        protocols: the names of the protocols.
        values: the value of each method, by the names of protocol and method; None if it has none.
        ranks: the rank of each method, 1 for the best, in the same form. Methods that coincide share one.
        leaders: the best methods under each protocol, by its name.
        orders: the order of each two methods; pairs that tie under a protocol are left out.
        correlations: Spearman's rank correlation of each two protocols over the methods, by their names; None
            for fewer than three methods, or where all have one value.
        alpha: Krippendorff's alpha for ordinal data of the ranks, with the methods as units and the protocols
            as raters: 1 where all protocols rank alike, about 0 where they agree no more than by chance. None
            for fewer than three methods, or where all share a rank.
    """

    measure: str
    protocols: tuple[str, ...]
    values: Mapping[str, Mapping[str, float | None]]
    ranks: Mapping[str, Mapping[str, int | None]]
    leaders: Mapping[str, tuple[str, ...]]
    orders: tuple[Order, ...]
    correlations: Mapping[str, Mapping[str, float | None]]
    alpha: float | None


def rankings_of(
    statistics: Sequence[ComparisonStatistics],
    measure: int,
    *,
    protocols: Sequence[str],
    methods: Sequence[str],
    controls: Sequence[str],
) -> Rankings:
    """Return the rankings of the methods by one measure.

    Args:
        statistics: under each protocol, pooled over the classes.
        measure: the index of the measure.
        protocols: the names of the protocols.
        methods: the names of the methods.
        controls: those that are controls.
    """
    kept = [index for index, method in enumerate(methods) if method not in controls]
    names = [methods[index] for index in kept]
    means = [one.mean(measure)[0][kept] for one in statistics]
    ranks = [_ranks_among(one.ranks(measure), kept) for one in statistics]
    ranks_by_protocol = {
        protocol: dict(zip(names, one, strict=True)) for protocol, one in zip(protocols, ranks, strict=True)
    }
    known = [index for index in range(len(kept)) if all(one[index] is not None for one in ranks)]
    higher_is_better = statistics[0].measures[measure].higher_is_better
    oriented = [(mean if higher_is_better else -mean)[known].double() for mean in means]
    return Rankings(
        measure=statistics[0].measures[measure].name,
        protocols=tuple(protocols),
        values={
            protocol: {
                name: None if isnan(value) else value
                for name, value in zip(names, mean.tolist(), strict=True)
            }
            for protocol, mean in zip(protocols, means, strict=True)
        },
        ranks=ranks_by_protocol,
        leaders={
            protocol: tuple(name for name, rank in ranks_by_protocol[protocol].items() if rank == 1)
            for protocol in protocols
        },
        orders=_orders(statistics, measure, protocols, methods, kept, ranks),
        correlations={
            first: {
                second: correlation_over_methods(oriented[row], oriented[column])
                for column, second in enumerate(protocols)
            }
            for row, first in enumerate(protocols)
        },
        alpha=_krippendorff_alpha([[one[index] for index in known] for one in ranks]),
    )


def describe_rankings(rankings: Rankings, title: str) -> str:
    """Return in words how a ranking depends on the protocol.

    Args:
        rankings: the rankings by one measure.
        title: the name of the measure in tables.
    """
    protocols_of: dict[tuple[str, ...], list[str]] = {}
    for protocol, names in rankings.leaders.items():
        protocols_of.setdefault(names, []).append(protocol)
    led = [
        f"{join_names(names) if names else 'no method'} under {join_names(protocols)}"
        for names, protocols in protocols_of.items()
    ]
    # Methods that coincide are best together, under one protocol perhaps with others than under another.
    everywhere = [name for name in next(iter(protocols_of)) if all(name in names for names in protocols_of)]
    if everywhere or len(led) == 1:
        best, verb = join_names(everywhere or ["no method"]), "is" if len(everywhere) < 2 else "are"
        sentences = [f"{title}: best {verb} {best} under {join_names(rankings.protocols)}."]
    else:
        sentences = [f"{title}: the best method depends on the protocol: {'; '.join(led)}."]
    reversals = [order for order in rankings.orders if order.reversed_under]
    sentences += _describe_pairs(rankings)
    significant = [order for order in reversals if order.is_significant]
    differences = (
        "both differences are significant"
        if len(rankings.protocols) == 2
        else "at least one difference in each direction is significant"
    )
    sentences += [
        f"{order.better} is better than {order.worse}, except under {join_names(order.reversed_under)};"
        f" {differences}."
        for order in significant
    ]
    if reversals and not significant:
        sentences.append("No reversal is significant in both directions.")
    if rankings.alpha is not None:
        sentences.append(f"Krippendorff's alpha of the rankings is {rankings.alpha:.2f}.")
    return " ".join(sentences)


def _describe_pairs(rankings: Rankings) -> list[str]:
    """Return a sentence on the number of pairs of methods with one order; none for a single method."""
    ranks = list(rankings.ranks.values())
    # The ranks of two methods under each protocol.
    pairs = [[(one[a], one[b]) for one in ranks] for a, b in combinations(ranks[0], 2)]
    unknown = sum(any(None in pair for pair in pair_ranks) for pair_ranks in pairs)
    tied = len(pairs) - unknown - len(rankings.orders)
    reverse = sum(bool(order.reversed_under) for order in rankings.orders)
    same = len(rankings.orders) - reverse
    if len(pairs) == 1:
        if unknown:
            return ["The two methods have no order, because one has no value."]
        if tied:
            return ["The two methods tie under at least one protocol."]
        how = "reversed under at least one protocol" if reverse else "the same under all protocols"
        return [f"The order of the two methods is {how}."]
    parts = [f"{same} {'has' if same == 1 else 'have'} the same order under all protocols"]
    if reverse:
        parts.append(f"{reverse} {'is' if reverse == 1 else 'are'} reversed under at least one")
    if tied:
        parts.append(f"{tied} {'ties' if tied == 1 else 'tie'} under at least one")
    if unknown:
        parts.append(f"{unknown} {'has' if unknown == 1 else 'have'} no order, because a method has no value")
    if len(parts) > 1:
        parts[-1] = f"and {parts[-1]}"
    return [f"Of {len(pairs)} pairs of methods, {', '.join(parts)}."] if pairs else []


def correlation_over_methods(first: Tensor, second: Tensor) -> float | None:
    """Return Spearman's rank correlation of two measures or protocols over the methods.

    Args:
        first: the value of each method, ``(methods,)``.
        second: its value by the other measure or under the other protocol.

    Returns:
        The correlation; None for fewer than three methods, or where all have one value.
    """
    if len(first) < FEWEST_METHODS:
        return None
    correlation = float(rank_correlation(first.unsqueeze(0), second.unsqueeze(0)))
    return None if isnan(correlation) else correlation


def join_names(names: Sequence[str]) -> str:
    """Join names as in a sentence: ``"A, B and C"``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _ranks_among(ranks: Sequence[int | None], kept: Sequence[int]) -> list[int | None]:
    """Return the ranks of some of the methods among themselves."""
    given = [ranks[index] for index in kept]
    return [None if rank is None else 1 + sum(other < rank for other in given if other) for rank in given]


def _orders(
    statistics: Sequence[ComparisonStatistics],
    measure: int,
    protocols: Sequence[str],
    methods: Sequence[str],
    kept: Sequence[int],
    ranks: Sequence[Sequence[int | None]],
) -> tuple[Order, ...]:
    """Return the order of each two methods that have different ranks under every protocol."""
    similar: list[Tensor] = [one.not_significantly_different(measure).cpu() for one in statistics]
    orders = []
    for one, other in combinations(range(len(kept)), 2):
        pairs = [(rank[one], rank[other]) for rank in ranks]
        if any(first is None or second is None or first == second for first, second in pairs):
            continue
        leads = [first < second for first, second in pairs]  # type: ignore[operator]
        better, worse = (one, other) if leads[0] else (other, one)
        differs = [not bool(matrix[kept[one], kept[other]]) for matrix in similar]
        significant_leads = {lead for lead, differ in zip(leads, differs, strict=True) if differ}
        reversed_under = [
            protocol for protocol, lead in zip(protocols, leads, strict=True) if lead != leads[0]
        ]
        orders.append(
            Order(
                better=methods[kept[better]],
                worse=methods[kept[worse]],
                reversed_under=tuple(reversed_under),
                is_significant=len(significant_leads) == 2 if reversed_under else all(differs),
            )
        )
    return tuple(orders)


def _krippendorff_alpha(ranks: Sequence[Sequence[int | None]]) -> float | None:
    """Return Krippendorff's alpha of ranks, one list of each rater; None if it is not defined."""
    import krippendorff

    if len(ranks[0]) < FEWEST_METHODS or len({rank for one in ranks for rank in one}) < 2:
        return None
    data = torch.tensor(ranks, dtype=torch.float64).numpy()
    return float(krippendorff.alpha(reliability_data=data, level_of_measurement="ordinal"))
