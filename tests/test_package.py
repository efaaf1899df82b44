"""The package as a whole: what importing it costs, style, types, and that what is written down runs."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = ("lightning", "pytorch_lightning", "cv2", "captum", "torchcam", "pytorch_grad_cam", "skimage", "rich")


def imported(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(m for m in sys.modules if '.' not in m))"
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    return set(out.stdout.split())


def test_importing_it_pulls_in_nothing_that_torchmetrics_does_not():
    own = imported("import torchmetrics_cam, torchmetrics_cam.cams") - imported("import torchmetrics")
    assert own & {*HEAVY, "matplotlib"} == set()
    assert {name for name in own - sys.stdlib_module_names if not name.startswith("_")} == {
        "torchmetrics_cam"
    }


def test_a_heavy_import_would_be_noticed():
    assert "rich" in imported("import torchmetrics_cam, rich")


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["ruff check", "ruff format", "mypy --strict"],
)
def test_style_and_types(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_is_long():
    lines = {path: len(path.read_text().splitlines()) for path in (ROOT / "torchmetrics_cam").rglob("*.py")}
    assert len(lines) > 20
    assert {path: count for path, count in lines.items() if count > 300} == {}
