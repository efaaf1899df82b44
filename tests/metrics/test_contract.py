"""What TorchMetrics, Lightning and DDP demand of a metric that holds a model: a test a rule, in their order.

Rules 18 and 19 need several processes (test_distributed.py), rule 20 a Trainer (test_evaluate.py).
"""

import copy
import inspect
import pickle
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import Calls, small_net
from matplotlib.figure import Figure
from processes import results_of
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torchcam import methods
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.utilities.data import dim_zero_sum
from torchmetrics.wrappers import BootStrapper

from torchmetrics_cam import (
    ADCC,
    ROAD,
    AverageDrop,
    AverageGain,
    AverageSensitivity,
    CAMComparison,
    ClassificationMetric,
    ClassSensitivity,
    Coherency,
    Complexity,
    DeletionAUC,
    DropInDeletion,
    EnergyPointingGame,
    Entropy,
    EvaluationProtocol,
    FaithfulnessCorrelation,
    IncreaseInConfidence,
    InsertionAUC,
    LocalizationAUC,
    MaskIoU,
    MaxSensitivity,
    PointingGame,
    RelevanceRankAccuracy,
    SingleDeletion,
    Sparseness,
    SymmetricRelevanceGain,
    TopKIntersection,
)
from torchmetrics_cam.cams import CallableSource, GradCAM, PrecomputedMaps, UniformMap
from torchmetrics_cam.metrics.measures import MEASURES

SCALAR = [
    AverageDrop, IncreaseInConfidence, AverageGain, DropInDeletion, DeletionAUC, InsertionAUC, ROAD, Complexity,
    Sparseness, Entropy, Coherency, ADCC, SymmetricRelevanceGain, SingleDeletion, FaithfulnessCorrelation,
    MaxSensitivity, AverageSensitivity, ClassSensitivity,
]  # fmt: skip
LOCALIZATION = [
    EnergyPointingGame, PointingGame, MaskIoU, RelevanceRankAccuracy, LocalizationAUC, TopKIntersection,
]  # fmt: skip
ALL = [*SCALAR, ClassificationMetric]
SOFTMAX = partial(torch.softmax, dim=-1)


def states(metric):
    return {name: getattr(metric, name).clone() for name in metric._defaults}


def assert_same_states(metric, before):
    for name, state in before.items():
        torch.testing.assert_close(getattr(metric, name), state, rtol=0, atol=0)


# The metric


@pytest.mark.parametrize("cls", ALL)
def test_rule_01_constants_are_of_the_class_and_cannot_be_set(net, cls):
    metric = cls(GradCAM(net, "body"))
    assert (cls.is_differentiable, cls.full_state_update) == (False, False)
    other_bounds = {DropInDeletion: (None, 1.0), ROAD: (-0.5, 0.5)}
    other_bounds |= dict.fromkeys((Entropy, MaxSensitivity, AverageSensitivity), (0.0, None))
    other_bounds |= dict.fromkeys(
        (SymmetricRelevanceGain, SingleDeletion, FaithfulnessCorrelation), (-1.0, 1.0)
    )
    bounds = other_bounds.get(cls, (0.0, 1.0))
    assert (cls.plot_lower_bound, cls.plot_upper_bound) == bounds
    for constant in ("higher_is_better", "is_differentiable", "full_state_update"):
        assert constant not in vars(metric)
        with pytest.raises(RuntimeError, match="Can't change const"):
            setattr(metric, constant, True)
    assert not hasattr(metric, "feature_network")


def test_rule_01_higher_is_better_as_the_measure_says():
    lower = {AverageDrop, DeletionAUC, Complexity, Entropy, MaxSensitivity, AverageSensitivity}
    assert {cls for cls in SCALAR if not cls.higher_is_better} == lower
    assert ClassificationMetric.higher_is_better is None
    for cls in SCALAR:
        (measure,) = (one for one in MEASURES.values() if one.name.replace("_", "") == cls.__name__.lower())
        assert cls.higher_is_better is measure.higher_is_better


