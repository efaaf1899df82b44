"""Sensitivity to noise and to the class: against NumPy and Quantus from the images on, and what is refused."""

import numpy as np
import pytest
import quantus
import torch
from conftest import Calls, HostSyncs, small_net
from quantus.functions.similarity_func import correlation_pearson
from restoration import CONTEXTS, Fragile, traces
from torchmetrics import MetricCollection

from torchmetrics_cam import (
    AverageSensitivity,
    CAMComparison,
    ClassSensitivity,
    EvaluationProtocol,
    MaxSensitivity,
    explain,
)
from torchmetrics_cam.cams import CallableSource, GradCAM, LayerCAM, PrecomputedMaps, UniformMap, as_source
from torchmetrics_cam.functional._noise import hashed_noise

METRICS = {
    "max_sensitivity": MaxSensitivity,
    "average_sensitivity": AverageSensitivity,
    "class_sensitivity": ClassSensitivity,
}
PROTOCOL = EvaluationProtocol(sensitivity_samples=3, sensitivity_radius=0.1)


def layer_cam(net, image, label):
    """Return the normalized map of the layer "stem", from the gradient of the logit, for one image."""
    seen = []
    handle = net.stem[1].register_forward_hook(lambda _m, _a, output: seen.append(output.relu()))
    with torch.enable_grad():
        logits = net(torch.tensor(image)[None])
        features = torch.nn.functional.relu(net.stem[1](net.stem[0](torch.tensor(image)[None]))).detach()
        features.requires_grad_()
        relu = torch.nn.functional.relu(net.body(features))
        net.fc(relu.flatten(2).mean(-1))[0, label].backward()
    handle.remove()
    weights, activations = features.grad[0].numpy(), features.detach()[0].numpy()
    cam = np.maximum((np.maximum(weights, 0) * activations).sum(0), 0)
    low, high = cam.min(), cam.max()
    return (cam - low) / (high - low), logits[0].detach().numpy()


def by_numpy(net, images, classes):
    """Return the measures of each image, from the network and the images alone."""
    found = {name: [] for name in METRICS}
    for image, label in zip(images.numpy(), classes, strict=True):
        clean, logits = layer_cam(net, image, label)
        changes = []
        for seed in range(3):
            noise = hashed_noise(torch.tensor(image)[None], image.size, seed).numpy().reshape(image.shape)
            noisy, _ = layer_cam(net, image + np.float32(0.1) * (2 * noise - 1), label)
            changes.append(np.sqrt(((noisy - clean) ** 2).sum() / (clean**2).sum()))
        others = [index for index in np.argsort(-logits) if index != label]
        other, _ = layer_cam(net, image, others[0])
        correlation = np.corrcoef(clean.ravel(), other.ravel())[0, 1]
        found["max_sensitivity"].append(max(changes))
        found["average_sensitivity"].append(np.mean(changes))
        found["class_sensitivity"].append(1 - max(0, correlation))
    return {name: np.array(values) for name, values in found.items()}


@pytest.mark.parametrize("shape", [(4, 3, 23), (4, 3, 12, 13), (2, 3, 6, 7, 5)], ids=["1d", "2d", "3d"])
def test_against_numpy_from_the_images_on(shape):
    net = small_net(dims=len(shape) - 2)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    source, classes = LayerCAM(net, "stem"), [index % 5 for index in range(shape[0])]
    expected = by_numpy(net, images, classes)
    for name, metric_class in METRICS.items():
        metric = metric_class(source, protocol=PROTOCOL)
        for index in reversed(range(shape[0])):
            metric.update(images[index : index + 1], classes[index])
        assert metric.compute().item() == pytest.approx(expected[name].mean(), abs=1e-5)
        by_class = metric_class(source, protocol=PROTOCOL, num_classes=5, average="none")
        by_class.update(images, classes)
        np.testing.assert_allclose(by_class.compute()[: shape[0]], expected[name], atol=1e-5)
        macro = metric_class(source, protocol=PROTOCOL, num_classes=5, average="macro")
        macro.update(images[:2], classes[:2])
        macro.update(images[:1], classes[:1])
        assert macro.compute().item() == pytest.approx(expected[name][:2].mean(), abs=1e-5)
        assert expected[name].min() > 1e-3


@pytest.fixture
def quantus_call():
    """A network, images, and the maps of our Grad-CAM as Quantus asks for them."""
    net = small_net().float()
    images = torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    source, asked = GradCAM(net, "body"), []

    def grad_cam(model, inputs, targets, **_):
        asked.append(torch.tensor(targets))
        pixels = torch.tensor(np.asarray(inputs), dtype=torch.float32)
        return explain(source, pixels, asked[-1], protocol=ABSOLUTE).masks[:, None].numpy()

    call = {"model": net, "x_batch": images.numpy(), "y_batch": labels.numpy(), "explain_func": grad_cam}
    return call, source, images, labels, asked


