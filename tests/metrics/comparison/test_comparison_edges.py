"""Comparisons at their edges: what a method, a measure, a scorer or a broken image must not do to the others."""

import copy
import math
from functools import partial

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchcam
from conftest import Calls, HostSyncs, small_net
from torch import nn

from torchmetrics_cam import (
    AverageDrop,
    CAMComparison,
    ClassificationMetric,
    DeletionAUC,
    EvaluationProtocol,
)
from torchmetrics_cam.cams import CallableSource, CenterMap, GradCAM, UniformMap
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.model import random_numbers

PAPER = EvaluationProtocol.preset("paper")
DTYPE = torch.float32  # of the fixtures net and images
IMAGES = (12, 3, 12, 12)  # the shape of the fixture images


class Standardized(nn.Module):
    """A network that standardizes each image itself, and so has no score for an image of one color."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images):
        mean, deviation = (one((1, 2, 3), keepdim=True) for one in (images.mean, images.std))
        return self.net((images - mean) / deviation)


def test_hooks_of_others_are_silent_where_masked_images_are_explained_anew(net, images):
    extractor, library = torchcam.methods.GradCAM(net, "relu"), pytorch_grad_cam.GradCAM(net, [net.relu])
    sources = {"torchcam": extractor, "pytorch-grad-cam": library, "own": GradCAM(net, "relu")}
    comparison = CAMComparison(sources, measures=["coherency", "adcc"])
    for _ in range(2):
        comparison.update(images)
    assert library.activations_and_grads.activations == []
    assert library.activations_and_grads.gradients == []
    assert extractor.hook_a == [None]
    copy.deepcopy(net)


def test_hooks_are_silent_where_scorer_and_model_are_compared(net, images):
    extractor, library = torchcam.methods.GradCAM(net, "relu"), pytorch_grad_cam.GradCAM(net, [net.relu])
    sources = {"torchcam": extractor, "pytorch-grad-cam": library}
    CAMComparison(sources, scorer=lambda batch: net(batch)).update(images)
    assert library.activations_and_grads.activations == []
    assert extractor.hook_a == [None]


def test_scorer_and_model_are_compared_in_chunks(net, images):
    scorer = copy.deepcopy(net)
    with Calls(scorer) as calls:
        AverageDrop(GradCAM(net, "body"), scorer=scorer, batch_size=5).update(images)
    assert calls.batches == [5, 5, 2, 5, 5, 2]


def test_a_raw_score_near_zero_may_have_its_rounding(images):
    def model(batch):
        return torch.tensor([[10.0, 1e-3]]).expand(len(batch), 2)

    class Fixed(nn.Module):
        def forward(self, batch):
            return model(batch)

    metric = ClassificationMetric(UniformMap(Fixed()), scorer=lambda batch: model(batch) + 1e-5)
    metric.update(images, class_idx=[0, 1] * 6)
    assert metric.total == 12
    wrong = ClassificationMetric(UniformMap(Fixed()), scorer=lambda batch: model(batch) + 0.1)
    with pytest.raises(ValueError, match="scorer and model disagree"):
        wrong.update(images, class_idx=[0, 1] * 6)


def test_a_curve_that_nobody_asked_for_leaves_out_no_image(net, images):
    """Deletion ends at an image of zeros, of which this network has no score; insertion begins at a blur."""
    model = Standardized(net)
    excluded = {}
    for measure in ("insertion_auc", "deletion_auc"):
        comparison = CAMComparison({"center": CenterMap(model)}, measures=[measure], controls=False)
        comparison.update(images)
        excluded[measure] = comparison.nan_count.tolist()
    assert excluded == {"insertion_auc": [0], "deletion_auc": [12]}


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_an_image_without_a_value_of_one_measure_counts_for_the_others(average, net, images):
    constant = [image.clone() for image in images[:3]]

    def partly_constant(model, batch, class_idx):
        varies = [not any(torch.equal(image, one) for one in constant) for image in batch]
        return batch.mean(1) * torch.tensor(varies).view(-1, 1, 1)

    sources = {"Grad-CAM": GradCAM(net, "body"), "partly": CallableSource(net, partly_constant)}
    settings = {"average": average, "num_classes": None if average == "micro" else 5}
    measures = ["average_drop", "single_deletion"]
    comparison = CAMComparison(sources, measures=measures, per_sample=True, **settings)
    comparison.update(images[:5])
    comparison.update(images[5:])
    values = comparison.compute()
    rows = {row["method"]: row for row in comparison.table().rows}
    single = AverageDrop(sources["partly"], **settings)
    single.update(images)
    assert values["partly/average_drop"].item() == pytest.approx(single.compute().item(), rel=1e-6)
    assert values["uniform map/average_drop"] == 0
    assert values["uniform map/single_deletion"].isnan()
    ranks = CAMComparison({"partly": sources["partly"]}, measures=measures[1:], controls=False, **settings)
    ranks.update(images[3:])
    assert values["partly/single_deletion"].item() == pytest.approx(
        ranks.compute()["partly/single_deletion"].item()
    )
    assert [rows["partly"][name]["n"] for name in measures] == [12, 9]
    assert [rows["uniform map"][name]["n"] for name in measures] == [12, 0]
    assert {row["excluded"] for row in rows.values()} == {0}
    assert comparison.paired_difference("Grad-CAM", "partly", "single_deletion").count == 9
    assert comparison.samples()["single_deletion"][:3, 1].isnan().all()
    assert comparison.samples()["valid"].all()
    note = (
        "Single Deletion is not defined for every map: uniform map has a value on 0 of 12 images, partly has"
    )
    assert note in str(comparison.table())


def test_methods_that_a_measure_of_the_map_tells_apart_do_not_coincide(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 5))
    nn.init.zeros_(model[1].weight)
    sources = {"small": UniformMap(model, 0.2), "large": UniformMap(model, 0.9)}
    said, mapped = (
        CAMComparison(sources, measures=measures, controls=False)
        for measures in (["average_drop"], ["average_drop", "complexity"])
    )
    for comparison in (said, mapped):
        comparison.update(images)
    assert said.table().rows[0]["coincides_with"] == ["large"]
    difference = mapped.paired_difference("small", "large", "complexity")
    assert difference.mean.item() == pytest.approx(-0.7)
    assert difference.p_value < 0.05
    ranks = {row["method"]: row["complexity"]["rank"] for row in mapped.table().rows}
    assert ranks == {"small": 1, "large": 2}


@pytest.mark.parametrize("on_step", [False, True], ids=["one update a step", "two updates a step"])
def test_images_are_numbered_once_a_step(net, images, on_step, monkeypatch):
    comparison = CAMComparison(
        {"own": GradCAM(net, "body")}, controls=False, per_sample=True, dist_sync_on_step=on_step
    )
    comparison(images[:4])

    def fails():
        raise ArithmeticError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(comparison, "compute", fails)
        with pytest.raises(ArithmeticError, match="on purpose"):
            comparison(images[4:8])
    comparison(images[4:8])
    comparison.update(images[8:])
    assert comparison.samples()["index"].tolist() == list(range(12))


def kept(net):
    return CAMComparison({"own": GradCAM(net, "body")}, controls=False, per_sample=True)


def test_images_are_counted_on_after_a_state_dict_is_loaded(net, images):
    first, second = kept(net), kept(net)
    first.persistent(True)
    second.persistent(True)
    first.update(images[:5])
    second.load_state_dict(first.state_dict())
    second.update(images[5:])
    assert second.samples()["index"].tolist() == list(range(12))


def test_merged_shards_have_the_indices_that_were_given_and_no_others(net, images):
    first, second, third = kept(net), kept(net), kept(net)
    first.update(images[:2])
    first.update(images[2:4], index=[30, 31])
    second.update(images[4:8])
    second.update(images[8:], index=torch.tensor([7, 6, 5, 4]))
    third.merge_state(first)
    assert third.samples()["index"].tolist() == [0, 1, 30, 31]
    third.merge_state(kept(net))
    assert third.samples()["index"].tolist() == [0, 1, 30, 31]
    third.merge_state(second)
    samples = third.samples()
    assert sorted(samples["index"].tolist()) == [-1] * 6 + [4, 5, 6, 7, 30, 31]
    with torch.no_grad():
        scores = net(images).softmax(1).amax(1)
    for index, image in ((30, 2), (31, 3), (7, 8), (4, 11)):
        assert samples["score"][samples["index"] == index].item() == pytest.approx(scores[image].item())


def test_an_index_that_is_not_known_stays_so(net, images):
    comparison = kept(net)
    comparison.update(images[:3], index=[4, -1, 2])
    comparison.update(images[3:5])
    assert comparison.samples()["index"].tolist() == [4, -1, 2, 3, 4]


def test_the_row_of_an_image_that_does_not_count_has_no_values(net, images):
    comparison = CAMComparison({"own": GradCAM(net, "body")}, per_sample=True)
    images[2] = torch.nan
    comparison.update(images)
    samples = comparison.samples()
    assert samples["average_drop"][2].isnan().all()
    assert samples["valid"].sum() == 11 * 4
    expected = comparison.compute()["own/average_drop"].item()
    assert samples["average_drop"][:, 0].nanmean().item() == pytest.approx(expected, rel=1e-6)


def test_records_may_be_elsewhere_than_the_sums(net, images):
    """With ``compute_on_cpu=True`` they are on the CPU while the sums are on a GPU."""
    comparison = CAMComparison({"own": GradCAM(net, "body")}, per_sample=True)
    comparison.update(images)
    comparison.records = [record.to("meta") for record in comparison.records]
    assert comparison.samples()["score"].device.type == "meta"


def test_curves_and_colors_of_a_protocol_are_not_copied_from_the_host(net, images):
    protocol = PAPER.replace(curve_steps=3, baseline=(0.1, 0.2, 0.3), deletion_baseline=0.5)
    measures = ["average_drop", "deletion_auc", "insertion_auc"]
    comparison = CAMComparison({"own": GradCAM(net, "body")}, measures=measures, protocol=protocol)
    comparison.update(images)
    with HostSyncs() as syncs:
        comparison.update(images)
    assert syncs.seen == []
    assert syncs.copies == 0


def test_curves_of_scores_in_half_precision_are_taken_in_full(images):
    """In bfloat16 neighboring shares of many positions are one number."""
    softmax = partial(torch.softmax, dim=-1)
    metric = DeletionAUC(
        GradCAM(small_net().bfloat16(), "body"),
        softmax,
        protocol=PAPER.replace(curve_steps=144),
        batch_size=200,
    )
    metric.update(images.bfloat16())
    shares, scores = metric.curve()
    assert scores.isfinite().all()
    assert metric.compute().item() == pytest.approx(torch.trapezoid(scores, shares).item(), abs=1e-6)


def test_objects_are_checked_before_the_model_runs_also_where_no_measure_needs_them(net, images):
    comparison = CAMComparison({"own": GradCAM(net, "body")})
    with Calls(net) as calls:
        with pytest.raises(TypeError, match="objects is a ndarray; it must be a tensor"):
            comparison.update(images, objects=np.ones((12, 12, 12)))
        with pytest.raises(ValueError, match="objects has shape"):
            comparison.update(images, objects=torch.ones(12, 5, 5))
    assert calls.batches == []


def test_random_numbers_go_on_when_a_generator_joins_them(monkeypatch):
    """As that of a GPU, when model and metric move."""
    known = random_numbers._generators
    own, taken = random_numbers.RandomStream(), []

    def more(device):
        python, *others = known(device).items()
        return dict([python, ("another", (lambda: "begun", taken.append)), *others])

    torch.manual_seed(0)
    np.random.seed(0)
    expected = [np.random.rand() for _ in range(2)]
    np.random.seed(0)
    with own.drawn(torch.device("cpu")):
        first = np.random.rand()
    monkeypatch.setattr(random_numbers, "_generators", more)
    with own.drawn(torch.device("cpu")):
        second = np.random.rand()
    assert [first, second] == expected
    assert taken == ["begun", "begun"]


def test_of_many_pairs_of_measures_the_lowest_and_the_highest_agreements_are_listed(net, images):
    sources = {f"{value}": UniformMap(net, value) for value in (0.2, 0.5, 0.9)}
    names = [
        "average_drop",
        "average_gain",
        "drop_in_deletion",
        "deletion_auc",
        "insertion_auc",
        "complexity",
    ]
    comparison = CAMComparison({**sources, "Grad-CAM": GradCAM(net, "body")}, measures=names)
    comparison.update(images)
    (note,) = [line for line in str(comparison.table()).splitlines() if line.startswith("Agreement")]
    assert "(Spearman's rank correlation, the 5 lowest and the 5 highest of 15 pairs): " in note
    assert note.count(" and ") == 10 + 1


def test_only_measures_in_the_unit_of_the_map_lose_their_range_without_normalization():
    any_number = (-math.inf, math.inf)
    for rectify, changed in {
        "relu": {"complexity": (0, math.inf)},
        "abs": {"complexity": (0, math.inf)},
        "source": dict.fromkeys(("complexity", "adcc", "energy_pointing_game"), any_number),
    }.items():
        protocol = EvaluationProtocol(normalize="none", rectify=rectify)
        for name, measure in MEASURES.items():
            expected = changed.get(name, measure.value_range)
            assert measure.range_in(protocol) == expected, (rectify, name)
            assert measure.range_in(protocol.replace(normalize="after_resize")) == measure.value_range


def signed_maps(scale):
    return scale * (torch.rand(30, 12, 12, generator=torch.Generator().manual_seed(0)) - 0.4)


@pytest.mark.parametrize("rectify", ["relu", "abs", "source"])
def test_values_of_maps_that_are_not_normalized_stay_in_their_range(rectify):
    net = small_net().float()
    images = torch.rand(30, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    objects = torch.zeros(30, 12, 12, dtype=torch.bool)
    objects[:, :6] = True
    protocol = EvaluationProtocol(
        normalize="none", rectify=rectify, top_k=10, sensitivity_samples=2, pointing_tolerance=1
    )
    names = list(MEASURES)
    source = CallableSource(net, lambda model, images, class_idx: signed_maps(9)[: len(images)])
    comparison = CAMComparison(
        {"signed": source}, measures=names, controls=False, protocol=protocol, per_sample=True
    )
    comparison.update(images, objects=objects)
    samples, found = comparison.samples(), comparison.compute()
    for name, measure in MEASURES.items():
        low, high = measure.range_in(protocol)
        values = samples[name][torch.isfinite(samples[name])]
        assert ((values >= low - 1e-6) & (values <= high + 1e-6)).all(), name
        lower, upper = (found[f"signed/{name}_{bound}"] for bound in ("lower", "upper"))
        assert lower.isnan() or low <= lower <= upper <= high, name
