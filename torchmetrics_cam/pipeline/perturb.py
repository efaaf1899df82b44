"""From a map to a mask, and from a mask and a baseline to perturbed images."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from operator import gt

import torch
from torch import Tensor

from torchmetrics_cam.baselines import BaselineImage, baseline_values, check_baseline
from torchmetrics_cam.functional._noise import hashed_noise, normal_noise
from torchmetrics_cam.functional.maps import min_max, resize_maps, top_fraction
from torchmetrics_cam.functional.road import linear_imputation
from torchmetrics_cam.pipeline.explanation import Explanation
from torchmetrics_cam.protocol import BASELINES, EvaluationProtocol

# Not that of a random map, which would then decide which pixels are removed.
_REMOVAL_SEED = 0x5DEECE66D


def to_mask(explanation: Explanation, protocol: EvaluationProtocol) -> Tensor:
    """Return the masks of a batch: its normalized maps, or their highest pixels if the protocol says so.

    Args:
        explanation: the maps.
        protocol: its ``mask`` is ``"soft"``, ``"top"`` or ``"threshold"``.

    Returns:
        Masks in [0, 1] of the images' size, ``(N, *spatial)``; 1 keeps a pixel, 0 hides it.
    """
    maps, constant = _normalized(explanation, protocol)
    if protocol.mask == "top":
        # A constant map has no highest pixels and stays as it is: 0, or the value of the uniform control.
        return torch.where(constant, maps, top_fraction(maps, protocol.mask_fraction))
    if protocol.mask == "threshold":
        valid = explanation.valid.view(-1, *(1,) * (maps.ndim - 1))
        return ((maps >= protocol.mask_threshold) & valid).to(maps.dtype)
    return maps


def normalized_maps(explanation: Explanation, protocol: EvaluationProtocol) -> Tensor:
    """Return the maps in [0, 1] at the images' size, ``(N, *spatial)``.

    The map of an image that is not valid is 0, and so is a constant one, unless its source has normalized it.
    """
    return _normalized(explanation, protocol)[0]


def _normalized(explanation: Explanation, protocol: EvaluationProtocol) -> tuple[Tensor, Tensor]:
    """Return the normalized maps, and which of them are constant, ``(N, 1, ...)``."""
    maps, normalize = explanation.maps, "none" if explanation.normalized else protocol.normalize
    per_map = (-1, *(1,) * (maps.ndim - 1))
    constant, valid = explanation.degenerate.view(per_map), explanation.valid.view(per_map)
    maps, constant = torch.where(valid, maps, torch.zeros_like(maps)), constant | ~valid
    if normalize in ("before_resize", "before_and_after_resize"):
        maps = min_max(maps, eps=protocol.normalize_eps)
    maps, constant = _resized(maps, explanation.images.shape[2:], constant)
    if normalize in ("after_resize", "before_and_after_resize"):
        maps = min_max(maps, eps=protocol.normalize_eps)
    return maps, constant


def _resized(maps: Tensor, size: Sequence[int], constant: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps at the images' size, and which are constant there, without rounding errors.

    Resizing a constant map introduces rounding errors. Normalization would enlarge them to the range of a
    map, and a map of ones would mask a little. A map can also become constant when it is resized to a smaller
    size.
    """
    resized = resize_maps(maps, size)
    if resized is maps:
        return maps, constant
    dims = tuple(range(1, maps.ndim))
    low, high = maps.amin(dims, keepdim=True), maps.amax(dims, keepdim=True)
    if any(map(gt, maps.shape, resized.shape)):
        span = resized.amax(dims, keepdim=True) - resized.amin(dims, keepdim=True)
        constant = constant | (span <= 4 * torch.finfo(maps.dtype).eps * torch.maximum(high, -low))
    value = resized.flatten(1)[:, 0].view_as(low).clamp(low, high)
    return torch.where(constant, value, resized), constant


def apply_mask(images: Tensor, mask: Tensor, protocol: EvaluationProtocol) -> Tensor:
    """Return the masked images M * x + (1 - M) * b.

    Args:
        images: x, ``(N, C, *spatial)``.
        mask: M, ``(N, *spatial)``.
        protocol: its ``baseline`` is b.

    Returns:
        Images of the same shape, dtype and device.
    """
    mask = mask.to(images.dtype).unsqueeze(1)
    masked = mask * images
    if not callable(protocol.baseline) and protocol.baseline == 0:
        return masked
    return torch.addcmul(masked, 1 - mask, baseline_values(images, protocol.baseline))


def removed_at_random(removed: Tensor, images: Tensor, protocol: EvaluationProtocol, sample: int) -> Tensor:
    """Return which part of the removed pixels a random removal replaces.

    Each pixel is drawn by itself, by a number that depends on the image, the pixel and the sample alone, so
    that all sources and all points of a curve have the same draws.

    Args:
        removed: how much of each pixel is removed, in [0, 1], ``(N, *spatial)``.
        images: ``(N, C, *spatial)``.
        protocol: its ``removal_probability``, lowered where more than ``removal_limit`` would be removed.
        sample: the number of the random removal.

    Returns:
        A tensor of the shape and dtype of ``removed``.

    Source: Zheng et al., F-Fidelity, https://arxiv.org/abs/2410.02970
    """
    fraction = removed.flatten(1).to(torch.float32).mean(1, keepdim=True)
    probability = (protocol.removal_limit / fraction).clamp(max=protocol.removal_probability)
    drawn = hashed_noise(images, removed[0].numel(), _REMOVAL_SEED + sample) < probability
    return removed * drawn.view_as(removed)


