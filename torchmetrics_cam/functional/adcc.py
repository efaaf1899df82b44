"""ADCC and its parts: is the map stable, is it small, does it keep the confidence."""

import torch
from torch import Tensor

from torchmetrics_cam.functional.confidence import Reduction, reduced


def complexity(masks: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Complexity: the mean of the mask, so a small map is simple. Lower is better.

    Args:
        masks: in [0, 1], ``(N, *spatial)``.
        reduction: ``"mean"`` for a scalar, ``"none"`` for one value a sample.

    Returns:
        A scalar, or a tensor of shape ``(N,)``.

    Raises:
        ValueError: if the reduction is unknown.

    Source: Poppi et al., ADCC, https://arxiv.org/abs/2104.10252

    Example:
        >>> import torch
        >>> complexity(torch.tensor([[0.0, 1.0], [0.5, 1.0]]))
        tensor(0.6250)

    """
    return reduced(masks.flatten(1).mean(1), reduction)


def map_correlation(maps: Tensor, others: Tensor) -> Tensor:
    r"""Coherency of two maps: their Pearson correlation :math:`r`, as :math:`(r + 1) / 2` in [0, 1].

    A constant map has no correlation with another: 0.5. Two maps that are equal are coherent, also constant
    ones: 1.

    Args:
        maps: of the images, ``(N, *spatial)``.
        others: of the images that the maps mask, the same shape.

    Returns:
        A tensor of shape ``(N,)``; NaN where a map is not finite.

    Source: Poppi et al., ADCC, https://arxiv.org/abs/2104.10252

    Example:
        >>> import torch
        >>> map_correlation(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.1, 0.3, 0.5]]))
        tensor([1.])

    """
    # Apple's GPUs have no float64.
    dtype = torch.float32 if maps.device.type == "mps" else torch.float64
    first, second = (one.flatten(1).to(dtype) for one in (maps, others))
    first, second = (one - one.mean(1, keepdim=True) for one in (first, second))
    norms = first.norm(dim=1) * second.norm(dim=1)
    correlation = (first * second).sum(1) / torch.where(norms == 0, torch.ones_like(norms), norms)
    equal = (maps == others).flatten(1).all(1)
    return torch.where(equal, torch.ones_like(norms), (correlation.clamp(-1, 1) + 1) / 2).to(
        torch.promote_types(maps.dtype, torch.float32)
    )


def adcc(coherency: Tensor, complexity: Tensor, drop: Tensor) -> Tensor:
    r"""ADCC: the harmonic mean of coherency, of 1 - complexity and of 1 - drop. Higher is better.

    .. math:: \frac{3}{\frac{1}{\mathrm{coherency}} + \frac{1}{1 - \mathrm{complexity}} +
              \frac{1}{1 - \mathrm{drop}}}

    Where a part is 0, so is ADCC.

    Args:
        coherency: in [0, 1], any shape.
        complexity: in [0, 1], the same shape.
        drop: the relative drop, in [0, 1], the same shape.

    Returns:
        A tensor of the same shape.

    Source: Poppi et al., ADCC, https://arxiv.org/abs/2104.10252

    Example:
        >>> import torch
        >>> adcc(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 0.2]), torch.tensor([0.5, 0.1]))
        tensor([0.5000, 0.0000])

    """
    parts = torch.stack([coherency, 1 - complexity, 1 - drop])
    mean = 3 / (1 / parts).sum(0)
    return torch.where((parts <= 0).any(0), torch.zeros_like(mean), mean)
