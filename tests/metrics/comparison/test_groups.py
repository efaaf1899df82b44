"""Groups of images: the values of each as if it were alone, and the worst one against all others."""

import json
import pickle

import numpy as np
import pytest
import torch
from conftest import Calls, HostSyncs, Returning, cautious_t_test, small_net, student_over_classes
from processes import results_of
from scipy import stats
from torch import nn
from torchmetrics import MetricCollection

from torchmetrics_cam import CAMComparison
from torchmetrics_cam.cams import GradCAM, LayerCAM, PrecomputedMaps, UniformMap
from torchmetrics_cam.lightning import evaluate

DTYPE = torch.float32  # of the fixtures net and images
IMAGES = (24, 3, 12, 12)
GROUPS = ("shoes", "tops", "bags")
GROUP = torch.arange(24) % 2 + (torch.arange(24) > 18)
LABELS = torch.arange(24) % 5


def comparison_of(net, **settings):
    sources = {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "stem")}
    return CAMComparison(sources, **{"controls": False, **settings})


def grouped(net, **settings):
    return comparison_of(net, **{"groups": GROUPS, "by_correctness": True, **settings})


def of_groups(net, images):
    """The images of each group, also of those that the network classifies correctly and wrongly."""
    correct = net(images).argmax(1) == LABELS
    assert 2 < int(correct.sum()) < 22
    members = {name: number == GROUP for number, name in enumerate(GROUPS)}
    return {**members, "correct": correct, "wrong": ~correct}


# The values


@pytest.mark.parametrize("average", ["micro", "macro", "none"])
def test_each_group_has_the_values_that_it_has_alone(average, net, images):
    settings = {"average": average, "num_classes": None if average == "micro" else 5}
    settings["measures"] = ["average_drop", "increase_in_confidence", "complexity"]
    together = grouped(net, **settings)
    names = [GROUPS[number] for number in GROUP]
    for start in range(0, 24, 5):
        part = slice(start, start + 5)
        together.update(images[part], class_idx=LABELS[part], group=names[part], labels=LABELS[part].tolist())
    values = together.compute()
    for name, members in of_groups(net, images).items():
        alone = comparison_of(net, **settings)
        alone.update(images[members], class_idx=LABELS[members])
        for key, value in alone.compute().items():
            torch.testing.assert_close(
                values.pop(f"{name}/{key}"), value, rtol=1e-6, atol=1e-7, equal_nan=True
            )
    without = comparison_of(net, **settings)
    for part in (slice(start, start + 5) for start in range(0, 24, 5)):
        without.update(images[part], class_idx=LABELS[part])
    torch.testing.assert_close(values, without.compute(), rtol=0, atol=0, equal_nan=True)
    added = {"group_count", "group_defined", "group_sums", "group_squares"}
    assert set(together._defaults) - set(without._defaults) == added
    for name in set(without._defaults) - {"identity"}:
        torch.testing.assert_close(getattr(together, name), getattr(without, name), rtol=0, atol=0)


