"""Measures that compare a map with the annotated object."""

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmetrics_cam.functional.confidence import Reduction, reduce_samples

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def energy_pointing_game(maps: Tensor, objects: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Compute the energy-based pointing game: the share of the map's sum that lies on the object.

    .. math:: \frac{\sum_{j \in O} M_j}{\sum_{j} M_j}

    where :math:`j` runs over the pixels. Higher is better. A map of zeros has the value 0.

    Args:
        maps: :math:`M`, maps normalized to [0, 1], ``(N, *spatial)``.
        objects: :math:`O`, the pixels of the annotated object, bool, of the same shape.
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar in [0, 1], or a tensor ``(N,)``.

    Raises:
        ValueError: if ``reduction`` is neither ``"mean"`` nor ``"none"``.

    Source: Wang et al., Score-CAM, https://arxiv.org/abs/1910.01279

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import energy_pointing_game
        >>> energy_pointing_game(torch.tensor([[0.2, 0.6]]), torch.tensor([[False, True]]))
        tensor(0.7500)

    """
    inside, total = (each.flatten(1).sum(1) for each in (maps * objects, maps))
    return reduce_samples(torch.where(total > 0, inside / total, torch.zeros_like(total)), reduction)


def pointing_game(
    maps: Tensor, objects: Tensor, *, tolerance: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    """Compute the pointing game: whether the highest pixel of the map lies on the object. Higher is better.

    If several pixels share the highest value, the result is the fraction of them that lies on the object.

    Args:
        maps: maps normalized to [0, 1], ``(N, *spatial)``.
        objects: the pixels of the annotated object, bool, of the same shape.
        tolerance: the Euclidean distance from the object, in pixels, up to which a pixel still counts as on
            it. The paper uses 15.
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar in [0, 1], or a tensor ``(N,)``.

    Raises:
        ValueError: if ``reduction`` is neither ``"mean"`` nor ``"none"``.

    Source: Zhang et al., Top-down Neural Attention by Excitation Backprop, https://arxiv.org/abs/1608.00507

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import pointing_game
        >>> pointing_game(torch.tensor([[0.2, 0.6, 0.6]]), torch.tensor([[False, True, False]]))
        tensor(0.5000)

    """
    target = _dilate(objects, tolerance)
    highest = maps == maps.flatten(1).amax(1).view(-1, *(1,) * (maps.ndim - 1))
    hits = (highest & target).flatten(1).sum(1)
    shares = hits / highest.flatten(1).sum(1).clamp(min=1)
    return reduce_samples(shares.to(torch.promote_types(maps.dtype, torch.float32)), reduction)


def mask_iou(
    maps: Tensor, objects: Tensor, *, threshold: float = 0.5, reduction: Reduction = "mean"
) -> Tensor:
    r"""Compute the intersection over union of the object and the thresholded map. Higher is better.

    .. math:: \frac{|\{j : M_j \geq t\} \cap O|}{|\{j : M_j \geq t\} \cup O|}

    where :math:`j` runs over the pixels: the Jaccard index of the two sets. The value is 0 where both are
    empty.

    Args:
        maps: :math:`M`, maps normalized to [0, 1], ``(N, *spatial)``.
        objects: :math:`O`, the pixels of the annotated object, bool, of the same shape.
        threshold: :math:`t`, in (0, 1].
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar in [0, 1], or a tensor ``(N,)``.

    Raises:
        ValueError: if ``reduction`` is neither ``"mean"`` nor ``"none"``.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import mask_iou
        >>> mask_iou(torch.tensor([[0.2, 0.6, 0.9]]), torch.tensor([[True, True, False]]))
        tensor(0.3333)

    """
    high = maps >= threshold
    intersection, union = (each.flatten(1).sum(1) for each in (high & objects, high | objects))
    shares = intersection / union.clamp(min=1)
    return reduce_samples(shares.to(torch.promote_types(maps.dtype, torch.float32)), reduction)


def boxes_to_objects(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Convert bounding boxes to boolean masks of the objects.

    Args:
        boxes: ``(N, 2 * d)`` for d spatial dimensions, in pixels: in two dimensions ``(left, top, right,
            bottom)``. Left and top are the first pixels inside, right and bottom the first ones outside.
        size: the spatial shape of the images, in two dimensions ``(height, width)``.

    Returns:
        bool tensor ``(N, *size)``, True inside the box.

    Raises:
        ValueError: if the shape of ``boxes`` is not ``(N, 2 * d)``.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import boxes_to_objects
        >>> boxes_to_objects(torch.tensor([[1, 0, 3, 1]]), (2, 3)).int()
        tensor([[[0, 1, 1],
                 [0, 0, 0]]], dtype=torch.int32)

    """
    dims = len(size)
    if boxes.ndim != 2 or boxes.shape[1] != 2 * dims:
        raise ValueError(
            f"boxes has shape {tuple(boxes.shape)}; pass a tensor of shape (N, {2 * dims}), one box per image"
            f" with the {dims} coordinates of its first and last corner"
        )
    objects = torch.ones(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    for axis, side in enumerate(size):
        # x is the first coordinate of a corner but the last axis of an image.
        coordinate = dims - 1 - axis
        first, last = boxes[:, coordinate, None], boxes[:, dims + coordinate, None]
        pixels = torch.arange(side, device=boxes.device)
        inside = (pixels >= first) & (pixels < last)
        objects &= inside.view(len(boxes), *(side if other == axis else 1 for other in range(dims)))
    return objects


def _dilate(objects: Tensor, distance: float) -> Tensor:
    """Return the objects with all pixels at a Euclidean distance of at most ``distance`` from them."""
    radius, dims = int(distance), objects.ndim - 1
    if radius < 1:
        return objects
    offsets = range(-radius, radius + 1)
    ball = [float(sum(step**2 for step in offset) <= distance**2) for offset in product(offsets, repeat=dims)]
    kernel = torch.tensor(ball, device=objects.device).view(1, 1, *(len(offsets),) * dims)
    return _CONVOLUTIONS[dims](objects.float().unsqueeze(1), kernel, padding=radius).squeeze(1) > 0.5
