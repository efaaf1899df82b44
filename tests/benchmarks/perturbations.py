"""What deletion, insertion and ROAD take beyond the forward passes that they cannot do without.

Deletion and insertion share one pass: at most ``2 * steps`` perturbed images an image, and the image itself. Their
time is a ratio to as many bare forwards. ROAD imputes images before it scores them; its imputation of a batch stands
beside scipy's sparse solver and pytorch-grad-cam's imputer, without noise.

    python tests/benchmarks/perturbations.py [--networks resnet18 resnet50] [--rounds 5]

It ends with status 1 if deletion and insertion take more than 1.05 of their bare forwards.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
import torchcam.methods
import torchcam.metrics
import torchvision
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from results import THREADS, environment, interleaved, parser, summary, table, with_quartiles, write
from torch import Tensor, nn

from torchmetrics_cam import CAMComparison
from torchmetrics_cam.cams import GradCAM
from torchmetrics_cam.functional.curves import position_ranks
from torchmetrics_cam.functional.road import linear_imputation

SIDE, BATCH, STEPS, TARGET = 224, 8, 20, 1.05
SHARES = (0.1, 0.5)
BASELINE, OURS, TORCHCAM = "bare forwards", "ours", "torchcam"
IMPUTED, SCIPY, GRAD_CAM = "ours", "scipy's spsolve", "pytorch-grad-cam"


def curve_cases(network: str, layer: str = "layer4") -> dict[str, Callable[[], None]]:
    """Deletion and insertion of one batch: ours, torchcam's, and the forwards that they need."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(network, weights=None).eval()
    images = torch.randn(BATCH, 3, SIDE, SIDE)

    def bare() -> None:
        with torch.inference_mode():
            for _ in range(2 * STEPS + 1):
                model(images)

    def ours() -> None:
        measures = ["deletion_auc", "insertion_auc"]
        CAMComparison({"Grad-CAM": GradCAM(model, layer)}, measures=measures, controls=False).update(images)

    def torchcams() -> None:
        with torchcam.methods.GradCAM(model, layer) as extractor:
            softmax = partial(torch.softmax, dim=-1)
            torchcam.metrics.DeletionInsertionMetric(extractor, softmax, steps=STEPS).update(images)

    return {BASELINE: bare, OURS: ours, TORCHCAM: torchcams}


def smooth_images(seed: int, channels: int, side: int) -> Tensor:
    """Noise enlarged and some noise on it: neither flat nor white."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(BATCH, channels, 7, 7, generator=generator)
    fine = torch.rand(BATCH, channels, side, side, generator=generator)
    return nn.functional.interpolate(coarse, (side, side), mode="bicubic") + 0.1 * fine


def spsolve(image: Tensor, hidden: Tensor) -> Tensor:
    """The linear system of one image, built from arrays and solved by scipy.

    Args:
        image: ``(C, H, W)``.
        hidden: which positions, ``(H, W)``.
    """
    gone = hidden.numpy()
    numbers = np.full(gone.shape, -1)
    numbers[gone] = np.arange(gone.sum())
    pixels = image.numpy().astype(np.float64)
    rows, columns, entries = [], [], []
    total, wanted = np.zeros(gone.sum()), np.zeros((gone.sum(), len(pixels)))
    height, width = gone.shape
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            if not (down or right):
                continue
            weight = 1 / 6 if not (down and right) else 1 / 12
            here = np.s_[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
            there = np.s_[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
            mine, theirs = numbers[here], numbers[there]
            wants = mine >= 0
            total[mine[wants]] += weight
            both = wants & (theirs >= 0)
            rows.append(mine[both])
            columns.append(theirs[both])
            entries.append(np.full(both.sum(), -weight))
            known = wants & (theirs < 0)
            wanted[mine[known]] += weight * pixels[(slice(None), *there)][:, known].T
    rows.append(np.arange(len(total)))
    columns.append(rows[-1])
    entries.append(total)
    places = (np.concatenate(rows), np.concatenate(columns))
    system = scipy.sparse.csc_matrix((np.concatenate(entries), places), shape=(len(total),) * 2)
    filled = image.clone()
    filled[:, hidden] = torch.from_numpy(scipy.sparse.linalg.spsolve(system, wanted).T).to(image.dtype)
    return filled


def imputation_cases(share: float) -> dict[str, Callable[[], Tensor]]:
    """The imputation of the most relevant positions of one batch."""
    images = smooth_images(1, 3, SIDE)
    ranks = position_ranks(smooth_images(2, 1, SIDE)[:, 0])
    hidden = ranks < round(share * SIDE * SIDE)
    imputer = NoisyLinearImputer(noise=0)

    def grad_cam() -> Tensor:
        return torch.stack(
            [imputer(image, (~gone).float()) for image, gone in zip(images, hidden, strict=True)]
        )

    return {
        SCIPY: lambda: torch.stack([spsolve(*one) for one in zip(images, hidden, strict=True)]),
        IMPUTED: lambda: linear_imputation(images, hidden),
        GRAD_CAM: grad_cam,
    }


def imputed(share: float, rounds: int) -> dict[str, Any]:
    """Seconds, and how far the others are from scipy's solution."""
    cases = imputation_cases(share)
    solved = cases[SCIPY]()
    apart = {name: (case() - solved).abs().max().item() for name, case in cases.items()}
    cells = summary(interleaved(cases, rounds), SCIPY)
    return {"share": share, "cases": {name: {**cells[name], "apart": apart[name]} for name in cells}}


