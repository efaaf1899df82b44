"""Intervals and p-values from sums: against scipy, by hand, and by their coverage of the true value."""

import math

import hypothesis
import numpy as np
import pytest
import torch
from conftest import HostSyncs, cautious_t_test, student_over_classes
from hypothesis import strategies as st
from scipy import special, stats

from torchmetrics_cam.functional.statistics import (
    estimate,
    holm,
    mean_difference,
    sum_dtype,
    wilson_interval,
)
from torchmetrics_cam.metrics.comparison.contributions import ComparedBatch
from torchmetrics_cam.metrics.comparison.statistics import ComparisonStatistics
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.protocol import EvaluationProtocol

PAPER = EvaluationProtocol()
DROP = (MEASURES["average_drop"],)
BOTH = (MEASURES["average_drop"], MEASURES["increase_in_confidence"])


def sums(values: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tensor = torch.tensor(values)
    return torch.tensor(tensor.shape[-1]), tensor.sum(-1), tensor.square().sum(-1)


def batch(values: torch.Tensor, valid: torch.Tensor | None = None) -> ComparedBatch:
    """Values of each measure, method and image, ``(M, K, N)``, as an update would find them."""
    shape = values.shape[1:]
    valid = torch.ones(shape, dtype=torch.bool) if valid is None else valid
    scores = torch.full(shape[1:], 0.5)
    return ComparedBatch(scores, values[0], values[:1], valid, values)


def statistics_of(
    values: torch.Tensor, measures=DROP, valid=None, *, protocol=PAPER, outside=0
) -> ComparisonStatistics:
    found = batch(values, valid)
    parts = (
        found.counted_for_both,
        found.defined_for_both,
        found.sums(),
        found.squares(),
        found.wins(measures),
        found.differing(measures),
        torch.full((1, values.shape[1]), outside),
    )
    return ComparisonStatistics(measures, "micro", protocol, *(part.sum(0) for part in parts))


def test_sums_are_in_float64_except_on_apple_gpus():
    assert [sum_dtype(torch.device(name)) for name in ("cpu", "cuda", "mps")] == [
        torch.float64,
        torch.float64,
        torch.float32,
    ]


def test_mean_and_standard_error_equal_scipys():
    values = np.random.default_rng(0).beta(0.4, 2, 300)
    found = estimate(*sums(values))
    assert found.mean.item() == pytest.approx(values.mean(), rel=1e-12)
    assert found.standard_error.item() == pytest.approx(stats.sem(values), rel=1e-10)
    expected = stats.t.interval(0.95, 299, values.mean(), stats.sem(values))
    assert [bound.item() for bound in found.interval()] == pytest.approx(expected, rel=1e-10)


def test_mean_standard_error_and_interval_by_hand():
    found = estimate(torch.tensor(3), torch.tensor(6.0), torch.tensor(14.0))  # of 1, 2, 3
    assert found.mean == 2
    assert found.standard_error.item() == pytest.approx(math.sqrt(1 / 3))
    lower, upper = found.interval(level=0.9)
    # The 95th percentile of Student's distribution with 2 degrees of freedom.
    assert upper.item() - 2 == pytest.approx(2.9199856 * math.sqrt(1 / 3))
    assert lower.item() + upper.item() == pytest.approx(4)


# An independent computation of the interval, on the transformed scale and back.
SCALES = {
    (0, 1): (special.logit, lambda mean: 1 / (mean * (1 - mean)), special.expit),
    (-1, 1): (
        lambda mean: special.logit((mean + 1) / 2),
        lambda mean: 2 / (1 - mean**2),
        lambda scaled: 2 * special.expit(scaled) - 1,
    ),
    (0, math.inf): (np.log, lambda mean: 1 / mean, np.exp),
    (-math.inf, 1): (
        lambda mean: -np.log(1 - mean),
        lambda mean: 1 / (1 - mean),
        lambda scaled: 1 - np.exp(-scaled),
    ),
    (-math.inf, math.inf): (lambda mean: mean, lambda mean: 1.0, lambda scaled: scaled),
}


@pytest.mark.parametrize("value_range", SCALES)
@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_an_interval_in_a_range_is_that_of_the_transformed_mean(value_range, level):
    values = np.random.default_rng(7).beta(0.4, 2, (6, 11))
    to_scale, derivative, from_scale = SCALES[value_range]
    mean = values.mean(1)
    margin = stats.t.ppf((1 + level) / 2, 10) * stats.sem(values, axis=1) * derivative(mean)
    low, high = value_range
    lower, upper = estimate(*sums(values)).interval(level, low=low, high=high)
    np.testing.assert_allclose(lower, from_scale(to_scale(mean) - margin), rtol=1e-10, atol=1e-15)
    np.testing.assert_allclose(upper, from_scale(to_scale(mean) + margin), rtol=1e-10, atol=1e-15)


def ends(values, low=-math.inf, high=math.inf, level=0.95) -> list[float]:
    bounds = estimate(*sums(np.array(values, dtype=float))).interval(level, low=low, high=high)
    return [bound.item() for bound in bounds]


def test_a_mean_at_an_end_of_the_range_has_the_bound_of_clopper_and_pearson():
    """If a fraction f of all samples differed from the end, n would all equal it with probability (1 - f)^n."""
    lower, upper = ends([0.0] * 20, 0, 1)
    assert lower == 0
    assert (1 - upper) ** 20 == pytest.approx(0.025)
    theirs = stats.binomtest(0, 20).proportion_ci(method="exact")  # Clopper and Pearson's
    assert [lower, upper] == pytest.approx([theirs.low, theirs.high])
    assert ends([1.0] * 20, 0, 1) == pytest.approx([1 - upper, 1])
    assert ends([-0.5] * 20, -0.5, 0.5) == pytest.approx([-0.5, upper - 0.5])
    assert ends([1.0] * 20, -1, 1) == pytest.approx([1 - 2 * upper, 1])
    assert ends([0.0] * 20, 0, 1, level=0.9)[1] == pytest.approx(1 - 0.05 ** (1 / 20))
    # Rounding errors of float32 scores do not make the mean certain.
    assert ends([1e-8, 0.0, 3e-8, 0.0], 0, 1) == pytest.approx([0, 1 - 0.025**0.25])
    assert ends([1 + 1e-7, 1.0, 1.0], 0, 1) == pytest.approx([0.025 ** (1 / 3), 1])
    # One end bounds nothing.
    assert all(map(math.isnan, ends([0.0] * 20, low=0) + ends([1.0] * 20, high=1)))


def test_the_bound_at_the_end_of_the_range_covers_a_rare_value():
    """The fourth frequency is just above the bound, so that it is missed by every sample without the value."""
    draws = np.random.default_rng(8).random((4000, 30))
    for frequency in (0.001, 0.03, 0.09, 1.001 - 0.025 ** (1 / 30), 0.3):
        rare = torch.tensor(draws < frequency).double()
        bounds = estimate(torch.tensor(30), rare.sum(1), rare.sum(1)).interval(low=0, high=1)
        assert covered(*bounds, frequency) >= 0.93, frequency


def test_equal_samples_within_the_range_have_an_interval_of_width_0():
    for value_range in SCALES:
        assert ends([0.25] * 5, *value_range) == [0.25, 0.25]


def test_a_mean_outside_of_the_range_has_the_interval_without_a_range():
    assert ends([1.5, 2.0, 2.5], 0, 1) == ends([1.5, 2.0, 2.5])
    assert ends([-1.5, -2.0, -2.5], low=0) == ends([-1.5, -2.0, -2.5])
    assert ends([1.5, 2.0, 2.5], high=1) == ends([1.5, 2.0, 2.5])


@pytest.mark.parametrize("value_range", SCALES)
@pytest.mark.parametrize("values", [[], [0.5], [0.0], [1.0]])
def test_fewer_than_two_samples_have_no_interval(values, value_range):
    assert all(map(math.isnan, ends(values, *value_range)))


@hypothesis.given(
    values=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=12), level=st.floats(0.5, 0.999)
)
def test_intervals_stay_in_the_range_and_contain_the_mean(values, level):
    lower, upper = ends(values, 0, 1, level)
    mean = np.mean(values)
    assert 0 <= lower <= mean + 1e-6
    assert mean - 1e-6 <= upper <= 1


