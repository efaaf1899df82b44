"""Networks that users pass to the command, beyond the softmax classifier with one output for each class."""

import html
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from torchmetrics_cam.cli import main

NETWORKS = """
import numpy as np
import torch
from torch import nn


def binary():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 1)
    ), transform


def probabilities():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 10), nn.Softmax(1)
    ), transform


def random():
    return nn.Sequential(FunctionalDropout(), *binary()[0]), transform


class FunctionalDropout(nn.Module):
    def forward(self, images):
        return nn.functional.dropout(images, 0.3, training=True)


def augmented():
    return MeanOfFlips(), transform


class MeanOfFlips(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = binary()[0]

    def forward(self, images):
        return self.net(images) + self.net(images.flip(-1))


def transform(picture):
    return torch.tensor(np.array(picture), dtype=torch.float32).permute(2, 0, 1) / 255
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module of networks and six images in two folders."""
    (tmp_path / "users_networks.py").write_text(NETWORKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    generator = np.random.default_rng(0)
    for number in range(6):
        image = tmp_path / "photos" / ["cat", "dog"][number % 2] / f"{number}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(image)
    return tmp_path


def evaluated(network, *options):
    code = main(
        ["evaluate", "--model", f"users_networks:{network}", "--data", "photos", "--out", "out", *options]
    )
    assert code == 0
    with open("out/results.json") as file:
        return json.load(file)


def test_a_network_with_one_logit(folder, capsys):
    results = evaluated("binary", "--methods", "grad_cam", "--measures", "average_drop")
    import users_networks

    model, transform = users_networks.binary()
    images = torch.stack([transform(Image.open(path)) for path in sorted(folder.glob("photos/*/*.png"))])
    drops = average_drops(model.eval(), images)
    row = next(row for row in results["comparison"]["rows"] if row["method"] == "Grad-CAM")
    assert row["average_drop"]["value"] == pytest.approx(drops.mean().item(), rel=1e-4)
    assert "sigmoid(z) for class 1" in (folder / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("network", "note"),
    [
        (
            "probabilities",
            "The model's output is in [0, 1] for all of 6 images, as after a softmax or sigmoid",
        ),
        ("random", "The network is not deterministic: scored twice, the same images differ by up to"),
    ],
)
def test_what_makes_the_values_doubtful_is_in_terminal_json_and_report(folder, capsys, network, note):
    results = evaluated(network, "--methods", "grad_cam", "--measures", "average_drop")
    assert note in capsys.readouterr().out
    assert any(sentence.startswith(note) for sentence in results["comparison"]["notes"])
    assert note in html.unescape((folder / "out" / "report.html").read_text())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("net.1", "--layer 'net.1' runs 2 times when the model classifies an image"),
        ("auto", "in this MeanOfFlips every layer with a spatial grid runs several times"),
    ],
)
def test_a_layer_that_runs_twice(folder, capsys, layer, message):
    arguments = ["evaluate", "--model", "users_networks:augmented", "--data", "photos", "--layer", layer]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "give the network inside as --model package.module:factory" in error


def average_drops(model: nn.Sequential, images):
    """Grad-CAM and Average Drop written out, for the class that a logit predicts."""
    activation = model[:2](images)
    activation.retain_grad()
    logit = model[2:](activation).squeeze(1)
    sign = logit.detach().sign()
    (logit * sign).sum().backward()
    maps = (activation.grad.mean((2, 3), keepdim=True) * activation).sum(1).relu().detach()
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    masked = images * ((maps - low) / (high - low)).unsqueeze(1)
    score, masked_score = (torch.sigmoid(sign * model(x).detach().squeeze(1)) for x in (images, masked))
    return (score - masked_score).clamp(min=0) / score
