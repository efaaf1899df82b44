"""Deletion and insertion: by hand, against NumPy, torchcam and RISE's own procedure, and what a pass costs."""

from functools import partial

import numpy as np
import pytest
import torch
import torchcam.methods
import torchcam.metrics
from conftest import Calls, HostSyncs, small_net
from processes import results_of
from scipy import special, stats
from scipy.integrate import trapezoid
from torch import nn
from torchmetrics import MetricCollection

from torchmetrics_cam import (
    AverageDrop,
    CAMComparison,
    DeletionAUC,
    EvaluationProtocol,
    InsertionAUC,
    SymmetricRelevanceGain,
)
from torchmetrics_cam.cams import GradCAM, LayerCAM, PrecomputedMaps
from torchmetrics_cam.functional.curves import (
    area_under_curve,
    perturbed_counts,
    position_ranks,
    resampled_curve,
)

SOFTMAX = partial(torch.softmax, dim=-1)
PAPER = EvaluationProtocol.preset("paper")
ZEROS = PAPER.replace(insertion_baseline=0.0)
DTYPE = torch.float32  # of the fixtures net and images
IMAGES = (5, 3, 12, 12)  # the shape of the fixture images


class Sum(nn.Module):
    """The score of class 0 is the sum of the pixels, so a curve can be worked out by hand."""

    def forward(self, images):
        total = images.flatten(1).sum(1)
        return torch.stack([total, torch.zeros_like(total)], 1)


@pytest.mark.parametrize("baseline", [0.0, 1.0])
def test_by_hand(baseline):
    images = torch.tensor([[[[4.0, 3.0], [2.0, 1.0]]]])
    maps = torch.tensor([[[0.9, 0.1], [0.5, 0.5]]])
    protocol = PAPER.replace(curve_steps=4, deletion_baseline=0.0, insertion_baseline=baseline)
    deletion, insertion = (
        metric(PrecomputedMaps(Sum()), nn.Identity(), protocol=protocol)
        for metric in (DeletionAUC, InsertionAUC)
    )
    for metric in (deletion, insertion):
        metric.update(images, class_idx=0, cams=maps)
    # Of the two equal positions the first in row-major order, the 2, goes first.
    assert deletion.curve()[1].tolist() == [10, 6, 4, 3, 0]
    assert deletion.compute() == (10 / 2 + 6 + 4 + 3) / 4
    shown = [4 * baseline, 4 + 3 * baseline, 6 + 2 * baseline, 7 + baseline, 10]
    assert insertion.curve()[1].tolist() == shown
    assert insertion.compute().item() == pytest.approx((shown[0] / 2 + sum(shown[1:-1]) + shown[-1] / 2) / 4)
    assert deletion.curve()[0].tolist() == [0, 0.25, 0.5, 0.75, 1]


