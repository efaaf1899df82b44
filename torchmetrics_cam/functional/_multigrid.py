"""Multigrid: a sparse linear system over some positions of a grid, solved with the help of coarser grids.

Relaxation moves each unknown towards what its own row wants. That soon takes the part of the error that
differs from position to position, and hardly any of what is spread over a wide region. On a grid of half the
size the region is half as wide. So a cycle relaxes, solves for what is left on the coarser grid, which does
the same with a still coarser one, and relaxes again. It leaves about a third of the error, however large the
regions are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_RELAXATION = 1.5
_CYCLES = 3
_MOST_ROUNDS = 20


class Positions:
    """Some positions of the images of a batch, numbered in their order. A GPU waits for their count.

    Args:
        chosen: which they are, ``(N, *spatial)``.
    """

    def __init__(self, chosen: Tensor) -> None:
        self.images, *self.spatial = chosen.shape
        self.indices = chosen.nonzero()
        padded = F.pad(chosen, (1, 1) * len(self.spatial)).flatten()
        self._numbers = torch.where(padded, padded.cumsum(0) - 1, -1)

    def around(self, indices: Tensor) -> Tensor:
        """Flat indices of positions and their neighbors in the batch with a border of 1, ``(n, 3**d)``."""
        image, *axes = indices.unsqueeze(2).unbind(1)
        offsets = torch.arange(3, device=indices.device)
        return _flat(image, [axis + offsets for axis in axes], [side + 2 for side in self.spatial])

    def numbers_around(self, indices: Tensor) -> Tensor:
        """The numbers of positions and their neighbors, -1 for those not chosen, ``(n, 3**d)``."""
        return self._numbers[self.around(indices)]


class Rows(NamedTuple):
    """A sparse matrix with the same count of entries in each row, ``(rows, k)``, and their columns."""

    columns: Tensor
    entries: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """The product with a matrix, ``(columns, C)``."""
        if values.device.type == "mps":  # without embedding_bag before torch 2.10
            return (self.entries.unsqueeze(1) @ values[self.columns]).squeeze(1)
        return F.embedding_bag(self.columns, values, per_sample_weights=self.entries, mode="sum")


class _Level(NamedTuple):
    """The system on one grid, how far relaxation goes, and the ways to the coarser grid and back."""

    matrix: Rows
    length: Tensor
    down: Rows | None = None
    up: Rows | None = None


def solve(matrix: Rows, wanted: Tensor, positions: Positions, *, tolerance: float) -> Tensor:
    """The solution of a symmetric positive definite system; that of an image is the same in any batch.

    The part of an image may also be singular, where all its right-hand sides are 0; its solution is 0. A GPU
    waits once a level, and once for three cycles.

    Args:
        matrix: a row a position, with entries for itself and its neighbors in the order of
            `Positions.numbers_around`; 0 for one that is not there, with any column of the same image.
        wanted: the right-hand sides, ``(positions, C)``.
        positions: the unknowns, at least one.
        tolerance: an image is solved when a cycle changes it by no more than this share of its largest value,
            which is about as much error as is left then.

    Returns:
        The solution, ``(positions, C)``.
    """
    levels = _levels(Rows(matrix.columns, matrix.entries.float()), positions)
    image = positions.indices[:, 0]
    solution, left = torch.zeros_like(wanted), wanted
    going = torch.ones_like(wanted[:, :1], dtype=torch.bool)
    for _ in range(_MOST_ROUNDS):
        # A correction needs no more digits than float32 has; what is left of the right-hand sides does.
        left = left.float()
        change = correction = _cycle(levels, left)
        for _ in range(_CYCLES - 1):
            change = _cycle(levels, left - levels[0].matrix(correction))
            correction = correction + change
        # An image that is solved stands still while the others go on.
        solution = torch.where(going, solution + correction, solution)
        undone = change.abs() + torch.finfo(change.dtype).eps * correction.abs()
        error, size = (_largest(values, image, positions.images) for values in (undone, solution))
        going = going & (error > tolerance * size)[image].unsqueeze(1)
        if not going.any():
            break
        left = wanted - matrix(solution)
    return solution


def _cycle(levels: list[_Level], wanted: Tensor) -> Tensor:
    """Nearly the solution, from one visit to each level and back."""
    (matrix, length, down, up), *coarser = levels
    solution = length * wanted
    if down is None or up is None:
        return solution
    solution = solution + up(_cycle(coarser, down(wanted - matrix(solution))))
    return solution + length * (wanted - matrix(solution))


def _levels(matrix: Rows, positions: Positions) -> list[_Level]:
    """The system on this grid and on grids of half the size each, down to one position an image."""
    # A row can be 0; nothing is wanted there.
    tiny = torch.finfo(matrix.entries.dtype).eps ** 2
    size = matrix.entries.abs().sum(1, keepdim=True).clamp(min=tiny)
    if max(positions.spatial) == 1:
        return [_Level(matrix, 1 / size)]
    # Relaxation that goes 1 / size never overshoots, and below twice as far it converges.
    length = _RELAXATION / size
    # What it leaves of an error of 1 everywhere: less beside known positions, which have no error.
    shape = 1 - length * matrix.entries.sum(1, keepdim=True)
    coarse, down, up = _between(positions, shape)
    return [_Level(matrix, length, down, up), *_levels(_coarse_matrix(matrix, coarse, down, up), coarse)]


def _between(positions: Positions, shape: Tensor) -> tuple[Positions, Rows, Rows]:
    """The coarser grid, and the ways there and back: back is linear interpolation times ``shape``.

    The coarser grid has every second position of an axis. A position lies on one or between two of them, and
    takes the mean of both, in every axis. The way there is the transpose.
    """
    image, *axes = positions.indices.unsqueeze(2).unbind(1)
    spatial = [(side + 1) // 2 for side in positions.spatial]
    both = [
        torch.cat([axis // 2, ((axis + 1) // 2).clamp(max=side - 1)], 1)
        for axis, side in zip(axes, spatial, strict=True)
    ]
    parents = _flat(image, both, spatial)
    chosen = torch.zeros(positions.images, *spatial, dtype=torch.bool, device=parents.device)
    chosen.view(-1)[parents] = True
    coarse = Positions(chosen)
    parents = (chosen.flatten().cumsum(0) - 1)[parents]
    weights = shape / parents.shape[1]
    up = Rows(parents, weights.expand(parents.shape).contiguous())

    image, *axes = coarse.indices.unsqueeze(2).unbind(1)
    children = positions.numbers_around(torch.cat([image, *(2 * axis for axis in axes)], 1))
    there = children >= 0
    children = torch.where(there, children, children.amax(1, keepdim=True))
    own = torch.arange(len(children), device=children.device).view(-1, 1, 1)
    down = Rows(children, (parents[children] == own).sum(2) * there * weights[children, 0])
    return coarse, down, up


def _coarse_matrix(matrix: Rows, coarse: Positions, down: Rows, up: Rows) -> Rows:
    """The product ``down @ matrix @ up``, read off its products with ``3**d`` vectors.

    Among a position and its neighbors no two have the same indices modulo 3. So with a vector for each
    combination of them, 1 where the indices are that combination, no two entries of a row are added up.
    """
    image, *axes = coarse.indices.unsqueeze(2).unbind(1)
    kind = _flat(torch.zeros_like(image), [axis % 3 for axis in axes], [3] * len(axes)).squeeze(1)
    kinds = torch.arange(matrix.columns.shape[1], device=kind.device)
    vectors = (kind.unsqueeze(1) == kinds).to(matrix.entries.dtype)
    products = down(matrix(up(vectors)))
    columns = coarse.numbers_around(coarse.indices)
    there = columns >= 0
    columns = torch.where(there, columns, torch.arange(len(columns), device=columns.device).unsqueeze(1))
    return Rows(columns, products.gather(1, kind[columns]) * there)


def _flat(image: Tensor, axes: Sequence[Tensor], spatial: Sequence[int]) -> Tensor:
    """The flat indices of all combinations of indices ``(n, k)`` of the axes, in images ``(n, 1)``."""
    for axis, side in zip(axes, spatial, strict=True):
        image = (image.unsqueeze(2) * side + axis.unsqueeze(1)).flatten(1)
    return image


def _largest(values: Tensor, image: Tensor, images: int) -> Tensor:
    """The largest absolute value of each image, ``(images,)``."""
    return values.new_zeros(images).scatter_reduce(0, image, values.abs().amax(1), "amax")
