"""Faithfulness on Fashion-MNIST with the network itself and with a surrogate that was fine-tuned on masked images.

A network that was trained on whole images has not seen masked ones. This script fine-tunes a copy of it with `RandomMasking`
in a Lightning Trainer, and evaluates the same maps twice: the images are scored by the network itself, and by the copy. It
reports how far the values of a random map, of the other controls and of eight methods move, and whether their ranking does.
A protocol with the capped, random removal of F-Fidelity (arXiv 2410.02970) is one of the protocols.

    python tests/benchmarks/surrogate.py [--data FOLDER] [--seeds 0 1 2]
"""

import copy
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from fashion_mnist import EVALUATION_BATCH, SmallCNN, accuracy, load, parsed_with_data, trained
from results import environment, parser, table, write
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torchmetrics_cam import CAMComparison, EvaluationProtocol, RandomMasking
from torchmetrics_cam.cams import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from torchmetrics_cam.lightning import RandomMaskingCallback

THREADS, EPOCHS, BATCH, LEARNING_RATE = 1, 3, 128, 3e-3
IMAGES, CURVE_IMAGES = 1000, 200
MASKING = {"max_fraction": 0.9, "grid": 7, "probability": 0.8}
LAYERS = {"last": "last_relu", "middle": "body.6"}
# Maps of the last layer by XGradCAM and HiResCAM equal those of GradCAM in this network.
METHODS = {
    "last": (GradCAM, GradCAMPlusPlus, LayerCAM),
    "middle": (GradCAM, GradCAMPlusPlus, XGradCAM, HiResCAM, LayerCAM),
}
CAPPED = {"removal_probability": 0.5, "removal_limit": 0.1, "removal_samples": 5}
PROTOCOLS = (
    EvaluationProtocol.preset("paper"),
    EvaluationProtocol.preset("score_cam"),
    EvaluationProtocol(name="capped", mask="top", **CAPPED),
)
CURVES = EvaluationProtocol(name="capped curves", curve_steps=5, **CAPPED)
SCORED_BY = ("the network", "the surrogate")
MEASURES = {
    "average_drop": "Average Drop",
    "increase_in_confidence": "Increase in Confidence",
    "average_gain": "Average Gain",
}


class FineTuning(pl.LightningModule):
    """Training of a classifier, which knows nothing of masks."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        super().__init__()
        self.model = model
        self.steps = steps

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.model(images.contiguous(memory_format=torch.channels_last)), labels)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fine_tuned(model: nn.Module, images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """Return a copy of a network that was fine-tuned on masked images, in evaluation mode."""
    torch.manual_seed(seed)
    surrogate = copy.deepcopy(model).train()
    loader = DataLoader(TensorDataset(images, labels), batch_size=BATCH, shuffle=True)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        callbacks=[RandomMaskingCallback(RandomMasking(**MASKING))],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(FineTuning(surrogate, EPOCHS * len(loader)), loader)
    return surrogate.eval()


def accuracies(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the accuracy on whole images, and on images with soft and with sharp random masks."""
    result = {"whole": accuracy(model, images, labels)}
    for name, upsampling in (("soft masks", "linear"), ("sharp masks", "nearest")):
        # The same masks for both networks; those of the training have other seeds.
        torch.manual_seed(1000)
        masking = RandomMasking(**{**MASKING, "probability": 1.0}, upsampling=upsampling)
        result[name] = accuracy(model, masking(images), labels)
    return result


def values_of(comparison: CAMComparison, images: Tensor) -> dict[str, dict[str, dict[str, Any]]]:
    """Return value, bounds and rank by protocol, method and measure."""
    for batch in images.split(EVALUATION_BATCH):
        comparison.update(batch)
    found = comparison.table()
    by_protocol = {found.protocol.name: found.rows} | {one.protocol.name: one.rows for one in found.further}
    names = [measure["name"] for measure in found.measures]
    return {
        protocol: {
            row["method"]: {
                name: {key: row[name][key] for key in ("value", "lower", "upper", "rank")} for name in names
            }
            for row in rows
        }
        for protocol, rows in by_protocol.items()
    }


