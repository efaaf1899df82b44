"""Single Deletion and Faithfulness Correlation: against NumPy from the images on, in any batch, and what is refused."""

import numpy as np
import pytest
import torch
from conftest import Calls, HostSyncs, small_net
from restoration import Fragile, traces
from scipy import stats

from torchmetrics_cam import (
    CAMComparison,
    EvaluationProtocol,
    FaithfulnessCorrelation,
    SingleDeletion,
    explain,
)
from torchmetrics_cam.cams import GradCAM, LayerCAM, PrecomputedMaps, UniformMap
from torchmetrics_cam.functional._noise import hashed_noise

METRICS = {"single_deletion": SingleDeletion, "faithfulness_correlation": FaithfulnessCorrelation}
BASELINE = 0.3
PROTOCOL = EvaluationProtocol(
    baseline=BASELINE, deletion_grid=3, correlation_grid=5, correlation_subsets=9, correlation_fraction=0.4
)


def outputs(net, image):
    """Return the raw outputs and the softmax of them for one image."""
    with torch.no_grad():
        raw = net(torch.tensor(image)[None])[0].double().numpy()
    return raw, np.exp(raw - raw.max()) / np.exp(raw - raw.max()).sum()


def cells_of(size, per_axis):
    """Return the cell of each pixel, by a loop over the pixels."""
    borders = [[round(cell * side / per_axis) for cell in range(per_axis)] for side in size]
    numbers = np.zeros(size, int)
    for position in np.ndindex(*size):
        number = 0
        for first_pixels, place in zip(borders, position, strict=True):
            number = number * per_axis + sum(first <= place for first in first_pixels) - 1
        numbers[position] = number
    return numbers


def by_numpy(net, images, maps, classes):
    """Return both measures of each image, from the network, the images and the maps alone."""
    found = {name: [] for name in METRICS}
    for image, mask, label in zip(images.numpy(), maps.double().numpy(), classes, strict=True):
        size, (raw, scores) = image.shape[1:], outputs(net, image)
        cells = cells_of(size, 3)
        sums, drops = [], []
        for cell in range(3 ** len(size)):
            hidden = np.where(cells == cell, BASELINE, image).astype(image.dtype)
            sums.append(sum(mask[cells == cell]))
            drops.append(raw[label] - outputs(net, hidden)[0][label])
        found["single_deletion"].append(stats.spearmanr(sums, drops).statistic)
        cells, count = cells_of(size, 5), 5 ** len(size)
        noise = hashed_noise(torch.tensor(image)[None], 9 * count, 0x2545F491).view(9, count).numpy()
        sums, drops = [], []
        for row in noise:
            subset = sorted(range(count), key=lambda cell: row[cell])[: round(0.4 * count)]
            hidden = np.where(np.isin(cells, subset), BASELINE, image).astype(image.dtype)
            sums.append(mask[np.isin(cells, subset)].sum())
            drops.append(scores[label] - outputs(net, hidden)[1][label])
        found["faithfulness_correlation"].append(stats.pearsonr(sums, drops).statistic)
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("shape", [(4, 3, 23), (4, 3, 12, 13), (2, 3, 6, 7, 5)], ids=["1d", "2d", "3d"])
def test_against_numpy_from_the_images_on(shape):
    net = small_net(dims=len(shape) - 2)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    source, classes = LayerCAM(net, "stem"), [index % 5 for index in range(shape[0])]
    expected = by_numpy(net, images, explain(source, images, classes).masks, classes)
    for name, metric_class in METRICS.items():
        metric = metric_class(source, protocol=PROTOCOL)
        for index in reversed(range(shape[0])):
            metric.update(images[index : index + 1], classes[index])
        assert metric.compute().item() == pytest.approx(expected[name].mean(), abs=1e-6)
        by_class = metric_class(source, protocol=PROTOCOL, num_classes=5, average="none", batch_size=3)
        by_class.update(images, classes)
        np.testing.assert_allclose(by_class.compute()[: shape[0]], expected[name], atol=1e-6)
        macro = metric_class(source, protocol=PROTOCOL, num_classes=5, average="macro")
        macro.update(images[:2], classes[:2])
        macro.update(images[:1], classes[:1])
        assert macro.compute().item() == pytest.approx(expected[name][:2].mean(), abs=1e-6)
        assert np.abs(expected[name]).max() > 0.05


def test_hidden_images_are_scored_once_for_all_methods_and_are_right_for_each(net, images):
    sources = {"one": GradCAM(net, "body"), "two": LayerCAM(net, "stem")}
    comparison = CAMComparison(
        sources, measures=list(METRICS), controls=False, protocol=PROTOCOL, batch_size=100
    )
    with Calls(net) as calls:
        comparison.update(images)
    assert calls.batches == [4, 4 * 9, 4 * 9]
    for name, metric_class in METRICS.items():
        for method, source in sources.items():
            metric = metric_class(source, protocol=PROTOCOL)
            metric.update(images)
            value = comparison.compute()[f"{method}/{name}"]
            assert value.item() == pytest.approx(metric.compute().item(), abs=1e-6)


