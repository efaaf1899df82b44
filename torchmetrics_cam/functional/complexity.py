"""Measures of the map alone: how many pixels it highlights, and how unevenly."""

import torch
from torch import Tensor

from torchmetrics_cam.functional.confidence import Reduction, reduce_samples
from torchmetrics_cam.functional.maps import value_dtype
from torchmetrics_cam.functional.statistics import sum_dtype


def complexity(masks: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Compute the complexity: the mean value of the mask. Lower is better.

    .. math:: \frac{1}{N} \sum_{i=1}^N \frac{1}{P} \sum_{j=1}^P M_{ij}

    where :math:`P` is the number of pixels.

    Args:
        masks: :math:`M`, maps normalized to [0, 1], ``(N, *spatial)``.
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar in [0, 1], or a tensor ``(N,)``.

    Raises:
        ValueError: if ``reduction`` is neither ``"mean"`` nor ``"none"``.

    Source: Poppi et al., Revisiting The Evaluation of Class Activation Mapping for Explainability,
    https://arxiv.org/abs/2104.10252

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import complexity
        >>> complexity(torch.tensor([[0.0, 1.0], [0.5, 1.0]]))
        tensor(0.6250)

    """
    values = masks.flatten(1).mean(1, dtype=sum_dtype(masks.device))
    return reduce_samples(values.to(value_dtype(masks)), reduction)


def sparseness(maps: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Compute the sparseness: the Gini index of the map. Higher is better.

    .. math:: \frac{\sum_{i=1}^P (2i - P - 1)\, m_{(i)}}{P \sum_{i=1}^P m_{(i)}}

    where :math:`m_{(1)} \le \dots \le m_{(P)}` are the values of the :math:`P` pixels in ascending order. It
    is 0 for a constant map and :math:`1 - 1/P` for a map with a single pixel above 0. A positive factor on
    the map changes nothing.

    Args:
        maps: maps normalized to [0, 1], ``(N, *spatial)``.
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar in [0, 1), or a tensor ``(N,)``. The value of a map of zeros, or of one with negative or
        infinite values, is not defined: NaN.

    Raises:
        ValueError: if ``reduction`` is neither ``"mean"`` nor ``"none"``.

    Source: Chalasani et al., Concise Explanations of Neural Networks using Adversarial Training,
    https://arxiv.org/abs/1810.06583

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import sparseness
        >>> sparseness(torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.5, 0.5]]), reduction="none")
        tensor([0.7500, 0.0000])

    """
    shares = _shares(maps).sort(dim=1).values
    pixels = shares.shape[1]
    weights = torch.arange(1 - pixels, pixels, 2, device=maps.device)
    # The weights add up to 0, but their products with equal shares only up to rounding errors.
    values = ((shares * weights).sum(1) / pixels).clamp(min=0)
    return reduce_samples(values.to(value_dtype(maps)), reduction)


def entropy(maps: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Compute the entropy of the map as a distribution over the pixels, in nats. Lower is better.

    .. math:: -\sum_{j=1}^P q_j \ln q_j, \qquad q_j = \frac{m_j}{\sum_{k=1}^P m_k}

    It is 0 for a map with a single pixel above 0 and :math:`\ln P` for a constant map of :math:`P` pixels. A
    positive factor on the map changes nothing.

    Args:
        maps: :math:`m`, maps normalized to [0, 1], ``(N, *spatial)``.
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar in [0, ln P], or a tensor ``(N,)``. The value of a map of zeros, or of one with negative or
        infinite values, is not defined: NaN.

    Raises:
        ValueError: if ``reduction`` is neither ``"mean"`` nor ``"none"``.

    Source: Bhatt et al., Evaluating and Aggregating Feature-based Model Explanations,
    https://arxiv.org/abs/2005.00631, who call it complexity

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import entropy
        >>> entropy(torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]]), reduction="none")  # ln 2, 0
        tensor([0.6931, 0.0000])

    """
    values = torch.special.entr(_shares(maps)).sum(1)
    return reduce_samples(values.to(value_dtype(maps)), reduction)


def histogram_entropy(maps: Tensor, *, bins: int = 100, reduction: Reduction = "mean") -> Tensor:
    r"""Compute the entropy of the histogram of the map's values, in nats.

    .. math:: -\sum_{b=1}^B h_b \ln h_b

    where :math:`h_b` is the share of the pixels in bin :math:`b` of :math:`B` bins of equal width from the
    lowest to the highest value of the map. It is 0 for a constant map. A positive factor on the map, or a
    constant added to it, changes nothing. `parameter_randomization` compares it before and after the network
    is randomized.

    Args:
        maps: ``(N, *spatial)``, in any unit.
        bins: :math:`B`; 100 in the paper.
        reduction: ``"mean"`` for the mean over samples, ``"none"`` for one value per sample.

    Returns:
        A scalar in [0, ln B], or a tensor ``(N,)``; NaN for a map with values that are not finite.

    Raises:
        ValueError: if ``bins`` is not positive, or ``reduction`` is neither ``"mean"`` nor ``"none"``.

    Source: Hedström et al., A Fresh Look at Sanity Checks for Saliency Maps,
    https://arxiv.org/abs/2405.02383

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import histogram_entropy
        >>> histogram_entropy(torch.tensor([[0.0, 0.1, 0.9, 1.0]]), bins=2)  # two pixels in each half: ln 2
        tensor(0.6931)

    """
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be a positive number of bins")
    values = maps.flatten(1).to(sum_dtype(maps.device)).contiguous()
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    inner_edges = low + torch.arange(1, bins, device=maps.device) * ((high - low) / bins)
    index = torch.searchsorted(inner_edges, values, right=True)
    counts = torch.zeros(len(values), bins, dtype=torch.int64, device=maps.device)
    counts = counts.scatter_add(1, index, torch.ones_like(index))
    entropies = torch.special.entr(counts.to(values.dtype) / values.shape[1]).sum(1)
    finite = values.isfinite().all(1)
    return reduce_samples(entropies.where(finite, torch.nan).to(value_dtype(maps)), reduction)


def _shares(maps: Tensor) -> Tensor:
    """Return each pixel's share of the map's sum, ``(N, P)``; NaN for maps without a distribution."""
    values = maps.flatten(1).to(sum_dtype(maps.device))
    shares = values / values.sum(1, keepdim=True)
    return shares.where((values >= 0).all(1, keepdim=True), torch.nan)
