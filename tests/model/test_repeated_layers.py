"""Target layers that run several times in one forward pass: no map belongs to one of their runs alone."""

import re

import captum.attr
import monai.visualize
import pytest
import pytorch_grad_cam
import torch
import torchcam
from restoration import traces
from torch import nn

from torchmetrics_cam import AverageDrop, CAMComparison, cams, explain


class MeanOfFlips(nn.Module):
    """Test-time augmentation: the mean of the scores of an image and of its mirror image."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)
        )
        with torch.no_grad():
            for parameter, value in zip(self.net.parameters(), (1.0, 0.0, [[0.0], [40.0]], 0.0), strict=True):
                parameter.copy_(torch.tensor(value).expand_as(parameter))

    def forward(self, images):
        return (self.net(images) + self.net(images.flip(-1))) / 2


CAMS_OF_A_LAYER = {
    "ours": lambda model, layer: cams.GradCAM(model, layer),
    "torchcam": torchcam.methods.GradCAM,
    "pytorch-grad-cam": lambda model, layer: pytorch_grad_cam.GradCAM(model, [model.get_submodule(layer)]),
    "captum": lambda model, layer: captum.attr.LayerGradCam(model, model.get_submodule(layer)),
    "MONAI": monai.visualize.GradCAM,
}


@pytest.mark.parametrize("library", CAMS_OF_A_LAYER)
def test_a_layer_that_runs_twice_is_refused_by_name(library):
    model = MeanOfFlips().eval()
    images = torch.zeros(1, 1, 32, 32)
    images[..., 8:16, 2:10] = 1
    make = CAMS_OF_A_LAYER[library]
    twice = AverageDrop(make(model, "net.1"))
    before = traces(model, images)
    with pytest.raises(ValueError, match=r"layer 'net\.1' runs several times in a forward pass"):
        twice.update(images, 1)
    assert traces(model, images) == before
    assert twice.total == 0
    twice.source.remove_hooks()
    # The map highlights all that the class depends on.
    once = AverageDrop(make(model.net, "1"))
    assert once(images, 1) == 0


def test_a_layer_that_runs_twice_is_refused_for_every_source_of_a_comparison():
    model = MeanOfFlips().eval()
    without_gradients = cams.RandomWeightsCAM(model, "net")
    # This one runs the model itself, after the forward pass of the others.
    of_captum = captum.attr.LayerGradCam(model, model.net[1])
    for source, name in ((without_gradients, "net"), (of_captum, "net.1")):
        comparison = CAMComparison({"uniform": cams.UniformMap(model), "cam": source})
        with pytest.raises(ValueError, match=rf"layer '{re.escape(name)}' runs"):
            comparison.update(torch.rand(2, 1, 8, 8))


def test_a_layer_of_two_sources_that_count_its_runs_in_different_ways_is_accepted(net, images):
    # The first records the layer without a graph; the other one runs the model itself.
    sources = {
        "random": cams.RandomWeightsCAM(net, "body"),
        "captum": captum.attr.LayerGradCam(net, net.body),
    }
    comparison = CAMComparison(sources, controls=False)
    comparison.update(images)
    assert comparison.count.diagonal().tolist() == [len(images)] * 2


def test_a_layer_that_runs_again_in_the_backward_pass_is_accepted(net, images):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, images):
            return torch.utils.checkpoint.checkpoint(self.net, images, use_reentrant=False)

    model = Checkpointed()
    expected = explain(cams.GradCAM(net, "body"), images, class_idx=1).maps
    torch.testing.assert_close(explain(cams.GradCAM(model, "net.body"), images, class_idx=1).maps, expected)
