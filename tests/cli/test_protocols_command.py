"""``torchmetrics-cam protocols``: the list of the presets, and the evaluations of papers with their commands."""

import shlex
from pathlib import Path

import pytest
import torch
import torchcam.methods
import torchvision

from torchmetrics_cam.baselines import black
from torchmetrics_cam.cli import main
from torchmetrics_cam.cli.arguments import parse, protocols_of
from torchmetrics_cam.cli.methods import METHODS
from torchmetrics_cam.cli.protocols import CAVEAT, PAPERS, PRESET_LIST
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.protocol import PRESETS

WITH_COMMAND = [paper for paper in PAPERS if paper.command]
LEFT_OUT = [paper for paper in PAPERS if not paper.command]


def guide_section():
    """Return the part of the guide on presets and papers, in Markdown."""
    lines = ["| `--protocol` | origin | effect |", "|---|---|---|"]
    lines += [f"| `{preset.name}` | {preset.origin} | {preset.effect} |" for preset in PRESET_LIST]
    lines += ["", CAVEAT, ""]
    lines += ["| paper | `--protocol` | network | layer | images | published values | not verified |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for paper in PAPERS:
        protocol = f"`{paper.protocol}`" if paper.protocol else "none"
        cells = (paper.network, paper.layer, paper.data, paper.published, paper.unverified)
        lines.append(f"| [{paper.title}]({paper.source}) | {protocol} | {' | '.join(cells)} |")
    lines += ["", "```bash", *(f"# {paper.title}\n{paper.command}" for paper in WITH_COMMAND), "```"]
    return "\n".join(lines)


def options_of(paper):
    program, *words = shlex.split(paper.command)
    assert program == "torchmetrics-cam"
    return parse(words).evaluate


def test_every_preset_is_listed_in_its_order():
    assert [preset.name for preset in PRESET_LIST] == list(PRESETS)


def test_the_papers_are_those_that_users_ask_about():
    assert [paper.title for paper in WITH_COMMAND] == [
        "Grad-CAM++",
        "Score-CAM",
        "RISE",
        "ADCC",
        "Recipro-CAM",
        "Opti-CAM",
    ]
    assert [paper.title for paper in LEFT_OUT] == ["Relevance-CAM", "Ablation-CAM"]
    assert all(paper.unverified.startswith("no protocol: ") for paper in LEFT_OUT)


@pytest.mark.parametrize("paper", WITH_COMMAND, ids=lambda paper: paper.title)
def test_the_commands_fit_the_network_the_methods_and_the_measures(paper):
    options = options_of(paper)
    (protocol,) = protocols_of(options)
    assert protocol.name == paper.protocol
    library, _, name = options.model.partition(":")
    assert library == "torchvision"
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None)
    assert network.get_submodule(options.layer)
    assert set(options.measures.split(",")) <= set(MEASURES)
    for method in options.methods.split(","):
        library, _, name = method.partition(":")
        assert method in METHODS or (library == "torchcam" and hasattr(torchcam.methods, name))


def test_the_layer_of_vgg_is_its_last_convolution_with_its_relu():
    with torch.device("meta"):
        layers = torchvision.models.vgg16(weights=None).features
    convolutions = [index for index, layer in enumerate(layers) if isinstance(layer, torch.nn.Conv2d)]
    assert convolutions[-1] == 28
    assert isinstance(layers[29], torch.nn.ReLU)


def test_the_baseline_of_opti_cam_is_black():
    (paper,) = [paper for paper in PAPERS if paper.title == "Opti-CAM"]
    (protocol,) = protocols_of(options_of(paper))
    assert protocol.baseline == pytest.approx(
        black(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), abs=1e-4
    )


def test_the_command_prints_every_preset_and_paper(capsys):
    assert main(["protocols"]) == 0
    printed = capsys.readouterr().out
    for preset in PRESET_LIST:
        assert f"\n{preset.name}: {preset.origin}\n  {preset.effect}\n" in printed
    for paper in PAPERS:
        assert f"\n{paper.title}: {paper.source}\n" in printed
        assert f": {paper.unverified}\n" in printed
    for paper in WITH_COMMAND:
        assert f"  Protocol: {paper.protocol}\n" in printed
        assert f"  Command: {paper.command}\n" in printed
    assert f"\nEvaluations of papers. {CAVEAT}\n" in printed


def test_the_tables_of_the_guide_have_a_row_for_each():
    """`guide_section` writes them from the same list as the command."""
    section = guide_section()
    assert all(f"| [{paper.title}]({paper.source}) | " in section for paper in PAPERS)
    assert all(
        f"| `{preset.name}` | {preset.origin} | {preset.effect} |" in section for preset in PRESET_LIST
    )
    assert all(f"\n{paper.command}\n" in section for paper in WITH_COMMAND)
    tables = [line.count("|") for line in section.splitlines() if line.startswith("|")]
    assert set(tables) == {4, 8}


def test_the_guide_has_the_tables_of_the_command():
    assert guide_section().strip() in (Path(__file__).parents[2] / "GUIDE.md").read_text()
