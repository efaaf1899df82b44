"""torchcam 0.5: the values of its own metric, for its extractors and for objects with the same methods."""

from functools import partial

import pytest
import torch
import torchvision
from conftest import small_net
from torch import nn
from torchcam import methods
from torchcam.metrics import ClassificationMetric as TorchcamMetric

from torchmetrics_cam import AverageDrop, ClassificationMetric
from torchmetrics_cam.cams import GradCAM, GradCAMPlusPlus, as_source

SOFTMAX = partial(torch.softmax, dim=-1)
SIX = ["GradCAM", "GradCAMpp", "XGradCAM", "LayerCAM", "ScoreCAM", "SmoothGradCAMpp"]


def both(make, batches, logits_fn=SOFTMAX, **update):
    """Return the results of torchcam's metric and of this package's for the same extractor, seeds and batches."""
    results = []
    for cls in (TorchcamMetric, ClassificationMetric):
        torch.manual_seed(0)
        with make() as extractor:
            metric = cls(extractor, logits_fn)
            for batch in batches:
                metric.update(batch, **update)
            results.append((metric.summary(), int(metric.nan_count)))
    return results


def assert_same(results):
    (theirs, their_nans), (ours, our_nans) = results
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    assert our_nans == their_nans


@pytest.mark.parametrize("class_idx", [None, 285, "list"], ids=["top class", "one class", "a class each"])
@pytest.mark.parametrize("name", SIX)
def test_values_equal_torchcams_metric_on_photos(lite0, photos, name, class_idx):
    images, layer = photos, "_bn1"
    if name in ("ScoreCAM", "SmoothGradCAMpp"):
        # These methods run the network many times: fewer photos at half the size, and for Score-CAM, which needs a
        # forward pass per channel of the layer, the layer with the fewest channels.
        images = nn.functional.avg_pool2d(photos[:2], 2)
        layer = "_bn0" if name == "ScoreCAM" else "_bn1"
    if class_idx == "list":
        class_idx = list(range(280, 280 + len(images)))
    results = both(lambda: getattr(methods, name)(lite0, layer), [images], class_idx=class_idx)
    assert_same(results)
    assert class_idx is not None or results[1][0]["avg_drop"] > 0


@pytest.mark.parametrize("class_idx", [None, 3, "list"], ids=["top class", "one class", "a class each"])
@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("layer", ["3", ["1", "3"]], ids=["one layer", "two layers"])
def test_values_equal_torchcams_metric_on_digits(digits, name, class_idx, layer):
    model, images, labels = digits
    if class_idx == "list":
        class_idx = labels[:16].tolist()
    batches = images[:32].split(16)
    assert_same(both(lambda: getattr(methods, name)(model, layer), batches, class_idx=class_idx))


@pytest.mark.filterwarnings("ignore:.*scores lie outside of")
@pytest.mark.parametrize("logits_fn", [None, SOFTMAX], ids=["raw output", "softmax"])
def test_values_equal_torchcams_metric_with_targets_and_without_logits_fn(digits, logits_fn):
    model, images, _ = digits
    targets = [lambda scores: scores[3] - 0.5 * scores[5]] * 16
    make = partial(methods.GradCAM, model, "3")
    assert_same(both(make, [images[:16]], logits_fn, targets=targets))
    assert_same(both(make, [images[:16]], logits_fn, targets=targets[0]))
    assert_same(both(make, [images[:16]], None, class_idx=2))


def test_values_equal_torchcams_metric_for_all_other_extractors(digits):
    model = small_net(channels=1, classes=10).float()
    images = digits[1][:8]
    for make in (
        partial(methods.CAM, model, "relu", "fc"),
        partial(methods.SSCAM, model, "body", num_samples=2),
        partial(methods.ISCAM, model, "body", num_samples=2),
        partial(methods.RefineCAM, model, ["stem", "body"]),
        partial(methods.RefineCAM, model, ["stem", "body"], base_method=methods.LayerCAM),
        partial(methods.FinerCAM, model, "body"),
        partial(methods.FinerCAM, model, "body", base_method=methods.LayerCAM),
    ):
        assert_same(both(make, images.split(4)))
        assert_same(both(make, [images], class_idx=3))


