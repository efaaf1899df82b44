"""Every preset against an independent NumPy implementation, from maps, images and a model's scores."""

import cv2
import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.ndimage import gaussian_filter
from scipy.special import softmax
from torch import nn

from torchmetrics_cam import (
    AverageDrop,
    AverageGain,
    DeletionAUC,
    EvaluationProtocol,
    IncreaseInConfidence,
    InsertionAUC,
)
from torchmetrics_cam.cams import PrecomputedMaps
from torchmetrics_cam.functional.maps import resize_maps


@pytest.fixture(scope="module")
def case(digits):
    """Return a trained network, 60 digits, and maps with positive and negative values, one of them constant."""
    model, images, labels = digits
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(60, 8, 8, generator=generator)
    maps[7] = 0.3
    return model, images[:60], labels[:60], maps


def scores_of(model: nn.Module, images: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(images, dtype=torch.float32)).double().numpy()


def min_max(maps: np.ndarray, eps: float = 0.0) -> np.ndarray:
    low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
    span = high - low + eps
    return (maps - low) / np.where(span == 0, 1, span)


def values_of(case, protocol, maps=None, logits_fn=None, class_idx=None):
    model, images, _, given = case
    values = []
    for measure in (AverageDrop, IncreaseInConfidence, AverageGain):
        metric = measure(PrecomputedMaps(model), logits_fn, protocol=protocol)
        metric.update(images, class_idx=class_idx, cams=given if maps is None else maps)
        values.append(metric.compute().item())
    return values


def expected_values(p, o, *, drop_eps=0.0, gain_eps=0.0, absolute=False):
    drop = np.maximum(0, p - o) / (1 if absolute else p + drop_eps)
    gain = np.maximum(0, o - p) / (1 - p + gain_eps)
    return [drop.mean(), (o > p).mean(), gain.mean()]


def select_class(scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return scores[np.arange(len(scores)), classes]


def test_paper(case):
    model, images, _, maps = case
    masks = min_max(np.maximum(maps.numpy(), 0))
    clean, masked = (
        softmax(scores_of(model, x), 1) for x in (images.numpy(), images.numpy() * masks[:, None])
    )
    classes = clean.argmax(1)
    expected = expected_values(select_class(clean, classes), select_class(masked, classes))
    assert values_of(case, "paper") == pytest.approx(expected, abs=1e-6)
    assert expected[0] > 0.1


def test_score_cam(case):
    """The mask keeps the upper half of the pixels, of equal ones the first, and none of a constant map."""
    model, images, _, maps = case
    rectified = np.maximum(maps.numpy(), 0).reshape(60, -1)
    kept = np.zeros_like(rectified)
    for mask, row in zip(kept, rectified, strict=True):
        if row.max() > row.min():
            mask[sorted(range(64), key=lambda pixel, row=row: (-row[pixel], pixel))[:32]] = 1
    assert set(kept.sum(1)) == {0, 32}
    masks = kept.reshape(60, 1, 8, 8)
    clean, masked = (softmax(scores_of(model, x), 1) for x in (images.numpy(), images.numpy() * masks))
    classes = clean.argmax(1)
    expected = expected_values(select_class(clean, classes), select_class(masked, classes))
    assert values_of(case, "score_cam") == pytest.approx(expected, abs=1e-6)
    assert values_of(case, "paper") != pytest.approx(expected, abs=1e-2)


def test_xplique(case):
    """Absolute values, min-max with eps 1e-8, scores after the activation, relative changes with eps 1e-8."""
    model, images, labels, maps = case
    masks = min_max(np.abs(maps.numpy()), 1e-8)
    clean, masked = (
        softmax(scores_of(model, x), 1) for x in (images.numpy(), images.numpy() * masks[:, None])
    )
    classes = labels.numpy()
    expected = expected_values(
        select_class(clean, classes), select_class(masked, classes), drop_eps=1e-8, gain_eps=1e-8
    )
    values = values_of(case, "xplique", logits_fn=nn.Softmax(1), class_idx=labels)
    assert values == pytest.approx(expected, abs=1e-6)
    assert values_of(case, "paper", class_idx=labels) != pytest.approx(expected, abs=1e-2)
    with pytest.raises(ValueError, match="'xplique' explains a given class; pass class_idx or targets"):
        values_of(case, "xplique")


@pytest.mark.filterwarnings("ignore:.*scores lie outside of")
def test_xplique_without_an_activation_uses_the_raw_output(case):
    model, images, labels, maps = case
    masks = min_max(np.abs(maps.numpy()), 1e-8)
    clean, masked = (
        select_class(scores_of(model, x), labels.numpy())
        for x in (images.numpy(), images.numpy() * masks[:, None])
    )
    expected = expected_values(clean, masked, drop_eps=1e-8, gain_eps=1e-8)
    assert values_of(case, "xplique", class_idx=labels) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("size", [3, 5, 8, 11])
def test_grad_cam(case, size):
    """Maps are normalized, resized by OpenCV and normalized again; the drop is absolute."""
    model, images, _, _ = case
    maps = torch.randn(60, size, size, generator=torch.Generator().manual_seed(size))
    small = min_max(np.maximum(maps.numpy(), 0), 1e-7).astype(np.float32)
    masks = min_max(np.stack([cv2.resize(one, (8, 8)) for one in small]), 1e-7)
    clean, masked = (
        softmax(scores_of(model, x), 1) for x in (images.numpy(), images.numpy() * masks[:, None])
    )
    classes = clean.argmax(1)
    expected = expected_values(select_class(clean, classes), select_class(masked, classes), absolute=True)
    assert values_of(case, "grad_cam", maps) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("small", "large"), [((7, 7), (224, 224)), ((3, 5), (20, 11)), ((9, 9), (4, 6)), ((1, 1), (5, 5))]
)
def test_resize_maps_equals_opencv(small, large):
    maps = torch.rand(3, *small)
    expected = np.stack([cv2.resize(one, large[::-1]) for one in maps.numpy()])
    np.testing.assert_allclose(resize_maps(maps, large).numpy(), expected, atol=1e-5)


