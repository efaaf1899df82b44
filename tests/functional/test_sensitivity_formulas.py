"""Sensitivity to noise and to the class: by hand, against NumPy, and against Quantus 0.6 on a real network."""

import math
import re

import numpy as np
import pytest
import quantus
import torch
from conftest import HostSyncs, small_net
from quantus.functions.similarity_func import correlation_pearson

from torchmetrics_cam import EvaluationProtocol, explain
from torchmetrics_cam.cams import GradCAM
from torchmetrics_cam.functional import class_sensitivity, map_correlation, sensitivity

NAN, INF = math.nan, math.inf


def test_sensitivity_by_hand():
    maps = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    noisy = torch.tensor([[[3.0, 4.0], [0.0, 1.0]], [[0.0, 0.0], [1.0, 0.0]], [[6.0, 8.0], [1.0, 0.5]]])
    root = math.sqrt(2)
    assert sensitivity(maps, noisy, reduction="none").tolist() == pytest.approx([1, root])
    assert sensitivity(maps, noisy, over="mean", reduction="none").tolist() == pytest.approx(
        [2 / 3, (root + 0.5) / 3]
    )
    assert sensitivity(maps, noisy).item() == pytest.approx((1 + root) / 2)


@pytest.mark.parametrize("over", ["max", "mean"])
def test_a_map_of_zeros_has_a_sensitivity_only_if_it_stays_zero(over):
    maps = torch.zeros(4, 3)
    noisy = torch.zeros(2, 4, 3)
    noisy[1, 1, 0] = 0.1
    maps[2], noisy[0, 2] = 1.0, NAN
    maps[3], noisy[:, 3] = INF, INF
    found = sensitivity(maps, noisy, over=over, reduction="none")
    assert found[0] == 0
    assert found[1:].isnan().all()


@pytest.mark.parametrize("shape", [(5, 20), (5, 6, 7), (5, 3, 4, 5)], ids=["1d", "2d", "3d"])
def test_sensitivity_equals_numpys(shape):
    generator = np.random.default_rng(0)
    maps, noisy = generator.uniform(size=shape), generator.uniform(size=(4, *shape))
    changes = [
        [np.linalg.norm(other - one) / np.linalg.norm(one) for one, other in zip(flat, each, strict=True)]
        for flat, each in ((maps.reshape(5, -1), each.reshape(5, -1)) for each in noisy)
    ]
    for over, expected in (("max", np.max(changes, 0)), ("mean", np.mean(changes, 0))):
        found = sensitivity(torch.tensor(maps), torch.tensor(noisy), over=over, reduction="none")
        np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_class_sensitivity_by_hand():
    ramp = torch.tensor([0.0, 1.0, 2.0, 3.0])
    pairs = {
        "equal": (ramp, ramp, 0),
        "a multiple plus a constant": (ramp, 2 * ramp + 1, 0),
        "opposite": (ramp, -ramp, 1),
        "uncorrelated": (ramp, torch.tensor([1.0, 0.0, 0.0, 1.0]), 1),
        "a correlation of 0.8": (ramp, torch.tensor([1.0, 0.0, 2.0, 3.0]), 0.2),
        "equal and constant": (ramp * 0, ramp * 0, 0),
        "constants that differ": (ramp * 0, ramp * 0 + 1, 1),
        "a constant and another": (ramp * 0 + 0.1, ramp, 1),
        "not a number": (ramp, ramp * NAN, NAN),
    }
    first, second, expected = zip(*pairs.values(), strict=True)
    for dtype in (torch.float32, torch.float64):
        found = class_sensitivity(
            torch.stack(first).to(dtype), torch.stack(second).to(dtype), reduction="none"
        )
        for name, value, wanted in zip(pairs, found.tolist(), expected, strict=True):
            assert value == pytest.approx(wanted, abs=1e-6, nan_ok=True), name
    assert class_sensitivity(torch.stack(first[:5]), torch.stack(second[:5])).item() == pytest.approx(0.44)


