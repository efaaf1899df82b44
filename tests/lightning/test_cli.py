"""CAMEvaluation in the YAML file of a LightningCLI: functions and classes of the user by their names."""

import sys

import lightning.pytorch as pl
import pytest
import yaml
from digits import Digits, by_hand, validation
from lightning.pytorch.cli import LightningCLI

from torchmetrics_cam import EvaluationProtocol
from torchmetrics_cam.lightning import CAMEvaluation

THEIRS = """
from torch import Tensor

from torchmetrics_cam.cams import GradCAM


def sources(module):
    return {"Grad-CAM": GradCAM(module.model, "3")}


class Sources:
    def __init__(self, layer: str):
        self.layer = layer

    def __call__(self, module):
        return {"Grad-CAM": GradCAM(module.model, self.layer)}


def images(batch) -> Tensor:
    return batch[0]


def as_mapping(batch) -> dict[str, Tensor]:
    return {"input_tensor": batch[0], "class_idx": batch[1]}


def without_annotation(batch):
    return {"input_tensor": batch[0], "class_idx": batch[1]}


class Inputs:
    def __init__(self, names: list[str] = ("input_tensor", "class_idx")):
        self.names = names

    def __call__(self, batch):
        return dict(zip(self.names, batch))


instance = Inputs()


def to_colors(images):
    return images.expand(-1, 3, -1, -1)
"""


class Data(pl.LightningDataModule):
    def val_dataloader(self):
        return validation()


@pytest.fixture
def callback_of(tmp_path, monkeypatch):
    """Return a function that makes a LightningCLI from a YAML file with the arguments of CAMEvaluation."""
    (tmp_path / "theirs.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    # Lightning calls methods that are deprecated there.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

    def make(**arguments):
        callback = {"class_path": "torchmetrics_cam.lightning.CAMEvaluation", "init_args": arguments}
        settings = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
        settings |= {"enable_checkpointing": False, "callbacks": [callback]}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"trainer": settings}))
        monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(tmp_path / "config.yaml")])
        cli = LightningCLI(Digits, Data, run=False, save_config_callback=None, seed_everything_default=False)
        (made,) = [one for one in cli.trainer.callbacks if isinstance(one, CAMEvaluation)]
        return cli, made

    return make


@pytest.mark.parametrize(
    ("inputs", "explain_labels"),
    [
        (None, False),
        ("theirs.images", False),
        ("theirs.as_mapping", True),
        ("theirs.without_annotation", True),
        ("theirs.Inputs", True),
        ({"class_path": "theirs.Inputs", "init_args": {"names": ["input_tensor", "class_idx"]}}, True),
        ("theirs.instance", True),
    ],
    ids=str,
)
def test_inputs_from_yaml(callback_of, inputs, explain_labels):
    cli, _ = callback_of(sources="theirs.sources", inputs=inputs, num_images=0)
    (values,) = cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    expected = by_hand(cli.model.model.eval(), explain_labels=explain_labels)
    assert values["cam/Grad-CAM/average_drop"] == pytest.approx(expected, rel=1e-5)


def test_other_functions_and_the_protocol_from_yaml(callback_of):
    sources = {"class_path": "theirs.Sources", "init_args": {"layer": "3"}}
    softmax = {"class_path": "torch.nn.Softmax", "init_args": {"dim": 1}}
    cli, made = callback_of(
        sources=sources,
        to_colors="theirs.to_colors",
        logits_fn=softmax,
        protocol={"mask": "top", "baseline": "mean"},
        num_images=0,
    )
    assert made.to_colors.__name__ == "to_colors"
    assert made.protocol == EvaluationProtocol(mask="top", baseline="mean")
    (values,) = cli.trainer.validate(cli.model, cli.datamodule, verbose=False)
    assert 0 < values["cam/Grad-CAM/average_drop"] < 1
    assert callback_of(sources="theirs.sources", protocol="score_cam")[1].protocol.name == "score_cam"


def test_a_function_that_does_not_exist_is_named(callback_of, capsys):
    with pytest.raises(SystemExit):
        callback_of(sources="theirs.sources", inputs="theirs.missing")
    assert "module 'theirs' has no attribute 'missing'" in capsys.readouterr().err