@pytest.mark.parametrize("cls", ALL)
def test_rule_02_arguments_of_every_metric_are_taken_and_states_add_up(net, cls):
    settings = {"compute_on_cpu": True, "dist_sync_on_step": True, "sync_on_compute": False}
    metric = cls(GradCAM(net, "body"), **settings)
    assert {name: getattr(metric, name) for name in settings} == settings
    assert {"total", "nan_count", "degenerate_count", "outside_count"} < set(metric._defaults)
    sums = {name for name, reduction in metric._reductions.items() if reduction is dim_zero_sum}
    assert sums == set(metric._defaults) - {"identity"}
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `no_such_setting`"):
        cls(GradCAM(net, "body"), no_such_setting=1)


def test_rule_03_gradients_are_on_for_the_cam_and_off_for_what_is_stored(net, images):
    """The base class runs update without gradients, and inside of forward with them."""
    by_update, by_forward = AverageDrop(GradCAM(net, "body")), AverageDrop(GradCAM(net, "body"))
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            by_update.update(images)
            by_forward(images)
            assert torch.is_grad_enabled() is gradients
    assert_same_states(by_forward, states(by_update))
    assert not any(state.requires_grad for state in states(by_forward).values())


@pytest.mark.parametrize(
    "cast", ["bfloat16", "half", "set_dtype"], ids=["to(torch.bfloat16)", "half()", "set_dtype"]
)
def test_rule_04_counters_stay_integers_and_drop_keeps_its_precision(net, images, cast):
    metric = AverageDrop(GradCAM(net, "body"))
    metric.update(images)
    before = metric.compute()
    if cast == "set_dtype":
        metric.set_dtype(torch.float16)
    else:
        getattr(metric, cast)()
    assert {metric.increase.dtype, metric.total.dtype, metric.nan_count.dtype} == {torch.int64}
    assert metric.drop.dtype == torch.float64
    assert torch.equal(metric.compute(), before)
    metric.reset()
    assert (metric.total.dtype, metric.drop.dtype) == (torch.int64, torch.float64)
    assert next(net.parameters()).dtype == torch.float64


def test_rule_04_a_thousand_increments_are_a_thousand(images):
    metric = AverageDrop(UniformMap(nn.Flatten())).to(torch.bfloat16)
    for _ in range(1000):
        metric.update(images[:1])
    assert metric.total == 1000


def test_rule_04_a_checkpoint_in_half_precision_makes_no_half_precise_counter(net, images):
    metric = AverageDrop(GradCAM(net, "body"))
    metric.persistent(True)
    metric.update(images)
    metric.load_state_dict({name: state.bfloat16() for name, state in metric.state_dict().items()})
    assert (metric.total.dtype, metric.drop.dtype) == (torch.int64, torch.float64)
    assert metric.total == 4


def test_rule_05_a_state_reset_in_inference_mode_can_be_added_to_outside(net, images):
    """validate, then fit, then validate: in inference mode, outside, and in it again."""
    metric, whole = AverageDrop(GradCAM(net, "body")), AverageDrop(GradCAM(net, "body"))
    with torch.inference_mode():
        metric.update(images)
        metric.reset()
    before = metric.total
    metric.update(images[:2])
    assert metric.total is not before
    with torch.inference_mode():
        metric.update(images[2:])
    metric.update(images)
    whole.update(images)
    whole.update(images)
    assert metric.total == 8
    assert metric.drop.item() == pytest.approx(whole.drop.item(), rel=1e-12)
    assert (metric.drop.dtype, metric.total.dtype) == (torch.float64, torch.int64)


@pytest.mark.parametrize("failure", ["refused class", "model", "interrupt"])
def test_rule_06_a_forward_that_raises_loses_nothing(images, failure):
    net = small_net()
    metric = AverageDrop(GradCAM(net, "body"))
    metric(images)
    before, count = states(metric), metric.update_count
    settings = (metric._enable_grad, metric._to_sync, metric._should_unsync, metric.compute_on_cpu)
    if failure == "refused class":
        with pytest.raises(ValueError, match="out of range"):
            metric(images, 99)
    else:
        error = ArithmeticError if failure == "model" else KeyboardInterrupt

        def fail(*_):
            raise error

        handle = net.register_forward_pre_hook(fail)
        with pytest.raises(error):
            metric(images)
        handle.remove()
    assert_same_states(metric, before)
    assert metric.update_count == count
    assert settings == (metric._enable_grad, metric._to_sync, metric._should_unsync, metric.compute_on_cpu)
    assert metric.compute() > 0


