"""Maps that say nothing of the network: each passes some measure, and another one catches it.

Beside them stands HiRes-CAM, because Grad-CAM averages the gradient over the image, and this network, whose last
layer is linear in all positions, is one of those for which that is not faithful.
"""

import math
import re
from pathlib import Path

import pytest
import torch

from torchmetrics_cam import CAMComparison
from torchmetrics_cam.cams import (
    CallableSource,
    CenterMap,
    EdgeMap,
    HiResCAM,
    RandomMap,
    RandomWeightsCAM,
    UniformMap,
)
from torchmetrics_cam.functional._noise import hashed_noise

MEASURES = [
    "average_drop", "complexity", "adcc", "max_sensitivity", "class_sensitivity", "single_deletion",
    "faithfulness_correlation", "symmetric_relevance_gain",
]  # fmt: skip


def random_for_image_and_class(model, images, class_idx):
    noise = torch.stack([hashed_noise(images, 16, seed) for seed in range(10)], 1)
    return noise[torch.arange(len(images)), class_idx].view(-1, 4, 4)


def random_for_class(seed):
    table = torch.rand(10, 4, 4, generator=torch.Generator().manual_seed(seed))
    return lambda model, images, class_idx: table[class_idx]


CHEATS = {
    "uniform": UniformMap,
    "center": CenterMap,
    "edges": EdgeMap,
    "random weights": lambda model: RandomWeightsCAM(model, "1"),
    "random for the image": lambda model: RandomMap(model, grid=4),
    "random for image and class": lambda model: CallableSource(model, random_for_image_and_class),
}
# Ten maps for ten classes agree with the network by chance, so several such tables are averaged.
TABLES = [f"random for the class, {seed}" for seed in range(8)]


@pytest.fixture(scope="module")
def values(digits):
    """The values of HiRes-CAM and of the cheats by method and measure, on digits that the CNN has not seen."""
    model, images, _ = digits
    sources = {"HiRes-CAM": HiResCAM(model, "1")} | {name: make(model) for name, make in CHEATS.items()}
    sources |= {name: CallableSource(model, random_for_class(seed)) for seed, name in enumerate(TABLES)}
    comparison = CAMComparison(sources, measures=MEASURES, controls=False)
    comparison.update(images[:100])
    found = comparison.compute()
    values = {
        method: {name: found[f"{method}/{name}"].item() for name in MEASURES} for method in comparison.methods
    }
    values["random for the class"] = {
        name: sum(values[table][name] for table in TABLES) / len(TABLES) for name in MEASURES
    }
    return values


FAITHFULNESS = ("single_deletion", "faithfulness_correlation", "symmetric_relevance_gain")


def test_a_method_that_is_faithful_passes_all(values):
    honest = values["HiRes-CAM"]
    assert honest["max_sensitivity"] < 0.2
    assert honest["class_sensitivity"] > 0.6
    assert honest["complexity"] < 0.3
    assert honest["adcc"] > 0.5
    assert all(honest[measure] > 0.4 for measure in FAITHFULNESS)


def test_a_uniform_map_is_caught_by_complexity_adcc_and_class_sensitivity(values):
    cheat = values["uniform"]
    assert (cheat["average_drop"], cheat["max_sensitivity"]) == (0, 0)  # perfect
    assert (cheat["complexity"], cheat["adcc"], cheat["class_sensitivity"]) == (1, 0, 0)
    assert math.isnan(cheat["single_deletion"])
    assert math.isnan(cheat["faithfulness_correlation"])


def test_a_map_that_ignores_image_and_class_is_caught_by_class_sensitivity(values):
    cheat = values["center"]
    assert cheat["max_sensitivity"] == 0
    # Most digits are in the center: faithfulness alone does not catch it.
    assert all(cheat[measure] > 0.2 for measure in FAITHFULNESS)
    assert cheat["adcc"] > values["HiRes-CAM"]["adcc"]
    assert cheat["class_sensitivity"] == 0


@pytest.mark.parametrize("name", ["edges", "random weights"])
def test_a_map_of_the_image_that_ignores_the_class_is_caught_by_class_sensitivity(values, name):
    assert values[name]["class_sensitivity"] == 0
    if name == "edges":
        assert values[name]["max_sensitivity"] < values["HiRes-CAM"]["max_sensitivity"]


def test_a_random_map_of_the_image_is_caught_by_sensitivity_class_sensitivity_and_faithfulness(values):
    cheat = values["random for the image"]
    assert cheat["average_drop"] < values["HiRes-CAM"]["average_drop"]
    assert cheat["max_sensitivity"] > 0.5
    assert cheat["class_sensitivity"] == 0
    assert all(abs(cheat[measure]) < 0.1 for measure in FAITHFULNESS)


def test_a_random_map_of_image_and_class_is_caught_by_sensitivity_and_faithfulness(values):
    cheat = values["random for image and class"]
    assert cheat["class_sensitivity"] > 0.85  # better than HiRes-CAM
    assert cheat["max_sensitivity"] > 0.5
    assert all(abs(cheat[measure]) < 0.1 for measure in FAITHFULNESS)


def test_a_random_map_for_each_class_is_caught_by_faithfulness_alone(values):
    cheat = values["random for the class"]
    assert cheat["max_sensitivity"] == 0
    assert cheat["class_sensitivity"] > values["HiRes-CAM"]["class_sensitivity"]
    assert all(abs(cheat[measure]) < 0.1 for measure in FAITHFULNESS)


GUIDE = Path(__file__).parents[2] / "GUIDE.md"


def is_caught(value, honest, *, higher_is_better):
    """Return whether a value is at most half as good as that of HiRes-CAM, or is not defined."""
    return math.isnan(value) or (value <= honest / 2 if higher_is_better else value >= 2 * honest)


def test_the_table_of_the_guide(values):
    measures = ["average_drop", "adcc", "max_sensitivity", "class_sensitivity", "single_deletion"]
    measures.append("symmetric_relevance_gain")
    rows = dict(re.findall(r"^\| ([a-z ]+) \|((?: (?:caught|-) \|){6})$", GUIDE.read_text(), re.MULTILINE))
    found = {
        name: [
            is_caught(
                values[name][one],
                values["HiRes-CAM"][one],
                higher_is_better=one not in ("average_drop", "max_sensitivity"),
            )
            for one in measures
        ]
        for name in (*CHEATS, "random for the class")
    }
    assert {
        name: [cell.strip() == "caught" for cell in row.split("|")[:-1]] for name, row in rows.items()
    } == found
    assert all(any(row) for row in found.values())


@pytest.mark.parametrize(
    ("measures", "missing"),
    [
        (["max_sensitivity"], "class_sensitivity"),
        (["average_sensitivity", "complexity"], "class_sensitivity"),
        (["class_sensitivity"], "max_sensitivity"),
        (["class_sensitivity", "average_sensitivity"], None),
        (["complexity"], None),
    ],
)
def test_a_table_with_one_sensitivity_says_what_the_other_would_catch(digits, measures, missing):
    model, images, _ = digits
    comparison = CAMComparison({"HiRes-CAM": HiResCAM(model, "1")}, measures=measures)
    comparison.update(images[:40])
    text = str(comparison.table())
    assert ("would catch it" in text) is (missing is not None)
    assert missing is None or f"{missing} would catch it." in text