@pytest.mark.parametrize("metric_class", METRICS.values())
def test_a_constant_map_is_excluded_and_counted(net, images, metric_class):
    metric = metric_class(UniformMap(net, 0.5))
    metric.update(images)
    assert (metric.total, metric.nan_count) == (0, 4)
    metric = metric_class(PrecomputedMaps(net))
    maps = torch.rand(4, 6, 6)
    maps[1] = 0.7
    maps[3, 0, 0] = torch.nan
    metric.update(images, cams=maps)
    assert (metric.total, metric.nan_count) == (2, 2)


@pytest.mark.parametrize(
    ("metric_class", "grid"),
    [(SingleDeletion, "deletion_grid"), (FaithfulnessCorrelation, "correlation_grid")],
)
def test_images_smaller_than_the_grid_are_refused_before_the_model_runs(net, images, metric_class, grid):
    metric = metric_class(GradCAM(net, "body"), protocol=EvaluationProtocol(**{grid: 13}))
    comparison = CAMComparison(
        {"one": GradCAM(net, "body")}, measures=[metric_class.measure.name], protocol=metric.protocol
    )
    net.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    message = f"12 x 12 pixels has no grid of 13 cells along each axis; choose {grid} from 1 to 12"
    for one in (metric, comparison):
        with pytest.raises(ValueError, match=message):
            one.update(images)
        assert one.update_count == 0


def test_targets_have_no_logit_and_are_refused_before_the_model_runs(net, images):
    one_of_each = [SingleDeletion(GradCAM(net, "body"))]
    one_of_each.append(CAMComparison({"one": GradCAM(net, "body")}, measures=["single_deletion"]))
    handle = net.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    for metric in one_of_each:
        with pytest.raises(ValueError, match="targets were given, and Single Deletion needs a class"):
            metric.update(images, targets=lambda scores: scores[0])
        assert metric.update_count == 0
    handle.remove()
    maps = torch.rand(4, 12, 12)
    of_targets, of_classes = (FaithfulnessCorrelation(PrecomputedMaps(net)) for _ in range(2))
    of_targets.update(images, targets=lambda scores: scores[2], cams=maps)
    of_classes.update(images, 2, cams=maps)
    assert of_targets.compute().item() == pytest.approx(of_classes.compute().item(), abs=1e-9)


def test_a_single_logit_has_a_drop_for_both_classes(images):
    """The logit of class 0 is the negative one, whose drops have the opposite sign."""
    net = small_net(classes=1)
    maps, values = torch.rand(4, 12, 12), []
    for label in (0, 1):
        metric = SingleDeletion(PrecomputedMaps(net))
        metric.update(images, label, cams=maps)
        values.append(metric.compute().item())
    assert values[0] == pytest.approx(-values[1])
    assert abs(values[0]) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("metric_class", METRICS.values())
def test_half_precision_is_near(images, metric_class, dtype):
    exact, metric = (
        metric_class(GradCAM(small_net(), "body")),
        metric_class(GradCAM(small_net().to(dtype), "body")),
    )
    # The same values in both, because the image decides about the subsets.
    images = images.to(dtype)
    exact.update(images.double())
    metric.update(images)
    assert metric.total == 4
    if metric_class is SingleDeletion:
        assert metric.compute().item() == pytest.approx(exact.compute().item(), abs=0.1)


@pytest.mark.parametrize("metric_class", METRICS.values())
def test_no_update_synchronizes_a_gpu_with_the_host(net, images, metric_class):
    metric = metric_class(GradCAM(net, "body"), validate_args=False)
    metric.update(images)
    with HostSyncs() as syncs:
        metric.update(images)
    assert (syncs.seen, syncs.copies) == ([], 0)


@pytest.mark.parametrize("metric_class", METRICS.values())
def test_an_update_leaves_no_trace_also_if_it_fails(images, metric_class):
    model, images = Fragile(small_net().float()).train(), images.float()
    metric = metric_class(GradCAM(model, "net.body"))
    before = traces(model, images)
    metric.update(images)
    assert traces(model, images) == before
    value = metric.compute()
    model.fails_at = model.calls + 3
    with pytest.raises(ArithmeticError, match="on purpose"):
        metric.update(images)
    assert traces(model, images) == before
    assert (metric.total, metric.update_count) == (4, 1)
    assert torch.equal(metric.compute(), value)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_the_unit_of_maps_that_are_not_normalized_does_not_matter(name, scale):
    net = small_net()
    images = torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    protocol = PROTOCOL.replace(normalize="none")
    values = []
    for factor in (1, scale):
        metric = METRICS[name](PrecomputedMaps(net), protocol=protocol)
        metric.update(images, class_idx=1, cams=factor * images[:, 0])
        assert (metric.total, metric.nan_count) == (4, 0)
        values.append(metric.compute().item())
    assert values[1] == pytest.approx(values[0], abs=1e-6)
