"""Cost of deletion, insertion and ROAD.

Deletion and insertion are computed in one update, which scores each image and at most ``2 * steps`` perturbed versions of
it. Their time is measured relative to the same number of bare forward passes. ROAD imputes pixels before it scores an image;
its imputation of a batch, without noise, is compared with scipy's sparse solver and with pytorch-grad-cam's imputer.

    python tests/benchmarks/perturbations.py [--networks resnet18 resnet50] [--rounds 5]

The exit code is 1 if deletion and insertion take more than 1.05 times their bare forward passes.
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
from results import THREADS, environment, interleaved, parser, ratio_text, summary, table, write
from torch import Tensor, nn

from torchmetrics_cam import CAMComparison
from torchmetrics_cam.cams import GradCAM
from torchmetrics_cam.functional.curves import position_ranks
from torchmetrics_cam.functional.road import linear_imputation

SIDE, BATCH, STEPS, TARGET = 224, 8, 20, 1.05
FRACTIONS = (0.1, 0.5)
BASELINE, OURS, TORCHCAM = "bare forwards", "ours", "torchcam"
IMPUTED, SCIPY, GRAD_CAM = "ours", "scipy's spsolve", "pytorch-grad-cam"


def curve_cases(network: str, layer: str = "layer4") -> dict[str, Callable[[], None]]:
    """Return the cases for deletion and insertion of one batch: bare forward passes, this package, torchcam."""
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
    """Return smooth random images with a little white noise, ``(BATCH, channels, side, side)``."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(BATCH, channels, 7, 7, generator=generator)
    fine = torch.rand(BATCH, channels, side, side, generator=generator)
    return nn.functional.interpolate(coarse, (side, side), mode="bicubic") + 0.1 * fine


