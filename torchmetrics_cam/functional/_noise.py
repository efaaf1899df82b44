"""Noise that is a hash of the image: the same in any batch, order, rank and run. No generator is touched."""

import torch
from torch import Tensor

# Multipliers of splitmix64 as signed 64-bit integers; tensors have no unsigned arithmetic, and it wraps the
# same.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)
_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def hashed_noise(images: Tensor, count: int, seed: int) -> Tensor:
    """So many numbers an image, uniform in [0, 1).

    Args:
        images: ``(N, ...)``; every bit of them counts.
        count: how many numbers.
        seed: another seed gives other numbers.

    Returns:
        A tensor of shape ``(N, count)``.
    """
    places = torch.arange(1, count + 1, device=images.device)
    # A seed of any size, as a signed 64-bit integer.
    start = (seed * 0x632BE5AB + (1 << 63)) % (1 << 64) - (1 << 63)
    bits = _mixed(_image_keys(images).unsqueeze(1) + places * _GOLDEN + start)
    return (bits >> 11 & (1 << 53) - 1).to(torch.float32) / (1 << 53)


def _image_keys(images: Tensor) -> Tensor:
    """A 64-bit key an image, from every bit of it; sums of integers do not depend on their order."""
    words = images.contiguous().view(_BITS[images.dtype]).flatten(1).to(torch.int64)
    places = torch.arange(1, words.shape[1] + 1, device=images.device) * _GOLDEN
    return _mixed((words * (places | 1)).sum(1))


def _mixed(bits: Tensor) -> Tensor:
    """The finalizer of splitmix64: every input bit reaches every output bit."""
    for shift, multiplier in ((30, _MIX_1), (27, _MIX_2)):
        bits = (bits ^ (bits >> shift & (1 << 64 - shift) - 1)) * multiplier
    return bits ^ (bits >> 31 & (1 << 33) - 1)


def normal_noise(images: Tensor, seed: int) -> Tensor:
    """A normal number of variance 1 for every value of the images, in their shape and dtype."""
    uniform = hashed_noise(images, images[0].numel(), seed).clamp(1e-7, 1 - 1e-7)
    return (torch.erfinv(uniform * 2 - 1) * 2**0.5).view_as(images).to(images.dtype)
