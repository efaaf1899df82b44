"""The same maps under every protocol: how far the numbers move, and how the ranking of methods does.

A small network on the 10,000 test images of Fashion-MNIST. The maps are of the logit everywhere, and every
protocol turns the same maps into an Average Drop.

    python tests/benchmarks/protocols.py [--data FOLDER] [--images N]
"""

from pathlib import Path
from typing import Any

import pytorch_grad_cam
import torch
from fashion_mnist import DATA, EVALUATION_BATCH, accuracy, load, trained
from results import THREADS, environment, parser, table, write
from scipy.stats import spearmanr
from torch import Tensor, nn

from torchmetrics_cam import CAMComparison, EvaluationProtocol
from torchmetrics_cam.cams import (
    CAMSource,
    CenterMap,
    EdgeMap,
    GradCAM,
    GradCAMPlusPlus,
    LayerCAM,
    LayerSource,
    PrecomputedMaps,
    RandomMap,
    RandomWeightsCAM,
    as_source,
)
from torchmetrics_cam.model.scores import ScoreFunction
from torchmetrics_cam.pipeline.explain import explain_all

LAST, EARLIER = "last_relu", "body.6"
UNRECTIFIED = ScoreFunction(None, EvaluationProtocol(name="raw maps", rectify="source", normalize="none"))
PAPER = EvaluationProtocol.preset("paper")
PROTOCOLS = {
    **{
        name: EvaluationProtocol.preset(name)
        for name in ("paper", "torchcam", "grad_cam", "score_cam", "xplique")
    },
    "baseline 0.5": PAPER.replace(baseline=0.5),
    "baseline mean": PAPER.replace(baseline="mean"),
    "baseline blur": PAPER.replace(baseline="blur"),
    "top 20 %": PAPER.replace(mask="top", mask_fraction=0.2),
    "threshold 0.5": PAPER.replace(mask="threshold", mask_threshold=0.5),
}
MEASURES = ("average_drop", "average_gain")
CONTROLS = ("random weights", "edges", "center", "random map")


def methods(model: nn.Module) -> dict[str, CAMSource]:
    """The methods and the controls, by name."""
    layer = model.get_submodule(LAST)
    return {
        "Grad-CAM": GradCAM(model, LAST),
        "Grad-CAM++": GradCAMPlusPlus(model, LAST),
        "Layer-CAM": LayerCAM(model, LAST),
        "Layer-CAM, earlier layer": LayerCAM(model, EARLIER),
        "Score-CAM": as_source(pytorch_grad_cam.ScoreCAM(model, [layer])),
        "Eigen-CAM": as_source(pytorch_grad_cam.EigenCAM(model, [layer])),
        "random weights": RandomWeightsCAM(model, LAST),
        "edges": EdgeMap(model),
        "center": CenterMap(model),
        "random map": RandomMap(model),
    }


def maps_of(sources: dict[str, CAMSource], images: Tensor) -> dict[str, Tensor]:
    """The maps of all images, made once."""
    batches = [
        explain_all(list(sources.values()), batch, scoring=UNRECTIFIED)
        for batch in images.split(EVALUATION_BATCH)
    ]
    return {name: torch.cat([batch[place].maps for batch in batches]) for place, name in enumerate(sources)}


def evaluated(
    sources: dict[str, CAMSource], images: Tensor, maps: dict[str, Tensor], protocol: EvaluationProtocol
) -> dict[str, dict[str, float]]:
    """Average Drop and Gain of the top class's probability, whatever scores the preset begins with."""
    model = next(iter(sources.values())).model
    comparison = CAMComparison(
        {name: PrecomputedMaps(model) if name in maps else source for name, source in sources.items()},
        nn.Softmax(1),
        measures=MEASURES,
        controls=False,
        protocol=protocol.replace(cam_of="logit"),
    )
    for place, batch in enumerate(images.split(EVALUATION_BATCH)):
        with torch.inference_mode():
            top = model(batch).argmax(1)
        cams = {name: made.split(EVALUATION_BATCH)[place] for name, made in maps.items()}
        comparison.update(batch, class_idx=top, cams=cams)
    values = {key: value.item() for key, value in comparison.compute().items()}
    return {name: {measure: values[f"{name}/{measure}"] for measure in MEASURES} for name in sources}


def agreement(results: dict[str, dict[str, dict[str, float]]], measure: str) -> dict[str, float]:
    """The rank correlation of each protocol's ranking of the methods with that of the paper's."""
    columns = {name: [one[name][measure] for one in results.values()] for name in PROTOCOLS}
    return {name: float(spearmanr(columns["paper"], column).statistic) for name, column in columns.items()}


def report(results: dict[str, Any], correlations: dict[str, Any], circumstances: dict[str, Any]) -> str:
    """What was found, for people."""
    rows = [
        (method, *(f"{values[name]['average_drop']:.3f}" for name in PROTOCOLS))
        for method, values in results.items()
    ]
    rows += [
        (f"*rank correlation, {label}*", *(f"{correlations[measure][name]:.2f}" for name in PROTOCOLS))
        for measure, label in (("average_drop", "drop"), ("average_gain", "gain"))
    ]
    return f"""# The same maps under every protocol

Average Drop (lower is better) of the same maps, on {circumstances["images"]:,} test images of Fashion-MNIST and a
CNN of three convolutions (accuracy {circumstances["accuracy"]:.4f}). The last two rows: Spearman's rank
correlation of each column's ranking of the ten rows with that of `paper`, by Average Drop and by Average Gain.
Columns after `xplique` change one field of `paper`. Controls: {", ".join(CONTROLS)}. The score is the softmax of
the network's top class everywhere, and the maps are of the logit, so what moves is what a protocol does to a map.
Written by `protocols.py`; all figures are in `protocols.json`.

{table(("method", *PROTOCOLS), rows)}"""


def main() -> None:
    """Train a network, make the maps, and evaluate them under every protocol."""
    options = parser(__doc__, __file__)
    options.add_argument("--data", type=Path, default=DATA, help="folder of the gzipped idx files")
    options.add_argument("--images", type=int, default=10_000, help="so many test images")
    arguments = options.parse_args()
    if not (arguments.data / "train-images-idx3-ubyte.gz").exists():
        options.error(f"{arguments.data} does not hold Fashion-MNIST; apt-get install dataset-fashion-mnist")
    torch.set_num_threads(THREADS)
    circumstances = environment()
    model = trained(*load(arguments.data, "train"), seed=0)
    test = tuple(part[: arguments.images] for part in load(arguments.data, "t10k"))
    found = {"images": len(test[0]), "accuracy": accuracy(model, *test)}
    sources = methods(model)
    # Ours are made anew under each protocol, with their negative values.
    maps = maps_of(
        {name: source for name, source in sources.items() if not isinstance(source, LayerSource)}, test[0]
    )
    for source in sources.values():
        source.remove_hooks()
    results: dict[str, dict[str, dict[str, float]]] = {name: {} for name in sources}
    for name, protocol in PROTOCOLS.items():
        found_here = evaluated(sources, test[0], maps, protocol)
        for method, values in found_here.items():
            results[method][name] = values
        print(name, {method: round(values["average_drop"], 3) for method, values in found_here.items()})
    correlations = {measure: agreement(results, measure) for measure in MEASURES}
    result = {
        "environment": circumstances,
        "settings": {**found, "protocols": {name: str(one) for name, one in PROTOCOLS.items()}},
        "results": results,
        "rank_correlation_with_paper": correlations,
    }
    write(arguments.out, result, report(results, correlations, found))


if __name__ == "__main__":
    main()