# Absolute values, because a rectified map may be zero everywhere, which Quantus divides by.
ABSOLUTE = EvaluationProtocol(rectify="abs", sensitivity_samples=4, sensitivity_radius=0.1)


@pytest.mark.parametrize(
    ("metric_class", "theirs"),
    [(MaxSensitivity, quantus.MaxSensitivity), (AverageSensitivity, quantus.AvgSensitivity)],
)
def test_sensitivity_equals_that_of_quantus_under_the_same_noise(quantus_call, metric_class, theirs):
    """Quantus draws its noise from NumPy's generator, so it is given ours to add."""
    call, source, images, labels, _ = quantus_call
    seeds = iter(range(4))

    def add_noise(arr, **_):
        noise = hashed_noise(images, images[0].numel(), next(seeds)).view_as(images) * 2 - 1
        return arr + 0.1 * noise.numpy().reshape(arr.shape)

    measured = theirs(nr_samples=4, perturb_func=add_noise, disable_warnings=True)
    expected = measured(**call, a_batch=None, device="cpu")
    metric = metric_class(source, protocol=ABSOLUTE)
    metric.update(images, labels)
    assert metric.compute().item() == pytest.approx(np.mean(expected), rel=1e-4)
    assert np.std(expected) > 1e-3


def test_class_sensitivity_is_one_less_the_random_logit_of_quantus(quantus_call):
    """With Pearson's correlation as its similarity, for the random class that Quantus draws for each image."""
    call, source, images, labels, asked = quantus_call
    random_logit = quantus.RandomLogit(
        similarity_func=lambda a, b, batched: [correlation_pearson(*pair) for pair in zip(a, b, strict=True)],
        num_classes=5,
        normalise=False,
        disable_warnings=True,
    )
    theirs = np.array(random_logit(**call, a_batch=None, device="cpu"))
    _, drawn = asked
    ours = []
    for index, other in enumerate(drawn.tolist()):
        metric = ClassSensitivity(source, protocol=ABSOLUTE.replace(other_class=other))
        metric.update(images[index : index + 1], labels[index : index + 1])
        ours.append(metric.compute().item())
    np.testing.assert_allclose(ours, 1 - theirs.clip(min=0), atol=1e-5)


def test_both_sensitivities_run_the_noisy_passes_once(net, images):
    source = GradCAM(net, "body")
    collection = MetricCollection(
        [MaxSensitivity(source), AverageSensitivity(source), ClassSensitivity(source)]
    )
    collection.update(input_tensor=images)
    assert sorted(map(sorted, collection.compute_groups.values())) == [
        ["AverageSensitivity", "MaxSensitivity"],
        ["ClassSensitivity"],
    ]
    with Calls(net) as calls:
        collection.update(input_tensor=images)
    assert calls.batches == [4] * 12
    values = collection.compute()
    assert 0 < values["AverageSensitivity"] < values["MaxSensitivity"]


def brightness_of_class(model, images, class_idx):
    return (images * (1 + class_idx.view(-1, 1, 1, 1))).sin().mean(1)


def other_sources(net):
    import pytorch_grad_cam
    import torchcam

    return {
        "own": GradCAM(net, "body"),
        "function": CallableSource(net, brightness_of_class),
        "torchcam": as_source(torchcam.methods.GradCAM(net, "body")),
        "pytorch-grad-cam": as_source(pytorch_grad_cam.GradCAM(net, [net.body])),
    }


@pytest.mark.parametrize("name", ["own", "function", "torchcam", "pytorch-grad-cam"])
def test_the_other_map_is_that_of_explaining_the_other_class(net, images, name):
    """Of every kind of source, alone and in a comparison with all kinds."""
    source = other_sources(net)[name]
    ranked = net(images).argsort(1, descending=True)
    masks, others = (explain(source, images, classes).masks.flatten(1) for classes in ranked[:, :2].T)
    expected = [1 - max(0, np.corrcoef(*pair)[0, 1]) for pair in zip(masks, others, strict=True)]
    metric = ClassSensitivity(source)
    metric.update(images)
    expected = np.mean([0 if np.isnan(one) else one for one in expected])
    assert metric.compute().item() == pytest.approx(expected, abs=1e-5)
    comparison = CAMComparison(other_sources(net), measures=list(METRICS), protocol=PROTOCOL)
    comparison.update(images)
    assert comparison.compute()[f"{name}/class_sensitivity"].item() == pytest.approx(expected, abs=1e-5)
    alone = MaxSensitivity(source, protocol=PROTOCOL)
    alone.update(images)
    assert comparison.compute()[f"{name}/max_sensitivity"].item() == pytest.approx(
        alone.compute().item(), abs=1e-5
    )


def test_a_single_logit_has_two_classes(images):
    net = small_net(classes=1)
    metric = ClassSensitivity(GradCAM(net, "body"), protocol=EvaluationProtocol(rectify="source"))
    metric.update(images)
    # The gradient of the other class is the negative one.
    assert metric.compute().item() == pytest.approx(1)