def test_the_table_of_groups(net, images):
    comparison = grouped(net, per_sample=True, measures=["average_drop", "insertion_auc"])
    images[3, 0, 0, 0] = torch.nan
    comparison.update(images, group=GROUP, labels=LABELS)
    members = of_groups(net, images)
    samples = comparison.samples()
    assert torch.equal(samples["group"], GROUP)
    assert torch.equal(samples["prediction"], members["wrong"].long())
    found = json.loads(comparison.table().to_json())["groups"]
    assert [(one["grouping"], one["title"], one["names"]) for one in found] == [
        ("group", "Group", list(GROUPS)),
        ("prediction", "Prediction", ["correct", "wrong"]),
    ]
    valid = images.isfinite().flatten(1).all(1)
    rows = comparison.table().rows
    for one in found:
        assert one["n"] == [int((members[name] & valid).sum()) for name in one["names"]]
        assert [row["method"] for row in one["rows"]] == [row["method"] for row in rows]
        for row in one["rows"]:
            column = comparison.methods.index(row["method"])
            for measure, higher_is_better in (("average_drop", False), ("insertion_auc", True)):
                values = samples[measure][:, column].double().numpy()
                parts = {name: values[members[name] & valid] for name in one["names"]}
                means = {name: part.mean() for name, part in parts.items()}
                for name, cell in zip(one["names"], row["values"][measure], strict=True):
                    assert cell["value"] == pytest.approx(means[name], rel=1e-6)
                    assert cell["lower"] <= cell["value"] <= cell["upper"]
                    assert cell["n"] == len(parts[name])
                worst = (min if higher_is_better else max)(means, key=means.get)
                others = np.concatenate([part for name, part in parts.items() if name != worst])
                *interval, p_value = cautious_t_test(parts[worst], others)
                assert row["worst"][measure]["group"] == worst
                assert row["worst"][measure]["significant"] == bool(p_value * len(one["names"]) < 0.05)
                numbers = [
                    row["worst"][measure][key]
                    for key in ("value", "others", "gap", "lower", "upper", "p_value")
                ]
                theirs = [means[worst], others.mean(), means[worst] - others.mean(), *interval]
                assert numbers == pytest.approx([*theirs, p_value], abs=1e-6)
                assert abs(numbers[2]) > 1e-4


def table_of(drops, group, names=("a", "b")):
    """Return the worst group and the table of images that lose a fraction of up to one half of their score."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    comparison = CAMComparison(
        {"maps": PrecomputedMaps(model)},
        nn.Identity(),
        controls=False,
        measures=["average_drop"],
        groups=names,
    )
    # Of two bright pixels one is kept, and the other in part; a dark one makes the lowest value of each map 0.
    maps = torch.tensor([[[1.0, 1 - 2 * drop, 0.0]] for drop in drops])
    comparison.update(torch.tensor([1.0, 1.0, 0.0]).expand(len(drops), 1, 1, 3), cams=maps, group=group)
    table = comparison.table()
    return table.groups[0].rows[0]["worst"]["average_drop"], table


def test_the_worst_group_by_hand():
    bad, good, single = [0.4, 0.4, 0.3], [0.1, 0.1, 0.2, 0.2, 0.1, 0.1] * 3, [0.5]
    names = ("bad", "good", "single")
    worst, table = table_of(bad + good + single, ["bad"] * 3 + ["good"] * 18 + ["single"], names)
    lower, upper, p_value = cautious_t_test(bad, good + single)
    # The single image is worse, but cannot be the worst group. It is one of the others.
    assert worst == {
        "group": "bad",
        "value": pytest.approx(1.1 / 3, abs=1e-6),
        "others": pytest.approx(2.9 / 19, abs=1e-6),
        "gap": pytest.approx(1.1 / 3 - 2.9 / 19, abs=1e-6),
        "lower": pytest.approx(lower, abs=1e-6),
        "upper": pytest.approx(upper, abs=1e-6),
        "p_value": pytest.approx(p_value, abs=1e-6),
        # Two groups could have been the worst.
        "significant": True,
    }
    assert 0.001 < p_value < 0.05 / 2
    cells = table.groups[0].rows[0]["values"]["average_drop"]
    assert [cell["n"] for cell in cells] == table.groups[0].n == [3, 18, 1]
    assert cells[2] == {"value": pytest.approx(0.5), "lower": None, "upper": None, "n": 1}
    assert "a group of one image cannot be the worst" in str(table)


def test_groups_of_equal_values():
    worst, _ = table_of([0.5, 0.5, 0.5, 0, 0, 0, 0, 0], [0] * 3 + [1] * 5)
    assert worst == {
        **{"group": "a", "value": 0.5, "others": 0.0, "gap": 0.5, "lower": None, "upper": None},
        "p_value": pytest.approx(2 / 56),
        # Of two groups the worst was picked: twice the p-value is above 5 %.
        "significant": False,
    }
    worst, _ = table_of([0.5] * 4 + [0] * 5, [0] * 4 + [1] * 5)
    assert worst["p_value"] == pytest.approx(2 / 126)
    assert worst["significant"] is True


def test_without_a_worse_group_there_is_no_worst():
    for drops, group, names in (
        ([0.25] * 6, [0, 0, 0, 1, 1, 1], ("a", "b")),  # the same value
        ([0.5, 0, 0.25], [0, 0, 0], ("a",)),  # a single group
        ([0.5, 0, 0.25], [1, 1, 1], ("a", "b")),  # of which only one has images
        ([0.5, 0.25, 0], [0, 1, 2], ("a", "b", "c")),  # one image each
        ([0.25, 0.0, 0.5], [0, 0, 1], ("a", "b")),  # the only group with two images is the better one
    ):
        worst, table = table_of(drops, group, names)
        assert worst is None, drops
        assert "Worst group" not in str(table)
        assert "Values by group:" in str(table)


def test_of_equally_bad_groups_the_first_is_named():
    # The mean of the last group is worse by a rounding error.
    drops, group = [0.5, 0.25, 0, 0, 0.25, 0.4999999], [2, 2, 0, 0, 1, 1]
    worst, _ = table_of(drops, group, ("a", "b", "c"))
    assert worst["group"] == "b"
    assert worst["others"] == pytest.approx(0.1875, abs=1e-6)


def mean_over_classes(values: np.ndarray, classes: np.ndarray) -> tuple[float, float, float]:
    """The mean of the classes' means, the square of its standard error, and its degrees of freedom."""
    parts = [values[classes == number] for number in np.unique(classes)]
    errors = np.array([part.var(ddof=1) / len(part) for part in parts])
    freedom = errors.sum() ** 2 / sum(errors**2 / np.array([len(part) - 1 for part in parts]))
    return np.mean([part.mean() for part in parts]), errors.sum() / len(parts) ** 2, freedom


