"""Measures of the change in confidence when an image is masked by its map."""

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
    r"""Compute Average Drop: the share of the confidence that is lost on the masked image. Lower is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{\max(0, p_i - o_i)}{p_i + \epsilon}

    The drop of a sample with :math:`p_i = 0` is 0.

    Args:
        scores: :math:`p`, the confidence of the target class on the clean images, ``(N,)``, in [0, 1].
        masked_scores: :math:`o`, the confidence of the same class on the masked images, ``(N,)``.
        relative: whether to divide by :math:`p + \epsilon`. False gives the absolute drop
            :math:`\max(0, p - o)`.
        eps: :math:`\epsilon` of the relative drop. The paper has none; torchcam adds 1e-7.
        reduction: ``"mean"`` for the mean over samples (NaN without samples), ``"none"`` for one value per
            sample.

    Returns:
        A scalar, or a tensor ``(N,)``.

    Raises:
        ValueError: if the two tensors do not have the same shape ``(N,)``, or ``reduction`` is neither
            ``"mean"`` nor ``"none"``.

    Source: Chattopadhyay et al., Grad-CAM++, https://arxiv.org/abs/1710.11063

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import average_drop
        >>> average_drop(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.6]))
        tensor(0.2500)

    """
    scores, masked_scores = _validate_scores(scores, masked_scores)
    drop = (scores - masked_scores).clamp(min=0)
    if relative:
        drop = drop / (scores + eps)
        if not eps:
            drop = torch.where(scores == 0, torch.zeros_like(drop), drop)
    return reduce_samples(drop, reduction)


def increase_in_confidence(scores: Tensor, masked_scores: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Compute Increase in Confidence: the share of samples whose confidence rises when masked.

    .. math:: \frac{1}{N} \sum_{i=1}^N [p_i < o_i]

    Higher is better. The comparison is strict: an unchanged score is not an increase.

    Args:
        scores: :math:`p`, the confidence of the target class on the clean images, ``(N,)``.
        masked_scores: :math:`o`, the confidence of the same class on the masked images, ``(N,)``.
        reduction: ``"mean"`` for the mean over samples (NaN without samples), ``"none"`` for one value (0 or
            1) per sample.

    Returns:
        A scalar in [0, 1], or a tensor ``(N,)``.

    Raises:
        ValueError: if the two tensors do not have the same shape ``(N,)``, or ``reduction`` is neither
            ``"mean"`` nor ``"none"``.

    Source: Chattopadhyay et al., Grad-CAM++, https://arxiv.org/abs/1710.11063

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import increase_in_confidence
        >>> increase_in_confidence(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.6]))
        tensor(0.5000)

    """
    scores, masked_scores = _validate_scores(scores, masked_scores)
    return reduce_samples((scores < masked_scores).to(scores.dtype), reduction)


def average_gain(
    scores: Tensor, masked_scores: Tensor, *, eps: float = 0.0, reduction: Reduction = "mean"
) -> Tensor:
    r"""Compute Average Gain: the share of the missing confidence that masking adds. Higher is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{\max(0, o_i - p_i)}{1 - p_i + \epsilon}

    The gain of a sample with :math:`p_i = 1` is 0.

    Args:
        scores: :math:`p`, the confidence of the target class on the clean images, ``(N,)``, in [0, 1].
        masked_scores: :math:`o`, the confidence of the same class on the masked images, ``(N,)``.
        eps: :math:`\epsilon`. The paper has none; Xplique adds 1e-8.
        reduction: ``"mean"`` for the mean over samples (NaN without samples), ``"none"`` for one value per
            sample.

    Returns:
        A scalar, or a tensor ``(N,)``.

    Raises:
        ValueError: if the two tensors do not have the same shape ``(N,)``, or ``reduction`` is neither
            ``"mean"`` nor ``"none"``.

    Source: Zhang et al., Opti-CAM, https://arxiv.org/abs/2301.07002

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import average_gain
        >>> average_gain(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.6]))
        tensor(0.1000)

    """
    scores, masked_scores = _validate_scores(scores, masked_scores)
    missing = 1 - scores + eps
    gain = (masked_scores - scores).clamp(min=0) / missing
    return reduce_samples(torch.where(missing == 0, torch.zeros_like(gain), gain), reduction)


def drop_in_deletion(scores: Tensor, complement_scores: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Compute Average Drop in Deletion: the share of the confidence lost without the highlighted part.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{p_i - d_i}{p_i}

    Higher is better. The drop is not clamped: it is negative where the confidence rises on the complement.
    The drop of a sample with :math:`p_i = 0` is 0.

    Args:
        scores: :math:`p`, the confidence of the target class on the clean images, ``(N,)``, in [0, 1].
        complement_scores: :math:`d`, the confidence of the same class on the complements, which are the
            images with the highlighted part hidden, ``(N,)``.
        reduction: ``"mean"`` for the mean over samples (NaN without samples), ``"none"`` for one value per
            sample.

    Returns:
        A scalar, or a tensor ``(N,)``.

    Raises:
        ValueError: if the two tensors do not have the same shape ``(N,)``, or ``reduction`` is neither
            ``"mean"`` nor ``"none"``.

    Source: Jung and Oh, LIFT-CAM, https://arxiv.org/abs/2102.05228

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import drop_in_deletion
        >>> drop_in_deletion(torch.tensor([0.8, 0.5]), torch.tensor([0.2, 0.6]))
        tensor(0.2750)

    """
    scores, complement_scores = _validate_scores(scores, complement_scores, "complement_scores")
    drop = (scores - complement_scores) / scores
    return reduce_samples(torch.where(scores == 0, torch.zeros_like(drop), drop), reduction)


def reduce_samples(values: Tensor, reduction: Reduction) -> Tensor:
    """Return the mean of the values for ``"mean"``, or the values themselves for ``"none"``.

    Raises:
        ValueError: if the reduction is neither.
    """
    if reduction == "none":
        return values
    if reduction == "mean":
        return values.mean()
    raise ValueError(f"reduction is {reduction!r}; it must be 'mean' or 'none'")


def _validate_scores(
    scores: Tensor, perturbed_scores: Tensor, name: str = "masked_scores"
) -> tuple[Tensor, Tensor]:
    """Check that both tensors have the same shape (N,), and convert them to one dtype of at least float32."""
    if scores.ndim != 1 or scores.shape != perturbed_scores.shape:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)} and {name} {tuple(perturbed_scores.shape)};"
            " both must have the same shape (N,), one score of the target class per sample"
        )
    dtype = torch.promote_types(torch.promote_types(scores.dtype, perturbed_scores.dtype), torch.float32)
    return scores.to(dtype), perturbed_scores.to(dtype)