def test_values_equal_torchcams_metric_for_legrad_on_a_vit():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)
    images = torch.rand(3, 3, 32, 32)
    make = partial(methods.LeGrad, model, list(model.encoder.layers))
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        results = both(make, [images])
        assert_same(results)
    metric = AverageDrop(make())
    metric.update(images)
    assert metric.total == 3


class FrameMap:
    """An extractor with torchcam's methods but without its classes; it computes the gradient of the input."""

    def __init__(self, model):
        self.model = model
        self.handle = model.register_forward_pre_hook(self._store)

    def _store(self, _module, args):
        self.seen = args[0]

    def _hooks_off(self):
        return torch.autograd.set_grad_enabled(torch.is_grad_enabled())

    def __call__(self, class_idx, scores):
        index = torch.tensor(class_idx).expand(len(scores)).unsqueeze(1)
        gradient = torch.autograd.grad(scores.gather(1, index).sum(), self.seen)[0]
        return [gradient.abs().mean(1)]

    def fuse_cams(self, cams):
        return cams[0]


def test_an_extractor_is_recognized_by_its_methods(digits):
    model, images, labels = digits
    results = []
    for cls in (TorchcamMetric, ClassificationMetric):
        extractor = FrameMap(model)
        metric = cls(extractor, SOFTMAX)
        for class_idx in (None, 4, labels[:8].tolist()):
            # torchcam's own metric passes the images unchanged, so they must require gradients.
            metric.update(images[:8].clone().requires_grad_(cls is TorchcamMetric), class_idx)
        extractor.handle.remove()
        results.append((metric.summary(), metric.nan_count))
    assert_same(results)


def test_hooks_are_disabled_for_the_masked_forward_pass(digits):
    class Plain:
        def __init__(self, model):
            self.model, self.log = model, []

        def __call__(self, class_idx, scores):
            self.log.append("maps")
            return [torch.rand(len(scores), 2, 2)]

        def fuse_cams(self, cams):
            return cams[0]

    class Switched(Plain):
        def disable_hooks(self):
            self.log.append("off")

        def enable_hooks(self):
            self.log.append("on")

    model, images, _ = digits
    for cls, expected in ((Plain, ["maps"]), (Switched, ["maps", "off", "on"])):
        extractor = cls(model)
        metric = ClassificationMetric(extractor, SOFTMAX)
        metric.update(images[:2])
        assert extractor.log == expected


def test_the_paper_protocol_uses_torchcams_maps_before_normalization(digits):
    """Grad-CAM has the same drop with torchcam's extractor and with this package's."""
    model, images, _ = digits
    values = []
    for source in (methods.GradCAM(model, "3"), GradCAM(model, "3")):
        metric = AverageDrop(source)
        metric.update(images[:64])
        values.append(metric.compute())
    assert values[0] > 0
    torch.testing.assert_close(*values, rtol=1e-6, atol=0)


def test_torchcams_grad_cam_plus_plus_differs_from_the_paper(digits):
    """torchcam 0.5 applies the division to a copy and loses it; this package follows the paper."""
    model, images, _ = digits
    ours, theirs = AverageDrop(GradCAMPlusPlus(model, "3")), AverageDrop(methods.GradCAMpp(model, "3"))
    ours.update(images)
    theirs.update(images)
    assert (ours.compute() - theirs.compute()).abs() > 1e-3


def test_repr_is_that_of_the_extractor(net):
    extractor = methods.LayerCAM(net, "body")
    assert repr(as_source(extractor)) == "LayerCAM(target_layer=['body'])"


def test_nan_maps_are_excluded_and_counted(net, images):
    class WithNan(methods.GradCAM):
        broken = slice(0, 0)

        def compute_cams(self, *args, **kwargs):
            cams = super().compute_cams(*args, **kwargs)
            cams[0][self.broken] = float("nan")
            return cams

    results = []
    for cls in (TorchcamMetric, ClassificationMetric):
        with WithNan(net, "body") as extractor:
            metric = cls(extractor, SOFTMAX)
            extractor.broken = slice(1, 2)
            metric.update(images)
            after_one = dict(metric.summary())
            extractor.broken = slice(None)
            metric.update(images)
            assert metric.summary() == after_one
            assert int(metric.nan_count) == 5
            assert int(metric.total) == 3
        results.append((metric.summary(), int(metric.nan_count)))
    assert_same(results)