def test_the_worst_group_in_means_over_classes(net, images):
    classes = torch.tensor([0, 0, 1, 1] * 6)
    group = torch.tensor([0, 1, 0, 1] * 5 + [0, 0, 2, 2])
    comparison = grouped(
        net, average="macro", num_classes=5, per_sample=True, measures=["complexity"], by_correctness=False
    )
    comparison.update(images, class_idx=classes, group=group)
    (grouping,) = comparison.table().groups
    row = grouping.rows[0]
    column = comparison.methods.index(row["method"])
    values = comparison.samples()["complexity"][:, column].double().numpy()
    parts = [
        [mean_over_classes(values[members], classes.numpy()[members]) for members in (inside, ~inside)]
        for inside in ((group == number).numpy() for number in range(3))
    ]
    assert grouping.n == [12, 10, 2]
    cells = row["values"]["complexity"]
    assert [cell["value"] for cell in cells] == pytest.approx([inside[0] for inside, _ in parts], abs=1e-7)
    index = max(range(3), key=lambda number: parts[number][0][0])
    (mean, error, freedom), (others, error_of_others, freedom_of_others) = parts[index]
    total = error + error_of_others
    welch = total**0.5, total**2 / (error**2 / freedom + error_of_others**2 / freedom_of_others)
    inside = (group == index).numpy()
    by_class = [[values[part & (classes.numpy() == one)] for one in (0, 1)] for part in (inside, ~inside)]
    gap, *student = student_over_classes(*by_class)
    margin = max(stats.t.ppf(0.975, df) * se for se, df in (welch, student))
    p_value = max(2 * stats.t.sf(abs(gap) / se, df) for se, df in (welch, student))
    worst = row["worst"]["complexity"]
    assert worst["group"] == GROUPS[index]
    ours = [worst[key] for key in ("value", "others", "gap", "lower", "upper", "p_value")]
    assert ours == pytest.approx([mean, others, gap, gap - margin, gap + margin, p_value], abs=1e-6)


