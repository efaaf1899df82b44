"""captum: maps of layer and input attributions, restoration of the model, and error messages."""

import captum.attr as library
import pytest
import torch
from conftest import Calls, Returning, small_net
from restoration import traces
from torch import nn

from torchmetrics_cam import AverageDrop, EvaluationProtocol, explain
from torchmetrics_cam.cams import CaptumSource, GradCAM, as_source, swin_grid, vit_grid

pytestmark = pytest.mark.filterwarnings("ignore:Setting (backward|forward).*hooks")
AS_IS = EvaluationProtocol(rectify="source", normalize="none")
CLASSES = torch.tensor([0, 3, 1, 4])

ATTRIBUTIONS = {
    "LayerGradCam": lambda m: library.LayerGradCam(m, m.body),
    "LayerActivation": lambda m: library.LayerActivation(m, m.body),
    "LayerGradientXActivation": lambda m: library.LayerGradientXActivation(m, m.body),
    "LayerIntegratedGradients": lambda m: library.LayerIntegratedGradients(m, m.body),
    "LayerConductance": lambda m: library.LayerConductance(m, m.body),
    "InternalInfluence": lambda m: library.InternalInfluence(m, m.body),
    "GuidedGradCam": lambda m: library.GuidedGradCam(m, m.body),
    "GuidedBackprop": library.GuidedBackprop,
    "Deconvolution": library.Deconvolution,
    "Saliency": library.Saliency,
    "InputXGradient": library.InputXGradient,
    "IntegratedGradients": library.IntegratedGradients,
    "NoiseTunnel": lambda m: library.NoiseTunnel(library.Saliency(m)),
    "DeepLift": library.DeepLift,
    "Occlusion": library.Occlusion,
    "FeatureAblation": library.FeatureAblation,
}
SETTINGS = {"Occlusion": {"sliding_window_shapes": (3, 4, 4), "strides": 2}, "NoiseTunnel": {"nt_samples": 2}}


@pytest.fixture
def model() -> nn.Module:
    """captum replaces gradients at ReLU modules, which must not be in-place."""
    model = small_net()
    model.relu, model.stem[2] = nn.ReLU(), nn.ReLU()
    return model


def maps_of(source, images, protocol=AS_IS, **arguments):
    return explain(source, images, protocol=protocol, **arguments).maps


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_maps_are_those_of_captum_summed_over_the_channels(name, model, images):
    attribution, settings = ATTRIBUTIONS[name](model), SETTINGS.get(name, {})
    target = {} if name == "LayerActivation" else {"target": CLASSES}
    torch.manual_seed(0)
    expected = attribution.attribute(images.clone().requires_grad_(), **target, **settings).sum(1).detach()
    torch.manual_seed(0)
    before = traces(model, images)
    maps = maps_of(CaptumSource(attribution, **settings), images, class_idx=CLASSES)
    torch.testing.assert_close(maps, expected)
    assert expected.std() > 0
    assert traces(model, images) == before


@pytest.mark.parametrize("name", ["LayerGradCam", "GuidedGradCam", "IntegratedGradients"])
def test_an_update_restores_model_and_object(name, model, images):
    called = []
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
        parameter.register_post_accumulate_grad_hook(called.append)
    model.train()
    before = traces(model, images)
    metric = AverageDrop(ATTRIBUTIONS[name](model))
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with mode():
            metric.update(images)
    attribution = metric.source.attribution
    inner = attribution.attribute

    def failing(*arguments, **settings):
        inner(*arguments, **settings)
        raise ArithmeticError("on purpose")

    attribution.attribute = failing
    with pytest.raises(ArithmeticError, match="on purpose"):
        metric.update(images)
    after = traces(model, images)
    for what in before:
        assert after[what] == before[what], what
    assert not called
    assert metric.total == 12


