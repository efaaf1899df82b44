"""CAMComparison: many methods in one pass, with the numbers of the single metrics."""

import itertools
import json
import pickle
from collections import Counter
from dataclasses import replace

import captum.attr
import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
from conftest import Calls, HostSyncs, small_net
from matplotlib.figure import Figure
from processes import results_of
from restoration import CONTEXTS, Fragile, traces
from scipy import special, stats
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from torchmetrics_cam import AverageDrop, AverageGain, CAMComparison, IncreaseInConfidence, agreement
from torchmetrics_cam.cams import (
    CallableSource,
    EdgeMap,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    PrecomputedMaps,
    PytorchGradCAMSource,
    RandomWeightsCAM,
    SourceMaps,
    UniformMap,
    XGradCAM,
)
from torchmetrics_cam.functional import average_drop, average_gain
from torchmetrics_cam.metrics.measures import MEASURES

SINGLE = {
    "average_drop": AverageDrop,
    "increase_in_confidence": IncreaseInConfidence,
    "average_gain": AverageGain,
}
CONTROLS = ("uniform map", "random map", "center map")


def input_gradient(model, images, class_idx):
    scores = model(images).gather(1, class_idx[:, None]).sum()
    return torch.autograd.grad(scores, images)[0].abs().sum(1)


def own(net):
    return {
        "Grad-CAM": GradCAM(net, "body"),
        "Grad-CAM++": GradCAMPlusPlus(net, ["stem", "body"]),
        "Layer-CAM": LayerCAM(net, "stem"),
        "random weights": RandomWeightsCAM(net, "stem.0"),
    }


def foreign(net):
    return {
        "torchcam": torchcam.methods.LayerCAM(net, "body"),
        "Score-CAM": torchcam.methods.ScoreCAM(net, "body"),
        "pytorch-grad-cam": pytorch_grad_cam.GradCAMPlusPlus(net, [net.body]),
        "Ablation-CAM": pytorch_grad_cam.AblationCAM(net, [net.body]),
        "captum": captum.attr.LayerGradCam(net, net.body),
        "gradient": CallableSource(net, input_gradient),
    }


DTYPE = torch.float32  # of the fixtures net and images
IMAGES = (12, 3, 12, 12)  # the shape of the fixture images


# The numbers


@pytest.mark.parametrize("batch_size", [None, 1, 5, 64])
@pytest.mark.parametrize(
    "make", [own, lambda net: {**foreign(net), **own(net)}], ids=["own", "foreign and own"]
)
def test_the_numbers_are_those_of_the_single_metrics(make, batch_size, net, images):
    sources = make(net)
    comparison = CAMComparison(sources, batch_size=batch_size)
    expected = {
        f"{method}/{measure}": metric(source)
        for method, source in comparison.sources.items()
        for measure, metric in SINGLE.items()
    }
    for batch in images.split(5):
        comparison.update(batch)
        for metric in expected.values():
            metric.update(batch)
    values = comparison.compute()
    assert set(values) == {key + end for key in expected for end in ("", "_lower", "_upper")}
    for key, metric in expected.items():
        assert values[key].item() == pytest.approx(metric.compute().item(), rel=1e-6, abs=1e-6)
        assert values[f"{key}_lower"] <= values[key] <= values[f"{key}_upper"]
    drops = [values[f"{method}/average_drop"].item() for method in sources]
    assert len({round(drop, 4) for drop in drops}) > len(drops) / 2
    assert torch.equal(comparison.count.diagonal(), torch.full((len(comparison.methods),), 12))


@pytest.mark.parametrize("settings", [{"batch_size": 1}, {"scorer": None}], ids=["chunks", "scorer"])
def test_a_mask_that_hides_nothing_leaves_the_score_to_the_last_bit(settings, net, images):
    """Other kernels round otherwise, and half of the images would seem to gain."""
    if "scorer" in settings:
        settings = {"scorer": lambda images: net(images) * (1 + 1e-6)}
    for metric in (IncreaseInConfidence, AverageDrop, AverageGain):
        single = metric(UniformMap(net), **settings)
        single.update(images)
        assert single.compute() == 0


