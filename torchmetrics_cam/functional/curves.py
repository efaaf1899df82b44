"""Deletion and insertion: the score while positions go or come, the most relevant first."""

import torch
from torch import Tensor


def perturbed_counts(positions: int, steps: int) -> list[int]:
    """How many positions are perturbed at each point of a curve, from none to all.

    Args:
        positions: how many there are.
        steps: at most so many intervals, all of them of one size but the last.

    Example:
        >>> perturbed_counts(10, 4)
        [0, 3, 6, 9, 10]

    """
    size = -(-positions // steps)
    return [*range(0, positions, size), positions]


def position_ranks(maps: Tensor) -> Tensor:
    """The rank of each position, 0 for the highest value; of equal ones the first in row-major order.

    Args:
        maps: ``(N, *spatial)``.

    Returns:
        Ranks of the same shape.

    Example:
        >>> import torch
        >>> position_ranks(torch.tensor([[0.2, 0.9, 0.2, 0.5]]))
        tensor([[2, 0, 3, 1]])

    """
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    places = torch.arange(order.shape[1], device=maps.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, places).view_as(maps)


def area_under_curve(scores: Tensor, fractions: Tensor) -> Tensor:
    r"""The area under a deletion or insertion curve, by the trapezoidal rule.

    .. math:: \sum_{j=1}^{P-1} \frac{s_j + s_{j-1}}{2} (f_j - f_{j-1})

    Args:
        scores: the score of the class at each point, ``(P, ...)``.
        fractions: the share of positions that is perturbed at each point, from 0 to 1, ``(P,)``.

    Returns:
        The area, ``(...)``: the mean score over the curve.

    Source: Petsiuk et al., RISE, https://arxiv.org/abs/1806.07421

    Example:
        >>> import torch
        >>> area_under_curve(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 0.5, 1.0]))
        tensor(0.5000)

    """
    return torch.trapezoid(scores, fractions.to(scores), dim=0)


def resampled_curve(scores: Tensor, fractions: Tensor, points: int) -> Tensor:
    """A curve at evenly spaced fractions, linear in between.

    Args:
        scores: at each point, ``(P, ...)``.
        fractions: from 0 to 1, increasing, ``(P,)``.
        points: how many are wanted, both ends among them.

    Returns:
        Scores of shape ``(points, ...)``.

    Example:
        >>> import torch
        >>> resampled_curve(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 0.8, 1.0]), 3)
        tensor([1.0000, 0.6875, 0.0000])

    """
    fractions = fractions.to(scores)
    wanted = torch.linspace(0, 1, points, dtype=scores.dtype, device=scores.device)
    after = torch.searchsorted(fractions, wanted).clamp(1, len(fractions) - 1)
    start, end = fractions[after - 1], fractions[after]
    share = ((wanted - start) / (end - start)).view(-1, *(1,) * (scores.ndim - 1))
    return torch.lerp(scores[after - 1], scores[after], share.expand_as(scores[after]))
