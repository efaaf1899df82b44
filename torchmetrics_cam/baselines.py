"""Values that replace masked pixels: numbers, the mean or blur of the image, an image, or a function."""

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
    r"""Return the model's input for black pixels, for images normalized by ``(pixels - mean) / std``.

    .. math:: b_c = -\frac{\mathrm{mean}_c}{\mathrm{std}_c}

    Args:
        mean: the mean that the transform subtracts, one number or one per channel, in units of the pixels.
        std: the standard deviation that it divides by, in the same form.

    Returns:
        One number per channel, in units of the model's input, for ``EvaluationProtocol(baseline=...)``.

    Raises:
        ValueError: if mean and std differ in length, or a standard deviation is not positive.

    Example:
        >>> from torchmetrics_cam.baselines import black
        >>> black(mean=[0.5, 0.4], std=[0.25, 0.2])
        (-2.0, -2.0)

    """
    means = list(mean) if isinstance(mean, Sequence) else [mean]
    stds = list(std) if isinstance(std, Sequence) else [std]
    if len(means) != len(stds):
        raise ValueError(
            f"mean has {len(means)} values but std has {len(stds)}; pass equally many, one per channel"
        )
    if not all(value > 0 for value in stds):
        raise ValueError(f"std is {std}; a standard deviation must be positive")
    return tuple(-channel_mean / scale for channel_mean, scale in zip(means, stds, strict=True))


@dataclass(frozen=True)
class ImageMean:
    """The mean of each channel of each image: masked pixels take the image's mean color.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.baselines import ImageMean
        >>> ImageMean()(torch.tensor([[[1.0, 2.0, 6.0]]]))
        tensor([[[3.]]])

    """

    def __call__(self, images: Tensor) -> Tensor:
        """Return the means ``(N, C, 1, ...)`` of images ``(N, C, *spatial)``."""
        return images.mean(tuple(range(2, images.ndim)), keepdim=True)