def spsolve(image: Tensor, hidden: Tensor) -> Tensor:
    """Impute the pixels of one image: assemble the linear system from arrays and solve it with scipy.

    Args:
        image: ``(C, H, W)``.
        hidden: the pixels to impute, bool, ``(H, W)``.

    Returns:
        The image with imputed pixels, ``(C, H, W)``.
    """
    unknown = hidden.numpy()
    count = unknown.sum()
    # The index of each unknown pixel in the system; -1 where the pixel is known.
    indices = np.full(unknown.shape, -1)
    indices[unknown] = np.arange(count)
    pixels = image.numpy().astype(np.float64)
    rows, columns, entries = [], [], []
    diagonal, right_side = np.zeros(count), np.zeros((count, len(pixels)))
    height, width = unknown.shape
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            if not (down or right):
                continue
            weight = 1 / 6 if not (down and right) else 1 / 12
            centers = np.s_[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
            shifted = np.s_[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
            center, neighbor = indices[centers], indices[shifted]
            diagonal[center[center >= 0]] += weight
            both_unknown = (center >= 0) & (neighbor >= 0)
            rows.append(center[both_unknown])
            columns.append(neighbor[both_unknown])
            entries.append(np.full(both_unknown.sum(), -weight))
            neighbor_known = (center >= 0) & (neighbor < 0)
            values = pixels[(slice(None), *shifted)][:, neighbor_known]
            right_side[center[neighbor_known]] += weight * values.T
    rows.append(np.arange(count))
    columns.append(rows[-1])
    entries.append(diagonal)
    coordinates = (np.concatenate(rows), np.concatenate(columns))
    matrix = scipy.sparse.csc_matrix((np.concatenate(entries), coordinates), shape=(count, count))
    solution = scipy.sparse.linalg.spsolve(matrix, right_side)
    imputed_image = image.clone()
    imputed_image[:, hidden] = torch.from_numpy(solution.T).to(image.dtype)
    return imputed_image


def imputation_cases(fraction: float) -> dict[str, Callable[[], Tensor]]:
    """Return the cases that impute a fraction of the pixels of one batch, the most relevant of a random map."""
    images = smooth_images(1, 3, SIDE)
    ranks = position_ranks(smooth_images(2, 1, SIDE)[:, 0])
    hidden = ranks < round(fraction * SIDE * SIDE)
    imputer = NoisyLinearImputer(noise=0)

    def grad_cam() -> Tensor:
        return torch.stack(
            [imputer(image, (~unknown).float()) for image, unknown in zip(images, hidden, strict=True)]
        )

    return {
        SCIPY: lambda: torch.stack([spsolve(*pair) for pair in zip(images, hidden, strict=True)]),
        IMPUTED: lambda: linear_imputation(images, hidden),
        GRAD_CAM: grad_cam,
    }


def imputed(fraction: float, rounds: int) -> dict[str, Any]:
    """Return the seconds of each case, and the largest absolute difference from scipy's solution."""
    cases = imputation_cases(fraction)
    reference = cases[SCIPY]()
    differences = {name: (case() - reference).abs().max().item() for name, case in cases.items()}
    cells = summary(interleaved(cases, rounds), SCIPY)
    return {
        "fraction": fraction,
        "cases": {name: {**cells[name], "largest_difference": differences[name]} for name in cells},
    }


def report(result: dict[str, Any]) -> str:
    """Return the page of the results."""
    curves = [
        (
            network,
            f"{cells[BASELINE]['median']:.2f}",
            *(ratio_text(cells[name]) for name in (OURS, TORCHCAM)),
        )
        for network, cells in result["curves"].items()
    ]
    imputations = [
        (
            f"{row['fraction']:.0%}",
            *(f"{row['cases'][name]['median']:.2f}" for name in (IMPUTED, SCIPY, GRAD_CAM)),
            f"{row['cases'][GRAD_CAM]['median'] / row['cases'][IMPUTED]['median']:.1f}",
            f"{row['cases'][IMPUTED]['largest_difference']:.1e}",
        )
        for row in result["imputation"]
    ]
    curve_header = ("network", "bare forward passes, s", "ours", "torchcam")
    header = (
        *("pixels imputed", "ours", SCIPY, GRAD_CAM, "pytorch-grad-cam / ours"),
        "largest difference, ours and scipy's",
    )
    load = " ".join(map(str, result["environment"]["load_average"]))
    return f"""# Cost of deletion, insertion and ROAD

{BATCH} images of {SIDE} x {SIDE} pixels per batch, {result["environment"]["threads"]} CPU threads; medians of
{result["rounds"]} rounds. The load averages at the start were {load}. Written by `perturbations.py`; all numbers are in
`perturbations.json`.

## Deletion and insertion: one update with {STEPS} steps

Time as a multiple of 2 · {STEPS} + 1 bare forward passes of the batch in inference mode, with quartiles. Insertion starts
from blurred images in this package, as in RISE. It starts from zeros in torchcam's `DeletionInsertionMetric`, where deletion
and insertion therefore share one more end point.

{table(curve_header, curves)}

## ROAD: imputation of one batch, seconds

All implementations impute the same pixels, without noise. For scipy's `spsolve` this script assembles the linear system of
each image with array operations; pytorch-grad-cam is its `NoisyLinearImputer`.

{table(header, imputations)}"""


def main() -> int:
    """Measure, write the results, and check the target."""
    options = parser(__doc__, __file__)
    options.add_argument(
        "--networks", nargs="+", default=["resnet18", "resnet50"], help="names of torchvision networks"
    )
    options.add_argument("--rounds", type=int, default=5, help="number of rounds, at least 2")
    options.add_argument("--threads", type=int, default=THREADS, help="number of CPU threads")
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    result = {
        "target": f"deletion and insertion take at most {TARGET} times their bare forward passes",
        "environment": environment(),
        "rounds": arguments.rounds,
        "imputation": [imputed(fraction, arguments.rounds) for fraction in FRACTIONS],
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
