"""Sparseness and Entropy as metrics: against NumPy, on the controls, by batch and class, and without a map."""

import math

import numpy as np
import pytest
import torch
from conftest import Calls

from torchmetrics_cam import CAMComparison, Complexity, Entropy, EvaluationProtocol, Sparseness, explain
from torchmetrics_cam.cams import GradCAM, PrecomputedMaps

MEASURES = {"complexity": Complexity, "sparseness": Sparseness, "entropy": Entropy}
DTYPE = torch.float32  # of the fixtures net and images
IMAGES = (5, 3, 12, 12)  # the shape of the fixture images


def numbers_by_numpy(masks):
    flat = masks.reshape(len(masks), -1).astype(np.float64)
    gini = [np.abs(one[:, None] - one).mean() / (2 * one.mean()) for one in flat]
    spread = []
    for one in flat:
        shares = one[one > 0] / one.sum()
        spread.append(-(shares * np.log(shares)).sum())
    return {"complexity": flat.mean(1), "sparseness": np.array(gini), "entropy": np.array(spread)}


def test_against_numpy_in_one_pass(net, images):
    source = GradCAM(net, "body")
    expected = numbers_by_numpy(explain(source, images).masks.numpy())
    comparison = CAMComparison({"Grad-CAM": source}, measures=list(MEASURES), controls=False, per_sample=True)
    with Calls(net) as calls:
        comparison.update(images)
    assert calls.batches == [5]
    for measure, metric in MEASURES.items():
        values = comparison.samples()[measure][:, 0]
        np.testing.assert_allclose(values, expected[measure], rtol=1e-5)
        assert values.std() > 1e-3
        single = metric(source)
        with Calls(net) as calls:
            single.update(images[:2])
            single.update(images[2:])
        assert calls.batches == [2, 3]
        assert single.compute().item() == pytest.approx(expected[measure].mean(), rel=1e-6)


def test_controls_score_as_the_formulas_say(net, images):
    comparison = CAMComparison({"Grad-CAM": GradCAM(net, "body")}, measures=list(MEASURES))
    comparison.update(images)
    values = comparison.compute()
    assert values["uniform map/sparseness"].item() == pytest.approx(0, abs=1e-12)
    assert values["uniform map/entropy"].item() == pytest.approx(math.log(144), rel=1e-6)
    for control in ("random map", "center map"):
        assert values[f"{control}/sparseness"] > 0
        assert values[f"{control}/entropy"] < math.log(144)


def test_an_image_whose_map_is_zero_everywhere_is_excluded_and_counted(net, images):
    maps = torch.zeros(5, 4, 4)
    maps[0, 0, 0] = maps[1, 2, 1] = maps[2, :2, 0] = 1
    maps[3] = 7.0  # constant: zero after normalization
    protocol = EvaluationProtocol(normalize="before_resize")
    for metric, expected in ((Sparseness, [15 / 16] * 2 + [14 / 16]), (Entropy, [0, 0, math.log(2)])):
        single = metric(PrecomputedMaps(net), protocol=protocol)
        single.update(images[..., :4, :4], cams=maps)
        assert (single.total, single.nan_count, single.degenerate_count) == (3, 2, 0)
        assert single.compute().item() == pytest.approx(np.mean(expected), rel=1e-6)


def test_one_value_for_each_class(net, images):
    maps = torch.zeros(5, 12, 12)
    maps[[0, 1, 2, 3], 0, 0] = maps[[2, 3], 5, 5] = 1
    for metric, expected in ((Sparseness, [143 / 144, 142 / 144]), (Entropy, [0, math.log(2)])):
        by_class = metric(PrecomputedMaps(net), num_classes=5, average="none")
        by_class.update(images, class_idx=[1, 1, 4, 4, 0], cams=maps)
        values = by_class.compute()
        assert values[[1, 4]].tolist() == pytest.approx(expected, rel=1e-6)
        assert values[[0, 2, 3]].isnan().all()  # class 0 has only a map of zeros