@dataclass(frozen=True)
class GaussianBlur:
    """The image blurred by a Gaussian filter. Outside the image, the values at its border are repeated.

    The default parameters are those of RISE, whose published code has another filter, `RiseBlur`.

    Args:
        kernel_size: the width of the filter along each axis, in pixels, odd.
        sigma: the standard deviation of the Gaussian, in pixels.

    Raises:
        ValueError: if ``kernel_size`` is not an odd positive integer, or ``sigma`` is not positive.

    Source: Petsiuk et al., RISE, https://arxiv.org/abs/1806.07421

    Example:
        >>> import torch
        >>> from torchmetrics_cam.baselines import GaussianBlur
        >>> GaussianBlur(kernel_size=3, sigma=1.0)(torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]]))
        tensor([[[0.0000, 0.2741, 0.4519, 0.2741, 0.0000]]])

    """

    kernel_size: int = 11
    sigma: float = 5.0

    def __post_init__(self) -> None:
        if not isinstance(self.kernel_size, int) or self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ValueError(
                f"GaussianBlur(kernel_size={self.kernel_size!r}): it must be an odd positive integer"
            )
        if not self.sigma > 0:
            raise ValueError(f"GaussianBlur(sigma={self.sigma!r}): it must be positive")

    def __call__(self, images: Tensor) -> Tensor:
        """Return the blurred images, of the same shape ``(N, C, *spatial)``."""
        return _filtered(images, _gaussian(self.kernel_size // 2, self.sigma, images), "replicate")


@dataclass(frozen=True)
class RiseBlur:
    """The image blurred as in the published code of RISE, from where its insertion curves start.

    The filter is a Gaussian with a standard deviation of 5 pixels whose part outside of 11 x 11 pixels is
    reflected into them, as SciPy's ``gaussian_filter`` does with an image of this size. It is almost uniform.
    Outside the image, the model's input is 0.

    Source: Petsiuk et al., RISE, https://arxiv.org/abs/1806.07421; ``gkern`` in
    https://github.com/eclique/RISE/blob/master/evaluation.py

    Example:
        >>> import torch
        >>> from torchmetrics_cam.baselines import RiseBlur
        >>> RiseBlur()(torch.ones(1, 1, 11))[0, 0, 5]  # the filter covers these 11 pixels
        tensor(1.)

    """

    def __call__(self, images: Tensor) -> Tensor:
        """Return the blurred images, of the same shape ``(N, C, *spatial)``."""
        size, sigma, reach = 11, 5.0, 20
        weights = _gaussian(reach, sigma, images)
        offsets = torch.arange(-reach, reach + 1, device=images.device)
        positions = (torch.arange(size, device=images.device).unsqueeze(1) + offsets) % (2 * size)
        reflected = torch.where(positions < size, positions, 2 * size - 1 - positions)
        kernel = (weights * (reflected == size // 2)).sum(1)
        return _filtered(images, kernel, "constant")


def _gaussian(radius: int, sigma: float, like: Tensor) -> Tensor:
    """Return the weights of a Gaussian filter along one axis, ``(2 * radius + 1,)``, with a sum of 1."""
    offsets = torch.arange(-radius, radius + 1, device=like.device, dtype=like.dtype)
    return (-(offsets / sigma).square() / 2).softmax(0)


def _filtered(images: Tensor, kernel: Tensor, padding_mode: str) -> Tensor:
    """Return the images filtered along each axis, one after the other.

    Args:
        images: ``(N, C, *spatial)``.
        kernel: the weights along one axis, of an odd number.
        padding_mode: what is outside of the image, as in `torch.nn.functional.pad`.
    """
    channels, dims = images.shape[1], images.ndim - 2
    for axis in range(dims):
        shape = [1] * dims
        shape[axis] = len(kernel)
        # F.pad takes the last axis first.
        padding = [0] * (2 * dims)
        padding[2 * (dims - 1 - axis)] = padding[2 * (dims - 1 - axis) + 1] = len(kernel) // 2
        weight = kernel.view(1, 1, *shape).expand(channels, 1, *shape)
        padded = F.pad(images, padding, mode=padding_mode)
        images = _CONVOLUTIONS[dims](padded, weight, groups=channels)
    return images


class BaselineImage:
    """One image whose pixels replace the masked pixels of every image.

    Args:
        image: ``(C, *spatial)``, in units of the model's input. It is copied.
    """

    def __init__(self, image: Tensor) -> None:
        self.image = image.detach().as_subclass(Tensor).clone()

    def __call__(self, images: Tensor) -> Tensor:
        """Return the baseline as a batch ``(1, C, *spatial)``."""
        return self.image.unsqueeze(0)

    def __repr__(self) -> str:
        content = self.image.cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return f"BaselineImage({tuple(self.image.shape)}, {hashlib.sha256(content).hexdigest()[:12]})"


_BUILT_IN = (ImageMean, GaussianBlur, RiseBlur, BaselineImage)
BLUR = GaussianBlur()
NAMED_BASELINES: dict[str, Callable[[Tensor], Tensor]] = {"mean": ImageMean(), "blur": BLUR}


def as_baseline(baseline: Any) -> float | tuple[float, ...] | Callable[[Tensor], Tensor]:
    """Convert a baseline given by the user to a number, a tuple of numbers, or a function of the images.

    Args:
        baseline: a number, a tuple with one number per channel, ``"mean"`` or ``"blur"``, an image
            ``(C, *spatial)``, or a function.

    Raises:
        ValueError: if it is an unknown name, or none of these.
    """
    if isinstance(baseline, str):
        if baseline not in NAMED_BASELINES:
            raise ValueError(
                f"baseline={baseline!r} is not a baseline; the names are {sorted(NAMED_BASELINES)}"
            )
        return NAMED_BASELINES[baseline]
    if isinstance(baseline, Tensor):
        return BaselineImage(baseline)
    if callable(baseline):
        return baseline  # type: ignore[no-any-return]
    numbers = baseline if isinstance(baseline, tuple) else (baseline,)
    if not (numbers and all(map(is_finite_number, numbers))):
        raise ValueError(
            f"EvaluationProtocol(baseline={baseline!r}): it must be a finite number, a tuple of one number"
            f" per channel, one of {sorted(NAMED_BASELINES)}, a tensor (C, *spatial), or a function of the"
            " images"
        )
    return baseline  # type: ignore[no-any-return]


def check_baseline(images: Tensor, baseline: Any, name: str) -> None:
    """Validate that a baseline fits the images.

    Args:
        images: the model's input, ``(N, C, *spatial)``.
        baseline: a return value of `as_baseline`.
        name: what the message calls it, such as ``"the protocol's baseline"``.

    Raises:
        ValueError: if it has not one value for each channel, or is an image of another shape.
    """
    if isinstance(baseline, tuple) and len(baseline) != images.shape[1]:
        raise ValueError(
            f"{name} has {len(baseline)} values but the images have {images.shape[1]} channels; give one"
            " value, or one for each channel"
        )
    if isinstance(baseline, BaselineImage) and baseline.image.shape != images.shape[1:]:
        raise ValueError(
            f"{name} has shape {tuple(baseline.image.shape)} but an image has {tuple(images.shape[1:])}; pass"
            " a baseline of the images' shape (C, *spatial)"
        )


def baseline_values(images: Tensor, baseline: Any) -> Tensor:
    """Return the values that replace masked pixels of the images.

    Args:
        images: the model's input, ``(N, C, *spatial)``.
        baseline: a return value of `as_baseline`.

    Returns:
        A tensor that broadcasts to the images, in their dtype and on their device.

    Raises:
        TypeError: if a baseline function does not return a tensor.
        ValueError: if the shape that it returns does not broadcast to the images.
    """
    if not callable(baseline):
        # new_full fills on the device; copying numbers from the host would synchronize a GPU with it.
        if not isinstance(baseline, tuple):
            return images.new_full((), baseline)
        values = torch.stack([images.new_full((), value) for value in baseline])
        return values.view(-1, *(1,) * (images.ndim - 2))
    # A function of the user may modify its argument.
    values = baseline(images if isinstance(baseline, _BUILT_IN) else images.clone())
    if not isinstance(values, Tensor):
        raise TypeError(
            f"the protocol's baseline {display_name(baseline)} returned {values!r}, not a tensor; it must"
            " return a tensor that broadcasts to the images"
        )
    sizes = zip(reversed(values.shape), reversed(images.shape), strict=False)
    if values.ndim > images.ndim or not all(size in (1, needed) for size, needed in sizes):
        raise ValueError(
            f"the protocol's baseline {display_name(baseline)} returned shape {tuple(values.shape)} for"
            f" images of shape {tuple(images.shape)}; it must return a tensor that broadcasts to the images"
        )
    return values.detach().as_subclass(Tensor).to(images)


def display_name(value: Any) -> str:
    """Return the name of a function, or the text of any other value, for captions and tables."""
    return str(getattr(value, "__name__", value))


def is_finite_number(value: object) -> bool:
    """Return whether a value is an int or float, finite, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