@pytest.mark.parametrize("cls", SCALAR)
def test_rule_07_compute_is_one_scalar_tensor(net, images, cls):
    metric = cls(GradCAM(net, "body"))
    with pytest.warns(UserWarning, match="was called before the ``update`` method"):
        assert metric.compute().isnan()
    metric.update(images)
    assert metric.compute().shape == ()


@pytest.mark.parametrize("cls", SCALAR)
def test_rule_19_any_split_into_batches_and_any_merge_gives_the_same_value(net, images, cls):
    whole, split, shard = (cls(GradCAM(net, "body")) for _ in range(3))
    whole.update(images)
    split.update(images[3:])
    split(images[:1])
    shard.update(images[1:3])
    split.merge_state(shard)
    assert split.compute().item() == pytest.approx(whole.compute().item(), rel=1e-6, abs=1e-9)
    assert int(split.total) == len(images)


def test_rule_07_the_summary_of_nothing_is_an_assertion_error_as_torchcams(net):
    with pytest.raises(AssertionError, match="you need to update the metric before getting the summary"):
        ClassificationMetric(GradCAM(net, "body")).summary()


# Holding the model and the extractor


@pytest.mark.parametrize("make", [GradCAM, methods.GradCAM], ids=["own", "torchcam"])
def test_rule_08_the_model_is_no_part_of_the_metric(images, make):
    net = small_net().train()
    metric = AverageDrop(make(net, "body"))
    metric.update(images)
    assert metric.state_dict() == {}
    assert list(metric.parameters()) == []
    assert list(metric.children()) == []
    metric.eval().to(torch.bfloat16).requires_grad_(False)
    assert net.training
    assert all(weight.dtype == torch.float64 and weight.requires_grad for weight in net.parameters())
    holder = nn.ModuleDict({"net": net, "metric": metric})
    assert {name.split(".")[0] for name in holder.state_dict()} == {"net"}


def test_rule_09_clones_share_the_model_and_copies_of_both_follow_the_copy(net, images):
    metric = AverageDrop(GradCAM(net, "body"))
    metric.update(images)
    for clone in (metric.clone(), MetricCollection([metric]).clone()["AverageDrop"]):
        assert clone.source.model is net
        assert torch.equal(clone.compute(), metric.compute())
    copied = copy.deepcopy(nn.ModuleDict({"net": net, "metric": metric}))
    assert copied["metric"].source.model is copied["net"]
    assert copied["net"] is not net
    unpickled = pickle.loads(pickle.dumps(metric))
    assert unpickled.source.model is not net
    unpickled.update(images)
    metric.update(images)
    assert torch.equal(unpickled.compute(), metric.compute())


@pytest.mark.parametrize("failing", [False, True], ids=["after an update", "after a failed one"])
def test_rule_10_model_and_metric_can_be_copied_and_hooks_are_as_they_were(net, images, failing):
    extractor = methods.GradCAM(net, "body")
    extractor.disable_hooks()
    metric = ClassificationMetric(extractor, SOFTMAX)
    if failing:
        with pytest.raises(ValueError, match="class_idx 7 is out of range"):
            metric.update(images, 7)
    else:
        metric.update(images)
    assert not extractor._hooks_enabled
    assert (extractor.hook_a, extractor.hook_g) == ([None], [None])
    copy.deepcopy(net)
    copy.deepcopy(nn.ModuleDict({"net": net, "metric": metric}))
    clone = metric.clone()
    assert clone.source.extractor is extractor
    clone.update(images)
    assert clone.total == metric.total + 4


def test_rule_11_an_extractor_that_lost_its_hooks_is_refused(images):
    """Converting batch norm to SyncBatchNorm replaces the layers, and with them the hooks."""
    net = small_net()
    metric = AverageDrop(methods.GradCAM(net, "stem.1"))
    nn.SyncBatchNorm.convert_sync_batchnorm(net)
    with pytest.raises(ValueError, match=r"are gone from the model.*make a new extractor"):
        metric.update(images)


@pytest.mark.parametrize("layer", ["body", "stem.1"])
def test_rule_11_own_cams_follow_the_layers_that_take_their_place(net, images, layer):
    metric, before = AverageDrop(GradCAM(net, layer)), AverageDrop(GradCAM(net, layer))
    before.update(images)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert isinstance(converted.stem[1], nn.SyncBatchNorm)
    metric.update(images)
    assert torch.equal(metric.compute(), before.compute())


# Gradients where there are none

