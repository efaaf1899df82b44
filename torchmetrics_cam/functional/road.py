"""Noisy linear imputation: hidden positions take the weighted mean of their neighbours, and some noise."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

_POOLINGS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
_COARSEST = 8
_CHECK_EVERY = 10


def linear_imputation(images: Tensor, hidden: Tensor, *, tolerance: float = 1e-6) -> Tensor:
    r"""Every hidden position is the weighted mean of its neighbours, hidden or not; the others stay.

    Direct neighbours weigh 1/6 and diagonal ones 1/12 in two dimensions, in general in inverse proportion to
    the number of steps. At the border the weights that are left count. This is one sparse linear system an
    image; conjugate gradients solve those of a batch at once, on the images' device, and begin with the
    solution of the image at half the size.

    Args:
        images: ``(N, C, *spatial)``.
        hidden: which positions, ``(N, *spatial)``. An image of which everything is hidden becomes 0.
        tolerance: the iteration ends where the residual of each image is below this share of its right-hand
            side.

    Returns:
        Images of the same shape and dtype.

    Source: Rong et al., ROAD, https://arxiv.org/abs/2202.00449

    Example:
        >>> import torch
        >>> image, hidden = torch.tensor([[[1.0, 9.0, 9.0, 4.0]]]), torch.tensor([[False, True, True, False]])
        >>> linear_imputation(image, hidden)
        tensor([[[1., 2., 3., 4.]]])

    """
    dtype = torch.float32 if images.device.type == "mps" else torch.float64
    mask = hidden.unsqueeze(1).to(dtype)
    solved = _solved(images.to(dtype), mask, tolerance)
    return torch.where(hidden.unsqueeze(1), solved.to(images.dtype), images)


def _solved(images: Tensor, hidden: Tensor, tolerance: float) -> Tensor:
    """The images with hidden positions solved for; ``hidden`` is 1 where they are, ``(N, 1, *spatial)``."""
    guess = _guess(images, hidden, tolerance)
    total = _neighbours(torch.ones_like(hidden))
    known = images * (1 - hidden)
    # (total - W) x = W known, on the hidden positions; W is symmetric and the system positive definite.
    wanted = hidden * _neighbours(known)
    solution = hidden * guess
    residual = wanted - hidden * (total * solution - _neighbours(solution))
    direction, square = residual, _dot(residual, residual)
    enough = (tolerance**2 * _dot(wanted, wanted)).clamp(min=torch.finfo(images.dtype).tiny)
    for step in range(2 * images[0, 0].numel()):
        if step % _CHECK_EVERY == 0 and bool((square <= enough).all()):
            break
        image = hidden * (total * direction - _neighbours(direction))
        curvature = _dot(direction, image)
        # Images that are solved stand still while the others go on.
        length = torch.where(
            (square > enough) & (curvature > 0), square / curvature, torch.zeros_like(square)
        )
        solution = solution + length * direction
        residual = residual - length * image
        before, square = square, _dot(residual, residual)
        direction = residual + torch.where(before > 0, square / before, torch.zeros_like(square)) * direction
    return known + solution


def _guess(images: Tensor, hidden: Tensor, tolerance: float) -> Tensor:
    """The solution at half the size, enlarged."""
    spatial = images.shape[2:]
    if min(spatial) <= _COARSEST:
        return torch.zeros_like(images)
    pool = _POOLINGS[len(spatial)]
    seen = pool(1 - hidden, 2, ceil_mode=True)
    coarse = pool(images * (1 - hidden), 2, ceil_mode=True) / torch.where(
        seen > 0, seen, torch.ones_like(seen)
    )
    # A guess needs no more digits than the image shows.
    solved = _solved(coarse, (seen == 0).to(hidden.dtype), max(tolerance, 1e-3))
    return F.interpolate(solved, spatial, mode=_LINEAR_MODES[len(spatial)], align_corners=False)


def _neighbours(images: Tensor) -> Tensor:
    """The weighted sum of the neighbours of each position, nothing beyond the border.

    Sums of shifted images: in float64 several times as fast as a convolution of each channel.
    """
    spatial = images.shape[2:]
    offsets = [offset for offset in product((-1, 0, 1), repeat=len(spatial)) if any(offset)]
    weights = [1 / sum(map(abs, offset)) for offset in offsets]
    total = torch.zeros_like(images)
    for offset, weight in zip(offsets, weights, strict=True):
        given, taken = total, images
        for axis, (step, side) in enumerate(zip(offset, spatial, strict=True), start=2):
            given = given.narrow(axis, max(-step, 0), side - abs(step))
            taken = taken.narrow(axis, max(step, 0), side - abs(step))
        given.add_(taken, alpha=weight / sum(weights))
    return total


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """The inner product of each image and channel, ``(N, C, 1, ...)``."""
    return (first * second).sum(tuple(range(2, first.ndim)), keepdim=True)
