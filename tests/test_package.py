"""The package as a whole: what importing it costs, style, types, and that what is written down runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
HEAVY = ("lightning", "pytorch_lightning", "cv2", "captum", "torchcam", "pytorch_grad_cam", "skimage", "rich")
README = (ROOT / "README.md").read_text()


def imported(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(m for m in sys.modules if '.' not in m))"
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    return set(out.stdout.split())


def test_importing_it_pulls_in_nothing_that_torchmetrics_does_not():
    own = imported("import torchmetrics_cam, torchmetrics_cam.cams") - imported("import torchmetrics")
    assert own & {*HEAVY, "matplotlib"} == set()
    assert {name for name in own if not name.startswith("_")} == {"torchmetrics_cam"}


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


def test_ci_runs_the_commands_of_the_readme():
    """The script cuts the test command out of the README, so the two cannot differ."""
    block = re.search(r"<!-- test -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert block
    assert "pytest" in block[1]
    assert "<!-- test -->" in (ROOT / ".ci" / "run").read_text()


PYTHON_BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("index", range(len(PYTHON_BLOCKS)))
def test_the_examples_of_the_readme_run(index, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(PYTHON_BLOCKS[index], f"README block {index}", "exec"), {"__name__": "__main__"})


def test_the_readme_has_its_examples():
    assert len(PYTHON_BLOCKS) >= 6


def test_the_evaluation_of_the_readme_runs_on_two_processes(tmp_path):
    script = re.search(r"<!-- evaluation.py -->\n```python\n(.*?)```", README, re.DOTALL)
    command = re.search(r"<!-- torchrun -->\n```bash\n(.*?)```", README, re.DOTALL)
    assert script
    assert command
    (tmp_path / "evaluation.py").write_text(script[1])
    beside_python = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command[1],
        shell=True,
        cwd=tmp_path,
        env=os.environ | beside_python,
        timeout=180,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^Average Drop 0\.\d+ over 7 images$", done.stdout, re.MULTILINE)
    assert done.stdout.count("Average Drop") == 1


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore:.*Proactor event loop")
def test_notebooks_run_and_are_committed_with_their_output(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in code)
    assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": ROOT}}
    ).execute()
