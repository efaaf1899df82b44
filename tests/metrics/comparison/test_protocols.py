"""A comparison under several protocols: the values of each alone, and which orders of the methods hold."""

import json
from itertools import combinations

import krippendorff
import numpy as np
import pytest
import torch
from conftest import Calls, HostSyncs, small_net
from processes import results_of
from scipy import stats
from torch import nn

from torchmetrics_cam import CAMComparison, EvaluationProtocol
from torchmetrics_cam.cams import GradCAM, LayerCAM, PrecomputedMaps, UniformMap
from torchmetrics_cam.metrics.comparison.rankings import Order, Rankings, describe_rankings
from torchmetrics_cam.protocol import PRESETS, as_protocol

ONES = EvaluationProtocol(name="ones", baseline=1.0)
PROTOCOLS = ("paper", "score_cam", "grad_cam", ONES)
MEASURES = ["average_drop", "increase_in_confidence", "deletion_auc"]


def comparison_of(net, **settings):
    sources = {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "stem")}
    return CAMComparison(sources, **{"measures": MEASURES, **settings})


@pytest.mark.parametrize("average", ["micro", "macro", "none"])
def test_each_protocol_has_the_values_that_it_has_alone(average, net, images):
    settings = {"average": average, "num_classes": None if average == "micro" else 5, "per_sample": True}
    together = comparison_of(net, protocols=PROTOCOLS, **settings)
    for part in images.split(2):
        together.update(part)
    values, tables = together.compute(), json.loads(together.table().to_json())
    assert [one["protocol"]["name"] for one in tables["further"]] == ["score_cam", "grad_cam", "ones"]
    for number, protocol in enumerate(PROTOCOLS):
        alone = comparison_of(net, protocol=protocol, **settings)
        alone.update(images)
        expected, name = alone.compute(), as_protocol(protocol).name
        for key, value in expected.items():
            found = values[f"{name}/{key}" if number else key]
            torch.testing.assert_close(found, value, rtol=1e-5, atol=1e-6, equal_nan=True)
        own = json.loads(alone.table().to_json())
        rows = tables["further"][number - 1]["rows"] if number else tables["rows"]
        assert [(row["method"], row["average_drop"]["rank"]) for row in rows] == [
            (row["method"], row["average_drop"]["rank"]) for row in own["rows"]
        ]
        if not number:
            torch.testing.assert_close(
                together.samples()["average_drop"], alone.samples()["average_drop"], rtol=1e-5, atol=1e-7
            )
    assert len(values) == len(PROTOCOLS) * len(expected)


def test_only_the_passes_of_perturbed_images_multiply(net, images):
    comparison = comparison_of(net, measures=["average_drop"], protocols=PROTOCOLS)
    with Calls(net) as calls:
        comparison.update(images)
    assert len(calls.batches) == 1 + len(PROTOCOLS) * (2 + 3)


def test_an_update_does_not_wait_for_the_device(net, images):
    comparison = comparison_of(net, measures=["average_drop"], protocols=PROTOCOLS, validate_args=False)
    comparison.update(images)
    with HostSyncs() as syncs:
        comparison.update(images)
    assert syncs.copies == 0


def two_pixels():
    """Return images, maps and protocols under which the order of two of three maps reverses.

    The score is the mean of two pixels, about 1 and 0.2. Black replaces the pixel that a map hides by 0, and
    the other baseline the left one by 1 and the right one by -1: then the map that shows the right pixel
    keeps the score, and that of the left pixel loses all of it.
    """
    noise = torch.rand(40, 1, 1, 2, generator=torch.Generator().manual_seed(0)) / 10
    images = torch.tensor([1.0, 0.2]) + noise
    maps = {"left": [1.0, 0.0], "right": [0.0, 1.0], "both": [1.0, 0.9]}
    maps = {name: torch.tensor(values).expand(40, 1, 2) for name, values in maps.items()}
    black = EvaluationProtocol(name="black", scores="raw", normalize="none")
    return images, maps, (black, black.replace(name="sides", baseline=torch.tensor([[[1.0, -1.0]]])))