def test_an_image_whose_other_class_is_its_own_is_excluded_and_counted(net, images):
    metric = ClassSensitivity(GradCAM(net, "body"), protocol=EvaluationProtocol(other_class=2))
    metric.update(images, [0, 2, 1, 2])
    assert (metric.total, metric.nan_count) == (2, 2)


def test_a_map_that_appears_with_the_noise_has_no_relative_change(net, images):
    def map_of(model, batch, class_idx):
        is_clean = (batch == images.to(batch)).flatten(1).all(1)
        appears = torch.tensor([0.0, 1.0, 0.0, 1.0]) if not is_clean.all() else torch.tensor([0.0, 1, 0, 0])
        ramp = torch.linspace(0, 1, 144, dtype=batch.dtype).view(1, 12, 12)
        return ramp * appears.view(-1, 1, 1).to(batch)

    metric = MaxSensitivity(CallableSource(net, map_of))
    metric.update(images)
    assert (metric.total, metric.nan_count, metric.degenerate_count) == (3, 1, 2)
    assert metric.compute() == 0


@pytest.mark.parametrize("metric_class", METRICS.values())
def test_precomputed_maps_are_refused_at_once(net, metric_class):
    with pytest.raises(ValueError, match=r"needs the maps of (noisy images|another class) too, and Precomp"):
        metric_class(PrecomputedMaps(net))


def test_targets_have_no_other_class_and_are_refused_before_the_model_runs(net, images):
    metric = ClassSensitivity(GradCAM(net, "body"))
    comparison = CAMComparison({"one": GradCAM(net, "body")}, measures=["class_sensitivity"])
    handle = net.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    for one in (metric, comparison):
        with pytest.raises(ValueError, match="targets were given, and Class Sensitivity needs a class; pass"):
            one.update(images, targets=lambda scores: scores[0])
        assert one.update_count == 0
    handle.remove()
    of_targets, of_classes = (MaxSensitivity(GradCAM(net, "body"), protocol=PROTOCOL) for _ in range(2))
    of_targets.update(images, targets=lambda scores: scores[2])
    of_classes.update(images, 2)
    assert of_targets.compute().item() == pytest.approx(of_classes.compute().item(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_in_half_precision_only_the_images_are_rounded(images, dtype):
    """The bits of an image decide about its noise, so the noise differs between dtypes."""
    images, source = images.to(dtype), LayerCAM(small_net().to(dtype), "stem")
    masks = explain(source, images, 1).masks.double().flatten(1)
    changes = []
    for seed in range(3):
        noise = hashed_noise(images, images[0].numel(), seed).view_as(images).double() * 2 - 1
        noisy = explain(source, (images.double() + 0.1 * noise).to(dtype), 1).masks.double().flatten(1)
        changes.append((noisy - masks).norm(dim=1) / masks.norm(dim=1))
    changes = torch.stack(changes)
    expected = {MaxSensitivity: changes.amax(0).mean(), AverageSensitivity: changes.mean()}
    for metric_class, value in expected.items():
        metric = metric_class(source, protocol=PROTOCOL)
        metric.update(images, 1)
        assert metric.total == 4
        assert metric.compute().item() == pytest.approx(
            value.item(), rel=0.02 if dtype.itemsize == 2 else 1e-4
        )
    exact, metric = (
        ClassSensitivity(LayerCAM(small_net().to(one), "stem")) for one in (torch.float64, dtype)
    )
    exact.update(images.double())
    metric.update(images)
    assert metric.compute().item() == pytest.approx(exact.compute().item(), abs=0.02)


@pytest.mark.parametrize("metric_class", METRICS.values())
def test_no_update_synchronizes_a_gpu_with_the_host(net, images, metric_class):
    metric = metric_class(GradCAM(net, "body"), protocol=PROTOCOL, validate_args=False)
    metric.update(images)
    with HostSyncs() as syncs:
        metric.update(images)
    assert (syncs.seen, syncs.copies) == ([], 0)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("metric_class", METRICS.values())
def test_an_update_leaves_no_trace_also_if_it_fails(images, metric_class, context):
    model, images = Fragile(small_net().float()).train(), images.float()
    metric = metric_class(GradCAM(model, "net.body"), protocol=PROTOCOL)
    with CONTEXTS[context]():
        before = traces(model, images)
        metric.update(images)
        assert traces(model, images) == before
        model.fails_at = model.calls + (1 if metric_class is ClassSensitivity else 3)
        with pytest.raises(ArithmeticError, match="on purpose"):
            metric.update(images)
        assert traces(model, images) == before
    assert (metric.total, metric.update_count) == (4, 1)


def test_a_uniform_map_is_insensitive_to_everything(net, images):
    for metric_class in METRICS.values():
        metric = metric_class(UniformMap(net, 0.5), protocol=PROTOCOL)
        metric.update(images)
        assert (metric.compute(), metric.total, metric.degenerate_count) == (0, 4, 4)
