"""Single deletion and faithfulness correlation: by hand, against NumPy and SciPy, and against Quantus 0.6."""

import math

import numpy as np
import pytest
import quantus
import torch
from conftest import HostSyncs, small_net
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from torchmetrics_cam import explain
from torchmetrics_cam.cams import CenterMap, GradCAM
from torchmetrics_cam.functional import (
    faithfulness_correlation,
    grid_cells,
    map_correlation,
    random_subsets,
    single_deletion,
)
from torchmetrics_cam.functional.correlation import (
    cell_numbers,
    cell_sums,
    pearson_correlation,
    rank_correlation,
    twice_mid_ranks,
)

NAN, INF = math.nan, math.inf
RAMP = [1.0, 2.0, 3.0, 4.0, 5.0, 7.0]
SIZES = [((13,), 4), ((12, 12), 4), ((9, 7), 3), ((5, 4, 6), 2)]


def of_each_size(function):
    return pytest.mark.parametrize(("size", "per_axis"), SIZES, ids=["1d", "2d", "2d uneven", "3d"])(function)


# Correlations


def test_mid_ranks_by_hand():
    values = torch.tensor([[0.5, 0.1, 0.5, 0.9], [2.0, 2.0, 2.0, 2.0], [0.0, -0.0, -1.0, 1.0]])
    assert (twice_mid_ranks(values) / 2).tolist() == [[2.5, 1, 2.5, 4], [2.5] * 4, [2.5, 2.5, 1, 4]]


