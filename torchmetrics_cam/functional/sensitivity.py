"""Measures of what changes a map: noise on the image should not, another class should."""

from typing import Literal

import torch
from torch import Tensor

from torchmetrics_cam.functional.confidence import Reduction, reduce_samples
from torchmetrics_cam.functional.correlation import pearson_correlation
from torchmetrics_cam.functional.maps import value_dtype
from torchmetrics_cam.functional.statistics import sum_dtype


def sensitivity(
    maps: Tensor,
    noisy_maps: Tensor,
    *,
    over: Literal["max", "mean"] = "max",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Compute the sensitivity: the relative change of the map when noise is added to the image.

    .. math:: \max_{r = 1}^R \frac{\lVert M^{(r)} - M \rVert_2}{\lVert M \rVert_2}

    Lower is better. A constant map has the best value, 0, so read it beside `class_sensitivity`.

    Yeh et al. define the largest norm of the difference, and Bhatt et al. its mean. The division by the norm
    of the map, which makes maps of different units comparable, is that of captum's ``sensitivity_max``.

    Args:
        maps: :math:`M`, the maps of the clean images, ``(N, *spatial)``.
        noisy_maps: :math:`M^{(r)}`, the maps of the same class for R noisy copies of each image,
            ``(R, N, *spatial)``.
        over: ``"max"`` for the largest change over the noisy copies, ``"mean"`` for the mean.
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar of at least 0, or a tensor ``(N,)``. If the clean map is zero everywhere, the value is 0 if
        all noisy maps are too, as nothing has changed; otherwise the relative change is not defined, and NaN.

    Raises:
        ValueError: if the shapes do not fit, ``over`` is neither ``"max"`` nor ``"mean"``, or ``reduction``
            is neither ``"mean"`` nor ``"none"``.

    Source: Yeh et al., On the (In)fidelity and Sensitivity of Explanations, https://arxiv.org/abs/1901.09392,
    and for the mean Bhatt et al., Evaluating and Aggregating Feature-based Model Explanations,
    https://arxiv.org/abs/2005.00631

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import sensitivity
        >>> maps, noisy_maps = torch.tensor([[3.0, 4.0]]), torch.tensor([[[3.0, 4.0]], [[3.0, 3.0]]])
        >>> sensitivity(maps, noisy_maps), sensitivity(maps, noisy_maps, over="mean")  # changes: 0 and 1 / 5
        (tensor(0.2000), tensor(0.1000))

    """
    if over not in ("max", "mean"):
        raise ValueError(f"over is {over!r}; it must be 'max' or 'mean'")
    if noisy_maps.shape[1:] != maps.shape or not len(noisy_maps):
        raise ValueError(
            f"maps has shape {tuple(maps.shape)} and noisy_maps {tuple(noisy_maps.shape)}; noisy_maps must"
            " have one more dimension in front, for at least one noisy copy of the images"
        )
    dtype = sum_dtype(maps.device)
    size = torch.linalg.vector_norm(maps.flatten(1), dim=1, dtype=dtype)
    change = torch.linalg.vector_norm((noisy_maps - maps).flatten(2), dim=2, dtype=dtype)
    relative_change = torch.where((size == 0) & (change == 0), 0, change / size)
    relative_change = relative_change.where(relative_change.isfinite(), torch.nan)
    values = relative_change.amax(0) if over == "max" else relative_change.mean(0)
    return reduce_samples(values.to(value_dtype(maps)), reduction)


def class_sensitivity(maps: Tensor, other_maps: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Compute the class sensitivity: how little the map of one class resembles that of another class.

    .. math:: 1 - \max(0, r(M, M'))

    with Pearson's correlation :math:`r` over the pixels. Higher is better: 0 means that the map does not tell
    the classes apart. Noise that is new in each map has a value near 1, so read it beside `sensitivity`.

    Two equal maps have the value 0, even if they are constant. A constant map beside another one has the
    value 1: their covariance is 0, and the method shows the two classes differently, such as a class without
    any positive evidence beside one with some. `map_correlation` takes it as uncorrelated too.

    Args:
        maps: :math:`M`, the maps of the target class, ``(N, *spatial)``.
        other_maps: :math:`M'`, the maps of another class for the same images, of the same shape.
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar in [0, 1], or a tensor ``(N,)``; NaN where a map has values that are not finite.

    Raises:
        ValueError: if the two shapes differ, or ``reduction`` is neither ``"mean"`` nor ``"none"``.

    Source: Sixt et al., When Explanations Lie: Why Many Modified BP Attributions Fail,
    https://arxiv.org/abs/1912.09818, who compare with a random class by the structural similarity

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import class_sensitivity
        >>> maps = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.5, 1.0]])
        >>> class_sensitivity(maps, torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 1.0]]), reduction="none")
        tensor([0., 1.])

    """
    if maps.shape != other_maps.shape:
        raise ValueError(
            f"maps has shape {tuple(maps.shape)} and other_maps {tuple(other_maps.shape)}; both must have the"
            " same shape, one map of each class for each image"
        )
    correlation = pearson_correlation(maps.flatten(1), other_maps.flatten(1), of_constant=0.0)
    equal = (maps == other_maps).flatten(1).all(1)
    values = torch.where(equal & ~correlation.isnan(), 0, 1 - correlation.clamp(min=0))
    return reduce_samples(values, reduction)
