"""What the confidence in a class does when only the highlighted part of the image is left."""

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["mean", "none"]


def average_drop(
    scores: Tensor,
    masked_scores: Tensor,
    *,
    relative: bool = True,
    eps: float = 0.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Average Drop: the share of the confidence that is lost when the rest is hidden. Lower is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{\max(0, p_i - o_i)}{p_i + \epsilon}

    A sample with :math:`p = 0` has nothing to lose: its drop is 0.

    Args:
        scores: :math:`p`, the score of the class on the image, shape ``(N,)``, a fraction in [0, 1].
        masked_scores: :math:`o`, the score of the same class on the masked image, shape ``(N,)``.
        relative: divide by :math:`p`. False gives the absolute drop :math:`\max(0, p - o)`.
        eps: added to the denominator of the relative drop. The paper has none; torchcam adds 1e-7.
        reduction: ``"mean"`` for a scalar (NaN for no sample), ``"none"`` for one value a sample.

    Returns:
        A scalar, or a tensor of shape ``(N,)``.

    Raises:
        ValueError: if the two tensors are not of one shape ``(N,)``, or the reduction is unknown.

    Source: Chattopadhyay et al., Grad-CAM++, https://arxiv.org/abs/1710.11063

    Example:
        >>> import torch
        >>> average_drop(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.6]))
        tensor(0.2500)

    """
    scores, masked_scores = _checked(scores, masked_scores)
    lost = (scores - masked_scores).clamp(min=0)
    if relative:
        lost = lost / (scores + eps)
        if not eps:
            lost = torch.where(scores == 0, torch.zeros_like(lost), lost)
    return reduced(lost, reduction)


def increase_in_confidence(scores: Tensor, masked_scores: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Increase in Confidence: how often the highlighted part alone convinces more. Higher is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N [p_i < o_i]

    The comparison is strict: an unchanged score is no increase.

    Args:
        scores: :math:`p`, the score of the class on the image, shape ``(N,)``.
        masked_scores: :math:`o`, the score of the same class on the masked image, shape ``(N,)``.
        reduction: ``"mean"`` for a scalar (NaN for no sample), ``"none"`` for one value (0 or 1) a sample.

    Returns:
        A scalar, or a tensor of shape ``(N,)``.

    Raises:
        ValueError: if the two tensors are not of one shape ``(N,)``, or the reduction is unknown.

    Source: Chattopadhyay et al., Grad-CAM++, https://arxiv.org/abs/1710.11063

    Example:
        >>> import torch
        >>> increase_in_confidence(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.6]))
        tensor(0.5000)

    """
    scores, masked_scores = _checked(scores, masked_scores)
    return reduced((scores < masked_scores).to(scores.dtype), reduction)


def average_gain(
    scores: Tensor, masked_scores: Tensor, *, eps: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    r"""Average Gain: how much of the missing confidence the highlighted part alone adds. Higher is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{\max(0, o_i - p_i)}{1 - p_i}

    A sample with :math:`p = 1` has nothing to gain: its gain is 0.

    Args:
        scores: :math:`p`, the score of the class on the image, shape ``(N,)``, a fraction in [0, 1].
        masked_scores: :math:`o`, the score of the same class on the masked image, shape ``(N,)``.
        eps: added to the denominator. Xplique adds 1e-8.
        reduction: ``"mean"`` for a scalar (NaN for no sample), ``"none"`` for one value a sample.

    Returns:
        A scalar, or a tensor of shape ``(N,)``.

    Raises:
        ValueError: if the two tensors are not of one shape ``(N,)``, or the reduction is unknown.

    Source: Zhang et al., Opti-CAM, https://arxiv.org/abs/2301.07002

    Example:
        >>> import torch
        >>> average_gain(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.6]))
        tensor(0.1000)

    """
    scores, masked_scores = _checked(scores, masked_scores)
    missing = 1 - scores + eps
    gained = (masked_scores - scores).clamp(min=0) / missing
    return reduced(torch.where(missing == 0, torch.zeros_like(gained), gained), reduction)


def drop_in_deletion(scores: Tensor, deleted_scores: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Average Drop in Deletion: the share of the confidence that goes with the highlighted part.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{p_i - d_i}{p_i}

    Higher is better. It is not clamped: where the rest convinces more than the whole image, the value is
    negative. A sample with :math:`p = 0` has nothing to lose: its drop is 0.

    Args:
        scores: :math:`p`, the score of the class on the image, shape ``(N,)``, a fraction in [0, 1].
        deleted_scores: :math:`d`, its score on the image without the highlighted part, shape ``(N,)``.
        reduction: ``"mean"`` for a scalar (NaN for no sample), ``"none"`` for one value a sample.

    Returns:
        A scalar, or a tensor of shape ``(N,)``.

    Raises:
        ValueError: if the two tensors are not of one shape ``(N,)``, or the reduction is unknown.

    Source: Jung and Oh, LIFT-CAM, https://arxiv.org/abs/2102.05228

    Example:
        >>> import torch
        >>> drop_in_deletion(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.6]))
        tensor(0.2750)

    """
    scores, deleted_scores = _checked(scores, deleted_scores)
    lost = (scores - deleted_scores) / scores
    return reduced(torch.where(scores == 0, torch.zeros_like(lost), lost), reduction)


def _checked(scores: Tensor, masked_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Refuse what is not a pair of ``(N,)`` tensors; bring both to one dtype of at least float32."""
    if scores.ndim != 1 or scores.shape != masked_scores.shape:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)} and masked_scores {tuple(masked_scores.shape)};"
            " both must be (N,), one score of the explained class a sample"
        )
    dtype = torch.promote_types(torch.promote_types(scores.dtype, masked_scores.dtype), torch.float32)
    return scores.to(dtype), masked_scores.to(dtype)


def reduced(values: Tensor, reduction: Reduction) -> Tensor:
    """The mean of the values of the samples, or the values.

    Raises:
        ValueError: if the reduction is unknown.
    """
    if reduction == "none":
        return values
    if reduction == "mean":
        return values.mean()
    raise ValueError(f"reduction is {reduction!r}; it must be 'mean' or 'none'")