def test_the_order_of_methods_and_images_does_not_matter(net, images):
    forwards, backwards = CAMComparison(own(net)), CAMComparison(dict(reversed(own(net).items())))
    forwards.update(images)
    for batch in images.flip(0).split(5):
        backwards.update(batch)
    torch.testing.assert_close(forwards.compute(), dict(backwards.compute()), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "settings", [{"class_idx": 2}, {"class_idx": [0, 1, 2] * 4}, {"targets": lambda s: s[0] * 2}]
)
@pytest.mark.parametrize("protocol", ["paper", "torchcam", "score_cam"])
def test_classes_targets_and_protocols(settings, protocol, net, images):
    sources = {**own(net), "torchcam": torchcam.methods.LayerCAM(net, "body")}
    comparison = CAMComparison(sources, nn.Softmax(1), protocol=protocol)
    comparison.update(images, **settings)
    for method, source in comparison.sources.items():
        single = AverageDrop(source, nn.Softmax(1), protocol=protocol)
        single.update(images, **settings)
        value = comparison.compute()[f"{method}/average_drop"]
        assert value.item() == pytest.approx(single.compute().item(), rel=1e-6, abs=1e-7)


def test_maps_that_are_handed_in_by_the_name_of_their_method(net, images):
    maps = {name: torch.rand(12, 4, 4) for name in ("first", "second")}
    comparison = CAMComparison({name: PrecomputedMaps(net) for name in maps} | own(net))
    comparison.update(images, cams=maps)
    for name, made in maps.items():
        single = AverageDrop(PrecomputedMaps(net))
        single.update(images, cams=made)
        value = comparison.compute()[f"{name}/average_drop"]
        assert value.item() == pytest.approx(single.compute().item(), rel=1e-6)
    alone = CAMComparison({"mine": PrecomputedMaps(net)})
    alone.update(images, cams=maps["first"])
    assert alone.compute()["mine/average_drop"] == comparison.compute()["first/average_drop"]


@pytest.mark.parametrize("average", ["macro", "none"])
def test_values_of_classes_are_those_of_the_single_metrics(average, net, images):
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 4, 4, 4])
    comparison = CAMComparison(own(net), num_classes=5, average=average)
    for part, classes in zip(images.split(5), labels.split(5), strict=True):
        comparison.update(part, class_idx=classes)
    for method, source in comparison.sources.items():
        for measure, metric in SINGLE.items():
            single = metric(source, num_classes=5, average=average)
            single.update(images, class_idx=labels)
            value, expected = comparison.compute()[f"{method}/{measure}"], single.compute()
            torch.testing.assert_close(
                value, expected, rtol=1e-6, atol=1e-7, equal_nan=True, check_dtype=False
            )
    shape = () if average == "macro" else (5,)
    difference = comparison.paired_difference("Grad-CAM", "Layer-CAM")
    assert difference.mean.shape == difference.p_value.shape == shape
    table = comparison.table()
    assert {row["n"] for row in table.rows} == {12}
    micro = CAMComparison(own(net))
    micro.update(images, class_idx=labels)
    if average == "none":
        assert [row["average_drop"] for row in table.rows] == [
            row["average_drop"] for row in micro.table().rows
        ]


# One pass


def test_gradient_cams_share_one_forward_and_one_backward_pass(net, images, monkeypatch):
    sources = {
        "1": GradCAM(net, "body"), "2": GradCAMPlusPlus(net, "body"), "3": XGradCAM(net, "body"),
        "4": LayerCAM(net, ["stem", "body"]), "5": RandomWeightsCAM(net, "stem"), "6": EdgeMap(net),
    }  # fmt: skip
    backwards = []
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: backwards.append(1) or grad(*a, **k))
    for batch_size, expected in ((None, [12] * 7), (30, [12, 30, 30, 12]), (100, [12, 72])):
        backwards.clear()
        with Calls(net) as calls:
            CAMComparison(sources, controls=False, batch_size=batch_size).update(images)
        assert calls.batches == expected
        assert len(backwards) == 1


class Wavering(nn.Module):
    """It changes its mind from one forward pass to the next, as a network on a GPU may where two classes tie."""

    def __init__(self, net):
        super().__init__()
        self.net, self.passes = net, 0

    def forward(self, images):
        self.passes += 1
        return self.net(images).roll(self.passes, 1)


def test_what_is_explained_is_decided_once(net, images):
    asked = []

    class Watched(torchcam.methods.LayerCAM):
        def __call__(self, class_idx, *arguments, **settings):
            asked.append(class_idx)
            return super().__call__(class_idx, *arguments, **settings)

    model = Wavering(net)
    sources = {"own": GradCAM(model, "net.body"), "torchcam": Watched(model, "net.body")}
    comparison = CAMComparison(sources, per_sample=True)
    comparison.update(images)
    first = (net(images).argmax(1) + 1) % 5
    assert comparison.samples()["class_idx"].tolist() == first.tolist()
    assert asked == [first.tolist()]


