"""Leave no trace: whatever happens in an update, the model, its gradients and the input are as they were."""

import itertools
from collections import OrderedDict
from contextlib import contextmanager

import pytest
import torch
import torchcam.methods
from conftest import SmallNet, small_net
from restoration import CONTEXTS, Fragile, traces
from torch import nn

from torchmetrics_cam import AverageDrop, ClassificationMetric, explain
from torchmetrics_cam.cams import CallableSource, CAMSource, GradCAM, SourceMaps
from torchmetrics_cam.model.graph import ActivationGraph
from torchmetrics_cam.model.guard import ModelGuard, hooks_muted


class FailingGradCAM(GradCAM):
    def formula(self, activation, gradient):
        raise ArithmeticError("on purpose")


def rude(model, images, class_idx):
    """All that a careless explanation method does to a model."""
    model.train()
    model.net.body.register_forward_hook(lambda *_: None)
    model.net.fc.register_full_backward_hook(lambda *_: None)
    model.requires_grad_(True)
    model.zero_grad()
    model(images).gather(1, class_idx[:, None]).sum().backward()
    torch.set_grad_enabled(False)
    maps = images.grad.abs().sum(1)
    images.data.zero_()
    return maps


def failing_rude(model, images, class_idx):
    rude(model, images, class_idx)
    raise ArithmeticError("on purpose")


SOURCES = {
    "own": lambda model, fails: (FailingGradCAM if fails else GradCAM)(model, "net.body"),
    "torchcam": lambda model, fails: _torchcam(model, fails),
    "callable": lambda model, fails: CallableSource(model, failing_rude if fails else rude),
}


def _torchcam(model, fails):
    extractor = torchcam.methods.GradCAM(model, "net.body")
    if fails:
        extractor._get_weights = lambda *_, **__: (_ for _ in ()).throw(ArithmeticError("on purpose"))
    return extractor


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("failure", ["no error", "first forward", "extractor", "second forward"])
def test_an_update_leaves_no_trace(source, context, failure):
    for frozen, mode, with_grad in itertools.product(
        [True, False], ["train", "eval", "mixed"], [True, False]
    ):
        model = Fragile(small_net().float())
        model.requires_grad_(not frozen)
        model.train(mode != "eval")
        if mode == "mixed":
            model.net.stem[1].eval()
        if with_grad:
            for parameter in model.parameters():
                parameter.grad = torch.rand_like(parameter)
        # The rude source runs the model once more between the clean pass and the masked one.
        second = 3 if source == "callable" else 2
        model.fails_at = {"first forward": 1, "second forward": second}.get(failure, 0)
        with CONTEXTS[context]():
            images = torch.rand(3, 3, 10, 10)
            metric = AverageDrop(SOURCES[source](model, failure == "extractor"))
            before = traces(model, images)
            if failure == "no error":
                metric.update(images)
            else:
                with pytest.raises(ArithmeticError, match="on purpose"):
                    metric.update(images)
            after = traces(model, images)
        for what in before:
            assert after[what] == before[what], (what, frozen, mode, with_grad)
        assert metric.total == (3 if failure == "no error" else 0)
        assert metric.update_count == (1 if failure == "no error" else 0)


def test_a_trace_would_be_noticed(net, images):
    """The check above can fail: each kind of trace, left on purpose, is seen."""
    before = traces(net, images)
    net.train()
    net.body.register_forward_hook(lambda *_: None)
    net.fc.weight.grad = torch.zeros_like(net.fc.weight)
    net.fc.bias.requires_grad_(False)
    net.stem[1].running_mean += 1
    images.add_(1)
    after = traces(net, images)
    changed = {what for what in before if after[what] != before[what]}
    assert changed == {"modes", "hooks", "grads", "grad values", "requires_grad", "values", "images"}


def test_a_model_that_works_on_its_input_in_place_does_not_reach_the_users_images(images):
    model = nn.Sequential(
        nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    )
    images = images.float() - 0.5
    kept = images.clone()
    metric = AverageDrop(GradCAM(model, "1"))
    metric.update(images)
    assert torch.equal(images, kept)


def test_training_in_the_same_autocast_region_has_its_gradients():
    model = small_net().float().train()
    images = torch.rand(2, 3, 10, 10)
    metric = AverageDrop(GradCAM(model, "body"))

    def gradients(with_metric):
        model.zero_grad()
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if with_metric:
                metric.update(images)
            model(images).float().sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    buffers = [buffer.clone() for buffer in model.buffers()]
    expected = gradients(False)
    for buffer, value in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(value)
    for actual, wanted in zip(gradients(True), expected, strict=True):
        assert torch.equal(actual, wanted)


