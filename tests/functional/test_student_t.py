"""Tails and quantiles of Student's t distribution, against scipy and by the closed forms for 1 and 2 degrees."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from torchmetrics_cam.functional._student_t import two_sided_quantile, two_sided_tail

DEGREES = torch.tensor(
    [1, 1.2, 1.5, 2, 2.7, 3, 5, 9, 10, 19, 29.5, 100, 999.25, 1e4, 1e5, 1e6], dtype=torch.float64
)


@pytest.mark.parametrize("level", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999])
def test_quantiles_equal_scipys(level):
    expected = stats.t.ppf((1 + level) / 2, DEGREES)
    np.testing.assert_allclose(two_sided_quantile(level, DEGREES), expected, rtol=1e-10)


@pytest.mark.parametrize("probability", [0.999, 0.9, 0.5, 0.1, 0.05, 0.01, 1e-3, 1e-5, 1e-7, 1e-9, 1e-12])
def test_tails_equal_scipys(probability):
    t = torch.tensor(stats.t.isf(probability / 2, DEGREES))
    np.testing.assert_allclose(two_sided_tail(t, DEGREES), 2 * stats.t.sf(t, DEGREES), rtol=1e-10)


def test_closed_forms():
    t = torch.tensor([0.0, 0.1, 1.0, 30.0], dtype=torch.float64)
    one = 1 - 2 / math.pi * t.arctan()
    np.testing.assert_allclose(two_sided_tail(t, torch.ones(())), one, rtol=1e-10)
    np.testing.assert_allclose(two_sided_tail(t, torch.tensor(2)), 1 - t / (t**2 + 2).sqrt(), rtol=1e-10)
    quantile = two_sided_quantile(0.95, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert quantile.tolist() == pytest.approx([math.tan(0.475 * math.pi), 0.95 * math.sqrt(2 / 0.0975)])


def test_shapes_broadcast_and_float32_stays():
    tails = two_sided_tail(torch.rand(3, 1), torch.tensor([2, 5]))
    assert (tails.shape, tails.dtype) == ((3, 2), torch.float32)
    found = two_sided_quantile(0.95, DEGREES.float())
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, stats.t.ppf(0.975, DEGREES), rtol=1e-5)


def test_no_degrees_of_freedom_give_nan():
    unknown = torch.tensor([0.0, -1.0, math.nan])
    assert two_sided_quantile(0.95, unknown).isnan().all()
    assert two_sided_tail(torch.ones(3), unknown).isnan().all()