def test_the_table_pools_the_values_of_classes(net, images):
    tables = []
    for average, num_classes in (("none", 5), ("micro", None)):
        comparison = grouped(net, average=average, num_classes=num_classes)
        comparison.update(images, class_idx=LABELS, group=GROUP, labels=LABELS)
        tables.append(json.loads(comparison.table().to_json())["groups"])
    for pooled, micro in zip(*tables, strict=True):
        assert pooled["n"] == micro["n"]
        for first, second in zip(pooled["rows"], micro["rows"], strict=True):
            for measure, cells in first["values"].items():
                for cell, expected in zip(cells, second["values"][measure], strict=True):
                    assert cell == pytest.approx(expected, abs=1e-9)
                assert first["worst"][measure] == pytest.approx(second["worst"][measure], abs=1e-9)


def test_markdown_shows_the_groups(net, images):
    comparison = grouped(net, measures=["average_drop"], groups=("shoes", "to|ps", "bags"))
    comparison.update(images, group=GROUP, labels=LABELS)
    lines = str(comparison.table()).splitlines()
    start = lines.index("Values by group:")
    assert lines[start + 2] == "| method | group | Average Drop | N |"
    assert [line.split(" | ")[1] for line in lines[start + 4 : start + 10]] == [
        "shoes",
        "to\\|ps",
        "bags",
    ] * 2
    assert "Values by prediction:" in lines
    header = "| method | measure | worst prediction | value | all others | gap | p | significant |"
    assert header in lines
    groups = comparison.table().groups[1]
    worst = groups.rows[0]["worst"]["average_drop"]
    line = lines[lines.index(header) + 2]
    method = groups.rows[0]["method"]
    assert line.startswith(f"| {method} | Average Drop | {worst['group']} | {worst['value']:.3f} |")
    assert f"{worst['gap']:.3f} ({worst['lower']:.3f} to {worst['upper']:.3f})" in line
    assert "Values by" not in str(comparison_of(net).table())


def test_only_the_first_protocol_has_groups(net, images):
    comparison = grouped(net, protocols=("paper", "score_cam"))
    comparison.update(images, group=GROUP, labels=LABELS)
    alone = grouped(net)
    alone.update(images, group=GROUP, labels=LABELS)
    values, expected = comparison.compute(), alone.compute()
    assert not {key for key in values if "score_cam" in key and "shoes" in key}
    for key in expected:
        torch.testing.assert_close(values[key], expected[key], rtol=1e-6, atol=1e-7)


# Right and wrong predictions


