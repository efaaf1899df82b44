"""as_source: recognition of CAM objects, error messages, and agreement between the libraries."""

import subprocess
import sys
from functools import partial

import captum.attr
import monai.visualize
import numpy as np
import pytest
import pytorch_grad_cam as library
import timm
import torch
import torchcam.methods
import torchvision
import transformers
import zennit.attribution
import zennit.composites
from conftest import small_net
from restoration import traces
from torch import nn

from torchmetrics_cam import AverageDrop, AverageGain, IncreaseInConfidence, explain
from torchmetrics_cam.cams import CallableSource, GradCAM, as_source, swin_grid, vit_grid
from torchmetrics_cam.functional.maps import min_max, resize_maps
from torchmetrics_cam.protocol import EvaluationProtocol

PAPER = EvaluationProtocol()


def maps_of(source, images, protocol=PAPER, **arguments):
    return explain(source, images, protocol=protocol, **arguments).maps


INVALID_SOURCES = {
    "a model": (
        lambda net: net,
        r"a SmallNet, which gives no maps: choose a CAM method and a layer.* as in GradCAM",
    ),
    "a name": (
        lambda net: "layer4",
        r"a str.*: a layer name needs a model and a method, as in GradCAM\(model, 'layer4'\)",
    ),
    "a class": (
        lambda net: GradCAM,
        r"the class GradCAM.*: create an object of it, as in GradCAM\(model, \"layer4\"\)",
    ),
    "a foreign class": (lambda net: library.ScoreCAM, r"the class ScoreCAM.*: create an object of it"),
    "maps": (
        lambda net: torch.rand(2, 4, 4),
        r"a Tensor.*: pass PrecomputedMaps\(model\) here, and the maps with update\(images, cams=maps\)",
    ),
    "a function": (
        lambda net: lambda *_: 0,
        r"a function.*: to use your own function, pass CallableSource\(model, fn\)",
    ),
    "several": (
        lambda net: [GradCAM(net, "body")],
        r"a list.*: a metric accepts one source; create one metric per source",
    ),
    "an attributor": (
        zennit.attribution.Gradient,
        r"a Gradient.*: write a function.* with this object, and pass CallableSource",
    ),
    "a number": (lambda net: 3, r"a int.*: pass for example GradCAM"),
}


@pytest.mark.parametrize("case", INVALID_SOURCES)
def test_other_objects_raise_with_a_suggestion_and_the_list_of_accepted_objects(case, net):
    make, message = INVALID_SOURCES[case]
    with pytest.raises(TypeError, match=message) as refused:
        as_source(make(net))
    for accepted in ("torchcam", "pytorch-grad-cam", "captum", "MONAI", "CallableSource", "PrecomputedMaps"):
        assert accepted in str(refused.value)


def test_relevance_propagation_of_zennit_through_a_function(images):
    model = small_net()

    def relevance(model, images, class_idx):
        with zennit.attribution.Gradient(model, zennit.composites.EpsilonPlus()) as attributor:
            _, relevance = attributor(images, torch.eye(5, dtype=images.dtype)[class_idx])
        return relevance.sum(1)

    before = traces(model, images)
    source = CallableSource(model, relevance)
    metric = AverageDrop(source)
    metric.update(images, class_idx=2)
    expected = relevance(small_net(), images.clone().requires_grad_(), torch.full((4,), 2))
    maps = maps_of(source, images, class_idx=2)
    torch.testing.assert_close(maps, expected.detach().clamp(min=0))
    assert expected.std() > 0
    assert 0 <= metric.compute() <= 1
    assert traces(model, images) == before


