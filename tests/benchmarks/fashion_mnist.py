"""Average Drop of CAM methods on the 10,000 test images of Fashion-MNIST.

The Grad-CAM++ paper reports a lower Average Drop for Grad-CAM++ than for Grad-CAM. This script trains small networks and
checks whether the default protocol gives the same result. For comparison it evaluates torchcam's extractors in the protocol
of torchcam's metric, which computes the gradient through the softmax and gives the opposite result.

    python tests/benchmarks/fashion_mnist.py [--data FOLDER] [--seeds 0 1 2]

The exit code is 1 if the claim does not hold for a seed.
"""

import argparse
import gzip
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchcam.methods
import torchcam.metrics
from results import THREADS, environment, parser, table, write
from torch import Tensor, nn
from torchmetrics import MetricCollection

from torchmetrics_cam import (
    AverageDrop,
    AverageGain,
    ClassificationMetric,
    EvaluationProtocol,
    IncreaseInConfidence,
)
from torchmetrics_cam.cams import (
    CenterMap,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    RandomMap,
    UniformMap,
    XGradCAM,
)

DATA = Path("/usr/share/datasets/fashion-mnist")
TARGET_LAYER = "last_relu"
EPOCHS, BATCH, LEARNING_RATE, EVALUATION_BATCH = 3, 128, 1e-2, 250


class SmallCNN(nn.Module):
    """Three convolutions with batch normalization, global average pooling and one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)),
        )
        self.last_relu = nn.ReLU()
        self.head = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(N, 10)`` for images ``(N, 1, 28, 28)``."""
        return self.head(self.last_relu(self.body(images)).mean((2, 3)))