@pytest.mark.parametrize("explained", ["top class", "label"])
def test_a_binary_classifier_with_one_logit(explained, net, images):
    class OneLogit(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            scores = self.net(x)
            return scores[:, :1] - scores[:, 1:2] + 16.8

    model = OneLogit()
    logits = model(images)[:, 0]
    assert 2 < int((logits > 0).sum()) < 22
    labels = torch.arange(24) % 2
    comparison = CAMComparison(
        {"Grad-CAM": GradCAM(model, "net.body")}, controls=False, by_correctness=True, per_sample=True
    )
    class_idx = labels if explained == "label" else None
    comparison.update(images, class_idx=class_idx, labels=labels)
    assert torch.equal(comparison.samples()["prediction"] == 0, (logits > 0) == labels.bool())


@pytest.mark.parametrize("form", [dict, tuple], ids=["dict", "tuple"])
def test_predictions_of_outputs_in_other_forms(form, net, images):
    model = Returning(net, lambda scores: {"logits": scores} if form is dict else (scores, scores))
    comparison = CAMComparison({"Grad-CAM": GradCAM(model, "net.body")}, by_correctness=True, per_sample=True)
    comparison.update(images, labels=LABELS)
    assert torch.equal(comparison.samples()["prediction"] == 0, net(images).argmax(1) == LABELS)


def test_with_a_logits_fn_the_highest_score_is_the_prediction(net, images):
    def of_other_classes(scores):
        return scores.flip(1)[:, :4].softmax(1)

    comparison = comparison_of(
        net, logits_fn=of_other_classes, protocol="torchcam", by_correctness=True, per_sample=True
    )
    labels = torch.arange(24) % 4
    comparison.update(images, class_idx=labels, labels=labels)
    expected = of_other_classes(net(images)).argmax(1) == labels
    assert torch.equal(comparison.samples()["prediction"] == 0, expected)


def test_the_raw_output_decides_where_rounded_scores_are_equal(images):
    logits = torch.tensor([0.1, 0.10000001])
    assert logits[0] < logits[1]
    assert logits.softmax(0).unique().numel() == 1
    model = Returning(nn.Identity(), lambda x: x.flatten(1)[:, :2] * 0 + logits)
    comparison = CAMComparison({"map": UniformMap(model)}, by_correctness=True, controls=False)
    comparison.update(images, labels=torch.ones(24, dtype=torch.long))
    assert comparison.group_count.tolist() == [24, 0]


def test_predictions_are_those_of_the_model_and_not_of_its_surrogate(net, images):
    surrogate = Returning(net, lambda scores: scores.roll(1, 1))
    comparison = comparison_of(net, surrogate=surrogate, by_correctness=True, per_sample=True)
    comparison.update(images, labels=LABELS)
    assert torch.equal(comparison.samples()["prediction"] == 0, net(images).argmax(1) == LABELS)


# The update


def test_no_further_forward_pass_and_no_synchronization(net, images):
    with Calls(net) as calls:
        comparison_of(net).update(images)
    with Calls(net) as further:
        comparison = grouped(net)
        comparison.update(images, group=GROUP, labels=LABELS)
    assert calls.batches == further.batches
    without_checks = grouped(net, validate_args=False)
    without_checks.update(images, group=GROUP, labels=LABELS)
    lists = GROUP.tolist(), LABELS.tolist()
    with HostSyncs() as syncs:
        without_checks.update(images, group=GROUP, labels=LABELS)
        # Lists are checked on the host.
        comparison.update(images, group=lists[0], labels=lists[1])
    assert syncs.seen == []
    with HostSyncs() as syncs:
        comparison.update(images, group=GROUP, labels=LABELS)
    assert set(syncs.seen) == {"tolist"}


def test_without_validation_an_index_out_of_range_belongs_to_no_group(net, images):
    comparison = grouped(net, validate_args=False, per_sample=True)
    comparison.update(images, group=GROUP - 1, labels=LABELS)
    assert comparison.group_count[:3].tolist() == [11, 3, 0]
    assert torch.equal(comparison.samples()["group"], GROUP - 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"labels": LABELS}, ValueError, r"group is missing: pass the name or the index .* of \['shoes'"),
        ({"group": GROUP}, ValueError, "labels are missing: by_correctness=True compares the prediction"),
        ({"group": GROUP[:5]}, ValueError, r"group has shape \(5,\) but input_tensor holds 24 images"),
        ({"group": ["tops"] * 5}, ValueError, r"group has shape \(5,\) but input_tensor holds 24 images"),
        ({"group": ["hats"] * 24}, ValueError, r"'hats' is no group; available are \['shoes', 'tops', 'bags'\]"),
        ({"group": GROUP + 1}, ValueError, r"group 3 is out of range: the comparison has 3 groups, \['shoes'"),
        ({"group": GROUP - 1}, ValueError, "group -1 is out of range"),
        ({"group": [3] * 24}, ValueError, "group 3 is out of range"),
        ({"group": GROUP.float()}, TypeError, "group is a tensor of torch.float32; pass a LongTensor"),
        ({"group": "tops"}, TypeError, "group is 'tops'; pass a LongTensor"),
        ({"labels": LABELS.bool()}, TypeError, "labels is a tensor of torch.bool; pass a LongTensor"),
        ({"labels": LABELS - 1}, ValueError, "label -1 is no class: labels are indices of the model's outputs"),
        ({"labels": ["cat"] * 24}, ValueError, "label 'cat' is no class"),
        ({"labels": LABELS[:3]}, ValueError, r"labels has shape \(3,\) but input_tensor holds 24 images"),
        ({"targets": torch.max}, ValueError, "targets were given, and whether a prediction is right needs a class"),
    ],
)  # fmt: skip
def test_a_refused_batch_changes_nothing_and_does_not_run_the_model(arguments, error, message, net, images):
    comparison = grouped(net)
    comparison.update(images, group=GROUP, labels=LABELS)
    before = comparison._copy_state_dict()
    given = {"group": GROUP, "labels": LABELS, **arguments}
    missing = {"group", "labels"} - arguments.keys() if "missing" in message else set()
    with Calls(net) as calls, pytest.raises(error, match=message):
        comparison.update(images, **{name: value for name, value in given.items() if name not in missing})
    assert calls.batches == []
    torch.testing.assert_close(comparison._copy_state_dict(), before, rtol=0, atol=0)
    assert comparison.update_count == 1


