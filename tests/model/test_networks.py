"""Models, extractors and surroundings as people have them, each of which once broke something."""

import copy
from functools import partial

import pytest
import torch
from conftest import Calls, small_net
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torchcam import methods
from torchcam.metrics import ClassificationMetric as TorchcamMetric

from torchmetrics_cam import AverageDrop, AverageGain, ClassificationMetric, EvaluationProtocol, explain
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
    as_source,
)

SOFTMAX = partial(torch.softmax, dim=-1)
OWN = [GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, HiResCAM]


def value(metric, *args, **kwargs):
    metric.update(*args, **kwargs)
    return metric.compute()


def input_gradient(model, images, class_idx):
    return torch.autograd.grad(model(images).gather(1, class_idx[:, None]).sum(), images)[0].abs().sum(1)


class Temperature(nn.Module):
    """A logits_fn with a weight of its own."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, logits):
        return (logits * self.scale).softmax(-1)


class HandWritten:
    """No hook and no name of torchcam's: only the behavior, with parameters called as it likes."""

    def __init__(self, model):
        self.model = model
        self.hook_handles = [None]  # a name of torchcam's, with another meaning

    def __call__(self, index, out):
        weights = self.model.body.weight.detach().abs().sum((1, 2, 3))
        return [weights.sum() * torch.ones(len(out), 3, 3, dtype=torch.float64).cumsum(1)]

    def fuse_cams(self, cams):
        return cams[0]


class Holder(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.model = small_net()
        self.temperature = Temperature()
        self.metric = AverageDrop(make(self.model), self.temperature)


FOLLOWERS = {
    "own": lambda model: GradCAM(model, "body"),
    "torchcam": lambda model: methods.GradCAM(model, "body"),
    "wrapper": lambda model: methods.RefineCAM(model, ["stem", "body"]),
    "hand-written": HandWritten,
    "callable": lambda model: CallableSource(model, input_gradient),
    "control": RandomMap,
}


@pytest.mark.parametrize("make", FOLLOWERS.values(), ids=FOLLOWERS)
@pytest.mark.parametrize("updated", [False, True], ids=["before an update", "after one"])
def test_a_copied_module_measures_the_copied_model(images, make, updated):
    original = Holder(make)
    if updated:
        original.metric.update(images)
    copied = copy.deepcopy(original)
    assert copied.metric.source.model is copied.model
    assert copied.metric._pipeline.score_function.logits_fn is copied.temperature
    with torch.no_grad():
        for parameter in copied.model.parameters():
            parameter.mul_(0.9)
    copied.metric.reset()
    fresh = Holder(make)
    fresh.model.load_state_dict(copied.model.state_dict())
    assert torch.equal(value(copied.metric, images), value(fresh.metric, images))
    original.metric.reset()
    assert not torch.equal(value(original.metric, images), copied.metric.compute())
    assert original.metric.clone().source.model is original.model


@pytest.mark.parametrize("cls", OWN)
@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_maps_are_made_in_full_precision_under_autocast(images, cls, scale):
    """Small gradients vanish in half precision, and then a method would look worse for it than another."""
    model = small_net().float()
    # The head alone is small: its gradient is exact in half precision, so that only the formula can lose it.
    model.fc.weight.data = model.fc.weight.data.mul(scale)
    source = cls(model, "body")
    seen = []
    formula = source.formula
    source.formula = lambda *tensors: seen.append((tensors, formula(*tensors))) or seen[-1][1]
    with torch.autocast("cpu", dtype=torch.float16):
        explain(source, images.float(), class_idx=1)
    (tensors, made) = seen[0]
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, formula(*tensors), rtol=1e-5, atol=0)
    assert made.abs().max() > 0


class InPlace(nn.Module):
    """Normalizes its input in place."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.sub_(0.5).div_(0.25))


class OutOfPlace(InPlace):
    def forward(self, x):
        return self.net((x - 0.5) / 0.25)


class Subclass(methods.GradCAM):
    """Not torchcam's own class, so it gets the graph of the whole network."""


INPUTS = {
    "own": lambda model: GradCAM(model, "net.body"),
    "subclass of torchcam's": lambda model: Subclass(model, "net.body"),
    "random": RandomMap,
}


@pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
def test_a_model_that_changes_its_input_gives_the_number_of_one_that_does_not(net, images, make):
    kept = images.clone()
    inplace, expected = (value(AverageDrop(make(cls(net))), images) for cls in (InPlace, OutOfPlace))
    assert torch.equal(inplace, expected)
    assert torch.equal(images, kept)


def test_a_callable_sees_the_images_as_they_were_given(net, images):
    seen = []
    source = CallableSource(
        InPlace(net), lambda model, x, class_idx: seen.append(x.detach().clone()) or x.sum(1)
    )
    AverageDrop(source).update(images)
    assert torch.equal(seen[0], images)


class Merging(nn.Linear):
    """Merges an adapter into its weight in evaluation mode, as low-rank adapters do."""

    merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode is self.merged:
            self.weight.data += -1 if mode else 1
            self.merged = not mode
        return self


@pytest.mark.parametrize("mixed", [False, True])
def test_adapters_that_merge_in_evaluation_mode_are_unmerged_again(images, mixed):
    model = small_net()
    model.fc = Merging(8, 5).double().train()
    model.train()
    if mixed:
        model.stem.eval()
    weight = model.fc.weight.detach().clone()
    metric = AverageDrop(GradCAM(model, "body"))
    metric.update(images)
    assert not model.fc.merged
    torch.testing.assert_close(model.fc.weight, weight)
    assert [module.training for module in (model, model.fc, model.stem)] == [True, True, not mixed]


