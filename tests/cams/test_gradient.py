"""Gradient CAMs against hand-computed values, NumPy, pytorch-grad-cam and captum; controls and precomputed maps."""

from functools import partial

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchvision
from captum.attr import LayerGradCam
from conftest import small_net
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from torchmetrics_cam import AverageDrop, EvaluationProtocol, explain
from torchmetrics_cam.cams import (
    CallableSource,
    CenterMap,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    PrecomputedMaps,
    RandomMap,
    UniformMap,
    XGradCAM,
    swin_grid,
    vit_grid,
)

OWN = {cls.__name__: cls for cls in (GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, HiResCAM)}
UNRECTIFIED = EvaluationProtocol(name="raw maps", rectify="source")


def raw_map(source, images, class_idx):
    """Return the map before rectification and normalization."""
    source.formula_seen = []
    formula = source.formula
    source.formula = lambda *tensors: source.formula_seen.append(formula(*tensors)) or source.formula_seen[-1]
    explain(source, images, class_idx, protocol=UNRECTIFIED)
    return source.formula_seen


def test_formulas_by_hand():
    activation = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[2.0, 0.0], [0.0, 2.0]]]])
    gradient = torch.tensor([[[[0.4, 0.0], [0.0, -0.8]], [[0.2, 0.2], [0.2, 0.2]]]])
    model = nn.Conv2d(1, 1, 1)
    expected = {
        # mean gradients -0.1 and 0.2
        "GradCAM": [[0.3, -0.2], [-0.3, 0.0]],
        # alpha 1/(2 + 10*0.4) and 1/(2 + 4*0.2): weights 0.4/6 and 4*0.2/2.8
        "GradCAMPlusPlus": [
            [0.4 / 6 + 2 * 0.8 / 2.8, 2 * 0.4 / 6],
            [3 * 0.4 / 6, 4 * 0.4 / 6 + 2 * 0.8 / 2.8],
        ],
        # (0.4 - 3.2) / 10 and 0.8 / 4
        "XGradCAM": [[-0.28 + 0.4, -0.56], [-0.84, -1.12 + 0.4]],
        "LayerCAM": [[0.4 + 0.4, 0.0], [0.0, 0.4]],
        "HiResCAM": [[0.4 + 0.4, 0.0], [0.0, -3.2 + 0.4]],
    }
    for name, cls in OWN.items():
        np.testing.assert_allclose(cls(model, "").formula(activation, gradient)[0], expected[name], rtol=1e-6)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("name", OWN)
def test_formulas_equal_numpy(name, dims):
    generator = torch.Generator().manual_seed(dims)
    shape = (2, 3, *(4,) * dims)
    activation, gradient = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    a, g = (tensor.numpy().reshape(2, 3, -1) for tensor in (activation, gradient))
    total = a.sum(-1, keepdims=True)
    g2, g3 = g**2, g**3
    weights = {
        "GradCAM": g.mean(-1, keepdims=True),
        "GradCAMPlusPlus": (g2 / (2 * g2 + total * g3) * np.maximum(g, 0)).sum(-1, keepdims=True),
        "XGradCAM": (g * a / total).sum(-1, keepdims=True),
        "LayerCAM": np.maximum(g, 0),
        "HiResCAM": g,
    }[name]
    model = nn.Conv2d(1, 1, 1)
    made = OWN[name](model, "").formula(activation, gradient)
    np.testing.assert_allclose(made, (weights * a).sum(1).reshape(2, *shape[2:]), rtol=1e-9)


def test_dead_and_tiny_channels_give_no_nan():
    activation = torch.zeros(1, 2, 3, 3)
    gradient = torch.full((1, 2, 3, 3), 1e-30)
    for cls in OWN.values():
        assert torch.equal(cls(nn.Conv2d(1, 1, 1), "").formula(activation, gradient), torch.zeros(1, 3, 3))


def resnet18():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.resnet18().eval()