def test_a_threshold_mask_keeps_pixels_of_at_least_the_threshold(case):
    model, images, _, maps = case
    for threshold in (0.25, 1.0):
        protocol = EvaluationProtocol(mask="threshold", mask_threshold=threshold)
        masks = (min_max(np.maximum(maps.numpy(), 0)) >= threshold).astype(np.float32)
        clean, masked = (
            softmax(scores_of(model, x), 1) for x in (images.numpy(), images.numpy() * masks[:, None])
        )
        classes = clean.argmax(1)
        expected = expected_values(select_class(clean, classes), select_class(masked, classes))
        assert values_of(case, protocol) == pytest.approx(expected, abs=1e-6)
    assert masks.sum() == 59


def test_a_custom_protocol(case):
    """All fields of the three metrics differ from their defaults."""
    model, images, _, maps = case
    protocol = EvaluationProtocol(
        name="ours", rectify="abs", normalize="before_resize", normalize_eps=0.1, mask="top", mask_fraction=0.3,
        baseline=0.5, drop_eps=0.2, gain_eps=0.1,
    )  # fmt: skip
    rows = min_max(np.abs(maps.numpy()), 0.1).reshape(60, -1)
    kept = np.zeros_like(rows)
    for mask, row in zip(kept, rows, strict=True):
        if row.max() > row.min():
            mask[np.argsort(-row, kind="stable")[: round(0.3 * 64)]] = 1
    masks = kept.reshape(60, 1, 8, 8)
    masked_images = masks * images.numpy() + (1 - masks) * 0.5
    clean, masked = (softmax(scores_of(model, x), 1) for x in (images.numpy(), masked_images))
    classes = clean.argmax(1)
    expected = expected_values(
        select_class(clean, classes), select_class(masked, classes), drop_eps=0.2, gain_eps=0.1
    )
    assert values_of(case, protocol) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("preset", ["paper", "torchcam", "grad_cam", "score_cam", "xplique"])