def test_methods_that_need_only_the_scores_have_no_pass_of_their_own(net, images):
    sources = {"Grad-CAM": GradCAM(net, "body"), "fn": CallableSource(net, lambda *_: torch.rand(12, 3, 3))}
    with Calls(net) as calls:
        CAMComparison(sources, controls=False).update(images)
    assert calls.batches == [12] * 3
    with Calls(net) as calls:
        CAMComparison({"fn": sources["fn"]}, controls=False).update(images)
    assert calls.batches == [12] * 2


def test_an_update_with_own_sources_does_not_wait_for_the_device(net, images):
    comparison = CAMComparison(own(net) | {"edges": EdgeMap(net)})
    comparison.update(images)
    with HostSyncs() as syncs:
        comparison.update(images)
        comparison.update(images, class_idx=2)
    assert syncs.seen == []
    with HostSyncs() as syncs:
        comparison.compute()
    assert syncs.seen != []


def test_extractors_of_other_libraries_are_silent_in_the_passes_of_others(net, images):
    extractor = torchcam.methods.GradCAM(net, "relu")
    alone = AverageDrop(extractor)
    alone.update(images)
    library = pytorch_grad_cam.GradCAM(net, [net.relu])
    comparison = CAMComparison(
        {"own": GradCAM(net, "relu"), "torchcam": extractor, "pytorch-grad-cam": library}
    )
    comparison.update(images)
    assert comparison.compute()["torchcam/average_drop"].item() == pytest.approx(
        alone.compute().item(), rel=1e-6
    )
    assert library.activations_and_grads.activations == []
    assert extractor.hook_a == [None]
    # The three libraries give the same map, and the table says so.
    own_row = next(row for row in comparison.table().rows if row["method"] == "own")
    assert own_row["coincides_with"] == ["torchcam", "pytorch-grad-cam"]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("fails_at", [0, 1, 2, 3, 6])
def test_an_update_leaves_no_trace(context, fails_at):
    net = small_net().float()
    model = Fragile(net).train()
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    sources = {
        "own": GradCAM(model, "net.body"),
        "torchcam": torchcam.methods.GradCAM(model, "net.body"),
        "pytorch-grad-cam": pytorch_grad_cam.GradCAM(model, [net.body]),
        "fn": CallableSource(model, input_gradient),
    }
    # Making an object of pytorch-grad-cam switches to evaluation mode.
    model.train()
    comparison = CAMComparison(sources, controls=False)
    model.calls, model.fails_at = 0, fails_at
    with CONTEXTS[context]():
        images = torch.rand(3, 3, 10, 10)
        before = traces(model, images)
        if fails_at:
            with pytest.raises(ArithmeticError, match="on purpose"):
                comparison.update(images)
        else:
            comparison.update(images)
        after = traces(model, images)
    for what in before:
        assert after[what] == before[what], what
    assert int(comparison.count[0, 0]) == comparison.update_count * 3 == (0 if fails_at else 3)
    comparison.clone()


# Statistics


def test_methods_that_are_one_map_on_this_network_are_not_ranked(images):
    """Global average pooling and one linear layer: the gradient is the same at every position."""
    torch.manual_seed(0)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head)
    model[-1].weight.data.mul_(30)
    methods = {"Grad-CAM": GradCAM, "Layer-CAM": LayerCAM, "XGrad-CAM": XGradCAM, "HiRes-CAM": HiResCAM}
    comparison = CAMComparison({name: method(model, "1") for name, method in methods.items()}, controls=False)
    comparison.update(images)
    table = comparison.table()
    rows = {row["method"]: row for row in table.rows}
    assert rows["Grad-CAM"]["coincides_with"] == ["XGrad-CAM", "HiRes-CAM"]
    assert rows["Layer-CAM"]["coincides_with"] == []
    ranks = {method: row["average_drop"]["rank"] for method, row in rows.items()}
    assert ranks["Grad-CAM"] == ranks["XGrad-CAM"] == ranks["HiRes-CAM"]
    assert {ranks["Grad-CAM"], ranks["Layer-CAM"]} in ({1, 2}, {1, 4})
    assert comparison.paired_difference("Grad-CAM", "XGrad-CAM").p_value == 1
    assert "Grad-CAM, HiRes-CAM and XGrad-CAM coincide" in str(table)