@pytest.fixture(scope="session", params=["lite0", "resnet18", "digits"])
def network(request):
    """A network, images and a target layer: trained weights with real images, and random weights."""
    if request.param == "digits":
        model, images, _ = request.getfixturevalue("digits")
        return model, images[:8], "2"
    if request.param == "resnet18":
        return resnet18(), torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0)), "layer4"
    model, images = request.getfixturevalue("lite0"), request.getfixturevalue("photos")
    return model, images[:2], "_bn1"


@pytest.mark.parametrize("name", OWN)
def test_maps_equal_those_of_pytorch_grad_cam(network, name):
    model, images, layer = network
    class_idx = model(images).argmax(1).tolist()
    # The library's Grad-CAM++ has an epsilon, unlike the paper.
    ours = OWN[name](model, layer, **({"eps": 1e-6} if name == "GradCAMPlusPlus" else {}))
    (made,) = raw_map(ours, images, class_idx)
    peer = getattr(pytorch_grad_cam, name)(model, [model.get_submodule(layer)])
    seen = []
    image_of = peer.get_cam_image
    peer.get_cam_image = lambda *args, **kwargs: seen.append(image_of(*args, **kwargs)) or seen[-1]
    with peer:
        peer(images.clone(), [ClassifierOutputTarget(index) for index in class_idx])
    assert np.abs(seen[0]).max() > 0
    np.testing.assert_allclose(made, seen[0], atol=1e-4)


def test_grad_cam_equals_captum(network):
    model, images, layer = network
    class_idx = model(images).argmax(1)
    (made,) = raw_map(GradCAM(model, layer), images, class_idx)
    peer = LayerGradCam(model, model.get_submodule(layer)).attribute(images, target=class_idx)
    np.testing.assert_allclose(made, peer.detach().squeeze(1), atol=1e-4)


def test_several_layers_are_fused_by_the_maximum(net, images):
    from torchmetrics_cam.functional import min_max, rectify, resize_maps

    single = [
        min_max(rectify(raw_map(GradCAM(net, layer), images, 1)[0], "relu")) for layer in ("stem", "body")
    ]
    explanation = explain(
        GradCAM(net, ["stem", net.body]),
        images,
        class_idx=1,
    )
    assert explanation.maps.shape == (4, 12, 12)
    torch.testing.assert_close(explanation.maps, torch.maximum(single[0], resize_maps(single[1], (12, 12))))


class TinyViT(nn.Module):
    def __init__(self, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        grid = self.patch(x)
        if self.channels_last:
            return self.head(self.norm(grid.movedim(1, -1)).mean((1, 2)))
        tokens = torch.cat([self.token.expand(len(x), -1, -1), grid.flatten(2).transpose(1, 2)], 1)
        return self.head(self.norm(self.block(tokens)).mean(1))


@pytest.mark.parametrize("channels_last", [False, True], ids=["vit", "swin"])
@pytest.mark.parametrize("name", OWN)
def test_maps_of_token_layers_equal_pytorch_grad_cam(name, channels_last):
    torch.manual_seed(0)
    model = TinyViT(channels_last).eval()
    transform = swin_grid if channels_last else vit_grid
    images = torch.rand(3, 3, 16, 12)
    if not channels_last:
        transform = partial(vit_grid, grid=(4, 3))
    (made,) = raw_map(OWN[name](model, "norm", reshape_transform=transform), images, [0, 1, 2])
    eps = {"eps": 1e-6} if name == "GradCAMPlusPlus" else {}
    (made,) = raw_map(OWN[name](model, "norm", reshape_transform=transform, **eps), images, [0, 1, 2])
    assert made.shape == (3, 4, 3)
    peer = getattr(pytorch_grad_cam, name)(model, [model.norm], reshape_transform=transform)
    with peer:
        peer(images, [ClassifierOutputTarget(index) for index in range(3)])
        activation, gradient = (
            peer.activations_and_grads.activations[0],
            peer.activations_and_grads.gradients[0],
        )
        expected = peer.get_cam_image(images, model.norm, None, activation.numpy(), gradient.numpy(), False)
    np.testing.assert_allclose(made, expected, atol=1e-4)
    metric = AverageDrop(OWN[name](model, "norm", reshape_transform=transform))
    metric.update(images)
    assert metric.total == 3


def test_a_layer_that_returns_a_tuple(images):
    class Tuple(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.fc = nn.LSTM(3, 8, batch_first=True), nn.Linear(8, 5)

        def forward(self, x):
            return self.fc(self.layer(x.transpose(1, 2))[0].mean(1))

    model = Tuple()
    metric = AverageDrop(
        GradCAM(model, "layer", reshape_transform=partial(vit_grid, prefix_tokens=0, grid=(9,)))
    )
    metric.update(torch.rand(2, 3, 9))
    assert metric.total == 2


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (None, r"cam has shape \(2, 16\) but input_tensor has 2 spatial dimensions.*reshape_transform"),
        (
            partial(vit_grid, prefix_tokens=2),
            "11 patches of images of 16 x 12 pixels do not fill a grid of square patches; the layer's output has"
            " 13 tokens, 2 of them before the patches: set prefix_tokens and grid",
        ),
        (
            partial(vit_grid, grid=(3, 3)),
            r"12 patches do not fill a grid of \(3, 3\); the layer's output has 13",
        ),
    ],
)
def test_tokens_that_do_not_fill_the_grid_raise(transform, message):
    metric = AverageDrop(GradCAM(TinyViT(False).eval(), "norm", reshape_transform=transform))
    with pytest.raises(ValueError, match=message):
        metric.update(torch.rand(2, 3, 16, 12))


