"""Random masks for fine-tuning: their fractions, their randomness, and what they leave alone."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from torchmetrics_cam import EvaluationProtocol, RandomMasking
from torchmetrics_cam.baselines import ImageMean, black

IMAGES = (64, 3, 12, 12)  # the shape of the fixture images


def masks_of(images, **settings):
    torch.manual_seed(0)
    return RandomMasking(**settings).random_masks(images)


@pytest.mark.parametrize("upsampling", ["linear", "nearest"])
def test_each_number_of_cells_up_to_the_largest_fraction_is_drawn(upsampling, images):
    masks = masks_of(images, max_fraction=0.5, grid=4, probability=1, upsampling=upsampling)
    # Cells of 3 x 3 pixels: k of 16 cells hide k / 16 of the image, also after interpolation and shift.
    hidden = (1 - masks).mean((1, 2)) * 16
    assert sorted({round(value, 3) for value in hidden.tolist()}) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert masks.min() == 0
    assert masks.max() == 1


def test_sharp_cells_are_the_upsampled_grid_shifted_cyclically(images):
    masks = masks_of(images, max_fraction=0.5, grid=4, probability=1, upsampling="nearest")
    for mask in masks.numpy():
        shifts = [np.roll(mask, (-row, -column), (0, 1)) for row in range(3) for column in range(3)]
        blocks = [shifted.reshape(4, 3, 4, 3) for shifted in shifts]
        assert any((block == block[:, :1, :, :1]).all() for block in blocks)
    assert not all(
        (mask.reshape(4, 3, 4, 3) == mask.reshape(4, 3, 4, 3)[:, :1, :, :1]).all() for mask in masks
    )


def test_soft_cells_are_interpolated_as_numpy_says():
    signal = torch.ones(500, 1, 8)
    masks = masks_of(signal, max_fraction=0.5, grid=2, probability=1)
    # One of two cells: half-pixel centers are 1/8, 3/8, 5/8 and 7/8 of the way between the centers of cells.
    positions = np.clip((np.arange(8) + 0.5) / 4 - 0.5, 0, 1)
    either = [positions, 1 - positions]
    expected = {tuple(np.roll(each, shift).round(5)) for each in either for shift in range(8)}
    assert {tuple(mask.round(5)) for mask in masks.double().numpy()} == expected


def test_an_image_is_left_whole_with_the_rest_of_the_probability(images):
    many = images.repeat(40, 1, 1, 1) + 0.1
    torch.manual_seed(0)
    masked = RandomMasking(probability=0.7).mask_batch(many)
    whole = (masked == many).flatten(1).all(1).double().mean().item()
    # 2,560 draws: four standard deviations.
    assert whole == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 2560) ** 0.5)


def test_each_image_has_its_own_mask_and_all_channels_share_it(images):
    masks = masks_of(images, probability=1)
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == len(images)
    torch.manual_seed(0)
    ratio = RandomMasking(probability=1).mask_batch(images) / images
    torch.testing.assert_close(ratio, masks.to(ratio.dtype).unsqueeze(1).expand_as(ratio), atol=1e-6, rtol=0)


BASELINES = {
    "the protocol's": ({"protocol": "paper"}, lambda images: torch.zeros_like(images)),
    "a protocol's own": (
        {"protocol": EvaluationProtocol(baseline="mean")},
        lambda images: images.mean((2, 3), keepdim=True),
    ),
    "a number": ({"baseline": 0.25}, lambda images: torch.full_like(images, 0.25)),
    "black": (
        {"baseline": black([0.5, 0.4, 0.3], [0.25, 0.2, 0.1])},
        lambda images: torch.tensor([-2.0, -2.0, -3.0], dtype=images.dtype).view(3, 1, 1),
    ),
    "an image": ({"baseline": torch.ones(3, 12, 12)}, lambda images: torch.ones_like(images)),
}


@pytest.mark.parametrize("case", BASELINES)
def test_masked_pixels_show_the_baseline(case, images):
    settings, expected = BASELINES[case]
    torch.manual_seed(0)
    masked = RandomMasking(probability=1, upsampling="nearest", **settings)(images)
    torch.manual_seed(0)
    mask = RandomMasking(probability=1, upsampling="nearest").random_masks(images).bool().unsqueeze(1)
    assert (~mask).any()
    torch.testing.assert_close(masked, torch.where(mask, images, expected(images)))


def test_a_batch_and_an_image_keep_shape_dtype_and_values(images):
    original = images.clone()
    for given, dims in (
        (images, 2),
        (images[0], 2),
        (images.flatten(2), 1),
        (images[:, :, None].repeat(1, 1, 8, 1, 1), 3),
    ):
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            masked = RandomMasking(spatial_dims=dims)(given.to(dtype))
            assert (masked.shape, masked.dtype) == (given.shape, dtype)
    assert torch.equal(images, original)


def test_after_eval_it_returns_its_input(images):
    masking = nn.Sequential(RandomMasking(probability=1), nn.Identity()).eval()
    assert masking(images) is images
    assert not torch.equal(masking.train()(images), images)


class Ones(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return RandomMasking(grid=2, probability=1)(torch.ones(1, 8, 8))


def test_seeds_and_workers_of_a_dataloader_behave():
    def epoch(workers):
        torch.manual_seed(3)
        loader = DataLoader(Ones(), batch_size=4, num_workers=workers)
        return torch.cat([batch for batch in loader])

    for workers in (0, 2):
        first = epoch(workers)
        assert torch.equal(first, epoch(workers))
        # Two workers draw different masks, so the two batches are different.
        assert not torch.equal(first[:4], first[4:])


def test_it_ends_a_transform_of_torchvision():
    from PIL import Image
    from torchvision import transforms

    steps = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    photo = Image.new("RGB", (14, 14), "white")
    transform = transforms.Compose(
        [*steps, RandomMasking(max_fraction=0.5, probability=1, upsampling="nearest")]
    )
    assert set(transform(photo).unique().tolist()) == {0.0, 1.0}
    with pytest.raises(
        TypeError, match="was given a Image; it takes tensors, so put it at the end of the tra"
    ):
        transforms.Compose([RandomMasking()])(photo)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_fraction": 0}, r"RandomMasking\(max_fraction=0\): it must lie in \(0, 1\]"),
        ({"probability": 1.5}, r"RandomMasking\(probability=1.5\): it must lie in \(0, 1\]"),
        ({"grid": 1}, r"RandomMasking\(grid=1\): it must be an integer of at least 2"),
        ({"upsampling": "cubic"}, r"upsampling='cubic'\): it must be one of \['linear', 'nearest'\]"),
        ({"spatial_dims": 4}, r"spatial_dims=4\): it must be 1, 2 or 3"),
        ({"baseline": 0.0, "protocol": "paper"}, "baseline and protocol were both given; pass one of them"),
        ({"protocol": "papers"}, "protocol='papers' is not a preset"),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RandomMasking(**settings)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        (
            {},
            (12, 12),
            r"given shape \(12, 12\); with spatial_dims=2 an image has 3 dimensions and a batch 4",
        ),
        (
            {},
            (3, 6, 12),
            r"images of 6 x 12 pixels have an axis with fewer pixels than RandomMasking\(grid=7\)",
        ),
        (
            {"max_fraction": 0.02},
            (3, 12, 12),
            r"max_fraction=0.02\) is less than one of 49 cells; use a larger",
        ),
        (
            {"baseline": (0.1, 0.2)},
            (3, 12, 12),
            "RandomMasking's baseline has 2 values but the images have 3 cha",
        ),
        (
            {"baseline": torch.zeros(3, 8, 8)},
            (3, 12, 12),
            r"has shape \(3, 8, 8\) but an image has \(3, 12, 12\)",
        ),
    ],
)
def test_images_that_do_not_fit_are_refused(settings, shape, message):
    with pytest.raises(ValueError, match=message):
        RandomMasking(**settings)(torch.rand(shape))


def test_bytes_are_refused_because_the_baseline_has_another_unit():
    with pytest.raises(
        TypeError, match=r"images of torch.uint8; the baseline is in units of the network's float"
    ):
        RandomMasking()(torch.zeros(3, 12, 12, dtype=torch.uint8))


def test_it_prints_its_settings():
    expected = (
        "RandomMasking(max_fraction=0.8, grid=7, probability=0.8, upsampling=linear, baseline=ImageMean())"
    )
    assert repr(RandomMasking(baseline="mean")) == expected
    assert RandomMasking(protocol=EvaluationProtocol(baseline="mean")).baseline == ImageMean()
