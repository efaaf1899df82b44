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

from torchmetrics_cam import AverageDrop, AverageGain, EvaluationProtocol, IncreaseInConfidence
from torchmetrics_cam.cams import GradCAM, GradCAMPlusPlus, PrecomputedMaps, RandomMap

SOFTMAX = partial(torch.softmax, dim=-1)


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


def test_two_sources_with_an_equal_first_batch_do_not_merge(net, images):
    """Maps of zero in the first batch: the two must not report one number ever after."""
    first, second = PrecomputedMaps(net), PrecomputedMaps(small_net(seed=7))
    collection = MetricCollection({"first": AverageDrop(first), "second": AverageDrop(second)})
    second.model.load_state_dict(net.state_dict())
    collection.update(input_tensor=images, cams=torch.zeros(4, 3, 3))
    assert torch.equal(*collection.compute().values())
    assert groups(collection) == [["first"], ["second"]]
    second.model.load_state_dict(small_net(seed=7).state_dict())
    collection.update(input_tensor=images, cams=torch.rand(4, 3, 3))
    assert collection["first"].compute() != collection["second"].compute()


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
    assert AverageDrop(GradCAM(net, "body"))._identity != OTHERS[other](net)._identity


def test_what_does_not_change_the_number_does_not(net):
    metric = AverageDrop(GradCAM(net, "body"), SOFTMAX)
    alike = IncreaseInConfidence(GradCAM(net, "body"), partial(torch.softmax, dim=-1), batch_size=2)
    assert alike._identity == metric._identity
    assert AverageDrop(RandomMap(net, seed=1))._identity == AverageDrop(RandomMap(net, seed=1))._identity
    assert AverageDrop(RandomMap(net, seed=1))._identity != AverageDrop(RandomMap(net, seed=2))._identity


def test_copies_keep_it_unless_their_model_is_another(net, images):
    metric = AverageDrop(GradCAM(net, "body"))
    metric.update(images)
    assert metric.clone()._identity == metric._identity
    averaged = copy.deepcopy(nn.ModuleDict({"net": net, "metric": metric}))["metric"]
    assert averaged._identity != metric._identity
    assert set(averaged._defaults) - {averaged._identity} == set(metric._defaults) - {metric._identity}
    for copied in (averaged, pickle.loads(pickle.dumps(metric))):
        assert torch.equal(copied.compute(), metric.compute())
        copied.reset()
        copied.update(images)
        assert torch.equal(copied.compute(), metric.compute())


def test_it_stays_out_of_checkpoints(net, images):
    """A name that may differ in the next run would make a strict load fail."""
    metric = AverageDrop(GradCAM(net, "body"))
    metric.persistent(True)
    metric.update(images)
    checkpoint = metric.state_dict()
    assert set(checkpoint) == set(metric._defaults) - {metric._identity}
    resumed = AverageDrop(GradCAM(small_net(), "body"))
    resumed.persistent(True)
    resumed.load_state_dict(checkpoint)
    assert torch.equal(resumed.drop, metric.drop)
