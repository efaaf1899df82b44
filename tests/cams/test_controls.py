"""Controls: edge maps and CAMs with random channel weights."""

import numpy as np
import pytest
import scipy.stats
import torch
from conftest import Calls, HostSyncs, small_net
from torch import nn
from torchvision.models import resnet18

from torchmetrics_cam import AverageDrop, EvaluationProtocol, explain
from torchmetrics_cam.cams import CenterMap, EdgeMap, RandomWeightsCAM, vit_grid

AS_IS = EvaluationProtocol(rectify="source", normalize="none")


def maps_of(source, images):
    return explain(source, images, protocol=AS_IS).maps


@pytest.mark.parametrize("size", [(9,), (6, 7), (1, 5), (4, 5, 3)], ids=str)
def test_edge_map_equals_the_gradient_magnitude_of_numpy(size):
    images = torch.rand(2, 3, *size, dtype=torch.float64)
    axes = [axis for axis, side in enumerate(size, start=2) if side > 1]
    squares = sum(np.gradient(images.numpy(), axis=axis) ** 2 for axis in axes).sum(1)
    maps = maps_of(EdgeMap(small_net(dims=len(size))), images)
    np.testing.assert_allclose(maps.numpy(), np.sqrt(squares))


def test_edge_map_of_a_constant_image_is_degenerate(net):
    metric = AverageDrop(EdgeMap(net))
    metric.update(torch.ones(3, 3, 8, 8, dtype=torch.float64))
    assert metric.degenerate_count == 3


def test_pixels_at_equal_distances_from_the_center_have_equal_values():
    """Ties of pixels must not depend on the rounding of a device."""
    steps = torch.arange(112) * 2 - 111
    squares = steps.square().unsqueeze(1) + steps.square()
    (center,) = maps_of(CenterMap(nn.Flatten()), torch.zeros(1, 1, 112, 112))
    assert len(center.unique()) == len(squares.unique())
    assert torch.equal(
        squares.flatten()[center.flatten().argsort(descending=True)], squares.flatten().sort().values
    )


def test_random_weights_are_uniform_and_differ_by_channel():
    """With one-hot channels the map consists of the channel weights."""
    images = torch.eye(16).view(1, 16, 4, 4) * torch.linspace(1, 2, 400).view(400, 1, 1, 1)
    source = RandomWeightsCAM(nn.Sequential(nn.Identity(), nn.Flatten()), "0")
    unrectified = []
    source._source_maps = lambda maps, forward: (
        unrectified.extend(maps) or type(source)._source_maps(source, maps, forward)
    )
    maps = maps_of(source, images)
    weights = (unrectified[0].flatten(1) / torch.linspace(1, 2, 400).view(400, 1)).flatten()
    assert scipy.stats.kstest(weights.numpy(), scipy.stats.uniform(-1, 2).cdf).pvalue > 0.01
    assert weights.min() >= -1
    assert weights.max() < 1
    assert torch.equal(maps, unrectified[0].clamp(min=0))


def test_random_weights_depend_on_image_and_seed_but_not_on_the_batch(images):
    model = small_net()
    source = RandomWeightsCAM(model, ["stem", "body"])
    together = maps_of(source, images)
    alone = torch.cat([maps_of(source, image[None]) for image in images.flip(0)]).flip(0)
    torch.testing.assert_close(together, alone)
    other = maps_of(RandomWeightsCAM(model, ["stem", "body"], seed=1), images)
    assert (together - other).abs().max() > 0.05


def test_random_weights_need_no_gradient_no_extra_forward_pass_and_no_synchronization(images):
    model = small_net()
    model.fc.register_forward_hook(lambda _m, _a, output: graphs.append(output.requires_grad))
    graphs: list[bool] = []
    metric = AverageDrop(RandomWeightsCAM(model, "body"), validate_args=False)
    with Calls(model) as calls, HostSyncs() as syncs:
        metric.update(images)
    assert calls.batches == [4, 4]
    assert graphs == [False, False]
    assert syncs.seen == []
    assert not model.body._forward_hooks


def test_random_weights_on_tokens_and_under_autocast():
    torch.manual_seed(0)
    model = resnet18().eval()
    images = torch.rand(2, 3, 64, 64)
    source = RandomWeightsCAM(model, "layer4")
    expected = maps_of(source, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = maps_of(source, images)
    assert maps.dtype == torch.float32
    assert (maps - expected).abs().max() < 0.05 * expected.max()
    tokens = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), nn.Linear(64, 10), nn.Flatten())
    source = RandomWeightsCAM(tokens, "1", reshape_transform=lambda x: vit_grid(x.transpose(1, 2), 0))
    assert maps_of(source, images).shape == (2, 8, 8)