def load(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Return images ``(N, 1, 28, 28)`` in [0, 1] and labels ``(N,)`` of the part ``"train"`` or ``"t10k"``."""
    pixels = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 1, 28, 28).astype(np.float32) / 255
    return torch.from_numpy(images), torch.from_numpy(
        np.frombuffer(labels, np.uint8, offset=8).astype(np.int64)
    )


def trained(images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """Train a network for a few epochs with Adam and a one-cycle schedule, and return it in evaluation mode."""
    torch.manual_seed(seed)
    # Channels-last layout is twice as fast on a CPU.
    model = SmallCNN().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters())
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(
                model(images[batch].contiguous(memory_format=torch.channels_last)), labels[batch]
            ).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the fraction of the images that are classified correctly."""
    predicted = torch.cat([model(batch).argmax(1) for batch in images.split(EVALUATION_BATCH)])
    return (predicted == labels).double().mean().item()


def evaluate(metrics: MetricCollection, images: Tensor) -> dict[str, float]:
    """Return the values of the metrics, the number of images, and the number of constant maps."""
    for batch in images.split(EVALUATION_BATCH):
        metrics.update(batch)
    values = {name: value.item() for name, value in metrics.compute().items()}
    first = next(iter(metrics.values()))
    return {**values, "images": int(first.total), "constant_maps": int(first.degenerate_count)}


def in_paper_protocol(model: nn.Module, images: Tensor) -> dict[str, dict[str, float]]:
    """Evaluate our gradient CAMs and the controls in the default protocol, with maps of the logit."""
    sources = [
        method(model, TARGET_LAYER) for method in (GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, HiResCAM)
    ]
    sources += [UniformMap(model), RandomMap(model), CenterMap(model)]
    return {
        type(source).__name__: evaluate(
            MetricCollection(
                {
                    "average_drop": AverageDrop(source),
                    "increase_in_confidence": IncreaseInConfidence(source),
                    "average_gain": AverageGain(source),
                }
            ),
            images,
        )
        for source in sources
    }


def in_torchcam_protocol(model: nn.Module, images: Tensor) -> dict[str, dict[str, float]]:
    """Evaluate torchcam's extractors in the protocol of torchcam's metric, with maps of the softmax score."""
    results = {}
    softmax = partial(torch.softmax, dim=-1)
    for method in ("GradCAM", "GradCAMpp", "LayerCAM"):
        with getattr(torchcam.methods, method)(model, TARGET_LAYER) as extractor:
            drop_and_increase = ClassificationMetric(extractor, softmax)
            gain = AverageGain(extractor, softmax, protocol="torchcam")
            metrics = MetricCollection({"drop_and_increase": drop_and_increase, "average_gain": gain})
            values = evaluate(metrics, images)
            reference = torchcam.metrics.ClassificationMetric(extractor, softmax)
            for batch in images.split(EVALUATION_BATCH):
                reference.update(batch)
        results[method] = {
            "average_drop": values.pop("avg_drop"),
            "increase_in_confidence": values.pop("conf_increase"),
            **values,
            "average_drop_by_torchcam": reference.summary()["avg_drop"],
        }
    return results


def run(seed: int, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Train and evaluate one network."""
    started = time.perf_counter()
    model = trained(*train, seed)
    result = {
        "seed": seed,
        "accuracy": accuracy(model, *test),
        "paper": in_paper_protocol(model, test[0]),
        "torchcam": in_torchcam_protocol(model, test[0]),
    }
    drops = {method: values["average_drop"] for method, values in result["paper"].items()}
    result["claim_holds"] = drops["GradCAMPlusPlus"] < drops["GradCAM"]
    result["seconds"] = round(time.perf_counter() - started, 1)
    print(
        f"seed {seed}: accuracy {result['accuracy']:.4f}, {result['seconds']} s", *drops.items(), sep="\n  "
    )
    return result


def report(runs: Sequence[dict[str, Any]]) -> str:
    """Return the page of the results; its tables show the first run."""
    first = runs[0]
    header = (
        "method",
        "Average Drop, lower is better",
        "Increase in Confidence",
        "Average Gain",
        "constant maps",
    )
    torchcam_header = (*header[:2], "Average Drop by torchcam's metric", *header[2:])
    paper = [(method, *_cells(values)) for method, values in first["paper"].items()]
    torchcam_rows = []
    for method, values in first["torchcam"].items():
        drop, *others = _cells(values)
        torchcam_rows.append((method, drop, f"{values['average_drop_by_torchcam']:.4f}", *others))
    pairs = (
        ("paper", "GradCAM"),
        ("paper", "GradCAMPlusPlus"),
        ("torchcam", "GradCAM"),
        ("torchcam", "GradCAMpp"),
    )
    seeds = [
        (
            str(run["seed"]),
            f"{run['accuracy']:.4f}",
            *(f"{run[protocol][method]['average_drop']:.4f}" for protocol, method in pairs),
            "yes" if run["claim_holds"] else "no",
        )
        for run in runs
    ]
    seeds_header = (
        "seed",
        "accuracy",
        *(f"{method}, {protocol}" for protocol, method in pairs),
        "claim holds",
    )
    images = first["paper"]["GradCAM"]["images"]
    return f"""# Fashion-MNIST: Grad-CAM++ has a lower Average Drop than Grad-CAM

{images:,} test images, a CNN of three convolutional layers, maps of the last ReLU, seed {first["seed"]}, test accuracy
{first["accuracy"]:.4f}. Written by `fashion_mnist.py`; all numbers are in `fashion_mnist.json`.

## Default protocol `paper`: maps of the logit

{table(header, paper)}

This network ends in global average pooling and one linear layer. The gradient is therefore the same at every pixel, so that
GradCAM, XGradCAM and HiResCAM give equal maps and equal rows. UniformMap, RandomMap and CenterMap are controls that do not
depend on the network. UniformMap hides nothing, so its Average Drop is 0. A method that is not better than the two others
is not shown to be faithful.

## Protocol `torchcam`: maps of the softmax score, by torchcam's extractors

{table(torchcam_header, torchcam_rows)}

## Average Drop by seed

{table(seeds_header, seeds)}

The claim: in the default protocol Grad-CAM++ has a lower Average Drop than Grad-CAM, as the Grad-CAM++ paper reports
(arXiv 1710.11063)."""


def _cells(values: Mapping[str, float]) -> tuple[str, ...]:
    measures = ("average_drop", "increase_in_confidence", "average_gain")
    return (*(f"{values[measure]:.4f}" for measure in measures), str(values["constant_maps"]))


def parsed_with_data(options: argparse.ArgumentParser) -> argparse.Namespace:
    """Add the option ``--data``, parse the command line, and require that Fashion-MNIST is in its folder."""
    options.add_argument(
        "--data", type=Path, default=DATA, help="folder with the gzipped idx files of Fashion-MNIST"
    )
    arguments = options.parse_args()
    if not (arguments.data / "train-images-idx3-ubyte.gz").exists():
        options.error(
            f"{arguments.data} does not contain Fashion-MNIST; install it with apt-get install"
            " dataset-fashion-mnist, or pass its folder as --data"
        )
    return arguments


def main() -> int:
    """Train and evaluate one network per seed, write the results, and check the claim."""
    options = parser(__doc__, __file__)
    options.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[0, 1, 2],
        help="random seeds; one network is trained for each",
    )
    arguments = parsed_with_data(options)
    torch.set_num_threads(THREADS)
    machine = environment()
    train, test = load(arguments.data, "train"), load(arguments.data, "t10k")
    runs = [run(seed, train, test) for seed in arguments.seeds]
    holds = all(run["claim_holds"] for run in runs)
    settings = {
        "epochs": EPOCHS,
        "batch": BATCH,
        "optimizer": f"Adam, one cycle up to {LEARNING_RATE}",
        "target_layer": TARGET_LAYER,
        "protocols": {name: str(EvaluationProtocol.preset(name)) for name in ("paper", "torchcam")},
    }
    result = {
        "claim": "in the default protocol Grad-CAM++ has a lower Average Drop than Grad-CAM, for every seed",
        "claim_holds": holds,
        "environment": machine,
        "settings": settings,
        "runs": runs,
    }
    write(arguments.out, result, report(runs))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
