"""``--mosaic``: localization on images without annotation, from the command to the report and to compare."""

import csv
import hashlib
import json
import re
import shutil
from argparse import Namespace
from pathlib import Path

import digits
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from processes import START_METHOD, TIMEOUT
from test_evaluate_command import CPU, enter, numbers, results

from torchmetrics_cam import CAMComparison, EvaluationProtocol, MosaicDataset
from torchmetrics_cam.cams import GradCAM
from torchmetrics_cam.cli import main
from torchmetrics_cam.cli.data import load_data
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.results import start_or_resume
from torchmetrics_cam.lightning import evaluate
from torchmetrics_cam.metrics.measures import MEASURES

NETWORK = """
import numpy as np
import torch
from digits import network_of_any_size


def network():
    return network_of_any_size(), transform, [f"digit {number}" for number in range(10)]


def transform(picture):
    return torch.tensor(np.array(picture.convert("L")), dtype=torch.float32).unsqueeze(0) / 255


def labeled():
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(1, 16, 16, generator=generator), number % 5) for number in range(10)]


def unlabeled():
    return [image for image, _ in labeled()]


def nine_pixels():
    return [(torch.rand(1, 16, 16 + number % 2), number) for number in range(10)]
"""
LOCALIZATION = [name for name, measure in MEASURES.items() if measure.needs_objects]
# An image has 256 pixels, fewer than the highest ones that the default compares with the tile.
OPTIONS = ["--mosaic", "2", "--measures", ",".join(LOCALIZATION), "--top-k", "64"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained network, 50 real digits in folders of their classes, and a broken file."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mine.py").write_text(NETWORK)
    shutil.copy(digits.__file__, folder)
    torch.save(digits.trained_on_large_digits().state_dict(), folder / "weights.pt")
    for number, (pixels, label) in enumerate(digits.large(0, 50)):
        of_class = folder / "photos" / f"digit {int(label)}"
        of_class.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels[0].numpy() * 255).astype(np.uint8)).save(of_class / f"{number:03}.png")
    (folder / "photos" / "digit 3" / "broken.png").write_bytes(b"no picture")
    (folder / "flat").mkdir()
    Image.new("L", (16, 16)).save(folder / "flat" / "1.png")
    return folder


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter(place, monkeypatch)
    return place


def arguments(out: Path, *more: str) -> list[str]:
    network = ["--model", "mine:network", "--checkpoint", "weights.pt", "--layer", "5"]
    return ["evaluate", *network, "--data", "photos", "--batch-size", "8", *CPU, "--out", str(out), *more]


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        enter(place, patch)
        assert main(arguments(out, *OPTIONS, "--pictures", "2")) == 0
    return out


def row_of(out: Path, method: str) -> dict:
    return next(row for row in results(out)["comparison"]["rows"] if row["method"] == method)


def test_values_are_those_of_the_dataset_of_mosaics(whole, inside):
    import mine

    files = sorted(Path("photos").rglob("*.png"))
    images = [
        None if file.name == "broken.png" else mine.transform(Image.open(file).convert("RGB"))
        for file in files
    ]
    mosaics = MosaicDataset(images, labels=[int(file.parent.name[-1]) for file in files])
    model, *_ = mine.network()
    model.load_state_dict(torch.load("weights.pt"))
    comparison = CAMComparison(
        {"Grad-CAM": GradCAM(model.eval(), "5")},
        measures=LOCALIZATION,
        protocol=EvaluationProtocol(pointing_tolerance=0, top_k=64),
    )
    for item in mosaics:
        if item is not None:
            one = {name: torch.as_tensor(value).unsqueeze(0) for name, value in item.items()}
            comparison.update(**one)
    expected = comparison.compute()
    for method in ("Grad-CAM", "uniform map", "center map"):
        row = row_of(whole, method)
        assert row["n"] == 50
        for measure in LOCALIZATION:
            assert row[measure]["value"] == pytest.approx(expected[f"{method}/{measure}"].item(), abs=1e-5)


def test_grad_cam_finds_the_tile_and_controls_have_its_share(whole):
    assert row_of(whole, "Grad-CAM")["energy_pointing_game"]["value"] > 0.4
    for measure in ("energy_pointing_game", "pointing_game", "mask_iou", "relevance_rank_accuracy"):
        assert row_of(whole, "uniform map")[measure]["value"] == 0.25
    assert row_of(whole, "Grad-CAM")["localization_auc"]["value"] > 0.6
    assert row_of(whole, "uniform map")["localization_auc"]["value"] == 0.5
    assert row_of(whole, "center map")["pointing_game"]["value"] == 0.25