def test_a_label_beyond_the_classes_of_the_model_is_refused(net, images):
    comparison = grouped(net)
    with pytest.raises(ValueError, match="label 5 is out of range: the model has 5 classes"):
        comparison.update(images, group=GROUP, labels=LABELS + 1)
    assert int(comparison.count.sum()) == int(comparison.group_count.sum()) == 0


def test_groups_and_labels_that_nobody_asked_for_are_refused(net, images):
    with pytest.raises(ValueError, match="group was given, and the comparison has no groups; create it with"):
        comparison_of(net).update(images, group=GROUP)
    with pytest.raises(
        ValueError, match=r"labels were given.*create the comparison with by_correctness=True"
    ):
        comparison_of(net, groups=GROUPS).update(images, group=GROUP, labels=LABELS)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"groups": "tops"}, TypeError, "groups is 'tops'; pass a tuple of names, such as"),
        ({"groups": [1, 2]}, TypeError, "pass a tuple of names"),
        ({"groups": ()}, ValueError, "give one or more different names, none of them empty"),
        ({"groups": ("a", "a")}, ValueError, "give one or more different names"),
        ({"groups": ("a", "")}, ValueError, "none of them empty"),
        ({"groups": ("a", "wrong"), "by_correctness": True}, ValueError, "'wrong' is a group, and by_correctness"),
        (
            {"groups": ("score_cam",), "protocols": ("paper", "score_cam")},
            ValueError,
            "Grad-CAM under the protocol score_cam has the name of Grad-CAM in the group score_cam; rename one",
        ),
        (
            {"sources": ("tops/Grad-CAM", "Grad-CAM"), "groups": ("tops",)},
            ValueError,
            "the method tops/Grad-CAM has the name of Grad-CAM in the group tops; rename one of them",
        ),
        (
            {"sources": ("b/c", "c"), "groups": ("a", "a/b")},
            ValueError,
            "b/c in the group a has the name of c in the group a/b; rename one of them",
        ),
    ],
)  # fmt: skip
def test_names_that_cannot_be_are_refused(settings, error, message, net):
    names = settings.pop("sources", ("Grad-CAM",)) if "sources" in settings else ("Grad-CAM",)
    sources = {name: GradCAM(net, "body") for name in names}
    with pytest.raises(error, match=message):
        CAMComparison(sources, **settings)


# As a Metric