def reference(model, images, maps, classes, steps, gone, shown):
    """Both areas of each image, in NumPy, one forward pass a point."""
    areas = []
    for image, saliency, index in zip(images.numpy(), maps.numpy(), classes, strict=True):
        order = np.argsort(-saliency.ravel(), kind="stable")
        size = -(-len(order) // steps)
        counts = [*range(0, len(order), size), len(order)]
        curves = ([], [])
        for count in counts:
            for curve, first, second in ((curves[0], gone, image), (curves[1], image, shown(image))):
                mixed = np.broadcast_to(second, image.shape).reshape(3, -1).copy()
                taken = np.broadcast_to(first, image.shape).reshape(3, -1)
                mixed[:, order[:count]] = taken[:, order[:count]]
                with torch.no_grad():
                    logits = model(torch.tensor(mixed.reshape(1, *image.shape), dtype=torch.float32))
                curve.append(logits.softmax(1)[0, index].item())
        areas.append([trapezoid(curve, np.array(counts) / len(order)) for curve in curves])
    return np.array(areas)


@pytest.mark.parametrize("steps", [1, 4, 7, 20, 144, 500])
@pytest.mark.parametrize("batch_size", [None, 1, 13])
def test_against_numpy(steps, batch_size, net, images):
    maps = torch.rand(5, 12, 12, generator=torch.Generator().manual_seed(2)).mul(6).round() / 6
    classes = net(images).argmax(1).tolist()
    expected = reference(net, images, maps, classes, steps, 0.0, lambda image: np.full_like(image, 0.3))
    protocol = PAPER.replace(curve_steps=steps, insertion_baseline=0.3)
    settings = {"protocol": protocol, "batch_size": batch_size}
    comparison = CAMComparison(
        {"maps": PrecomputedMaps(net)},
        measures=["deletion_auc", "insertion_auc"],
        per_sample=True,
        **settings,
    )
    comparison.update(images, cams=maps)
    found = comparison.samples()
    for measure, column in (("deletion_auc", 0), ("insertion_auc", 1)):
        np.testing.assert_allclose(found[measure][:, 0], expected[:, column], rtol=1e-5, atol=1e-6)
    for metric, column in ((DeletionAUC, 0), (InsertionAUC, 1)):
        single = metric(PrecomputedMaps(net), **settings)
        single.update(images, cams=maps)
        assert single.compute().item() == pytest.approx(expected[:, column].mean(), rel=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 20])
def test_symmetric_relevance_gain_against_numpy(steps, net, images):
    maps = torch.rand(5, 12, 12, generator=torch.Generator().manual_seed(2)).mul(6).round() / 6
    classes = net(images).argmax(1).tolist()
    # Insertion starts from the baseline of deletion, whatever the protocol's baseline of insertion is.
    areas = reference(net, images, maps, classes, steps, 0.3, lambda image: np.full_like(image, 0.3))
    protocol = PAPER.replace(curve_steps=steps, deletion_baseline=0.3)
    metric = SymmetricRelevanceGain(PrecomputedMaps(net), protocol=protocol)
    metric.update(images, cams=maps)
    assert metric.compute().item() == pytest.approx((areas[:, 1] - areas[:, 0]).mean(), abs=1e-6)


def test_symmetric_relevance_gain_is_the_difference_of_both_areas_for_one_baseline(net, images):
    protocol = PAPER.replace(deletion_baseline=0.2, insertion_baseline=0.2)
    metrics = MetricCollection(
        [
            metric(GradCAM(net, "body"), protocol=protocol)
            for metric in (DeletionAUC, InsertionAUC, SymmetricRelevanceGain)
        ]
    )
    values = metrics(input_tensor=images)
    gain = values["InsertionAUC"] - values["DeletionAUC"]
    torch.testing.assert_close(values["SymmetricRelevanceGain"], gain)


def test_a_reversed_map_has_the_opposite_symmetric_relevance_gain(net, images):
    maps = torch.rand(5, 12, 12, generator=torch.Generator().manual_seed(2))
    metric = SymmetricRelevanceGain(PrecomputedMaps(net), protocol=PAPER.replace(curve_steps=12))
    value, opposite = metric(images, cams=maps), metric(images, cams=1 - maps)
    torch.testing.assert_close(opposite, -value, rtol=0, atol=1e-6)
    assert value.abs() > 0.01


def test_symmetric_relevance_gain_scores_both_curves_and_nothing_else(net, images):
    sources = {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "body")}
    passes = {}
    for measures in (["symmetric_relevance_gain"], ["symmetric_relevance_gain", "deletion_auc"]):
        protocol = PAPER.replace(curve_steps=12)
        comparison = CAMComparison(sources, measures=measures, controls=False, protocol=protocol)
        with Calls(net) as calls:
            comparison.update(images)
        passes[len(measures)] = len(calls.batches)
    # The clean pass, and for each method 12 points of deletion and 11 of insertion between the shared ends.
    # A comparison keeps both of RISE's curves for `curve`: 12 points of insertion into the blur more.
    assert passes == {1: 1 + 2 * 23, 2: 1 + 2 * 35}