def test_statistics_are_those_of_the_samples(net, images):
    comparison = CAMComparison(own(net), per_sample=True)
    for batch in images.split(5):
        comparison.update(batch)
    kept = comparison.samples()
    first, second = (
        kept["average_drop"][:, comparison.methods.index(name)] for name in ("Grad-CAM", "Layer-CAM")
    )
    difference = comparison.paired_difference("Grad-CAM", "Layer-CAM")
    apart = (first - second).numpy()
    assert difference.mean.item() == pytest.approx(apart.mean(), rel=1e-9)
    test = stats.ttest_1samp(apart, 0)
    expected = test.confidence_interval()
    assert [difference.lower.item(), difference.upper.item()] == pytest.approx(list(expected), rel=1e-6)
    assert difference.p_value.item() == pytest.approx(test.pvalue, rel=1e-6)
    assert difference.count == 12
    wins, ties = comparison.win_rate("average_drop")
    assert wins[0, 2].item() == pytest.approx((first < second).double().mean().item())
    assert ties[0, 2] == 0
    mean, margin = first.mean().item(), stats.t.ppf(0.975, 11) * stats.sem(first.numpy())
    lower = special.expit(special.logit(mean) - margin / (mean * (1 - mean)))
    assert comparison.compute()["Grad-CAM/average_drop_lower"].item() == pytest.approx(lower, rel=1e-6)


def test_values_that_differ_by_rounding_errors_tie_and_this_is_documented(net, images):
    values = {"map": 0.5, "rounded": 0.5 + 5e-7, "higher": 0.5 + 5e-6}
    sources = {name: UniformMap(net, value) for name, value in values.items()}
    comparison = CAMComparison(sources, measures=["complexity"], controls=False)
    comparison.update(images)
    wins, ties = comparison.win_rate()
    assert wins.tolist() == [[0, 0, 1], [0, 0, 1], [0, 0, 0]]
    assert ties.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert "tie on an image if their values differ by at most 1e-6" in " ".join(
        CAMComparison.win_rate.__doc__.split()
    )


def test_a_map_that_is_not_finite_leaves_its_method_and_its_pairs_alone(net, images):
    def broken(model, images, class_idx):
        maps = torch.rand(len(images), 4, 4)
        maps[3] = torch.nan
        return maps

    comparison = CAMComparison({"Grad-CAM": GradCAM(net, "body"), "broken": CallableSource(net, broken)})
    comparison.update(images)
    assert comparison.count[:2, :2].tolist() == [[12, 11], [11, 11]]
    assert comparison.nan_count.tolist() == [0, 1, 0, 0, 0]
    assert comparison.degenerate_count.tolist() == [0, 0, 12, 0, 0]
    single = AverageDrop(GradCAM(net, "body"))
    single.update(images)
    assert comparison.compute()["Grad-CAM/average_drop"].item() == pytest.approx(
        single.compute().item(), rel=1e-6
    )
    row = next(row for row in comparison.table().rows if row["method"] == "broken")
    assert (row["n"], row["excluded"], row["degenerate"]) == (11, 1, 0)


def test_the_size_of_the_states_does_not_depend_on_the_number_of_images(net, images):
    comparison = CAMComparison(own(net))
    sizes = []
    for _ in range(3):
        comparison.update(images)
        sizes.append({name: getattr(comparison, name).shape for name in comparison._defaults})
    assert sizes[0] == sizes[1] == sizes[2]
    assert "records" not in sizes[0]


def test_what_is_kept_of_each_image(net, images):
    comparison = CAMComparison(own(net), measures=["average_gain", "average_drop"], per_sample=True)
    comparison.update(images[:5], class_idx=3)
    comparison.update(images[5:], index=torch.arange(100, 107))
    kept = comparison.samples()
    assert kept["index"].tolist() == [*range(5), *range(100, 107)]
    assert kept["class_idx"].tolist() == [3] * 5 + net(images[5:]).argmax(1).tolist()
    torch.testing.assert_close(kept["score"][:5].float(), net(images[:5]).softmax(1)[:, 3])
    for measure in ("average_drop", "average_gain"):
        formula = {"average_drop": average_drop, "average_gain": average_gain}[measure]
        expected = formula(kept["score"], kept["masked_score"][:, 1], reduction="none")
        torch.testing.assert_close(kept[measure][:, 1], expected, rtol=1e-5, atol=1e-7)
    assert kept["valid"].all()
    assert kept["valid"].shape == (12, 7)
    assert kept["average_drop"].mean(0)[0].item() == pytest.approx(
        comparison.compute()["Grad-CAM/average_drop"].item(), rel=1e-6
    )


