"""ROAD's linear system by multigrid against scipy's sparse solver, on masks that are hard for one or the other."""

from itertools import product

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
import torch
from conftest import HostSyncs
from torch import nn

from torchmetrics_cam.functional import road
from torchmetrics_cam.functional._multigrid import Positions, Rows, solve
from torchmetrics_cam.functional.curves import position_ranks
from torchmetrics_cam.functional.road import linear_imputation

MODES = {1: "linear", 2: "bicubic", 3: "trilinear"}


def spsolve(image: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """One image by scipy, in float64: position by position, from the definition."""
    gone = [tuple(place) for place in np.argwhere(hidden.numpy())]
    numbers = {place: number for number, place in enumerate(gone)}
    pixels = image.double().numpy()
    offsets = [offset for offset in product((-1, 0, 1), repeat=hidden.ndim) if any(offset)]
    matrix = scipy.sparse.lil_matrix((len(gone), len(gone)))
    wanted = np.zeros((len(gone), len(image)))
    for number, place in enumerate(gone):
        for offset in offsets:
            near = tuple(np.add(place, offset))
            if any(index < 0 or index >= side for index, side in zip(near, hidden.shape, strict=True)):
                continue
            weight = 1 / np.abs(offset).sum()
            matrix[number, number] += weight
            if near in numbers:
                matrix[number, numbers[near]] = -weight
            else:
                wanted[number] += weight * pixels[(slice(None), *near)]
    solved = scipy.sparse.linalg.spsolve(matrix.tocsc(), wanted).reshape(wanted.shape)
    filled = image.double()
    filled[:, hidden] = torch.from_numpy(solved.T.copy())
    return filled


def images_of(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def mask(*spatial: int, share: float, noise: float, seed: int = 2) -> torch.Tensor:
    """The share of the positions that is highest in enlarged noise, and as much white noise as said."""
    coarse = images_of(1, 1, *(4,) * len(spatial), seed=seed)
    smooth = nn.functional.interpolate(coarse, spatial, mode=MODES[len(spatial)])[0]
    ranks = position_ranks((1 - noise) * smooth + noise * images_of(1, *spatial, seed=seed + 1))
    return (ranks < round(share * ranks.numel()))[0]


def all_but(*spatial: int, place: tuple[int, ...]) -> torch.Tensor:
    hidden = torch.ones(spatial, dtype=torch.bool)
    hidden[place] = False
    return hidden


ROWS, COLUMNS = torch.meshgrid(torch.arange(41), torch.arange(41), indexing="ij")
MASKS = {
    **{
        f"{share:.0%}, {kind}": mask(48, 48, share=share, noise=noise)
        for share in (0.1, 0.5, 0.9)
        for kind, noise in (("smooth", 0.0), ("ragged", 0.1), ("white noise", 1.0))
    },
    "all but a corner": all_but(40, 40, place=(0, 0)),
    "all but one inside": all_but(40, 40, place=(17, 22)),
    "all but the last": all_but(33, 31, place=(32, 30)),
    "all but a line": COLUMNS != 19,
    "one": ~all_but(9, 9, place=(4, 4)),
    "a corner": ~all_but(9, 9, place=(0, 8)),
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
    "1D, all but the first": all_but(200, place=(0,)),
    "3D": mask(12, 9, 14, share=0.5, noise=0.1),
    "3D, white noise": mask(11, 11, 11, share=0.9, noise=1.0),
    "3D, flat": mask(16, 16, 2, share=0.7, noise=0.1),
}


@pytest.mark.parametrize("hidden", MASKS.values(), ids=MASKS)
def test_it_is_scipys_solution(hidden):
    image = images_of(2, *hidden.shape)
    expected = spsolve(image, hidden)
    imputed = linear_imputation(image[None], hidden[None])[0]
    torch.testing.assert_close(imputed.double(), expected, rtol=0, atol=5e-6)
    assert torch.equal(imputed[:, ~hidden], image[:, ~hidden])
    exact = linear_imputation(image[None].double(), hidden[None], tolerance=1e-11)[0]
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-10)


def mixed_batch():
    """A bad image, and images of which nothing, everything, all but one, a little and much is hidden."""
    hidden = torch.zeros(6, 30, 30, dtype=torch.bool)
    hidden[0] = hidden[5] = mask(30, 30, share=0.7, noise=0.3)
    hidden[2] = True
    hidden[3] = all_but(30, 30, place=(7, 7))
    hidden[4, 4:9] = True
    images = images_of(6, 3, 30, 30) * torch.tensor([1.0, 1, 1, 1, 1e-3, 1e3]).view(-1, 1, 1, 1)
    images[0, 1, ~hidden[0]] = float("nan")
    return images, hidden


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_image_is_imputed_the_same_in_any_batch(dtype, monkeypatch):
    images, hidden = mixed_batch()
    images = images.to(dtype)
    together = linear_imputation(images, hidden)
    alone = torch.cat([linear_imputation(*one) for one in zip(images.split(1), hidden.split(1), strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0, equal_nan=True)
    assert together[1:].isfinite().all()
    assert together[2].abs().max() == 0
    for image, gone, imputed in zip(images[3:], hidden[3:], together[3:], strict=True):
        expected = spsolve(image, gone)
        assert (imputed - expected).abs().max() < 5e-6 * expected.abs().max()
    # Large batches are imputed a part at a time.
    monkeypatch.setattr(road, "_AT_ONCE", 4 * 900)
    torch.testing.assert_close(linear_imputation(images, hidden), together, rtol=0, atol=0, equal_nan=True)


def test_it_changes_nothing_that_it_was_given():
    images, hidden = mixed_batch()
    before = images.clone(), hidden.clone()
    first = linear_imputation(images, hidden)
    torch.testing.assert_close((images, hidden), before, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(linear_imputation(images, hidden), first, rtol=0, atol=0, equal_nan=True)
    with torch.inference_mode():
        torch.testing.assert_close(linear_imputation(images, hidden), first, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_stays(dtype):
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
def test_a_gpu_waits_once_a_level_and_once_for_three_cycles(side):
    images, hidden = images_of(2, 1, side, side), mask(side, side, share=0.6, noise=0.1).expand(2, -1, -1)
    with HostSyncs() as syncs:
        linear_imputation(images, hidden)
    # 64 positions are halved to 1 six times, 200 eight times.
    assert syncs.seen.count("nonzero") == {64: 7, 200: 9}[side]
    assert 3 <= len(syncs.seen) - syncs.seen.count("nonzero") <= 5


def test_a_large_image_takes_no_more_cycles_than_a_small_one():
    """Relaxation alone would take tens of thousands."""
    counts = []
    for side in (32, 256):
        images, hidden = images_of(1, 1, side, side), all_but(side, side, place=(side // 3, side // 3))[None]
        with HostSyncs() as syncs:
            imputed = linear_imputation(images, hidden)
        counts.append(len(syncs.seen) - syncs.seen.count("nonzero"))
        # All positions take the value of the only one that is known.
        torch.testing.assert_close(imputed, imputed[..., side // 3, side // 3, None, None].expand_as(images))
    assert max(counts) <= 5


def test_a_sparse_matrix_by_hand():
    rows = Rows(torch.tensor([[0, 2], [1, 1]]), torch.tensor([[1.0, 10.0], [2.0, 3.0]]))
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert torch.equal(rows(values), torch.tensor([[51.0, 62.0], [15.0, 20.0]]))


def test_any_symmetric_system_of_neighbors_is_solved():
    """With weights of its own for each pair of neighbors, against a dense solver."""
    positions = Positions(mask(13, 10, share=0.7, noise=0.4)[None])
    columns = positions.numbers_around(positions.indices)
    count = len(columns)
    weights = images_of(count, count).triu(1)
    weights = weights + weights.T
    own = torch.arange(count)[:, None]
    entries = torch.where((columns >= 0) & (columns != own), -weights[own, columns.clamp(min=0)], 0).double()
    entries[:, 4] = 0.1 - entries.sum(1)
    matrix = Rows(torch.where(columns < 0, own, columns), entries)
    dense = torch.zeros(count, count, dtype=torch.float64).scatter_add_(1, matrix.columns, entries)
    wanted = images_of(count, 2).double()
    solution = solve(matrix, wanted, positions, tolerance=1e-10)
    torch.testing.assert_close(solution, torch.linalg.solve(dense, wanted), rtol=0, atol=1e-7)