def run(seed: int, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Train a network, fine-tune a copy, and evaluate the maps of the network by the scores of both."""
    started = time.perf_counter()
    model = trained(*train, seed)
    surrogate = fine_tuned(model, *train, seed)
    sources = {
        f"{method.__name__}, {layer}": method(model, LAYERS[layer])
        for layer, methods in METHODS.items()
        for method in methods
    }
    values, curves = {}, {}
    for scored_by, scoring in zip(SCORED_BY, (None, surrogate), strict=True):
        comparison = CAMComparison(sources, protocols=PROTOCOLS, surrogate=scoring)
        values[scored_by] = values_of(comparison, test[0][:IMAGES])
        comparison = CAMComparison(
            sources, measures=["symmetric_relevance_gain"], protocol=CURVES, surrogate=scoring
        )
        curves[scored_by] = values_of(comparison, test[0][:CURVE_IMAGES])[CURVES.name]
    result = {
        "seed": seed,
        "accuracy": {
            name: accuracies(one, *test) for name, one in zip(SCORED_BY, (model, surrogate), strict=True)
        },
        "values": values,
        "symmetric_relevance_gain": curves,
        "agreement": {
            protocol.name: {
                measure: agreement(values, protocol.name, measure, list(sources)) for measure in MEASURES
            }
            for protocol in PROTOCOLS
        },
    }
    result["seconds"] = round(time.perf_counter() - started, 1)
    print(f"seed {seed}: {result['seconds']} s", flush=True)
    return result


def agreement(values: Mapping[str, Any], protocol: str, measure: str, methods: Sequence[str]) -> float:
    """Return Spearman's rank correlation of the methods, without controls, between both ways of scoring."""
    ranked = [[values[by][protocol][method][measure]["value"] for method in methods] for by in SCORED_BY]
    return float(spearmanr(*ranked).statistic)


def means(runs: Sequence[Mapping[str, Any]], protocol: str, method: str, measure: str) -> list[float]:
    """Return the mean value over the seeds, scored by the network and by the surrogate."""
    return [
        sum(run["values"][by][protocol][method][measure]["value"] for run in runs) / len(runs)
        for by in SCORED_BY
    ]


def accuracy_table(runs: Sequence[Mapping[str, Any]]) -> str:
    kinds = list(runs[0]["accuracy"][SCORED_BY[0]])
    rows = [
        (str(run["seed"]), by, *(f"{run['accuracy'][by][kind]:.4f}" for kind in kinds))
        for run in runs
        for by in SCORED_BY
    ]
    return table(("seed", "accuracy of", *kinds), rows)


def protocol_table(runs: Sequence[Mapping[str, Any]], protocol: str) -> str:
    """Return the means over the seeds of one protocol, the lowest Average Drop by the network first."""
    header = ["method"]
    for title in MEASURES.values():
        header += [f"{title} by the network", "by the surrogate"]
    methods = list(runs[0]["values"][SCORED_BY[0]][protocol])
    methods.sort(key=lambda method: means(runs, protocol, method, "average_drop")[0])
    rows = [
        (
            method,
            *(f"{value:.4f}" for measure in MEASURES for value in means(runs, protocol, method, measure)),
        )
        for method in methods
    ]
    return table(header, rows)


def curve_table(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for method in runs[0]["symmetric_relevance_gain"][SCORED_BY[0]]:
        values = [
            [run["symmetric_relevance_gain"][by][method]["symmetric_relevance_gain"]["value"] for run in runs]
            for by in SCORED_BY
        ]
        rows.append((method, *(f"{sum(each) / len(each):.4f}" for each in values)))
    rows.sort(key=lambda row: -float(row[1]))
    return table(("method", "by the network", "by the surrogate"), rows)


def agreement_table(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            protocol.name,
            MEASURES[measure],
            *(f"{run['agreement'][protocol.name][measure]:.2f}" for run in runs),
        )
        for protocol in PROTOCOLS
        for measure in MEASURES
    ]
    return table(("protocol", "measure", *(f"seed {run['seed']}" for run in runs)), rows)


def report(runs: Sequence[dict[str, Any]]) -> str:
    """Return the page of the results."""
    sections = "\n\n".join(
        f"### Protocol `{protocol.name}`\n\n{protocol_table(runs, protocol.name)}" for protocol in PROTOCOLS
    )
    return f"""# Fashion-MNIST: values by the network and by a surrogate that was fine-tuned on masked images

{findings(runs)}

## Accuracy

{accuracy_table(runs)}

Masks of up to 90 % of the cells of a 7 x 7 grid, the same for both networks: `soft masks` are interpolated between cells, as
in the fine-tuning, and `sharp masks` have edges, which it had not.

## Values, means over the seeds

The first {IMAGES:,} test images, maps of the network in both columns. `last` is the last ReLU, `middle` the
second one, of 14 x 14 pixels. A lower Average Drop is better.

{sections}

In `capped`, of the pixels that the mask of `score_cam` hides, a random half is replaced, but at most 10 % of the image on average,
and the score is the mean over {CAPPED["removal_samples"]} such removals.

### Symmetric Relevance Gain with capped curves

{curve_table(runs)}

The area with the least relevant pixels removed first minus the area with the most relevant first, both with the capped, random
removal, on the first {CURVE_IMAGES} test images. Averaged over the sizes of the explanation, this is F-Fidelity's FFid+ minus
FFid-, with the score of the class in place of the accuracy.

## Agreement of the two rankings

{agreement_table(runs)}

Spearman's rank correlation of the eight methods between both ways of scoring; 1 for the same ranking.

Written by `surrogate.py`; all numbers, with the 95 % intervals of each seed, are in `surrogate.json`."""


def findings(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return what the numbers say, good and bad, as a list."""

    def drops(protocol: str, method: str) -> str:
        before, after = means(runs, protocol, method, "average_drop")
        return f"{before:.3f} to {after:.3f}"

    def mean_drops(protocol: str) -> str:
        of_methods = [means(runs, protocol, method, "average_drop") for method in methods]
        before, after = (sum(each) / len(methods) for each in zip(*of_methods, strict=True))
        return f"{before:.3f} to {after:.3f}"

    def better_than_random(protocol: str) -> str:
        random = means(runs, protocol, "random map", "average_drop")
        counts = [
            sum(means(runs, protocol, method, "average_drop")[by] < random[by] for method in methods)
            for by in (0, 1)
        ]
        return f"{counts[0]} of {len(methods)} methods by the network and {counts[1]} by the surrogate"

    def correlations(measure: str) -> str:
        found = [run["agreement"][protocol.name][measure] for run in runs for protocol in PROTOCOLS]
        return f"{min(found):.2f} to {max(found):.2f}"

    def accuracies_in(kind: str) -> str:
        before, after = (sum(run["accuracy"][by][kind] for run in runs) / len(runs) for by in SCORED_BY)
        return f"{before:.1%} to {after:.1%}"

    controls = {"uniform map", "random map", "center map"}
    methods = [name for name in runs[0]["values"][SCORED_BY[0]]["paper"] if name not in controls]
    return f"""What was found, in the mean of {len(runs)} networks:

- **The fine-tuning works, at a price.** The accuracy on images with random soft masks rises from {accuracies_in("soft masks")}, and
  with sharp masks from {accuracies_in("sharp masks")}. That on whole images falls from {accuracies_in("whole")}.
- **All drops fall, so a part of them is due to the masks themselves.** In `paper` the Average Drop of a random map falls from
  {drops("paper", "random map")}, and that of the methods, in their mean, from {mean_drops("paper")}. In `score_cam` they fall from
  {drops("score_cam", "random map")} and from {mean_drops("score_cam")}.
- **The ranking by Average Drop hardly changes.** The rank correlation of the methods between both ways of scoring is
  {correlations("average_drop")}. By Average Gain, whose values are small, it is {correlations("average_gain")}, so that ranking depends on the surrogate.
- **A surrogate does not make Average Drop a better test.** In `paper`, {better_than_random("paper")}
  have a lower drop than the random map: a random soft mask leaves a part of every pixel, and a network that knows masks needs no more. In
  `score_cam` it is {better_than_random("score_cam")}, and the center map, which does not depend on the
  network, stays among the best.
- **With the capped removal a surrogate is hardly needed.** Where at most 10 % of an image is removed, the drop of the random map
  goes from {drops("capped", "random map")}, and that of the methods from {mean_drops("capped")}. {better_than_random("capped")} have a
  lower drop than the random map, and the center map does not lead.

These are small networks on small images, with one distribution of masks. A surrogate is another network than the one that is
explained: with it, a value says how much of what the surrogate needs is in the maps of the network."""


def main() -> int:
    """Train, fine-tune and evaluate for each seed, and write the results."""
    options = parser(__doc__, __file__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a network for each seed")
    arguments = parsed_with_data(options)
    torch.set_num_threads(THREADS)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    machine = environment()
    train, test = load(arguments.data, "train"), load(arguments.data, "t10k")
    runs = [run(seed, train, test) for seed in arguments.seeds]
    settings = {
        "network": SmallCNN.__name__,
        "layers": LAYERS,
        "fine_tuning": {"epochs": EPOCHS, "batch": BATCH, "largest_learning_rate": LEARNING_RATE, **MASKING},
        "images": IMAGES,
        "curve_images": CURVE_IMAGES,
        "protocols": {protocol.name: str(protocol) for protocol in (*PROTOCOLS, CURVES)},
    }
    write(arguments.out, {"environment": machine, "settings": settings, "runs": runs}, report(runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