class Counting(nn.Module):
    """Writes to its buffers in evaluation mode: one in place, one anew."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.seen += x.abs().max().detach().float()
        self.calls = self.calls + 1
        return self.net(x)


def test_buffers_that_change_in_evaluation_mode_are_put_back(net, images):
    model = Counting(net)
    buffers = dict(model.named_buffers())
    values = {name: buffer.clone() for name, buffer in buffers.items()}
    AverageDrop(GradCAM(model, "net.body")).update(images)
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name]
        assert torch.equal(buffer, values[name])


def test_a_training_graph_over_the_update_can_still_be_used(net, images):
    net.stem[1].eval()
    loss = net(images).sum()
    AverageDrop(CallableSource(net, input_gradient)).update(images)
    AverageDrop(GradCAM(net, "body")).update(images)
    loss.backward()
    assert net.stem[0].weight.grad.abs().sum() > 0


def test_weights_cached_by_parametrize_keep_their_gradients(images):
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    metric = AverageDrop(GradCAM(model, "1"))
    with parametrize.cached():
        metric.update(images)
        model(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_callable_that_calls_backward_runs_no_gradient_hook_of_the_users(net, images):
    for parameter in net.parameters():
        parameter.register_post_accumulate_grad_hook(lambda *_: pytest.fail("an optimizer would step"))

    def with_backward(model, x, class_idx):
        model(x).gather(1, class_idx[:, None]).sum().backward()
        return x.grad.abs().sum(1)

    assert value(AverageDrop(CallableSource(net, with_backward)), images) > 0
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_callable_may_register_full_backward_hooks(net, images):
    def with_hook(model, x, class_idx):
        model.fc.register_full_backward_hook(lambda *_: None)
        return input_gradient(model, x, class_idx)

    AverageDrop(CallableSource(net, with_hook)).update(images)
    assert net.fc._is_full_backward_hook is None


def test_a_hook_that_removes_itself_stays_away(net, images):
    handle = net.register_forward_pre_hook(lambda *_: handle.remove())
    AverageDrop(GradCAM(net, "body")).update(images)
    assert not net._forward_pre_hooks


@pytest.mark.parametrize("make", [UniformMap, lambda model: GradCAM(model, "0")], ids=["control", "gradient"])
def test_lazy_models_are_refused_before_they_take_a_shape(images, make):
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten()).double()
    with pytest.raises(
        ValueError, match=r"'0\.weight' is lazy and has no shape yet; run the model once before"
    ):
        AverageDrop(make(model)).update(images)
    model(images)
    AverageDrop(make(model)).update(images)


def test_a_weight_of_another_dtype_in_front_does_not_change_the_images(images):
    class Mixed(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.temperature = nn.Parameter(torch.ones((), dtype=torch.float64))
            self.net = net

        def forward(self, x):
            return self.net(x) / self.temperature

    net = small_net().float()
    expected = value(AverageDrop(GradCAM(net, "body")), images.float())
    mixed = Mixed(net)
    assert value(AverageDrop(GradCAM(mixed, "net.body")), images.float()).item() == pytest.approx(
        expected.item()
    )
    # No weight of the model is bfloat16, and most of them are float32.
    bfloat = value(AverageDrop(GradCAM(net, "body")), images.bfloat16())
    assert bfloat.item() == pytest.approx(expected.item(), rel=0.1)


@pytest.mark.parametrize("make", [UniformMap, CenterMap, PrecomputedMaps], ids=lambda make: make.__name__)
def test_a_model_made_in_inference_mode_serves_where_no_gradient_is_needed(images, make):
    with torch.inference_mode():
        model = small_net()
    cams = torch.rand(4, 3, 3) if make is PrecomputedMaps else None
    metric = AverageDrop(make(model))
    metric.update(images, cams=cams)
    assert metric.total == 4


def test_an_extractor_without_its_hooks_is_refused_with_the_reason(net, images):
    extractor = methods.GradCAM(net, "body")
    metric = ClassificationMetric(extractor, SOFTMAX)
    metric.update(images)
    net.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    hooks = net.body._forward_hooks.copy()
    net.body._forward_hooks.clear()
    with pytest.raises(ValueError, match=r"hooks of GradCAM.* are gone from the model: remove_hooks\(\)"):
        metric.update(images)
    net.body._forward_hooks.update(hooks)
    extractor.remove_hooks()
    with pytest.raises(ValueError, match="convert_sync_batchnorm"):
        metric.update(images)
    assert metric.total == 4


def test_targets_are_refused_early_by_an_extractor_that_has_none(images):
    model = small_net()
    metric = AverageDrop(methods.CAM(model, "relu", "fc"))
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match="explains a class, not an arbitrary target"):
        metric.update(images, targets=lambda scores: scores[0])


def test_a_score_without_a_gradient_says_why(net, images):
    metric = AverageDrop(
        GradCAM(net, "body"), lambda z: z.detach().softmax(-1), protocol=EvaluationProtocol(cam_of="scores")
    )
    with pytest.raises(RuntimeError, match="the explained score has no gradient at layer 'body'"):
        metric.update(images)


def test_an_output_that_only_logits_fn_understands_costs_no_third_forward_pass(net, images):
    class Dict(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return {"scores": self.net(x)}

    model = Dict()
    metric = AverageDrop(
        GradCAM(model, "net.body"),
        lambda output: output["scores"].softmax(-1),
        protocol=EvaluationProtocol(cam_of="scores"),
    )
    with Calls(model) as calls:
        metric.update(images)
    assert calls.batches == [4, 4]


def test_hand_written_extractors_may_name_their_parameters_as_they_like(net, images):
    told = []
    for cls in (TorchcamMetric, ClassificationMetric):
        extractor = HandWritten(net)
        extractor._hooks_off = torch.no_grad
        metric = cls(extractor, SOFTMAX)
        metric.update(images, 2)
        told.append(metric.summary())
    assert told[0] == pytest.approx(told[1], abs=1e-6)


def test_absolute_values_reach_the_maps_of_torchcam(net, images):
    """Its extractors clip at zero by themselves; the protocol says otherwise."""
    absolute, paper = EvaluationProtocol(rectify="abs"), EvaluationProtocol()
    ours, theirs, clipped = (
        explain(as_source(source), images, protocol=protocol, class_idx=[0, 1, 2, 4]).maps
        for source, protocol in (
            (GradCAM(net, "stem"), absolute),
            (methods.GradCAM(net, "stem"), absolute),
            (methods.GradCAM(net, "stem"), paper),
        )
    )
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours, clipped)


def test_average_gain_of_what_is_no_fraction_warns(net, images):
    metric = AverageGain(GradCAM(net, "body"), lambda logits: logits)
    metric.update(images, 1)
    with pytest.warns(UserWarning, match=r"scores lie outside of \[0, 1\]"):
        metric.compute()


def test_a_constant_map_has_no_top(net, images):
    top = EvaluationProtocol(mask="top")
    assert value(AverageDrop(UniformMap(net), protocol=top), images) == 0
    assert value(AverageDrop(CenterMap(net), protocol=top), images) > 0


def test_a_shared_layer_has_two_names(net):
    net.again = net.body
    assert GradCAM(net, "again").layer_names == ("again",)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda net: GradCAM("resnet18", "body"), TypeError, "model is a str; it must be a torch.nn.Module"),
        (lambda net: AverageDrop(UniformMap(None)), TypeError, "the model of the source is a NoneType"),
        (
            lambda net: GradCAM(net, "body", reshape_transform=3),
            TypeError,
            "reshape_transform is 3; it must be",
        ),
        (lambda net: CenterMap(net, sigma=0), ValueError, r"CenterMap\(sigma=0\): it must be positive"),
        (
            lambda net: RandomMap(net, grid=0),
            ValueError,
            r"RandomMap\(grid=0\): it must be a positive number",
        ),
        (lambda net: AverageDrop(RandomMap(net), protocol=""), ValueError, "protocol='' is not a preset"),
        (
            lambda net: EvaluationProtocol(baseline=[0.0, 1.0]),
            ValueError,
            r"baseline=\[0.0, 1.0\]\): it must be",
        ),
        (lambda net: EvaluationProtocol(baseline=float("nan")), ValueError, "baseline=nan"),
        (lambda net: EvaluationProtocol(normalize_eps=float("nan")), ValueError, "normalize_eps=nan"),
        (lambda net: EvaluationProtocol(mask_fraction="half"), ValueError, "mask_fraction='half'"),
    ],
)
def test_constructors_refuse_what_could_only_fail_later(net, make, error, message):
    with pytest.raises(error, match=message):
        make(net)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.filterwarnings("ignore:.*is not supported in Python 3.14")
def test_scripted_models_have_no_layers(net):
    with pytest.raises(TypeError, match="a scripted or traced model has no layers to record"):
        GradCAM(torch.jit.script(net), "body")


def test_a_protocol_that_is_not_the_papers_is_not_called_so(net):
    metric = AverageDrop(GradCAM(net, "body"), protocol=EvaluationProtocol(mask="top"))
    assert repr(metric) == "AverageDrop(GradCAM(SmallNet, body), protocol='modified paper')"


class ReadsOneCorner(nn.Module):
    """A pixel elsewhere changes no score, finite or not."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 3).double()

    def forward(self, x):
        return self.fc(x[:, :, :2, :2].flatten(1))


