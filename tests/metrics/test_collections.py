"""The metrics inside of TorchMetrics' collections and wrappers, as people put them together."""

import copy
import pickle
from functools import partial

import pytest
import torch
from conftest import Calls, small_net
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.wrappers import (
    BootStrapper,
    ClasswiseWrapper,
    MetricTracker,
    MinMaxMetric,
    MultitaskWrapper,
    Running,
)

from torchmetrics_cam import AverageDrop, AverageGain, ClassificationMetric, IncreaseInConfidence
from torchmetrics_cam.cams import GradCAM, LayerCAM, UniformMap

IMAGES = (12, 3, 12, 12)  # the shape of the fixture images
SOFTMAX = partial(torch.softmax, dim=-1)
THREE = {"drop": AverageDrop, "increase": IncreaseInConfidence, "gain": AverageGain}


def twelve_images():
    return torch.rand(12, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def balanced_net():
    """A network that finds several classes in the twelve images, and loses and gains confidence."""
    net = small_net()
    with torch.no_grad():
        logits = net(twelve_images())
        net.fc.weight.div_(logits.std(0).mean())
        net.fc.bias.copy_(-(net(twelve_images()) - net.fc.bias).mean(0))
    return net


@pytest.fixture
def net():
    return balanced_net()


def test_the_numbers_here_are_none_that_any_metric_would_give(net, images):
    values = collection_on(net)(images)
    assert all(0.05 < value < 0.95 for value in values.values())
    with torch.no_grad():
        assert len(net(images).argmax(1).unique()) >= 3


def drop_of(net, images, **arguments):
    metric = AverageDrop(GradCAM(net, "body"))
    metric.update(images, **arguments)
    return metric.compute()


def collection_on(net, **settings):
    source = GradCAM(net, "body")
    return MetricCollection({name: cls(source) for name, cls in THREE.items()}, **settings)


# Collections


def test_names_with_prefix_and_postfix_and_in_clones(net, images):
    collection = collection_on(net, prefix="val_", postfix="_cam")
    collection.update(images)
    clone = collection.clone(prefix="test_")
    assert set(collection.compute()) == {"val_drop_cam", "val_increase_cam", "val_gain_cam"}
    assert clone.compute() == {
        name.replace("val_", "test_"): value for name, value in collection.compute().items()
    }
    clone.update(images)
    assert clone["test_drop_cam"].total == 24
    assert collection["val_drop_cam"].total == 12


def test_a_collection_beside_accuracy_and_f1_with_keywords(net, images):
    with torch.no_grad():
        predictions = net(images)
    labels = torch.arange(12) % 5
    collection = MetricCollection(
        {
            "accuracy": MulticlassAccuracy(5, average="micro"),
            "drop": AverageDrop(GradCAM(net, "body")),
            "of the stem": AverageDrop(GradCAM(net, "stem")),
            "gain": AverageGain(GradCAM(net, "body")),
        }
    )
    for batch in torch.arange(12).split(5):
        collection.update(preds=predictions[batch], target=labels[batch], input_tensor=images[batch])
    values = collection.compute()
    assert values["accuracy"] == (predictions.argmax(1) == labels).float().mean()
    assert values["drop"].item() == pytest.approx(drop_of(net, images).item(), rel=1e-12)
    assert sorted(map(sorted, collection.compute_groups.values())) == [
        ["accuracy"],
        ["drop", "gain"],
        ["of the stem"],
    ]


def test_groups_given_beforehand_run_once_from_the_first_batch_on(net, images):
    collection = collection_on(net, compute_groups=[list(THREE)])
    with Calls(net) as calls:
        collection.update(images)
    assert calls.batches == [12, 12]
    assert collection.compute()["drop"] == drop_of(net, images)


def test_collections_survive_pickle_and_reset(net, images):
    collection = collection_on(net)
    collection.update(images[:4])
    collection.update(images[4:])
    copied = pickle.loads(pickle.dumps(collection))
    assert copied.compute() == collection.compute()
    copied.update(images)
    assert copied["gain"].total == 24
    copied.reset()
    copied.update(images)
    torch.testing.assert_close(copied.compute(), collection.compute(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("cls", [*THREE.values(), ClassificationMetric])
def test_shards_merge(images, cls):
    """Each shard was computed by a process of its own, with its own copy of the network."""
    whole, merged = (cls(GradCAM(balanced_net(), "body"), SOFTMAX) for _ in range(2))
    whole.update(images)
    for shard in images.split(5):
        part = cls(GradCAM(balanced_net(), "body"), SOFTMAX)
        part.update(shard)
        merged.merge_state(pickle.loads(pickle.dumps(part)))
        # What was computed before a merge is not what comes after it.
        merged.compute()
    expected = whole.compute()
    torch.testing.assert_close(merged.compute(), expected, rtol=1e-12, atol=0)
    assert merged.total == whole.total == 12


def test_an_epoch_goes_on_from_a_checkpoint_in_its_middle(images, tmp_path):
    whole, first = (
        nn.ModuleDict({"net": net, "metrics": collection_on(net)}) for net in (balanced_net(), balanced_net())
    )
    batches = images.split(3)
    for batch in batches:
        whole["metrics"].update(batch)
    first["metrics"].persistent(True)
    for batch in batches[:2]:
        first["metrics"].update(batch)
    torch.save(first.state_dict(), tmp_path / "checkpoint")

    net = small_net(seed=3)
    resumed = nn.ModuleDict({"net": net, "metrics": collection_on(net)})
    resumed["metrics"].persistent(True)
    resumed.load_state_dict(torch.load(tmp_path / "checkpoint"))
    for batch in batches[2:]:
        resumed["metrics"].update(batch)
    assert resumed["metrics"].compute() == whole["metrics"].compute()
    assert resumed["metrics"]["drop"].total == 12


def test_checkpoints_without_persistent_states_hold_the_network_alone(net, images):
    holder = nn.ModuleDict({"net": net, "metrics": collection_on(net)})
    holder["metrics"].update(images)
    assert {name.split(".")[0] for name in holder.state_dict()} == {"net"}


# Wrappers


def test_a_tracker_finds_the_best_epoch(net, images):
    tracker = MetricTracker(AverageDrop(GradCAM(net, "body")), maximize=False)
    values = []
    for epoch in range(2):
        tracker.increment()
        tracker.update(images)
        values.append(tracker.compute())
        net.load_state_dict(small_net(seed=epoch + 1).state_dict())
    best, step = tracker.best_metric(return_step=True)
    assert values[0] != values[1]
    assert best == min(values).item()
    assert values[step] == best
    assert tracker.compute_all().tolist() == [value.item() for value in values]


def test_a_tracker_of_a_collection(net, images):
    tracker = MetricTracker(collection_on(net), maximize=[False, True, True])
    for batch in images.split(6):
        tracker.increment()
        tracker.update(batch)
    assert tracker.compute_all()["drop"].tolist() == [drop_of(net, batch).item() for batch in images.split(6)]


def test_min_and_max_of_the_batches(net, images):
    metric = MinMaxMetric(AverageDrop(GradCAM(net, "body")))
    seen = []
    for batch in images.split(4):
        metric.update(batch)
        seen.append(metric.compute()["raw"])
    outcome = metric.compute()
    assert (outcome["min"], outcome["max"], outcome["raw"]) == (min(seen), max(seen), seen[-1])
    assert outcome["raw"].item() == pytest.approx(drop_of(net, images).item(), rel=1e-12)


def test_bootstrapped_intervals(net, images):
    """The images are drawn again with replacement, and the labels with them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        metric = BootStrapper(
            AverageDrop(GradCAM(net, "body")), num_bootstraps=8, raw=True, sampling_strategy="multinomial"
        )
        metric.update(images, class_idx=torch.arange(12) % 5)
        torch.manual_seed(0)
        drawn = [torch.multinomial(torch.ones(12), 12, replacement=True) for _ in range(8)]
    outcome = metric.compute()
    expected = [
        drop_of(net, images[index], class_idx=(torch.arange(12) % 5)[index]).item() for index in drawn
    ]
    assert outcome["raw"].tolist() == pytest.approx(expected, rel=1e-9)
    assert outcome["std"] > 0
    assert all(inner.source.model is net for inner in metric.metrics)


def test_a_running_window_also_in_a_copy_and_from_a_file(net, images):
    holder = nn.ModuleDict({"net": net, "metric": Running(AverageDrop(GradCAM(net, "body")), window=2)})
    for batch in images.split(4):
        holder["metric"].update(batch)
    expected = drop_of(net, images[4:]).item()
    assert holder["metric"].compute().item() == pytest.approx(expected, rel=1e-12)
    for copied in (copy.deepcopy(holder), pickle.loads(pickle.dumps(holder))):
        assert copied["metric"].compute().item() == pytest.approx(expected, rel=1e-12)
        copied["metric"].update(images[:4])
        window = drop_of(net, torch.cat([images[8:], images[:4]])).item()
        assert copied["metric"].compute().item() == pytest.approx(window, rel=1e-12)


def test_one_value_a_class_with_its_name(net, images):
    labels = torch.arange(12) % 3
    names = ["cat", "dog", "fox", "hen", "owl"]
    metric = ClasswiseWrapper(
        AverageDrop(GradCAM(net, "body"), num_classes=5, average="none"), labels=names, prefix="drop_"
    )
    for batch in torch.arange(12).split(5):
        metric.update(images[batch], class_idx=labels[batch])
    values = metric.compute()
    assert list(values) == [f"drop_{name}" for name in names]
    for index, name in enumerate(names[:3]):
        expected = drop_of(net, images[labels == index], class_idx=index)
        assert values[f"drop_{name}"].item() == pytest.approx(expected.item(), rel=1e-12)
    assert all(values[f"drop_{name}"].isnan() for name in names[3:])


def test_several_tasks(net, images):
    other = small_net(seed=5)
    metric = MultitaskWrapper(
        {"first": AverageDrop(GradCAM(net, "body")), "second": AverageDrop(LayerCAM(other, "stem"))}
    )
    labels = torch.arange(12) % 5
    metric.update({"first": images, "second": images[:6]}, {"first": labels, "second": labels[:6]})
    values = metric.compute()
    assert values["first"] == drop_of(net, images, class_idx=labels)
    assert metric.task_metrics["second"].total == 6


# One value a class


@pytest.mark.parametrize("cls", THREE.values())
def test_averages_over_classes_are_those_of_the_classes_on_their_own(net, images, cls):
    labels = torch.arange(12) % 3
    micro, macro, none = (
        cls(GradCAM(net, "body"), num_classes=5, average=average).set_dtype(torch.float64)
        for average in ("micro", "macro", "none")
    )
    for metric in (micro, macro, none):
        metric.update(images[:5], class_idx=labels[:5])
        metric.update(images[5:], class_idx=labels[5:])
    alone = []
    for index in range(3):
        metric = cls(GradCAM(net, "body")).set_dtype(torch.float64)
        metric.update(images[labels == index], class_idx=index)
        alone.append(metric.compute().item())
    assert none.compute()[:3].tolist() == pytest.approx(alone, rel=1e-12)
    assert none.compute()[3:].isnan().all()
    assert macro.compute().item() == pytest.approx(sum(alone) / 3, rel=1e-12)
    plain = cls(GradCAM(net, "body")).set_dtype(torch.float64)
    plain.update(images, class_idx=labels)
    assert micro.compute().item() == pytest.approx(plain.compute().item(), rel=1e-12)
    assert none.total.tolist() == [4, 4, 4, 0, 0]


def test_the_class_that_counts_is_the_one_that_is_explained(net, images):
    metric = AverageDrop(GradCAM(net, "body"), num_classes=5, average="none")
    metric.update(images)
    with torch.no_grad():
        top = net(images).argmax(1)
    assert metric.total.tolist() == top.bincount(minlength=5).tolist()
    broken = images.clone()
    broken[0, 0, 0, 0] = float("nan")
    metric.reset()
    metric.update(broken, class_idx=top)
    assert metric.nan_count[top[0]] == 1
    assert (metric.nan_count.sum(), metric.total.sum()) == (1, 11)


def test_the_drop_in_by_class_and_before_any_image(net, images):
    metric = ClassificationMetric(GradCAM(net, "body"), torch.sigmoid, num_classes=5, average="none")
    with pytest.raises(AssertionError, match="update the metric before"):
        metric.summary()
    metric.update(images, class_idx=2)
    drops = metric.summary()["avg_drop"]
    assert len(drops) == 5
    assert drops[2] == metric.compute()["avg_drop"][2]


def test_metrics_with_and_without_classes_do_not_merge(net, images):
    source = GradCAM(net, "body")
    collection = MetricCollection(
        {
            "micro": AverageDrop(source),
            "macro": AverageDrop(source, num_classes=5, average="macro"),
            "none": AverageGain(source, num_classes=5, average="none"),
        }
    )
    collection.update(images)
    collection.update(images)
    assert sorted(map(sorted, collection.compute_groups.values())) == [["macro", "none"], ["micro"]]
    assert collection["none"].total.sum() == collection["micro"].total == 24


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"average": "weighted"}, "average is 'weighted'; it must be one of micro, macro, none"),
        ({"average": "macro"}, "average='macro' needs the number of classes; pass num_classes"),
        ({"num_classes": 0}, "num_classes is 0; it must be a positive integer"),
        ({"num_classes": True}, "num_classes is True; it must be a positive integer"),
    ],
)
def test_settings_that_cannot_be_are_refused(net, settings, message):
    with pytest.raises(ValueError, match=message):
        AverageDrop(GradCAM(net, "body"), **settings)


def test_classes_that_do_not_fit_are_refused_and_nothing_is_lost(net, images):
    metric = AverageDrop(GradCAM(net, "body"), num_classes=5, average="macro")
    metric.update(images)
    with pytest.raises(ValueError, match="average='macro' is over classes, and targets have none"):
        metric.update(images, targets=lambda scores: scores[0])
    with Calls(net) as calls, pytest.raises(ValueError, match="scores 5 classes but num_classes is 7"):
        AverageDrop(GradCAM(net, "body"), num_classes=7).update(images)
    assert calls.batches == [12]
    assert metric.update_count == 1
    assert AverageDrop(UniformMap(net), num_classes=5).num_classes == 5