@pytest.mark.parametrize(
    ("count", "mean", "error"), [(0, "nan", "nan"), (1, "0.5", "nan"), (2, "0.5", "0.0")]
)
def test_few_samples(count, mean, error):
    found = estimate(torch.tensor(count), torch.tensor(0.5 * count), torch.tensor(0.25 * count))
    assert str(found.mean.item()) == mean
    assert str(found.standard_error.item()) == error


def test_p_values_equal_scipys_and_are_defined_for_a_standard_error_of_0():
    values = np.random.default_rng(1).normal(0.05, 0.3, (4, 80))
    found = estimate(*sums(values))
    np.testing.assert_allclose(found.p_value(), stats.ttest_1samp(values, 0, axis=1).pvalue, rtol=1e-9)
    constant = estimate(torch.tensor(5), torch.tensor([0.0, 5.0]), torch.tensor([0.0, 5.0]))
    # Of five equal signs, that of the sign test: two sides of 1/32.
    assert constant.p_value().tolist() == [1, pytest.approx(stats.binomtest(5, 5).pvalue)]
    assert estimate(torch.tensor(1), torch.tensor(0.0), torch.tensor(0.0)).p_value().isnan()


def test_a_few_equal_values_of_0_and_1_are_not_significant():
    """Of pairs of 0 and 1 drawn by chance, about 5 of 100 samples of any size are significant at most."""
    generator = np.random.default_rng(0)
    for count in (2, 3, 4, 5, 6, 8):
        differences = generator.integers(0, 2, (20_000, count)) - generator.integers(0, 2, (20_000, count))
        p_values = estimate(*sums(differences.astype(float))).p_value()
        assert (p_values < 0.05).double().mean() < 0.06


