"""Drop in Deletion, Complexity, Coherency and ADCC: by hand, against NumPy, and where they are not defined."""

import numpy as np
import pytest
import torch
import torchcam.methods
from conftest import Calls, small_net
from hypothesis import given, settings
from hypothesis import strategies as st
from restoration import traces
from scipy import stats
from torch import nn

from torchmetrics_cam import ADCC, AverageDrop, CAMComparison, Coherency, Complexity, DropInDeletion
from torchmetrics_cam.cams import CallableSource, CenterMap, GradCAM, LayerCAM, PrecomputedMaps, UniformMap
from torchmetrics_cam.functional import adcc, complexity, drop_in_deletion, map_correlation

MEASURES = ("drop_in_deletion", "complexity", "coherency", "adcc")
DTYPE = torch.float32  # of the fixtures net and images
IMAGES = (5, 3, 12, 12)  # the shape of the fixture images


def numbers_by_numpy(model, images, source, classes):
    """All parts of each image, from maps that the source makes in a metric of their own."""

    def masks(batch):
        kept = []
        recorded = CallableSource(model, lambda *_: None)
        recorded.fn = lambda model, given, class_idx: kept.append(source(model, given, class_idx)) or kept[-1]
        AverageDrop(recorded).update(batch, class_idx=classes)
        maps = nn.functional.interpolate(kept[0].clamp(min=0)[:, None], batch.shape[2:], mode="bilinear")[
            :, 0
        ]
        low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
        return ((maps - low) / (high - low)).numpy()

    def score(batch):
        with torch.no_grad():
            return model(batch).softmax(1)[range(len(batch)), classes].numpy()

    first = masks(images)
    masked = images * torch.tensor(first)[:, None]
    again = masks(masked)
    p, o, d = score(images), score(masked), score(images - masked)
    coherent = [(stats.pearsonr(a.ravel(), b.ravel())[0] + 1) / 2 for a, b in zip(first, again, strict=True)]
    simple, drop = first.mean((1, 2)), np.maximum(0, p - o) / p
    harmonic = 3 / (1 / np.array(coherent) + 1 / (1 - simple) + 1 / (1 - drop))
    return {
        "drop_in_deletion": (p - d) / p,
        "complexity": simple,
        "coherency": np.array(coherent),
        "adcc": harmonic,
    }


def gradient_map(model, images, class_idx):
    """A map that depends on the image, of one channel of the gradient."""
    scores = model(images).gather(1, class_idx[:, None]).sum()
    (gradient,) = torch.autograd.grad(scores, images)
    return nn.functional.avg_pool2d((gradient * images).sum(1, keepdim=True), 3)[:, 0].detach()


def test_against_numpy(net, images):
    classes = net(images).argmax(1).tolist()
    expected = numbers_by_numpy(net, images, gradient_map, classes)
    source = CallableSource(net, gradient_map)
    comparison = CAMComparison({"gradient": source}, measures=MEASURES, per_sample=True)
    comparison.update(images)
    found = comparison.samples()
    for measure, values in expected.items():
        np.testing.assert_allclose(found[measure][:, 0], values, rtol=1e-4, atol=1e-6)
        assert values.std() > 1e-4
    for metric, measure in zip((DropInDeletion, Complexity, Coherency, ADCC), MEASURES, strict=True):
        single = metric(source)
        single.update(images)
        assert single.compute().item() == pytest.approx(expected[measure].mean(), rel=1e-4)
    averaged = ADCC(source, averaged_parts=True)
    averaged.update(images)
    drop = AverageDrop(source)
    drop.update(images)
    parts = expected["coherency"].mean(), 1 - expected["complexity"].mean(), 1 - drop.compute().item()
    assert averaged.compute().item() == pytest.approx(3 / sum(1 / part for part in parts), rel=1e-4)
    assert averaged.compute().item() != pytest.approx(expected["adcc"].mean(), rel=1e-3)


def test_formulas_by_hand():
    assert drop_in_deletion(
        torch.tensor([0.5, 0.0]), torch.tensor([0.75, 0.1]), reduction="none"
    ).tolist() == [-0.5, 0]
    assert complexity(torch.tensor([[0.0, 0.5], [1.0, 1.0]]), reduction="none").tolist() == [0.25, 1]
    ones, ramp = torch.ones(1, 4), torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    assert map_correlation(ones, ones).item() == 1
    assert map_correlation(ones, ramp).item() == 0.5
    assert map_correlation(ramp, ramp * 2 + 1).item() == pytest.approx(1)
    assert map_correlation(ramp, -ramp).item() == pytest.approx(0, abs=1e-12)
    assert map_correlation(ramp, ramp * torch.nan).isnan()
    assert adcc(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(0.0)) == 1
    assert adcc(torch.tensor(0.5), torch.tensor(0.25), torch.tensor(1.0)) == 0
    assert adcc(torch.tensor(0.5), torch.tensor(0.25), torch.tensor(0.2)).item() == pytest.approx(
        3 / (2 + 4 / 3 + 1.25)
    )