def test_no_library_is_imported_to_recognize_its_objects():
    """The second line shows that an import would be noticed."""
    script = """
import sys, torch
from torchmetrics_cam.cams import as_source

def libraries_after_a_look():
    try:
        as_source(torch.nn.Flatten())
    except TypeError:
        pass
    imported = {name.partition(".")[0] for name in sys.modules}
    return sorted(imported & {"captum", "monai", "pytorch_grad_cam", "torchcam", "cv2"})

print(libraries_after_a_look())
import captum
print(libraries_after_a_look())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n['captum']\n", done.stderr


# The same map from every library


@pytest.mark.parametrize("network", ["resnet18", "lite0"])
def test_grad_cam_of_every_library_has_one_average_drop(network, lite0, photos):
    """The libraries normalize and resize in different orders and with different epsilons; the protocol does not."""
    name, torch_model = ("_blocks.15", lite0) if network == "lite0" else ("layer4", None)
    if torch_model is None:
        torch.manual_seed(0)
        torch_model = torchvision.models.resnet18().eval()
        torch_model.fc.weight.data.mul_(100)
    layer, images = torch_model.get_submodule(name), photos[:6]
    makers = {
        "own": lambda: GradCAM(torch_model, name),
        "torchcam": lambda: torchcam.methods.GradCAM(torch_model, name),
        "pytorch-grad-cam": lambda: library.GradCAM(torch_model, [layer]),
        "captum": lambda: captum.attr.LayerGradCam(torch_model, layer),
        "MONAI": lambda: monai.visualize.GradCAM(torch_model, name),
    }
    values = {}
    for maker, make in makers.items():
        source = as_source(make())
        metrics = [measure(source) for measure in (AverageDrop, IncreaseInConfidence, AverageGain)]
        for metric in metrics:
            metric.update(images)
        source.remove_hooks()
        values[maker] = [metric.compute().item() for metric in metrics]
    assert 0.01 < values["own"][0] < 0.99
    for maker, others in values.items():
        assert others == pytest.approx(values["own"], abs=1e-4), maker


# Target layer and reshape_transform of common networks


def hugging_face(kind: str) -> nn.Module:
    small = {"num_labels": 7}
    if kind == "vit":
        sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        return transformers.ViTForImageClassification(
            transformers.ViTConfig(image_size=64, patch_size=16, **sizes, **small)
        )
    if kind == "swin":
        sizes = dict(image_size=64, embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=4)
        return transformers.SwinForImageClassification(transformers.SwinConfig(**sizes, **small))
    sizes = dict(hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1])
    return transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**sizes, **small))


tokens = partial(vit_grid, prefix_tokens=0)
# In transformers 5.0 the layers are one level deeper.
VIT_LAYERS = "vit.layers" if hasattr(hugging_face("vit").vit, "layers") else "vit.encoder.layer"
NETWORKS = {
    "torchvision resnet": (torchvision.models.resnet18, 64, "layer4", None),
    "torchvision mobilenet": (torchvision.models.mobilenet_v3_small, 64, "features", None),
    "torchvision efficientnet": (torchvision.models.efficientnet_b0, 64, "features", None),
    "torchvision convnext": (torchvision.models.convnext_tiny, 64, "features", None),
    "torchvision vit": (torchvision.models.vit_b_32, 224, "encoder.layers.encoder_layer_11.ln_1", vit_grid),
    "torchvision swin": (torchvision.models.swin_t, 64, "features.7.1.norm1", swin_grid),
    "timm resnet": (lambda: timm.create_model("resnet18"), 64, "layer4", None),
    "timm efficientnet": (lambda: timm.create_model("efficientnet_lite0"), 64, "bn2", None),
    "timm convnext": (lambda: timm.create_model("convnext_atto"), 64, "stages", None),
    "timm vit": (lambda: timm.create_model("vit_tiny_patch16_224"), 224, "blocks.11.norm1", vit_grid),
    "timm swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224"),
        224,
        "layers.3.blocks.1.norm1",
        swin_grid,
    ),
    "transformers vit": (lambda: hugging_face("vit"), 64, f"{VIT_LAYERS}.1.layernorm_before", vit_grid),
    "transformers swin": (
        lambda: hugging_face("swin"),
        64,
        "swin.encoder.layers.1.blocks.0.layernorm_before",
        tokens,
    ),
    "transformers convnext": (lambda: hugging_face("convnext"), 64, "convnext.encoder.stages.3", None),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_target_layers_and_reshape_transforms_of_common_networks(name):
    make, size, layer, reshape = NETWORKS[name]
    torch.manual_seed(0)
    model = make().eval()
    # Heads initialized to 0, or small enough that pytorch-grad-cam's epsilon matters, give no usable map.
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(head.weight, std=1000)
    images = torch.rand(2, 3, size, size)
    source = GradCAM(model, layer, reshape_transform=reshape)
    # With untrained weights, all values of a map can be negative.
    assert maps_of(source, images, protocol=EvaluationProtocol(rectify="abs")).std() > 0
    maps = maps_of(source, images)
    assert maps.shape[1] == maps.shape[2] > 1
    metric = AverageDrop(source)
    metric.update(images)
    assert 0 <= metric.compute() <= 1
    assert metric.total == 2
    # pytorch-grad-cam supports only tensors as output; the adapter handles other outputs.
    theirs = as_source(library.GradCAM(model, [model.get_submodule(layer)], reshape_transform=reshape))
    expected = min_max(resize_maps(maps, (size, size)))
    np.testing.assert_allclose(maps_of(theirs, images), expected, atol=1e-3)
