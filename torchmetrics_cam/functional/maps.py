"""Operations that turn a map into a mask: rectify, normalize, resize, fuse, threshold."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Rectification = Literal["relu", "abs", "none"]

_INTERPOLATION_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def rectify(maps: Tensor, how: Rectification) -> Tensor:
    """Remove negative values from maps, take absolute values, or return the maps unchanged.

    Args:
        maps: of any shape, in any unit.
        how: ``"relu"`` for max(0, m), ``"abs"`` for ``|m|``, ``"none"`` for m.

    Returns:
        Maps of the same shape and unit.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import rectify
        >>> rectify(torch.tensor([-1.0, 2.0]), "abs")
        tensor([1., 2.])

    """
    if how == "relu":
        return maps.clamp(min=0)
    if how == "abs":
        return maps.abs()
    return maps


def min_max(maps: Tensor, *, eps: float = 0.0) -> Tensor:
    r"""Normalize each map to [0, 1]: :math:`(m - \min m) / (\max m - \min m + \epsilon)`.

    A constant map becomes 0.

    Args:
        maps: ``(N, *spatial)``, in any unit.
        eps: :math:`\epsilon`. torchcam uses 1e-8.

    Returns:
        Maps of the same shape, without unit.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import min_max
        >>> min_max(torch.tensor([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]]))
        tensor([[0.0000, 0.5000, 1.0000],
                [0.0000, 0.0000, 0.0000]])

    """
    dims = tuple(range(1, maps.ndim))
    low = maps.amin(dims, keepdim=True)
    span = maps.amax(dims, keepdim=True) - low
    return (maps - low).div_(torch.where(span == 0, torch.ones_like(span), span + eps))


def resize_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps by linear, bilinear or trilinear interpolation, according to their dimensions.

    The corners are not aligned (``align_corners=False``), as in torchcam and in OpenCV's ``resize``.

    Args:
        maps: ``(N, *spatial)`` with one to three spatial dimensions.
        size: the spatial shape of the result, in pixels.

    Returns:
        Maps ``(N, *size)``; the same tensor if it has this size already.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import resize_maps
        >>> resize_maps(torch.tensor([[0.0, 1.0]]), (4,))
        tensor([[0.0000, 0.2500, 0.7500, 1.0000]])

    """
    if maps.shape[1:] == tuple(size):
        return maps
    mode = _INTERPOLATION_MODES[maps.ndim - 1]
    return F.interpolate(maps.unsqueeze(1), tuple(size), mode=mode, align_corners=False).squeeze(1)


def fuse_maps(maps: Sequence[Tensor]) -> Tensor:
    """Fuse the maps of several layers: the maximum of their normalized maps at each pixel.

    Each layer's maps are min-max normalized and resized to the largest size first, as in torchcam.

    Args:
        maps: one tensor ``(N, *spatial)`` per layer. The spatial shapes may differ.

    Returns:
        Maps ``(N, *largest spatial)`` in [0, 1]; for a single layer its maps, unchanged.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import fuse_maps
        >>> fuse_maps([torch.tensor([[0.0, 2.0]]), torch.tensor([[3.0, 1.0]])])
        tensor([[1., 1.]])

    """
    if len(maps) == 1:
        return maps[0]
    size = [max(sides) for sides in zip(*(layer.shape[1:] for layer in maps), strict=True)]
    return torch.stack([resize_maps(min_max(layer), size) for layer in maps]).amax(0)


def top_fraction(maps: Tensor, fraction: float) -> Tensor:
    """Return the mask of the highest pixels of each map: exactly ``round(fraction * pixels)`` of them are 1.

    Of pixels with equal values, those first in row-major order are kept.

    Args:
        maps: ``(N, *spatial)``, in any unit.
        fraction: the fraction of pixels to keep, in [0, 1].

    Returns:
        A mask of zeros and ones, of the maps' shape and dtype.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import top_fraction
        >>> top_fraction(torch.tensor([[0.1, 0.9, 0.9, 0.9]]), 0.5)
        tensor([[0., 1., 1., 0.]])

    """
    flat = maps.flatten(1)
    kept = flat.argsort(dim=1, descending=True, stable=True)[:, : round(fraction * flat.shape[1])]
    return torch.zeros_like(flat).scatter(1, kept, 1.0).view_as(maps)


def value_dtype(maps: Tensor) -> torch.dtype:
    """Return the dtype of a value computed from maps: that of the maps, but at least float32."""
    return torch.promote_types(maps.dtype, torch.float32)