@pytest.mark.parametrize("shift", [0, 1])
def test_the_interval_of_scores_has_the_range_of_probabilities_only_for_probabilities(net, images, shift):
    comparison = CAMComparison(
        own(net), lambda output: output.softmax(1) + shift, measures=["deletion_auc"], per_sample=True
    )
    comparison.update(images)
    values = comparison.samples()["deletion_auc"][:, 0].numpy()
    mean, margin = values.mean(), stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    expected = [mean - margin, mean + margin]
    if shift == 0:
        expected = special.expit(special.logit(mean) + np.array([-1, 1]) * margin / (mean * (1 - mean)))
    found = comparison.compute()
    name = f"{comparison.methods[0]}/deletion_auc"
    assert [found[f"{name}{end}"].item() for end in ("_lower", "_upper")] == pytest.approx(expected, rel=1e-5)


def test_the_table_for_people_and_for_programs(net, images):
    comparison = CAMComparison(own(net), batch_size=4)
    comparison.update(images)
    table = comparison.table()
    result = json.loads(table.to_json())
    assert result["protocol"]["name"] == "paper"
    assert result["model"] == "SmallNet"
    assert [row["method"] for row in result["rows"]] == [row["method"] for row in table.rows]
    drops = [row["average_drop"]["value"] for row in result["rows"]]
    assert drops == sorted(drops)
    by_method = {row["method"]: row for row in result["rows"]}
    assert by_method["Grad-CAM"]["source"] == "GradCAM(SmallNet, body)"
    assert [row["method"] for row in result["rows"] if row["control"]] == sorted(
        CONTROLS, key=lambda name: by_method[name]["average_drop"]["value"]
    )
    text = str(table)
    # No image in 12 has a drop, so that 1 - .025^(1/12) of all images could.
    assert "| control: uniform map | 0.000 (0.000 to 0.265) |" in text
    assert "Average Drop: of the 95 % intervals of 10 images, 92.1 % contained the true mean" in text
    assert "Protocol paper: scores=softmax" in text
    figure, axes = comparison.plot()
    assert isinstance(figure, Figure)
    assert len(axes) == 3
    values = comparison.compute()
    assert comparison.plot(values, axes)[0] is figure
    drawn = {text.get_text() for text in axes[0].get_yticklabels()}
    assert drawn == {*comparison.methods}
    _, (drop, _, _) = comparison.plot([values, comparison(images), values])
    lines = {line.get_label(): list(line.get_ydata()) for line in drop.get_lines()}
    expected = values["Grad-CAM/average_drop"].item()
    assert lines["Grad-CAM"] == pytest.approx([expected] * 3)
    with pytest.raises(ValueError, match="val has no 'Grad-CAM/average_drop'; pass what compute"):
        comparison.plot({"drop": values["Grad-CAM/average_drop"]})
    with pytest.raises(ValueError, match="ax holds 1 axes; give one for each of the 3 measures"):
        comparison.plot(ax=axes[0])


@pytest.mark.filterwarnings("ignore:.*was called before the ``update`` method")
def test_without_an_image_everything_is_unknown(net):
    comparison = CAMComparison(own(net), per_sample=True)
    assert all(value.isnan() for value in comparison.compute().values())
    table = comparison.table()
    assert {row["average_drop"]["value"] for row in table.rows} == {None}
    assert "| Grad-CAM | - | - | - | 0 | 0 | 0 |" in str(table)
    assert len(comparison.samples()["index"]) == 0
    comparison.plot()


# As a Metric