def test_wilson_interval_equals_scipys():
    for count in (1, 7, 40, 1000):
        for successes in {0, 1, count // 3, count - 1, count}:
            theirs = stats.binomtest(successes, count).proportion_ci(method="wilson")
            ours = wilson_interval(torch.tensor(count), torch.tensor(float(successes), dtype=torch.float64))
            assert [bound.item() for bound in ours] == pytest.approx([theirs.low, theirs.high], abs=1e-9)
    assert all(bound.isnan() for bound in wilson_interval(torch.tensor(0), torch.tensor(0.0)))


def test_holm_against_its_definition():
    p_values = np.random.default_rng(2).uniform(0, 0.1, 12)
    order = np.argsort(p_values)
    expected, highest = np.empty(12), 0.0
    for step, index in enumerate(order):
        highest = max(highest, min(1.0, p_values[index] * (12 - step)))
        expected[index] = highest
    np.testing.assert_allclose(holm(torch.tensor(p_values)), expected)
    with_nan = holm(torch.tensor([0.03, math.nan, 0.01]))
    assert with_nan[[0, 2]].tolist() == pytest.approx([0.03, 0.02])
    assert with_nan[1].isnan()
    assert holm(torch.tensor([])).shape == (0,)


def test_macro_average_and_its_standard_error():
    groups = [np.array([0.1, 0.4, 0.3]), np.array([0.9, 0.7]), np.array([])]
    count = torch.tensor([len(group) for group in groups])
    total = torch.tensor([group.sum() for group in groups])
    squares = torch.tensor([(group**2).sum() for group in groups])
    found = estimate(count, total, squares, over_groups=True)
    assert found.mean.item() == pytest.approx((groups[0].mean() + groups[1].mean()) / 2)
    variance = sum(stats.sem(group) ** 2 for group in groups[:2]) / 4
    assert found.standard_error.item() == pytest.approx(math.sqrt(variance))
    # Welch's test computes the degrees of freedom of two groups, which the mean and the difference share.
    welch = stats.ttest_ind(groups[0], -groups[1], equal_var=False)
    assert found.degrees_of_freedom.item() == pytest.approx(welch.df, rel=1e-10)
    assert found.p_value().item() == pytest.approx(welch.pvalue, rel=1e-9)
    expected = np.array(welch.confidence_interval(0.95)) / 2
    np.testing.assert_allclose(torch.stack(found.interval()), expected, rtol=1e-9)
    one = estimate(torch.tensor([3, 1]), total[:2], squares[:2], over_groups=True)
    assert one.standard_error.isnan()
    assert all(bound.isnan() for bound in one.interval(low=0, high=1))


def test_a_macro_average_at_the_end_of_the_range():
    """The bound is that of the smallest group's number of samples times the number of groups."""
    count, zeros = torch.tensor([3, 5, 0]), torch.zeros(3, dtype=torch.float64)
    lower, upper = estimate(count, zeros, zeros, over_groups=True).interval(low=0, high=1)
    assert [lower.item(), upper.item()] == pytest.approx([0, 1 - 0.025 ** (1 / 6)])
    # One group varies: the degrees of freedom are its own.
    values = torch.tensor([0.0, 1.5, 0.0], dtype=torch.float64), torch.tensor([0.0, 0.85, 0.0])
    mixed = estimate(torch.tensor([3, 5, 0]), *values, over_groups=True)
    assert mixed.degrees_of_freedom.item() == pytest.approx(4)


def test_intervals_and_p_values_do_not_synchronize_with_the_host():
    states = sums(np.random.default_rng(9).beta(1, 3, (4, 3, 20)))
    with HostSyncs() as syncs:
        for over_groups in (False, True):
            found = estimate(*states, over_groups=over_groups)
            for value_range in SCALES:
                found.interval(low=value_range[0], high=value_range[1])
            found.p_value()
    assert (syncs.seen, syncs.copies) == ([], 0)


# Statistics of a comparison


def correlated(experiments: int, images: int, seed: int = 3) -> torch.Tensor:
    """Draw the drops of two methods on the same images, 0.3 and 0.25 on average: ``(experiments, 2, images)``."""
    generator = np.random.default_rng(seed)
    shared = generator.beta(2, 4, (experiments, images))
    own = generator.beta(1, 3, (experiments, 2, images))
    return torch.tensor(0.6 * shared[:, None] + 0.4 * own) + torch.tensor([[0.0], [-0.05]])


def test_paired_differences_equal_those_of_the_samples():
    values = correlated(1, 120)
    found = statistics_of(values)
    apart = (values[0, 0] - values[0, 1]).numpy()
    difference = found.difference(0)
    assert difference.mean[0, 1].item() == pytest.approx(apart.mean(), rel=1e-10)
    assert difference.mean[1, 0].item() == pytest.approx(-apart.mean(), rel=1e-10)
    assert difference.standard_error[0, 1].item() == pytest.approx(stats.sem(apart), rel=1e-8)
    assert difference.standard_error[0, 1] < found.mean(0)[2][0] - found.mean(0)[0][0]
    test = stats.ttest_rel(values[0, 0], values[0, 1])
    assert found.p_value(0)[0, 1].item() == pytest.approx(test.pvalue, rel=1e-6)
    expected = list(test.confidence_interval())
    assert [bound[0, 1].item() for bound in difference.interval()] == pytest.approx(expected, rel=1e-8)


def test_the_interval_of_a_measure_uses_its_range_where_it_holds():
    """The range supposes scores in [0, 1] for measures of the scores, and normalized maps for Complexity."""
    values = torch.tensor([[[0.02, 0.1, 0.0, 0.3], [0.0, 0.0, 0.0, 0.0]]], dtype=torch.float64)
    names = ("average_drop", "road", "complexity", "coherency", "drop_in_deletion")
    measures = tuple(MEASURES[name] for name in names)
    drops = values[0, 0].numpy()
    plain = stats.t.interval(0.95, 3, drops.mean(), stats.sem(drops))
    in_range = [ends(drops, *MEASURES[name].value_range) for name in names]

    def bounds(protocol, outside):
        found = statistics_of(values.expand(5, -1, -1), measures, protocol=protocol, outside=outside)
        return [[part[0].item() for part in found.mean(index)[1:]] for index in range(5)]

    np.testing.assert_allclose(bounds(PAPER, 0), in_range, rtol=1e-9)
    raw = bounds(PAPER.replace(scores="raw"), 1)
    np.testing.assert_allclose(raw, [plain, plain, *in_range[2:4], plain], rtol=1e-9)
    # Complexity is in the unit of the map, which may be negative if rectifying is left to its source.
    for rectify, expected in (("relu", ends(drops, 0)), ("source", plain)):
        found = bounds(PAPER.replace(normalize="none", rectify=rectify), 0)
        np.testing.assert_allclose(found, [*in_range[:2], expected, *in_range[3:]], rtol=1e-9)


def test_every_measure_has_a_range():
    for measure in MEASURES.values():
        low, high = measure.value_range
        assert low < high
        assert math.isfinite(low) or math.isfinite(high), measure.name


def test_wins_and_ties_are_counted_separately():
    values = torch.tensor(
        [[[0.1, 0.2, 0.3, 0.4], [0.2, 0.2, 0.3 + 1e-8, 0.1], [0.5] * 4]], dtype=torch.float64
    )
    wins, ties = statistics_of(values).win_rate(0)
    assert wins[0].tolist() == [0, 0.25, 1]
    assert wins[1].tolist() == [0.25, 0, 1]
    assert ties.tolist() == [[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]
    higher = statistics_of(values, (MEASURES["average_gain"],)).win_rate(0)[0]
    assert torch.equal(higher, wins.T)


def test_pairs_leave_out_images_that_are_invalid_for_either_method():
    values = torch.tensor([[[0.1, 0.2, 0.0], [0.3, 0.0, 0.5]]], dtype=torch.float64)
    found = statistics_of(values, valid=torch.tensor([[True, True, False], [True, False, True]]))
    assert found.count.tolist() == [[2, 1], [1, 2]]
    assert found.mean(0)[0].tolist() == pytest.approx([0.15, 0.4])
    assert found.difference(0).mean[0, 1].item() == pytest.approx(-0.2)


def test_ranks_and_differences_that_are_not_significant():
    noise = torch.tensor(np.random.default_rng(4).normal(0, 0.02, (1, 4, 200)))
    values = noise + torch.tensor([[0.5], [0.2], [0.2005], [0.5]])
    values[:, 3] = values[:, 0] + 1e-9
    found = statistics_of(values)
    assert found.ranks(0)[0] == found.ranks(0)[3] == 3
    assert sorted(found.ranks(0)[1:3]) == [1, 2]
    assert found.coincide().nonzero().tolist() == [[0, 0], [0, 3], [1, 1], [2, 2], [3, 0], [3, 3]]
    assert found.p_value(0)[0, 3] == 1
    assert found.not_significantly_different(0).nonzero().tolist() == [[0, 3], [1, 2], [2, 1], [3, 0]]


def test_small_differences_near_a_confidence_of_1_are_not_ties():
    """Both scores are nearly 1, but one is at half the distance."""
    masked = torch.stack([torch.full((200,), 0.99995), torch.full((200,), 0.9999)]).double()
    scores = torch.full((200,), 0.9999).double()
    gains = ((masked - scores).clamp(min=0) / (1 - scores)).unsqueeze(0)
    valid = torch.ones(2, 200, dtype=torch.bool)
    found = ComparedBatch(scores, masked, masked[None], valid, gains)
    differing = found.differing((MEASURES["average_gain"],))
    assert differing.sum(0).tolist() == [[0, 200], [200, 0]]
    rounded = ComparedBatch(
        scores,
        masked,
        masked[:1].expand(2, -1)[None] + torch.tensor([[0.0], [1e-7]]),
        valid,
        gains,
    )
    assert not rounded.differing((MEASURES["average_gain"],)).any()


def test_methods_that_coincide_through_a_third_share_the_best_rank():
    noise = np.random.default_rng(6).normal(0, 0.1, 400)
    values = torch.full((1, 3, 400), 0.2, dtype=torch.float64)
    values[0, 1] = 0.20005 + torch.tensor(noise - noise.mean())
    values[0, 2] = 0.2001
    found = statistics_of(values)
    assert found.ranks(0) == [1, 2, 1]
    chain = torch.tensor([[[0.5] * 200, [0.5] * 200, [0.5] * 200]], dtype=torch.float64)
    chain[0, 1] += torch.tensor([0.1] * 2 + [0.0] * 198)
    chain[0, 2] += torch.tensor([0.0] * 198 + [0.1] * 2)
    assert statistics_of(chain).coincide().all()


def covered(lower: torch.Tensor, upper: torch.Tensor, truth: float) -> float:
    return ((lower <= truth) & (truth <= upper)).double().mean().item()


def test_intervals_cover_the_true_value_in_95_percent_of_experiments():
    """Run 500 experiments with a known true value through the sums that an update accumulates."""
    values = correlated(500, 150)
    rises = torch.tensor(np.random.default_rng(5).uniform(size=(500, 2, 150)) < 0.12).double()
    means, rates, differences = [], [], []
    for drops, increases in zip(values, rises, strict=True):
        found = statistics_of(torch.stack([drops, increases]), BOTH)
        means.append(torch.stack(found.mean(0)[1:])[:, 0])
        rates.append(torch.stack(found.mean(1)[1:])[:, 0])
        differences.append(torch.stack(found.difference(0).interval())[:, 0, 1])
    for bounds, truth in ((means, 0.6 / 3 + 0.4 / 4), (rates, 0.12), (differences, 0.05)):
        assert 0.93 <= covered(*torch.stack(bounds).T, truth) <= 0.97


def test_coverage_test_detects_intervals_that_are_too_short():
    values = correlated(500, 150)[:, 0]
    found = estimate(torch.tensor(150), values.sum(1), values.square().sum(1))
    assert covered(*found.interval(level=0.85), 0.3) < 0.93


@pytest.mark.parametrize("sizes", [(2, 2), (3, 40), (200, 7)])
def test_the_difference_of_independent_samples_is_the_more_cautious_one_of_scipys(sizes):
    rng = np.random.default_rng(sizes[1])
    first, second = (rng.normal(loc, loc, (5, size)) for loc, size in zip((1, 3), sizes, strict=True))
    difference, *found = mean_difference(sums(first), sums(second))
    np.testing.assert_allclose(difference, first.mean(1) - second.mean(1), rtol=1e-12)
    np.testing.assert_allclose(torch.stack(found), cautious_t_test(first, second, axis=1), rtol=1e-8)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 1], [0, 0, 0], 2 / 10),  # two of five images can be chosen in ten ways
        ([0] * 6, [1] * 9, 2 / math.comb(15, 6)),
        ([2, 2], [2, 2, 2], 1),
    ],
)
def test_samples_of_equal_values_have_an_exact_p_value_and_no_interval(first, second, expected):
    samples = [sums(np.array(values, dtype=float)) for values in (first, second)]
    difference, lower, upper, p_value = mean_difference(*samples)
    assert difference == first[0] - second[0]
    assert lower.isnan()
    assert upper.isnan()
    assert p_value.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("first", [[0.0, 0.0], [0.0]], ids=["equal values", "one value"])
