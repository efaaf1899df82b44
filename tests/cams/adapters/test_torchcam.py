"""torchcam 0.5: the numbers of its own metric, for its extractors and for objects that behave like one."""

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
    """What torchcam's metric and ours say of the same extractor, seeds and batches."""
    told = []
    for cls in (TorchcamMetric, ClassificationMetric):
        torch.manual_seed(0)
        with make() as extractor:
            metric = cls(extractor, logits_fn)
            for batch in batches:
                metric.update(batch, **update)
            told.append((metric.summary(), int(metric.nan_count)))
    return told


def assert_same(told):
    (theirs, their_nans), (ours, our_nans) = told
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    assert our_nans == their_nans


@pytest.mark.parametrize("class_idx", [None, 285, "list"], ids=["top class", "one class", "a class each"])
@pytest.mark.parametrize("name", SIX)
def test_same_numbers_on_photos(lite0, photos, name, class_idx):
    images, layer = photos, "_bn1"
    if name in ("ScoreCAM", "SmoothGradCAMpp"):
        # They run the network many times: fewer photos, at half the size; and for Score-CAM, which needs a
        # forward pass for every channel of the layer, the layer with the fewest.
        images = nn.functional.avg_pool2d(photos[:2], 2)
        layer = "_bn0" if name == "ScoreCAM" else "_bn1"
    if class_idx == "list":
        class_idx = list(range(280, 280 + len(images)))
    told = both(lambda: getattr(methods, name)(lite0, layer), [images], class_idx=class_idx)
    assert_same(told)
    assert class_idx is not None or told[1][0]["avg_drop"] > 0


@pytest.mark.parametrize("class_idx", [None, 3, "list"], ids=["top class", "one class", "a class each"])
@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("layer", ["3", ["1", "3"]], ids=["one layer", "two layers"])
def test_same_numbers_on_digits(digits, name, class_idx, layer):
    model, images, labels = digits
    if class_idx == "list":
        class_idx = labels[:16].tolist()
    batches = images[:32].split(16)
    assert_same(both(lambda: getattr(methods, name)(model, layer), batches, class_idx=class_idx))


@pytest.mark.filterwarnings("ignore:.*scores lie outside of")
@pytest.mark.parametrize("logits_fn", [None, SOFTMAX], ids=["raw output", "softmax"])
def test_same_numbers_through_targets_and_without_logits_fn(digits, logits_fn):
    model, images, _ = digits
    targets = [lambda scores: scores[3] - 0.5 * scores[5]] * 16
    make = partial(methods.GradCAM, model, "3")
    assert_same(both(make, [images[:16]], logits_fn, targets=targets))
    assert_same(both(make, [images[:16]], logits_fn, targets=targets[0]))
    assert_same(both(make, [images[:16]], None, class_idx=2))


def test_same_numbers_for_every_other_extractor(digits):
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


def test_same_numbers_for_legrad_on_a_vit():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 24, 48, num_classes=5).eval()
    nn.init.normal_(model.heads.head.weight)
    images = torch.rand(3, 3, 32, 32)
    make = partial(methods.LeGrad, model, list(model.encoder.layers))
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        told = both(make, [images])
        assert_same(told)
    metric = AverageDrop(make())
    metric.update(images)
    assert metric.total == 3


class FrameMap:
    """An extractor by behavior alone: no hooks, nothing of torchcam's, its own gradient of the input."""

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


def test_a_hand_written_extractor_is_known_by_its_behavior(digits):
    model, images, labels = digits
    told = []
    for cls in (TorchcamMetric, ClassificationMetric):
        extractor = FrameMap(model)
        metric = cls(extractor, SOFTMAX)
        for class_idx in (None, 4, labels[:8].tolist()):
            # torchcam's own metric gives the model the images as they are, so they must ask for a gradient.
            metric.update(images[:8].clone().requires_grad_(cls is TorchcamMetric), class_idx)
        extractor.handle.remove()
        told.append((metric.summary(), metric.nan_count))
    assert_same(told)


def test_hooks_are_switched_off_for_the_masked_forward_pass(digits):
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


def test_the_paper_protocol_asks_torchcam_for_the_maps_before_its_normalization(digits):
    """Grad-CAM is one method: through torchcam's extractor and through ours it has the same drop."""
    model, images, _ = digits
    values = []
    for source in (methods.GradCAM(model, "3"), GradCAM(model, "3")):
        metric = AverageDrop(source)
        metric.update(images[:64])
        values.append(metric.compute())
    assert values[0] > 0
    torch.testing.assert_close(*values, rtol=1e-6, atol=0)


def test_torchcams_own_grad_cam_plus_plus_is_another_method(digits):
    """Its division is lost in an in-place operation on a copy; ours is the paper's, so the two differ."""
    model, images, _ = digits
    ours, theirs = AverageDrop(GradCAMPlusPlus(model, "3")), AverageDrop(methods.GradCAMpp(model, "3"))
    ours.update(images)
    theirs.update(images)
    assert (ours.compute() - theirs.compute()).abs() > 1e-3


def test_the_extractor_names_the_source(net):
    extractor = methods.LayerCAM(net, "body")
    assert repr(as_source(extractor)) == "LayerCAM(target_layer=['body'])"


def test_one_nan_map_leaves_the_mean_of_the_others_and_is_counted(net, images):
    class WithNan(methods.GradCAM):
        broken = slice(0, 0)

        def compute_cams(self, *args, **kwargs):
            cams = super().compute_cams(*args, **kwargs)
            cams[0][self.broken] = float("nan")
            return cams

    told = []
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
        told.append((metric.summary(), int(metric.nan_count)))
    assert_same(told)