def test_forward_clone_pickle_reset_and_merge(net, images):
    comparison = CAMComparison(own(net), per_sample=True)
    first = comparison(images[:5])
    comparison(images[5:])
    whole, part = CAMComparison(own(net), per_sample=True), CAMComparison(own(net), per_sample=True)
    whole.update(images)
    torch.testing.assert_close(comparison.compute(), whole.compute(), rtol=1e-6, atol=1e-9)
    assert comparison.samples()["index"].tolist() == list(range(12))
    part.update(images[:5])
    torch.testing.assert_close(part.compute(), first)
    clone, unpickled = comparison.clone(), pickle.loads(pickle.dumps(comparison))
    assert clone.model is net
    for copy in (clone, unpickled):
        torch.testing.assert_close(copy.compute(), comparison.compute())
    assert comparison.state_dict() == {}
    part.merge_state(clone)
    assert int(part.count[0, 0]) == 17
    with pytest.raises(ValueError, match=r"a metric with methods=.* cannot be merged into one with methods="):
        part.merge_state(CAMComparison({"one": GradCAM(net, "body")}, per_sample=True))
    comparison.reset()
    comparison.update(images[:2])
    assert comparison.samples()["index"].tolist() == [0, 1]
    assert repr(comparison).startswith(
        "CAMComparison({'Grad-CAM': GradCAM(SmallNet, body), 'Grad-CAM++': Grad"
    )
    assert repr(comparison).endswith("'center map': CenterMap(SmallNet)}, protocol='paper')")


def test_in_a_collection_beside_accuracy(net, images):
    labels = torch.arange(12) % 5
    collection = MetricCollection({"accuracy": MulticlassAccuracy(5), "cams": CAMComparison(own(net))})
    collection.update(preds=net(images), target=labels, input_tensor=images)
    alone = CAMComparison(own(net))
    alone.update(images)
    value = collection.compute()["Grad-CAM/average_drop"]
    assert value == alone.compute()["Grad-CAM/average_drop"]


def test_comparisons_of_other_measures_or_layers_never_merge(net, images):
    sources = {"uniform": UniformMap(net)}
    comparisons = {
        "drop": CAMComparison(sources, measures=["average_drop"], controls=False),
        "gain": CAMComparison(sources, measures=["average_gain"], controls=False),
        "same": CAMComparison(sources, measures=["average_drop"], controls=False),
    }
    collection = MetricCollection(comparisons)
    collection.update(images)
    assert sorted(map(sorted, collection.compute_groups.values())) == [["drop", "same"], ["gain"]]


def test_a_merge_that_is_refused_changes_nothing(net, images):
    comparison, other = CAMComparison(own(net), per_sample=True), CAMComparison(own(net))
    for one in (comparison, other):
        one.update(images)
    with pytest.raises(
        ValueError, match="a metric with per_sample=False cannot be merged into one with per_sample=True"
    ):
        comparison.merge_state(other)
    state = other.metric_state
    with pytest.raises(ValueError, match=r"the states to merge lack \['records'\]"):
        comparison.merge_state(state)
    assert int(comparison.count[0, 0]) == 12