def test_a_constant_map_of_any_value_masks_all_pixels(case, preset):
    """The rounding errors of the resize must not be normalized to a map."""
    protocol = EvaluationProtocol.preset(preset).replace(scores="softmax")
    classes = case[2]
    expected = values_of(case, protocol, torch.zeros(60, 3, 3), class_idx=classes)
    values = torch.rand(60, generator=torch.Generator().manual_seed(0))
    for maps in (
        values.view(60, 1, 1),
        values.view(60, 1, 1).expand(60, 3, 3),
        values.view(60, 1, 1).expand(60, 5, 7),
    ):
        assert values_of(case, protocol, maps, class_idx=classes) == expected


@pytest.mark.parametrize(
    "fields",
    [{"normalize": "after_resize"}, {"normalize": "before_and_after_resize"}, {"mask": "top"}],
    ids=lambda fields: "-".join(fields.values()),
)
def test_a_map_that_becomes_constant_by_its_resize_masks_all_pixels(case, fields):
    """Every 2 x 2 block has the same four values in random order, so at half the size only rounding differs."""
    protocol = EvaluationProtocol().replace(**fields)
    expected = values_of(case, protocol, torch.zeros(60, 16, 16))
    generator = torch.Generator().manual_seed(0)
    orders = torch.rand(60, 64, 4, generator=generator).argsort(-1)
    blocks = torch.rand(60, 1, 4, generator=generator).expand(60, 64, 4).gather(2, orders)
    maps = blocks.view(60, 8, 8, 2, 2).transpose(2, 3).reshape(60, 16, 16)
    assert values_of(case, protocol, maps) == expected


@pytest.mark.parametrize("measure", [AverageDrop, IncreaseInConfidence])
@pytest.mark.parametrize("mask", ["soft", "threshold"])
def test_a_small_map_of_ones_masks_no_pixel(mask, measure):
    """The interpolation of ones is slightly off 1 for some sizes, such as from 14 to 50 pixels."""
    images = torch.rand(60, 1, 50, 51, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    protocol = EvaluationProtocol().replace(normalize="none", mask=mask, mask_threshold=1.0)
    ones = torch.ones(60, 14, 14, dtype=torch.float64)
    assert (resize_maps(ones, (50, 51)) != 1).any()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(50 * 51, 10)).double()
    metric = measure(PrecomputedMaps(model), protocol=protocol)
    metric.update(images, cams=ones)
    assert metric.compute() == 0


def test_rise(case):
    """The procedure of RISE's notebook: steps of equal size, zeros for deletion, SciPy's filter for insertion."""
    model, images, _, maps = case
    maps = torch.rand(maps.shape, generator=torch.Generator().manual_seed(2))  # without equal values
    preset = EvaluationProtocol.preset("rise")
    assert preset.curve_steps == 224 * 224 // (224 * 8)
    delta = np.zeros((11, 11))
    delta[5, 5] = 1
    weights = torch.tensor(gaussian_filter(delta, 5), dtype=torch.float32)
    blurred = nn.functional.conv2d(images, weights[None, None], padding=5)
    np.testing.assert_allclose(preset.insertion_baseline(images), blurred, atol=1e-6)
    step = 64 // 28 + 1
    order = np.argsort(-maps.numpy().reshape(60, 64), axis=1)
    classes = scores_of(model, images.numpy()).argmax(1)
    for metric, start, finish in (
        (DeletionAUC, images, torch.zeros_like(images)),
        (InsertionAUC, blurred, images),
    ):
        now, finish, curves = start.clone().view(60, 64), finish.view(60, 64), []
        for first in [*range(0, 64, step), 64]:
            scores = softmax(scores_of(model, now.view(60, 1, 8, 8).numpy()), 1)
            curves.append(select_class(scores, classes))
            chosen = torch.tensor(order[:, first : first + step])
            now = now.scatter(1, chosen, finish.gather(1, chosen))
        points = np.minimum(np.arange(len(curves)) * step / 64, 1)
        expected = trapezoid(np.stack(curves, 1), points, axis=1).mean()
        ours = metric(PrecomputedMaps(model), protocol="rise")
        ours.update(images, cams=maps)
        assert ours.compute().item() == pytest.approx(expected, abs=1e-6)
        default = metric(PrecomputedMaps(model))
        default.update(images, cams=maps)
        assert default.compute().item() != pytest.approx(expected, abs=1e-4)
