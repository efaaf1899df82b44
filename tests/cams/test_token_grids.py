"""Grids of tokens: derived from the size of the images, and refused where that leaves two grids."""

from functools import partial
from math import prod

import pytest
import torch
from captum.attr import LayerGradientXActivation
from pytorch_grad_cam import GradCAM as PeerGradCAM
from pytorch_grad_cam import LayerCAM as PeerLayerCAM
from torch import nn
from torch.nn.functional import interpolate
from torchcam.methods import GradCAM as TorchcamGradCAM
from torchcam.methods import LeGrad
from torchvision.models.vision_transformer import EncoderBlock

from torchmetrics_cam import AverageDrop, explain
from torchmetrics_cam.cams import CallableSource, CaptumSource, GradCAM, RandomWeightsCAM, vit_grid


class Tokens(nn.Module):
    """A class token and patches of 4 pixels a side, in a network for images of every size."""

    def __init__(self, dims=2, side=None):
        super().__init__()
        self.side = side
        self.patch = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.block = EncoderBlock(2, 16, 32, 0.0, 0.0, partial(nn.LayerNorm, eps=1e-6))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x):
        if self.side:
            x = interpolate(x, (self.side, self.side))
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        return self.head(self.norm(self.block(tokens)).mean(1))


def le_grad(model, grid):
    return LeGrad(model, model.block, score_projection=lambda x: model.head(x.mean(1)), grid_shape=grid)


def attributed(model, grid):
    return CaptumSource(
        LayerGradientXActivation(model, model.norm), reshape_transform=partial(vit_grid, grid=grid)
    )


SOURCES = {
    "own": lambda model, grid: GradCAM(model, "norm", reshape_transform=partial(vit_grid, grid=grid)),
    "control": lambda model, grid: RandomWeightsCAM(
        model, "norm", reshape_transform=partial(vit_grid, grid=grid)
    ),
    "function": lambda model, grid: GradCAM(
        model, "norm", reshape_transform=lambda tokens: vit_grid(tokens, 1, grid)
    ),
    "pytorch-grad-cam": lambda model, grid: PeerGradCAM(
        model, [model.norm], reshape_transform=partial(vit_grid, grid=grid)
    ),
    "pytorch-grad-cam's LayerCAM": lambda model, grid: PeerLayerCAM(
        model, [model.norm], reshape_transform=partial(vit_grid, grid=grid)
    ),
    "captum": attributed,
    "callable": lambda model, grid: CallableSource(
        model, lambda model, images, _: vit_grid(model.patch(images).flatten(2).mT, 0, grid).sum(1)
    ),
    "torchcam": lambda model, grid: TorchcamGradCAM(
        model, "norm", reshape_transform=partial(vit_grid, grid=grid)
    ),
    "LeGrad": le_grad,
}


def tokens(*arguments):
    torch.manual_seed(0)
    return Tokens(*arguments).eval()


@pytest.mark.parametrize("source", SOURCES)
def test_tokens_of_images_that_are_not_square_have_the_grid_of_the_images(source):
    images = torch.rand(2, 3, 12, 20)
    expected = explain(SOURCES[source](tokens(), (3, 5)), images).maps
    torch.testing.assert_close(explain(SOURCES[source](tokens(), None), images).maps, expected)


@pytest.mark.parametrize("source", SOURCES)
def test_tokens_that_would_also_fill_a_square_are_refused(source):
    images = torch.rand(2, 3, 8, 32)
    metric = AverageDrop(SOURCES[source](tokens(), None))
    with pytest.raises(
        ValueError,
        match=r"16 patches of images of 8 x 32 pixels are a grid of \(2, 8\), or of \(4, 4\) if the network"
        " makes the images square; .*set prefix_tokens and grid",
    ):
        metric.update(images)
    assert not metric.update_called
    metric = AverageDrop(SOURCES[source](tokens(), (2, 8)))
    metric.update(images)
    assert metric.total == 2


@pytest.mark.parametrize("size", [(16, 16), (19, 17)])
def test_patches_at_the_border_may_be_cut_off(size):
    assert explain(GradCAM(tokens(), "norm", reshape_transform=vit_grid), torch.rand(1, 3, *size)).maps.shape[
        1:
    ] == (4, 4)


def test_a_network_that_makes_images_square_has_a_square_grid():
    model = tokens(2, 16)
    source = GradCAM(model, "norm", reshape_transform=vit_grid)
    assert explain(source, torch.rand(1, 3, 24, 36)).maps.shape == (1, 4, 4)


@pytest.mark.parametrize("size", [(36,), (8, 12, 20)], ids=["signal", "volume"])
def test_tokens_of_signals_and_volumes(size):
    model = tokens(len(size))
    grid = tuple(side // 4 for side in size)
    maps = [
        explain(GradCAM(model, "norm", reshape_transform=partial(vit_grid, grid=given)), images).maps
        for images in [torch.rand(1, 3, *size)]
        for given in (None, grid)
    ]
    torch.testing.assert_close(*maps)
    assert maps[0].numel() == prod(grid)


def test_a_grid_for_images_of_another_orientation_is_refused():
    metric = AverageDrop(GradCAM(tokens(), "norm", reshape_transform=partial(vit_grid, grid=(2, 8))))
    metric.update(torch.rand(1, 3, 8, 32))
    with pytest.raises(
        ValueError, match=r"grid is \(2, 8\), but images of 32 x 8 pixels have a grid of \(8, 2\); give all"
    ):
        metric.update(torch.rand(1, 3, 32, 8))
    assert metric.total == 1


def test_patches_that_are_not_square_have_the_grid_that_was_given():
    model = tokens()
    model.patch = nn.Conv2d(3, 16, (4, 8), (4, 8))
    source = GradCAM(model, "norm", reshape_transform=partial(vit_grid, grid=(4, 8)))
    assert explain(source, torch.rand(1, 3, 16, 64)).maps.shape == (1, 4, 8)
