"""Baselines: the values that replace masked pixels."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from conftest import Calls, small_net
from torchmetrics import MetricCollection

from torchmetrics_cam import AverageDrop, EvaluationProtocol
from torchmetrics_cam.baselines import GaussianBlur, ImageMean, RiseBlur, black
from torchmetrics_cam.cams import GradCAM, PrecomputedMaps


def masked_images(baseline, images, mask=None):
    """Return the masked images that the model gets, for a mask of zeros or the given one."""
    received = []
    model = small_net(channels=images.shape[1], dims=images.ndim - 2).to(images.dtype)
    model.register_forward_pre_hook(lambda _m, args: received.append(args[0].clone()))
    metric = AverageDrop(
        PrecomputedMaps(model), protocol=EvaluationProtocol(baseline=baseline, normalize="none")
    )
    metric.update(images, cams=torch.zeros(len(images), *images.shape[2:]) if mask is None else mask)
    return received[-1]


def test_black_is_black_in_the_unit_of_pixels(images):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    baseline = black(mean, std)
    pixels = masked_images(baseline, images) * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(
        1, 3, 1, 1
    )
    torch.testing.assert_close(pixels, torch.zeros_like(pixels), atol=1e-7, rtol=0)
    assert black(0.5, 0.25) == (-2.0,)
    with pytest.raises(ValueError, match="mean has 3 values but std has 1"):
        black(mean, 0.2)
    with pytest.raises(ValueError, match="a standard deviation must be positive"):
        black(0.5, 0.0)


def test_image_mean_equals_numpy(images):
    expected = images.numpy().mean((2, 3), keepdims=True) * np.ones((1, 1, 12, 12))
    for baseline in ("mean", ImageMean()):
        np.testing.assert_allclose(masked_images(baseline, images), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("size", "sigma"), [(11, 5.0), (5, 1.5), (1, 2.0)])
def test_gaussian_blur_equals_scipys(dims, size, sigma):
    images = torch.rand(2, 3, *(9, 7, 6)[:dims], dtype=torch.float64)
    expected = scipy.ndimage.gaussian_filter(
        images.numpy(), sigma, mode="nearest", radius=size // 2, axes=tuple(range(2, 2 + dims))
    )
    np.testing.assert_allclose(masked_images(GaussianBlur(size, sigma), images), expected, rtol=1e-10)
    if size == 11:
        np.testing.assert_allclose(masked_images("blur", images), expected, rtol=1e-10)


def test_baseline_images_and_functions(images):
    baseline_image = torch.rand(3, 12, 12)
    assert torch.equal(masked_images(baseline_image, images), baseline_image.to(images).expand_as(images))
    assert torch.equal(masked_images(lambda images: images.flip(3), images), images.flip(3))
    assert torch.equal(masked_images(lambda images: torch.tensor(2.0), images), torch.full_like(images, 2))
    mask = torch.full((4, 12, 12), 0.25)
    expected = 0.25 * images + 0.75 * images.flip(3)
    torch.testing.assert_close(masked_images(lambda images: images.flip(3), images, mask), expected)


def test_a_protocol_copies_its_baseline_image(images):
    baseline_image = torch.zeros(3, 12, 12)
    protocol = EvaluationProtocol(baseline=baseline_image)
    printed = str(protocol)
    baseline_image += 1
    assert str(protocol) == printed
    assert masked_images(protocol.baseline, images).sum() == 0
    assert str(EvaluationProtocol(baseline=baseline_image)) != printed


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_the_value_does_not_depend_on_the_batch_size(batch_size, net, images):
    values = []
    for size in (batch_size, None):
        metric = AverageDrop(
            GradCAM(net, "body"), protocol=EvaluationProtocol(baseline="blur"), batch_size=size
        )
        metric.update(images)
        values.append(metric.compute().item())
    assert values[0] == pytest.approx(values[1], abs=1e-12)


def test_text_in_a_caption():
    def checkerboard(images):
        return images

    printed = {
        "blur": "baseline=GaussianBlur(kernel_size=11, sigma=5.0)",
        "mean": "baseline=ImageMean()",
        checkerboard: "baseline=checkerboard",
        (0.5, 1.0): "baseline=(0.5, 1.0)",
    }
    for baseline, expected in printed.items():
        assert expected in str(EvaluationProtocol(baseline=baseline))
    assert "baseline=BaselineImage((1, 2, 2), " in str(EvaluationProtocol(baseline=torch.zeros(1, 2, 2)))


def test_only_metrics_with_equal_baselines_share_states(net, images):
    def protocol(baseline):
        return EvaluationProtocol(baseline=baseline)

    baselines = {
        "zero": 0.0, "blur": "blur", "weaker": GaussianBlur(3, 1.0), "same blur": GaussianBlur(),
        "image": torch.zeros(3, 12, 12), "function": lambda images: images * 0, "other": lambda images: images * 0,
    }  # fmt: skip
    source = GradCAM(net, "body")
    collection = MetricCollection(
        {name: AverageDrop(source, protocol=protocol(baseline)) for name, baseline in baselines.items()}
    )
    collection.update(images)
    groups = {frozenset(names) for names in collection.compute_groups.values()}
    assert groups == {frozenset({"blur", "same blur"})} | {
        frozenset({name}) for name in baselines if "blur" not in name
    }


@pytest.mark.parametrize(
    ("baseline", "error", "message"),
    [
        ("noise", ValueError, r"baseline='noise' is not a baseline; the names are \['blur', 'mean'\]"),
        (
            float("nan"),
            ValueError,
            "baseline=nan.*it must be a finite number, a tuple of one number per channel",
        ),
        ((), ValueError, r"baseline=\(\)"),
        ((0.1, "a"), ValueError, "it must be a finite number"),
        (None, ValueError, "baseline=None"),
        ([0.1], ValueError, r"baseline=\[0.1\]"),
    ],
)
def test_invalid_baselines_are_refused(baseline, error, message):
    with pytest.raises(error, match=message):
        EvaluationProtocol(baseline=baseline)


def test_invalid_parameters_of_a_gaussian_blur_are_refused():
    with pytest.raises(ValueError, match=r"kernel_size=4.*it must be an odd positive integer"):
        GaussianBlur(4)
    with pytest.raises(ValueError, match=r"sigma=0.*it must be positive"):
        GaussianBlur(3, 0)


def test_baselines_of_another_shape_than_the_images_are_refused(images):
    for baseline, message in (
        ((0.1, 0.2), "baseline has 2 values but the images have 3 channels"),
        (torch.zeros(3, 8, 8), r"baseline has shape \(3, 8, 8\) but an image has \(3, 12, 12\)"),
    ):
        model = small_net()
        metric = AverageDrop(GradCAM(model, "body"), protocol=EvaluationProtocol(baseline=baseline))
        with Calls(model) as calls, pytest.raises(ValueError, match=message):
            metric.update(images)
        assert not calls.batches


def test_functions_that_return_no_baseline_are_refused_and_no_sample_is_counted(net, images):
    def wide(images):
        return torch.zeros(2, *images.shape)

    for baseline, error, message in (
        (
            wide,
            ValueError,
            r"baseline wide returned shape \(2, 4, 3, 12, 12\) for images of shape \(4, 3, 12, 12\)",
        ),
        (lambda images: images[:, :2], ValueError, r"returned shape \(4, 2, 12, 12\)"),
        (lambda images: None, TypeError, r"returned None, not a tensor"),
    ):
        metric = AverageDrop(GradCAM(net, "body"), protocol=EvaluationProtocol(baseline=baseline))
        with pytest.raises(error, match=message):
            metric.update(images)
        assert metric.total == 0


def test_a_function_that_modifies_its_argument_leaves_the_images_unchanged(images):
    original = images.clone()
    masked_images(lambda images: images.mul_(0), images)
    assert torch.equal(images, original)


def test_half_precision():
    images = torch.rand(2, 3, 12, 12).bfloat16()
    for baseline in ("blur", "mean", torch.zeros(3, 12, 12), (0.1, 0.2, 0.3)):
        assert masked_images(baseline, images).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(2, 3, 9, 14), (1, 2, 30), (1, 1, 4, 12, 5)])
def test_the_blur_of_rise_equals_its_filter(shape):
    """RISE makes its filter by filtering a single pixel with SciPy, and convolves with zeros outside of the image."""
    dims = len(shape) - 2
    images = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    delta = np.zeros((11,) * dims)
    delta[(5,) * dims] = 1
    weights = torch.tensor(scipy.ndimage.gaussian_filter(delta, 5)).expand(shape[1], 1, *delta.shape)
    convolve = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[dims]
    expected = convolve(images, weights, padding=5, groups=shape[1])
    torch.testing.assert_close(RiseBlur()(images), expected)
    assert repr(RiseBlur()) == "RiseBlur()"
