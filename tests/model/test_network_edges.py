"""Networks and CAMs at their edges: scripted parts, shared memory, layers that run twice, half precision, copies."""

import copy

import captum.attr
import monai.visualize
import pytest
import pytorch_grad_cam
import torch
import torchcam
import torchvision
from conftest import small_net
from torch import nn

from torchmetrics_cam import AverageDrop, EvaluationProtocol, explain, parameter_randomization
from torchmetrics_cam.cams import (
    CallableSource,
    CaptumSource,
    GradCAM,
    RandomMap,
    RandomWeightsCAM,
    UniformMap,
    vit_grid,
)
from torchmetrics_cam.cams.resolve import as_source
from torchmetrics_cam.functional import min_max


class Scripted(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.prepare = torch.jit.script(nn.Sequential(nn.Identity()))
        self.net = net

    def forward(self, images):
        return self.net(self.prepare(images))


class Centered(nn.Module):
    """Its mean is one number that is seen as three."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(0.5).double().expand(1, 3, 1, 1), persistent=False)

    def forward(self, images):
        return self.net(images - self.mean)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("around", [Scripted, Centered])
def test_scripted_parts_and_buffers_that_share_memory(net, images, around):
    values = []
    for model, layer in ((net, "body"), (around(net), "net.body")):
        shifted = images + 0.5 if around is Centered and model is not net else images
        metric = AverageDrop(GradCAM(model, layer), protocol=EvaluationProtocol(baseline="mean"))
        metric.update(shifted)
        values.append(metric.compute().item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_a_network_that_was_made_in_inference_mode_is_refused_before_it_is_frozen(images):
    with torch.inference_mode():
        model = small_net()
    metric = AverageDrop(CallableSource(model, lambda model, images, classes: images.detach().mean(1)))
    with pytest.raises(ValueError, match=r"was created under torch.inference_mode\(\)"):
        metric.update(images)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_refine_cam_has_the_relu_of_its_base(net, images):
    extractor = torchcam.methods.RefineCAM(net, ["stem", "body"], base_method=torchcam.methods.GradCAM)
    ours = explain(as_source(extractor), images, class_idx=1).maps
    theirs = extractor.fuse_cams(extractor.base_cam(1, net(images)), normalized=True).detach()
    torch.testing.assert_close(min_max(ours).double(), theirs.double(), rtol=1e-4, atol=1e-5)


def test_captum_on_the_method_forward_explains_what_the_protocol_says(net, images):
    settings = {"logits_fn": lambda output: output.softmax(-1), "protocol": "torchcam"}
    of_network, of_method = (
        explain(as_source(captum.attr.Saliency(given)), images, class_idx=[0, 3, 1, 4], **settings).maps
        for given in (net, net.forward)
    )
    assert torch.equal(of_network, of_method)
    smooth = captum.attr.NoiseTunnel(captum.attr.Saliency(net.forward))
    source = CaptumSource(smooth, nt_samples=1, stdevs=0.0)
    assert torch.equal(explain(source, images, class_idx=[0, 3, 1, 4], **settings).maps, of_network)
    assert smooth.forward_func == smooth.attribution_method.forward_func == net.forward
    with pytest.raises(TypeError, match="build it on the network"):
        as_source(captum.attr.Saliency(net.extra_repr))


def test_a_layer_that_runs_twice_is_refused_where_a_library_would_take_another_run(images):
    model = torchvision.models.resnet18().eval()
    cam = pytorch_grad_cam.GradCAM(model, [model.layer4[1].relu])
    with pytest.raises(
        ValueError, match=r"runs several times in a forward pass.*choose a layer that runs once"
    ):
        AverageDrop(cam).update(images.float())
    once = pytorch_grad_cam.GradCAM(model, [model.layer4])
    AverageDrop(once).update(images.float())


def test_a_copy_of_monais_object_is_refused(net, images):
    holder = nn.Module()
    holder.model = net
    holder.metric = AverageDrop(monai.visualize.GradCAM(net, "relu"))
    copied = copy.deepcopy(holder)
    with pytest.raises(ValueError, match="or the network was copied, and the copied hooks"):
        copied.metric.update(images)
    assert holder.metric.source.cam.nn_module.activations == {}
    holder.metric.update(images)
    assert holder.metric.total == 4


@pytest.mark.parametrize("kind", ["ScoreCAM", "AblationCAM", "GradCAM", "EigenCAM"])
def test_objects_of_pytorch_grad_cam_on_networks_in_half_precision(images, kind):
    model = small_net().bfloat16()
    metric = AverageDrop(getattr(pytorch_grad_cam, kind)(model, [model.relu]))
    metric.update(images)
    assert 0 <= metric.compute() <= 1


def test_seeds_of_any_size_and_controls_of_many_layers(images):
    metric = AverageDrop(RandomMap(small_net(), seed=torch.initial_seed() + (1 << 62)))
    metric.update(images)
    assert metric.total == 4
    layers = [str(place) for place in range(12)]
    deep = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in layers], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    metric = AverageDrop(RandomWeightsCAM(deep, layers))
    metric.update(images.float())
    assert metric.total == 4


def test_attention_is_randomized_and_weights_that_nothing_randomizes_are_named():
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=5).eval()
    source = GradCAM(model, "encoder.layers.encoder_layer_1.ln_1", reshape_transform=vit_grid)
    with pytest.warns(UserWarning, match="cannot randomize class_token, encoder.pos_embedding: their"):
        result = parameter_randomization(model, source, torch.rand(2, 3, 32, 32))
    assert "encoder.layers.encoder_layer_0.self_attention" in result.layers


def test_constant_maps_have_no_rank_correlation(net):
    model = nn.Sequential(net.stem, net.body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.fc)
    images = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    result = parameter_randomization(model, GradCAM(model, "2"), images)
    assert result.rank_correlation.isnan().all()
    alone = parameter_randomization(model, UniformMap(model), images)
    assert alone.rank_correlation.isnan().all()
