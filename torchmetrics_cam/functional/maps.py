"""What is done to a map before it hides anything: rectify, normalize, resize, fuse, keep the top."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Rectification = Literal["relu", "abs", "none"]

_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def rectify(maps: Tensor, how: Rectification) -> Tensor:
    """Negative evidence set to zero, counted as evidence, or kept.

    Args:
        maps: of any shape, in any unit.
        how: ``"relu"``, ``"abs"`` or ``"none"``.

    Returns:
        Maps of the same shape.

    Example:
        >>> import torch
        >>> rectify(torch.tensor([-1.0, 2.0]), "abs")
        tensor([1., 2.])

    """
    if how == "relu":
        return maps.clamp(min=0)
    if how == "abs":
        return maps.abs()
    return maps


def min_max(maps: Tensor, *, eps: float = 0.0) -> Tensor:
    r"""Each map on its own to [0, 1]: :math:`(m - \min m) / (\max m - \min m + \epsilon)`.

    A constant map becomes 0.

    Args:
        maps: shape ``(N, *spatial)``, in any unit.
        eps: added to the range. torchcam adds 1e-8.

    Returns:
        Maps of the same shape.

    Example:
        >>> import torch
        >>> min_max(torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]]))
        tensor([[0.0000, 0.5000, 1.0000],
                [0.0000, 0.0000, 0.0000]])

    """
    dims = tuple(range(1, maps.ndim))
    low = maps.amin(dims, keepdim=True)
    span = maps.amax(dims, keepdim=True) - low
    return (maps - low).div_(torch.where(span == 0, torch.ones_like(span), span + eps))


def resize_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Linear in 1D, bilinear in 2D, trilinear in 3D, ``align_corners=False``, as torchcam and OpenCV do it.

    Args:
        maps: shape ``(N, *spatial)`` with one to three spatial dimensions.
        size: the spatial shape wanted, in positions.

    Returns:
        Maps of shape ``(N, *size)``.

    Example:
        >>> import torch
        >>> resize_maps(torch.tensor([[0.0, 1.0]]), (4,))
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]])

    """
    if maps.shape[1:] == tuple(size):
        return maps
    mode = _LINEAR_MODES[maps.ndim - 1]
    return F.interpolate(maps.unsqueeze(1), tuple(size), mode=mode, align_corners=False).squeeze(1)


def fuse_maps(maps: Sequence[Tensor]) -> Tensor:
    """Maps of several layers into one: each min-max normalized, resized to the largest, then the maximum.

    Args:
        maps: one tensor ``(N, *spatial)`` a layer; the spatial shapes may differ. One map alone is returned
            as it is.

    Returns:
        Maps of shape ``(N, *largest spatial)``.

    Example:
        >>> import torch
        >>> fuse_maps([torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 1.0]])])
        tensor([[1., 1.]])

    """
    if len(maps) == 1:
        return maps[0]
    size = [max(sides) for sides in zip(*(layer.shape[1:] for layer in maps), strict=True)]
    return torch.stack([resize_maps(min_max(layer), size) for layer in maps]).amax(0)


def top_fraction(maps: Tensor, fraction: float) -> Tensor:
    """1 at the highest positions of each map, 0 elsewhere: exactly ``round(fraction * positions)`` of them.

    Among equal values the position that comes first in row-major order is kept.

    Args:
        maps: shape ``(N, *spatial)``.
        fraction: the share of positions that is kept, in [0, 1].

    Returns:
        A mask of 0 and 1 of the same shape and dtype.

    Example:
        >>> import torch
        >>> top_fraction(torch.tensor([[0.1, 0.9, 0.9, 0.9]]), 0.5)
        tensor([[0., 1., 1., 0.]])

    """
    flat = maps.flatten(1)
    kept = flat.argsort(dim=1, descending=True, stable=True)[:, : round(fraction * flat.shape[1])]
    return torch.zeros_like(flat).scatter(1, kept, 1.0).view_as(maps)
