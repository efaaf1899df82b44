"""evaluate(): each image exactly once on any number of processes, and an unchanged model."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from digits import data, network, source
from lightning.pytorch.strategies import DDPStrategy
from processes import START_METHOD, results_of
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torchcam import methods
from torchmetrics import MetricCollection, MetricTracker
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.wrappers import ClasswiseWrapper, MinMaxMetric

from torchmetrics_cam import AverageDrop, AverageGain, CAMComparison, IncreaseInConfidence
from torchmetrics_cam.cams import LayerCAM
from torchmetrics_cam.lightning import evaluate
from torchmetrics_cam.lightning.data import shard

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
evaluated = partial(evaluate, **QUIET)


def ddp() -> DDPStrategy:
    """Return the strategy ``"ddp_spawn"`` with processes that start faster."""
    return DDPStrategy(start_method=START_METHOD)


def network_in_evaluation():
    return network().eval()


def by_hand(images):
    metric = AverageDrop(source(network_in_evaluation()))
    metric.update(images)
    return metric.compute().item()


def seventy():
    return data(256, 326)


# One process


def test_a_dataset_a_dataloader_and_a_plain_loop_agree():
    expected = by_hand(seventy().tensors[0])
    loader = DataLoader(seventy(), batch_size=16, shuffle=True, drop_last=True)
    for batches in (seventy(), loader):
        metric = AverageDrop(source(network_in_evaluation()))
        value = evaluated(metric, batches)
        assert value.item() == pytest.approx(expected, rel=1e-6)
        assert torch.equal(metric.compute(), value)
        assert metric.total == 70


def test_collections_wrappers_and_labels():
    model = network_in_evaluation()
    metrics = MetricCollection(
        {
            "drop": AverageDrop(source(model)),
            "gain": AverageGain(source(model)),
            "layer": AverageDrop(LayerCAM(model, "0")),
        }
    )
    values = evaluated(
        metrics, seventy(), inputs=lambda batch: {"input_tensor": batch[0], "class_idx": batch[1]}
    )
    images, labels = seventy().tensors
    alone = AverageDrop(source(model))
    alone.update(images, class_idx=labels)
    assert values["drop"].item() == pytest.approx(alone.compute().item(), rel=1e-6)
    assert values["layer"] != values["drop"]
    wrapped = evaluated(MinMaxMetric(AverageDrop(source(model))), seventy())
    assert wrapped["raw"].item() == pytest.approx(by_hand(images), rel=1e-6)


@pytest.mark.parametrize("precision", ["32", "64-true", "bf16-mixed", "bf16-true"])
def test_the_model_is_unchanged(precision):
    model = network().train()
    model[8].weight.grad = torch.ones_like(model[8].weight)
    before = {name: (value.clone(), value.data_ptr()) for name, value in model.state_dict().items()}
    seen = []
    handle = model[0].register_forward_hook(lambda _m, _a, output: seen.append(output.dtype))
    value = evaluated(AverageDrop(source(model)), seventy(), precision=precision)
    handle.remove()
    wanted = {"64-true": torch.float64, "32": torch.float32}.get(precision, torch.bfloat16)
    assert set(seen) == {wanted}
    assert value.item() == pytest.approx(
        by_hand(seventy().tensors[0]), rel=0.05 if "bf16" in precision else 1e-4
    )
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0])
        assert tensor.data_ptr() == before[name][1]
    assert model.training
    assert torch.equal(model[8].weight.grad, torch.ones_like(model[8].weight))
    assert all(weight.dtype == torch.float32 and weight.requires_grad for weight in model.parameters())


def test_the_model_is_unchanged_after_an_error():
    class Broken(TensorDataset):
        def __getitem__(self, index):
            if index == 40:
                raise OSError("this image cannot be read")
            return super().__getitem__(index)

    model = network()
    metric = AverageDrop(source(model))
    with pytest.raises(OSError, match="cannot be read"):
        evaluated(metric, Broken(*seventy().tensors), precision="64-true", batch_size=10)
    assert model[0].weight.dtype == torch.float32
    assert model.training
    assert metric.total == 0
    assert evaluated(metric, seventy()).item() == pytest.approx(by_hand(seventy().tensors[0]), rel=1e-6)


def test_a_compiled_scorer_runs_compiled():
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = network_in_evaluation()
    metric = AverageDrop(source(model), scorer=torch.compile(model, backend=backend))
    value = evaluated(metric, Subset(seventy(), range(64)))
    assert len(graphs) == 1
    assert value.item() == pytest.approx(by_hand(seventy().tensors[0][:64]), rel=1e-5)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*was called before the ``update`` method")
def test_an_empty_dataset_gives_nan():
    assert evaluated(AverageDrop(source(network())), Subset(seventy(), [])).isnan()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(seventy())


@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Stream(), batch_size=16),
        DataLoader(seventy(), sampler=WeightedRandomSampler([1.0] * 70, 70), batch_size=16),
        DataLoader(seventy(), batch_sampler=BatchSampler(range(70), 16, drop_last=False)),
    ],
    ids=["a stream", "a sampler", "a batch sampler"],
)
def test_dataloaders_that_cannot_be_split_run_on_one_process_only(loader):
    metric = AverageDrop(source(network_in_evaluation()))
    with pytest.raises(
        ValueError, match=r"cannot be split over ranks so that each image counts once; pass a"
    ):
        evaluated(metric, loader, devices=2, strategy="ddp_spawn")
    evaluated(metric, loader)
    assert metric.total == 70


class Dimmed(DataLoader):
    """Dataloader that changes the images."""

    def __iter__(self):
        return ([images * 0.3, labels] for images, labels in super().__iter__())


def test_a_subclass_of_dataloader_is_used_unchanged():
    metric = AverageDrop(source(network_in_evaluation()))
    value = evaluated(metric, Dimmed(seventy(), batch_size=16))
    assert value.item() == pytest.approx(by_hand(seventy().tensors[0] * 0.3), rel=1e-6)
    assert value.item() != pytest.approx(by_hand(seventy().tensors[0]), rel=1e-3)
    metric.reset()
    with pytest.raises(ValueError, match="a dataloader of the class Dimmed cannot be split over ranks"):
        evaluated(metric, Dimmed(seventy(), batch_size=16), devices=2, strategy="ddp_spawn")


def test_random_transforms_in_workers_use_the_generator_of_the_dataloader():
    loader = DataLoader(TensorDataset(torch.rand(5, 1)), generator=torch.Generator())
    assert shard(loader, 0, 2).generator is loader.generator


def test_drop_last_is_ignored_also_with_a_sampler():
    loader = DataLoader(seventy(), sampler=SubsetRandomSampler(range(10)), batch_size=4, drop_last=True)
    metric = AverageDrop(source(network_in_evaluation()))
    evaluated(metric, loader)
    assert metric.total == 10


@pytest.mark.filterwarnings("ignore:.*was called before the ``update`` method")
def test_wrappers_that_count_an_update_in_the_constructor_and_steps_of_a_tracker():
    model = network_in_evaluation()
    classes = AverageDrop(source(model), num_classes=10, average="none")
    values = evaluated(ClasswiseWrapper(classes), seventy())
    assert len(values) == 10
    tracker = MetricTracker(AverageDrop(source(model)))
    for size in (10, 20):
        tracker.increment()
        value = evaluated(tracker, Subset(seventy(), range(size)))
        assert value.item() == pytest.approx(by_hand(seventy().tensors[0][:size]), rel=1e-6)
        assert tracker[-1].total == size
    assert tracker.compute_all()[0].item() == pytest.approx(by_hand(seventy().tensors[0][:10]), rel=1e-6)


def test_any_argument_of_the_trainer_may_be_given():
    metric = AverageDrop(source(network_in_evaluation()))
    evaluated(metric, seventy(), use_distributed_sampler=True, limit_test_batches=1)
    assert metric.total == 32


def test_other_metrics_and_metrics_with_images_are_refused():
    for wrong in (MulticlassAccuracy(10), torch.nn.Flatten(), lambda images: 0):
        with pytest.raises(TypeError, match="pass a metric of torchmetrics_cam, or a MetricCollection"):
            evaluated(wrong, seventy())
    metric = AverageDrop(source(network_in_evaluation()))
    metric.update(seventy().tensors[0][:3])
    with pytest.raises(ValueError, match=r"already holds 1 updates.*call reset\(\) first"):
        evaluated(metric, seventy())
    assert metric.total == 3


# Several processes


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [0, 1, 4, 7, 10])
def test_rule_20_each_image_is_loaded_once_over_all_ranks(size, world_size):
    """Samplers that pad to equal lengths load some images twice."""
    dataset = list(range(size))
    samplers = [SequentialSampler(dataset), DistributedSampler(dataset, 2, 0)]
    samplers += [RandomSampler(dataset)] if size else []
    for sampler in samplers:
        loader = DataLoader(dataset, batch_size=3, sampler=sampler)
        seen = []
        for rank in range(world_size):
            batches = list(shard(loader, rank, world_size))
            assert batches
            for batch in batches:
                if batch is not None:
                    assert batch.content.tolist() == batch.indices
                    seen += batch.indices
        assert sorted(seen) == dataset


def three_metrics():
    model = network_in_evaluation()
    return MetricCollection(
        {
            "drop": AverageDrop(source(model)),
            "increase": IncreaseInConfidence(source(model)),
            "of torchcam": AverageDrop(methods.LayerCAM(model, "3")),
        }
    )


@pytest.mark.parametrize(
    ("strategy", "processes", "size"),
    [(lambda: "ddp_spawn", 2, 70), (ddp, 3, 70), (ddp, 3, 2)],
    ids=["2-70", "3-70", "3-2"],
)
def test_rule_20_spawned_processes_give_the_values_of_one(strategy, processes, size):
    """Also if the number of images is not a multiple of the ranks, and if a rank has none."""
    images = Subset(seventy(), range(size))
    one, many = three_metrics(), three_metrics()
    expected = evaluated(one, images, batch_size=8)
    value = evaluated(many, images, batch_size=8, devices=processes, strategy=strategy())
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(many.compute(), expected, rtol=1e-6, atol=0)
    for name in many:
        for count in ("total", "increase", "nan_count", "degenerate_count"):
            assert getattr(many[name], count) == getattr(one[name], count)
    assert many["drop"].total == size
    assert many["drop"].update_called


def test_a_metric_evaluated_in_spawned_processes_keeps_the_identity_of_its_model():
    """Each process identifies the model differently, and its identity must not come back with the sums."""
    first, second = network_in_evaluation(), network_in_evaluation()
    metrics = [AverageDrop(source(model)) for model in (first, second)]
    for metric in metrics:
        evaluated(metric, Subset(seventy(), range(5)), devices=2, strategy=ddp())
    collection = MetricCollection(dict(zip("ab", metrics, strict=True)))
    images = seventy().tensors[0]
    collection.update(images)
    with torch.no_grad():
        for weight in second.parameters():
            weight.mul_(1.5)
    collection.reset()
    collection.update(images)
    values = collection.compute()
    assert values["a"] != values["b"]
    assert values["a"].item() == pytest.approx(by_hand(images), rel=1e-6)


def test_samples_of_a_comparison_have_the_index_of_the_dataset():
    """On three processes, one of which has one image less."""
    model = network_in_evaluation()
    comparison = CAMComparison({"Grad-CAM": source(model)}, per_sample=True)
    values = evaluated(comparison, seventy(), batch_size=8, devices=3, strategy=ddp())
    kept, images = comparison.samples(), seventy().tensors[0]
    assert sorted(kept["index"].tolist()) == list(range(70))
    torch.testing.assert_close(comparison.compute(), values, rtol=1e-9, atol=0)
    with torch.no_grad():
        scores = model(images[kept["index"]]).softmax(1)
    torch.testing.assert_close(kept["score"].float(), scores.amax(1), rtol=1e-5, atol=1e-6)
    assert values["Grad-CAM/average_drop"].item() == pytest.approx(by_hand(images), rel=1e-6)
    comparison.update(images[:5])
    assert len(comparison.samples()["index"]) == 75
    comparison(images[:5])
    comparison.reset()
    assert len(comparison.samples()["index"]) == 0


def test_the_value_is_over_all_ranks_also_with_sync_on_compute_false():
    metric = AverageDrop(source(network_in_evaluation()), sync_on_compute=False)
    value = evaluated(metric, seventy(), devices=2, strategy=ddp())
    assert value.item() == pytest.approx(by_hand(seventy().tensors[0]), rel=1e-6)
    assert metric._to_sync is False


def in_a_group_of_its_own(rank, world_size):
    messages = []
    for settings in ({}, {"devices": 2, "strategy": "ddp"}):
        try:
            evaluated(AverageDrop(source(network_in_evaluation())), seventy(), **settings)
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_a_process_group_that_the_trainer_does_not_manage_is_refused(tmp_path):
    for messages in results_of(in_a_group_of_its_own, 2, tmp_path):
        assert len(messages) == 2
        for message in messages:
            assert "evaluate() was called in a process group of 2 processes" in message
            assert "start the processes with torchrun" in message


SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/lightning"]
import torch
torch.set_num_threads(1)
from test_evaluate import evaluated, seventy, three_metrics

if __name__ == "__main__":
    metrics = three_metrics()
    value = evaluated(metrics, seventy(), batch_size=8{settings})
    again = metrics.compute()
    rank = torch.distributed.get_rank()
    torch.save((value, again, int(metrics["drop"].total)), {folder!r} + f"/outcome{{rank}}")
    torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize(
    ("launcher", "settings", "processes"),
    [
        ([], ', devices=2, strategy="ddp"', 2),
        (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "3"], "", 3),
    ],
    ids=["ddp", "torchrun"],
)
def test_rule_20_processes_of_ddp_and_torchrun_give_the_values_of_one(
    tmp_path, launcher, settings, processes
):
    script = tmp_path / "evaluation.py"
    script.write_text(
        SCRIPT.format(tests=str(Path(__file__).parents[1]), settings=settings, folder=str(tmp_path))
    )
    done = subprocess.run(
        [sys.executable, *launcher, str(script)], timeout=180, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = evaluated(three_metrics(), seventy(), batch_size=8)
    totals = []
    for rank in range(processes):
        value, again, total = torch.load(tmp_path / f"outcome{rank}")
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
        torch.testing.assert_close(again, expected, rtol=1e-6, atol=0)
        totals.append(total)
    assert totals == [70] + [0] * (processes - 1)
