"""Deletion and insertion curves: the score as the most relevant pixels are removed or added."""

import torch
from torch import Tensor


def perturbed_counts(pixels: int, steps: int) -> list[int]:
    """Return the number of perturbed pixels at each point of a curve, from none to all.

    Args:
        pixels: the number of pixels.
        steps: the largest number of intervals. All have the same size, except that the last may be smaller.

    Returns:
        Increasing counts from 0 to ``pixels``, at most ``steps + 1`` of them.

    Example:
        >>> from torchmetrics_cam.functional.curves import perturbed_counts
        >>> perturbed_counts(10, 4)
        [0, 3, 6, 9, 10]

    """
    interval = -(-pixels // steps)
    return [*range(0, pixels, interval), pixels]


def position_ranks(maps: Tensor) -> Tensor:
    """Return the rank of each pixel of a map, 0 for the highest value.

    Equal values are ranked in row-major order.

    Args:
        maps: ``(N, *spatial)``, in any unit.

    Returns:
        int64 tensor of the same shape, the numbers 0 to P - 1 for the P pixels of each map.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional.curves import position_ranks
        >>> position_ranks(torch.tensor([[0.2, 0.9, 0.2, 0.5]]))
        tensor([[2, 0, 3, 1]])

    """
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(order.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, ranks).view_as(maps)


def area_under_curve(scores: Tensor, fractions: Tensor) -> Tensor:
    r"""Compute the area under a deletion or insertion curve by the trapezoidal rule.

    .. math:: \sum_{j=1}^{P-1} \frac{s_j + s_{j-1}}{2} (f_j - f_{j-1})

    For fractions from 0 to 1 it is the mean score over the curve. Lower is better for deletion, higher for
    insertion.

    Args:
        scores: :math:`s`, the score of the target class at each of P points, ``(P, ...)``.
        fractions: :math:`f`, the fraction of pixels that is perturbed at each point, increasing from 0 to 1,
            ``(P,)``.

    Returns:
        A tensor ``(...)``, in units of the scores.

    Source: Petsiuk et al., RISE, https://arxiv.org/abs/1806.07421

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import area_under_curve
        >>> area_under_curve(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 0.5, 1.0]))
        tensor(0.5000)

    """
    return torch.trapezoid(scores, fractions.to(scores), dim=0)


def resampled_curve(scores: Tensor, fractions: Tensor, points: int) -> Tensor:
    """Interpolate a curve linearly at evenly spaced fractions.

    Curves of images of different sizes have different fractions; resampled, they can be averaged.

    Args:
        scores: the scores at each of P points, ``(P, ...)``.
        fractions: the fraction at each point, increasing from 0 to 1, ``(P,)``.
        points: the number of points of the result, both ends included, at least 2.

    Returns:
        Scores ``(points, ...)``.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional.curves import resampled_curve
        >>> resampled_curve(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 0.8, 1.0]), 3)
        tensor([1.0000, 0.6875, 0.0000])

    """
    fractions = fractions.to(scores)
    targets = torch.linspace(0, 1, points, dtype=scores.dtype, device=scores.device)
    right = torch.searchsorted(fractions, targets).clamp(1, len(fractions) - 1)
    start, end = fractions[right - 1], fractions[right]
    weight = ((targets - start) / (end - start)).view(-1, *(1,) * (scores.ndim - 1))
    return torch.lerp(scores[right - 1], scores[right], weight.expand_as(scores[right]))
