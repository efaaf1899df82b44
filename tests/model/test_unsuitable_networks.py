"""Networks that gradient CAMs or the metrics cannot explain: the message names the cause and the way out."""

import captum.attr
import monai.visualize
import pytest
import pytorch_grad_cam
import torch
import torchcam
from conftest import small_net
from restoration import traces
from torch import nn
from torch.ao import quantization

from torchmetrics_cam import AverageDrop, explain
from torchmetrics_cam.cams import CallableSource, GradCAM, PrecomputedMaps, UniformMap

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated"),
    pytest.mark.filterwarnings("ignore:.*must run observer before calling calculate_qparams"),
    pytest.mark.filterwarnings("ignore:.*reduce_range will be deprecated"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions"),
    pytest.mark.filterwarnings("ignore:quantized..linear_dynamic. an autograd kernel was not registered"),
]


class Around(nn.Module):
    """A network inside another one, whose forward a test overrides."""

    def __init__(self):
        super().__init__()
        self.net = small_net().float()


def dynamically_quantized():
    return quantization.quantize_dynamic(small_net().float(), {nn.Linear})


def statically_quantized(images):
    model = nn.Sequential(quantization.QuantStub(), nn.Conv2d(3, 4, 3), nn.ReLU(), quantization.DeQuantStub())
    model = nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    model[0].qconfig = quantization.get_default_qconfig("fbgemm")
    quantization.prepare(model[0], inplace=True)
    model(images)
    return quantization.convert(model, inplace=True)


@pytest.mark.parametrize(
    "make",
    [
        GradCAM,
        torchcam.methods.GradCAM,
        lambda model, layer: pytorch_grad_cam.GradCAM(model, [model.get_submodule(layer)]),
        lambda model, layer: captum.attr.LayerGradCam(model, model.get_submodule(layer)),
        monai.visualize.GradCAM,
    ],
    ids=["ours", "torchcam", "pytorch-grad-cam", "captum", "MONAI"],
)
def test_a_dynamically_quantized_head(images, make):
    images = images.float()
    model = dynamically_quantized()
    metric = AverageDrop(make(model, "relu"))
    before = traces(model.stem, images)
    with pytest.raises(RuntimeError, match=r"The model's 'fc' is quantized.*as it was before quantization"):
        metric.update(images)
    assert traces(model.stem, images) == before
    assert metric.total == 0
    metric.source.remove_hooks()
    # Maps that need no gradient are no problem.
    precomputed = AverageDrop(PrecomputedMaps(model))
    precomputed.update(images, cams=torch.rand(4, 3, 3))
    assert precomputed.total == 4


def test_a_statically_quantized_network(images):
    images = images.float()
    model = statically_quantized(images)
    message = r"layer '0\.2' returns torch\.quint8, which has no gradient\. The model's '0\.0' is quantized"
    with pytest.raises(ValueError, match=message):
        AverageDrop(GradCAM(model, "0.2")).update(images)
    metric = AverageDrop(UniformMap(model))
    assert metric(images) == 0


def test_an_exported_program(images):
    exported = torch.export.export(small_net(), (images,)).module()
    with pytest.raises(
        TypeError, match=r"exported program \(torch.export\).*pass the network that was exported"
    ):
        UniformMap(exported)
    traced = torch.fx.symbolic_trace(small_net())
    assert torch.equal(
        explain(GradCAM(traced, "body"), images).maps, explain(GradCAM(small_net(), "body"), images).maps
    )


def test_no_grad_around_the_layer_is_accepted_and_after_the_layer_is_named(images):
    class WithoutGradients(Around):
        def forward(self, images):
            with torch.no_grad():
                return self.net(images)

    class Cut(Around):
        def forward(self, images):
            features = self.net.body(self.net.stem(images))
            with torch.no_grad():
                return self.net.fc(self.net.relu(features).flatten(2).mean(-1))

    images = images.float()
    expected = explain(GradCAM(Around().net, "body"), images).maps
    assert torch.equal(explain(GradCAM(WithoutGradients(), "net.body"), images).maps, expected)
    with pytest.raises(RuntimeError, match=r"no gradient at layer 'net\.body'.*what cuts the path.*no_grad"):
        explain(GradCAM(Cut(), "net.body"), images)


def test_a_forward_that_does_not_take_images_alone(images):
    class TwoInputs(Around):
        def forward(self, images, age):
            return self.net(images) + age

    class KeywordOnly(Around):
        def forward(self, *, pixel_values):
            return self.net(pixel_values)

    class Mistaken(Around):
        def forward(self, images):
            return self.net(images, 1)

    images = images.float()
    for network, signature, reason in (
        (TwoInputs, r"\(images, age\)", "missing a required argument: 'age'"),
        (KeywordOnly, r"\(\*, pixel_values\)", "too many positional arguments"),
    ):
        message = rf"its forward{signature} does not accept that \({reason}\); wrap it in a module"
        for source in (GradCAM(network(), "net.body"), UniformMap(network())):
            with pytest.raises(TypeError, match=message):
                AverageDrop(source).update(images)
    # An error of the network's own is not explained away.
    with pytest.raises(TypeError, match=r"takes 2 positional arguments but 3 were given"):
        AverageDrop(UniformMap(Mistaken())).update(images)


def test_a_call_that_runs_no_hooks(images):
    class Called(Around):
        def __call__(self, images):
            return self.net(images)

    class CalledLayer(nn.Conv2d):
        def __call__(self, images):
            return self.forward(images)

    class Supplemented(Around):
        def __call__(self, images):
            return super().__call__(images * 2)

        def forward(self, images):
            return self.net(images)

    images = images.float()
    with pytest.raises(RuntimeError, match=r"layer 'net\.body' was not recorded: Called overrides __call__"):
        explain(GradCAM(Called(), "net.body"), images)
    model = small_net().float()
    model.body = CalledLayer(6, 8, 3, padding=1)
    with pytest.raises(
        RuntimeError, match="CalledLayer overrides __call__, which runs no hooks; rename it to"
    ):
        explain(GradCAM(model, "body"), images)
    expected = explain(GradCAM(Around().net, "body"), images * 2).maps
    assert torch.equal(explain(GradCAM(Supplemented(), "net.body"), images).maps, expected)
    uniform = AverageDrop(CallableSource(Called(), lambda _model, images, _classes: images[:, 0] * 0))
    uniform.update(images)
    assert uniform.total == 4