@pytest.mark.parametrize("function", [pearson_correlation, rank_correlation])
@pytest.mark.parametrize(
    ("row", "other"),
    [
        ([0.1] * 6, RAMP),
        (RAMP, [0.2] * 6),
        ([0.1] * 6, [0.1] * 6),
        ([NAN, *RAMP[1:]], RAMP),
        (RAMP, [INF, *RAMP[1:]]),
        ([NAN] * 6, RAMP),
    ],
    ids=["constant", "other constant", "both constant", "nan", "infinite", "all nan"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_correlation_that_is_not_defined_is_nan(function, row, other, dtype):
    """Beside rows with a defined one. In float64 the mean of six times 0.1 is not 0.1."""
    rows, others = (torch.tensor([each, RAMP], dtype=dtype) for each in (row, other))
    found = function(rows, others)
    assert found[0].isnan()
    assert found[1].item() == pytest.approx(1)
    assert found.dtype == dtype


def test_the_correlation_of_a_constant_row_can_be_given_but_not_that_of_nan():
    rows = torch.tensor([[1.0, 1.0], [1.0, NAN], [NAN, NAN]])
    found = pearson_correlation(rows, torch.tensor([[1.0, 2.0]] * 3), of_constant=0.0)
    assert found[0] == 0
    assert found[1:].isnan().all()


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_correlations_equal_those_of_scipy_in_any_unit(scale):
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 20, 12)).round(1)
    pearson = [stats.pearsonr(*pair).statistic for pair in zip(first, second, strict=True)]
    spearman = [stats.spearmanr(*pair).statistic for pair in zip(first, second, strict=True)]
    first, second = torch.tensor(first) * scale, torch.tensor(second) * scale
    np.testing.assert_allclose(pearson_correlation(first, second), pearson, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(rank_correlation(first, second), spearman, rtol=1e-10, atol=1e-14)
    halves = (np.array(pearson) + 1) / 2
    np.testing.assert_allclose(map_correlation(first, second), halves, rtol=1e-10)


def test_the_coherency_of_constant_maps_in_float64():
    """The mean of six times 0.1 is not 0.1, and what was left of two constant maps was correlated."""
    constant, other = (torch.full((1, 6), value, dtype=torch.float64) for value in (0.1, 0.2))
    ramp = torch.arange(6.0).double().unsqueeze(0)
    assert map_correlation(constant, other).item() == 0.5
    assert map_correlation(constant, ramp).item() == 0.5
    assert map_correlation(constant, constant).item() == 1
    assert map_correlation(ramp * NAN, ramp).isnan()


# Single deletion


@of_each_size
def test_grid_cells_are_those_of_numpy(size, per_axis):
    cells = grid_cells(size, per_axis)
    assert cells.shape == (per_axis ** len(size), *size)
    assert (cells.sum(0) == 1).all()
    numbers = np.zeros(size, int)
    for pixel in np.ndindex(*size):
        along = [
            max(cell for cell in range(per_axis) if round(cell * side / per_axis) <= place)
            for place, side in zip(pixel, size, strict=True)
        ]
        numbers[pixel] = np.ravel_multi_index(along, (per_axis,) * len(size))
    np.testing.assert_array_equal(cells.int().argmax(0), numbers)


@pytest.mark.parametrize("per_axis", [1, 2, 3, 4, 7])
def test_cells_differ_by_at_most_one_pixel_and_are_symmetric_in_even_images(per_axis):
    for side in range(per_axis, 60):
        counts = grid_cells((side,), per_axis).sum(1)
        assert counts.max() - counts.min() <= 1
        if side % 2 == 0:
            assert torch.equal(counts, counts.flip(0))


def test_single_deletion_by_hand():
    maps = torch.tensor([[[4.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0], [0.0] * 4, [0.0, 0.0, 2.0, 0.0]]]) / 4
    # The sums in a grid of 2 x 2 are 4, 3, 0 and 2 quarters: ranks 4, 3, 1, 2.
    drops = torch.tensor([[0.9, 0.2, 0.1, 0.1]]).T
    assert single_deletion(maps, drops, reduction="none").tolist() == pytest.approx(
        # Ranks 4, 3, 1.5, 1.5.
        [np.corrcoef([4, 3, 1, 2], [4, 3, 1.5, 1.5])[0, 1]]
    )
    assert single_deletion(maps, -drops).item() == pytest.approx(-single_deletion(maps, drops).item())


@of_each_size
def test_single_deletion_equals_scipys_spearman(size, per_axis):
    generator = np.random.default_rng(1)
    maps = generator.uniform(size=(7, *size)).astype(np.float32)
    drops = generator.normal(size=(per_axis ** len(size), 7)).round(1)
    cells = grid_cells(size, per_axis).numpy()
    sums = np.array([[one[cell].sum(dtype=float) for cell in cells] for one in maps])
    expected = [stats.spearmanr(*pair).statistic for pair in zip(sums, drops.T, strict=True)]
    found = single_deletion(torch.tensor(maps), torch.tensor(drops), reduction="none")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    mean = single_deletion(torch.tensor(maps), torch.tensor(drops))
    assert mean.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_single_deletion_is_not_defined_without_an_order():
    maps = torch.rand(6, 5, 5)  # cells of 4, 6, 6 and 9 pixels: even a constant map has different sums
    drops = torch.rand(4, 6)
    maps[1], maps[2], drops[:, 3], drops[1, 4], maps[5] = 0.0, 0.3, 0.2, NAN, NAN
    found = single_deletion(maps, drops, reduction="none")
    assert found.isfinite().tolist() == [True, False, False, False, False, False]


def test_equal_cells_tie_in_every_batch():
    """A Gaussian has three different cells of 16. The sums of pixels in another order differ by their rounding."""
    net, images = small_net(), torch.rand(9, 3, 30, 30, dtype=torch.float64)
    maps = explain(CenterMap(net), images).masks
    drops = torch.tensor([0, 1, 1, 0, 1, 2, 2, 1, 1, 2, 2, 1, 0, 1, 1, 0.0]).double()
    found = single_deletion(maps, drops.unsqueeze(1).expand(-1, 9), reduction="none")
    assert found.tolist() == pytest.approx([1] * 9, abs=1e-12)


def test_messages_of_single_deletion():
    with pytest.raises(
        ValueError,
        match=r"drops has shape \(5, 3\) and maps \(3, 8, 8\); drops must be \(g\*\*2, 3\), one for",
    ):
        single_deletion(torch.rand(3, 8, 8), torch.rand(5, 3))
    with pytest.raises(ValueError, match=r"drops has shape \(4, 2\) and maps \(3, 8, 8\)"):
        single_deletion(torch.rand(3, 8, 8), torch.rand(4, 2))
    with pytest.raises(
        ValueError,
        match="an image of 3 x 9 pixels has no grid of 4 cells along each axis; choose per_axis from 1 to 3",
    ):
        grid_cells((3, 9), 4)
    with pytest.raises(ValueError, match="has no grid of 0 cells"):
        grid_cells((3, 9), 0)


# Faithfulness correlation


def test_faithfulness_correlation_by_hand():
    sums = torch.tensor([[1.0, 1.0, 2.0], [2.0, 3.0, 2.0], [3.0, 2.0, 2.0]])
    drops = torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [0.3, 0.3, 0.3]])
    found = faithfulness_correlation(sums, drops, reduction="none")
    assert found.tolist() == pytest.approx([1, 0.5, NAN], nan_ok=True)
    assert faithfulness_correlation(sums[:, :2], drops[:, :2]).item() == pytest.approx(0.75)
    assert faithfulness_correlation(sums, -drops, reduction="none")[0].item() == pytest.approx(-1)
    assert faithfulness_correlation(sums[:1], drops[:1], reduction="none").isnan().all()
    with pytest.raises(
        ValueError, match=r"sums has shape \(3, 3\) and drops \(3, 2\); both must have the same"
    ):
        faithfulness_correlation(sums, drops[:, :2])