def test_controls_score_as_the_formulas_say(net, images):
    comparison = CAMComparison({"Grad-CAM": GradCAM(net, "body")}, measures=("average_drop", *MEASURES))
    comparison.update(images)
    values = comparison.compute()
    whole = {measure: values[f"uniform map/{measure}"].item() for measure in ("average_drop", *MEASURES)}
    assert (whole["average_drop"], whole["complexity"], whole["coherency"], whole["adcc"]) == (0, 1, 1, 0)
    with torch.no_grad():
        clean, black = net(images).softmax(1), net(torch.zeros_like(images)).softmax(1)
    top = clean.argmax(1)
    lost = 1 - black[range(5), top] / clean[range(5), top]
    assert whole["drop_in_deletion"] == pytest.approx(lost.mean().item(), rel=1e-4)
    assert values["center map/coherency"] == 1
    assert 0.2 < values["random map/coherency"] < 0.8


def test_coherency_explains_the_class_that_it_explained_before(net, images):
    seen = []

    def watched(model, given, class_idx):
        seen.append(class_idx.tolist())
        return gradient_map(model, given, class_idx)

    Coherency(CallableSource(net, watched)).update(images)
    assert seen[0] == seen[1] == net(images).argmax(1).tolist()
    targets = [lambda output: output[1] - output[2]] * 5
    metric = Coherency(GradCAM(net, "body"))
    metric.update(images, targets=targets)
    assert 0 < metric.compute() <= 1


def test_passes_of_each_measure(net, images):
    for measures, expected in (
        (["complexity"], 1), (["drop_in_deletion"], 2), (["coherency"], 2), (["adcc", "coherency"], 3),
        (["average_drop", "adcc", "drop_in_deletion", "average_gain"], 4),
    ):  # fmt: skip
        with Calls(net) as calls:
            CAMComparison({"one": GradCAM(net, "body")}, measures=measures, controls=False).update(images)
        assert calls.batches == [5] * expected


def test_an_update_leaves_no_trace(images):
    net = small_net().float().train()
    with torchcam.methods.LayerCAM(net, "body") as extractor:
        before = traces(net, images)
        for metric in (DropInDeletion, Complexity, Coherency, ADCC):
            metric(extractor).update(images)
        after = traces(net, images)
    for what in before:
        assert after[what] == before[what], what


def test_a_map_of_the_masked_image_that_is_not_finite_leaves_the_metric(net, images):
    calls = []

    def second_is_broken(model, given, class_idx):
        calls.append(1)
        maps = gradient_map(model, given, class_idx)
        if len(calls) == 2:
            maps[1] = torch.nan
        return maps

    metric = Coherency(CallableSource(net, second_is_broken))
    metric.update(images)
    assert (metric.total, metric.nan_count) == (4, 1)


def test_maps_computed_beforehand_have_no_map_of_the_masked_image(net):
    for metric in (Coherency, ADCC):
        with pytest.raises(
            ValueError, match="needs the maps of the masked images too, and PrecomputedMaps has"
        ):
            metric(PrecomputedMaps(net))
    with pytest.raises(ValueError, match="Coherency needs the maps of the masked images too"):
        CAMComparison({"mine": PrecomputedMaps(net)}, measures=["coherency"])
    Complexity(PrecomputedMaps(net))


@given(
    values=st.lists(st.floats(0, 1), min_size=12, max_size=12),
    parts=st.lists(st.floats(0, 1), min_size=3, max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_values_stay_within_their_range(values, parts):
    maps = torch.tensor(values).view(2, 6)
    assert 0 <= complexity(maps) <= 1
    correlation = map_correlation(maps[:1], maps[1:]).item()
    assert 0 <= correlation <= 1
    assert map_correlation(maps[1:], maps[:1]).item() == pytest.approx(correlation)
    value = adcc(*(torch.tensor(part) for part in parts)).item()
    assert 0 <= value <= 1 + 1e-6
    assert value <= 3 * min(parts[0], 1 - parts[1], 1 - parts[2]) + 1e-5


def test_layers_of_the_protocol_and_classes(net, images):
    labels = [0, 0, 1, 1, 3]
    metric = DropInDeletion(LayerCAM(net, "body"), num_classes=5, average="none")
    metric.update(images, class_idx=labels)
    values = metric.compute()
    assert values[[2, 4]].isnan().all()
    alone = DropInDeletion(LayerCAM(net, "body"))
    alone.update(images[:2], class_idx=0)
    assert values[0].item() == pytest.approx(alone.compute().item(), rel=1e-6)
    uniform = DropInDeletion(UniformMap(net, 0.0)), Coherency(CenterMap(net))
    for control, expected in zip(uniform, (0, 1), strict=True):
        control.update(images)
        assert control.compute() == expected
