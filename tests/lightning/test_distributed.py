"""Two and three processes compute the value of one process, for any split of the images."""

import warnings
from functools import partial

import pytest
import torch
from conftest import small_net
from processes import results_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchcam import methods
from torchmetrics import MetricCollection

import torchmetrics_cam
from torchmetrics_cam import (
    AverageDrop,
    AverageGain,
    CAMComparison,
    ClassificationMetric,
    EvaluationProtocol,
    IncreaseInConfidence,
)
from torchmetrics_cam.cams import GradCAM, LayerCAM
from torchmetrics_cam.metrics.measures import MEASURES

COUNTS = ("total", "increase", "nan_count", "degenerate_count", "outside_count")
# The indices of the eight batches that each rank gets.
SPLITS = {
    2: {"uneven": [[0, 1, 2, 3, 4], [5, 6, 7]], "a rank without a sample": [list(range(8)), []]},
    3: {
        "uneven": [[0, 1, 2, 3, 4], [5, 6], [7]],
        "a rank without a sample": [[], [0, 1, 2, 3, 4, 5], [6, 7]],
    },
}


def batches() -> list[Tensor]:
    images = torch.rand(24, 3, 12, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    images[5, 0, 0, 0] = float("nan")
    return list(images.split(3))


def wrapped(model: nn.Module) -> nn.Module:
    """Return the model in training mode in DDP, which broadcasts buffers in every forward pass."""
    return DistributedDataParallel(model.train())


def converted_before(net: nn.Module) -> AverageDrop:
    return AverageDrop(GradCAM(nn.SyncBatchNorm.convert_sync_batchnorm(net), "body"))


def converted_after(net: nn.Module) -> AverageDrop:
    metric = AverageDrop(GradCAM(net, "body"))
    nn.SyncBatchNorm.convert_sync_batchnorm(net)
    return metric


METRICS = {
    "plain": lambda net, wrap: AverageDrop(GradCAM(net, "body")),
    "DDP-wrapped": lambda net, wrap: AverageDrop(GradCAM(wrap(net), "module.body")),
    "DDP-wrapped, of torchcam": lambda net, wrap: AverageDrop(methods.GradCAM(wrap(net), "module.body")),
    "the drop-in": lambda net, wrap: ClassificationMetric(
        GradCAM(net, "body"), partial(torch.softmax, dim=-1)
    ),
    "one value a class": lambda net, wrap: AverageDrop(GradCAM(net, "body"), num_classes=5, average="none"),
    "SyncBatchNorm before": lambda net, wrap: converted_before(net),
    "SyncBatchNorm after": lambda net, wrap: converted_after(net),
    "a collection": lambda net, wrap: MetricCollection(
        {
            "drop": AverageDrop(GradCAM(net, "body")),
            "increase": IncreaseInConfidence(GradCAM(net, "body")),
            "gain": AverageGain(LayerCAM(net, "stem")),
        }
    ),
}


class AsDDP(nn.Module):
    """Stand-in for DistributedDataParallel in one process, with the same module names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        return self.module(images)


def measured(metric, mine):
    """Return the value and the counts over all ranks."""
    for batch in mine:
        metric.update(input_tensor=batch)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*was called before the ``update`` method")
        value = metric.compute()
    first = next(iter(metric.values())) if isinstance(metric, MetricCollection) else metric
    with first.sync_context():
        return value, {name: getattr(first, name).tolist() for name in COUNTS}


def on_a_rank(rank: int, world_size: int) -> dict[str, object]:
    every, found = batches(), {}
    for split, shares in SPLITS[world_size].items():
        for name, make in METRICS.items():
            metric = make(small_net(), wrapped)
            found[f"{name}, {split}"] = measured(metric, [every[index] for index in shares[rank]])
    found["no sample anywhere"] = measured(METRICS["plain"](small_net(), None), [])
    found |= {split: every_measure(shares[rank]) for split, shares in SPLITS[world_size].items()}
    return found


# Few curve steps, and a tolerance that maps of 12 x 12 pixels can miss.
FEW = EvaluationProtocol.preset("paper").replace(
    curve_steps=4, road_fractions=(0.3,), pointing_tolerance=1, top_k=20
)
CLASSES = {
    "average_drop": "AverageDrop",
    "increase_in_confidence": "IncreaseInConfidence",
    "average_gain": "AverageGain",
    "drop_in_deletion": "DropInDeletion",
    "deletion_auc": "DeletionAUC",
    "insertion_auc": "InsertionAUC",
    "symmetric_relevance_gain": "SymmetricRelevanceGain",
    "road": "ROAD",
    "complexity": "Complexity",
    "sparseness": "Sparseness",
    "entropy": "Entropy",
    "coherency": "Coherency",
    "adcc": "ADCC",
    "single_deletion": "SingleDeletion",
    "faithfulness_correlation": "FaithfulnessCorrelation",
    "max_sensitivity": "MaxSensitivity",
    "average_sensitivity": "AverageSensitivity",
    "class_sensitivity": "ClassSensitivity",
    "energy_pointing_game": "EnergyPointingGame",
    "pointing_game": "PointingGame",
    "mask_iou": "MaskIoU",
    "relevance_rank_accuracy": "RelevanceRankAccuracy",
    "localization_auc": "LocalizationAUC",
    "top_k_intersection": "TopKIntersection",
}


def objects() -> list[Tensor]:
    """Return a box for each image, with different positions and sizes."""
    corners = torch.randint(0, 7, (24, 2), generator=torch.Generator().manual_seed(3)).tolist()
    masks = torch.zeros(24, 12, 12, dtype=torch.bool)
    for place, (top, left) in enumerate(corners):
        masks[place, top : top + 3 + place % 3, left : left + 5] = True
    return list(masks.split(3))


def every_measure(mine: list[int]) -> dict[str, Tensor]:
    """Return the values of a comparison with all measures, and those of the single metrics."""
    net, images, masks = small_net(), batches(), objects()
    sources = {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "stem")}
    comparison = CAMComparison(sources, measures=list(MEASURES), protocol=FEW)
    metrics = {
        name: getattr(torchmetrics_cam, title)(sources["Layer-CAM"], protocol=FEW)
        for name, title in CLASSES.items()
    }
    for index in mine:
        # Not the predicted class: its confidence is so high that no mask would increase it.
        classes = [(index + place) % 5 for place in range(3)]
        comparison.update(images[index], class_idx=classes, objects=masks[index])
        for name, metric in metrics.items():
            marked = {"objects": masks[index]} if MEASURES[name].needs_objects else {}
            metric.update(images[index], class_idx=classes, **marked)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*was called before the ``update`` method")
        return comparison.compute() | {name: metric.compute() for name, metric in metrics.items()}


@pytest.fixture(scope="module", params=[2, 3], ids=["two processes", "three processes"])
def ranks(request, tmp_path_factory):
    return results_of(on_a_rank, request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("split", SPLITS[2])
@pytest.mark.parametrize("name", METRICS)
def test_rule_19_any_split_over_ranks_gives_the_value_of_one_process(ranks, name, split):
    value, counts = measured(METRICS[name](small_net(), AsDDP), batches())
    assert torch.as_tensor(counts["total"]).sum() == 23
    for found in ranks:
        theirs, their_counts = found[f"{name}, {split}"]
        torch.testing.assert_close(theirs, value, rtol=1e-6, atol=0, equal_nan=True)
        assert their_counts == counts


def test_rule_18_without_a_sample_on_any_rank_the_value_is_nan_and_nothing_hangs(ranks):
    for found in ranks:
        value, counts = found["no sample anywhere"]
        assert value.isnan()
        assert set(counts.values()) == {0}


def test_the_values_of_single_ranks_differ(ranks):
    """The test above can fail: each rank alone has another value."""
    value, _ = measured(METRICS["plain"](small_net(), None), batches())
    for share in SPLITS[2]["uneven"]:
        alone, _ = measured(METRICS["plain"](small_net(), None), [batches()[index] for index in share])
        assert alone.item() != pytest.approx(value.item(), rel=1e-3)


@pytest.fixture(scope="module")
def one_process():
    return every_measure(list(range(8)))


@pytest.mark.parametrize("split", SPLITS[2])
@pytest.mark.parametrize("measure", MEASURES)
def test_every_measure_over_ranks_equals_that_of_one_process(ranks, one_process, measure, split):
    keys = [
        key for key in one_process if measure in key.removesuffix("_lower").removesuffix("_upper").split("/")
    ]
    # Two methods and three controls with two bounds each, and the metric of this measure, if there is one.
    assert len(keys) == 5 * 3 + (measure in CLASSES)
    expected = {key: one_process[key] for key in keys}
    # A constant map has no correlation, and values that are 0 for all images have no interval.
    undefined = {key.split("/")[0] for key, value in expected.items() if value.isnan()}
    assert undefined <= {"uniform map", "center map"}
    for found in ranks:
        theirs = {key: found[split][key] for key in keys}
        torch.testing.assert_close(theirs, expected, rtol=1e-6, atol=1e-9, equal_nan=True)


def test_every_measure_differs_on_single_ranks(one_process):
    """The test above can fail: each rank alone has other values, by 100 times its tolerance, in every measure."""
    for share in SPLITS[2]["uneven"]:
        alone = every_measure(share)
        for measure in MEASURES:
            key = f"Layer-CAM/{measure}"
            assert alone[key].item() != pytest.approx(one_process[key].item(), rel=1e-4), measure


def test_every_measure_except_the_relative_drop_has_a_metric():
    assert MEASURES.keys() - CLASSES.keys() == {"relative_drop"}
