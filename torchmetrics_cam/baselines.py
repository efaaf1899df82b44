"""What hidden positions show: a value, the image's mean or blur, a picture, or a function of the images."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Baseline = float | tuple[float, ...] | Tensor | Callable[[Tensor], Tensor]

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def black(mean: float | Sequence[float], std: float | Sequence[float]) -> tuple[float, ...]:
    """Black in image space, for images that were normalized by ``(pixels - mean) / std``: -mean / std.

    Args:
        mean: one value, or one a channel, in units of pixels.
        std: the same.

    Returns:
        One value a channel, in units of the model's input.

    Raises:
        ValueError: if the two have not equally many values, or a standard deviation is not positive.

    Example:
        >>> black(mean=[0.5, 0.4], std=[0.25, 0.2])
        (-2.0, -2.0)

    """
    means = list(mean) if isinstance(mean, Sequence) else [mean]
    stds = list(std) if isinstance(std, Sequence) else [std]
    if len(means) != len(stds):
        raise ValueError(f"mean has {len(means)} values but std has {len(stds)}; give one of each a channel")
    if not all(value > 0 for value in stds):
        raise ValueError(f"std is {std}; a standard deviation is positive")
    return tuple(-one / scale for one, scale in zip(means, stds, strict=True))


@dataclass(frozen=True)
class ImageMean:
    """Each channel of an image at its own mean, so that hidden positions keep the image's color."""

    def __call__(self, images: Tensor) -> Tensor:
        """From images ``(N, C, *spatial)`` to ``(N, C, 1, ...)``."""
        return images.mean(tuple(range(2, images.ndim)), keepdim=True)


@dataclass(frozen=True)
class GaussianBlur:
    """The image itself, blurred; its border values are repeated outwards.

    Args:
        kernel_size: positions along each axis that are averaged, odd.
        sigma: the standard deviation of the Gaussian, in positions. 11 and 5 are those of RISE
            (https://arxiv.org/abs/1806.07421).

    Raises:
        ValueError: if the size is not odd and positive, or sigma is not positive.
    """

    kernel_size: int = 11
    sigma: float = 5.0

    def __post_init__(self) -> None:
        if not isinstance(self.kernel_size, int) or self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(f"GaussianBlur(kernel_size={self.kernel_size!r}): it must be odd and positive")
        if not self.sigma > 0:
            raise ValueError(f"GaussianBlur(sigma={self.sigma!r}): it must be positive")

    def __call__(self, images: Tensor) -> Tensor:
        """From images ``(N, C, *spatial)`` to blurred ones of the same shape, one axis after the other."""
        channels, axes = images.shape[1], images.ndim - 2
        radius = self.kernel_size // 2
        offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
        kernel = (-(offsets / self.sigma).square() / 2).softmax(0)
        for axis in range(axes):
            shape = [1] * axes
            shape[axis] = self.kernel_size
            # F.pad counts from the last axis.
            padding = [0] * (2 * axes)
            padding[2 * (axes - 1 - axis)] = padding[2 * (axes - 1 - axis) + 1] = radius
            weight = kernel.view(1, 1, *shape).expand(channels, 1, *shape)
            padded = F.pad(images, padding, mode="replicate")
            images = _CONVOLUTIONS[axes](padded, weight, groups=channels)
        return images


class Picture:
    """One picture behind every image.

    Args:
        picture: ``(C, *spatial)``, in units of the model's input.
    """

    def __init__(self, picture: Tensor) -> None:
        self.picture = picture.detach().clone()

    def check(self, images: Tensor) -> None:
        """Refuse images of another shape.

        Raises:
            ValueError: if there are some.
        """
        if self.picture.shape != images.shape[1:]:
            raise ValueError(
                f"the protocol's baseline has shape {tuple(self.picture.shape)} but an image has"
                f" {tuple(images.shape[1:])}; give it the shape (C, *spatial) of the images"
            )

    def __call__(self, images: Tensor) -> Tensor:
        """The picture, ``(1, C, *spatial)``."""
        return self.picture.unsqueeze(0)

    def __repr__(self) -> str:
        values = self.picture.cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return f"Picture({tuple(self.picture.shape)}, {hashlib.sha256(values).hexdigest()[:12]})"


_OWN = (ImageMean, GaussianBlur, Picture)


def baseline_of(images: Tensor, baseline: Any) -> Tensor:
    """What hidden positions of these images show.

    Args:
        images: ``(N, C, *spatial)``, as the model takes them.
        baseline: what `as_baseline` returned.

    Returns:
        A tensor that broadcasts to the images, in their dtype and on their device.

    Raises:
        TypeError: if a function returns no tensor.
        ValueError: if what it returns does not broadcast to the images.
    """
    if not callable(baseline):
        # Filled in on the device: a copy from the host would wait for it.
        if not isinstance(baseline, tuple):
            return images.new_full((), baseline)
        values = torch.stack([images.new_full((), value) for value in baseline])
        return values.view(-1, *(1,) * (images.ndim - 2))
    # A function of the user's may work in place.
    hidden = baseline(images if isinstance(baseline, _OWN) else images.clone())
    if not isinstance(hidden, Tensor):
        raise TypeError(f"the protocol's baseline {described(baseline)} returned {hidden!r}, not a tensor")
    sizes = zip(reversed(hidden.shape), reversed(images.shape), strict=False)
    if hidden.ndim > images.ndim or not all(given in (1, wanted) for given, wanted in sizes):
        raise ValueError(
            f"the protocol's baseline {described(baseline)} returned shape {tuple(hidden.shape)} for images"
            f" of {tuple(images.shape)}; return one that broadcasts to them"
        )
    return hidden.detach().to(images)


def described(baseline: Any) -> str:
    """A baseline as it stands in a caption: its values, or the name of its function."""
    return str(getattr(baseline, "__name__", baseline))


BLUR = GaussianBlur()
NAMED: dict[str, Callable[[Tensor], Tensor]] = {"mean": ImageMean(), "blur": BLUR}


def as_baseline(baseline: Any) -> float | tuple[float, ...] | Callable[[Tensor], Tensor]:
    """A baseline from what a user gives: a number, one a channel, a name, a picture, or a function.

    Raises:
        ValueError: if it is a name that is not known, a number that is not finite, or an empty tuple.
        TypeError: if it is none of these.
    """
    if isinstance(baseline, str):
        if baseline not in NAMED:
            raise ValueError(f"baseline={baseline!r} is no baseline; the names are {sorted(NAMED)}")
        return NAMED[baseline]
    if isinstance(baseline, Tensor):
        return Picture(baseline)
    if callable(baseline):
        return baseline  # type: ignore[no-any-return]
    values = baseline if isinstance(baseline, tuple) else (baseline,)
    if not (values and all(map(is_number, values))):
        raise ValueError(
            f"EvaluationProtocol(baseline={baseline!r}): it must be a finite number, a tuple of one for each"
            f" channel, one of {sorted(NAMED)}, a tensor (C, *spatial), or a function of the images"
        )
    return baseline  # type: ignore[no-any-return]


def is_number(value: object) -> bool:
    """Whether it is a finite number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