def test_rankings_by_hand():
    images, maps, protocols = two_pixels()
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    comparison = CAMComparison(
        {name: PrecomputedMaps(model) for name in maps},
        measures=["average_drop", "complexity"],
        protocols=protocols,
    )
    comparison.update(images, class_idx=0, cams=maps)
    left, right = images[:, 0, 0, 0].double(), images[:, 0, 0, 1].double()
    clean = (left + right) / 2
    masked = {
        "black": {"left": left / 2, "right": right / 2, "both": (left + 0.9 * right) / 2},
        "sides": {
            "left": (left - 1) / 2,
            "right": (1 + right) / 2,
            "both": (left + 0.9 * right - 0.1) / 2,
        },
    }
    rankings = comparison.rankings()
    drops = {
        protocol: {
            method: float(((clean - score).clamp(min=0) / clean).mean()) for method, score in scores.items()
        }
        for protocol, scores in masked.items()
    }
    for protocol, by_method in drops.items():
        assert rankings.values[protocol] == pytest.approx(by_method, abs=1e-6)
    assert rankings.ranks == {
        "black": {"left": 2, "right": 3, "both": 1},
        "sides": {"left": 3, "right": 1, "both": 2},
    }
    assert rankings.leaders == {"black": ("both",), "sides": ("right",)}
    orders = {(one.better, one.worse): (one.reversed_under, one.is_significant) for one in rankings.orders}
    assert orders == {
        ("left", "right"): (("sides",), True),
        ("both", "left"): ((), True),
        ("both", "right"): (("sides",), True),
    }
    expected = stats.spearmanr(list(drops["black"].values()), list(drops["sides"].values())).statistic
    assert rankings.correlations["black"]["sides"] == pytest.approx(expected)
    assert rankings.correlations["black"]["black"] == pytest.approx(1)
    assert rankings.alpha == pytest.approx(alpha_of([[2, 3, 1], [3, 1, 2]]))
    assert comparison.rankings("complexity").alpha == pytest.approx(1)
    text = str(comparison.table())
    assert (
        "Average Drop: the best method depends on the protocol: both under black; right under sides." in text
    )
    assert (
        "Of 3 pairs of methods, 1 has the same order under all protocols, and 2 are reversed under at least one."
        " left is better than right, except under sides; both differences are significant. both is better than right,"
        " except under sides; both differences are significant."
    ) in text
    assert "Complexity: best are left and right under black and sides." in text


def test_a_reversal_is_significant_only_if_it_is_in_both_directions():
    """Under the second protocol the right map is better by a 20th of the spread of the differences."""
    images, maps, (black, _) = two_pixels()
    difference = images[:, 0, 0, 1] - images[:, 0, 0, 0]
    baseline = torch.tensor([[[0.0, float(difference.mean()) - 0.002]]])
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    comparison = CAMComparison(
        {name: PrecomputedMaps(model) for name in ("left", "right")},
        measures=["average_drop"],
        controls=False,
        protocols=(black, black.replace(name="nearly", baseline=baseline)),
    )
    comparison.update(images, class_idx=0, cams={name: maps[name] for name in ("left", "right")})
    (order,) = comparison.rankings().orders
    assert (order.better, order.worse, order.reversed_under) == ("left", "right", ("nearly",))
    assert not order.is_significant
    assert (
        "The order of the two methods is reversed under at least one protocol. No reversal is significant in both"
        " directions."
    ) in str(comparison.table())


THREE = ("paper", "gray", "blur")


@pytest.mark.parametrize(
    ("ranks", "sentence"),
    [
        (
            {"a": (1, 1, 1), "b": (2, 2, 2), "c": (3, 3, 3)},
            "Of 3 pairs of methods, 3 have the same order under all protocols.",
        ),
        (
            # d ties with c under one protocol, and a and b change places under another.
            {"a": (1, 2, 1), "b": (2, 1, 2), "c": (3, 3, 3), "d": (4, 3, 4)},
            "Of 6 pairs of methods, 4 have the same order under all protocols, 1 is reversed under at least one, and 1"
            " ties under at least one.",
        ),
        (
            {"a": (1, 1, 1), "b": (1, 1, 1), "c": (1, 1, 1)},
            "Of 3 pairs of methods, 0 have the same order under all protocols, and 3 tie under at least one.",
        ),
        (
            {"a": (1, 1, 1), "b": (2, None, 2), "c": (3, 2, 3)},
            "Of 3 pairs of methods, 1 has the same order under all protocols, and 2 have no order, because a method has"
            " no value.",
        ),
        ({"a": (1, 1, 1), "b": (2, 2, 2)}, "The order of the two methods is the same under all protocols."),
        ({"a": (1, 2, 1), "b": (2, 1, 2)}, "The order of the two methods is reversed under at least one protocol."),
        ({"a": (1, 1, 1), "b": (2, 1, 2)}, "The two methods tie under at least one protocol."),
        ({"a": (1, 1, 1), "b": (None, 2, 2)}, "The two methods have no order, because one has no value."),
        ({"a": (1, 1, 1)}, None),
    ],
)  # fmt: skip
def test_every_pair_of_methods_is_counted(ranks, sentence):
    described = describe(ranks)
    if sentence is None:
        assert "pair" not in described
        assert "two methods" not in described
    else:
        assert f". {sentence}" in described


