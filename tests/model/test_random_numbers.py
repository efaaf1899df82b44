"""Sources that draw random numbers: none are taken from the user's, and each update has others."""

import random

import numpy as np
import pytest
import torch
import torchcam.metrics
from conftest import small_net
from torchcam import methods

from torchmetrics_cam import AverageDrop, ClassificationMetric
from torchmetrics_cam.cams import CallableSource


def noisy(model, images, class_idx):
    """A map of three generators' noise."""
    size = (len(images), *images.shape[2:])
    return torch.rand(size) + torch.from_numpy(np.random.rand(*size)) + random.random()


def standing() -> tuple:
    """Where the global generators stand."""
    return torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())


@pytest.fixture
def metric(net) -> AverageDrop:
    return AverageDrop(CallableSource(net, noisy))


def test_an_update_takes_none_of_the_users_random_numbers(metric, images):
    before = standing()
    metric.update(images)
    metric(images)
    with pytest.raises(ValueError, match="out of range"):
        metric.update(images, class_idx=99)
    assert standing() == before


def test_each_update_has_other_numbers_and_a_seed_gives_the_same_again(metric, images):
    def run(step) -> list[float]:
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(0)
        values = []
        for _ in range(3):
            step(images)
            values.append(metric.drop.item())
        metric.reset()
        return np.diff([0, *values]).tolist()

    updates = run(metric.update)
    assert len({round(value, 6) for value in updates}) == 3
    assert run(metric.update) == updates
    assert run(metric.forward) == pytest.approx(updates, abs=1e-12)


def test_over_several_updates_the_noise_is_torchcams(images):
    net = small_net().float()
    softmax = torch.nn.Softmax(1)
    with methods.SmoothGradCAMpp(net, "body", num_samples=2) as extractor:
        reference = torchcam.metrics.ClassificationMetric(extractor, softmax)
        metric = ClassificationMetric(extractor, softmax)
        for one in (reference, metric):
            torch.manual_seed(3)
            for batch in (images.float(), images.flip(0).float()):
                one.update(batch)
        assert metric.summary() == pytest.approx(reference.summary(), abs=1e-6)
        torch.manual_seed(4)
        metric.reset()
        metric.update(images.float())
        metric.update(images.flip(0).float())
        assert metric.summary() != pytest.approx(reference.summary(), abs=1e-6)


def test_a_copy_begins_where_the_user_stands(metric, images):
    torch.manual_seed(0)
    metric.update(images)
    copy = metric.clone()
    copy.reset()
    metric.reset()
    for one in (metric, copy):
        np.random.seed(1)
        random.seed(1)
        torch.manual_seed(1)
        one.update(images)
    assert copy.drop.item() == metric.drop.item()
