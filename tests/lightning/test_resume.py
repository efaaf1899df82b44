"""evaluate(partial=...): an interrupted evaluation continues to the same value."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from torchmetrics_cam import AverageDrop, CAMComparison, EvaluationProtocol
from torchmetrics_cam.cams import CallableSource, CenterMap, GradCAM, GradCAMPlusPlus, LayerCAM, UniformMap
from torchmetrics_cam.lightning import evaluate
from torchmetrics_cam.lightning.resume import restore_states

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


class Interrupting(Dataset):
    """Images, one of which raises an error the first time, as Ctrl-C or a full disk would."""

    def __init__(self, images, at, error):
        self.images, self.at, self.error, self.read = images, at, error, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        if index == self.at:
            self.at = None
            raise self.error
        self.read.append(index)
        return self.images[index]


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
    evaluate(AverageDrop(GradCAM(net, "body")), images, batch_size=2, partial=tmp_path, save_every=1, **QUIET)
    with pytest.raises(
        ValueError, match=r"rank-0.pt belongs to a run with images=6, and this run has 5; repeat that run"
    ):
        evaluate(AverageDrop(GradCAM(net, "body")), images[:5], partial=tmp_path, **QUIET)
    with pytest.raises(ValueError, match=r'metric="AverageDrop\(GradCAM'):
        evaluate(AverageDrop(LayerCAM(net, "body")), images, partial=tmp_path, **QUIET)


def test_a_broken_partial_result_is_refused(net, tmp_path):
    (tmp_path / "rank-0.pt").write_text("no")
    with pytest.raises(ValueError, match=r"rank-0.pt is not a partial result .* remove it to start over"):
        evaluate(AverageDrop(GradCAM(net, "body")), torch.rand(2, 3, 12, 12), partial=tmp_path, **QUIET)


PAPER = EvaluationProtocol.preset("paper")
OTHERS = {
    "protocol": (
        lambda net: AverageDrop(GradCAM(net, "body"), protocol=PAPER.replace(mask="top")),
        lambda net: AverageDrop(GradCAM(net, "body"), protocol=PAPER.replace(baseline="mean")),
    ),
    "measures": (
        lambda net: CAMComparison({"a": CenterMap(net)}, measures=["average_drop", "average_gain"]),
        lambda net: CAMComparison({"a": CenterMap(net)}, measures=["average_gain", "average_drop"]),
    ),
    "settings of sources": (
        lambda net: AverageDrop(GradCAMPlusPlus(net, "body")),
        lambda net: AverageDrop(GradCAMPlusPlus(net, "body", eps=1e-6)),
    ),
    "settings of sources=": (
        lambda net: AverageDrop(UniformMap(net, 0.2)),
        lambda net: AverageDrop(UniformMap(net, 0.9)),
    ),
    "logits_fn": (
        lambda net: AverageDrop(CenterMap(net), torch.sigmoid),
        lambda net: AverageDrop(CenterMap(net), torch.tanh),
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_partial_result_of_other_settings_is_refused(net, tmp_path, what):
    images = torch.rand(4, 3, 12, 12, dtype=torch.float64)
    first, second = OTHERS[what]
    value = evaluate(first(net), images, partial=tmp_path, **QUIET)
    with pytest.raises(
        ValueError, match=rf"rank-0.pt belongs to a run with {what.strip('=')}=.* repeat that run"
    ):
        evaluate(second(net), images, partial=tmp_path, **QUIET)
    again = evaluate(first(net), images, partial=tmp_path, **QUIET)
    torch.testing.assert_close(again, value, rtol=0, atol=0)


def test_a_partial_result_of_other_weights_is_refused(net, tmp_path):
    images = torch.rand(4, 3, 12, 12, dtype=torch.float64)
    evaluate(AverageDrop(GradCAM(net, "body")), images, partial=tmp_path, **QUIET)
    with torch.no_grad():
        net.fc.bias[0] += 1e-3
    with pytest.raises(ValueError, match="belongs to a run with weights="):
        evaluate(AverageDrop(GradCAM(net, "body")), images, partial=tmp_path, **QUIET)


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
    assert comparison.samples()["index"][1:].tolist() == [2, 3, 4, 5, 6, 7]
