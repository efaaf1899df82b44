"""Geometric multigrid solver for sparse linear systems A x = b on a subset of the pixels of images.

The smoother (weighted l1-Jacobi relaxation) removes the error components that oscillate from pixel to pixel,
but hardly reduces the smooth ones. A smooth error is represented well on a grid of half the size, where it
oscillates more and can be smoothed again. One V-cycle therefore smooths, restricts the residual to the
coarser grid, solves for the correction there by recursion, interpolates (prolongates) the correction back,
and smooths once more. A V-cycle leaves about a third of the error, independently of the image size.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_RELAXATION_WEIGHT = 1.5
# The stopping criterion, which synchronizes a GPU with the host, is evaluated once per round.
_CYCLES_PER_ROUND = 3
_MAX_ROUNDS = 20


class GridPoints:
    """The unknowns of the linear system: selected pixels of a batch of images, numbered in row-major order.

    Creating an instance synchronizes a GPU with the host once, because the number of pixels is read.

    Args:
        selected: the selected pixels, bool ``(N, *spatial)``.
    """

    def __init__(self, selected: Tensor) -> None:
        self.batch_size, *self.spatial = selected.shape
        self.indices = selected.nonzero()
        padded = F.pad(selected, (1, 1) * len(self.spatial)).flatten()
        self._numbers = torch.where(padded, padded.cumsum(0) - 1, -1)

    def padded_neighborhood(self, indices: Tensor) -> Tensor:
        """Return flat indices of pixels and their neighbors in the batch padded by one pixel.

        Args:
            indices: image and pixel indices, ``(n, 1 + d)``.

        Returns:
            Indices ``(n, 3**d)``, neighbors in row-major order, the pixel itself in the middle.
        """
        image, *axes = indices.unsqueeze(2).unbind(1)
        offsets = torch.arange(3, device=indices.device)
        return _flat_indices(image, [axis + offsets for axis in axes], [side + 2 for side in self.spatial])

    def neighbor_numbers(self, indices: Tensor) -> Tensor:
        """Return the numbers of the unknowns at pixels and their neighbors, -1 for pixels not selected.

        Args:
            indices: image and pixel indices, ``(n, 1 + d)``.

        Returns:
            Numbers ``(n, 3**d)`` in the order of `padded_neighborhood`.
        """
        return self._numbers[self.padded_neighborhood(indices)]


class SparseMatrix(NamedTuple):
    """A sparse matrix with the same number k of entries in each row (ELLPACK format).

    Args:
        columns: the column of each entry, ``(rows, k)``. A column may occur repeatedly; its entries add up.
        entries: the values, ``(rows, k)``.
    """

    columns: Tensor
    entries: Tensor

    def __matmul__(self, vectors: Tensor) -> Tensor:
        """Return the product with a dense matrix ``(columns, C)``, shape ``(rows, C)``."""
        if vectors.device.type == "mps":  # embedding_bag is missing there before torch 2.10
            return (self.entries.unsqueeze(1) @ vectors[self.columns]).squeeze(1)
        return F.embedding_bag(self.columns, vectors, per_sample_weights=self.entries, mode="sum")


class _Level(NamedTuple):
    """One grid of the hierarchy; the coarsest has no restriction and no prolongation."""

    matrix: SparseMatrix
    step_size: Tensor
    restriction: SparseMatrix | None = None
    prolongation: SparseMatrix | None = None


def solve(matrix: SparseMatrix, right_hand_side: Tensor, points: GridPoints, *, tolerance: float) -> Tensor:
    """Solve a linear system A x = b with a symmetric positive definite matrix.

    The images of a batch are independent systems: the solution for an image does not depend on the others.
    The system of an image may be singular if its right-hand side is 0; its solution is then 0.

    A GPU synchronizes with the host once per grid level, and once per three V-cycles.

    Args:
        matrix: A, one row per unknown, with the entries for the unknown and its neighbors in the order of
            `GridPoints.neighbor_numbers`. The entry of a neighbor that is no unknown is 0, in any column of
            the same image.
        right_hand_side: b, ``(unknowns, C)``.
        points: the unknowns, at least one.
        tolerance: the relative error, per image. Iteration stops when the last V-cycle changes no value by
            more than this fraction of the image's largest value, which is about the remaining error.

    Returns:
        The solution x, ``(unknowns, C)``.
    """
    levels = _build_levels(SparseMatrix(matrix.columns, matrix.entries.float()), points)
    image = points.indices[:, 0]
    solution, residual = torch.zeros_like(right_hand_side), right_hand_side
    unsolved = torch.ones_like(right_hand_side[:, :1], dtype=torch.bool)
    for _ in range(_MAX_ROUNDS):
        # float32 is precise enough for a correction, but not for the residual of the whole solution.
        residual = residual.float()
        last_change = correction = _v_cycle(levels, residual)
        for _ in range(_CYCLES_PER_ROUND - 1):
            last_change = _v_cycle(levels, residual - levels[0].matrix @ correction)
            correction = correction + last_change
        # Solved images stay fixed, so that the other images of the batch do not influence their values.
        solution = torch.where(unsolved, solution + correction, solution)
        error_bound = last_change.abs() + torch.finfo(last_change.dtype).eps * correction.abs()
        error, magnitude = (
            _max_per_image(values, image, points.batch_size) for values in (error_bound, solution)
        )
        unsolved = unsolved & (error > tolerance * magnitude)[image].unsqueeze(1)
        if not unsolved.any():
            break
        residual = right_hand_side - matrix @ solution
    return solution


def _v_cycle(levels: list[_Level], right_hand_side: Tensor) -> Tensor:
    """Approximate the solution of the finest level by one V-cycle, starting from 0."""
    (matrix, step_size, restriction, prolongation), *coarser_levels = levels
    solution = step_size * right_hand_side
    if restriction is None or prolongation is None:
        return solution
    coarse_residual = restriction @ (right_hand_side - matrix @ solution)
    solution = solution + prolongation @ _v_cycle(coarser_levels, coarse_residual)
    return solution + step_size * (right_hand_side - matrix @ solution)


def _build_levels(matrix: SparseMatrix, points: GridPoints) -> list[_Level]:
    """Build the hierarchy of grids, each of half the size of the one before, down to one pixel per image."""
    # The row of a singular system may be 0. Its right-hand side is 0 too, so any finite step does.
    tiny = torch.finfo(matrix.entries.dtype).eps ** 2
    row_norms = matrix.entries.abs().sum(1, keepdim=True).clamp(min=tiny)
    if max(points.spatial) == 1:
        return [_Level(matrix, 1 / row_norms)]
    # Jacobi relaxation scaled by the rows' l1 norms converges for any weight below 2.
    step_size = _RELAXATION_WEIGHT / row_norms
    # The error that one smoothing step leaves of a constant error of 1: less beside known pixels, where the
    # error is 0. Interpolated corrections are scaled to the same shape.
    smoothed_constant = 1 - step_size * matrix.entries.sum(1, keepdim=True)
    coarse_points, restriction, prolongation = _coarsen(points, smoothed_constant)
    coarse_matrix = _galerkin_product(matrix, coarse_points, restriction, prolongation)
    return [
        _Level(matrix, step_size, restriction, prolongation),
        *_build_levels(coarse_matrix, coarse_points),
    ]


def _coarsen(points: GridPoints, scale: Tensor) -> tuple[GridPoints, SparseMatrix, SparseMatrix]:
    """Build the coarser grid, the restriction to it and the prolongation from it.

    The coarser grid has every second pixel along each axis. Prolongation is linear interpolation, in which a
    fine pixel takes the mean of its 2**d coarse parents, times ``scale``. A pixel that lies on a coarse one
    has it twice as a parent along that axis. Restriction is the transpose.

    Args:
        points: the fine grid.
        scale: one factor per fine unknown, ``(unknowns, 1)``.

    Returns:
        Coarse grid, restriction and prolongation.
    """
    image, *axes = points.indices.unsqueeze(2).unbind(1)
    spatial = [(side + 1) // 2 for side in points.spatial]
    parent_axes = [
        torch.cat([axis // 2, ((axis + 1) // 2).clamp(max=side - 1)], 1)
        for axis, side in zip(axes, spatial, strict=True)
    ]
    parents = _flat_indices(image, parent_axes, spatial)
    selected = torch.zeros(points.batch_size, *spatial, dtype=torch.bool, device=parents.device)
    selected.view(-1)[parents] = True
    coarse = GridPoints(selected)
    parents = (selected.flatten().cumsum(0) - 1)[parents]
    weights = scale / parents.shape[1]
    prolongation = SparseMatrix(parents, weights.expand(parents.shape).contiguous())

    image, *axes = coarse.indices.unsqueeze(2).unbind(1)
    children = points.neighbor_numbers(torch.cat([image, *(2 * axis for axis in axes)], 1))
    exists = children >= 0
    children = torch.where(exists, children, children.amax(1, keepdim=True))
    coarse_numbers = torch.arange(len(children), device=children.device).view(-1, 1, 1)
    multiplicity = (parents[children] == coarse_numbers).sum(2)
    restriction = SparseMatrix(children, multiplicity * exists * weights[children, 0])
    return coarse, restriction, prolongation


def _galerkin_product(
    matrix: SparseMatrix, coarse: GridPoints, restriction: SparseMatrix, prolongation: SparseMatrix
) -> SparseMatrix:
    """Return the coarse matrix, the Galerkin product R A P, from its products with 3**d probing vectors.

    A row of the product has entries only for the 3**d pixels of a neighborhood, which all differ in their
    indices modulo 3. So one vector per combination of indices modulo 3, with ones at the pixels of that
    combination, yields each entry on its own.
    """
    image, *axes = coarse.indices.unsqueeze(2).unbind(1)
    color = _flat_indices(torch.zeros_like(image), [axis % 3 for axis in axes], [3] * len(axes)).squeeze(1)
    colors = torch.arange(matrix.columns.shape[1], device=color.device)
    probing_vectors = (color.unsqueeze(1) == colors).to(matrix.entries.dtype)
    products = restriction @ (matrix @ (prolongation @ probing_vectors))
    columns = coarse.neighbor_numbers(coarse.indices)
    exists = columns >= 0
    columns = torch.where(exists, columns, torch.arange(len(columns), device=columns.device).unsqueeze(1))
    return SparseMatrix(columns, products.gather(1, color[columns]) * exists)


def _flat_indices(image: Tensor, axes: Sequence[Tensor], spatial: Sequence[int]) -> Tensor:
    """Return the flat indices of all combinations of the axes' indices.

    Args:
        image: the index of the image, ``(n, 1)``.
        axes: k indices along each axis, ``(n, k)`` each.
        spatial: the spatial shape.

    Returns:
        Indices ``(n, k**d)``.
    """
    for axis, side in zip(axes, spatial, strict=True):
        image = (image.unsqueeze(2) * side + axis.unsqueeze(1)).flatten(1)
    return image


def _max_per_image(values: Tensor, image: Tensor, batch_size: int) -> Tensor:
    """Return the largest absolute value of each image, ``(batch_size,)``."""
    return values.new_zeros(batch_size).scatter_reduce(0, image, values.abs().amax(1), "amax")
