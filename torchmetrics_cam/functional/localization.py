"""Does the map point at the object: maps in [0, 1] against masks of objects."""

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmetrics_cam.functional.confidence import Reduction, reduced

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def energy_pointing_game(maps: Tensor, objects: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Energy-based pointing game: the share of the map that lies on the object. Higher is better.

    .. math:: \frac{\sum_{ij \in \mathrm{object}} M_{ij}}{\sum_{ij} M_{ij}}

    A map of 0 everywhere points nowhere: 0.

    Args:
        maps: in [0, 1], ``(N, *spatial)``.
        objects: where the object is, bool, the same shape.
        reduction: ``"mean"`` for a scalar, ``"none"`` for one value a sample.

    Returns:
        A scalar, or a tensor of shape ``(N,)``.

    Raises:
        ValueError: if the reduction is unknown.

    Source: Wang et al., Score-CAM, https://arxiv.org/abs/1910.01279

    Example:
        >>> import torch
        >>> energy_pointing_game(torch.tensor([[0.2, 0.6]]), torch.tensor([[False, True]]))
        tensor(0.7500)

    """
    inside, total = (part.flatten(1).sum(1) for part in (maps * objects, maps))
    return reduced(torch.where(total > 0, inside / total, torch.zeros_like(total)), reduction)


def pointing_game(
    maps: Tensor, objects: Tensor, *, tolerance: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    """Pointing game: whether the highest position lies on the object. Higher is better.

    Of several highest positions the share that does.

    Args:
        maps: in [0, 1], ``(N, *spatial)``.
        objects: where the object is, bool, the same shape.
        tolerance: so many pixels beside the object still count, as the crow flies; 15 in the paper.
        reduction: ``"mean"`` for a scalar, ``"none"`` for one value a sample.

    Returns:
        A scalar, or a tensor of shape ``(N,)``.

    Raises:
        ValueError: if the reduction is unknown.

    Source: Zhang et al., Excitation Backprop, https://arxiv.org/abs/1608.00507

    Example:
        >>> import torch
        >>> pointing_game(torch.tensor([[0.2, 0.6, 0.6]]), torch.tensor([[False, True, False]]))
        tensor(0.5000)

    """
    near = _widened(objects, tolerance)
    highest = maps == maps.flatten(1).amax(1).view(-1, *(1,) * (maps.ndim - 1))
    hits, total = ((highest & near), highest)
    shares = hits.flatten(1).sum(1) / total.flatten(1).sum(1).clamp(min=1)
    return reduced(shares.to(torch.promote_types(maps.dtype, torch.float32)), reduction)


def mask_iou(
    maps: Tensor, objects: Tensor, *, threshold: float = 0.5, reduction: Reduction = "mean"
) -> Tensor:
    """Intersection over union of the object and of where the map is high. Higher is better.

    Where both are empty it is 0.

    Args:
        maps: in [0, 1], ``(N, *spatial)``.
        objects: where the object is, bool, the same shape.
        threshold: the map is high where it is at least this.
        reduction: ``"mean"`` for a scalar, ``"none"`` for one value a sample.

    Returns:
        A scalar, or a tensor of shape ``(N,)``.

    Raises:
        ValueError: if the reduction is unknown.

    Example:
        >>> import torch
        >>> mask_iou(torch.tensor([[0.2, 0.6, 0.9]]), torch.tensor([[True, True, False]]))
        tensor(0.3333)

    """
    high = maps >= threshold
    both, either = ((high & objects).flatten(1).sum(1), (high | objects).flatten(1).sum(1))
    shares = both / either.clamp(min=1)
    return reduced(shares.to(torch.promote_types(maps.dtype, torch.float32)), reduction)


def boxes_to_objects(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Masks of boxes.

    Args:
        boxes: ``(N, 2 * dims)`` in pixels, in two dimensions ``(left, top, right, bottom)``; the first corner
            is inside and the last outside.
        size: the spatial shape of the images.

    Returns:
        Bool, ``(N, *size)``.

    Raises:
        ValueError: if a box has not two corners of the images' dimensions.

    Example:
        >>> import torch
        >>> boxes_to_objects(torch.tensor([[1, 0, 3, 1]]), (2, 3)).int()
        tensor([[[0, 1, 1],
                 [0, 0, 0]]], dtype=torch.int32)

    """
    if boxes.ndim != 2 or boxes.shape[1] != 2 * len(size):
        raise ValueError(
            f"boxes has shape {tuple(boxes.shape)}; give one box an image, of {2 * len(size)} numbers in"
            f" {len(size)} dimensions"
        )
    masks = torch.ones(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    for axis, side in enumerate(size):
        # x comes first in a box and last in a shape.
        first, last = boxes[:, len(size) - 1 - axis], boxes[:, 2 * len(size) - 1 - axis]
        places = torch.arange(side, device=boxes.device)
        inside = (places >= first.unsqueeze(1)) & (places < last.unsqueeze(1))
        masks &= inside.view(len(boxes), *(side if other == axis else 1 for other in range(len(size))))
    return masks


def _widened(objects: Tensor, tolerance: float) -> Tensor:
    """The objects and what is at most so many positions away."""
    reach, dims = int(tolerance), objects.ndim - 1
    if reach < 1:
        return objects
    steps = range(-reach, reach + 1)
    disk = [float(sum(step**2 for step in offset) <= tolerance**2) for offset in product(steps, repeat=dims)]
    kernel = torch.tensor(disk, device=objects.device).view(1, 1, *(len(steps),) * dims)
    return _CONVOLUTIONS[dims](objects.float().unsqueeze(1), kernel, padding=reach).squeeze(1) > 0.5
