"""pytorch-grad-cam: the maps of every class, restoration of the model, and error messages."""

import inspect

import numpy as np
import pytest
import pytorch_grad_cam as library
import torch
from conftest import Calls, small_net
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence
from pytorch_grad_cam.metrics.cam_mult_image import IncreaseInConfidence as LibraryIncrease
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from restoration import traces
from torch import nn
from torchvision.models import resnet18

from torchmetrics_cam import AverageDrop, IncreaseInConfidence, explain
from torchmetrics_cam.cams import PytorchGradCAMSource, as_source
from torchmetrics_cam.protocol import EvaluationProtocol

METHODS = [
    "GradCAM", "HiResCAM", "GradCAMElementWise", "GradCAMPlusPlus", "XGradCAM", "LayerCAM", "EigenCAM", "EigenGradCAM",
    "SegEigenCAM", "KPCA_CAM", "FEM", "RandomCAM", "ScoreCAM", "AblationCAM", "ShapleyCAM", "FullGrad", "FinerCAM",
    "RefineCAM", "SESS",
]  # fmt: skip
# These explain no class or are components of others; GuidedBackpropReLUModel has a test of its own.
OTHER_CLASSES = {
    "AblationLayer", "AblationLayerVit", "AblationLayerFasterRCNN", "ActivationsAndGradients",
    "DeepFeatureFactorization", "GuidedBackpropReLUModel",
}  # fmt: skip
ONE_PASS = [
    name for name in METHODS if name not in ("ScoreCAM", "AblationCAM", "ShapleyCAM", "FullGrad", "SESS")
]
GRAD_CAM = EvaluationProtocol.preset("grad_cam")


def cam_of(name: str, model: nn.Module, layers=None):
    settings = {"num_scales": 2} if name == "SESS" else {}
    layers = [model.relu] if layers is None else layers
    return getattr(library, name)(model, [] if name == "FullGrad" else layers, **settings)


@pytest.fixture
def model() -> nn.Module:
    return small_net().float()


@pytest.fixture
def photos16() -> torch.Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def maps_of(source, images, protocol=GRAD_CAM, **arguments):
    return explain(source, images, protocol=protocol, **arguments).maps


def test_every_class_of_the_library_is_covered():
    classes = {
        name
        for name, one in vars(library).items()
        if inspect.isclass(one) and one.__module__.startswith("pytorch_grad_cam")
    }
    assert classes == {*METHODS, *OTHER_CLASSES}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("class_idx", [None, 3, [0, 3, 3, 1]], ids=["top class", "one for all", "one each"])