def test_a_sample_without_a_variance_has_that_of_both_together(first):
    second = np.array([1.0] * 20 + [0.0] * 20)
    _, lower, upper, p_value = mean_difference(sums(np.array(first)), sums(second))
    expected = stats.ttest_ind(first, second)
    assert p_value.item() == pytest.approx(expected.pvalue, rel=1e-8)
    assert p_value > 0.1
    assert (lower.item(), upper.item()) == pytest.approx(tuple(expected.confidence_interval()), rel=1e-8)


def test_two_single_values_have_a_difference_without_an_interval():
    difference, *others = mean_difference(sums(np.array([1.0])), sums(np.array([2.5])))
    assert difference == -1.5
    assert all(value.isnan() for value in others)


def test_a_difference_of_macro_averages_by_hand():
    """Means over three classes; of the third one only the second sample has images, and of the second one it has one."""
    rng = np.random.default_rng(4)
    first = [rng.normal(size=5), rng.normal(size=3), np.array([])]
    second = [rng.normal(2, 1, 4), rng.normal(size=1), rng.normal(size=6)]
    states = [
        [torch.tensor([f(values) for values in sample]) for f in (len, np.sum, lambda x: np.sum(x**2))]
        for sample in (first, second)
    ]
    difference, lower, upper, p_value = mean_difference(*states, over_groups=True)
    mean, error, df = student_over_classes(first, second)
    assert mean == pytest.approx((first[0].mean() + first[1].mean()) / 2 - sum(map(np.mean, second)) / 3)
    # Welch's test is not defined for the class with one image.
    assert difference.item() == pytest.approx(mean, rel=1e-12)
    assert p_value.item() == pytest.approx(2 * stats.t.sf(abs(mean) / error, df), rel=1e-8)
    margin = stats.t.ppf(0.975, df) * error
    assert (lower.item(), upper.item()) == pytest.approx((mean - margin, mean + margin), rel=1e-8)


