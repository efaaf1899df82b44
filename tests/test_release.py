"""What is released: the archives build, their description is in order, and the wheel holds all that is needed."""

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import torchmetrics_cam

ROOT = Path(__file__).parent.parent
A_METRIC = """
import sys, torch, torchmetrics_cam
from torchmetrics_cam.cams import GradCAM

assert torchmetrics_cam.__file__.startswith(sys.argv[1])
head = torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), *head)
metric = torchmetrics_cam.AverageDrop(GradCAM(model, "1"))
metric.update(torch.rand(2, 3, 8, 8))
print(bool(0 <= metric.compute() <= 1))
"""
THE_COMMAND = """
import sys
from torchmetrics_cam.cli import main
sys.exit(main(["evaluate"]))
"""


def run(*arguments, **settings):
    return subprocess.run(arguments, capture_output=True, text=True, **settings)


def printed(*arguments, **settings):
    done = run(*arguments, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Wheel and source archive. The backend is installed already, so nothing is fetched."""
    out = tmp_path_factory.mktemp("dist")
    printed(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), cwd=ROOT)
    (wheel,) = out.glob("*.whl")
    (source,) = out.glob("*.tar.gz")
    return wheel, source


def test_the_description_is_in_order(archives):
    line = [sys.executable, "-m", "twine", "check", "--strict", *map(str, archives)]
    assert printed(*line).count("PASSED") == 2


def test_the_wheel_holds_the_package_and_nothing_else(archives):
    with zipfile.ZipFile(archives[0]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        described = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(wheel.read(described))
        entry_points = wheel.read(described.replace("METADATA", "entry_points.txt")).decode()
    package = ROOT / "torchmetrics_cam"
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert held == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"torchmetrics_cam/py.typed", "torchmetrics_cam/report/template.html"} <= held
    assert metadata["Version"] == torchmetrics_cam.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert {"cli", "demo", "lightning", "torchcam", "grad-cam"} <= set(metadata.get_all("Provides-Extra"))
    core = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(line.split(">=")[0] for line in core) == ["torch", "torchmetrics"]
    assert "torchmetrics-cam = torchmetrics_cam.cli:main" in entry_points


def test_the_source_archive_holds_what_a_packager_needs(archives):
    with tarfile.open(archives[1]) as source:
        tops = {Path(name).parts[1] for name in source.getnames() if len(Path(name).parts) > 1}
    wanted = {".ci", "torchmetrics_cam", "tests", "notebooks", "pyproject.toml", "LICENSE"}
    wanted |= {"README.md", "GUIDE.md", "CHANGELOG.md", "CITATION.cff"}
    assert tops - {"PKG-INFO", ".gitignore"} == wanted


@pytest.fixture(scope="module")
def bare(archives, tmp_path_factory):
    """An environment of torch, torchmetrics, what they need, and the wheel: links to what is installed."""
    place = tmp_path_factory.mktemp("bare")
    wanted, seen = ["torch", "torchmetrics"], set()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        for top in {file.parts[0] for file in found.files if file.parts[0] != ".."}:
            if not (place / top).exists():
                (place / top).symlink_to(found.locate_file(top))
        needs = map(Requirement, found.requires or ())
        wanted += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    assert "matplotlib" not in seen
    return {"PYTHONPATH": f"{archives[0]}{os.pathsep}{place}", "PATH": os.environ["PATH"]}


def test_the_wheel_works_without_any_extra(archives, bare, tmp_path):
    line = [sys.executable, "-S", "-c", A_METRIC, str(archives[0])]
    assert printed(*line, cwd=tmp_path, env=bare).strip() == "True"


def test_the_command_without_its_extra_names_the_pip_line(bare, tmp_path):
    done = run(sys.executable, "-S", "-c", THE_COMMAND, cwd=tmp_path, env=bare)
    assert done.returncode != 0
    assert 'pip install "torchmetrics-cam[cli]"' in done.stderr
    assert "Traceback" not in done.stderr