def test_an_image_with_a_broken_pixel_is_excluded_also_where_the_model_does_not_look(images):
    images[2, 0, 9, 9] = float("nan")
    metric = AverageDrop(CenterMap(ReadsOneCorner()))
    metric.update(images)
    assert (metric.total, metric.nan_count) == (3, 1)


def test_a_broken_map_does_not_reach_the_model(net, images):
    """Hidden whole instead, so that a network which mixes the samples of a batch keeps its numbers."""
    seen = []
    net.register_forward_pre_hook(lambda _module, args: seen.append(args[0].isfinite().all().item()))
    cams = torch.rand(4, 3, 3)
    cams[1, 0, 0] = float("nan")
    AverageDrop(PrecomputedMaps(net)).update(images, cams=cams)
    assert seen == [True, True]


@pytest.mark.parametrize("make", FOLLOWERS.values(), ids=FOLLOWERS)
def test_everything_of_a_batch_may_be_made_in_inference_mode(net, images, make):
    """As `trainer.validate` and `trainer.test` do it."""
    expected = value(AverageDrop(make(net)), images, torch.tensor([0, 1, 2, 3]))
    with torch.inference_mode():
        metric = AverageDrop(make(net))
        metric.reset()
        measured = value(metric, images.clone(), torch.tensor([0, 1, 2, 3]))
    assert torch.equal(measured, expected)
    metric.update(images, torch.tensor([0, 1, 2, 3]))
    assert metric.total == 8
