"""Subclasses of tensors, such as MONAI's: values and states are plain tensors, with the same values."""

import io
import re

import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor, nn

import torchmetrics_cam
from torchmetrics_cam import CAMComparison, EvaluationProtocol, explain, parameter_randomization
from torchmetrics_cam.cams import CallableSource, GradCAM, PrecomputedMaps
from torchmetrics_cam.metrics.localization import LocalizationMetric
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.metrics.single_source import SingleSourceMetric

DTYPE = torch.float32
METRICS = sorted(
    name
    for name in torchmetrics_cam.__all__
    if isinstance(cls := getattr(torchmetrics_cam, name), type) and issubclass(cls, SingleSourceMetric)
)
LOCALIZATION = [name for name in METRICS if issubclass(getattr(torchmetrics_cam, name), LocalizationMetric)]
FEW = EvaluationProtocol.preset("paper").replace(curve_steps=3, road_fractions=(0.3,), top_k=20)
BASELINES = ("baseline", "deletion_baseline", "insertion_baseline")
OBJECTS = torch.zeros(4, 12, 12)
OBJECTS[:, 2:6, 3:7] = 1
CLASSES = torch.tensor([1, 2, 3, 0])


class Returning(nn.Module):
    """A network that returns a tensor of a class."""

    def __init__(self, net, kind):
        super().__init__()
        self.net, self.kind = net, kind

    def forward(self, images):
        return self.kind(self.net(images))


def explained(what, kind, net, images):
    """Return what makes a metric, and the arguments of update; ``what`` of these are tensors of the class ``kind``."""

    def of(name):
        return kind if name == what else Tensor.clone

    network = Returning(net, of("network"))
    protocol = FEW
    if what == "baseline":
        protocol = FEW.replace(**dict.fromkeys(BASELINES, of(what)(torch.full((3, 12, 12), 0.2))))
    if what == "baseline function":
        protocol = FEW.replace(**dict.fromkeys(BASELINES, lambda images: of(what)(images * 0.5)))
    source = GradCAM(network, "net.body")
    if what == "maps":
        source = CallableSource(network, lambda model, images, class_idx: of(what)(images.mean(1)))
    update = {"input_tensor": of("images")(images), "class_idx": of("class_idx")(CLASSES)}
    if what == "targets":
        update = {"input_tensor": images, "targets": lambda output: of(what)(output.softmax(0)[1])}
    if what == "cams":
        source = PrecomputedMaps(network)
        update["cams"] = of(what)(torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(0)))
    logits_fn = (lambda output: of(what)(output.softmax(1))) if what == "logits_fn" else None
    return source, {"logits_fn": logits_fn, "protocol": protocol}, update, of("objects")(OBJECTS)


def check_plain(value):
    if isinstance(value, Tensor):
        assert type(value) is Tensor
    elif isinstance(value, dict):
        check_plain(list(value.values()))
    elif isinstance(value, list | tuple):
        for part in value:
            check_plain(part)


FOREIGN = (
    "images",
    "class_idx",
    "targets",
    "objects",
    "cams",
    "maps",
    "baseline",
    "baseline function",
    "logits_fn",
    "network",
)


def refused(measure, what):
    """Whether a measure needs further maps, which cannot be computed beforehand, or a class."""
    return (what == "cams" and measure.further_maps) or (what == "targets" and measure.needs_class)


SNAKE_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
CASES = [
    (name, what)
    for name in METRICS
    for what in FOREIGN
    if not refused(MEASURES.get(SNAKE_CASE.sub("_", name).lower(), MEASURES["average_drop"]), what)
]


@pytest.mark.parametrize(("name", "what"), CASES)
def test_metrics_return_and_store_plain_tensors(net, images, name, what):
    values = []
    for kind in (Tensor.clone, MetaTensor):
        source, settings, update, objects = explained(what, kind, net, images)
        metric = getattr(torchmetrics_cam, name)(source, **settings)
        update |= {"objects": objects} if name in LOCALIZATION else {}
        check_plain(metric(**update))
        values.append(metric.compute())
        check_plain([values[-1], metric.metric_state])
        metric.persistent(True)
        content = io.BytesIO()
        torch.save(metric.state_dict(), content)
        content.seek(0)
        assert torch.load(content, weights_only=True).keys() == metric.state_dict().keys()
    torch.testing.assert_close(values[0], values[1], rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("what", FOREIGN)
def test_comparisons_and_batches_return_and_store_plain_tensors(net, images, what):
    found = []
    for kind in (Tensor.clone, MetaTensor):
        source, settings, update, objects = explained(what, kind, net, images)
        measures = [name for name, measure in MEASURES.items() if not refused(measure, what)]
        comparison = CAMComparison({"own": source}, measures=measures, per_sample=True, **settings)
        check_plain(comparison(**update, objects=objects, index=kind(torch.tensor([5, 6, 7, 8]))))
        found.append((comparison.compute(), comparison.samples(), comparison.win_rate()))
        check_plain([found[-1], comparison.metric_state, comparison.curve("deletion_auc")])
        check_plain(list(vars(comparison.paired_difference("own", "random map")).values()))
        assert found[-1][1]["index"].tolist() == [5, 6, 7, 8]
        batch = explain({"own": source}, **update, **settings)
        for attribute in ("images", "maps", "masks", "masked_images", "scores", "masked_scores"):
            check_plain(getattr(batch, attribute))
        check_plain([batch.class_idx, batch.deletion_scores, batch.road_scores, batch.outside, batch.valid])
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7, equal_nan=True)


def test_the_randomization_test_returns_plain_tensors(net, images):
    source, _, update, _ = explained("images", MetaTensor, net, images)
    images, class_idx = update["input_tensor"], MetaTensor(update["class_idx"])
    result = parameter_randomization(source.model, source, images, class_idx=class_idx)
    check_plain([result.rank_correlation, result.ssim, result.entropy, result.entropy_rise])