def test_faithfulness_correlation_equals_that_of_quantus():
    """On the subsets that Quantus draws, with its maps as it normalizes them, by their largest value."""
    net = small_net(channels=1).float()
    images = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    maps = explain(GradCAM(net, "body"), images, labels).masks
    drawn = []

    def hide(arr, indices, **_):
        drawn.append(torch.zeros(arr.shape, dtype=torch.bool).scatter(1, torch.tensor(indices), True))
        return np.where(drawn[-1], 0, arr)

    metric = quantus.FaithfulnessCorrelation(
        nr_runs=20,
        subset_size=30,
        perturb_func=hide,
        # Quantus' own needs SciPy 1.14.
        similarity_func=lambda a, b, **_: np.array(
            [stats.pearsonr(*pair)[0] for pair in zip(a, b, strict=True)]
        ),
        return_aggregate=False,
        disable_warnings=True,
    )
    numpy = {"x_batch": images.numpy(), "y_batch": labels.numpy(), "a_batch": maps[:, None].numpy()}
    theirs = metric(model=net, **numpy, softmax=False, device="cpu")

    def scores(pixels):
        with torch.no_grad():
            return net(pixels).gather(1, labels[:, None]).squeeze(1)

    hidden = torch.stack(drawn)
    assert hidden.shape == (20, 6, 144)
    sums = (maps.flatten(1) * hidden).sum(2)
    drops = torch.stack(
        [scores(images) - scores(images.masked_fill(one.view_as(images), 0)) for one in hidden]
    )
    np.testing.assert_allclose(faithfulness_correlation(sums, drops, reduction="none"), theirs, atol=1e-5)


def test_random_subsets_have_the_exact_size_and_belong_to_the_image():
    images = torch.rand(5, 3, 6, 6)
    subsets = random_subsets(images, 36, size=9, count=40, seed=1)
    assert subsets.shape == (5, 40, 36)
    assert (subsets.sum(2) == 9).all()
    order = [3, 0, 4]
    assert torch.equal(random_subsets(images[order], 36, size=9, count=40, seed=1), subsets[order])
    assert not torch.equal(random_subsets(images, 36, size=9, count=40, seed=2), subsets)
    assert len(subsets.flatten(0, 1).unique(dim=0)) == 200
    many = random_subsets(torch.rand(50, 1, 4), 16, size=4, count=400, seed=0)
    # Each unit is chosen with probability 1/4: 20,000 draws have a standard error of .003.
    assert many.float().mean((0, 1)).tolist() == pytest.approx([0.25] * 16, abs=0.015)
    for size in (0, 16):
        with pytest.raises(
            ValueError, match=f"subsets of {size} of 16 units are all the same, or impossible"
        ):
            random_subsets(images, 16, size=size, count=2, seed=0)


def test_no_formula_synchronizes_a_gpu_with_the_host():
    maps, images = torch.rand(3, 8, 8), torch.rand(3, 1, 8, 8)
    with HostSyncs() as syncs:
        cells = grid_cells((8, 8), 4)
        single_deletion(maps, torch.rand(16, 3))
        subsets = random_subsets(images, 64, size=8, count=5, seed=0)
        faithfulness_correlation(torch.rand(5, 3), torch.rand(5, 3))
    assert (syncs.seen, syncs.copies) == ([], 0)
    assert (cells.dtype, subsets.dtype) == (torch.bool, torch.bool)


finite = hnp.arrays(np.float64, (3, 9), elements=st.floats(-5, 5).map(lambda number: round(number, 2)))


@given(finite, finite)
@settings(deadline=None)
def test_correlations_stay_within_their_range_and_are_symmetric(first, second):
    first, second = torch.tensor(first), torch.tensor(second)
    for function in (pearson_correlation, rank_correlation):
        found = function(first, second)
        assert ((found.abs() <= 1) | found.isnan()).all()
        torch.testing.assert_close(function(second, first), found, equal_nan=True)
        torch.testing.assert_close(function(first, -second), -found, equal_nan=True)
        torch.testing.assert_close(function(2 * first + 1, second), found, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-300, 1e-10, 1e10, 1e300])
def test_a_factor_on_the_maps_changes_neither_ranks_nor_sums(scale):
    maps = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.2
    drops = torch.rand(16, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    numbers = cell_numbers((9, 7), 4)
    torch.testing.assert_close(
        single_deletion(scale * maps, drops, reduction="none"),
        single_deletion(maps, drops, reduction="none"),
    )
    expected = [
        [one.flatten()[numbers.flatten() == cell].sum().item() for cell in range(16)]
        for one in maps / maps.abs().amax((1, 2), keepdim=True)
    ]
    np.testing.assert_allclose(cell_sums(scale * maps, numbers, 16), expected, atol=1e-8)


def test_sums_of_zeros_are_zero():
    assert (cell_sums(torch.zeros(2, 4, 4), cell_numbers((4, 4), 2), 4) == 0).all()