def test_layers_are_looked_up_by_name_or_module_and_unknown_ones_raise(net):
    assert GradCAM(net, net.body).layer_names == GradCAM(net, "body").layer_names == ("body",)
    assert GradCAM(net, ["stem.0", net.fc]).layer_names == ("stem.0", "fc")
    with pytest.raises(
        ValueError, match=r"target_layer 'bdy' is not in the model; the nearest names are \['body'"
    ):
        GradCAM(net, "bdy")
    with pytest.raises(ValueError, match="target_layer Conv2d is not a module of this SmallNet"):
        GradCAM(net, nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="target_layer is an empty list; pass at least one module or name"):
        GradCAM(net, [])
    with pytest.raises(TypeError, match="target_layer is 4; it must be a module, a name, or a list of these"):
        GradCAM(net, 4)
    with pytest.raises(TypeError, match="target_layer contains 4; each layer must be a module or a name"):
        GradCAM(net, [4])


class Detour(nn.Module):
    """A network with a layer that is not executed and a layer that the score does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle, self.aside = (nn.Conv2d(3, 4, 3) for _ in range(3))

    def forward(self, x):
        self.aside(x)
        return self.used(x).flatten(2).mean(-1)


def test_a_layer_without_influence_on_the_score_raises(images):
    images = images.float()
    with pytest.raises(
        RuntimeError, match="layer 'idle' returned no tensor in the forward pass: it was not executed"
    ):
        AverageDrop(GradCAM(Detour(), "idle")).update(images)
    with pytest.raises(RuntimeError, match="the explained score has no gradient at layer 'aside'"):
        AverageDrop(GradCAM(Detour(), "aside")).update(images)
    with pytest.raises(
        ValueError, match=r"layer 'fc' has output of shape \(4, 5\), without spatial dimensions"
    ):
        AverageDrop(GradCAM(small_net(), "fc")).update(images)


def maps_of(source, images):
    return explain(source, images).maps


def test_uniform_and_center_maps(net, images):
    assert torch.equal(maps_of(UniformMap(net, 0.25), images), torch.full((4, 12, 12), 0.25))
    center = maps_of(CenterMap(net), images)
    assert center.shape == (4, 12, 12)
    assert center[0, 5, 5] == center[0, 6, 6] == center.max()
    # The center of the first pixel is 11/12 of half a side away from the image center on both axes.
    assert center[0, 0, 0].item() == pytest.approx(np.exp(-2 * 0.5 * (11 / 12 / 0.5) ** 2), rel=1e-5)
    with pytest.raises(ValueError, match=r"UniformMap\(value=2\): it must be a mask value in \[0, 1\]"):
        UniformMap(net, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_random_maps_depend_only_on_image_and_seed(dtype):
    model = nn.Flatten()
    images = torch.rand(6, 1, 9, 9, generator=torch.Generator().manual_seed(3)).to(dtype)
    state = torch.get_rng_state()
    maps = maps_of(RandomMap(model), images)
    assert torch.equal(torch.get_rng_state(), state)
    alone = torch.cat([maps_of(RandomMap(model), image[None]) for image in images])
    backwards = maps_of(RandomMap(model), images.flip(0).transpose(2, 3).contiguous().transpose(2, 3)).flip(0)
    assert torch.equal(maps, alone)
    assert torch.equal(maps, backwards)
    assert maps.shape == (6, 7, 7)
    assert len(maps.flatten().unique()) == 6 * 49
    assert not torch.equal(maps, maps_of(RandomMap(model, seed=1), images))
    assert not torch.equal(maps[0], maps_of(RandomMap(model), images[:1].roll(1, -1))[0])


def test_random_maps_are_uniform_noise():
    from scipy.stats import kstest

    images = torch.rand(500, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    noise = maps_of(RandomMap(nn.Flatten(), grid=4), images).flatten(1).numpy()
    assert kstest(noise.ravel(), "uniform").pvalue > 0.01
    # Neither grid cells nor images are correlated.
    assert np.abs(np.corrcoef(noise, rowvar=False) - np.eye(16)).max() < 0.2


def test_callable_and_precomputed_maps_have_the_value_of_the_same_gradient_cam(net, images):
    def grad_cam(model, x, class_idx):
        assert not model.training
        assert x.requires_grad
        assert class_idx.shape == (4,)
        return maps

    explanation = explain(GradCAM(net, "body"), images)
    maps = explanation.maps
    values = []
    for source, cams in (
        (GradCAM(net, "body"), None),
        (CallableSource(net, grad_cam), None),
        (PrecomputedMaps(net), maps),
    ):
        metric = AverageDrop(source)
        metric.update(images, cams=cams)
        values.append(metric.compute().item())
    assert values[0] > 0
    assert values[1:] == pytest.approx(values[:1] * 2, rel=1e-12)
    assert repr(CallableSource(net, grad_cam)) == "CallableSource(SmallNet, grad_cam)"
    with pytest.raises(TypeError, match="fn is 3; it must be a callable"):
        CallableSource(net, 3)


@pytest.mark.parametrize(
    ("cams", "error", "message"),
    [
        (
            None,
            ValueError,
            r"PrecomputedMaps\(SmallNet\) needs the maps of each batch; pass them with update",
        ),
        (
            torch.rand(3, 6, 6),
            ValueError,
            "cam has 3 maps but input_tensor holds 4 images; return one map per image",
        ),
        (torch.rand(4, 1, 6, 6), ValueError, r"cam has shape \(4, 1, 6, 6\).*without a channel dimension"),
        (torch.rand(4, 0, 6), ValueError, "which is empty; return at least one pixel per map"),
        (
            torch.ones(4, 6, 6, dtype=torch.int),
            TypeError,
            "cams is torch.int32; it must be a floating point tensor",
        ),
        ([[1.0]], TypeError, "cams is list"),
    ],
)
def test_invalid_precomputed_maps_raise_before_the_model_runs(net, images, cams, error, message):
    net.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(error, match=message):
        AverageDrop(PrecomputedMaps(net)).update(images, cams=cams)


def test_cams_for_a_source_that_computes_its_own_maps_raise(net, images):
    with pytest.raises(
        ValueError,
        match=r"cams was passed, but GradCAM\(SmallNet, body\) computes its own maps; remove cams, or use",
    ):
        AverageDrop(GradCAM(net, "body")).update(images, cams=torch.rand(4, 6, 6))
