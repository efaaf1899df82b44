"""In a MetricCollection metrics on one source and protocol share their states, and others never do."""

import copy
import pickle
from functools import partial

import pytest
import torch
from conftest import Calls, small_net
from torch import nn
from torchcam import methods
from torchmetrics import MetricCollection

from torchmetrics_cam import (
    AverageDrop,
    AverageGain,
    Complexity,
    EnergyPointingGame,
    EvaluationProtocol,
    IncreaseInConfidence,
    PointingGame,
)
from torchmetrics_cam.cams import CAMSource, GradCAM, GradCAMPlusPlus, RandomMap, SourceMaps

SOFTMAX = partial(torch.softmax, dim=-1)


def same(metric, other):
    return torch.equal(metric.identity, other.identity)


def groups(collection):
    return sorted(sorted(names) for names in collection.compute_groups.values())


@pytest.mark.parametrize("same_object", [True, False], ids=["one source", "equal sources"])
def test_siblings_merge_and_run_once_a_batch(net, images, same_object):
    source = GradCAM(net, "body")
    sources = [source] * 3 if same_object else [GradCAM(net, layer) for layer in ("body", net.body, ["body"])]
    collection = MetricCollection(
        [
            metric(s)
            for metric, s in zip((AverageDrop, IncreaseInConfidence, AverageGain), sources, strict=True)
        ]
    )
    collection.update(input_tensor=images)
    assert groups(collection) == [["AverageDrop", "AverageGain", "IncreaseInConfidence"]]
    with Calls(net) as calls:
        collection.update(input_tensor=images)
    assert calls.batches == [4, 4]


def test_metrics_on_one_extractor_of_torchcam_merge(net, images):
    extractor = methods.GradCAM(net, "body")
    collection = MetricCollection([AverageDrop(extractor), IncreaseInConfidence(extractor)])
    collection.update(input_tensor=images)
    assert len(collection.compute_groups) == 1


OTHERS = {
    "layer": lambda net: AverageDrop(GradCAM(net, "stem")),
    "method": lambda net: AverageDrop(GradCAMPlusPlus(net, "body")),
    "setting": lambda net: AverageDrop(GradCAM(net, "body", reshape_transform=torch.relu)),
    "logits_fn": lambda net: AverageDrop(GradCAM(net, "body"), SOFTMAX),
    "lambda": lambda net: AverageDrop(GradCAM(net, "body"), lambda logits: logits.softmax(-1)),
    "protocol": lambda net: AverageDrop(GradCAM(net, "body"), protocol=EvaluationProtocol(baseline=1.0)),
    "model": lambda _: AverageDrop(GradCAM(small_net(), "body")),
    "extractor": lambda net: AverageDrop(methods.GradCAM(net, "body")),
}


@pytest.mark.parametrize("other", OTHERS)
def test_whatever_changes_the_number_changes_the_identity(net, other):
    assert not same(AverageDrop(GradCAM(net, "body")), OTHERS[other](net))


def test_what_does_not_change_the_number_does_not(net):
    metric = AverageDrop(GradCAM(net, "body"), SOFTMAX)
    alike = IncreaseInConfidence(GradCAM(net, "body"), partial(torch.softmax, dim=-1), batch_size=2)
    assert same(alike, metric)
    assert same(AverageDrop(RandomMap(net, seed=1)), AverageDrop(RandomMap(net, seed=1)))
    assert not same(AverageDrop(RandomMap(net, seed=1)), AverageDrop(RandomMap(net, seed=2)))


def test_copies_keep_it_unless_their_model_is_another(net, images):
    metric = AverageDrop(GradCAM(net, "body"))
    metric.update(images)
    assert same(metric.clone(), metric)
    averaged = copy.deepcopy(nn.ModuleDict({"net": net, "metric": metric}))["metric"]
    assert not same(averaged, metric)
    for copied in (averaged, pickle.loads(pickle.dumps(metric))):
        assert torch.equal(copied.compute(), metric.compute())
        identity = copied.identity
        copied.reset()
        assert torch.equal(copied.identity, identity)
        copied.update(images)
        assert torch.equal(copied.compute(), metric.compute())


def test_a_merge_keeps_it(net, images):
    """Shards that were computed elsewhere have a model of their own."""
    metric, whole = AverageDrop(GradCAM(net, "body")), AverageDrop(GradCAM(net, "body"))
    metric.update(images[:1])
    elsewhere = pickle.loads(pickle.dumps(metric))
    elsewhere.reset()
    elsewhere.update(images[1:])
    metric.merge_state(elsewhere)
    whole.update(images)
    assert same(metric, whole)
    assert metric.compute().item() == pytest.approx(whole.compute().item(), abs=1e-12)


def test_sums_of_different_things_are_not_merged(net, images):
    metric = AverageDrop(GradCAM(net, "body"))
    metric.update(images)
    total = metric.total
    with pytest.raises(
        ValueError, match=r"a metric with protocol=torchcam.* cannot be merged into one with protocol=paper"
    ):
        metric.merge_state(AverageDrop(GradCAM(net, "body"), protocol="torchcam"))
    classes = AverageDrop(GradCAM(net, "body"), num_classes=5, average="macro")
    classes.update(images)
    for incoming in (classes, classes.metric_state):
        with pytest.raises(ValueError, match=r"the state .* to merge has shape \(5,\), not \(\); give both"):
            metric.merge_state(incoming)
    assert metric.total is total


class ByLayer(CAMSource):
    """A source with a table whose keys cannot be sorted."""

    def __init__(self, model, layers):
        self.model = model
        self.weights = {layer: place for place, layer in enumerate(layers)}

    def maps(self, clean):
        return SourceMaps([clean.images.mean(1)])


def test_a_source_may_hold_anything(net):
    first, second = (
        AverageDrop(ByLayer(net, [net.body, net.stem])),
        AverageDrop(ByLayer(net, [net.body, net.stem])),
    )
    assert same(first, second)
    assert not same(first, AverageDrop(ByLayer(net, [net.stem, net.body])))


def test_it_stays_out_of_checkpoints(net, images):
    """It may differ in the next run."""
    metric = AverageDrop(GradCAM(net, "body"))
    metric.persistent(True)
    metric.update(images)
    checkpoint = metric.state_dict()
    assert set(checkpoint) == set(metric._defaults) - {"identity"}
    resumed = AverageDrop(GradCAM(small_net(), "body"))
    resumed.persistent(True)
    resumed.load_state_dict(checkpoint)
    assert torch.equal(resumed.drop, metric.drop)


def test_measures_of_one_source_whose_first_batch_was_equal_do_not_merge(net, images):
    """Both games are 1 where the object is the whole image."""
    source = GradCAM(net, "body")
    collection = MetricCollection([EnergyPointingGame(source), PointingGame(source), Complexity(source)])
    objects = torch.ones(4, 12, 12)
    collection.update(input_tensor=images, objects=objects)
    assert len(collection.compute_groups) == 3
    objects[:, :, :6] = 0
    collection.update(input_tensor=images, objects=objects)
    energy, pointing = EnergyPointingGame(source), PointingGame(source)
    for metric in (energy, pointing):
        metric.update(images, objects=torch.ones(4, 12, 12))
        metric.update(images, objects=objects)
    values = collection.compute()
    assert values["EnergyPointingGame"] == energy.compute()
    assert values["PointingGame"] == pointing.compute()
    assert energy.compute() != pointing.compute()