def test_results_report_and_samples_state_the_mosaic(whole, inside):
    stored = results(whole)
    assert stored["data"]["mosaic"] == 2
    assert stored["data"]["explained"] == "label"
    assert stored["data"]["labels"] == "class names of the network"
    assert (stored["settings"]["mosaic"], stored["settings"]["explain"]) == (2, "label")
    assert stored["comparison"]["protocol"]["pointing_tolerance"] == 0
    assert [Path(row["file"]).name for row in stored["data"]["unreadable"]] == ["broken.png"]
    page = (whole / "report.html").read_text()
    assert "each explained in a mosaic of 2 x 2 images of different classes" in page
    assert (
        "a map that ignores the class has 1/4 of its sum on the tile on average, if the classes have" in page
    )
    assert "arXiv:2104.00032" in page
    outlines = re.findall('<span class="tile" style="(.*?)">', page)
    assert len(outlines) == 4
    for outline in outlines:
        assert re.fullmatch(r"left: (0|50)\.0%;top: (0|50)\.0%;width: 50\.0%;height: 50\.0%;", outline)
    with (whole / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 50
    for row in rows:
        assert row["sha256"] == hashlib.sha256(Path(row["file"]).read_bytes()).hexdigest()
        assert Path(row["file"]).parent.name == f"digit {row['class_idx']}"


def test_two_processes_give_the_values_of_one(whole, inside, tmp_path, monkeypatch):
    def on_two_processes(*given: object, **settings: object) -> object:
        # As ddp_spawn, but forked from a server, which starts faster.
        strategy = DDPStrategy(start_method=START_METHOD, timeout=TIMEOUT)
        return evaluate(*given, **(settings | {"devices": 2, "strategy": strategy}))

    monkeypatch.setattr("torchmetrics_cam.cli.evaluate.evaluate", on_two_processes)
    assert main(arguments(tmp_path / "out", *OPTIONS, "--pictures", "0")) == 0
    assert results(tmp_path / "out")["hardware"]["processes"] == 2
    one, two = numbers(whole), numbers(tmp_path / "out")
    for first, second in zip(one["comparison"]["rows"], two["comparison"]["rows"], strict=True):
        assert (first["method"], first["n"]) == (second["method"], second["n"])
        for measure in LOCALIZATION:
            assert first[measure]["value"] == pytest.approx(second[measure]["value"], abs=1e-6)


def test_other_measures_are_those_of_the_mosaics_too(inside, tmp_path, capsys):
    more = ["--data", "mine:labeled", "--measures", "average_drop,mask_iou", "--pictures", "0"]
    assert main(arguments(tmp_path / "out", "--mosaic", "2", *more)) == 0
    assert row_of(tmp_path / "out", "Grad-CAM")["average_drop"]["value"] > 0
    # No measure reads it, so the protocol stays the preset.
    assert results(tmp_path / "out")["comparison"]["protocol"]["name"] == "paper"
    assert "Mosaic: each image in a mosaic of 2 x 2 images of different classes" in capsys.readouterr().out


def test_a_tolerance_that_is_given_is_kept(inside, tmp_path):
    more = ["--measures", "pointing_game", "--pointing-tolerance", "15", "--limit", "30", "--pictures", "0"]
    assert main(arguments(tmp_path / "out", "--mosaic", "2", *more)) == 0
    assert row_of(tmp_path / "out", "center map")["pointing_game"]["value"] == 1


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["--measures", "average_drop,energy_pointing_game,mask_iou"],
            "--measures: energy_pointing_game and mask_iou compare maps with objects, which the images do not"
            " mark; add --mosaic 2, with which the object is the tile of a mosaic",
        ),
        (["--mosaic", "1"], "--mosaic 1: a mosaic has at least 2 x 2 tiles; give 2 or more"),
        (
            ["--mosaic", "2", "--explain", "top"],
            "--mosaic explains the label of a tile, so --explain top cannot be given with it; omit one of them",
        ),
        (
            ["--mosaic", "4"],
            "--mosaic 4: the images have 10 classes, and a mosaic of 4 x 4 tiles shows 16 different ones; pass",
        ),
        (
            ["--mosaic", "2", "--data", "flat"],
            "--mosaic needs a label for every image, and flat/1.png has no label; sort the images into"
            " subfolders named after the classes, remove this one, or omit --mosaic",
        ),
        (
            ["--mosaic", "2", "--data", "mine:unlabeled"],
            "--mosaic needs a label for every image, and mine:unlabeled[0] has no label; sort the images into",
        ),
        (
            ["--mosaic", "2", "--data", "mine:nine_pixels", "--num-workers", "1"],
            "--mosaic 2: item 5 has an image of the shape (1, 16, 17), and an earlier one has (1, 16, 16); a",
        ),
        (["--mosaic", "two"], "--mosaic: two is not of type int"),
    ],
    ids=["no mosaic", "one tile", "top", "classes", "flat folder", "no labels", "shapes", "text"],
)
def test_unusable_options_are_reported_with_what_to_do(inside, tmp_path, capsys, more, sentence):
    assert main(arguments(tmp_path / "out", *more)) == 2
    stderr = capsys.readouterr().err
    assert sentence in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def test_names_of_classes_that_the_network_lacks_are_reported_for_the_mosaic(inside, tmp_path, capsys):
    for name in ("digit 1", "digit 2", "digit 3", "letter"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("L", (16, 16)).save(tmp_path / "photos" / name / "1.png")
    more = ["--mosaic", "2", "--data", str(tmp_path / "photos")]
    assert main(arguments(tmp_path / "out", *more)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "--mosaic: 1 of the 4 classes of the data are not among the class names of the network" in message
    assert message.endswith("whose labels are indices of the network's outputs, or omit --mosaic")


def test_labels_are_read_without_decoding_the_images(inside):
    import mine

    names = [f"digit {number}" for number in range(10)]
    folder = load_data("photos", mine.transform, class_names=names, labeled=True, limit=20)
    broken = [index for index in range(20) if folder[index] is None]
    expected = [int(Path(folder.file(index)).parent.name[-1]) for index in range(20)]
    assert folder.labels() == expected
    assert len(broken) <= 1
    function = load_data("mine:labeled", mine.transform, labeled=True, limit=4)
    assert function.labels() == [function[index]["label"] for index in range(4)]


def test_saved_datasets_have_labels_too(tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("L", (8, 8), 20 * number) for number in range(6)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list("abc"))})
    rows = {"image": [*pictures[:5], None], "label": [0, 1, 2, 0, 1, None]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    images = load_data(
        str(tmp_path / "saved"), lambda picture: torch.ones(1), class_names=list("cba"), labeled=True
    )
    assert images.labels() == [2, 1, 0, 2, 1, None]


def test_a_partial_result_of_another_mosaic_is_not_resumed(tmp_path):
    start_or_resume(tmp_path / "partial", Namespace(fresh=False, mosaic=2), {})
    start_or_resume(tmp_path / "partial", Namespace(fresh=False, mosaic=2), {})
    with pytest.raises(UsageError, match="holds the partial result of another command: mosaic differ"):
        start_or_resume(tmp_path / "partial", Namespace(fresh=False, mosaic=3), {})


def test_compare_warns_where_the_mosaics_differ(whole, inside, tmp_path, capsys):
    def compared(*more: str) -> list[str]:
        assert main(arguments(tmp_path / "out", *more, "--measures", "mask_iou", "--pictures", "0")) == 0
        capsys.readouterr()
        assert main(["compare", f"{whole}/results.json", f"{tmp_path}/out/results.json"]) == 0
        return capsys.readouterr().out.splitlines()

    assert "Warning: the values of A and B are not comparable: --mosaic (2 and 3) differ." in compared(
        "--mosaic", "3"
    )
    partners = (
        "Warning: an image is among others in its mosaic in A than in B, because the images of the runs, their"
        " order or their classes differ."
    )
    assert partners in compared("--mosaic", "2", "--limit", "40")
    same = compared("--mosaic", "2")
    assert "50 images are in both runs." in same
    assert not any(line.startswith("Warning") for line in same)


def test_compare_with_a_run_without_mosaics(inside, tmp_path, capsys):
    for out, more in (("one", []), ("two", ["--mosaic", "2"])):
        options = ["--measures", "average_drop", "--pictures", "0", "--limit", "30", *more]
        assert main(arguments(tmp_path / out, *options)) == 0
    stored = json.loads((tmp_path / "one" / "results.json").read_text())
    assert stored["data"]["mosaic"] is None
    assert main(["compare", *(str(tmp_path / out / "results.json") for out in ("one", "two"))]) == 0
    printed = capsys.readouterr().out
    assert "--explain (top class and label), --mosaic (None and 2) differ." in printed
    assert "in its mosaic" not in printed
