"""Linear imputation by multigrid against scipy's sparse solver, on masks that are hard to solve."""

from itertools import product

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from conftest import HostSyncs
from torch import nn

from torchmetrics_cam.functional import road
from torchmetrics_cam.functional._multigrid import GridPoints, SparseMatrix, solve
from torchmetrics_cam.functional.curves import position_ranks
from torchmetrics_cam.functional.road import linear_imputation

MODES = {1: "linear", 2: "bicubic", 3: "trilinear"}


def spsolve(image: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Impute one image with scipy in float64, the system assembled pixel by pixel from its definition."""
    unknowns = [tuple(pixel) for pixel in np.argwhere(hidden.numpy())]
    numbers = {pixel: number for number, pixel in enumerate(unknowns)}
    values = image.double().numpy()
    offsets = [offset for offset in product((-1, 0, 1), repeat=hidden.ndim) if any(offset)]
    matrix = scipy.sparse.lil_matrix((len(unknowns), len(unknowns)))
    right_hand_side = np.zeros((len(unknowns), len(image)))
    for number, pixel in enumerate(unknowns):
        for offset in offsets:
            neighbor = tuple(np.add(pixel, offset))
            if any(index < 0 or index >= side for index, side in zip(neighbor, hidden.shape, strict=True)):
                continue
            weight = 1 / np.abs(offset).sum()
            matrix[number, number] += weight
            if neighbor in numbers:
                matrix[number, numbers[neighbor]] = -weight
            else:
                right_hand_side[number] += weight * values[(slice(None), *neighbor)]
    solution = scipy.sparse.linalg.spsolve(matrix.tocsc(), right_hand_side).reshape(right_hand_side.shape)
    imputed = image.double()
    imputed[:, hidden] = torch.from_numpy(solution.T.copy())
    return imputed


def images_of(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def mask(*spatial: int, share: float, noise: float, seed: int = 2) -> torch.Tensor:
    """Return the highest pixels, a fraction ``share`` of them, of smooth noise mixed with white noise."""
    coarse = images_of(1, 1, *(4,) * len(spatial), seed=seed)
    smooth = nn.functional.interpolate(coarse, spatial, mode=MODES[len(spatial)])[0]
    ranks = position_ranks((1 - noise) * smooth + noise * images_of(1, *spatial, seed=seed + 1))
    return (ranks < round(share * ranks.numel()))[0]


def all_but(*spatial: int, visible: tuple[int, ...]) -> torch.Tensor:
    hidden = torch.ones(spatial, dtype=torch.bool)
    hidden[visible] = False
    return hidden


ROWS, COLUMNS = torch.meshgrid(torch.arange(41), torch.arange(41), indexing="ij")
MASKS = {
    **{
        f"{share:.0%}, {kind}": mask(48, 48, share=share, noise=noise)
        for share in (0.1, 0.5, 0.9)
        for kind, noise in (("smooth", 0.0), ("ragged", 0.1), ("white noise", 1.0))
    },
    "all but a corner": all_but(40, 40, visible=(0, 0)),
    "all but one inside": all_but(40, 40, visible=(17, 22)),
    "all but the last": all_but(33, 31, visible=(32, 30)),
    "all but a line": COLUMNS != 19,
    "one": ~all_but(9, 9, visible=(4, 4)),
    "a corner": ~all_but(9, 9, visible=(0, 8)),
    "chessboard": (ROWS + COLUMNS) % 2 == 0,
    "grid": (ROWS % 4 != 0) | (COLUMNS % 4 != 0),
    "diagonals": (ROWS + COLUMNS) % 7 != 0,
    "stripes": ROWS % 8 != 0,
    "wide": mask(9, 70, share=0.6, noise=0.1),
    "tall and odd": mask(67, 5, share=0.6, noise=0.1),
    "one row": mask(1, 60, share=0.6, noise=0.1),
    "two by two": torch.tensor([[True, True], [True, False]]),
    "1D": mask(300, share=0.8, noise=0.0),
    "1D, white noise": mask(300, share=0.9, noise=1.0),
    "1D, all but the first": all_but(200, visible=(0,)),
    "3D": mask(12, 9, 14, share=0.5, noise=0.1),
    "3D, white noise": mask(11, 11, 11, share=0.9, noise=1.0),
    "3D, flat": mask(16, 16, 2, share=0.7, noise=0.1),
}


@pytest.mark.parametrize("hidden", MASKS.values(), ids=MASKS)
def test_solution_equals_scipys(hidden):
    image = images_of(2, *hidden.shape)
    expected = spsolve(image, hidden)
    imputed = linear_imputation(image[None], hidden[None])[0]
    torch.testing.assert_close(imputed.double(), expected, rtol=0, atol=5e-6)
    assert torch.equal(imputed[:, ~hidden], image[:, ~hidden])
    exact = linear_imputation(image[None].double(), hidden[None], tolerance=1e-11)[0]
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-10)


def mixed_batch():
    """One image with NaN, and images with no, all, all but one, few and many hidden pixels."""
    hidden = torch.zeros(6, 30, 30, dtype=torch.bool)
    hidden[0] = hidden[5] = mask(30, 30, share=0.7, noise=0.3)
    hidden[2] = True
    hidden[3] = all_but(30, 30, visible=(7, 7))
    hidden[4, 4:9] = True
    images = images_of(6, 3, 30, 30) * torch.tensor([1.0, 1, 1, 1, 1e-3, 1e3]).view(-1, 1, 1, 1)
    images[0, 1, ~hidden[0]] = float("nan")
    return images, hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_does_not_depend_on_its_batch(dtype, monkeypatch):
    images, hidden = mixed_batch()
    images = images.to(dtype)
    together = linear_imputation(images, hidden)
    alone = torch.cat([linear_imputation(*one) for one in zip(images.split(1), hidden.split(1), strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0, equal_nan=True)
    assert together[1:].isfinite().all()
    assert together[2].abs().max() == 0
    for image, mask_of_image, imputed in zip(images[3:], hidden[3:], together[3:], strict=True):
        expected = spsolve(image, mask_of_image)
        assert (imputed - expected).abs().max() < 5e-6 * expected.abs().max()
    # A batch larger than the limit is imputed in parts.
    monkeypatch.setattr(road, "_MAX_PIXELS_PER_PART", 4 * 900)
    torch.testing.assert_close(linear_imputation(images, hidden), together, rtol=0, atol=0, equal_nan=True)


def test_inputs_are_not_modified():
    images, hidden = mixed_batch()
    before = images.clone(), hidden.clone()
    first = linear_imputation(images, hidden)
    torch.testing.assert_close((images, hidden), before, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(linear_imputation(images, hidden), first, rtol=0, atol=0, equal_nan=True)
    with torch.inference_mode():
        torch.testing.assert_close(linear_imputation(images, hidden), first, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    images, hidden = images_of(2, 1, 12, 12).to(dtype), mask(12, 12, share=0.5, noise=0.1).expand(2, -1, -1)
    imputed = linear_imputation(images, hidden)
    assert imputed.dtype == dtype
    expected = torch.stack([spsolve(*one) for one in zip(images, hidden, strict=True)])
    torch.testing.assert_close(
        imputed, expected.to(dtype), rtol=1e-5, atol=float(torch.finfo(dtype).eps) * 16
    )


@pytest.mark.parametrize("spatial", [(1,), (7,), (1, 1), (2, 2), (8, 8), (13, 50), (3, 4, 5)], ids=str)
def test_batches_with_nothing_to_solve(spatial):
    images, hidden = images_of(2, 3, *spatial), torch.zeros(2, *spatial, dtype=torch.bool)
    assert torch.equal(linear_imputation(images, hidden), images)
    assert torch.equal(linear_imputation(images, ~hidden), torch.zeros_like(images))
    assert linear_imputation(images[:0], hidden[:0]).shape == (0, 3, *spatial)


@pytest.mark.parametrize("side", [64, 200])
def test_a_gpu_synchronizes_once_per_level_and_once_per_three_cycles(side):
    images, hidden = images_of(2, 1, side, side), mask(side, side, share=0.6, noise=0.1).expand(2, -1, -1)
    with HostSyncs() as syncs:
        linear_imputation(images, hidden)
    # A side of 64 is halved to 1 six times, one of 200 eight times.
    assert syncs.seen.count("nonzero") == {64: 7, 200: 9}[side]
    assert 3 <= len(syncs.seen) - syncs.seen.count("nonzero") <= 5


def test_a_large_image_takes_no_more_cycles_than_a_small_one():
    """Relaxation without coarse grids would take tens of thousands."""
    counts = []
    for side in (32, 256):
        images, hidden = (
            images_of(1, 1, side, side),
            all_but(side, side, visible=(side // 3, side // 3))[None],
        )
        with HostSyncs() as syncs:
            imputed = linear_imputation(images, hidden)
        counts.append(len(syncs.seen) - syncs.seen.count("nonzero"))
        # All pixels take the value of the only known one.
        torch.testing.assert_close(imputed, imputed[..., side // 3, side // 3, None, None].expand_as(images))
    assert max(counts) <= 5


def test_sparse_matrix_product_by_hand():
    matrix = SparseMatrix(torch.tensor([[0, 2], [1, 1]]), torch.tensor([[1.0, 10.0], [2.0, 3.0]]))
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert torch.equal(matrix @ values, torch.tensor([[51.0, 62.0], [15.0, 20.0]]))


def test_any_symmetric_system_of_neighbors_is_solved():
    """Compare with a dense solver, for a different weight of each pair of neighbors."""
    points = GridPoints(mask(13, 10, share=0.7, noise=0.4)[None])
    columns = points.neighbor_numbers(points.indices)
    count = len(columns)
    weights = images_of(count, count).triu(1)
    weights = weights + weights.T
    rows = torch.arange(count)[:, None]
    entries = torch.where(
        (columns >= 0) & (columns != rows), -weights[rows, columns.clamp(min=0)], 0
    ).double()
    entries[:, 4] = 0.1 - entries.sum(1)
    matrix = SparseMatrix(torch.where(columns < 0, rows, columns), entries)
    dense = torch.zeros(count, count, dtype=torch.float64).scatter_add_(1, matrix.columns, entries)
    right_hand_side = images_of(count, 2).double()
    solution = solve(matrix, right_hand_side, points, tolerance=1e-10)
    torch.testing.assert_close(solution, torch.linalg.solve(dense, right_hand_side), rtol=0, atol=1e-7)
