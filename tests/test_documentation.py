"""What is written down is true: examples and commands run, links lead somewhere, figures are the measured ones."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import skimage.data
import torch
import torchvision
from conftest import find_or_skip
from nbclient import NotebookClient
from PIL import Image
from processes import Command

import torchmetrics_cam
from torchmetrics_cam.cli.arguments import parse, protocols_of

ROOT = Path(__file__).parent.parent
README, GUIDE = ((ROOT / name).read_text() for name in ("README.md", "GUIDE.md"))

NETWORK = """
from torch import nn
from torchvision.transforms import v2
import torch


def network():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 3))
    steps = v2.ToImage(), v2.Resize((32, 32)), v2.ToDtype(torch.float32, scale=True)
    return model, v2.Compose(steps)
"""


def test_ci_runs_the_commands_of_the_readme():
    """The script cuts the test command out of the README, so the two cannot differ."""
    script = (ROOT / ".ci" / "run").read_text()
    assert "pytest" in block("test", README)
    assert "<!-- test -->" in script
    # Nothing is skipped there, and every package that a skipped test names is installed.
    assert "export CI=true" in script
    assert {"dataset-fashion-mnist", "chromium", "chromium-driver"} <= set(script.split())


PYTHON_BLOCKS = {
    f"{name} {number}": block
    for name, text in (("README", README), ("GUIDE", GUIDE))
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
}


@pytest.mark.parametrize("name", PYTHON_BLOCKS)
def test_the_examples_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON_BLOCKS[name], name, "exec"), {"__name__": "__main__"})


def test_readme_and_guide_have_their_examples():
    assert len(PYTHON_BLOCKS) >= 15
    assert "README 0" in PYTHON_BLOCKS


def block(mark, text):
    """The block of code that a comment marks."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found, mark
    return found[1]


def shell(command, folder, **variables):
    """What a command prints, with the scripts beside this Python on the path."""
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=os.environ | variables,
        timeout=240,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def printed_by_command(line, folder):
    """Return what a line of the shell that calls torchmetrics-cam prints; its process starts faster than a shell's."""
    program, *arguments = shlex.split(line)
    assert program == "torchmetrics-cam"
    code, printed, errors = Command(arguments, folder, folder).finish(240)
    assert code == 0, errors
    return printed


def test_links_lead_somewhere():
    for text in (README, GUIDE):
        for target in re.findall(r"\]\(([^)]+)\)", text):
            if target.startswith("https://"):
                continue
            name, _, anchor = target.partition("#")
            linked = (ROOT / name).read_text() if anchor and name else text
            if name:
                assert (ROOT / name).exists(), target
            if anchor:
                headings = re.findall(r"^#+ (.+)$", linked, re.MULTILINE)
                assert anchor in {heading.lower().replace(" ", "-") for heading in headings}, target


def test_the_costs_of_readme_and_guide_are_those_that_were_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    import front_page

    assert front_page.costs() in README
    assert front_page.all_costs() in GUIDE


def test_citation_names_this_version():
    assert f"version: {torchmetrics_cam.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_evaluation_of_the_guide_runs_on_two_processes(tmp_path):
    (tmp_path / "evaluation.py").write_text(block("evaluation.py", GUIDE))
    printed = shell(block("torchrun", GUIDE), tmp_path)
    assert re.findall(r"^Average Drop 0\.\d+ over 7 images$", printed, re.MULTILINE)
    assert printed.count("Average Drop") == 1


@pytest.fixture
def place(tmp_path):
    """A folder with photos and a network, as a user has them."""
    (tmp_path / "photos").mkdir()
    for name in ("astronaut", "chelsea", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "mine.py").write_text(NETWORK)
    return tmp_path


def test_the_evaluation_of_the_readme_runs(place):
    """Weights lie where torchvision keeps those that it has downloaded; here they are random ones."""
    weights = place / "hub" / "checkpoints" / "resnet50-11ad3fa6.pth"
    weights.parent.mkdir(parents=True)
    torch.save(torchvision.models.resnet50().state_dict(), weights)
    printed = shell(block("evaluate", README), place, TORCH_HOME=str(place))
    assert "Layer layer4" in printed
    for name in ("report.html", "results.json", "results.csv", "samples.csv"):
        assert (place / "torchmetrics-cam-results" / name).exists()
        assert f"`{name}`" in README


def test_the_commands_of_the_guide_run(place):
    (place / "evaluation.yaml").write_text(block("yaml", GUIDE))
    names: dict = {}
    exec(NETWORK, names)
    torch.save(names["network"]()[0].state_dict(), place / "weights.pt")
    command = block("command", GUIDE)
    assert "   torchcam:ScoreCAM " in printed_by_command(command, place)
    printed_by_command(command.strip() + " --out results/other --layer 0", place)
    assert "3 images are in both runs." in printed_by_command(block("compare", GUIDE), place)
    files = [path.relative_to(place / "photos") for path in (place / "photos").rglob("*.png")]
    rows = [f"{file},{'north' if index else 'south'}" for index, file in enumerate(files)]
    (place / "sites.csv").write_text("\n".join(["file,site", *rows]))
    assert (
        "By site, nothing can be compared: fewer than two groups have 2 images or more."
        in printed_by_command(block("groups", GUIDE), place)
    )


def test_the_protocol_of_the_guide_that_removes_little_is_one():
    options = parse(shlex.split(block("removal", GUIDE))[1:])
    (protocol,) = protocols_of(options.evaluate)
    assert (protocol.removal_probability, protocol.removal_limit, protocol.removal_samples) == (0.5, 0.1, 50)


PUBLIC_MODULES = {
    "torchmetrics_cam",
    *(f"torchmetrics_cam.{name}" for name in ("baselines", "cams", "functional", "lightning")),
}
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def internal_imports(code):
    """Return the internal modules of the package that Python code imports."""
    imported = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module)
            if node.module == "torchmetrics_cam":
                names = {alias.name for alias in node.names} - set(torchmetrics_cam.__all__)
                imported |= {f"torchmetrics_cam.{name}" for name in names}
    return {name for name in imported if name.split(".")[0] == "torchmetrics_cam"} - PUBLIC_MODULES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_import_public_modules_only(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert any("torchmetrics_cam" in source for source in code)
    assert not set().union(*(internal_imports(source) for source in code))


@pytest.mark.parametrize(
    "line",
    [
        "from torchmetrics_cam.pipeline.batch import explain",
        "from torchmetrics_cam import cli, explain",
        "import torch, torchmetrics_cam.model.scores as scores",
    ],
)
def test_internal_imports_are_found(line):
    assert internal_imports(line)


def test_public_imports_are_allowed():
    assert not internal_imports(
        "import torch\nimport torchmetrics_cam\nfrom torchmetrics_cam import explain, cams\n"
        "from torchmetrics_cam.lightning import evaluate"
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*Proactor event loop")
def test_notebooks_run_and_are_committed_with_their_output(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code)
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    if any("/usr/share/datasets/fashion-mnist" in cell.source for cell in code):
        find_or_skip("/usr/share/datasets/fashion-mnist", "dataset-fashion-mnist")
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": ROOT}}
    ).execute()
