"""Coverage of the 95 % intervals on real values: how often an interval of few images contains the mean over all images.

A small network is trained on Fashion-MNIST, and every measure that needs no annotations is computed for Grad-CAM and for a
random map on each of the 10,000 test images. The mean over all of them is the truth. Samples of N images are then drawn with
replacement, and an interval is computed from the sums of each, as a metric does.

    python tests/benchmarks/coverage.py [--data FOLDER] [--cache FILE]
    python tests/benchmarks/coverage.py --render   # write coverage.md from coverage.json

The cache keeps the values of the images; measures that it lacks are computed and added. Beside the results, `coverage.npz`
has the values of every fourth image for the tests.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fashion_mnist import DATA, EVALUATION_BATCH, TARGET_LAYER, load, trained
from results import environment, parser, table, write
from scipy import stats

from torchmetrics_cam import CAMComparison, EvaluationProtocol
from torchmetrics_cam.cams import GradCAM, RandomMap
from torchmetrics_cam.functional.statistics import Estimate, estimate, wilson_interval
from torchmetrics_cam.metrics.measures import MEASURES, Measure

PROTOCOL = EvaluationProtocol.preset("paper")
METHODS = ("Grad-CAM", "random map")
SIZES = (10, 20, 30, 50, 100, 300)
SAMPLES, SEED = 20_000, 0
# Coverage within these limits is acceptable.
LOWEST, HIGHEST = 0.93, 0.97
EVERY = 4  # of the images, one is kept for the tests
Bounds = tuple[torch.Tensor, torch.Tensor]
Values = dict[str, np.ndarray]


def values_of_images(data: Path, cache: Path) -> Values:
    """Return the values of each measure, float32 ``(10000, 2)``, from the cache where it has them."""
    values: Values = dict(np.load(cache)) if cache.exists() else {}
    missing = [name for name, one in MEASURES.items() if not one.needs_objects and name not in values]
    if missing:
        print("computing", *missing, flush=True)
        model = trained(*load(data, "train"), seed=SEED)
        sources = dict(zip(METHODS, (GradCAM(model, TARGET_LAYER), RandomMap(model)), strict=True))
        comparison = CAMComparison(
            sources, measures=missing, controls=False, per_sample=True, protocol=PROTOCOL
        )
        for batch in load(data, "t10k")[0].split(EVALUATION_BATCH):
            comparison.update(batch)
        samples = comparison.samples()
        values |= {name: samples[name].float().numpy() for name in missing}
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(cache, **values)
    return {name: values[name] for name in MEASURES if name in values}


def resampled(values: np.ndarray, size: int) -> tuple[Estimate, torch.Tensor]:
    """Return the estimates from samples of a number of images, and the sum of each sample."""
    rows = np.random.default_rng(SEED).integers(len(values), size=(SAMPLES, size))
    drawn = torch.from_numpy(values.astype(np.float64))[torch.from_numpy(rows)]
    total = drawn.sum(1)
    return estimate(torch.tensor(size), total, drawn.square().sum(1)), total


def normal_interval(found: Estimate) -> Bounds:
    """Return the interval of the normal distribution, as it was before."""
    margin = stats.norm.ppf(0.975) * found.standard_error
    return found.mean - margin, found.mean + margin


def interval(measure: Measure, found: Estimate, total: torch.Tensor, size: int) -> Bounds:
    """Return the interval of the mean of a measure, as a comparison computes it."""
    if measure.proportion:
        return wilson_interval(torch.tensor(size), total)
    low, high = measure.range_in(PROTOCOL)
    return found.interval(low=low, high=high)


def covered(bounds: Bounds, truth: float) -> float:
    """Return the fraction of intervals that contain the truth."""
    return ((bounds[0] <= truth) & (truth <= bounds[1])).double().mean().item()


def coverage(measure: Measure, values: np.ndarray) -> dict[str, Any]:
    """Return the coverage of a measure's intervals for each method, and of the paired difference."""
    result: dict[str, Any] = {"title": measure.title, "methods": {}}
    columns = {method: column[np.isfinite(column)] for method, column in zip(METHODS, values.T, strict=True)}
    for method, column in columns.items():
        truth = float(column.mean(dtype=np.float64))
        before, after = [], []
        for size in SIZES:
            found, total = resampled(column, size)
            bounds = interval(measure, found, total, size)
            before.append(covered(bounds if measure.proportion else normal_interval(found), truth))
            after.append(covered(bounds, truth))
        result["methods"][method] = {
            "images": len(column),
            "mean": truth,
            "standard_deviation": float(column.std(dtype=np.float64)),
            "skewness": float(stats.skew(column.astype(np.float64))) if np.ptp(column) else None,
            "before": before,
            "after": after,
        }
    apart = values[:, 0] - values[:, 1]
    apart = apart[np.isfinite(apart)]
    truth = float(apart.mean(dtype=np.float64))
    estimates = [resampled(apart, size)[0] for size in SIZES]
    result["difference"] = {
        "mean": truth,
        "before": [covered(normal_interval(found), truth) for found in estimates],
        "after": [covered(found.interval(), truth) for found in estimates],
    }
    # Values that are all equal have no distribution whose mean could be missed.
    varying = [one["after"] for one in result["methods"].values() if one["standard_deviation"] > 0]
    result["outside"] = outside(varying)
    result["difference"]["outside"] = outside([result["difference"]["after"]])
    return result