def test_a_constant_map_deceives_one_measure_and_new_noise_the_other():
    constant, noise, fresh = torch.full((8, 9, 9), 0.5), torch.rand(8, 9, 9), torch.rand(3, 8, 9, 9)
    assert sensitivity(constant, constant.expand(3, -1, -1, -1)) == 0
    assert class_sensitivity(constant, constant) == 0
    assert sensitivity(noise, fresh) > 0.5
    assert class_sensitivity(noise, fresh[0]) > 0.8


@pytest.fixture
def explained():
    """A network, images, their classes, and Grad-CAM as Quantus calls it, which keeps all maps that it makes."""
    net = small_net().float()
    images = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    made = []

    def grad_cam(model, inputs, targets, **_):
        # Absolute values, because a rectified map may be zero everywhere, which Quantus divides by.
        source, pixels = GradCAM(net, "body"), torch.tensor(inputs, dtype=torch.float32)
        batch = explain(source, pixels, torch.tensor(targets), protocol=EvaluationProtocol(rectify="abs"))
        made.append(batch.masks)
        return batch.masks[:, None].numpy()

    call = {"model": net, "x_batch": images.numpy(), "y_batch": labels.numpy(), "explain_func": grad_cam}
    return call, made


@pytest.mark.parametrize(
    ("over", "metric"), [("max", quantus.MaxSensitivity), ("mean", quantus.AvgSensitivity)]
)
def test_sensitivity_equals_that_of_quantus(explained, over, metric):
    call, made = explained
    theirs = metric(nr_samples=4, lower_bound=0.1, disable_warnings=True)(**call, a_batch=None, device="cpu")
    clean, *noisy = made
    assert len(noisy) == 4
    found = sensitivity(clean, torch.stack(noisy), over=over, reduction="none")
    np.testing.assert_allclose(found, theirs, rtol=1e-5)
    assert found.std() > 1e-3


def test_class_sensitivity_is_one_less_the_random_logit_of_quantus(explained):
    """With Pearson's correlation as its similarity, and for the random class that Quantus draws."""
    call, made = explained
    metric = quantus.RandomLogit(
        similarity_func=lambda a, b, batched: [correlation_pearson(*pair) for pair in zip(a, b, strict=True)],
        num_classes=5,
        normalise=False,
        disable_warnings=True,
    )
    theirs = np.array(metric(**call, a_batch=None, device="cpu"))
    maps, other_maps = made
    found = class_sensitivity(maps, other_maps, reduction="none")
    np.testing.assert_allclose(found, 1 - theirs.clip(min=0), atol=1e-6)
    assert (theirs < 0).any()
    assert (theirs > 0).any()


def test_messages():
    maps = torch.rand(3, 4)
    with pytest.raises(ValueError, match="over is 'median'; it must be 'max' or 'mean'"):
        sensitivity(maps, maps[None], over="median")
    for noisy in (maps, torch.rand(2, 3, 5), torch.rand(0, 3, 4)):
        with pytest.raises(
            ValueError, match="noisy_maps must have one more dimension in front, for at least one"
        ):
            sensitivity(maps, noisy)
    with pytest.raises(ValueError, match="reduction is 'sum'; it must be 'mean' or 'none'"):
        class_sensitivity(maps, maps, reduction="sum")


def test_no_formula_synchronizes_a_gpu_with_the_host():
    with HostSyncs() as syncs:
        sensitivity(torch.rand(3, 8, 8), torch.rand(2, 3, 8, 8), over="mean")
        class_sensitivity(torch.rand(3, 8, 8), torch.rand(3, 8, 8))
    assert (syncs.seen, syncs.copies) == ([], 0)


def test_equal_maps_that_are_not_finite_have_no_similarity():
    maps = torch.tensor([[1.0, 2.0], [1.0, INF], [1.0, NAN]])
    values = class_sensitivity(maps, maps, reduction="none"), map_correlation(maps, maps)
    assert [value[0].item() for value in values] == [0, 1]
    assert all(value[1:].isnan().all() for value in values)


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 4, 1), (2, 16)])
def test_message_of_maps_of_another_class_with_another_shape(shape):
    with pytest.raises(
        ValueError,
        match=re.escape(f"maps has shape (2, 4, 4) and other_maps {shape}; both must have the same shape"),
    ):
        class_sensitivity(torch.rand(2, 4, 4), torch.rand(shape))