class Parts(nn.Module):
    """A model of two outputs."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)

    def forward(self, images):
        features = self.body(images).relu()
        return {"out": self.head(features), "aux": features}


def test_no_graph_of_an_output_in_parts_is_kept():
    model = Parts().eval()
    comparison = CAMComparison({"Grad-CAM": GradCAM(model, "body")}, nn.Identity(), per_sample=True)
    comparison(torch.rand(2, 3, 8, 8), targets=lambda output: output["out"].softmax(0)[1].mean())
    assert not any(value.requires_grad for value in comparison._forward_cache.values())
    assert not comparison.records[0].requires_grad
    comparison.clone()


def test_two_settings_of_one_object_of_another_library(net, images):
    cam = pytorch_grad_cam.GradCAM(net, [net.body])
    sources = {
        "plain": cam,
        "smooth": PytorchGradCAMSource(cam, aug_smooth=True),
        "again": GradCAM(net, "body"),
    }
    comparison = CAMComparison(sources, controls=False)
    comparison.update(images)
    for method, source in sources.items():
        single = AverageDrop(source)
        single.update(images)
        value = comparison.compute()[f"{method}/average_drop"]
        assert value.item() == pytest.approx(single.compute().item(), rel=1e-5)


def test_a_source_with_a_graph_to_the_images_has_a_pass_of_its_own(net, images):
    class Whole(LayerCAM):
        graph = "input"

        @property
        def layers(self):
            return ()

        def maps(self, clean):
            (gradient,) = torch.autograd.grad(
                clean.selector.select(clean.explained_output).sum(), clean.scores.raw
            )
            return SourceMaps([gradient.sum(1)[:, None, None] + clean.images.sum(1)])

    comparison = CAMComparison({"whole": Whole(net, "body"), "Grad-CAM": GradCAM(net, "body")})
    comparison.update(images)
    single = AverageDrop(GradCAM(net, "body"))
    single.update(images)
    assert comparison.compute()["Grad-CAM/average_drop"].item() == pytest.approx(
        single.compute().item(), rel=1e-6
    )


def test_a_method_without_a_valid_image_coincides_with_none(net, images):
    broken = CallableSource(net, lambda _model, images, _classes: images[:, 0] * torch.nan)
    comparison = CAMComparison({"Grad-CAM": GradCAM(net, "body"), "broken": broken})
    comparison.update(images)
    table = comparison.table()
    assert all(row["coincides_with"] == [] for row in table.rows)
    assert "of the 95 % intervals of 10 images" in str(table)
    assert {row["method"]: row["average_drop"]["rank"] for row in table.rows}["broken"] is None


def test_where_measures_disagree_people_see_it(net, images):
    measures = ["average_drop", "complexity", "drop_in_deletion", "average_gain"]
    comparison = CAMComparison(own(net), measures=measures)
    comparison.update(images)
    table = comparison.table()
    found = agreement(table)
    rows = [row for row in table.rows if not row["control"]]
    columns = {
        name: [row[name]["value"] * (1 if MEASURES[name].higher_is_better else -1) for row in rows]
        for name in measures
    }
    for first, second in itertools.product(measures[:3], repeat=2):
        expected = stats.spearmanr(columns[first], columns[second]).statistic
        assert found[first][second] == pytest.approx(expected, abs=1e-6)
    # No image gains anything here.
    assert set(columns["average_gain"]) == {0}
    assert found["average_gain"]["complexity"] is None
    assert "Average Drop and Complexity " in str(table)
    assert json.loads(table.to_json())["agreement"].keys() == set(measures)
    two = CAMComparison({"one": GradCAM(net, "body"), "other": LayerCAM(net, "body")}, measures=measures)
    two.update(images)
    assert agreement(two.table()) == {}
    assert "Agreement" not in str(two.table())


def test_the_table_says_what_made_the_scores_and_which_classes_have_one_image(net, images):
    comparison = CAMComparison(own(net), torch.sigmoid, num_classes=5, average="macro")
    comparison.update(images, class_idx=[0] * 6 + [1] * 5 + [2])
    text = str(comparison.table())
    assert "Scores by logits_fn=sigmoid, not the protocol's." in text
    assert "1 classes have one image, so a mean over classes has no interval." in text
    assert json.loads(comparison.table().to_json())["logits_fn"] == "sigmoid"
    assert comparison.paired_difference("Grad-CAM", "Layer-CAM").count == 12


MESSAGES = {
    "one source twice": (
        lambda net: CAMComparison(dict.fromkeys(["one", "other"], PrecomputedMaps(net))),
        ValueError,
        "'one' and 'other' are one source; give each source one name",
    ),
    "no names": (lambda net: CAMComparison([GradCAM(net, "body")]), TypeError, "give each a name, as in"),
    "two models": (
        lambda net: CAMComparison({"one": GradCAM(net, "body"), "other": GradCAM(small_net(), "body")}),
        ValueError,
        "'other' explains another model than 'one'; a comparison is of one model, so make one comparison for each model",
    ),
    "a control's name": (
        lambda net: CAMComparison({"random map": GradCAM(net, "body")}),
        ValueError,
        "'random map' is the name of a control; choose another, or pass controls=False",
    ),
    "a measure": (
        lambda net: CAMComparison(own(net), measures=["drop"]),
        ValueError,
        r"'drop' is no measure; available are \['average_drop'",
    ),
    "one name as measures": (
        lambda net: CAMComparison(own(net), measures="average_drop"),
        ValueError,
        "give a list of different names",
    ),
    "no scorer": (lambda net: CAMComparison(own(net), scorer=3), TypeError, "scorer is 3; it must be a callable"),
    "nothing kept": (lambda net: CAMComparison(own(net)).samples(), ValueError, "with per_sample=True"),
    "a method": (
        lambda net: CAMComparison(own(net)).paired_difference("Grad-CAM", "LIME"),
        ValueError,
        "'LIME' is no method; available are",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MESSAGES)
def test_what_cannot_be_is_refused_kindly(case, net):
    make, error, message = MESSAGES[case]
    with pytest.raises(error, match=message):
        make(net)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"index": [1, 2]},
            r"index is torch.int64 of shape \(2,\); give one integer for each of the 12 images",
        ),
        ({"cams": torch.rand(12, 3, 3)}, "cams is one tensor, and 0 sources take maps"),
        ({"cams": {"LIME": torch.rand(12, 3, 3)}}, "'LIME' is no method; available are"),
        ({"cams": {"Grad-CAM": torch.rand(12, 3, 3)}}, "cams was passed, but GradCAM"),
        ({"class_idx": 9}, "the model has 5 classes"),
    ],
    ids=["index", "one tensor", "no method", "no taker", "no class"],
)
def test_a_refused_batch_changes_nothing(arguments, message, net, images):
    comparison = CAMComparison(own(net), per_sample=True)
    comparison.update(images[:3])
    before = comparison.compute()
    with pytest.raises(ValueError, match=message):
        comparison.update(images, **arguments)
    comparison._computed = None
    torch.testing.assert_close(comparison.compute(), before)
    assert comparison.update_count == 1
    comparison.update(images[3:])
    assert comparison.samples()["index"].tolist() == list(range(12))


def test_images_of_a_wrong_type_are_refused_before_their_index(net):
    with pytest.raises(TypeError, match="input_tensor is a NoneType; it must be a tensor"):
        CAMComparison(own(net)).update(None, index=[0])


# Over ranks


def on_a_rank(rank, world_size):
    """Three ranks, of which the last has no image."""
    images = torch.rand(12, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    comparison = CAMComparison(own(small_net().float()), per_sample=True)
    for batch in ([images[:5], images[5:7]], [images[7:]], [])[rank]:
        first = {5: 0, 2: 5}[len(batch)] if rank == 0 else 7
        comparison.update(batch, index=range(first, first + len(batch)))
    with pytest.raises(ValueError, match="no measure"):
        comparison.win_rate("LIME")
    assert not comparison._is_synced
    found = comparison.compute(), comparison.samples(), comparison.win_rate(), comparison.table().to_json()
    comparison.update(images[:2] if rank else images[2:])
    # Both ranks counted from 0.
    assert (comparison.samples()["index"] == -1).sum() == 14
    return found


def test_ranks_give_the_numbers_of_one_process(tmp_path, net, images):
    expected = CAMComparison(own(net), per_sample=True)
    expected.update(images)
    for values, samples, (wins, _), table in results_of(on_a_rank, 3, tmp_path):
        torch.testing.assert_close(values, expected.compute(), rtol=1e-6, atol=1e-9)
        assert torch.equal(wins, expected.win_rate()[0])
        assert sorted(samples["index"].tolist()) == list(range(12))
        order = samples["index"].argsort()
        torch.testing.assert_close(
            samples["average_drop"][order], expected.samples()["average_drop"], rtol=1e-5, atol=1e-7
        )
        assert {row["n"] for row in json.loads(table)["rows"]} == {12}


class Operations(TorchDispatchMode):
    """Count the operations of torch inside the context, by name."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count[operation.overloadpacket.__name__] += 1
        return operation(*args, **kwargs or {})


