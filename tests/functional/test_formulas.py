import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from torchmetrics_cam.functional import (
    average_drop,
    average_gain,
    drop_in_deletion,
    fuse_maps,
    increase_in_confidence,
    min_max,
    rectify,
    resize_maps,
    road_score,
    top_fraction,
)

P = torch.tensor([0.8, 0.5, 0.0, 1.0], dtype=torch.float64)
O = torch.tensor([0.2, 0.9, 0.3, 1.0], dtype=torch.float64)  # noqa: E741 (the letter of the formula)


def test_values_by_hand():
    assert average_drop(P, O, reduction="none").tolist() == pytest.approx([0.75, 0, 0, 0])
    assert average_drop(P, O).item() == pytest.approx(0.1875)
    assert average_drop(P, O, relative=False, reduction="none").tolist() == pytest.approx([0.6, 0, 0, 0])
    assert average_drop(P, O, eps=0.2, reduction="none").tolist() == pytest.approx([0.6, 0, 0, 0])
    assert increase_in_confidence(P, O, reduction="none").tolist() == [0, 1, 1, 0]
    assert average_gain(P, O, reduction="none").tolist() == pytest.approx([0, 0.8, 0.3, 0])


def test_mean_without_samples_is_nan():
    empty = torch.zeros(0)
    for formula in (average_drop, increase_in_confidence, average_gain):
        assert formula(empty, empty).isnan()


def test_half_precision_is_computed_in_float32():
    drop = average_drop(torch.tensor([0.9], dtype=torch.bfloat16), torch.tensor([0.5], dtype=torch.bfloat16))
    assert drop.dtype == torch.float32


@pytest.mark.parametrize("formula", [average_drop, increase_in_confidence, average_gain])
def test_messages(formula):
    with pytest.raises(ValueError, match=r"scores has shape \(2,\) and masked_scores \(3,\)"):
        formula(torch.rand(2), torch.rand(3))
    with pytest.raises(ValueError, match="reduction is 'sum'; it must be 'mean' or 'none'"):
        formula(P, O, reduction="sum")


def test_message_of_drop_in_deletion_names_its_argument():
    with pytest.raises(ValueError, match=r"scores has shape \(2,\) and complement_scores \(3,\)"):
        drop_in_deletion(torch.rand(2), torch.rand(3))


def test_road_score_by_hand():
    most_first = torch.tensor([[0.6, 0.5, 0.0], [0.2, 0.5, 0.0]])
    least_first = torch.tensor([[0.9, 0.5, 1.0], [0.7, 0.3, 1.0]])
    torch.testing.assert_close(road_score(most_first, least_first), torch.tensor([0.2, -0.05, 0.5]))
    torch.testing.assert_close(road_score(least_first, most_first), torch.tensor([-0.2, 0.05, -0.5]))


probabilities = hnp.arrays(np.float64, 6, elements=st.floats(0, 1))


@given(probabilities, probabilities)
def test_formulas_equal_numpy_and_stay_in_range(p, o):
    with np.errstate(divide="ignore", invalid="ignore"):
        drop = np.where(p > 0, np.maximum(0, p - o) / p, 0)
        gain = np.where(p < 1, np.maximum(0, o - p) / (1 - p), 0)
    scores, masked = torch.tensor(p), torch.tensor(o)
    np.testing.assert_allclose(average_drop(scores, masked, reduction="none"), drop, rtol=1e-12)
    np.testing.assert_allclose(average_gain(scores, masked, reduction="none"), gain, rtol=1e-12)
    np.testing.assert_array_equal(increase_in_confidence(scores, masked, reduction="none"), p < o)
    for formula in (average_drop, increase_in_confidence, average_gain):
        assert 0 <= formula(scores, masked) <= 1
        assert formula(scores, scores) == 0


maps = hnp.arrays(np.float64, (2, 3, 4), elements=st.floats(-100, 100))


@given(maps, st.floats(0.01, 100), st.floats(-100, 100))
def test_min_max_equals_numpy_for_any_scale_and_offset(values, scale, offset):
    low, high = values.min((1, 2), keepdims=True), values.max((1, 2), keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.where(high > low, (values - low) / (high - low), 0)
    np.testing.assert_allclose(min_max(torch.tensor(values)), expected, atol=1e-12)
    # A much smaller range would be lost in the rounding of values with an offset.
    if ((high - low) > 1e-3).all():
        np.testing.assert_allclose(min_max(torch.tensor(values * scale + offset)), expected, atol=1e-8)


@given(maps, st.integers(1, 12))
def test_top_fraction_keeps_the_exact_number_of_pixels(values, count):
    kept = top_fraction(torch.tensor(values), count / 12).flatten(1).numpy()
    assert (kept.sum(1) == count).all()
    for mask, row in zip(kept.astype(bool), values.reshape(2, 12), strict=True):
        expected = np.zeros(12, bool)
        expected[np.argsort(-row, kind="stable")[:count]] = True
        np.testing.assert_array_equal(mask, expected)


def test_resize_maps_and_fuse_maps_by_hand():
    coarse = torch.tensor([[0.0, 4.0]])
    assert resize_maps(coarse, [4]).tolist() == [[0, 1, 3, 4]]
    fine = torch.tensor([[2.0, 2.0, 0.0, 0.0]])
    # Each layer is normalized on its own, then the maximum is taken at each pixel.
    assert fuse_maps([coarse, fine]).tolist() == [[1, 1, 0.75, 1]]
    assert fuse_maps([coarse]) is coarse


@pytest.mark.parametrize(("dims", "size"), [(1, (5,)), (2, (5, 6)), (3, (4, 5, 6))])
def test_resize_maps_in_one_to_three_dimensions(dims, size):
    assert resize_maps(torch.rand(2, *(3,) * dims), size).shape == (2, *size)


def test_rectify():
    values = torch.tensor([-2.0, 3.0])
    assert [rectify(values, how).tolist() for how in ("relu", "abs", "none")] == [[0, 3], [2, 3], [-2, 3]]
