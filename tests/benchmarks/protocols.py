"""Average Drop of the same maps under several protocols: how much the values and the ranking of methods change.

A small network is trained on Fashion-MNIST, and the maps of the logit of its top class are evaluated on the 10,000 test
images under every protocol.

    python tests/benchmarks/protocols.py [--data FOLDER] [--images N]
"""

from typing import Any

import pytorch_grad_cam
import torch
from fashion_mnist import EVALUATION_BATCH, accuracy, load, parsed_with_data, trained
from results import THREADS, environment, parser, table, write
from scipy.stats import spearmanr
from torch import Tensor, nn

from torchmetrics_cam import CAMComparison, EvaluationProtocol, explain
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

LAST, EARLIER = "last_relu", "body.6"
# Leaves the maps as the source gives them.
RAW = EvaluationProtocol(name="raw maps", rectify="source", normalize="none")
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
    """Return the methods and the controls, by name."""
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
    """Return the maps of all images by each source, neither rectified nor normalized."""
    maps: dict[str, list[Tensor]] = {name: [] for name in sources}
    for part in images.split(EVALUATION_BATCH):
        # One source at a time: their maps differ in size.
        for name, batch in zip(sources, explain(sources, part, protocol=RAW), strict=True):
            maps[name].append(batch.maps)
    return {name: torch.cat(parts) for name, parts in maps.items()}


def evaluated(
    sources: dict[str, CAMSource], images: Tensor, maps: dict[str, Tensor], protocol: EvaluationProtocol
) -> dict[str, dict[str, float]]:
    """Return Average Drop and Average Gain of the softmax score of the top class, also where a preset uses raw scores."""
    model = next(iter(sources.values())).model
    comparison = CAMComparison(
        {name: PrecomputedMaps(model) if name in maps else source for name, source in sources.items()},
        nn.Softmax(1),
        measures=MEASURES,
        controls=False,
        protocol=protocol.replace(cam_of="logit"),
    )
    for index, batch in enumerate(images.split(EVALUATION_BATCH)):
        with torch.inference_mode():
            top = model(batch).argmax(1)
        cams = {name: all_maps.split(EVALUATION_BATCH)[index] for name, all_maps in maps.items()}
        comparison.update(batch, class_idx=top, cams=cams)
    values = {key: value.item() for key, value in comparison.compute().items()}
    return {name: {measure: values[f"{name}/{measure}"] for measure in MEASURES} for name in sources}


def agreement(results: dict[str, dict[str, dict[str, float]]], measure: str) -> dict[str, float]:
    """Return the rank correlation of each protocol's ranking of the methods with that of ``paper``."""
    columns = {name: [values[name][measure] for values in results.values()] for name in PROTOCOLS}
    return {name: float(spearmanr(columns["paper"], column).statistic) for name, column in columns.items()}


def report(results: dict[str, Any], correlations: dict[str, Any], settings: dict[str, Any]) -> str:
    """Return the page of the results."""
    rows = [
        (method, *(f"{values[name]['average_drop']:.3f}" for name in PROTOCOLS))
        for method, values in results.items()
    ]
    rows += [
        (f"*rank correlation, {label}*", *(f"{correlations[measure][name]:.2f}" for name in PROTOCOLS))
        for measure, label in (("average_drop", "drop"), ("average_gain", "gain"))
    ]
    return f"""# The same maps under several protocols

Average Drop (lower is better) of the same maps on {settings["images"]:,} test images of Fashion-MNIST, with a CNN of
three convolutional layers (accuracy {settings["accuracy"]:.4f}). In every column the score is the softmax of the network's
top class and the maps are those of its logit, so the columns differ only in how a map becomes a perturbed image and a value.
Columns after `xplique` change one field of `paper` (`top 20 %`: two). Controls: {", ".join(CONTROLS)}.

The last two rows are Spearman's rank correlation between the ranking of the ten methods in a column and that in `paper`, by
Average Drop and by Average Gain. Written by `protocols.py`; all numbers are in `protocols.json`.

{table(("method", *PROTOCOLS), rows)}"""


def main() -> None:
    """Train a network, compute the maps, evaluate them under every protocol, and write the results."""
    options = parser(__doc__, __file__)
    options.add_argument("--images", type=int, default=10_000, help="number of test images")
    arguments = parsed_with_data(options)
    torch.set_num_threads(THREADS)
    machine = environment()
    model = trained(*load(arguments.data, "train"), seed=0)
    test = tuple(part[: arguments.images] for part in load(arguments.data, "t10k"))
    settings = {"images": len(test[0]), "accuracy": accuracy(model, *test)}
    sources = methods(model)
    # Our own sources run under each protocol, which decides how negative values of their maps are rectified.
    maps = maps_of(
        {name: source for name, source in sources.items() if not isinstance(source, LayerSource)}, test[0]
    )
    for source in sources.values():
        source.remove_hooks()
    results: dict[str, dict[str, dict[str, float]]] = {name: {} for name in sources}
    for name, protocol in PROTOCOLS.items():
        averages = evaluated(sources, test[0], maps, protocol)
        for method, values in averages.items():
            results[method][name] = values
        print(name, {method: round(values["average_drop"], 3) for method, values in averages.items()})
    correlations = {measure: agreement(results, measure) for measure in MEASURES}
    result = {
        "environment": machine,
        "settings": {**settings, "protocols": {name: str(protocol) for name, protocol in PROTOCOLS.items()}},
        "results": results,
        "rank_correlation_with_paper": correlations,
    }
    write(arguments.out, result, report(results, correlations, settings))


if __name__ == "__main__":
    main()