def test_only_the_head_has_a_graph(net, images):
    """The body runs without a graph, and the layer's activation is the leaf."""
    seen = {}
    net.stem.register_forward_hook(lambda _m, _a, out: seen.update(stem=out.requires_grad))
    with ActivationGraph(net, [net.body]) as graph:
        output = net(images)
        activation = graph[net.body]
        assert activation.is_leaf
        assert activation.requires_grad
        assert output.requires_grad
    assert seen == {"stem": False}
    assert not graph


def test_the_recorded_activation_is_that_of_the_layer_though_an_in_place_relu_follows(net, images):
    with torch.no_grad():
        expected = net.body(net.stem(images))
    with ActivationGraph(net, [net.body]) as graph:
        net(images)
        assert torch.equal(graph[net.body], expected)
    assert (expected < 0).any()


def test_head_only_gradients_are_those_of_the_full_graph(net, images):
    with ActivationGraph(net, [net.stem, net.body]) as graph:
        score = net(images)[:, 1].sum()
        head = torch.autograd.grad(score, [graph[net.stem], graph[net.body]])
    with ActivationGraph(net, [net.stem, net.body], head_only=False) as graph:
        score = net(images.clone().requires_grad_())[:, 1].sum()
        full = torch.autograd.grad(score, [graph[net.stem], graph[net.body]])
    assert all(map(torch.equal, head, full))


class TurnsGradientsOff(nn.Module):
    """A frozen backbone as many write it: the model itself turns gradients off in its body."""

    def __init__(self, net: SmallNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x):
        with torch.no_grad():
            features = self.net.body(self.net.stem(x))
        return self.net.fc(self.net.relu(features).flatten(2).mean(-1))


def test_a_model_that_turns_gradients_off_falls_back_to_its_own_graph(net, images):
    plain, wrapped = (
        AverageDrop(GradCAM(net, "body")),
        AverageDrop(GradCAM(TurnsGradientsOff(net), "net.body")),
    )
    plain.update(images)
    wrapped.update(images)
    assert plain.compute() > 0
    assert torch.equal(plain.compute(), wrapped.compute())


def test_extractor_hooks_are_as_they_were_before(net, images):
    for enabled in (True, False):
        extractor = torchcam.methods.SmoothGradCAMpp(net.float(), "body", num_samples=1)
        extractor._hooks_enabled = enabled
        metric = ClassificationMetric(extractor, torch.nn.Softmax(dim=-1))
        metric.update(images.float())
        assert extractor._hooks_enabled is enabled
        assert extractor._ihook_enabled is True
        assert extractor.hook_a == [None]
        assert extractor._hook_outputs == [None]
        assert not hasattr(extractor, "_input")
        extractor.remove_hooks()


