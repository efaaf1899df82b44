"""Measures that compare a map with the annotated object."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmetrics_cam.functional.confidence import Reduction, reduce_samples
from torchmetrics_cam.functional.correlation import twice_mid_ranks
from torchmetrics_cam.functional.maps import value_dtype
from torchmetrics_cam.functional.statistics import sum_dtype

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
        A scalar in [0, 1], or a tensor ``(N,)``; NaN for a map with values that are not finite.

    Raises:
        ValueError: if ``reduction`` is neither ``"mean"`` nor ``"none"``.

    Source: Wang et al., Score-CAM, https://arxiv.org/abs/1910.01279

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import energy_pointing_game
        >>> energy_pointing_game(torch.tensor([[0.2, 0.6]]), torch.tensor([[False, True]]))
        tensor(0.7500)

    """
    dtype = sum_dtype(maps.device)
    inside, total = (each.flatten(1).sum(1, dtype=dtype) for each in (maps * objects, maps))
    return _reduce(torch.where(total > 0, inside / total, torch.zeros_like(total)), maps, reduction)


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
        A scalar in [0, 1], or a tensor ``(N,)``; NaN for a map with values that are not finite.

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
    return _reduce(shares, maps, reduction)


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
        A scalar in [0, 1], or a tensor ``(N,)``; NaN for a map with values that are not finite.

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
    return _reduce(shares, maps, reduction)