def test_a_reversal_under_several_protocols_in_words():
    assert (
        "a is better than b, except under gray; at least one difference in each direction is significant."
    ) in describe({"a": (1, 2, 1), "b": (2, 1, 2)}, is_significant=True)


def describe(ranks, *, is_significant=False):
    """The sentences on a measure by which the methods have these ranks under each protocol."""
    orders = []
    for (one, first), (other, second) in combinations(ranks.items(), 2):
        pairs = list(zip(first, second, strict=True))
        if not any(None in pair or pair[0] == pair[1] for pair in pairs):
            reversed_under = [name for name, (a, b) in zip(THREE, pairs, strict=True) if a > b]
            orders.append(Order(one, other, tuple(reversed_under), is_significant))
    by_protocol = {
        protocol: {name: given[index] for name, given in ranks.items()}
        for index, protocol in enumerate(THREE)
    }
    leaders = {
        protocol: tuple(name for name, rank in given.items() if rank == 1)
        for protocol, given in by_protocol.items()
    }
    rankings = Rankings("adcc", THREE, {}, by_protocol, leaders, tuple(orders), {}, None)
    return describe_rankings(rankings, "ADCC")


def alpha_of(ranks):
    """Krippendorff's alpha for ordinal data by its definition, from the coincidences of values."""
    ranks = np.array(ranks)
    values = np.unique(ranks)
    coincidences = np.zeros((len(values), len(values)))
    for unit in ranks.T:
        for i, one in enumerate(unit):
            for j, other in enumerate(unit):
                if i != j:
                    coincidences[values == one, values == other] += 1 / (len(unit) - 1)
    totals = coincidences.sum(0)

    def distance(c, k):
        low, high = min(c, k), max(c, k)
        return (totals[low : high + 1].sum() - (totals[low] + totals[high]) / 2) ** 2

    indices = range(len(values))
    observed = sum(coincidences[c, k] * distance(c, k) for c in indices for k in indices)
    expected = sum(totals[c] * totals[k] * distance(c, k) for c in indices for k in indices)
    return 1 - (totals.sum() - 1) * observed / expected


def test_the_definition_of_alpha_is_the_librarys():
    ranks = [[1, 2, 3, 4], [2, 1, 3, 4], [1, 3, 2, 4]]
    found = krippendorff.alpha(reliability_data=np.array(ranks, float), level_of_measurement="ordinal")
    assert found == pytest.approx(alpha_of(ranks))


def test_methods_that_tie_have_no_order(net, images):
    comparison = CAMComparison(
        {"one": GradCAM(net, "body"), "same": GradCAM(net, "body")}, protocols=("paper", "score_cam")
    )
    comparison.update(images)
    rankings = comparison.rankings()
    assert rankings.orders == ()
    assert rankings.leaders == {"paper": ("one", "same"), "score_cam": ("one", "same")}
    assert rankings.alpha is None
    assert (
        "Average Drop: best are one and same under paper and score_cam. The two methods tie under at least one"
        " protocol."
    ) in str(comparison.table())


def test_a_method_that_is_best_under_all_protocols_is_named_beside_others_that_tie_with_it(net, images):
    """Where the mask keeps what is at least 0.5 of a uniform map, 0.6 and 0.9 keep all, and are both best."""
    comparison = CAMComparison(
        {"0.6": UniformMap(net, 0.6), "0.9": UniformMap(net, 0.9)},
        protocols=("paper", EvaluationProtocol(name="threshold", mask="threshold")),
        controls=False,
    )
    comparison.update(images)
    assert comparison.rankings().leaders == {"paper": ("0.9",), "threshold": ("0.6", "0.9")}
    assert "Average Drop: best is 0.9 under paper and threshold." in str(comparison.table())


def test_an_image_counts_if_it_is_valid_under_all_protocols(net, images):
    def broken(images):
        return torch.where(torch.arange(len(images)).view(-1, 1, 1, 1) == 1, torch.nan, torch.zeros(()))

    protocols = ("paper", EvaluationProtocol(name="broken", baseline=broken))
    comparison = comparison_of(net, measures=["average_drop"], protocols=protocols, controls=False)
    comparison.update(images)
    assert {row["n"] for row in comparison.table().rows} == {len(images) - 1}
    without = comparison_of(net, measures=["average_drop"])
    without.update(images[torch.arange(len(images)) != 1])
    torch.testing.assert_close(
        comparison.compute()["Grad-CAM/average_drop"], without.compute()["Grad-CAM/average_drop"]
    )