HOSTS = {
    "no_grad, as in fit": torch.no_grad,
    "inference_mode, as in validate and test": torch.inference_mode,
    "gradients on": torch.enable_grad,
}


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("make", [GradCAM, methods.GradCAM], ids=["own", "torchcam"])
def test_rule_12_every_hook_of_a_trainer_gives_the_same_number(net, images, make, host):
    expected, metric = AverageDrop(make(small_net(), "body")), AverageDrop(make(net, "body"))
    expected.update(images)
    with HOSTS[host]():
        metric.update(images.clone())
        value = metric.compute()
    assert torch.equal(value, expected.compute())


def test_rule_13_a_source_may_differentiate_by_the_images_of_inference_mode(net):
    def saliency(model, images, class_idx):
        scores = model(images).gather(1, class_idx.unsqueeze(1)).sum()
        return torch.autograd.grad(scores, images)[0].abs().sum(1)

    metric = AverageDrop(CallableSource(net, saliency))
    with torch.inference_mode():
        images = torch.rand(2, 3, 12, 12, dtype=torch.float64)
        metric.update(images)
        assert images.is_inference()
        assert not images.requires_grad
    assert metric.total == 2


def test_rule_14_a_model_made_in_inference_mode_is_refused_with_the_fix(images):
    with torch.inference_mode():
        model = small_net()
    with pytest.raises(
        ValueError,
        match=r"'stem.0.weight' was created under torch.inference_mode\(\).*load the model outside",
    ):
        AverageDrop(GradCAM(model, "body")).update(images)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rule_15_images_maps_and_masks_take_the_models_dtype(images, dtype):
    """Also where the metric was cast with the LightningModule that it is in."""
    seen = []
    module = nn.ModuleDict({"net": small_net()})
    module["metric"] = AverageDrop(GradCAM(module["net"], "body"))
    module.to(dtype)
    module["net"].register_forward_pre_hook(lambda _m, args: seen.append(args[0].dtype))
    module["metric"].update(images)
    assert seen == [dtype, dtype]
    assert module["metric"].drop.dtype == torch.float64
    assert 0 < module["metric"].compute() < 1