def check_baselines(images: Tensor, protocol: EvaluationProtocol) -> None:
    """Validate that the baselines of the protocol fit the images.

    Raises:
        ValueError: if one has not one value for each channel, or is an image of another shape.
    """
    for name in BASELINES:
        baseline = getattr(protocol, name)
        # Most are numbers: beside a small model, Python calls take most of the time.
        if isinstance(baseline, tuple | BaselineImage):
            check_baseline(images, baseline, f"the protocol's {name}")


class Perturbation(ABC):
    """A perturbation of the images of a batch, computed for a part of them at a time."""

    @abstractmethod
    def perturb(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """Perturb some of the images.

        Args:
            chunk: which images of the batch.

        Returns:
            The perturbed images ``(n, C, *spatial)``, and which of them are unchanged, bool, ``(n,)``.
        """


@dataclass(frozen=True)
class NoPerturbation(Perturbation):
    """The images themselves.

    Args:
        images: ``(N, C, *spatial)``.
    """

    images: Tensor

    def perturb(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """Return a copy of the images; none is reported as unchanged, so that each is scored."""
        images = self.images[chunk].clone()
        return images, torch.zeros(len(images), dtype=torch.bool, device=images.device)


@dataclass(frozen=True)
class Masking(Perturbation):
    """The masked images, or with ``complement`` the images with the highlighted part hidden.

    Args:
        explanation: the images and their maps.
        protocol: how a map becomes a mask, and the baseline.
        complement: whether the mask hides instead of keeping.
        sample: the number of the random removal; None if all is removed that the mask hides.
    """

    explanation: Explanation
    protocol: EvaluationProtocol
    complement: bool = False
    sample: int | None = None

    def perturb(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """Mask some of the images; those whose mask is 1 everywhere are unchanged."""
        part = self.explanation[chunk]
        mask = to_mask(part, self.protocol)
        mask = 1 - mask if self.complement else mask
        if self.sample is not None:
            mask = 1 - removed_at_random(1 - mask, part.images, self.protocol, self.sample)
        return apply_mask(part.images, mask, self.protocol), mask.flatten(1).amin(1) == 1


@dataclass(frozen=True)
class Replacement(Perturbation):
    """The images with their most relevant pixels replaced, or with all other pixels replaced.

    Args:
        images: ``(N, C, *spatial)``.
        ranks: the rank of each pixel in the map, 0 for the most relevant, ``(N, *spatial)``.
        count: how many of the most relevant pixels.
        keep: whether to keep these and replace all other pixels.
        baseline: the values that replace them, of a shape that broadcasts to the images.
        protocol: how many of them a random removal replaces.
        sample: the number of the random removal; None if all are replaced.
    """

    images: Tensor
    ranks: Tensor
    count: int
    keep: bool
    baseline: Tensor
    protocol: EvaluationProtocol
    sample: int | None = None

    def perturb(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """Replace pixels of some of the images."""
        replaced = (self.ranks[chunk] < self.count) != self.keep
        if self.sample is not None:
            replaced = removed_at_random(replaced, self.images[chunk], self.protocol, self.sample)
        return _replace(self.images, replaced, self.baseline, chunk)


@dataclass(frozen=True)
class Hiding(Perturbation):
    """The images with some cells of a grid replaced, which do not depend on a map.

    Args:
        images: ``(N, C, *spatial)``.
        hidden: which cells, bool, ``(N, cells)``.
        numbers: the number of the cell that each pixel is in, ``(*spatial)``.
        baseline: the values that replace them, of a shape that broadcasts to the images.
    """

    images: Tensor
    hidden: Tensor
    numbers: Tensor
    baseline: Tensor

    def perturb(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """Replace cells of some of the images; one whose cells show the baseline already is unchanged."""
        replaced = self.hidden[chunk].index_select(1, self.numbers.flatten())
        result, _ = _replace(self.images, replaced.view(-1, *self.numbers.shape), self.baseline, chunk)
        return result, (result == self.images[chunk]).flatten(1).all(1)


@dataclass(frozen=True)
class Imputation(Perturbation):
    """The images with their most or least relevant pixels imputed from their neighbors, and noise added.

    Args:
        images: ``(N, C, *spatial)``.
        ranks: the rank of each pixel in the map, 0 for the most relevant, ``(N, *spatial)``.
        count: how many pixels are imputed.
        most_relevant: whether these are the most relevant pixels or the least relevant ones.
        noise: the standard deviation of the noise, in units of the images.
        seed: of the noise, which otherwise depends on the image alone.
    """

    images: Tensor
    ranks: Tensor
    count: int
    most_relevant: bool
    noise: float
    seed: int

    def perturb(self, chunk: slice) -> tuple[Tensor, Tensor]:
        """Impute pixels of some of the images."""
        images, ranks = self.images[chunk], self.ranks[chunk]
        pixels = ranks[0].numel()
        imputed = ranks < self.count if self.most_relevant else ranks >= pixels - self.count
        result = linear_imputation(images, imputed)
        if self.noise:
            result = result + self.noise * normal_noise(images, self.seed) * imputed.unsqueeze(1)
        return result, ~imputed.flatten(1).any(1)


def _replace(images: Tensor, replaced: Tensor, baseline: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
    """Return a chunk of the images with some pixels replaced, and which images are unchanged."""
    for_each = baseline.ndim == images.ndim and len(baseline) == len(images)
    result = torch.where(replaced.unsqueeze(1), baseline[chunk] if for_each else baseline, images[chunk])
    return result, ~replaced.flatten(1).any(1)
