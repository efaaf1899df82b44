"""Networks that end in a softmax or a sigmoid, under a protocol that applies another one."""

import warnings

import pytest
import torch
from conftest import small_net
from torch import nn
from torchmetrics import MetricCollection

from torchmetrics_cam import AverageDrop, CAMComparison, DeletionAUC, IncreaseInConfidence
from torchmetrics_cam.cams import GradCAM, UniformMap

MESSAGE = r"The model's output is in \[0, 1\] for all of 4 images, as after a softmax or sigmoid"


def ending_in(function, classes=1000):
    return nn.Sequential(small_net(classes=classes), function)


def values_and_warnings(metric, images):
    metric.update(images)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = metric.compute()
    return value, [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("function", "classes"),
    [(nn.Softmax(1), 1000), (nn.Softmax(1), 2), (nn.Sigmoid(), 80), (nn.Sigmoid(), 1)],
)
@pytest.mark.parametrize("metric", [AverageDrop, DeletionAUC])
def test_a_second_softmax_is_one_warning(images, function, classes, metric):
    model = ending_in(function, classes)
    _, messages = values_and_warnings(metric(GradCAM(model, "0.body")), images)
    (message,) = messages
    assert "pass logits_fn=torch.nn.Identity()" in message
    assert "in [0, 1] for all of 4 images" in message


def test_the_advice_gives_the_scores_of_the_network(images):
    model = ending_in(nn.Softmax(1), 5)
    advised = AverageDrop(UniformMap(model, 0.5), nn.Identity()).set_dtype(torch.float64)
    without = AverageDrop(UniformMap(model[0], 0.5)).set_dtype(torch.float64)
    values = [values_and_warnings(metric, images) for metric in (advised, without)]
    assert values[0][1] == values[1][1] == []
    assert values[0][0] == pytest.approx(values[1][0].item(), rel=1e-9)


@pytest.mark.parametrize("classes", [1, 2, 5, 1000])
@pytest.mark.parametrize("protocol", ["paper", "torchcam"])
def test_logits_are_no_warning(images, classes, protocol):
    metric = AverageDrop(GradCAM(small_net(classes=classes), "body"), torch.sigmoid, protocol=protocol)
    assert values_and_warnings(metric, images)[1] == []
    metric = AverageDrop(GradCAM(small_net(classes=classes), "body"))
    assert values_and_warnings(metric, images)[1] == []


def test_the_warning_of_a_comparison_a_collection_and_merged_metrics(images):
    model = ending_in(nn.Softmax(1))
    comparison = CAMComparison({"grad_cam": GradCAM(model, "0.body"), "uniform": UniformMap(model)})
    assert len(values_and_warnings(comparison, images)[1]) == 1
    collection = MetricCollection([AverageDrop(UniformMap(model)), IncreaseInConfidence(UniformMap(model))])
    collection.update(images)
    with pytest.warns(UserWarning, match=MESSAGE):
        collection.compute()
    shards = [AverageDrop(UniformMap(model)) for _ in range(2)]
    for shard in shards:
        shard.update(images[:2])
    shards[0].merge_state(shards[1])
    with pytest.warns(UserWarning, match=MESSAGE):
        shards[0].compute()