def test_rule_15_autocast_is_that_of_the_host_in_both_passes(images):
    seen = []
    net = small_net().float()
    net.fc.register_forward_hook(lambda _m, _a, output: seen.append(output.dtype))
    metric = AverageDrop(GradCAM(net, "body"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metric.update(images)
    assert seen == [torch.bfloat16, torch.bfloat16]
    assert 0 < metric.compute() < 1


@pytest.mark.parametrize("failing", [False, True], ids=["after an update", "after a failed one"])
def test_rule_16_gradients_statistics_and_modes_are_what_they_were(images, failing):
    net = small_net().train()
    net.dropout.eval()
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    before = copy.deepcopy(net.state_dict())
    metric = AverageDrop(GradCAM(net, "body"))
    if failing:
        with pytest.raises(ValueError, match="out of range"):
            metric.update(images, 99)
    else:
        metric.update(images)
    assert torch.equal(net.fc.weight.grad, torch.ones_like(net.fc.weight))
    assert all(weight.grad is None for weight in net.parameters() if weight is not net.fc.weight)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert not net.dropout.training
    assert torch.is_grad_enabled()


# DDP


def uneven_batches_through_the_wrapper(rank: int, world_size: int) -> float:
    """Five batches on one rank and three on the other; through the wrapper the fourth would never return."""
    net = DistributedDataParallel(small_net().train())
    metric = AverageDrop(GradCAM(net, "body"))
    images = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for index in range(5) if rank == 0 else range(5, 8):
        metric.update(images[index : index + 1])
    return metric.compute().item()


def test_rule_17_ranks_with_uneven_batches_do_not_wait_for_each_other(tmp_path):
    first, second = results_of(uneven_batches_through_the_wrapper, 2, tmp_path)
    metric = AverageDrop(GradCAM(small_net(), "body"))
    metric.update(torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert first == second == pytest.approx(metric.compute().item(), rel=1e-6)


def compiled_inside(net):
    net.body = torch.compile(net.body, backend="eager")
    return net


def compiled_in_place(net):
    net.compile(backend="eager")
    return net


COMPILED = {
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "compiled in place": compiled_in_place,
    "a compiled layer": compiled_inside,
    "DataParallel": nn.DataParallel,
    "both": lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
}


@pytest.mark.parametrize("wrap", COMPILED)
@pytest.mark.parametrize("by_name", [True, False], ids=["layer by name", "layer by module"])
def test_rule_17_compiled_and_wrapped_models_give_the_number_of_the_model(net, images, wrap, by_name):
    """Hooks are skipped in a module that was compiled before they were registered."""
    plain, wrapped = small_net(), COMPILED[wrap](net)
    with torch.no_grad():
        wrapped(images)
    metric, expected = (
        AverageDrop(GradCAM(wrapped, "body" if by_name else net.body)),
        AverageDrop(GradCAM(plain, "body")),
    )
    expected.update(images)
    with torch.inference_mode():
        metric.update(images)
    assert torch.equal(metric.compute(), expected.compute())
    with torch.no_grad():
        assert torch.equal(wrapped(images), plain(images))


def test_rule_17_names_may_be_those_of_the_wrapped_model(net):
    compiled = torch.compile(nn.DataParallel(net), backend="eager")
    name = "_orig_mod.module.body"
    assert dict(compiled.named_modules())[name] is net.body
    assert GradCAM(compiled, name).layer_names == ("body",)


def test_rule_17_extractors_of_a_wrapped_model_run_the_model_inside(net, images):
    wrapped, expected = (
        nn.DataParallel(net),
        ClassificationMetric(methods.GradCAM(small_net(), "body"), SOFTMAX),
    )
    extractor = methods.GradCAM(wrapped, "module.body")
    metric = ClassificationMetric(extractor, SOFTMAX)
    wrapped.register_forward_pre_hook(lambda *_: pytest.fail("the wrapper ran"))
    metric.update(images)
    expected.update(images)
    assert metric.summary() == expected.summary()
    assert extractor.model is wrapped
    with pytest.raises(ValueError, match=r"ScoreCAM has hooks on a DataParallel.*on the model inside"):
        AverageDrop(methods.ScoreCAM(wrapped, "module.body"))


# MetricCollection


def test_rule_21_metrics_on_one_source_and_protocol_run_once_a_batch(net, images):
    source = GradCAM(net, "body")
    collection = MetricCollection([AverageDrop(source), IncreaseInConfidence(source), AverageGain(source)])
    collection.update(input_tensor=images)
    assert len(collection.compute_groups) == 1
    with Calls(net) as calls:
        collection.update(input_tensor=images)
    assert calls.batches == [4, 4]


def test_rule_21_sources_whose_first_batch_was_equal_do_not_merge(net, images):
    first, second = PrecomputedMaps(net), PrecomputedMaps(small_net(seed=7))
    collection = MetricCollection({"first": AverageDrop(first), "second": AverageDrop(second)})
    second.model.load_state_dict(net.state_dict())
    collection.update(input_tensor=images, cams=torch.zeros(4, 3, 3))
    assert torch.equal(*collection.compute().values())
    assert len(collection.compute_groups) == 2
    second.model.load_state_dict(small_net(seed=7).state_dict())
    collection.update(input_tensor=images, cams=torch.rand(4, 3, 3))
    assert collection["first"].compute() != collection["second"].compute()


def test_rule_22_keywords_work_beside_an_accuracy_and_predictions_are_not_taken_for_images(net, images):
    collection = MetricCollection(
        {"accuracy": MulticlassAccuracy(5), "drop": AverageDrop(GradCAM(net, "body"))}
    )
    target = torch.tensor([0, 1, 2, 3])
    collection.update(preds=net(images), target=target, input_tensor=images)
    assert collection.compute()["drop"] > 0
    with pytest.raises(
        ValueError, match=r"input_tensor has shape \(4, 5\); images are \(N, C, \*spatial\).*by name"
    ):
        collection.update(net(images), target)
    assert "target" not in inspect.signature(AverageDrop.update).parameters


def test_rule_23_forward_of_a_collection_shares_nothing_and_is_right(net, images):
    """TorchMetrics' way; the README therefore shows update and compute."""
    source = GradCAM(net, "body")
    collection = MetricCollection([AverageDrop(source), IncreaseInConfidence(source)])
    collection(images)
    with Calls(net) as calls:
        batch = collection(images[:2])
    assert calls.batches == [2, 2] * 2
    alone = AverageDrop(source)
    alone.update(images[:2])
    assert torch.equal(batch["AverageDrop"], alone.compute())
    alone.update(images)
    assert collection.compute()["AverageDrop"].item() == pytest.approx(alone.compute().item(), rel=1e-12)


# Habits of TorchMetrics


@pytest.mark.parametrize("cls", ALL)
def test_rule_24_values_are_plain_float32_tensors_and_sums_are_exact(net, images, cls):
    metric = cls(GradCAM(net, "body"), SOFTMAX)
    tagged = images.as_subclass(Tagged)
    for value in (metric(tagged), metric.compute()):
        for part in value.values() if isinstance(value, dict) else [value]:
            assert type(part) is torch.Tensor
            assert (part.dtype, part.dtype) == (torch.float32, metric.dtype)
    assert {type(getattr(metric, name)) for name in metric._defaults} == {torch.Tensor}
    # The Trainer moves a metric to its device, and `evaluate` moves it back.
    exact = cls(GradCAM(net, "body"), SOFTMAX).set_dtype(torch.float64).to("cpu").half()
    exact.update(images)
    value = exact.compute()
    for part in value.values() if isinstance(value, dict) else [value]:
        assert (part.dtype, part.dtype) == (torch.float64, exact.dtype)


def test_rule_24_bootstrapped_quantiles_may_be_tensors(net, images):
    wrapped = BootStrapper(
        AverageDrop(GradCAM(net, "body")), num_bootstraps=4, quantile=torch.tensor([0.05, 0.95])
    )
    wrapped.update(images)
    low, high = wrapped.compute()["quantile"]
    assert 0 <= low <= high <= 1


def test_rule_25_something_that_is_no_state_is_refused_as_by_torchmetrics(net):
    for metric in (AverageDrop(GradCAM(net, "body")), CAMComparison({"one": GradCAM(net, "body")})):
        with pytest.raises(ValueError, match="Expected incoming state to be a dict or an instance of Metric"):
            metric.merge_state(2)


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("average", ["micro", "none"])
def test_rule_26_every_plot_takes_what_compute_and_forward_return(net, images, cls, average):
    metric = cls(GradCAM(net, "body"), SOFTMAX, average=average, num_classes=5)
    value = metric(images)
    for given in (metric.compute(), value, [value, metric.compute()]):
        figure, _ = metric.plot(given)
        assert isinstance(figure, Figure)
        plt.close(figure)


@pytest.mark.parametrize(
    ("network", "share"),
    [("small CNN, 10 modules", 1.5), ("resnet18", 1), ("mobilenet_v3_large", 1), ("resnet50", 1)],
)
def test_rule_30_an_update_makes_fewer_python_calls_than_torchcams(network, share, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import host

    cases = host.cases_of(network)
    assert host.python_calls(cases[host.OURS]) < share * host.python_calls(cases[host.TORCHCAM])


def test_targets_are_not_taken_for_labels(net, images):
    for metric in (AverageDrop(GradCAM(net, "body")), CAMComparison({"one": GradCAM(net, "body")})):
        with pytest.raises(TypeError, match="To explain the labels, pass class_idx=labels; targets= takes"):
            metric.update(images, target=torch.zeros(4, dtype=torch.long))
        assert metric.update_count == 0


class Tagged(torch.Tensor):
    """A subclass of tensors, as MONAI's MetaTensor and torchvision's tv_tensors are."""


def test_a_metric_has_a_hash_of_its_own_and_a_repr(net, images):
    metric, other = AverageDrop(GradCAM(net, ["stem", "body"])), AverageDrop(GradCAM(net, "body"))
    assert hash(metric) != hash(other)
    before = hash(metric)
    metric.update(images)
    assert hash(metric) != before
    assert isinstance(metric, Metric)
    assert repr(metric) == "AverageDrop(GradCAM(SmallNet, stem, body), protocol='paper')"
    assert metric.protocol == EvaluationProtocol.preset("paper")


@pytest.mark.parametrize("cls", [*ALL, CAMComparison, *LOCALIZATION], ids=lambda cls: cls.__name__)
def test_the_help_of_a_metric_is_complete(cls):
    for section in ("As input to", "As output of", "Args:", "Raises:", "Attributes:", "Example:"):
        assert section in cls.__doc__, section
    for function, text in ((cls.__init__, cls.__doc__), (cls.update, cls.update.__doc__)):
        for name in list(inspect.signature(function).parameters)[1:]:
            assert f"  {name}: " in text, name