def test_a_measure_without_any_value_leaves_the_others_their_table(net, images):
    comparison = CAMComparison(
        {"half": UniformMap(net, 0.5), "all": UniformMap(net)},
        measures=["average_drop", "single_deletion"],
        protocols=("paper", "score_cam"),
    )
    comparison.update(images)
    table = comparison.table()
    assert table.rankings[0].leaders["paper"] == ("all",)
    assert table.rankings[1].leaders["paper"] == ()
    assert "Under score_cam: " not in str(table)
    assert comparison.rankings("single_deletion").alpha is None


def test_what_only_a_further_protocol_shows_is_a_note(net, images):
    """Two uniform maps differ as they are, and not where the mask keeps what is at least 0.5 of them."""
    comparison = CAMComparison(
        {"0.6": UniformMap(net, 0.6), "0.9": UniformMap(net, 0.9)},
        protocols=("paper", EvaluationProtocol(name="threshold", mask="threshold")),
        controls=False,
    )
    comparison.update(images)
    notes = comparison.table().notes
    assert any(note.startswith("Under threshold: 0.6 and 0.9 coincide") for note in notes)
    assert not any(note.startswith("0.6 and 0.9 coincide") for note in notes)


def test_a_scorer_is_compared_under_each_protocol(net, images):
    comparison = comparison_of(
        net,
        measures=["average_drop"],
        protocols=("paper", "torchcam"),
        scorer=lambda images: net(images).log_softmax(1),
    )
    with pytest.raises(ValueError, match="scorer and model disagree"):
        comparison.update(images)


def test_a_second_softmax_is_noticed_under_each_protocol(net, images):
    network = nn.Sequential(net, nn.Softmax(1))
    for protocols in (("paper", "torchcam"), ("torchcam", "paper")):
        comparison = CAMComparison({"Grad-CAM": GradCAM(network, "0.body")}, protocols=protocols)
        comparison.update(images)
        assert "the protocol 'paper' applies another one" in " ".join(comparison.table().notes)


def test_a_method_with_the_name_of_another_under_a_protocol_is_refused(net):
    sources = {"g": GradCAM(net, "body"), "score_cam/g": LayerCAM(net, "body")}
    with pytest.raises(ValueError, match="the method score_cam/g has the name of g under the protocol"):
        CAMComparison(sources, protocols=("paper", "score_cam"))
    with pytest.raises(ValueError, match="one line of printable text"):
        EvaluationProtocol(name="two\nlines")


def on_a_rank(rank, world_size):
    net = small_net()
    comparison = comparison_of(net, protocols=PROTOCOLS)
    images = torch.rand(7, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for image in images[rank::world_size].split(1):
        comparison.update(image)
    return comparison.compute(), comparison.rankings()


def test_ranks_give_the_result_of_one_process(tmp_path):
    expected, rankings = on_a_rank(0, 1)
    for values, found in results_of(on_a_rank, 2, tmp_path):
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-9)
        assert found.ranks == rankings.ranks
        assert found.orders == rankings.orders


def test_shards_with_other_protocols_are_not_merged(net, images):
    first, second = (comparison_of(net, protocols=PROTOCOLS[:count]) for count in (2, 3))
    for one in (first, second):
        one.update(images)
    with pytest.raises(ValueError, match="create both with the same protocols"):
        first.merge_state(second)


def test_what_cannot_be_is_refused(net, monkeypatch):
    with pytest.raises(ValueError, match="pass one of them"):
        comparison_of(net, protocol="paper", protocols=("paper", "score_cam"))
    with pytest.raises(ValueError, match="different names"):
        comparison_of(net, protocols=("paper", PRESETS["paper"]))
    with pytest.raises(ValueError, match="different names"):
        comparison_of(net, protocols=())
    with pytest.raises(TypeError, match="pass a tuple"):
        comparison_of(net, protocols="paper")
    with pytest.raises(ValueError, match="is not a preset"):
        comparison_of(net, protocols=("paper", "nothing"))
    with pytest.raises(ValueError, match="no ranking to compare with"):
        comparison_of(net).rankings()
    monkeypatch.setattr("torchmetrics_cam.metrics.comparison.inputs.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "torchmetrics-cam\[rankings\]"'):
        comparison_of(net, protocols=("paper", "score_cam"))
