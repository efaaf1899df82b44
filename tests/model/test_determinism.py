"""Networks whose score of an image depends on chance, or on the other images of the batch."""

import warnings

import pytest
import torch
from conftest import Calls, small_net
from torch import nn
from torch.nn.functional import dropout

from torchmetrics_cam import AverageDrop, CAMComparison
from torchmetrics_cam.cams import GradCAM, UniformMap


class FunctionalDropout(nn.Module):
    """Monte Carlo dropout: eval() does not turn it off."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, images):
        return self.net(dropout(images, 0.2, training=True))


def batch_normalized():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Flatten())
    return nn.Sequential(model, nn.LazyLinear(3)).double()


def test_a_random_network_is_reported(images):
    metric = AverageDrop(GradCAM(FunctionalDropout(), "net.body"), validate_args="determinism")
    with pytest.warns(
        UserWarning, match=r"not deterministic: scored twice, the same images differ by up to 0\.\d"
    ):
        metric.update(images)
    # Once, until the metric is reset.
    metric.update(images)
    metric.reset()
    with pytest.warns(UserWarning, match="not deterministic"):
        metric.update(images)


def test_a_network_that_depends_on_its_batch_is_reported(images):
    model = batch_normalized()
    model(images)
    with pytest.warns(UserWarning, match="The score of an image depends on the others in its batch"):
        AverageDrop(UniformMap(model), validate_args="determinism").update(images)
    # A batch of one image cannot show it.
    AverageDrop(UniformMap(model), validate_args="determinism").update(images[:1])


def test_a_comparison_says_so_in_its_table(images):
    model = FunctionalDropout()
    comparison = CAMComparison({"uniform": UniformMap(model)}, validate_args="determinism")
    with pytest.warns(UserWarning, match="not deterministic"):
        comparison.update(images)
    assert "not deterministic: scored twice" in str(comparison.table())


def test_a_deterministic_network_is_not_reported_and_runs_two_more_times(net, images):
    metric = AverageDrop(GradCAM(net, "body"), validate_args="determinism")
    with Calls(net) as calls:
        metric.update(images)
    # Clean, again, both halves, masked.
    assert calls.batches == [4, 4, 2, 2, 4]
    with Calls(net) as calls, warnings.catch_warnings():
        metric.update(images)
    assert calls.batches == [4, 4]
    assert metric.compute() == AverageDrop(GradCAM(net, "body"))(torch.cat([images, images]))


def test_another_value_of_validate_args_is_refused(net):
    with pytest.raises(ValueError, match="validate_args is 'determinsm'; it must be a bool or 'determinism'"):
        AverageDrop(GradCAM(net, "body"), validate_args="determinsm")
