"""Python calls and host time of one update: what an evaluation costs beyond the work of the device.

Without synchronizations a GPU works while the host prepares the next operations, so that the time of the host limits small
batches. It is measured on images of 32 x 32 pixels, where the operations of a CPU take little more time than their launch.

    python tests/benchmarks/host.py            # a minute
    python tests/benchmarks/host.py --render   # write host.md from host.json
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torchvision
from cases import LAYERS
from results import environment, interleaved, parser, ratio_text, summary, table, write
from torch import nn
from torchcam.methods import GradCAM as TorchcamGradCAM
from torchcam.metrics import ClassificationMetric

from torchmetrics_cam import AverageDrop, CAMComparison
from torchmetrics_cam.cams import GradCAM, GradCAMPlusPlus, LayerCAM, XGradCAM

SIDE, ROUNDS, CALLS_A_ROUND = 32, 15, 5
SMALL_CNN = "small CNN, 10 modules"
NETWORKS = (SMALL_CNN, "resnet18", "mobilenet_v3_large", "resnet50", "convnext_tiny")
BARE, OURS, TORCHCAM, FOUR = "two bare forwards", "ours", "torchcam", "ours, K = 4"


def small_cnn() -> nn.Module:
    """Return a convolutional network with ten modules."""
    return nn.Sequential(
        *(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        ),
        *(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


def cases_of(network: str) -> dict[str, Callable[[], Any]]:
    """Return the cases, whose metrics are made once, as in an evaluation; each library has a network of its own."""
    image = torch.rand(1, 3, SIDE, SIDE)
    make = small_cnn if network == SMALL_CNN else partial(torchvision.models.get_model, network, weights=None)
    layer = "5" if network == SMALL_CNN else LAYERS[network]
    bare, ours, four, torchcams = (make().eval() for _ in range(4))
    metric = AverageDrop(GradCAM(ours, layer))
    sources = {cls.__name__: cls(four, layer) for cls in (GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM)}
    comparison = CAMComparison(sources, controls=False)
    extractor = TorchcamGradCAM(torchcams, layer)
    theirs = ClassificationMetric(extractor, partial(torch.softmax, dim=-1))

    def two_forwards() -> None:
        with torch.inference_mode():
            bare(image)
            bare(image)

    return {
        BARE: two_forwards,
        OURS: lambda: metric.update(image),
        TORCHCAM: lambda: theirs.update(image),
        FOUR: lambda: comparison.update(image),
    }


def python_calls(case: Callable[[], Any]) -> int:
    """Return how many Python functions a case calls, after a first call that fills caches."""
    case()
    calls = 0

    def count(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        case()
    finally:
        sys.setprofile(None)
    return calls


def several(case: Callable[[], Any]) -> None:
    """Run a case several times, because one call is short."""
    for _ in range(CALLS_A_ROUND):
        case()


def measured(network: str) -> dict[str, Any]:
    """Return the calls and seconds of all cases on one network."""
    cases = cases_of(network)
    calls = {name: python_calls(case) for name, case in cases.items()}
    timed = interleaved({name: partial(several, case) for name, case in cases.items()}, ROUNDS)
    seconds = {name: [one / CALLS_A_ROUND for one in values] for name, values in timed.items()}
    return {
        "network": network,
        "calls": calls,
        "seconds": summary(seconds, BARE),
        "environment": environment(),
    }


def report(rows: list[dict[str, Any]]) -> str:
    """Return the page of the results."""
    names = (BARE, OURS, TORCHCAM, FOUR)
    calls = [(row["network"], *(f"{row['calls'][name]:,}" for name in names)) for row in rows]
    times = [
        (
            row["network"],
            *(f"{row['seconds'][name]['median'] * 1e3:.2f}" for name in names),
            ratio_text(row["seconds"][OURS]),
            ratio_text(row["seconds"][TORCHCAM]),
        )
        for row in rows
    ]
    loads = [row["environment"]["load_average"][0] for row in rows]
    return f"""# Python calls and host time of an update

One update with one image of {SIDE} x {SIDE} pixels, where the operations of the CPU take little more time than their launch:
`AverageDrop` with Grad-CAM, torchcam's metric with its Grad-CAM, and `CAMComparison` with four methods (five forward passes).
Metrics are made once. Random weights, one thread. Written by `host.py`; all numbers are in `host.json`.

## Python calls

{table(("", *names), calls)}

## Host time, ms

Medians of {ROUNDS} interleaved rounds of {CALLS_A_ROUND} updates in one process. The last columns are multiples of the two bare
forward passes with their quartiles. The load average was between {min(loads)} and {max(loads)}.

{table(("", *(f"{name}, ms" for name in names), "ours / bare", "torchcam / bare"), times)}"""


def main() -> None:
    """Measure and write the results."""
    options = parser(__doc__, __file__)
    options.add_argument("--render", action="store_true", help="only write the .md from the .json")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    if arguments.render:
        result = json.loads(arguments.out.with_suffix(".json").read_text())
    else:
        result = {"networks": [measured(network) for network in NETWORKS]}
    write(arguments.out, result, report(result["networks"]))


if __name__ == "__main__":
    main()
