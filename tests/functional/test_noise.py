"""Noise from the hash of an image."""

import torch

from torchmetrics_cam.functional._noise import hashed_noise


def test_every_number_is_exact_in_float32_so_that_all_devices_have_the_same_one_below_1():
    noise = hashed_noise(torch.rand(2, 3, 4, 4), 100_000, seed=0)
    assert torch.equal(noise * 2**24, (noise * 2**24).round())
    assert 0 <= noise.min() < noise.max() < 1
    assert abs(noise.mean(1) - 0.5).max() < 0.01
