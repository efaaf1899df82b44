"""Correlations between a map and the change of the score when parts of the image are hidden."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmetrics_cam.functional._noise import hashed_noise
from torchmetrics_cam.functional.confidence import Reduction, reduce_samples
from torchmetrics_cam.functional.maps import value_dtype
from torchmetrics_cam.functional.statistics import sum_dtype

# Maps are rounded to multiples of this, in units of their largest absolute value, before they are summed, so
# that float64 adds up to 2**23 pixels without rounding errors: equal cells then tie on every device and in
# every batch.
_RESOLUTION = 2.0**-30


def single_deletion(maps: Tensor, drops: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Compute the single deletion score: whether the map ranks the cells of a grid as their deletion does.

    .. math:: r_s\left( \sum_{j \in C_1} M_j, \dots, \sum_{j \in C_n} M_j;\ d_1, \dots, d_n \right)

    with Spearman's rank correlation :math:`r_s`, in which equal values have the mean of their ranks, over the
    cells :math:`C` of `grid_cells`. Higher is better.

    Args:
        maps: :math:`M`, ``(N, *spatial)``, in any unit, summed with a resolution of 1e-9 of the largest
            absolute value of each.
        drops: :math:`d`, how much the logit of the target class drops when a cell is hidden, for each cell of
            a grid of g cells along each axis in row-major order, ``(g**d, N)``.
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar in [-1, 1], or a tensor ``(N,)``. The value is not defined, and NaN, if the map is constant,
        all cells have the same sum or the same drop, or a value is not finite.

    Raises:
        ValueError: if the number of drops is not that of a grid, ``drops`` has another number of samples than
            the maps, or ``reduction`` is neither ``"mean"`` nor ``"none"``.

    Source: Hesse et al., Benchmarking the Attribution Quality of Vision Models,
    https://arxiv.org/abs/2407.11910, without its training on images with hidden cells

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import single_deletion
        >>> maps = torch.tensor([[[0.9, 0.3], [0.1, 0.0]]])  # a grid of four cells of one pixel each
        >>> single_deletion(maps, torch.tensor([[2.0], [1.0], [0.5], [-0.1]]))
        tensor(1.)
        >>> single_deletion(maps, torch.tensor([[2.0], [0.5], [1.0], [-0.1]]))  # 1 - 6 * 2 / (4 * 15)
        tensor(0.8000)

    """
    dims = maps.ndim - 1
    per_axis = round(len(drops) ** (1 / dims))
    if drops.shape[1:] != maps.shape[:1] or per_axis**dims != len(drops):
        raise ValueError(
            f"drops has shape {tuple(drops.shape)} and maps {tuple(maps.shape)}; drops must be (g**{dims},"
            f" {len(maps)}), one for each cell of a grid with g cells along each axis and each map"
        )
    sums = cell_sums(maps, cell_numbers(maps.shape[1:], per_axis, device=maps.device), len(drops))
    # The cells of a constant map would differ where they have not all the same number of pixels.
    values = _rounded(maps)
    constant = values.amax(1) == values.amin(1)
    correlation = rank_correlation(sums, drops.T)
    return reduce_samples(correlation.where(~constant, torch.nan).to(value_dtype(maps)), reduction)


