"""Long runs: nothing is lost where some updates fail, and nothing grows where none does."""

import gc
import random

import pytest
import torch
from conftest import small_net
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchcam import methods
from torchmetrics import MetricCollection

from torchmetrics_cam import AverageDrop, AverageGain, ClassificationMetric, IncreaseInConfidence
from torchmetrics_cam.cams import CallableSource, GradCAM, LayerCAM


class FailsAtRandom:
    """Raises at a random call of what it is hung into; the batch that is running is lost, and no other."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.countdown = -1

    def arm(self) -> bool:
        """Before a batch: whether something shall fail in it, and at which call."""
        self.countdown = self.random.randrange(1, 9) if self.random.random() < 0.5 else -1
        return self.countdown > 0

    def __call__(self, *_: object) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            raise ArithmeticError("on purpose")


class FailingImages(Dataset):
    """Images of which some cannot be read."""

    def __init__(self, images: torch.Tensor, fault: FailsAtRandom) -> None:
        self.images = images
        self.fault = fault

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        self.fault()
        return self.images[index]


class FailingLayerCAM(LayerCAM):
    def formula(self, activation, gradient):
        self.fault()
        return super().formula(activation, gradient)


def own(net, fault):
    source = FailingLayerCAM(net, "body")
    source.fault = fault
    return source


def of_torchcam(net, fault):
    extractor = methods.LayerCAM(net, "body")
    fuse = extractor.fuse_cams

    def failing(maps):
        fault()
        return fuse(maps)

    extractor.fuse_cams = failing
    return extractor


def rude(net, fault):
    def backward_and_zero_grad(model, images, class_idx):
        model.zero_grad()
        fault()
        model(images).gather(1, class_idx.unsqueeze(1)).sum().backward()
        fault()
        return images.grad.abs().sum(1)

    return CallableSource(net, backward_and_zero_grad)


def states(metric):
    return {name: getattr(metric, name).clone() for name in metric._defaults if name != "identity"}


@pytest.mark.parametrize("call", ["update", "forward"])
@pytest.mark.parametrize("make", [own, of_torchcam, rude], ids=lambda make: make.__name__)
def test_failures_at_random_points_lose_no_successful_update(make, call):
    """Of the model, the extractor or the loader; the value is that of the updates that succeeded, bit for bit."""
    fault = FailsAtRandom(seed=3)
    net = small_net().train()
    for module in (net, net.body, net.fc):
        module.register_forward_hook(lambda _m, _a, output, fault=fault: fault() or None)
    metric, alone = AverageDrop(make(net, fault)), AverageDrop(make(net, fault))
    images = torch.rand(400, 3, 8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    failed = 0
    loader = DataLoader(FailingImages(images, fault), batch_size=2)
    batches = iter(loader)
    for number in range(200):
        fault.arm()
        try:
            batch = next(batches)
            getattr(metric, call)(batch)
        except ArithmeticError:
            failed += 1
            continue
        finally:
            fault.countdown = -1
        getattr(alone, call)(images[2 * number : 2 * number + 2])
    assert 30 < failed < 170
    assert metric.update_count == alone.update_count == 200 - failed
    before = states(alone)
    assert all(torch.equal(state, before[name]) for name, state in states(metric).items())
    assert metric.total == 2 * (200 - failed)
    assert torch.equal(metric.compute(), alone.compute())
    assert metric.compute() > 0
    assert net.training
    assert all(torch.equal(value, weights[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def live_tensors():
    gc.collect()
    return [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def hooks(model):
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


METRICS = {
    "own CAM": lambda net: AverageDrop(GradCAM(net, "body")),
    "torchcam": lambda net: ClassificationMetric(methods.GradCAM(net, "body"), torch.sigmoid),
    "collection": lambda net: MetricCollection(
        {"drop": AverageDrop(GradCAM(net, "body")), "rise": IncreaseInConfidence(GradCAM(net, "body"))}
    ),
    "one value a class": lambda net: AverageGain(GradCAM(net, "body"), num_classes=5, average="none"),
}


@pytest.mark.parametrize("name", METRICS)
def test_two_thousand_updates_leave_nothing_that_grows(name):
    net = small_net(dims=1)
    metric = METRICS[name](net)
    images = torch.rand(2, 3, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    hooks_before = hooks(net)
    counts, memory = [], []
    held = live_tensors()  # What an earlier test left may not be freed between the two counts.
    for number in range(2001):
        metric.update(images, class_idx=number % 5)
        if number in (400, 2000):
            counts.append(len(live_tensors()))
            memory.append(resident_bytes())
    assert counts[0] == counts[1] >= len(held)
    assert hooks(net) == hooks_before
    # A leak of one activation or graph an update would be several times this.
    assert memory[1] - memory[0] < 2**21


def test_growth_would_be_noticed(images):
    kept, before = [], len(live_tensors())
    kept.append(nn.Flatten()(images))
    assert len(live_tensors()) == before + 1