def relevance_rank_accuracy(maps: Tensor, objects: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Compute the relevance rank accuracy: the share of the highest pixels that lie on the object.

    .. math:: \frac{|\mathrm{top}_K(M) \cap O|}{K}, \qquad K = |O|

    As many of the highest pixels are taken as the object has. Higher is better. Pixels that tie for the last
    places share them: the value is the mean over all orders of the tied pixels, so a constant map has the
    fraction of the image that the object covers.

    Args:
        maps: :math:`M`, maps normalized to [0, 1], ``(N, *spatial)``.
        objects: :math:`O`, the pixels of the annotated object, bool, of the same shape.
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar in [0, 1], or a tensor ``(N,)``; NaN, not defined, for an empty object or a map
        with values that are not finite.

    Raises:
        ValueError: if ``reduction`` is neither ``"mean"`` nor ``"none"``.

    Source: Arras et al., CLEVR-XAI, https://arxiv.org/abs/2003.07258

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import relevance_rank_accuracy
        >>> maps, objects = torch.tensor([[0.9, 0.6, 0.2, 0.1]]), torch.tensor([[True, False, True, False]])
        >>> relevance_rank_accuracy(maps, objects)  # one of the two highest pixels
        tensor(0.5000)

    """
    size = objects.flatten(1).sum(1)
    values = _share_of_highest(maps, objects, size.clamp(min=1))
    return _reduce(values.where(size > 0, torch.nan), maps, reduction)


def localization_auc(maps: Tensor, objects: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Compute the area under the ROC curve of the map as a score for "this pixel lies on the object".

    .. math:: \frac{1}{|O|\,|\bar O|} \sum_{j \in O} \sum_{k \in \bar O}
              \left( [M_j > M_k] + \frac{1}{2} [M_j = M_k] \right)

    It is the probability that a random pixel of the object :math:`O` has a higher value than a random one of
    the rest :math:`\bar O`; equal values count half. Higher is better. A constant map has 0.5: unlike
    that of the other measures of localization, its value for a constant map does not depend on the size of
    the object.

    Args:
        maps: :math:`M`, maps normalized to [0, 1], ``(N, *spatial)``.
        objects: :math:`O`, the pixels of the annotated object, bool, of the same shape.
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar in [0, 1], or a tensor ``(N,)``; NaN, not defined, for an object that is empty or covers the
        whole image, or a map with values that are not finite.

    Raises:
        ValueError: if ``reduction`` is neither ``"mean"`` nor ``"none"``.

    Source: Fawcett, An introduction to ROC analysis, https://doi.org/10.1016/j.patrec.2005.10.010

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import localization_auc
        >>> maps = torch.tensor([[0.9, 0.6, 0.2, 0.1]])
        >>> localization_auc(maps, torch.tensor([[True, False, True, False]]))  # 3 of 4 pairs are in order
        tensor(0.7500)

    """
    inside = objects.flatten(1)
    size = inside.sum(1)
    pairs = size * (inside.shape[1] - size)
    # In integers, because sums of the ranks of large images are not exact in float32: twice the number of
    # pairs in order is the sum of twice the ranks, less that of the object's own pixels.
    ordered = (twice_mid_ranks(maps.flatten(1)) * inside).sum(1) - size * (size + 1)
    values = ordered.to(sum_dtype(maps.device)) / (2 * pairs)
    return _reduce(values.where(pairs > 0, torch.nan), maps, reduction)


def top_k_intersection(maps: Tensor, objects: Tensor, *, k: int, reduction: Reduction = "mean") -> Tensor:
    r"""Compute the top-K intersection: the share of the K highest pixels that lie on the object.

    .. math:: \frac{|\mathrm{top}_K(M) \cap O|}{K}

    Higher is better, but an object of fewer than K pixels cannot reach 1. Pixels that tie for the last places
    share them: the value is the mean over all orders of the tied pixels, so a constant map has the fraction
    of the image that the object covers.

    Args:
        maps: :math:`M`, maps normalized to [0, 1], ``(N, *spatial)``.
        objects: :math:`O`, the pixels of the annotated object, bool, of the same shape.
        k: :math:`K`, the number of highest pixels.
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar in [0, 1], or a tensor ``(N,)``; NaN, not defined, for an empty object or a map
        with values that are not finite.

    Raises:
        ValueError: if the maps do not have more than ``k`` pixels, or ``reduction`` is neither ``"mean"`` nor
            ``"none"``.

    Source: Theiner et al., Interpretable Semantic Photo Geolocation, https://arxiv.org/abs/2104.14995

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import top_k_intersection
        >>> maps, objects = torch.tensor([[0.9, 0.6, 0.2, 0.1]]), torch.tensor([[True, False, True, False]])
        >>> top_k_intersection(maps, objects, k=1), top_k_intersection(maps, objects, k=2)
        (tensor(1.), tensor(0.5000))

    """
    check_top_k(maps[0].numel(), k)
    size = objects.flatten(1).sum(1)
    values = _share_of_highest(maps, objects, torch.full_like(size, k))
    return _reduce(values.where(size > 0, torch.nan), maps, reduction)


def check_top_k(pixels: int, k: int) -> None:
    """Validate the number of highest pixels.

    Raises:
        ValueError: if a map has no more pixels than this.
    """
    if not 1 <= k < pixels:
        raise ValueError(
            f"the {k} highest pixels of maps with {pixels} pixels say nothing about the maps; choose a number"
            f" from 1 to {pixels - 1}, in a protocol with EvaluationProtocol(top_k=...)"
        )


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


def _reduce(values: Tensor, maps: Tensor, reduction: Reduction) -> Tensor:
    """Return the values of maps in ``value_dtype``, reduced; NaN for maps that are not finite."""
    finite = maps.flatten(1).isfinite().all(1)
    return reduce_samples(values.where(finite, torch.nan).to(value_dtype(maps)), reduction)


def _share_of_highest(maps: Tensor, objects: Tensor, counts: Tensor) -> Tensor:
    """Return the share of the highest pixels of each map that lie on the object, ``(N,)``.

    Args:
        maps: ``(N, *spatial)``.
        objects: bool, of the same shape.
        counts: how many pixels are taken from each map, at least 1, ``(N,)``. Pixels that tie for the last of
            them share the places.
    """
    values, inside = maps.flatten(1), objects.flatten(1)
    lowest = values.sort(dim=1, descending=True).values.gather(1, counts.unsqueeze(1) - 1)
    above, tied = values > lowest, values == lowest
    dtype = sum_dtype(maps.device)
    shared_places = (counts - above.sum(1)).to(dtype) / tied.sum(1)
    hits = (above & inside).sum(1) + shared_places * (tied & inside).sum(1)
    return hits / counts


def _dilate(objects: Tensor, distance: float) -> Tensor:
    """Return the objects with all pixels at a Euclidean distance of at most ``distance`` from them."""
    radius, dims = int(distance), objects.ndim - 1
    if radius < 1:
        return objects
    steps = torch.arange(-radius, radius + 1, device=objects.device)
    squares = torch.stack(torch.meshgrid([steps] * dims, indexing="ij")).square().sum(0)
    kernel = (squares <= distance**2).float().view(1, 1, *squares.shape)
    return _CONVOLUTIONS[dims](objects.float().unsqueeze(1), kernel, padding=radius).squeeze(1) > 0.5
