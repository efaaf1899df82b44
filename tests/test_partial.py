"""evaluate(partial=...): an interrupted evaluation goes on from where it was, to the same numbers."""

import pytest
import torch
from torch.utils.data import Dataset

from torchmetrics_cam import AverageDrop, CAMComparison
from torchmetrics_cam.cams import GradCAM, LayerCAM
from torchmetrics_cam.lightning import evaluate

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


class Interrupting(Dataset):
    """Images that end the run once at one of them, as Ctrl-C or a full disk would."""

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
def test_an_interrupted_run_goes_on_from_there_bit_for_bit(net, tmp_path, at, error):
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
        ValueError, match=r"rank-0.pt is of a run with images=6, and this one has 5; run the same"
    ):
        evaluate(AverageDrop(GradCAM(net, "body")), images[:5], partial=tmp_path, **QUIET)
    with pytest.raises(ValueError, match=r'metric="AverageDrop\(GradCAM'):
        evaluate(AverageDrop(LayerCAM(net, "body")), images, partial=tmp_path, **QUIET)


def test_a_broken_partial_result_is_refused(net, tmp_path):
    (tmp_path / "rank-0.pt").write_text("no")
    with pytest.raises(ValueError, match=r"rank-0.pt is no partial result .* remove it to begin anew"):
        evaluate(AverageDrop(GradCAM(net, "body")), torch.rand(2, 3, 12, 12), partial=tmp_path, **QUIET)