def test_grad_cam_equals_this_packages_grad_cam(model, images):
    ours, theirs = AverageDrop(GradCAM(model, "body")), AverageDrop(library.LayerGradCam(model, model.body))
    for metric in (ours, theirs):
        metric.update(images, class_idx=CLASSES)
    assert ours.compute().item() == pytest.approx(theirs.compute().item(), abs=1e-9)
    assert ours.compute() > 0.01


def test_cam_of_scores_and_models_that_return_logits_in_a_dict(model, images):
    wrapped = Returning(model, lambda logits: {"logits": logits})
    for protocol in (AS_IS, AS_IS.replace(cam_of="scores")):
        expected = maps_of(GradCAM(model, "body"), images, protocol.replace(rectify="relu"), class_idx=2)
        source = CaptumSource(library.LayerGradCam(wrapped, model.body))
        maps = maps_of(source, images, protocol.replace(rectify="relu"), class_idx=2)
        torch.testing.assert_close(maps, expected)


def test_absolute_values_are_taken_before_the_sum_over_channels(model, images):
    attribution = library.InputXGradient(model)
    expected = attribution.attribute(images.clone().requires_grad_(), target=CLASSES).abs().sum(1).detach()
    maps = maps_of(CaptumSource(attribution), images, AS_IS.replace(rectify="abs"), class_idx=CLASSES)
    torch.testing.assert_close(maps, expected)


def test_reshape_transform_of_token_layers():
    class Tokens(nn.Module):
        def __init__(self, channels_last):
            super().__init__()
            self.patches, self.norm, self.head = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.Linear(8, 5)
            self.channels_last = channels_last

        def forward(self, x):
            grid = self.patches(x).movedim(1, -1)
            tokens = grid if self.channels_last else grid.flatten(1, 2)
            return self.head(self.norm(tokens).flatten(1, -2).mean(1))

    images = torch.rand(2, 3, 16, 16)
    for channels_last, grid in ((True, swin_grid), (False, lambda tokens: vit_grid(tokens, 0))):
        model = Tokens(channels_last)
        source = CaptumSource(library.LayerGradientXActivation(model, model.norm), reshape_transform=grid)
        assert maps_of(source, images).shape == (2, 4, 4)


def test_signals_and_volumes():
    for dims in (1, 3):
        model = small_net(dims=dims)
        images = torch.rand(2, 3, *(8,) * dims, dtype=torch.float64)
        metric = AverageDrop(library.LayerGradCam(model, model.body))
        metric.update(images)
        assert metric.total == 2


def test_invalid_attributions_and_arguments_raise(model):
    with pytest.raises(TypeError, match="NeuronGradient explains a neuron, not a class"):
        as_source(library.NeuronGradient(model, model.body))
    with pytest.raises(TypeError, match="which is not a network; build it on the network itself"):
        as_source(library.Saliency(lambda images: model(images)))
    with pytest.raises(
        TypeError, match=r"Occlusion.attribute requires sliding_window_shapes; pass CaptumSource"
    ):
        as_source(library.Occlusion(model))
    with pytest.raises(
        TypeError, match=r"Saliency.attribute has no argument 'steps'; its arguments are .*'abs'"
    ):
        CaptumSource(library.Saliency(model), steps=3)
    with pytest.raises(TypeError, match="Saliency was built on a DataParallel, which synchronizes"):
        as_source(library.Saliency(nn.DataParallel(model)))
    assert as_source(library.Saliency(model.forward)).model is model
    with pytest.raises(ValueError, match="explains a class, not an arbitrary target"):
        AverageDrop(library.Saliency(model)).update(torch.rand(1, 3, 8, 8), targets=len)


def test_an_attribution_without_spatial_dimensions_raises(model, images):
    metric = AverageDrop(library.LayerActivation(model, model.fc))
    with pytest.raises(ValueError, match="cam has shape"):
        metric.update(images)
    with Calls(model) as calls:
        metric = AverageDrop(library.LayerGradCam(model, model.body))
        metric.update(images)
    assert calls.batches == [4, 4, 4]
    assert repr(metric.source) == "LayerGradCam(SmallNet, body)"