def outside(coverages: Sequence[Sequence[float]]) -> dict[str, float]:
    """Return the coverage by number of images where it is not right: the one that is furthest from 95 %."""
    worst = [max(shares, key=lambda share: abs(share - 0.95)) for shares in zip(*coverages, strict=True)]
    rounded = {str(size): round(share, 3) for size, share in zip(SIZES, worst, strict=True)}
    return {size: share for size, share in rounded.items() if not LOWEST <= share <= HIGHEST}


def report(result: Mapping[str, Any]) -> str:
    """Return the page of the results."""
    header = ("measure", "of", "mean", "skewness", *(f"N = {size}" for size in SIZES))
    samples = result["settings"]["samples"]
    rows, pairs = [], []
    for one in result["measures"].values():
        for method, part in one["methods"].items():
            skewness = "-" if part["skewness"] is None else f"{part['skewness']:.1f}"
            facts = (one["title"], method, f"{part['mean']:.3f}", skewness)
            rows.append((*facts, *_cells(part)))
        pairs.append((one["title"], f"{one['difference']['mean']:.3f}", *_cells(one["difference"])))
    wrong = [
        (one["title"], _list(one["outside"]), _list(one["difference"]["outside"]))
        for one in result["measures"].values()
        if one["outside"] or one["difference"]["outside"]
    ]
    return f"""# Coverage of the 95 % intervals on real values

Values per image of {len(result["measures"])} measures on the 10,000 test images of Fashion-MNIST, for Grad-CAM and a random map in the protocol
`paper`. Each entry is the fraction of {samples:,} samples of N images whose interval contains the mean over all images: before
(normal distribution) → after (this package). The standard error of an entry near .95 is {np.sqrt(0.05 * 0.95 / samples):.4f}. Written by `coverage.py`; all
numbers are in `coverage.json`.

{table(header, rows)}

Means: Student's t on the logit scale of the measure's range (the logarithm for a range with one end), with the bound of
Clopper and Pearson for a mean at an end of the range. Increase in Confidence is a proportion, with Wilson's interval before and
after. Where the skewness is missing, all images have one value: the random map is the same for every class.

## Paired differences: Grad-CAM minus the random map

{table((header[0], header[2], *header[4:]), pairs)}

Student's t without a range.

## Where the coverage is not within {100 * LOWEST:.0f} to {100 * HIGHEST:.0f} %

Of Grad-CAM and the random map, the value that is further from 95 %. The table and the report of a comparison of such a number
of images say so.

{table(("measure", "mean", "paired difference"), wrong)}"""


def _cells(part: Mapping[str, Sequence[float]]) -> list[str]:
    pairs = zip(part["before"], part["after"], strict=True)
    return [f"{_share(before)} → {_share(after)}" for before, after in pairs]


def _list(outside: Mapping[str, float]) -> str:
    return ", ".join(f"{_share(share)} at N = {size}" for size, share in outside.items()) or "-"


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def main() -> int:
    """Compute the values of the images and the coverage, and write both."""
    options = parser(__doc__, __file__)
    options.add_argument(
        "--data", type=Path, default=DATA, help="folder with the gzipped idx files of Fashion-MNIST"
    )
    default = Path(tempfile.gettempdir()) / "torchmetrics-cam-coverage.npz"
    options.add_argument("--cache", type=Path, default=default, help="file with the values of the images")
    options.add_argument("--render", action="store_true", help="only write the .md from the .json")
    arguments = options.parse_args()
    if arguments.render:
        result = json.loads(arguments.out.with_suffix(".json").read_text())
        arguments.out.with_suffix(".md").write_text(report(result) + "\n")
        return 0
    # With one thread, a later run that adds measures to the cache trains the same network.
    torch.set_num_threads(1)
    machine = environment()
    values = values_of_images(arguments.data, arguments.cache)
    measures = {name: coverage(MEASURES[name], column) for name, column in values.items()}
    settings = {"protocol": str(PROTOCOL), "sizes": SIZES, "samples": SAMPLES, "seed": SEED}
    result = {"environment": machine, "settings": settings, "measures": measures}
    write(arguments.out, result, report(result))
    kept = {name: column[::EVERY].astype(np.float16) for name, column in values.items()}
    np.savez_compressed(arguments.out.with_suffix(".npz"), **kept)
    return 0


if __name__ == "__main__":
    sys.exit(main())
