"""``scorer="compile"`` in a Trainer: weights that change, and partial results."""

from itertools import pairwise

import pytest
import torch
from conftest import small_net
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader, TensorDataset

from torchmetrics_cam import AverageDrop
from torchmetrics_cam.cams import CenterMap, GradCAM
from torchmetrics_cam.lightning import CAMEvaluation, evaluate
from torchmetrics_cam.lightning.resume import run_key

QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Training(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = small_net().float().train()
        self.logged: list[dict[str, float]] = []

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor]) -> None:
        pass

    def on_validation_end(self) -> None:
        values = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
        self.logged.append(values)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def dataset() -> TensorDataset:
    return TensorDataset(torch.rand(7, 3, 12, 12, generator=torch.Generator().manual_seed(2)))


def sources(module: LightningModule) -> dict[str, GradCAM]:
    return {"Grad-CAM": GradCAM(module.net, "body")}


def test_a_training_compiles_once_and_sees_the_weights_of_each_epoch():
    torch._dynamo.reset()
    logged = []
    for scorer in ("compile", None):
        before = counters["stats"]["unique_graphs"]
        torch.manual_seed(0)
        module = Training()
        callback = CAMEvaluation(sources, scorer=scorer, num_images=0)
        trainer = Trainer(max_epochs=3, callbacks=[callback], **QUIET)
        trainer.fit(module, DataLoader(dataset(), 4), DataLoader(dataset(), 3))
        logged.append(module.logged[1:])
        assert counters["stats"]["unique_graphs"] == before + (scorer == "compile")
    assert [pytest.approx(values, rel=1e-4) for values in logged[0]] == logged[1]
    drops = [values["cam/Grad-CAM/average_drop"] for values in logged[1]]
    assert len(drops) == 3
    assert min(abs(one - other) for one, other in pairwise(drops)) > 0.001
    torch._dynamo.reset()


def test_a_partial_result_is_of_the_same_scorer(tmp_path):
    torch._dynamo.reset()
    net = small_net().float()
    quiet = {name: value for name, value in QUIET.items() if name == "enable_progress_bar" or value}
    settings = {"batch_size": 3, "partial": tmp_path, "keep_partial": True, **quiet}
    metric = AverageDrop(CenterMap(net), scorer="compile")
    value = evaluate(metric, dataset(), **settings)
    assert metric.compilation.failure is None
    loader = DataLoader(dataset(), 3)
    keys = [
        run_key(
            AverageDrop(CenterMap(net), scorer=scorer),
            nn.ModuleList([net]),
            loader,
            inputs=None,
            precision=32,
            processes=1,
        )
        for scorer in ("compile", None)
    ]
    assert [name for name in keys[0] if keys[0][name] != keys[1][name]] == ["scorer"]
    assert evaluate(AverageDrop(CenterMap(net), scorer="compile"), dataset(), **settings) == value
    with pytest.raises(ValueError, match="belongs to a run with scorer="):
        evaluate(AverageDrop(CenterMap(net)), dataset(), **settings)
    torch._dynamo.reset()
