"""Noisy linear imputation: hidden positions take the weighted mean of their neighbors, and some noise."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmetrics_cam.functional._multigrid import Positions, Rows, solve

# Positions of images, hidden or not; keeps the memory of large batches to a few hundred megabytes.
_AT_ONCE = 2**19


def linear_imputation(images: Tensor, hidden: Tensor, *, tolerance: float = 1e-6) -> Tensor:
    r"""Every hidden position is the weighted mean of its neighbors, hidden or not; the others stay.

    Direct neighbors weigh 1/6 and diagonal ones 1/12 in two dimensions, in general in inverse proportion to
    the number of steps. At the border the weights that are left count. This is one sparse linear system an
    image, over its hidden positions. Those of a batch are solved at once, by multigrid on the images' device.

    Args:
        images: ``(N, C, *spatial)``.
        hidden: which positions, ``(N, *spatial)``. An image of which everything is hidden becomes 0.
        tolerance: about how much error is left of an image, as a share of its largest imputed value. Whatever
            it is, float32 images, which have seven digits, can have no less than 1e-7.

    Returns:
        Images of the same shape and dtype. That of one image is the same in any batch.

    Source: Rong et al., ROAD, https://arxiv.org/abs/2202.00449

    Example:
        >>> import torch
        >>> image, hidden = torch.tensor([[[1.0, 9.0, 9.0, 4.0]]]), torch.tensor([[False, True, True, False]])
        >>> linear_imputation(image, hidden)
        tensor([[[1., 2., 3., 4.]]])

    """
    count = max(1, _AT_ONCE // hidden.shape[1:].numel())
    if len(images) > count:
        starts = range(0, len(images), count)
        parts = [(images[start : start + count], hidden[start : start + count]) for start in starts]
        return torch.cat([linear_imputation(*part, tolerance=tolerance) for part in parts])
    shown = images.masked_fill(hidden.unsqueeze(1), 0)
    unknown = Positions(hidden)
    if len(unknown.indices) == 0:
        return shown
    matrix, wanted = _system(shown, unknown)
    solution = solve(matrix, wanted, unknown, tolerance=tolerance)
    image, *place = unknown.indices.unbind(1)
    shown.movedim(1, -1)[(image, *place)] = solution.to(images.dtype)
    return shown


def _system(shown: Tensor, unknown: Positions) -> tuple[Rows, Tensor]:
    """Of each unknown, the weights that count times itself, less its unknown neighbors, is its known ones.

    Args:
        shown: the images, 0 where hidden, ``(N, C, *spatial)``.
        unknown: the hidden positions.
    """
    steps = [sum(map(abs, offset)) for offset in product((-1, 0, 1), repeat=len(unknown.spatial))]
    total = sum(1 / step for step in steps if step)
    weights = [1 / step / total if step else 0.0 for step in steps]
    # One channel more, of ones, becomes the sum of the weights that count.
    pixels = shown.movedim(1, -1)
    pixels = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)
    pixels = F.pad(pixels, (0, 0) + (1, 1) * len(unknown.spatial)).flatten(0, -2)
    around = unknown.around(unknown.indices)
    dtype = torch.float32 if shown.device.type == "mps" else torch.float64
    sums = torch.zeros(len(around), pixels.shape[1], dtype=dtype, device=shown.device)
    for weight, neighbors in zip(weights, around.unbind(1), strict=True):
        sums.add_(pixels[neighbors], alpha=weight)
    columns = unknown.numbers_around(unknown.indices)
    center = columns[:, len(weights) // 2, None]
    entries = -torch.tensor(weights, dtype=dtype, device=shown.device) * (columns >= 0)
    entries = torch.where(columns == center, sums[:, -1:], entries)
    return Rows(torch.where(columns < 0, center, columns), entries), sums[:, :-1]


def road_score(most_first: Tensor, least_first: Tensor) -> Tensor:
    """TEMP."""
    return ((least_first - most_first) / 2).mean(0)