def test_forward_clone_pickle_reset_merge_and_state_dict(net, images):
    whole, comparison = grouped(net), grouped(net)
    whole.update(images, group=GROUP, labels=LABELS)
    expected = whole.compute()
    first = comparison(images[:9], group=GROUP[:9], labels=LABELS[:9])
    part = grouped(net)
    part.update(images[:9], group=GROUP[:9], labels=LABELS[:9])
    torch.testing.assert_close(first, part.compute(), equal_nan=True)
    comparison(images[9:], group=GROUP[9:], labels=LABELS[9:])
    torch.testing.assert_close(comparison.compute(), expected, rtol=1e-6, atol=1e-8)
    for copy in (comparison.clone(), pickle.loads(pickle.dumps(comparison))):
        torch.testing.assert_close(copy.compute(), expected, rtol=1e-6, atol=1e-8)
    rest = grouped(net)
    rest.update(images[9:], group=GROUP[9:], labels=LABELS[9:])
    part.merge_state(rest)
    torch.testing.assert_close(part.compute(), expected, rtol=1e-6, atol=1e-8)
    part.persistent(True)
    loaded = grouped(net)
    loaded.persistent(True)
    loaded.load_state_dict(part.state_dict())
    torch.testing.assert_close(loaded.group_sums, part.group_sums, rtol=0, atol=0)
    assert loaded.group_count.tolist() == part.group_count.tolist() == whole.group_count.tolist()
    part.reset()
    assert int(part.group_count.sum()) == int(part.group_defined.sum()) == 0


@pytest.mark.parametrize("other", [{}, {"groups": ("shoes", "tops", "hats")}, {"by_correctness": False}])
def test_metrics_with_other_groups_are_not_merged(other, net):
    theirs = grouped(net, **other) if other else comparison_of(net)
    for first, second in ((grouped(net), theirs), (theirs, grouped(net))):
        with pytest.raises(
            ValueError, match=r"a metric with groups=.* cannot be merged into one with groups="
        ):
            first.merge_state(second)


def test_comparisons_with_other_groups_never_share_an_update(net, images):
    sources = {"uniform": UniformMap(net)}
    of = {"first": ("a", "b"), "second": ("b", "a"), "same": ("a", "b")}
    collection = MetricCollection(
        {name: CAMComparison(sources, controls=False, groups=groups) for name, groups in of.items()},
        prefix="x_",
    )
    collection.update(images, group=torch.zeros(24, dtype=torch.long))
    assert sorted(map(sorted, collection.compute_groups.values())) == [["first", "same"], ["second"]]


def on_a_rank(rank, world_size):
    """The first of two ranks has no image of the last group, and no prediction of it is right."""
    net = small_net().float()
    images = torch.rand(IMAGES, generator=torch.Generator().manual_seed(1))
    labels = net(images).argmax(1).roll(1)
    comparison = grouped(net, per_sample=True)
    order = GROUP.argsort(stable=True)
    for chosen in order.split(12)[rank::world_size]:
        comparison.update(images[chosen], group=GROUP[chosen], labels=labels[chosen], index=chosen)
    own = comparison.group_count.tolist()
    return own, comparison.compute(), comparison.table().groups, comparison.samples()["group"]


def test_a_group_that_a_rank_has_not_seen_is_no_error(tmp_path):
    total, expected, groups, _ = on_a_rank(0, 1)
    found = results_of(on_a_rank, 2, tmp_path)
    assert found[0][0][2] == 0 < total[2]
    assert [sum(counts) for counts in zip(found[0][0], found[1][0], strict=True)] == total
    for _, values, tables, samples in found:
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-9, equal_nan=True)
        assert [one.n for one in tables] == [one.n for one in groups]
        worst, theirs = (one[0].rows[0]["worst"]["average_drop"] for one in (tables, groups))
        assert worst["group"] == theirs["group"]
        assert worst["gap"] == pytest.approx(theirs["gap"], rel=1e-9)
        assert samples.bincount().tolist() == total[:3]


def test_evaluate_passes_group_and_labels(net, images):
    data = list(zip(images, LABELS.tolist(), [GROUPS[number] for number in GROUP], strict=True))
    comparison = grouped(net)
    values = evaluate(
        comparison,
        data,
        inputs=lambda batch: {"input_tensor": batch[0], "labels": batch[1], "group": list(batch[2])},
        batch_size=7,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    alone = grouped(net)
    alone.update(images, group=GROUP, labels=LABELS)
    torch.testing.assert_close(values, alone.compute(), rtol=1e-5, atol=1e-7)
    assert comparison.group_count.tolist() == alone.group_count.tolist()
