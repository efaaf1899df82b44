"""The forward passes of every measure, as the guide states them."""

import re
from pathlib import Path

import pytest
import torch
from conftest import Calls, small_net

from torchmetrics_cam import CAMComparison, EvaluationProtocol
from torchmetrics_cam.cams import (
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from torchmetrics_cam.metrics.measures import MEASURES

GUIDE = Path(__file__).parents[2] / "GUIDE.md"


def stated():
    """Return the passes of each image by measure, for one method and for eight, from the table of the guide."""
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| (\d+) \| (\d+) \|$", GUIDE.read_text(), re.MULTILINE)
    return {
        measure: (int(one), int(eight)) for names, one, eight in rows for measure in re.findall(r"\w+", names)
    }


def gradient_cams(net, count):
    methods = [GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, HiResCAM]
    every = [method(net, layer) for layer in ("body", "stem") for method in methods]
    return {f"{index}": source for index, source in enumerate(every[:count])}


@pytest.mark.parametrize("measure", MEASURES)
def test_the_passes_that_the_guide_states(measure):
    net = small_net()
    # 400 pixels, which 20 steps divide evenly.
    images = torch.rand(2, 3, 20, 20, dtype=torch.float64)
    objects = (torch.arange(20) < 10).expand(2, 20, 20)
    for count, passes in zip((1, 8), stated()[measure], strict=True):
        comparison = CAMComparison(
            gradient_cams(net, count),
            measures=[measure],
            controls=False,
            protocol=EvaluationProtocol(top_k=100),
        )
        with Calls(net) as calls:
            comparison.update(images, objects=objects)
        assert sum(calls.batches) == passes * len(images)


def test_the_guide_states_no_other_measure():
    assert set(stated()) == set(MEASURES)
