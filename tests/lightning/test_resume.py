"""evaluate(partial=...): an interrupted evaluation continues to the same value."""

import os
import random
from functools import partial

import numpy as np
import pytest
import pytorch_grad_cam as library
import torch
from monai.data import MetaTensor
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from torchmetrics_cam import AverageDrop, CAMComparison, EvaluationProtocol
from torchmetrics_cam.cams import (
    CallableSource,
    CAMSource,
    CenterMap,
    GradCAM,
    GradCAMPlusPlus,
    LayerCAM,
    SourceMaps,
    UniformMap,
)
from torchmetrics_cam.lightning import evaluate
from torchmetrics_cam.lightning.resume import restore_states

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


class Interrupting(Dataset):
    """Images, one of which raises an error in its first batch, as Ctrl-C or a full disk would.

    Single images are read for the digest only.
    """

    def __init__(self, images, at, error):
        self.images, self.at, self.error, self.read = images, at, error, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]

    def __getitems__(self, indices):
        for index in indices:
            if index == self.at:
                self.at = None
                raise self.error
            self.read.append(index)
        return [self.images[index] for index in indices]


def many(net):
    return CAMComparison(
        {"Grad-CAM": GradCAM(net, "body"), "Layer-CAM": LayerCAM(net, "body")}, per_sample=True
    )