def report(result: dict[str, Any]) -> str:
    """What was found, for people."""
    curves = [
        (
            network,
            f"{cells[BASELINE]['median']:.2f}",
            *(with_quartiles(cells[name]) for name in (OURS, TORCHCAM)),
        )
        for network, cells in result["curves"].items()
    ]
    imputations = [
        (
            f"{one['share']:.0%}",
            *(f"{one['cases'][name]['median']:.2f}" for name in (IMPUTED, SCIPY, GRAD_CAM)),
            f"{one['cases'][GRAD_CAM]['median'] / one['cases'][IMPUTED]['median']:.1f}",
            f"{one['cases'][IMPUTED]['apart']:.1e}",
        )
        for one in result["imputation"]
    ]
    curve_header = ("network", "bare forwards, seconds", "ours", "torchcam")
    header = (
        *("positions hidden", "ours", SCIPY, GRAD_CAM, "pytorch-grad-cam / ours"),
        "ours to scipy's, largest difference",
    )
    load = " ".join(map(str, result["environment"]["load_average"]))
    return f"""# Deletion, insertion and ROAD: what they take

Batch {BATCH}, {SIDE} px, {result["environment"]["threads"]} CPU threads, load at the start {load}; medians of
{result["rounds"]} rounds. Written by `perturbations.py`; all figures are in `perturbations.json`.

## Deletion and insertion, one update with {STEPS} steps

Time as a multiple of 2 · {STEPS} + 1 bare forwards of the batch in inference mode, with quartiles. Ours blurs the images
that insertion begins with, as RISE does; torchcam's `DeletionInsertionMetric` begins with zeros, and so shares one more
end point.

{table(curve_header, curves)}

## ROAD's imputation of the batch, seconds

All of them from the same positions, and without noise. scipy's system is built here from whole arrays, and an image at a
time; pytorch-grad-cam's `NoisyLinearImputer` builds its own.

{table(header, imputations)}"""


def main() -> int:
    """Measure, write the results, and check the target."""
    options = parser(__doc__, __file__)
    options.add_argument("--networks", nargs="+", default=["resnet18", "resnet50"], help="of torchvision")
    options.add_argument("--rounds", type=int, default=5, help="every case once a round")
    options.add_argument("--threads", type=int, default=THREADS, help="of the CPU")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {
        "target": f"deletion and insertion take at most {TARGET} of their bare forwards",
        "environment": environment(),
        "rounds": arguments.rounds,
        "imputation": [imputed(share, arguments.rounds) for share in SHARES],
        "curves": {
            network: summary(interleaved(curve_cases(network), arguments.rounds), BASELINE)
            for network in arguments.networks
        },
    }
    result["target_met"] = all(cells[OURS]["ratio"] <= TARGET for cells in result["curves"].values())
    write(arguments.out, result, report(result))
    return 0 if result["target_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
