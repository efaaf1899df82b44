"""Reproducible noise: pseudo-random numbers from a splitmix64 hash of each image and a seed.

The noise of an image is the same in any batch, order and process. No random generator is used or advanced.
"""

import torch
from torch import Tensor

# The constants of splitmix64 as signed 64-bit integers: tensors have no arithmetic on unsigned ones, and the
# signed one overflows to the same bits.
_INCREMENT = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)
_INTEGER_OF_EQUAL_SIZE = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}


def hashed_noise(images: Tensor, count: int, seed: int) -> Tensor:
    """Draw ``count`` numbers per image, uniform in [0, 1), from a hash of the image and the seed.

    Args:
        images: floating-point images ``(N, ...)``; a change of any bit changes the numbers.
        count: the number of values per image.
        seed: an integer of any size.

    Returns:
        float32 tensor ``(N, count)``.

    Source: Steele et al., Fast Splittable Pseudorandom Number Generators,
    https://doi.org/10.1145/2714064.2660195
    """
    positions = torch.arange(1, count + 1, device=images.device)
    # Any Python integer becomes a signed 64-bit one.
    offset = (seed * 0x632BE5AB + (1 << 63)) % (1 << 64) - (1 << 63)
    bits = _splitmix64(_hash_images(images).unsqueeze(1) + positions * _INCREMENT + offset)
    # The upper 24 bits, which float32 holds exactly on every device.
    return (bits >> 40 & (1 << 24) - 1).to(torch.float32) / (1 << 24)


def normal_noise(images: Tensor, seed: int) -> Tensor:
    """Draw one standard normal number per value of the images, from a hash of the image and the seed.

    Args:
        images: floating-point images ``(N, ...)``.
        seed: an integer of any size.

    Returns:
        A tensor of the images' shape and dtype.
    """
    uniform = hashed_noise(images, images[0].numel(), seed).clamp(1e-7, 1 - 1e-7)
    return (torch.erfinv(uniform * 2 - 1) * 2**0.5).view_as(images).to(images.dtype)


def _hash_images(images: Tensor) -> Tensor:
    """Return a 64-bit hash of every bit of each image, ``(N,)``.

    It is a sum of integers, which unlike a sum of floats does not depend on the order of the terms.
    """
    words = images.contiguous().view(_INTEGER_OF_EQUAL_SIZE[images.dtype]).flatten(1).to(torch.int64)
    weights = torch.arange(1, words.shape[1] + 1, device=images.device) * _INCREMENT | 1
    return _splitmix64((words * weights).sum(1))


def _splitmix64(bits: Tensor) -> Tensor:
    """Apply the finalizer of splitmix64, after which every input bit influences every output bit.

    Shifts of signed integers copy the sign bit, so the copies are masked out.
    """
    for shift, multiplier in ((30, _MULTIPLIER_1), (27, _MULTIPLIER_2)):
        bits = (bits ^ (bits >> shift & (1 << 64 - shift) - 1)) * multiplier
    return bits ^ (bits >> 31 & (1 << 33) - 1)