@pytest.mark.parametrize(
    "sizes", [[100, *[2] * 5], [100, *[5] * 5], [50, 50, 3], [4] * 10, [30] * 6], ids=str
)
@pytest.mark.parametrize("values", ["proportion", "many zeros", "drop"])
def test_equal_groups_rarely_have_a_significant_worst_one(sizes, values):
    """As `GroupStatistics` judges it: the largest mean, with Bonferroni's adjustment, in at most one of twenty."""
    rng = np.random.default_rng(5)
    shape = 400, sum(sizes)
    drawn = rng.beta(0.5, 1.5, shape)
    if values != "drop":
        drawn = (rng.random(shape) < 0.3) * (1 if values == "proportion" else drawn)
    groups = np.split(drawn, np.cumsum(sizes)[:-1], axis=1)
    worst = np.stack([group.mean(1) for group in groups]).argmax(0)
    significant = 0
    for number, group in enumerate(groups):
        others = np.concatenate([one for index, one in enumerate(groups) if index != number], axis=1)
        found = [torch.stack([part.expand(400) for part in sums(sample)]) for sample in (group, others)]
        *_, p_value = mean_difference(*found)
        significant += int(((p_value * len(sizes) < 0.05).numpy() & (worst == number)).sum())
    assert significant / 400 <= 0.06