def test_no_cache_of_weights_is_live_inside(net):
    """Releases of torch differ in whether a weight that was cached without a graph cuts later gradients."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with ModelGuard(net):
            assert not torch.is_autocast_cache_enabled()
        assert torch.is_autocast_cache_enabled()


def test_muted_hooks_are_silent_and_stand_afterwards_in_their_old_order(net, images):
    called = []
    handles = [net.body.register_forward_hook(lambda *_, name=name: called.append(name)) for name in "abcd"]
    order = list(net.body._forward_hooks)
    with hooks_muted([handles[2], handles[0]]):
        net(images)
        handles[1].remove()
        added = net.body.register_forward_hook(lambda *_: called.append("e"))
    assert called == ["b", "d"]
    net(images)
    assert called == ["b", "d", "a", "c", "d", "e"]
    assert list(net.body._forward_hooks) == [order[0], order[2], order[3], added.id]


def test_layers_that_were_exchanged_are_back(net):
    body, names = net.body, list(net._modules)
    with ModelGuard(net):
        net.body = nn.Identity()
        del net.relu
    assert net.body is body
    assert list(net._modules) == names


class FailingMode(nn.Module):
    """A module that fails when it returns to training mode, as an adapter that changes its weights may."""

    def train(self, mode=True):
        if mode:
            raise ArithmeticError("on purpose")
        return super().train(mode)


def test_a_module_that_fails_to_return_to_training_mode_does_not_keep_the_rest_from_being_restored():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), FailingMode(), nn.Dropout())
    gradient = model[0].weight.grad = torch.rand_like(model[0].weight)
    guard = ModelGuard(model)
    guard.__enter__()
    model[0].register_forward_hook(lambda *_: None)
    model[0].bias.requires_grad_(False)
    with pytest.raises(ArithmeticError, match="on purpose"):
        guard.__exit__()
    assert [module.training for module in model.modules()] == [True] * 4
    assert model[0].weight.grad is gradient
    assert model[0].bias.requires_grad
    assert not model[0]._forward_hooks
    assert torch.is_autocast_cache_enabled()


def test_a_buffer_that_was_resized_does_not_keep_the_rest_from_being_restored():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())
    model.register_buffer("count", torch.zeros(3))
    gradient = model[0].weight.grad = torch.rand_like(model[0].weight)
    guard = ModelGuard(model)
    guard.__enter__()
    model.count.resize_(4)
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match="size"):
        guard.__exit__()
    assert model[0].weight.grad is gradient
    assert not model[0]._forward_hooks
    assert all(module.training for module in model.modules())


def test_a_model_that_fails_to_enter_evaluation_mode_is_as_it_was_found():
    class NeverEvaluates(nn.Module):
        def train(self, mode=True):
            if not mode:
                raise ArithmeticError("on purpose")
            return super().train(mode)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), NeverEvaluates())
    gradient = model[0].weight.grad = torch.rand_like(model[0].weight)
    guard = ModelGuard(model)
    with pytest.raises(ArithmeticError, match="on purpose"):
        guard.__enter__()
    assert [module.training for module in model.modules()] == [True] * 3
    assert model[0].weight.grad is gradient
    assert torch.is_autocast_cache_enabled()


def test_a_nested_guard_restores_what_the_outer_one_prepared(net):
    net.train()
    net.fc.bias.grad = torch.zeros_like(net.fc.bias)
    with ModelGuard(net):
        with ModelGuard(net):
            net.train()
        assert not any(module.training for module in net.modules())
        assert net.fc.bias.grad is None
    assert all(module.training for module in net.modules())
    assert net.fc.bias.grad is not None


def test_the_next_pass_begins_without_what_an_earlier_one_left(net):
    guard = ModelGuard(net)
    with guard:
        guard.begin_pass()
        net.train()
        net.body.register_forward_hook(lambda *_: None)
        net.fc.weight.grad = torch.zeros_like(net.fc.weight)
        guard.begin_pass()
        assert not any(module.training for module in net.modules())
        assert not net.body._forward_hooks
        assert net.fc.weight.grad is None


def test_an_update_walks_the_module_tree_once(net, images, monkeypatch):
    """The guard's own walk serves both forward passes; nothing else goes through all modules."""
    metric = AverageDrop(GradCAM(net, "body"))
    walks, yielded = [], []
    note, named_modules = ModelGuard._note, nn.Module.named_modules

    def noted(guard):
        walks.append(guard.model)
        note(guard)

    def named(module, *args, **kwargs):
        for name, child in named_modules(module, *args, **kwargs):
            yielded.append(child)
            yield name, child

    monkeypatch.setattr(ModelGuard, "_note", noted)
    monkeypatch.setattr(nn.Module, "named_modules", named)
    metric.update(images)
    assert walks == [net]
    assert net.fc not in yielded  # the last module: only a whole walk comes to it
    list(net.modules())
    assert net.fc in yielded


def test_hooks_in_a_table_that_replaced_the_modules_own_are_removed(net, images):
    """Some networks exchange the table itself, to put a hook first."""
    seen = []

    def add(module, _args):
        module._forward_hooks = OrderedDict({-1: lambda *_: seen.append(1)})

    handle = net.fc.register_forward_pre_hook(add)
    AverageDrop(GradCAM(net, "body")).update(images)
    handle.remove()
    assert seen
    assert not net.fc._forward_hooks


def test_the_parameters_are_frozen_inside_and_keep_their_flags(net, images):
    flags = {}
    net.fc.bias.requires_grad_(False)
    handle = net.fc.register_forward_pre_hook(
        lambda *_: flags.update({name: one.requires_grad for name, one in net.named_parameters()})
    )
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: saved.append(tensor.shape) or tensor, lambda t: t
    ):
        AverageDrop(GradCAM(net, "body")).update(images)
    handle.remove()
    assert not any(flags.values())
    assert all(one.requires_grad for name, one in net.named_parameters() if name != "fc.bias")
    assert not net.fc.bias.requires_grad
    # The input of the linear layer, (4, 8), would only be needed for the gradient of its weight.
    assert torch.Size([4, 8]) not in saved


def test_a_source_may_need_gradients_of_parameters(net, images):
    class GradientNorm(CAMSource):
        """The norm of the gradient of the score with respect to the weights of the head, at every pixel."""

        graph = "head"

        def __init__(self, model):
            self.model = model

        @property
        def layers(self):
            return [self.model.body]

        @contextmanager
        def recording(self):
            self.model.fc.weight.requires_grad_()
            yield

        def maps(self, forward):
            score = forward.selector.select(forward.explained_output).sum()
            (gradient,) = torch.autograd.grad(score, [self.model.fc.weight])
            return SourceMaps([gradient.norm().expand(forward.images[:, 0].shape)])

    expected = torch.autograd.grad(net(images)[:, 1].sum(), [net.fc.weight])[0].norm()
    maps = explain(GradientNorm(net), images, 1).maps
    torch.testing.assert_close(maps, expected.expand(maps.shape))
