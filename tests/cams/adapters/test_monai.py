"""MONAI: its CAMs on images and volumes, before its normalizer inverts them."""

import pytest
import torch
from conftest import Calls, Returning, small_net
from monai.networks.nets import DenseNet121
from monai.visualize import CAM, GradCAM, GradCAMpp
from restoration import traces
from torch import nn

import torchmetrics_cam.cams as own
from torchmetrics_cam import AverageDrop, EvaluationProtocol, explain
from torchmetrics_cam.cams import MonaiSource

AS_IS = EvaluationProtocol(rectify="source", normalize="none")
METHODS = {
    "CAM": lambda m: CAM(m, "relu", fc_layers="fc"),
    "GradCAM": lambda m: GradCAM(m, "relu"),
    "GradCAMpp": lambda m: GradCAMpp(m, "relu"),
}


def maps_of(source, images, protocol=AS_IS, **arguments):
    return explain(source, images, protocol=protocol, **arguments).maps


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", METHODS)
def test_maps_equal_monais_maps_of_single_images(name, dims):
    model = small_net(dims=dims)
    images = torch.rand(4, 3, *(8,) * dims, dtype=torch.float64)
    cam, classes = METHODS[name](model), torch.tensor([0, 3, 1, 4])
    one_by_one = [
        cam.compute_map(image[None], class_idx=index[None])
        for image, index in zip(images, classes, strict=True)
    ]
    expected = torch.cat(one_by_one).squeeze(1).detach()
    maps = maps_of(cam, images, class_idx=classes)
    torch.testing.assert_close(maps, expected)
    assert expected.std() > 0
    top = maps_of(cam, images)
    assert torch.equal(top, maps_of(cam, images, class_idx=model(images).argmax(1)))


def test_the_most_important_position_has_the_highest_value(images):
    """In MONAI's own result it has the value 0."""
    model = small_net()
    cam = GradCAM(model, "relu")
    raw = maps_of(cam, images, class_idx=3)
    turned = torch.cat([cam(image[None], class_idx=torch.tensor([3])) for image in images])
    assert (raw.flatten(1).amax(1) > raw.flatten(1).amin(1)).any()
    best = raw.flatten(1).argmax(1)
    size = raw.shape[1:]
    shrunk = nn.functional.interpolate(turned, size, mode="bilinear").flatten(1)
    assert (shrunk.gather(1, best[:, None]) < shrunk.mean(1, keepdim=True))[raw.flatten(1).amax(1) > 0].all()


def test_grad_cam_equals_this_packages_grad_cam(images):
    ours, theirs = AverageDrop(own.GradCAM(small_net(), "relu")), AverageDrop(GradCAM(small_net(), "relu"))
    for metric in (ours, theirs):
        metric.update(images)
    assert ours.compute().item() == pytest.approx(theirs.compute().item(), abs=1e-9)
    assert ours.compute() > 0.01


def test_targets_cam_of_scores_and_models_that_return_logits_in_a_dict(images):
    model = small_net()
    wrapped = Returning(model, lambda logits: {"logits": logits})
    layer = {"protocol": AS_IS.replace(rectify="relu"), "class_idx": 2}
    expected = maps_of(own.GradCAM(small_net(), "relu"), images, **layer)
    torch.testing.assert_close(maps_of(GradCAM(wrapped, "net.relu"), images, **layer), expected)
    layer["protocol"] = layer["protocol"].replace(cam_of="scores")
    expected = maps_of(own.GradCAM(small_net(), "relu"), images, **layer)
    torch.testing.assert_close(maps_of(GradCAM(model, "relu"), images, **layer), expected)
    targets = {"protocol": AS_IS.replace(rectify="relu"), "targets": lambda scores: scores[1] - scores[0]}
    expected = maps_of(own.GradCAM(small_net(), "relu"), images, **targets)
    torch.testing.assert_close(maps_of(GradCAM(model, "relu"), images, **targets), expected)
    with pytest.raises(ValueError, match="explains a class, not an arbitrary target"):
        maps_of(METHODS["CAM"](model), images, targets=lambda scores: scores[1])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("failure", [False, True], ids=["no error", "error"])
def test_an_update_restores_model_and_object(name, failure, images):
    model = small_net()
    cam, called = METHODS[name](model), []
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
        parameter.register_post_accumulate_grad_hook(called.append)
    model.train()
    hooked = cam.nn_module
    hooked.activations, hooked.gradients = {"relu": "kept"}, {"relu": "kept"}
    kept = dict(vars(hooked))
    before = traces(model, images)
    metric = AverageDrop(cam)
    if failure:
        inner = cam.compute_map

        def failing(*arguments, **settings):
            inner(*arguments, **settings)
            raise ArithmeticError("on purpose")

        cam.compute_map = failing
        with pytest.raises(ArithmeticError, match="on purpose"):
            metric.update(images)
    else:
        for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
            with mode():
                metric.update(images)
    after = traces(model, images)
    for what in before:
        assert after[what] == before[what], what
    assert vars(hooked) == kept
    assert hooked.activations == hooked.gradients == {"relu": "kept"}
    assert not called


def test_a_network_of_monai_on_volumes():
    torch.manual_seed(0)
    model = DenseNet121(spatial_dims=3, in_channels=1, out_channels=3).eval()
    metric = AverageDrop(GradCAM(model, "class_layers.relu"))
    metric.update(torch.rand(1, 1, 32, 32, 32))
    assert metric.total == 1
    assert repr(metric.source) == "GradCAM(DenseNet121, class_layers.relu)"


def test_a_distributed_or_compiled_model_runs_unwrapped(images):
    model = small_net()
    bare, wrapped = (
        AverageDrop(GradCAM(model, "relu")),
        AverageDrop(GradCAM(nn.DataParallel(model), "module.relu")),
    )
    for metric in (bare, wrapped):
        metric.update(images)
    assert wrapped.source.model is model
    assert wrapped.compute() == bare.compute()


def test_removed_hooks_raise(images):
    model = small_net()
    metric = AverageDrop(GradCAM(model, "relu"))
    metric.source.remove_hooks()
    with Calls(model) as calls, pytest.raises(ValueError, match="has no hook on layer 'relu'"):
        metric.update(images)
    assert not calls.batches
    assert not model.relu._forward_hooks
    assert not model.relu._backward_hooks


def test_one_of_several_layers(images):
    model = small_net()
    cam = GradCAM(model, ["stem", "relu"])
    first, last = AverageDrop(MonaiSource(cam, layer_idx=0)), AverageDrop(cam)
    expected = AverageDrop(own.GradCAM(small_net(), "stem"))
    for metric in (first, last, expected):
        metric.update(images)
    assert first.compute().item() == pytest.approx(expected.compute().item(), abs=1e-9)
    assert first.compute() != last.compute()