@pytest.mark.parametrize("at", [0, 5, 13, 22], ids=str)
@pytest.mark.parametrize("error", [OSError("the disk is gone"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
def test_an_interrupted_run_continues_bit_for_bit(net, tmp_path, at, error):
    images = torch.rand(23, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = many(net)
    expected = evaluate(whole, Interrupting(images, None, error), batch_size=2, **QUIET)
    data = Interrupting(images, at, error)
    first = many(net)
    with pytest.raises((OSError, KeyboardInterrupt, SystemExit)):
        evaluate(first, data, batch_size=2, partial=tmp_path, save_every=3, **QUIET)
    assert not first.count.any()
    done = at // 2 * 2
    data.read.clear()
    resumed = many(net)
    value = evaluate(resumed, data, batch_size=2, partial=tmp_path, save_every=3, **QUIET)
    assert data.read == list(range(done, 23))
    assert all(torch.equal(value[name], expected[name]) for name in expected)
    assert torch.equal(resumed.samples()["index"], whole.samples()["index"])
    assert all(
        torch.equal(a, b) for a, b in zip(resumed.samples().values(), whole.samples().values(), strict=True)
    )


def test_a_partial_result_of_another_run_is_refused(net, tmp_path):
    images = torch.rand(6, 3, 12, 12, dtype=torch.float64)
    kept = {"partial": tmp_path, "keep_partial": True}
    evaluate(AverageDrop(GradCAM(net, "body")), images, batch_size=2, save_every=1, **kept, **QUIET)
    with pytest.raises(
        ValueError, match=r"rank-0.pt belongs to a run with images='6', and this run has '5'; repeat that run"
    ):
        evaluate(AverageDrop(GradCAM(net, "body")), images[:5], partial=tmp_path, **QUIET)
    with pytest.raises(ValueError, match=r'metric="AverageDrop\(GradCAM'):
        evaluate(AverageDrop(LayerCAM(net, "body")), images, partial=tmp_path, **QUIET)


def test_a_broken_partial_result_is_refused(net, tmp_path):
    (tmp_path / "rank-0.pt").write_text("no")
    with pytest.raises(ValueError, match=r"rank-0.pt is not a partial result .* remove it to start over"):
        evaluate(AverageDrop(GradCAM(net, "body")), torch.rand(2, 3, 12, 12), partial=tmp_path, **QUIET)


PAPER = EvaluationProtocol.preset("paper")


def scaled(factor):
    """Return a function that differs in its closure only."""
    return lambda values: values.softmax(1) * factor


class Scaled:
    """A function that differs in its state only."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, values):
        return values.softmax(1) * self.factor


def maps_of(function):
    return lambda net: {"metric": AverageDrop(CallableSource(net, function))}


def drop_of(**settings):
    return lambda net: {"metric": AverageDrop(CenterMap(net), **settings)}


def measured(**settings):
    return lambda net: {"metric": AverageDrop(CenterMap(net)), **settings}


def network_of(forward):
    """Return an evaluation of a network that calls the small one."""

    class Wrapped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

    Wrapped.forward = forward
    return lambda net: {"metric": AverageDrop(CenterMap(Wrapped(net)))}


def source_of(values):
    """Return an evaluation with a source of the user."""

    class Mine(CAMSource):
        def __init__(self, model):
            self.model = model

        def maps(self, forward):
            return SourceMaps([values(forward.images)])

    return lambda net: {"metric": AverageDrop(Mine(net))}


def layers_of(reshape, make=GradCAM):
    return lambda net: {"metric": AverageDrop(make(net, "body", reshape_transform=reshape))}


def grad_cam_of(reshape):
    return lambda net: {"metric": AverageDrop(library.GradCAM(net, [net.body], reshape_transform=reshape))}


def images_of(*changed):
    images = torch.rand(20, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for index in changed:
        images[index] /= 2
    return images


def doubled(items):
    return default_collate(items) * 2


def loaded(collate_fn):
    return measured(data=DataLoader(images_of(), 4, collate_fn=collate_fn))


FACTOR = 1.0


def with_global(values):
    return values.softmax(1) * FACTOR


OTHERS = {
    "protocol": (
        drop_of(protocol=PAPER.replace(mask="top")),
        drop_of(protocol=PAPER.replace(baseline="mean")),
    ),
    "protocol: a baseline of the same name": (
        drop_of(protocol=PAPER.replace(baseline=lambda images: images * 0)),
        drop_of(protocol=PAPER.replace(baseline=lambda images: images * 0.5)),
    ),
    "protocol: a baseline image": (
        drop_of(protocol=PAPER.replace(baseline=torch.zeros(3, 12, 12))),
        drop_of(protocol=PAPER.replace(baseline=torch.ones(3, 12, 12))),
    ),
    "measures": (
        lambda net: {"metric": CAMComparison({"a": CenterMap(net)}, measures=["average_drop", "adcc"])},
        lambda net: {"metric": CAMComparison({"a": CenterMap(net)}, measures=["adcc", "average_drop"])},
    ),
    "settings of sources": (
        lambda net: {"metric": AverageDrop(GradCAMPlusPlus(net, "body"))},
        lambda net: {"metric": AverageDrop(GradCAMPlusPlus(net, "body", eps=1e-6))},
    ),
    "settings of sources: a number": (
        lambda net: {"metric": AverageDrop(UniformMap(net, 0.2))},
        lambda net: {"metric": AverageDrop(UniformMap(net, 0.9))},
    ),
    "settings of sources: a function of the maps": (
        maps_of(lambda model, images, class_idx: images.mean(1)),
        maps_of(lambda model, images, class_idx: images.amax(1)),
    ),
    "settings of sources: a reshape_transform": (
        layers_of(lambda tokens: tokens),
        layers_of(lambda tokens: tokens.flip(-1)),
    ),
    "settings of sources: a reshape_transform of pytorch-grad-cam": (
        grad_cam_of(lambda tokens: tokens),
        grad_cam_of(lambda tokens: tokens.flip(-1)),
    ),
    "settings of sources: a class of the user": (
        source_of(lambda images: images.mean(1)),
        source_of(lambda images: images.amax(1)),
    ),
    "logits_fn": (drop_of(logits_fn=torch.sigmoid), drop_of(logits_fn=torch.tanh)),
    "logits_fn: a lambda": (
        drop_of(logits_fn=lambda values: values.softmax(1)),
        drop_of(logits_fn=lambda values: values.sigmoid()),
    ),
    "logits_fn: a closure": (drop_of(logits_fn=scaled(1)), drop_of(logits_fn=scaled(0.5))),
    "logits_fn: a callable object": (drop_of(logits_fn=Scaled(1)), drop_of(logits_fn=Scaled(0.5))),
    "logits_fn: a partial": (
        drop_of(logits_fn=partial(torch.softmax, dim=1)),
        drop_of(logits_fn=partial(torch.softmax, dim=-1)),
    ),
    "scorer": (
        lambda net: {"metric": AverageDrop(CenterMap(net), scorer=lambda images: net(images))},
        lambda net: {"metric": AverageDrop(CenterMap(net), scorer=lambda images: net(images) * 1)},
    ),
    "network": (
        network_of(lambda self, images: self.net(images)),
        network_of(lambda self, images: self.net(images.flip(-1))),
    ),
    "inputs": (
        measured(inputs=lambda images: {"input_tensor": images}),
        measured(inputs=lambda images: {"input_tensor": images, "class_idx": 2}),
    ),
    "collate_fn": (loaded(default_collate), loaded(doubled)),
    "precision": (measured(precision="64-true"), measured(precision="32-true")),
    "content of the images": (measured(data=images_of()), measured(data=images_of(0))),
    "content of the images: the last": (measured(data=images_of()), measured(data=images_of(19))),
    "content of the images: labels": (
        measured(data=TensorDataset(images_of(), torch.zeros(20))),
        measured(data=TensorDataset(images_of(), torch.ones(20))),
    ),
}


def continued(make, net, folder):
    """Evaluate with a partial result that is kept at the end."""
    settings = {"data": images_of(), "partial": folder, "keep_partial": True} | make(net) | QUIET
    return evaluate(settings.pop("metric"), settings.pop("data"), **settings)


@pytest.mark.parametrize("what", OTHERS)
def test_a_partial_result_of_other_settings_is_refused(net, tmp_path, what):
    first, second = OTHERS[what]
    value = continued(first, net, tmp_path)
    before = (tmp_path / "rank-0.pt").read_bytes()
    with pytest.raises(
        ValueError, match=rf"rank-0.pt belongs to a run with {what.partition(':')[0]}=.* repeat that run"
    ):
        continued(second, net, tmp_path)
    assert (tmp_path / "rank-0.pt").read_bytes() == before
    torch.testing.assert_close(continued(first, net, tmp_path), value, rtol=0, atol=0, equal_nan=True)


def test_a_partial_result_of_other_globals_is_refused(net, tmp_path, monkeypatch):
    continued(drop_of(logits_fn=with_global), net, tmp_path)
    continued(drop_of(logits_fn=with_global), net, tmp_path)
    monkeypatch.setitem(globals(), "FACTOR", 0.5)
    with pytest.raises(ValueError, match="belongs to a run with logits_fn='with_global "):
        continued(drop_of(logits_fn=with_global), net, tmp_path)


def test_a_partial_result_of_other_weights_is_refused(net, tmp_path):
    continued(measured(), net, tmp_path)
    with torch.no_grad():
        net.fc.bias[0] += 1e-3
    with pytest.raises(ValueError, match="belongs to a run with weights="):
        continued(measured(), net, tmp_path)


def test_a_finished_partial_result_is_removed(net, tmp_path):
    """So that other images, which a digest of 16 of them does not tell apart, have a value of their own."""
    values = []
    for images in (images_of(), images_of(*range(20))):
        metric = AverageDrop(CenterMap(net))
        values.append(evaluate(metric, images, partial=tmp_path, **QUIET))
        alone = AverageDrop(CenterMap(net))
        alone.update(images)
        torch.testing.assert_close(values[-1], alone.compute(), rtol=1e-6, atol=0)
        assert not list(tmp_path.iterdir())
    assert values[0] != values[1]


class Changing(Dataset):
    """Images with noise of a generator that is not seeded anew."""

    def __init__(self):
        self.generator = torch.Generator()

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.rand(3, 12, 12, dtype=torch.float64, generator=self.generator)


@pytest.mark.filterwarnings("ignore:after an interruption, this evaluation continues only with")
@pytest.mark.parametrize(
    ("what", "contained"),
    [("logits_fn", "_io.TextIOWrapper"), ("content of the images", "Changing whose items differ each time")],
)
def test_what_cannot_be_compared_is_refused_unless_told_otherwise(net, tmp_path, what, contained):
    with open(os.devnull) as file:
        make = {
            "logits_fn": drop_of(logits_fn=lambda values: (file.name, values.softmax(1))[1]),
            "content of the images": measured(data=Changing()),
        }[what]
        with pytest.warns(UserWarning, match=rf"continues only with assume_unchanged=True: {what} \(a "):
            value = continued(make, net, tmp_path)
        with pytest.raises(
            ValueError,
            match=rf"may belong to another run: {what} \(a {contained}.*\) cannot be compared.*;"
            " pass assume_unchanged=True if nothing has changed, or remove the folder",
        ):
            continued(make, net, tmp_path)
        again = continued(lambda net: make(net) | {"assume_unchanged": True}, net, tmp_path)
        assert again == value


def test_reading_images_for_the_digest_draws_no_random_numbers(net, tmp_path):
    class Noisy(Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.rand(3, 12, 12, dtype=torch.float64) + random.random() + np.random.rand()

    def drop(**settings):
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(0)
        return evaluate(AverageDrop(CenterMap(net)), Noisy(), **settings, **QUIET)

    assert drop(partial=tmp_path, keep_partial=True) == drop()
    assert drop(partial=tmp_path) == drop()


def noisy(model, images, class_idx):
    """Return maps of random numbers from three generators."""
    size = (len(images), 4, 4)
    return torch.rand(size) + torch.from_numpy(np.random.rand(*size)) + random.random()


def test_random_numbers_continue_after_an_interruption(net, tmp_path):
    images = torch.rand(23, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def drops(data, **settings):
        comparison = CAMComparison({"noise": CallableSource(net, noisy)}, controls=False, per_sample=True)
        evaluate(comparison, data, batch_size=2, **settings, **QUIET)
        return comparison.samples()["average_drop"]

    def seed():
        for one in (torch.manual_seed, np.random.seed, random.seed):
            one(0)

    seed()
    expected = drops(images)
    seed()
    data = Interrupting(images, 13, OSError("the disk is gone"))
    with pytest.raises(OSError, match="the disk is gone"):
        drops(data, partial=tmp_path)
    assert torch.equal(drops(data, partial=tmp_path), expected)


def test_restored_states_are_on_the_device_of_the_metric(net):
    metric = CAMComparison({"own": GradCAM(net, "body")}, controls=False, per_sample=True)
    metric.update(torch.rand(2, 3, 12, 12, dtype=torch.float64))
    states = {"": (metric._update_count, metric._copy_state_dict())}
    metric.reset()
    metric.to("meta")
    restore_states(metric, states)
    assert metric.sums.device.type == metric.records[0].device.type == "meta"


@pytest.mark.parametrize("kept", [False, True], ids=["whole", "partial"])
def test_images_dropped_by_the_collate_fn_count_in_the_index(net, tmp_path, kept):
    images = torch.rand(8, 3, 12, 12, dtype=torch.float64)
    data = [None if place == 1 else image for place, image in enumerate(images)]
    loader = DataLoader(
        data,
        batch_size=2,
        collate_fn=lambda batch: default_collate([one for one in batch if one is not None]),
    )
    comparison = CAMComparison({"own": GradCAM(net, "body")}, controls=False, per_sample=True)
    evaluate(comparison, loader, partial=tmp_path if kept else None, **QUIET)
    assert comparison.samples()["index"].tolist() == [0, 2, 3, 4, 5, 6, 7]


def test_an_interrupted_run_over_meta_tensors_continues(net, tmp_path):
    """Its partial result holds plain tensors, which load without MONAI."""
    images = MetaTensor(images_of())
    data = Interrupting(images, 10, OSError("the disk is gone"))
    with pytest.raises(OSError, match="the disk is gone"):
        evaluate(many(net), data, batch_size=4, partial=tmp_path, **QUIET)
    stored = torch.load(tmp_path / "rank-0.pt", weights_only=True)
    assert stored["done"] == 8
    value = evaluate(many(net), data, batch_size=4, partial=tmp_path, **QUIET)
    expected = evaluate(many(net), images_of(), batch_size=4, **QUIET)
    assert {type(one) for one in value.values()} == {torch.Tensor}
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)
