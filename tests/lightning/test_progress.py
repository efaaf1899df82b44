"""The progress bar of evaluate names its task."""

import pytest
from digits import data, network, source
from lightning.pytorch.callbacks import RichProgressBar, Timer, TQDMProgressBar

from torchmetrics_cam import AverageDrop
from torchmetrics_cam.lightning import evaluate, progress


def printed_by(capsys, **trainer_arguments):
    evaluate(AverageDrop(source(network().eval())), data(256, 262), accelerator="cpu", **trainer_arguments)
    captured = capsys.readouterr()
    return captured.out + captured.err


def test_the_bar_says_evaluating(capsys):
    printed = printed_by(capsys, callbacks=Timer())
    assert "Evaluating" in printed
    assert "Testing" not in printed


def test_without_rich_the_bar_is_lightnings_choice(monkeypatch):
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert progress.with_progress_bar({"devices": 1}) == {"devices": 1}


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_a_bar_of_the_users_stays(capsys, bar):
    assert "Testing" in printed_by(capsys, callbacks=[bar()])


def test_no_bar_if_it_is_switched_off(capsys):
    assert "Evaluating" not in printed_by(capsys, enable_progress_bar=False)