@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "ScoreCAM"])
@pytest.mark.parametrize("steps", [6, 20])
def test_torchcams_numbers_on_photos_and_generated_images(name, steps, lite0, photos, net, images):
    for model, layer, given in ((lite0, "_blocks.15", photos[:2]), (net, "body", images)):
        if model is lite0 and (name, steps) != ("GradCAM", 6):
            continue
        with getattr(torchcam.methods, name)(model, layer) as extractor:
            theirs = torchcam.metrics.DeletionInsertionMetric(extractor, SOFTMAX, steps=steps)
            theirs.update(given)
            protocol = EvaluationProtocol.preset("torchcam").replace(
                curve_steps=steps, insertion_baseline=0.0
            )
            for metric, key in ((DeletionAUC, "deletion_auc"), (InsertionAUC, "insertion_auc")):
                ours = metric(extractor, SOFTMAX, protocol=protocol)
                ours.update(given)
                assert ours.compute().item() == pytest.approx(theirs.summary()[key], abs=1e-6)


def test_rises_own_procedure():
    """CausalMetric steps through a fixed number of pixels, and its area divides by the number of steps."""
    torch.manual_seed(0)
    net, image = small_net().float(), torch.rand(1, 3, 8, 8)
    saliency = torch.rand(1, 8, 8)
    index = int(net(image).argmax())
    blurred = nn.functional.avg_pool2d(image, 3, 1, 1)
    step, order = 8, np.argsort(-saliency.numpy().ravel())
    for metric, start, finish in (
        (DeletionAUC, image, torch.zeros_like(image)),
        (InsertionAUC, blurred, image),
    ):
        now, scores = start.clone(), []
        for place in range(64 // step + 1):
            with torch.no_grad():
                scores.append(net(now).softmax(1)[0, index].item())
            chosen = order[place * step : (place + 1) * step]
            now.view(3, -1)[:, chosen] = finish.view(3, -1)[:, chosen]
        area = (sum(scores) - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1)
        protocol = PAPER.replace(
            curve_steps=64 // step,
            insertion_baseline=lambda images: nn.functional.avg_pool2d(images, 3, 1, 1),
        )
        ours = metric(PrecomputedMaps(net), protocol=protocol)
        ours.update(image, cams=saliency)
        assert ours.compute().item() == pytest.approx(area, rel=1e-5)


def test_end_points_are_scored_once(net, images):
    for protocol, between in ((ZEROS.replace(curve_steps=4), 7), (PAPER.replace(curve_steps=4), 8)):
        with Calls(net) as calls:
            DeletionAUC(GradCAM(net, "body"), protocol=protocol).update(images)
        assert calls.batches == [5] * (1 + between)
        collection = MetricCollection(
            [
                DeletionAUC(GradCAM(net, "body"), protocol=protocol),
                InsertionAUC(GradCAM(net, "body"), protocol=protocol),
            ],
            compute_groups=[["DeletionAUC", "InsertionAUC"]],
        )
        with Calls(net) as calls:
            collection.update(images)
        assert calls.batches == [5] * (1 + between)
        with Calls(net) as calls:
            DeletionAUC(GradCAM(net, "body"), protocol=protocol, batch_size=16).update(images)
        assert max(calls.batches) == 16
        assert sum(calls.batches) == 5 * (1 + between)


def test_an_update_does_not_wait_for_the_device(net, images):
    metric = DeletionAUC(GradCAM(net, "body"), protocol=PAPER.replace(curve_steps=3))
    metric.update(images)
    with HostSyncs() as syncs:
        metric.update(images)
    assert syncs.seen == []


@pytest.mark.parametrize("dims", [1, 3])
def test_signals_and_volumes(dims):
    net = small_net(dims=dims).float()
    images = torch.rand(2, 3, *(6,) * dims)
    metric = InsertionAUC(GradCAM(net, "body"), protocol=PAPER.replace(curve_steps=5))
    metric.update(images)
    fractions, scores = metric.curve()
    assert fractions.shape == scores.shape == (6,)
    assert scores[-1].item() == pytest.approx(net(images).softmax(1).amax(1).mean().item(), rel=1e-5)


def test_the_mask_of_a_protocol_does_not_rank(net, images):
    values = set()
    for protocol in (PAPER, PAPER.replace(mask="top"), PAPER.replace(mask="threshold")):
        metric = DeletionAUC(GradCAM(net, "body"), protocol=protocol)
        metric.update(images)
        values.add(metric.compute().item())
    assert len(values) == 1


def test_a_classifier_that_reads_one_patch_and_the_signs():
    """The perfect map is best in both, and turned round it is worst."""

    class Patch(nn.Module):
        def forward(self, images):
            inside = images[:, 0, 2:4, 2:4].mean((1, 2)) * 8
            return torch.stack([inside, torch.full_like(inside, 2.0)], 1)

    images = torch.rand(6, 1, 8, 8) * 0.2 + 0.8
    perfect = torch.zeros(6, 8, 8)
    perfect[:, 2:4, 2:4] = 1
    sources = {"perfect": PrecomputedMaps(Patch()), "worst": None}
    sources["worst"] = PrecomputedMaps(sources["perfect"].model)
    comparison = CAMComparison(
        sources,
        measures=["deletion_auc", "insertion_auc", "average_drop", "drop_in_deletion"],
        protocol=ZEROS,
    )
    comparison.update(images, class_idx=0, cams={"perfect": perfect, "worst": 1 - perfect})
    rows = {row["method"]: row for row in comparison.table().rows}
    for measure in ("deletion_auc", "insertion_auc", "drop_in_deletion"):
        others = [row[measure]["rank"] for name, row in rows.items() if name != "perfect"]
        assert rows["perfect"][measure]["rank"] <= min(others)
    assert rows["worst"]["deletion_auc"]["rank"] == rows["worst"]["insertion_auc"]["rank"] == 5
    assert rows["perfect"]["average_drop"]["value"] == 0


def test_curves_their_intervals_and_the_plot(net, images):
    metric = DeletionAUC(LayerCAM(net, "body"), protocol=PAPER.replace(curve_steps=12))
    for batch in images.split(2):
        metric.update(batch)
    fractions, scores = metric.curve()
    assert area_under_curve(scores, fractions).item() == pytest.approx(metric.compute().item(), rel=1e-6)
    figure, axis = metric.plot()
    assert axis.get_title() == "DeletionAUC"
    assert metric.plot(ax=axis)[0] is figure
    (line,) = axis.get_lines()[:1]
    np.testing.assert_allclose(line.get_ydata(), scores, rtol=1e-6)
    by_image = []
    for image in images.split(1):
        single = DeletionAUC(LayerCAM(net, "body"), protocol=PAPER.replace(curve_steps=12))
        single.update(image)
        by_image.append(single.curve()[1].numpy())
    mean, error = np.mean(by_image, 0), stats.sem(by_image, axis=0)
    margin = stats.t.ppf(0.975, len(images) - 1) * error / (mean * (1 - mean))
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    for sign in (-1, 1):
        bounds = special.expit(special.logit(mean) + sign * margin)
        assert all(np.isclose(band, bound, rtol=1e-5).any() for bound in bounds)
    by_class = DeletionAUC(
        LayerCAM(net, "body"), protocol=PAPER.replace(curve_steps=12), num_classes=5, average="none"
    )
    by_class.update(images)
    torch.testing.assert_close(by_class.curve()[1], scores, rtol=1e-6, atol=1e-8)


def test_the_band_of_a_curve_of_raw_scores_has_no_range(net, images):
    metric = DeletionAUC(LayerCAM(net, "body"), lambda output: 1 + output.softmax(1), protocol=PAPER)
    metric.update(images[:2])
    axis = metric.plot()[1]
    lower, upper = metric._mean_curves().interval()
    band = axis.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(upper.max().item())
    assert band.min() == pytest.approx(lower.min().item())


def test_images_of_other_sizes_have_one_curve(net):
    metric = DeletionAUC(GradCAM(net, "body"), protocol=PAPER.replace(curve_steps=7))
    for side in (8, 11):
        metric.update(torch.rand(2, 3, side, side))
    assert metric.curve()[1].shape == (8,)


def test_resampling_is_numpys_interpolation():
    fractions = torch.tensor([0.0, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
    scores = torch.rand(5, 3, dtype=torch.float64)
    found = resampled_curve(scores, fractions, 8)
    expected = [np.interp(np.linspace(0, 1, 8), fractions, column) for column in scores.T]
    np.testing.assert_allclose(found, np.stack(expected, 1))


def test_ranks_and_counts():
    maps = torch.randint(0, 4, (3, 5, 5)).float()
    expected = np.argsort(np.argsort(-maps.flatten(1).numpy(), kind="stable", axis=1), axis=1)
    np.testing.assert_array_equal(position_ranks(maps).flatten(1), expected)
    assert perturbed_counts(7, 20) == list(range(8))
    assert perturbed_counts(8, 2) == [0, 4, 8]


@pytest.mark.parametrize("steps", [0, 2.5, True])
def test_steps_that_cannot_be_are_refused(steps):
    with pytest.raises(ValueError, match=r"curve_steps.*it must be a positive integer"):
        EvaluationProtocol(curve_steps=steps)


def on_a_rank(rank, world_size):
    images = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    metric = DeletionAUC(GradCAM(small_net().float(), "body"))
    for batch in (images[:3], images[3:])[rank].split(2):
        metric.update(batch)
    return metric.compute(), metric.curve()


def test_ranks_give_the_curve_of_one_process(tmp_path, net, images):
    expected = DeletionAUC(GradCAM(net, "body"))
    expected.update(images)
    for value, curve in results_of(on_a_rank, 2, tmp_path):
        torch.testing.assert_close(value, expected.compute(), rtol=1e-6, atol=0)
        torch.testing.assert_close(curve, expected.curve(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_a_comparison_has_the_curves_of_the_single_metrics(average, net, images):
    """Also with an image that does not count."""
    images = images.clone()
    images[1, 0, 0, 0] = torch.nan
    settings = {"protocol": PAPER.replace(curve_steps=4), "average": average, "num_classes": 5}
    sources = {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "body")}
    measures = ["average_drop", "insertion_auc", "deletion_auc"]
    comparison = CAMComparison(sources, measures=measures, controls=False, **settings)
    singles = {
        (name, measure): metric(source, **settings)
        for name, source in sources.items()
        for measure, metric in (("deletion_auc", DeletionAUC), ("insertion_auc", InsertionAUC))
    }
    for batch in images.split(2):
        for metric in (comparison, *singles.values()):
            metric.update(batch)
    for (name, measure), single in singles.items():
        shares, scores = comparison.curve(measure)
        assert torch.equal(shares, single.curve()[0])
        torch.testing.assert_close(
            scores[comparison.methods.index(name)], single.curve()[1], rtol=0, atol=1e-6
        )


def test_a_comparison_without_curves_says_which_it_has(net):
    source = {"Grad-CAM": GradCAM(net, "body")}
    with pytest.raises(ValueError, match="'average_drop' is no measure with a curve; available are"):
        CAMComparison(source, measures=["average_drop", "deletion_auc"]).curve("average_drop")
    with pytest.raises(ValueError, match=r"available are \[\]"):
        CAMComparison(source).curve("deletion_auc")


def test_it_never_merges_with_the_drop(net, images):
    collection = MetricCollection([AverageDrop(GradCAM(net, "body")), DeletionAUC(GradCAM(net, "body"))])
    collection.update(images)
    assert len(collection.compute_groups) == 2