def test_the_extremes_of_each_map_are_computed_once(net, images):
    sources = {str(index): CallableSource(net, input_gradient) for index in range(5)}
    comparison = CAMComparison(sources, controls=False)
    with Operations() as operations, comparison.explained(images):
        pass
    # Those of the images are computed too.
    assert operations.count["amin"] == operations.count["amax"] == 6


def test_a_row_for_each_image_takes_no_more_operations_for_more_methods(net, images):
    counts = []
    for methods in (2, 9):
        sources = {str(index): UniformMap(net, index / 10) for index in range(methods)}
        comparison = CAMComparison(sources, controls=False, per_sample=True)
        with Operations() as operations, comparison.explained(images) as batch:
            assert len(batch.masked_scores) == methods
            before = sum(operations.count.values())
            comparison.accumulate(batch)
            counts.append(sum(operations.count.values()) - before)
        assert comparison.samples()["masked_score"].tolist() == batch.masked_scores.T.tolist()
    assert counts[0] == counts[1]


def test_values_of_scores_are_computed_for_all_methods_at_once(net, images):
    names = ["average_drop", "relative_drop", "increase_in_confidence", "average_gain", "drop_in_deletion"]
    comparison = CAMComparison(own(net), measures=names)
    calls = []

    def counted(measure):
        return replace(measure, values=lambda batch: calls.append(measure.name) or measure.values(batch))

    comparison.measures = tuple(map(counted, comparison.measures))
    comparison.update(images)
    assert calls == names
