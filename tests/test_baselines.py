"""What hidden positions show."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from conftest import Calls, small_net
from torchmetrics import MetricCollection

from torchmetrics_cam import AverageDrop, EvaluationProtocol
from torchmetrics_cam.baselines import GaussianBlur, ImageMean, black
from torchmetrics_cam.cams import GradCAM, PrecomputedMaps


def hidden(baseline, images, mask=None):
    """What the model sees of the images where the mask is 0 everywhere, or as given."""
    seen = []
    model = small_net(channels=images.shape[1], dims=images.ndim - 2).to(images.dtype)
    model.register_forward_pre_hook(lambda _m, args: seen.append(args[0].clone()))
    metric = AverageDrop(
        PrecomputedMaps(model), protocol=EvaluationProtocol(baseline=baseline, normalize="none")
    )
    metric.update(images, cams=torch.zeros(len(images), *images.shape[2:]) if mask is None else mask)
    return seen[-1]


def test_black_pixels_of_normalized_images(images):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    baseline = black(mean, std)
    pixels = hidden(baseline, images) * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(
        1, 3, 1, 1
    )
    torch.testing.assert_close(pixels, torch.zeros_like(pixels), atol=1e-7, rtol=0)
    assert black(0.5, 0.25) == (-2.0,)
    with pytest.raises(ValueError, match="mean has 3 values but std has 1"):
        black(mean, 0.2)
    with pytest.raises(ValueError, match="a standard deviation is positive"):
        black(0.5, 0.0)


def test_the_mean_of_each_image_and_channel(images):
    expected = images.numpy().mean((2, 3), keepdims=True) * np.ones((1, 1, 12, 12))
    for baseline in ("mean", ImageMean()):
        np.testing.assert_allclose(hidden(baseline, images), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("size", "sigma"), [(11, 5.0), (5, 1.5), (1, 2.0)])
def test_gaussian_blur_is_that_of_scipy(dims, size, sigma):
    images = torch.rand(2, 3, *(9, 7, 6)[:dims], dtype=torch.float64)
    expected = scipy.ndimage.gaussian_filter(
        images.numpy(), sigma, mode="nearest", radius=size // 2, axes=tuple(range(2, 2 + dims))
    )
    np.testing.assert_allclose(hidden(GaussianBlur(size, sigma), images), expected, rtol=1e-10)
    if size == 11:
        np.testing.assert_allclose(hidden("blur", images), expected, rtol=1e-10)


def test_pictures_and_functions(images):
    picture = torch.rand(3, 12, 12)
    assert torch.equal(hidden(picture, images), picture.to(images).expand_as(images))
    assert torch.equal(hidden(lambda images: images.flip(3), images), images.flip(3))
    assert torch.equal(hidden(lambda images: torch.tensor(2.0), images), torch.full_like(images, 2))
    mask = torch.full((4, 12, 12), 0.25)
    expected = 0.25 * images + 0.75 * images.flip(3)
    torch.testing.assert_close(hidden(lambda images: images.flip(3), images, mask), expected)


def test_a_protocol_keeps_its_picture_whatever_happens_to_the_users(images):
    picture = torch.zeros(3, 12, 12)
    protocol = EvaluationProtocol(baseline=picture)
    printed = str(protocol)
    picture += 1
    assert str(protocol) == printed
    assert hidden(protocol.baseline, images).sum() == 0
    assert str(EvaluationProtocol(baseline=picture)) != printed


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_chunks_give_what_the_whole_gives(batch_size, net, images):
    values = []
    for size in (batch_size, None):
        metric = AverageDrop(
            GradCAM(net, "body"), protocol=EvaluationProtocol(baseline="blur"), batch_size=size
        )
        metric.update(images)
        values.append(metric.compute().item())
    assert values[0] == pytest.approx(values[1], abs=1e-12)


def test_it_prints_as_it_should_stand_in_a_caption():
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
    assert "baseline=Picture((1, 2, 2), " in str(EvaluationProtocol(baseline=torch.zeros(1, 2, 2)))


def test_other_baselines_never_share_states(net, images):
    def protocol(baseline):
        return EvaluationProtocol(baseline=baseline)

    baselines = {
        "zero": 0.0, "blur": "blur", "weaker": GaussianBlur(3, 1.0), "same blur": GaussianBlur(),
        "picture": torch.zeros(3, 12, 12), "function": lambda images: images * 0, "other": lambda images: images * 0,
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
        ("noise", ValueError, r"baseline='noise' is no baseline; the names are \['blur', 'mean'\]"),
        (float("nan"), ValueError, "baseline=nan.*it must be a finite number, a tuple of one for each"),
        ((), ValueError, r"baseline=\(\)"),
        ((0.1, "a"), ValueError, "it must be a finite number"),
        (None, ValueError, "baseline=None"),
        ([0.1], ValueError, r"baseline=\[0.1\]"),
    ],
)
def test_what_is_no_baseline_is_refused(baseline, error, message):
    with pytest.raises(error, match=message):
        EvaluationProtocol(baseline=baseline)


def test_a_kernel_without_a_middle_or_a_width_is_refused():
    with pytest.raises(ValueError, match=r"kernel_size=4.*it must be odd and positive"):
        GaussianBlur(4)
    with pytest.raises(ValueError, match=r"sigma=0.*it must be positive"):
        GaussianBlur(3, 0)


def test_a_baseline_that_does_not_fit_the_images_is_refused(images):
    for baseline, message in (
        ((0.1, 0.2), "baseline has 2 values but the images have 3 channels"),
        (torch.zeros(3, 8, 8), r"baseline has shape \(3, 8, 8\) but an image has \(3, 12, 12\)"),
    ):
        model = small_net()
        metric = AverageDrop(GradCAM(model, "body"), protocol=EvaluationProtocol(baseline=baseline))
        with Calls(model) as calls, pytest.raises(ValueError, match=message):
            metric.update(images)
        assert not calls.batches


def test_a_function_that_gives_something_else_is_refused_and_nothing_is_counted(net, images):
    def wide(images):
        return torch.zeros(2, *images.shape)

    for baseline, error, message in (
        (
            wide,
            ValueError,
            r"baseline wide returned shape \(2, 4, 3, 12, 12\) for images of \(4, 3, 12, 12\)",
        ),
        (lambda images: images[:, :2], ValueError, r"returned shape \(4, 2, 12, 12\)"),
        (lambda images: None, TypeError, r"returned None, not a tensor"),
    ):
        metric = AverageDrop(GradCAM(net, "body"), protocol=EvaluationProtocol(baseline=baseline))
        with pytest.raises(error, match=message):
            metric.update(images)
        assert metric.total == 0


def test_the_images_are_not_written_to(images):
    kept = images.clone()
    hidden(lambda images: images.mul_(0), images)
    assert torch.equal(images, kept)


def test_half_precision():
    images = torch.rand(2, 3, 12, 12).bfloat16()
    for baseline in ("blur", "mean", torch.zeros(3, 12, 12), (0.1, 0.2, 0.3)):
        assert hidden(baseline, images).dtype == torch.bfloat16