def test_maps_equal_those_of_the_object(name, class_idx, model, photos16):
    cam = cam_of(name, model)
    classes = model(photos16).argmax(1).tolist() if class_idx is None else class_idx
    classes = [classes] * 4 if isinstance(classes, int) else classes
    np.random.seed(0)
    if name == "FinerCAM":
        one_by_one = [cam(photos16[[place]], target_idx=index) for place, index in enumerate(classes)]
        expected = np.concatenate(one_by_one)
    else:
        expected = cam(photos16, targets=[ClassifierOutputTarget(index) for index in classes])
    np.random.seed(0)
    maps = maps_of(cam, photos16, class_idx=class_idx)
    assert expected.shape == maps.shape == (4, 16, 16)
    assert expected.std() > 0.05
    np.testing.assert_allclose(maps.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize(
    "settings",
    [{"eigen_smooth": True}, {"aug_smooth": True}, {"aug_smooth": True, "eigen_smooth": True}],
    ids=str,
)
@pytest.mark.parametrize("name", ["GradCAM", "LayerCAM", "FullGrad"])
def test_smoothing_arguments(name, settings, model, photos16):
    cam = cam_of(name, model)
    expected = cam(photos16, targets=[ClassifierOutputTarget(1)] * 4, **settings)
    maps = maps_of(PytorchGradCAMSource(cam, **settings), photos16, class_idx=1)
    np.testing.assert_allclose(maps.numpy(), expected, atol=1e-5)
    assert abs(expected - cam(photos16, targets=[ClassifierOutputTarget(1)] * 4)).max() > 0.05


def test_guided_backpropagation(model, photos16):
    kinds = [type(module) for module in model.modules()]
    with torch.random.fork_rng():
        expected = [
            library.GuidedBackpropReLUModel(small_net().float())(image[None].clone(), 2).sum(-1)
            for image in photos16
        ]
    relu = model.relu
    maps = maps_of(
        library.GuidedBackpropReLUModel(model), photos16, EvaluationProtocol(rectify="source"), class_idx=2
    )
    np.testing.assert_allclose(maps.numpy(), np.stack(expected), atol=1e-6)
    assert model.relu is relu
    assert [type(module) for module in model.modules()] == kinds


def test_several_layers_are_fused_as_the_library_does(model, photos16):
    for layers in ([model.stem, model.relu], [model.relu, model.stem]):
        cam = library.GradCAM(model, layers)
        expected = cam(photos16, targets=[ClassifierOutputTarget(0)] * 4)
        np.testing.assert_allclose(maps_of(cam, photos16, class_idx=0).numpy(), expected, atol=2e-6)


def test_finer_cam_with_its_arguments(model, photos16):
    cam = cam_of("FinerCAM", model)
    expected = cam(photos16, alpha=0.4, comparison_categories=[2])
    source = PytorchGradCAMSource(cam, alpha=0.4, comparison_categories=[2])
    np.testing.assert_allclose(maps_of(source, photos16).numpy(), expected, atol=2e-6)
    assert abs(expected - cam(photos16)).max() > 0.01


def test_custom_targets(model, photos16):
    targets = [lambda output: output[1] - output[2]] * 4
    for name in ("GradCAM", "ScoreCAM", "ShapleyCAM"):
        cam = cam_of(name, model)
        expected = cam(photos16, targets=targets)
        np.testing.assert_allclose(maps_of(cam, photos16, targets=targets).numpy(), expected, atol=2e-6)


def test_cam_of_scores_equals_softmax_targets(model, photos16):
    protocol = GRAD_CAM.replace(cam_of="scores")
    for name in ("GradCAM", "ScoreCAM", "AblationCAM", "FullGrad"):
        cam = cam_of(name, model)
        expected = cam(photos16, targets=[ClassifierOutputSoftmaxTarget(3)] * 4)
        maps = maps_of(cam, photos16, protocol, class_idx=3)
        np.testing.assert_allclose(maps.numpy(), expected, atol=1e-5)
        assert abs(expected - cam(photos16, targets=[ClassifierOutputTarget(3)] * 4)).max() > 1e-3


class Wrapped(nn.Module):
    """A model whose output is not a tensor, as in transformers."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, images):
        return self.form(self.net(images))


@pytest.mark.parametrize(
    "form", [lambda logits: {"logits": logits}, lambda logits: (logits, 0)], ids=["dict", "tuple"]
)
@pytest.mark.parametrize("name", ["GradCAM", "ScoreCAM", "AblationCAM", "ShapleyCAM"])
def test_models_that_return_more_than_scores(name, form, model, photos16):
    expected = cam_of(name, model)(photos16, targets=[ClassifierOutputTarget(2)] * 4)
    wrapped = Wrapped(model, form)
    maps = maps_of(cam_of(name, wrapped, [model.relu]), photos16, class_idx=2)
    np.testing.assert_allclose(maps.numpy(), expected, atol=2e-6)


# The preset "grad_cam" reproduces the library's metrics


@pytest.mark.parametrize(
    "name",
    [
        "GradCAM",
        "GradCAMPlusPlus",
        "XGradCAM",
        "LayerCAM",
        "HiResCAM",
        "EigenCAM",
        "EigenGradCAM",
        "GradCAMElementWise",
    ],
)
@pytest.mark.parametrize("network", ["resnet18", "lite0"])
def test_preset_equals_the_librarys_drop_and_increase(name, network, lite0, photos):
    torch.manual_seed(0)
    model = lite0 if network == "lite0" else resnet18().eval()
    layer = model._blocks[-1] if network == "lite0" else model.layer4
    if network == "resnet18":
        # The factor gives random weights moderate confidences; with 100 every confidence is 1, masked or not.
        model.fc.weight.data.mul_(10)
    images = photos[:4]
    cam = cam_of(name, model, [layer])
    with torch.no_grad():
        classes = model(images).argmax(1).tolist()
    maps = cam(images, targets=[ClassifierOutputTarget(index) for index in classes])
    softmax = [ClassifierOutputSoftmaxTarget(index) for index in classes]
    drop, increase = (
        measure()(images, maps, softmax, model) for measure in (DropInConfidence, LibraryIncrease)
    )
    ours = AverageDrop(cam, protocol="grad_cam"), IncreaseInConfidence(cam, protocol="grad_cam")
    for metric, theirs in zip(ours, (drop, increase), strict=True):
        metric.update(images)
        assert metric.compute().item() == pytest.approx(theirs.mean(), abs=1e-5)
    assert drop.mean() > 0.01


def test_preset_uses_a_smoothed_map_as_the_object_returns_it(lite0, photos):
    """Smoothing averages the maps of several augmentations, here of a tiger cat and an espresso."""
    images, classes = photos[[2, 4]], [282, 967]
    targets = [ClassifierOutputTarget(index) for index in classes]
    cam = cam_of("GradCAM", lite0, [lite0._blocks[-1]])
    maps = cam(images, targets=targets, aug_smooth=True)
    assert abs(maps - cam(images, targets=targets)).max() > 0.05
    softmax = [ClassifierOutputSoftmaxTarget(index) for index in classes]
    drop = DropInConfidence()(images, maps, softmax, lite0)
    metric = AverageDrop(PytorchGradCAMSource(cam, aug_smooth=True), protocol="grad_cam")
    metric.update(images, class_idx=classes)
    assert metric.compute().item() == pytest.approx(drop.mean(), abs=1e-5)
    assert drop.mean() > 0.01


# Restoration


@pytest.mark.parametrize("name", [*METHODS, "GuidedBackpropReLUModel"])
@pytest.mark.parametrize("failure", [False, True], ids=["no error", "error"])
def test_an_update_restores_model_and_object(name, failure, model, photos16):
    cam = library.GuidedBackpropReLUModel(model) if name.startswith("Guided") else cam_of(name, model)
    called = []
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
        parameter.register_post_accumulate_grad_hook(called.append)
    model.train()
    model.stem[0].weight.requires_grad_(False)
    source = as_source(cam)
    noted = [part.activations_and_grads for part in source.base_cams]
    for hooks in noted:
        hooks.activations, hooks.gradients = ["kept"], ["kept"]
    kept = [dict(vars(one)) for one in (cam, *source.base_cams, *noted)]
    random_numbers = str(np.random.get_state())
    before = traces(model, photos16) | {"modules": [id(module) for module in model.modules()]}
    metric = AverageDrop(cam, protocol="grad_cam")
    if failure:
        # The error is raised at the end of the object's last step.
        for part in source.base_cams or [cam]:
            method = "compute_cam_per_layer" if source.base_cams else "forward"
            inner = getattr(part, method)

            def failing(*arguments, _inner=inner):
                _inner(*arguments)
                raise ArithmeticError("on purpose")

            setattr(part, method, failing)
        with pytest.raises(ArithmeticError, match="on purpose"):
            metric.update(photos16)
        for part in source.base_cams or [cam]:
            delattr(part, method)
    else:
        metric.update(photos16)
    after = traces(model, photos16) | {"modules": [id(module) for module in model.modules()]}
    for what in before:
        assert after[what] == before[what], what
    assert [vars(one) for one in (cam, *source.base_cams, *noted)] == kept
    assert all(hooks.activations == hooks.gradients == ["kept"] for hooks in noted)
    assert str(np.random.get_state()) == random_numbers
    assert not called
    assert metric.total == (0 if failure else 4)


def test_layers_replaced_by_ablation_cam_are_restored_after_an_error(model, photos16):
    class Failing(library.AblationLayer):
        def set_next_batch(self, **_):
            raise ArithmeticError("on purpose")

    cam = library.AblationCAM(model, [model.relu], ablation_layer=Failing())
    relu = model.relu
    with pytest.raises(ArithmeticError, match="on purpose"):
        AverageDrop(cam).update(photos16)
    assert model.relu is relu


@pytest.mark.parametrize("name", ["ScoreCAM", "AblationCAM"])
def test_progress_bars_are_disabled(name, model, photos16, capsys):
    cam = cam_of(name, model)
    AverageDrop(cam).update(photos16)
    assert capsys.readouterr() == ("", "")
    cam(photos16, targets=[ClassifierOutputTarget(0)] * 4)
    assert "it/s" in capsys.readouterr().err


@pytest.mark.parametrize("name", ONE_PASS)
def test_the_object_uses_the_evaluations_forward_pass(name, model, photos16):
    metric = AverageDrop(cam_of(name, model))
    with Calls(model) as calls:
        metric.update(photos16)
    assert calls.batches == [4, 4]


def test_only_the_head_has_a_graph(model, photos16):
    seen = []
    model.stem.register_forward_hook(lambda _m, _args, output: seen.append(output.requires_grad))
    for source in (
        cam_of("GradCAM", model),
        PytorchGradCAMSource(cam_of("GradCAM", model), aug_smooth=True),
        cam_of("SESS", model),
    ):
        AverageDrop(source).update(photos16)
    assert seen
    assert not any(seen)


@pytest.mark.parametrize("name", METHODS)
def test_frozen_models_and_modes_without_gradients(name, model, photos16):
    cam = cam_of(name, model)
    expected = AverageDrop(cam)
    expected.update(photos16)
    model.requires_grad_(False)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            metric = AverageDrop(cam)
            metric.update(photos16.clone())
        if name != "RandomCAM":
            assert metric.compute().item() == pytest.approx(expected.compute().item(), abs=1e-6)


def test_half_precision(model, photos16):
    expected, metric = AverageDrop(cam_of("GradCAM", model)), AverageDrop(cam_of("GradCAM", model))
    expected.update(photos16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metric.update(photos16)
    assert metric.compute().item() == pytest.approx(expected.compute().item(), abs=0.05)
    half = AverageDrop(cam_of("GradCAM", small_net().bfloat16()))
    half.update(photos16)
    assert half.compute().item() == pytest.approx(expected.compute().item(), abs=0.05)


def test_a_compiled_or_distributed_model_runs_unwrapped(model, photos16):
    expected = AverageDrop(cam_of("GradCAM", model))
    expected.update(photos16)
    for name in ("GradCAM", "ScoreCAM", "ShapleyCAM"):
        wrapped = cam_of(name, nn.DataParallel(model), [model.relu])
        bare = AverageDrop(cam_of(name, model))
        metric = AverageDrop(wrapped)
        for one in (bare, metric):
            one.update(photos16)
        assert metric.source.model is model
        assert metric.compute() == bare.compute()


# Errors


def test_a_wrong_number_of_targets_raises(model, photos16):
    metric = AverageDrop(cam_of("GradCAM", model))
    with (
        Calls(model) as calls,
        pytest.raises(ValueError, match="targets has 3 entries but input_tensor holds 4 images"),
    ):
        metric.update(photos16, targets=[len] * 3)
    assert not calls.batches


def test_replaced_or_released_layers_raise(model, photos16):
    cam = cam_of("GradCAM", model)
    left = cam_of("FullGrad", model)
    left.activations_and_grads.release()
    model.relu = nn.ReLU()
    for one in (cam, left):
        with (
            Calls(model) as calls,
            pytest.raises(ValueError, match="has lost its target layers: its `with` block has ended"),
        ):
            AverageDrop(one).update(photos16)
        assert not calls.batches


def test_objects_that_explain_no_class_and_unknown_arguments_raise(model):
    for one in (library.DeepFeatureFactorization(model, model.relu), library.AblationLayer()):
        with pytest.raises(
            TypeError, match=f"{type(one).__name__} of pytorch-grad-cam does not explain a class"
        ):
            AverageDrop(one)
    with pytest.raises(
        TypeError, match=r"GradCAM has no argument 'smooth'; .* \['aug_smooth', 'eigen_smooth'\]"
    ):
        PytorchGradCAMSource(cam_of("GradCAM", model), smooth=True)
    guided = AverageDrop(library.GuidedBackpropReLUModel(model))
    with pytest.raises(ValueError, match="explains a class, not an arbitrary target"):
        guided.update(torch.rand(1, 3, 8, 8), targets=len)


def test_subclasses_of_the_librarys_classes_are_recognized(model, photos16):
    class Mine(library.GradCAM):
        pass

    metric = AverageDrop(Mine(model, [model.relu]))
    expected = AverageDrop(cam_of("GradCAM", model))
    for one in (metric, expected):
        one.update(photos16)
    assert metric.compute() == expected.compute()
    assert repr(metric) == "AverageDrop(Mine(SmallNet, relu), protocol='paper')"


def test_volumes(photos16):
    model = small_net(dims=3).float()
    volumes = torch.rand(2, 3, 8, 8, 8)
    for name in ("GradCAM", "ShapleyCAM", "FEM"):
        cam = cam_of(name, model)
        expected = cam(volumes, targets=[ClassifierOutputTarget(2)] * 2)
        np.testing.assert_allclose(maps_of(cam, volumes, class_idx=2).numpy(), expected, atol=1e-5)
