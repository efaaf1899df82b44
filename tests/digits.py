"""Networks trained on scikit-learn's digits: a LightningModule with its data and Trainer, and one of any input size."""

from functools import cache

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torchmetrics_cam import AverageDrop
from torchmetrics_cam.cams import GradCAM


def network(seed: int = 0) -> nn.Sequential:
    """Return a network with batch norm and dropout, which depend on the mode and on random numbers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.ReLU(inplace=True),
            nn.Conv2d(12, 16, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(256, 10),
        )


def data(first: int, last: int, dtype: torch.dtype = torch.float32) -> TensorDataset:
    bunch = load_digits()
    pixels = torch.tensor(bunch.images[first:last], dtype=dtype).unsqueeze(1) / 16
    return TensorDataset(pixels, torch.tensor(bunch.target[first:last]))


def training() -> DataLoader:
    return DataLoader(data(0, 256), batch_size=32)


def validation() -> DataLoader:
    return DataLoader(data(256, 326), batch_size=16)


def source(model: nn.Module) -> GradCAM:
    return GradCAM(model, "3")


class Digits(pl.LightningModule):
    """Classifier without any metric."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()
        self.losses: list[float] = []

    def training_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.model(images), labels)
        self.log("val_loss", loss)

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class MeasuredDigits(Digits):
    """Classifier with Average Drop in its validation step."""

    def __init__(self, make=source) -> None:
        super().__init__()
        self.average_drop = AverageDrop(make(self.model))

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        images, labels = batch
        self.average_drop.update(images, class_idx=labels)
        self.log("val_drop", self.average_drop)

    test_step = validation_step


def by_hand(model: nn.Module, *, explain_labels: bool = True) -> float:
    """Return Average Drop over the validation set, computed in a plain loop."""
    metric = AverageDrop(source(model))
    for images, labels in validation():
        metric.update(images.to(next(model.parameters()).dtype), class_idx=labels if explain_labels else None)
    return metric.compute().item()


def trainer(folder, **settings) -> pl.Trainer:
    """Return a Trainer on the CPU, without progress bar, summary and logger."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(
        accelerator="cpu", default_root_dir=folder, **({"max_epochs": 2, "devices": 1} | quiet | settings)
    )


def large(first: int, last: int) -> TensorDataset:
    """Digits of 16 x 16 pixels, large enough for the tiles of a mosaic."""
    pixels, labels = data(first, last).tensors
    return TensorDataset(nn.functional.interpolate(pixels, (16, 16), mode="bilinear"), labels)


def network_of_any_size() -> nn.Sequential:
    """Return a network that pools over all pixels, so that it also classifies the digits of a mosaic."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


@cache
def trained_on_large_digits() -> nn.Sequential:
    """Return such a network trained on all digits but the first 100, of the size of an image and of a tile."""
    pixels, labels = large(100, 1700).tensors
    small = nn.functional.avg_pool2d(pixels, 2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network_of_any_size()
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        for _ in range(6):
            for batch in torch.randperm(len(pixels)).split(32):
                for images in (pixels, small):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
                    optimizer.step()
    return model.eval()
