"""Sparseness, entropy and the entropy of the histogram: by hand, against NumPy and against Quantus 0.6."""

import math

import numpy as np
import pytest
import quantus
import torch
from conftest import HostSyncs
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from quantus.functions.complexity_func import discrete_entropy

from torchmetrics_cam.functional import complexity, entropy, histogram_entropy, sparseness

NAN, INF = math.nan, math.inf
FORMULAS = (sparseness, entropy, histogram_entropy)
SHAPES = [(6, 25), (6, 9, 7), (6, 4, 5, 3)]


def random_maps(*shape: int) -> np.ndarray:
    """Return maps in [0, 1] with many zeros, as rectified ones have, and ties."""
    return np.random.default_rng(0).uniform(-0.5, 1, shape).clip(0).round(2)


def test_by_hand():
    maps = torch.tensor([[0.0, 0.0, 0.5, 0.0], [0.2, 0.2, 0.2, 0.2], [0.0, 0.1, 0.0, 0.3]])
    assert sparseness(maps, reduction="none").tolist() == pytest.approx([3 / 4, 0, 5 / 8])
    assert sparseness(maps).item() == pytest.approx((3 / 4 + 5 / 8) / 3)
    quarters = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert entropy(maps, reduction="none").tolist() == pytest.approx([0, math.log(4), quarters])
    assert entropy(maps).item() == pytest.approx((math.log(4) + quarters) / 3)
    # Two bins: [0, 0.25) and [0.25, 0.5]; a constant map is in one; [0, 0.15) and [0.15, 0.3].
    assert histogram_entropy(maps, bins=2, reduction="none").tolist() == pytest.approx(
        [quarters, 0, quarters]
    )
    assert histogram_entropy(maps, bins=1).item() == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0, 0.0], (NAN, NAN, 0.0)),
        ([0.0, -0.1, 0.5], (NAN, NAN, math.log(3))),
        ([0.0, NAN, 0.5], (NAN, NAN, NAN)),
        ([0.0, INF, 0.5], (NAN, NAN, NAN)),
        ([1e-30, 0.0, 0.0], (2 / 3, 0.0, -math.log(1 / 3) / 3 - 2 * math.log(2 / 3) / 3)),
    ],
    ids=["zeros", "negative", "nan", "infinite", "tiny"],
)
def test_what_is_not_defined_is_nan(values, expected):
    for formula, value in zip(FORMULAS, expected, strict=True):
        found = formula(torch.tensor([values, [0.1, 0.2, 0.3]]), reduction="none")
        assert found.dtype == torch.float32
        assert found[0].item() == pytest.approx(value, abs=1e-6, nan_ok=True)
        assert found[1].isfinite()


@pytest.mark.parametrize("shape", SHAPES, ids=["1d", "2d", "3d"])
def test_against_numpy(shape):
    maps = random_maps(*shape)
    found = [formula(torch.tensor(maps), reduction="none").numpy() for formula in FORMULAS]
    for values, *one in zip(maps.reshape(len(maps), -1), *found, strict=True):
        # The Gini index as the mean difference between all pairs of pixels.
        gini = np.abs(values[:, None] - values).mean() / (2 * values.mean())
        shares = values[values > 0] / values.sum()
        counts, _ = np.histogram(values, bins=100)
        kept = counts[counts > 0] / counts.sum()
        expected = gini, -(shares * np.log(shares)).sum(), -(kept * np.log(kept)).sum()
        np.testing.assert_allclose(one, expected, rtol=1e-10)


@pytest.mark.parametrize("shape", SHAPES[:2], ids=["1d", "2d"])  # Quantus takes no volumes
def test_against_quantus(shape):
    maps = random_maps(*shape)
    settings = {"abs": True, "normalise": False, "disable_warnings": True}
    images, labels = np.zeros((shape[0], 1, *shape[1:])), np.zeros(shape[0], dtype=int)

    def theirs(metric):
        # Quantus works in place.
        return metric(**settings)(model=None, x_batch=images, y_batch=labels, a_batch=maps[:, None].copy())

    # Quantus adds 1e-7 to each value first, so that its map of zeros has a sparseness, of 0.
    ours = sparseness(torch.tensor(maps + 1e-7), reduction="none")
    np.testing.assert_allclose(ours, theirs(quantus.Sparseness), rtol=1e-12)
    # Quantus adds 1e-12 within the logarithm, which changes the entropy by at most that for each pixel.
    ours = entropy(torch.tensor(maps), reduction="none")
    np.testing.assert_allclose(ours, theirs(quantus.Complexity), rtol=0, atol=1e-12 * maps[0].size)


@pytest.mark.parametrize("bins", [2, 10, 100])
def test_histogram_entropy_equals_that_of_quantus_in_any_unit(bins):
    for scale, offset in ((1.0, 0.0), (1e-9, 0.0), (250.0, -40.0)):
        maps = random_maps(5, 8, 8) * scale + offset
        theirs = [discrete_entropy(each, each, n_bins=bins) for each in maps]
        ours = histogram_entropy(torch.tensor(maps), bins=bins, reduction="none")
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        every_second = histogram_entropy(torch.tensor(maps).flatten(1)[:, ::2], bins=bins, reduction="none")
        theirs = [discrete_entropy(each[::2], each[::2], n_bins=bins) for each in maps.reshape(5, -1)]
        np.testing.assert_allclose(every_second, theirs, rtol=1e-12)


def test_messages():
    for formula in FORMULAS:
        with pytest.raises(ValueError, match="reduction is 'sum'; it must be 'mean' or 'none'"):
            formula(torch.rand(2, 3), reduction="sum")
    with pytest.raises(ValueError, match="bins is 0; it must be a positive number of bins"):
        histogram_entropy(torch.rand(2, 3), bins=0)


def test_no_formula_synchronizes_a_gpu_with_the_host():
    maps = torch.rand(3, 8, 8)
    for formula in FORMULAS:
        with HostSyncs() as syncs:
            formula(maps)
        assert (syncs.seen, syncs.copies) == ([], 0), formula


@given(hnp.arrays(np.float64, (2, 3, 4), elements=st.floats(0, 1)), st.floats(1e-3, 1e3))
@settings(deadline=None)
def test_ranges_and_invariances(values, scale):
    maps = torch.tensor(values)
    for formula, highest in ((sparseness, 11 / 12), (entropy, math.log(12))):
        found = formula(maps, reduction="none")
        assert ((found >= 0) & (found <= highest + 1e-12) | found.isnan()).all()
        assert torch.equal(found.isnan(), (maps == 0).flatten(1).all(1))
        if not (0 < values[values > 0].min(initial=1) < 1e-300):
            torch.testing.assert_close(formula(maps * scale, reduction="none"), found, equal_nan=True)
            torch.testing.assert_close(
                formula(maps.flip(0, 2), reduction="none").flip(0), found, equal_nan=True
            )
    assert 0 <= histogram_entropy(maps) <= math.log(12) + 1e-12
    assert complexity(maps, reduction="none").tolist() == pytest.approx(values.mean((1, 2)))


def test_complexity_in_half_precision_is_computed_in_float64():
    maps = torch.ones(1, 300, 300, dtype=torch.float16)
    maps[0, 0, 0] = 0
    found = complexity(maps)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(1 - 1 / 300**2)
    assert found < 1