def faithfulness_correlation(sums: Tensor, drops: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Compute the faithfulness correlation of a map with the score. Higher is better.

    It says whether the drop of the score is correlated with the sum of the map over the hidden pixels.

    .. math:: r\left( \sum_{j \in S_1} M_j, \dots, \sum_{j \in S_n} M_j;\ d_1, \dots, d_n \right)

    with Pearson's correlation :math:`r`, over random subsets :math:`S` of the pixels or of the cells of a
    grid.

    Args:
        sums: the sum of the map over each of S subsets, ``(S, N)``.
        drops: :math:`d`, how much the score of the target class drops when the subset is hidden, ``(S, N)``.
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar in [-1, 1], or a tensor ``(N,)``. The value is not defined, and NaN, if all sums or all drops
        are the same, or a value is not finite.

    Raises:
        ValueError: if the two tensors do not have the same shape ``(S, N)``, or ``reduction`` is neither
            ``"mean"`` nor ``"none"``.

    Source: Bhatt et al., Evaluating and Aggregating Feature-based Model Explanations,
    https://arxiv.org/abs/2005.00631

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import faithfulness_correlation
        >>> sums = torch.tensor([[0.25], [0.5], [0.75]])
        >>> faithfulness_correlation(sums, torch.tensor([[0.0], [0.5], [1.0]]))
        tensor(1.)
        >>> faithfulness_correlation(sums, torch.tensor([[0.5], [0.0], [0.5]]))
        tensor(0.)

    """
    if sums.ndim != 2 or sums.shape != drops.shape:
        raise ValueError(
            f"sums has shape {tuple(sums.shape)} and drops {tuple(drops.shape)}; both must have the same"
            " shape (S, N), one value for each subset and sample"
        )
    return reduce_samples(pearson_correlation(sums.T, drops.T), reduction)


def grid_cells(size: Sequence[int], per_axis: int, *, device: torch.device | str | None = None) -> Tensor:
    """Return the pixels of each cell of a regular grid over an image.

    Cell i of an axis of n pixels begins at pixel ``i * n / per_axis``, rounded to the nearest integer and
    halves to the nearest even one. So cells differ by at most one pixel along each axis, and the grid is
    symmetric wherever it can be.

    Args:
        size: the spatial shape of the image, in pixels.
        per_axis: the number of cells along each axis.
        device: the device of the result.

    Returns:
        bool tensor ``(per_axis**d, *size)``, the cells in row-major order. Each pixel is in exactly one.

    Raises:
        ValueError: if an axis has fewer pixels than cells, or ``per_axis`` is not positive.

    Example:
        >>> from torchmetrics_cam.functional import grid_cells
        >>> grid_cells((5,), 2).int()
        tensor([[1, 1, 0, 0, 0],
                [0, 0, 1, 1, 1]], dtype=torch.int32)

    """
    cells = torch.arange(per_axis ** len(size), device=device)
    return cell_numbers(size, per_axis, device=device) == cells.view(-1, *(1,) * len(size))


def cell_numbers(size: Sequence[int], per_axis: int, *, device: torch.device | str | None = None) -> Tensor:
    """Return the number of the cell that each pixel is in, int64, ``(*size)``; see `grid_cells`.

    Raises:
        ValueError: if an axis has fewer pixels than cells, or ``per_axis`` is not positive.
    """
    check_grid(size, per_axis)
    numbers = torch.zeros((), dtype=torch.int64, device=device)
    for side in size:
        first_pixels = (torch.arange(per_axis, device=device) * side / per_axis).round()
        pixels = torch.arange(side, device=device)
        cell = (pixels.unsqueeze(1) >= first_pixels).sum(1) - 1
        numbers = numbers.unsqueeze(-1) * per_axis + cell
    return numbers


def check_grid(size: Sequence[int], per_axis: int, name: str = "per_axis") -> None:
    """Validate that an image has at least as many pixels along each axis as the grid has cells.

    Args:
        size: as for `grid_cells`.
        per_axis: as for `grid_cells`.
        name: the name of the setting that is ``per_axis``.

    Raises:
        ValueError: if an axis has fewer pixels than cells, or ``per_axis`` is not positive.
    """
    if not 1 <= per_axis <= min(size):
        raise ValueError(
            f"an image of {' x '.join(map(str, size))} pixels has no grid of {per_axis} cells along each"
            f" axis; choose {name} from 1 to {min(size)}"
        )


def cell_sums(maps: Tensor, numbers: Tensor, cells: int) -> Tensor:
    """Return the sum of each map over each cell, in units of the map's largest absolute value.

    Args:
        maps: ``(N, *spatial)``, in any unit, summed with a resolution of 1e-9 of the largest absolute value.
        numbers: as `cell_numbers`.
        cells: the number of cells.

    Returns:
        A tensor ``(N, cells)``, float64 where the device has it; zeros for a map of zeros.
    """
    values = _rounded(maps)
    sums = values.new_zeros(len(maps), cells).index_add(1, numbers.flatten(), values)
    return sums * _RESOLUTION


def _rounded(maps: Tensor) -> Tensor:
    """Return the values of each map as multiples of the resolution, integers in ``sum_dtype``, ``(N, P)``."""
    values = maps.flatten(1).to(sum_dtype(maps.device))
    largest = values.abs().amax(1, keepdim=True)
    return (values / largest.where(largest != 0, 1) / _RESOLUTION).round()


def random_subsets(images: Tensor, units: int, *, size: int, count: int, seed: int) -> Tensor:
    """Draw random subsets of the pixels, or of the cells of a grid, from a hash of each image and a seed.

    The subsets of an image are the same in any batch, order and process.

    Args:
        images: floating-point images ``(N, ...)``; a change of any bit changes the subsets.
        units: the number of pixels or cells to choose from.
        size: how many of them are in each subset.
        count: the number of subsets of each image.
        seed: an integer of any size.

    Returns:
        bool tensor ``(N, count, units)``, exactly ``size`` of the last dimension True. It takes some 30 bytes
        for each of its elements to compute, which for every pixel of a photo is much; cells are few.

    Raises:
        ValueError: if ``size`` is not from 1 to ``units - 1``.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import random_subsets
        >>> images = torch.rand(2, 3, 8, 8)
        >>> subsets = random_subsets(images, 16, size=4, count=10, seed=0)
        >>> subsets.shape, subsets.sum(2).unique()
        (torch.Size([2, 10, 16]), tensor([4]))
        >>> bool((random_subsets(images[1:], 16, size=4, count=10, seed=0) == subsets[1:]).all())
        True

    """
    if not 1 <= size < units:
        raise ValueError(
            f"subsets of {size} of {units} units are all the same, or impossible; choose a size from 1 to"
            f" {units - 1}"
        )
    noise = hashed_noise(images, count * units, seed).view(len(images), count, units)
    # Stable, so that equal numbers are ordered in the same way on every device.
    chosen = noise.argsort(dim=2, stable=True)[..., :size]
    return torch.zeros_like(noise, dtype=torch.bool).scatter(2, chosen, True)


def pearson_correlation(first: Tensor, second: Tensor, *, of_constant: float = torch.nan) -> Tensor:
    """Compute Pearson's correlation of each pair of rows.

    Args:
        first: ``(N, P)``.
        second: of the same shape.
        of_constant: the result where one of the two rows is constant, and the correlation not defined.

    Returns:
        A tensor ``(N,)`` in [-1, 1]; NaN where a value is not finite.
    """
    # torchmetrics' pearson_corrcoef synchronizes a GPU with the host, and warns of constant rows.
    dtype = value_dtype(first)
    rows = [each.to(sum_dtype(each.device)) for each in (first, second)]
    # Not by the deviations below: the mean of equal values may differ from them by a rounding error.
    constants = [row.amax(1) == row.amin(1) for row in rows]
    centered = [row - row.mean(1, keepdim=True) for row in rows]
    # Divided by the largest value first, because the square of a small one may be 0.
    scaled = [row / row.abs().amax(1, keepdim=True) for row in centered]
    one, other = (F.normalize(row, dim=1) for row in scaled)
    correlation: Tensor = (one * other).sum(1).clamp(-1, 1)
    finite = rows[0].isfinite().all(1) & rows[1].isfinite().all(1)
    correlation = correlation.where(~(constants[0] | constants[1]), of_constant)
    return correlation.where(finite, torch.nan).to(dtype)


def rank_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Compute Spearman's rank correlation of each pair of rows; equal values have the mean of their ranks.

    Args:
        first: ``(N, P)``.
        second: of the same shape.

    Returns:
        A tensor ``(N,)`` in [-1, 1]; NaN where one of the two rows is constant or has values that are not
        finite.
    """
    dtype = sum_dtype(first.device)
    ranks = [twice_mid_ranks(row).to(dtype).where(row.isfinite(), torch.nan) for row in (first, second)]
    return pearson_correlation(*ranks).to(value_dtype(first))


def twice_mid_ranks(values: Tensor) -> Tensor:
    """Return twice the rank of each value in its row, 2 for the lowest; equal values have their mean rank.

    Twice, because the mean of ranks may be half an integer, and sums of integers are exact.

    Args:
        values: finite, ``(N, P)``.

    Returns:
        int64 tensor of the same shape.
    """
    # Not by searchsorted, which takes three times as long.
    ordered, order = values.sort(dim=1)
    group = F.pad(ordered[:, 1:] != ordered[:, :-1], (1, 0)).cumsum(1)
    counts = torch.zeros_like(group).scatter_add(1, group, torch.ones_like(group))
    last_ranks = counts.cumsum(1)
    first_ranks = last_ranks - counts + 1
    return torch.empty_like(group).scatter(1, order, (first_ranks + last_ranks).gather(1, group))
