"""``--group``: an audit by groups of images, from a CSV file or a column to the worst group in the results."""

import csv
import gzip
import math
import shutil
from pathlib import Path

import digits
import numpy as np
import pytest
import torch
from conftest import cautious_t_test, find_or_skip
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from processes import START_METHOD, TIMEOUT
from scipy import stats
from test_evaluate_command import CPU, enter, numbers, results
from torch import nn

from torchmetrics_cam.cli import main
from torchmetrics_cam.cli.data import load_data
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.groups import load_groups
from torchmetrics_cam.lightning import evaluate
from torchmetrics_cam.metrics.comparison.metric import CAMComparison

FASHION = Path("/usr/share/datasets/fashion-mnist")
CLASSES = ["T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"]
GROUP_OF = {
    **dict.fromkeys(("T-shirt", "Pullover", "Coat", "Shirt"), "tops"),
    **dict.fromkeys(("Sandal", "Sneaker", "Boot"), "footwear"),
    **dict.fromkeys(("Trouser", "Dress"), "others"),
    "Bag": "bags",
}
NETWORK = """
import numpy as np
import torch
from torch import nn

NAMES = {names}


def network():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear({side} * {side}, 10),
    )
    return model, transform, NAMES


def too_many_names():
    model, *_ = network()
    return model, transform, [*NAMES, "one more"]


def without_names():
    return network()[:2]


def other_names():
    model, *_ = network()
    return model, transform, ["other " + name for name in NAMES]


def equal_names():
    model, *_ = network()
    return model, transform, [*NAMES, NAMES[0]]


def transform(picture):
    return torch.tensor(np.array(picture.convert("L")), dtype=torch.float32).unsqueeze(0) / 255


def labeled():
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(1, {side}, {side}, generator=generator), number % 5) for number in range(10)]


def unlabeled():
    return [image for image, _ in labeled()]
"""
NETWORK_OPTIONS = ["--model", "mine:network", "--checkpoint", "weights.pt", "--layer", "3"]


def write_network(folder: Path, names: list[str], images: torch.Tensor, labels: torch.Tensor) -> None:
    """Write a module with a network, and the weights of this network after it has seen each image once."""
    (folder / "mine.py").write_text(NETWORK.format(names=names, side=images.shape[-1]))
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        enter(folder, patch)
        import mine

        torch.manual_seed(0)
        model, *_ = mine.network()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for chosen in torch.arange(len(images)).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    torch.save(model.state_dict(), folder / "weights.pt")


# The audit


def fashion(part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = (
        np.frombuffer(gzip.decompress((FASHION / name).read_bytes()), np.uint8, offset=offset)
        for name, offset in ((f"{part}-images-idx3-ubyte.gz", 16), (f"{part}-labels-idx1-ubyte.gz", 8))
    )
    return pixels.reshape(-1, 28, 28)[:count], labels[:count]


def interval(values: np.ndarray) -> tuple[float, float]:
    """The t interval of the mean of drops, on the scale of the logit."""
    mean, error = values.mean(), values.std(ddof=1) / math.sqrt(len(values))
    margin = stats.t.ppf(0.975, len(values) - 1) * error / (mean * (1 - mean))
    logit = math.log(mean / (1 - mean))
    return tuple(1 / (1 + math.exp(-bound)) for bound in (logit - margin, logit + margin))


def test_audit_of_fashion_mnist(tmp_path, monkeypatch, capsys):
    find_or_skip(FASHION, "dataset-fashion-mnist")
    pixels, labels = map(torch.tensor, fashion("train", 3000))
    write_network(tmp_path, CLASSES, pixels.unsqueeze(1) / 255, labels.long())
    enter(tmp_path, monkeypatch)
    rows = [("file", "kind")]
    for number, (pixels, label) in enumerate(zip(*fashion("t10k", 150), strict=True)):
        file = Path(CLASSES[label]) / f"{number}.png"
        (tmp_path / "photos" / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / file)
        rows.append((file, GROUP_OF[CLASSES[label]]))
    with open("kinds.csv", "w", newline="") as opened:
        csv.writer(opened).writerows(rows)
    measures = ["--measures", "average_drop,increase_in_confidence,insertion_auc", "--pictures", "0"]
    given = ["--data", "photos", "--group", "kinds.csv", "--out", "out"]
    gates = ["--fail-if", "tops/average_drop > 1", "--fail-if", "wrong/Grad-CAM/average_drop_upper >= 0"]
    assert main(["evaluate", *NETWORK_OPTIONS, *measures, *given, *gates, *CPU]) == 3

    stored = results(tmp_path / "out")
    with open("out/samples.csv", newline="") as opened:
        samples = list(csv.DictReader(opened))
    assert len(samples) == 150
    labels = [Path(row["file"]).parent.name for row in samples]
    kinds = np.array([GROUP_OF[label] for label in labels])
    is_correct = [CLASSES[int(row["class_idx"])] == label for row, label in zip(samples, labels, strict=True)]
    predictions = np.where(is_correct, "correct", "wrong")
    assert 100 < sum(is_correct) < 140
    assert [row["group"] for row in samples] == kinds.tolist()
    assert [row["prediction"] for row in samples] == predictions.tolist()

    groups = stored["comparison"]["groups"]
    assert [(one["grouping"], one["title"]) for one in groups] == [
        ("group", "kind"),
        ("prediction", "Prediction"),
    ]
    assert groups[0]["names"] == ["bags", "footwear", "others", "tops"]
    higher_is_better = {"average_drop": False, "increase_in_confidence": True, "insertion_auc": True}
    significant = 0
    for grouping, members in zip(groups, (kinds, predictions), strict=True):
        assert grouping["n"] == [int((members == name).sum()) for name in grouping["names"]]
        assert len(grouping["rows"]) == 5
        for row in grouping["rows"]:
            for measure, higher in higher_is_better.items():
                values = np.array([float(sample[f"{row['method']}/{measure}"]) for sample in samples])
                means = [values[members == name].mean() for name in grouping["names"]]
                cells = row["values"][measure]
                assert [cell["value"] for cell in cells] == pytest.approx(means, abs=1e-6)
                worst = row["worst"][measure]
                if worst is None:
                    assert max(means) - min(means) < 1e-6
                    continue
                index = int((np.argmin if higher else np.argmax)(means))
                assert worst["group"] == grouping["names"][index]
                inside, outside = (values[(members == worst["group"]) == part] for part in (True, False))
                *gap, p_value = cautious_t_test(inside, outside)
                theirs = [inside.mean(), outside.mean(), inside.mean() - outside.mean()]
                theirs += [*gap, p_value]
                ours = [worst[key] for key in ("value", "others", "gap", "lower", "upper", "p_value")]
                assert ours == pytest.approx(theirs, abs=1e-6)
                assert worst["significant"] == bool(p_value * len(means) < 0.05)
                significant += worst["significant"]
                bounds = cells[index]["lower"], cells[index]["upper"]
                if measure == "average_drop":
                    assert bounds == pytest.approx(interval(inside), abs=1e-6)
                elif measure == "increase_in_confidence":
                    test = stats.binomtest(int(inside.sum()), len(inside))
                    assert bounds == pytest.approx(tuple(test.proportion_ci(method="wilson")), abs=1e-6)
    assert significant > 5
    printed, error = capsys.readouterr()
    assert "Gate passed: tops/average_drop > 1\n" in printed
    (row,) = [row for row in groups[1]["rows"] if row["method"] == "Grad-CAM"]
    upper = row["values"]["average_drop"][1]["upper"]
    assert f"wrong/Grad-CAM/average_drop_upper is {upper:.3g}, so the gate" in error
    assert "Groups: column kind of kinds.csv\n" in printed
    assert "Labels: class names of the network\n" in printed
    assert "By kind, Average Drop is significantly worse than on all other images for " in printed


# Where the groups come from


def as_tensor(picture: Image.Image) -> torch.Tensor:
    return torch.tensor(np.array(picture), dtype=torch.float32).permute(2, 0, 1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six images, of which two have the same name, and one that cannot be read."""
    monkeypatch.chdir(tmp_path)
    for name in ("a/1.png", "a/2.png", "a/=3.png", "b/1.png", "b/4.png", "b/5.png"):
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(Path("photos", name))
    Path("photos/b/broken.png").write_bytes(b"no picture")
    return tmp_path


def groups_in(text: str, **settings: object):
    Path("kinds.csv").write_bytes(text.encode())
    return load_groups("kinds.csv", load_data("photos", as_tensor, **settings))


EACH = "a/1.png,x\na/2.png,y\na/=3.png,x\nb/1.png,y\nb/4.png,x\nb/5.png,z\n"


def test_images_are_named_by_path_in_the_folder_as_in_samples_or_by_their_name_alone(folder):
    found = groups_in(f"file,kind\n{EACH}")
    # The broken image needs no row.
    assert (found.title, found.names) == ("kind", ["x", "y", "z"])
    assert found.indices == [0, 1, 0, 1, 0, 2, -1]
    assert found.description == "column kind of kinds.csv"
    mixed = "photos/a/1.png,x\n2.png,y\n'=3.png,x\nphotos/b/1.png,y\nb/4.png,x\n5.png,z\n"
    # As Excel writes UTF-8, with spaces and an empty line.
    again = groups_in(f"\ufefffile, kind\r\n\r\n{mixed.replace(',', ', ')}")
    assert again == found
    assert again.fingerprint() == found.fingerprint()
    other = groups_in(f"file,kind\n{EACH.replace('5.png,z', '5.png,y')}")
    assert other.fingerprint() != found.fingerprint()


def test_rows_of_images_that_limit_leaves_out_are_fine_and_others_are_noted(folder):
    found = groups_in(f"file,kind\n{EACH}c/1.png,x\nc/2.png,w\n", limit=3)
    assert len(found.indices) == 3
    assert "w" not in found.names
    assert (
        found.description == "column kind of kinds.csv; 2 rows name no image of the data, such as 'c/1.png'"
    )
    images = load_data("photos", as_tensor, limit=3)
    names = dict(line.split(",") for line in EACH.splitlines())
    for index, number in enumerate(found.indices):
        name = str(Path(images.file(index)).relative_to("photos"))
        assert names.get(name) == (found.names[number] if number >= 0 else None)


def test_numbers_are_sorted_by_size(folder):
    found = groups_in("file,age\n" + EACH.replace("x", "10").replace("y", "9").replace("z", "100"))
    assert found.names == ["9", "10", "100"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"\ufeff{EACH}", "the first line names the image 'a/1.png'; write a header above it, such as file,group"),
        ("", "kinds.csv has no row below a header; write a header and two columns separated by a comma"),
        ("file,kind\n", "kinds.csv has no row below a header"),
        ("file;kind\na/1.png;x\n", "line 1 has 1 column; write a header and two columns separated by a comma"),
        ("file,kind,age\na/1.png,x,3\n", "line 1 has 3 columns"),
        ("file,kind\na/1.png,x,y\n", "line 2 has 3 columns"),
        ("file,kind\nc/1.png,x\n", "no row names an image of the data; the first row has 'c/1.png', and the first image is 'photos/a/1.png'"),
        ("file,kind\n1.png,x\n", "line 2: 2 images have the name '1.png'; give their paths in the folder"),
        ("file,kind\n2.png,\n", "line 2: '2.png' has no group; give it one, or remove the line"),
        (f"file,kind\n{EACH}5.png,y\n", "line 8: '5.png' has the group 'y', and 'z' in an earlier line"),
        ("file,kind\n2.png,x\n", "5 of 7 images have no row in this file: 'photos/a/1.png', 'photos/a/=3.png', 'photos/b/1.png' and 2 more"),
        ("file,kind\n" + EACH.replace("b/5.png,z\n", ""), "1 of 7 images has no row in this file: 'photos/b/5.png'; give each image a group"),
    ],
)  # fmt: skip
def test_unusable_files_are_refused(text, message, folder):
    with pytest.raises(UsageError) as error:
        groups_in(text)
    assert str(error.value).startswith("--group kinds.csv")
    assert message in str(error.value)


def test_a_file_that_is_no_text_and_a_name_that_is_no_file_are_refused(folder):
    images = load_data("photos", as_tensor)
    with pytest.raises(
        UsageError, match=r"--group photos/b/4.png cannot be read as a CSV file in UTF-8 \(Uni"
    ):
        load_groups("photos/b/4.png", images)
    with pytest.raises(
        UsageError, match="--group age is no file; give a CSV file with the name and the group"
    ):
        load_groups("age", images)


def test_one_value_for_each_image_is_a_mistake(folder):
    for number in range(60):
        Image.new("RGB", (4, 4)).save(f"photos/a/{number}.png")
    rows = "".join(f"photos/a/{number}.png,{number}\n" for number in range(60))
    with pytest.raises(UsageError, match="has 60 different values for 65 images, and at most 50 groups are"):
        groups_in(f"file,kind\n{rows}a/=3.png,1\nb/1.png,1\nb/4.png,1\nb/5.png,1\n")


def test_columns_of_a_saved_dataset(tmp_path):
    import datasets

    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "view": datasets.ClassLabel(names=["side", "front"]),
            "site": datasets.Value("string"),
            "year": datasets.Value("int64"),
            "boxes": datasets.Sequence(datasets.Value("int64")),
            "photo": datasets.Image(),
        }
    )
    rows = {
        "label": [0, 1, 0],
        "view": [1, 0, 1],
        "site": ["north", None, "south"],
        "year": [2024, 999, 2024],
        "boxes": [[], [1], []],
        "photo": [Image.new("RGB", (4, 4))] * 3,
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    images = load_data(str(tmp_path / "saved"), as_tensor)
    view, year = load_groups("view", images), load_groups("year", images)
    assert (view.title, view.names, view.indices) == ("view", ["front", "side"], [0, 1, 0])
    assert view.description == "column view of the dataset"
    assert (year.names, year.indices) == (["999", "2024"], [1, 0, 1])
    limited = load_data(str(tmp_path / "saved"), as_tensor, limit=2)
    assert load_groups("view", limited).indices == [[0, 1, 0][position] for position in limited.positions]
    with pytest.raises(
        UsageError, match=r"--group site: 1 of 3 images has no value in this column: '.*saved\[1"
    ):
        load_groups("site", images)
    with pytest.raises(
        UsageError, match="is no file, and the dataset has the columns label, view, site, year;"
    ):
        load_groups("boxes", images)
    (tmp_path / "kinds.csv").write_text(
        "row,kind\n" + "".join(f"{images.file(i)},{i % 2}\n" for i in range(3))
    )
    assert load_groups(str(tmp_path / "kinds.csv"), images).indices == [0, 1, 0]


@pytest.mark.parametrize(
    ("class_names", "labels"),
    [(["B", "a"], [1] * 3 + [0] * 3), (["b", "c"], None), (["a", "b", "A"], None), (None, None)],
)
def test_labels_are_matched_where_that_is_possible(class_names, labels, folder):
    Path("photos/b/broken.png").unlink()
    images = load_data("photos", as_tensor, class_names=class_names, labeled_if_possible=True)
    assert images.has_class_indices == (labels is not None)
    # As before: the folder's own.
    assert images.class_names == ["a", "b"]
    assert [images[index]["label"] for index in range(6)] == (labels or [0] * 3 + [1] * 3)
    assert images.label_source == (None if labels is None else "class names of the network")


# The command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained network, 40 real digits, a broken file, and a group for each of the digits."""
    folder = tmp_path_factory.mktemp("user")
    images, labels = digits.large(100, 1300).tensors
    write_network(folder, [f"digit {number}" for number in range(10)], images, labels)
    rows = ["file,shape"]
    for number, (pixels, label) in enumerate(digits.large(0, 40)):
        file = folder / "photos" / f"digit {int(label)}" / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels[0].numpy() * 255).astype(np.uint8)).save(file)
        rows.append(f"{file.name},{'round' if int(label) in (0, 6, 8, 9) else 'other'}")
    (folder / "shapes.csv").write_text("\n".join(rows))
    (folder / "photos" / "digit 3" / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter(place, monkeypatch)
    return place


def arguments(out: Path, *more: str) -> list[str]:
    few = ["--methods", "grad_cam", "--measures", "average_drop", "--pictures", "0"]
    given = ["--data", "photos", "--batch-size", "8", *CPU, "--out", str(out)]
    return ["evaluate", *NETWORK_OPTIONS, *few, *given, *more]


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        enter(place, patch)
        assert main(arguments(out, "--group", "shapes.csv")) == 0
    return out


def groups_of(out: Path) -> dict:
    return {one["grouping"]: one for one in results(out)["comparison"]["groups"]}


def test_predictions_are_separated_without_being_asked(whole, inside, tmp_path):
    assert main(arguments(tmp_path / "top")) == 0
    assert main(arguments(tmp_path / "label", "--explain", "label")) == 0
    assert main(arguments(tmp_path / "asked", "--group", "correct")) == 0
    (top,) = results(tmp_path / "top")["comparison"]["groups"]
    assert top == groups_of(whole)["prediction"] == groups_of(tmp_path / "asked")["prediction"]
    assert sum(top["n"]) == 40
    assert min(top["n"]) > 2
    # Other classes are explained where the prediction is wrong, but the predictions are the same.
    label = groups_of(tmp_path / "label")["prediction"]
    assert label["n"] == top["n"]
    values = [{row["method"]: row["values"]["average_drop"] for row in one["rows"]} for one in (top, label)]
    for method, (correct, wrong) in values[0].items():
        assert values[1][method][0]["value"] == pytest.approx(correct["value"], abs=1e-9)
        assert method == "uniform map" or values[1][method][1] != wrong
    assert results(tmp_path / "top")["data"]["labels"] == "class names of the network"
    assert results(tmp_path / "top")["data"]["predictions"] is None
    without = results(tmp_path / "top")["comparison"]["rows"]
    assert without == results(whole)["comparison"]["rows"]


def test_a_run_that_cannot_separate_predictions_goes_on_without(inside, tmp_path):
    assert main(arguments(tmp_path / "names", "--model", "mine:too_many_names")) == 0
    stored = results(tmp_path / "names")
    assert stored["comparison"]["groups"] == []
    assert stored["data"]["labels"] is None
    assert stored["data"]["predictions"] == (
        "right and wrong predictions are not separated in this run, because the labels are for a network with 11 outputs,"
        " and this one has 10; return the names of its classes from the function of --model"
    )


def test_groups_may_have_the_names_of_predictions_that_are_not_separated(inside, tmp_path, capsys):
    text = Path("shapes.csv").read_text().replace("round", "correct").replace("other", "wrong")
    (tmp_path / "names.csv").write_text(text)
    given = ["--group", str(tmp_path / "names.csv"), "--fail-if", "wrong/Grad-CAM/average_drop >= 0"]
    assert main(arguments(tmp_path / "out", *given)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"torchmetrics-cam: --group {tmp_path / 'names.csv'} has the group 'correct', and right and wrong predictions"
        " are separated in this run, in groups with the names correct and wrong; rename the group"
    )
    assert list((tmp_path / "out").iterdir()) == []
    assert main(arguments(tmp_path / "out", *given, "--model", "mine:without_names")) == 3
    assert "wrong/Grad-CAM/average_drop is 0." in capsys.readouterr().err
    stored = results(tmp_path / "out")
    (only,) = stored["comparison"]["groups"]
    assert (only["grouping"], only["names"]) == ("group", ["correct", "wrong"])
    assert "because the network has no class names; return " in stored["data"]["predictions"]


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--mosaic", "2"], "a mosaic shows several classes; omit --mosaic"),
        (
            ["--data", "photos/digit 1"],
            "the data has no classes; sort the images into subfolders named after the classes of the network",
        ),
        (
            ["--model", "mine:without_names"],
            "the network has no class names; return (model, transform, class_names) from the function of --model",
        ),
        (
            ["--model", "mine:other_names"],
            "10 of the 10 classes of the data, such as 'digit 0', are not among the class names of the network;"
            " rename the classes of the data",
        ),
        (
            ["--model", "mine:equal_names"],
            "the network has several classes with the name 'digit 0'; give each one a name of its own",
        ),
        (
            ["--model", "mine:too_many_names"],
            "the labels are for a network with 11 outputs, and this one has 10; return the names of its classes from"
            " the function of --model",
        ),
    ],
    ids=["mosaic", "no classes", "no names", "other names", "equal names", "more names"],
)  # fmt: skip
def test_a_gate_says_why_predictions_are_not_separated(more, reason, inside, tmp_path, capsys):
    given = ["--fail-if", "wrong/average_drop > 0.5", "--group", "shapes.csv", *more]
    assert main(arguments(tmp_path / "out", *given)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "torchmetrics-cam: --fail-if 'wrong/average_drop > 0.5': right and wrong predictions are not separated in this"
        f" run, because {reason}"
    )
    assert list(tmp_path.rglob("*.*")) == []


def test_labels_of_a_function_separate_predictions_if_asked(inside, tmp_path, capsys):
    data = ["--data", "mine:labeled"]
    assert main(arguments(tmp_path / "not", *data)) == 0
    assert results(tmp_path / "not")["comparison"]["groups"] == []
    # Only a folder whose subfolders are classes, or a dataset with class labels, makes the reader expect them.
    assert results(tmp_path / "not")["data"]["predictions"] is None
    assert main(arguments(tmp_path / "label", *data, "--explain", "label")) == 0
    assert main(arguments(tmp_path / "out", *data, "--group", "correct")) == 0
    assert groups_of(tmp_path / "label")["prediction"]["n"] == groups_of(tmp_path / "out")["prediction"]["n"]
    assert sum(groups_of(tmp_path / "out")["prediction"]["n"]) == 10
    assert results(tmp_path / "out")["data"]["explained"] == "top class"
    assert "Labels: indices of the network's outputs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["--group", "correct", "--data", "mine:unlabeled"],
            "--group correct needs a label for every image, and mine:unlabeled[0] has no label; sort the images",
        ),
        (["--group", "correct", "--data", "mine:unlabeled"], "remove this one, or omit --group correct"),
        (["--group", "correct", "--mosaic", "2"], "--group correct cannot be given with --mosaic: a mosaic shows"),
        (["--group", "kinds.csv"], "--group kinds.csv is no file; give a CSV file"),
    ],
)  # fmt: skip
def test_unusable_options_are_reported_with_what_to_do(more, sentence, inside, tmp_path, capsys):
    assert main(arguments(tmp_path / "out", *more)) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.rglob("*.*")) == []


def test_groups_of_mosaics_are_those_of_the_explained_image(inside, tmp_path):
    more = ["--mosaic", "2", "--measures", "energy_pointing_game", "--limit", "30"]
    assert main(arguments(tmp_path / "out", *more, "--group", "shapes.csv")) == 0
    (only,) = results(tmp_path / "out")["comparison"]["groups"]
    with (tmp_path / "out" / "samples.csv").open(newline="") as opened:
        samples = list(csv.DictReader(opened))
    shapes = dict(line.split(",") for line in Path("shapes.csv").read_text().splitlines())
    assert [row["group"] for row in samples] == [shapes[Path(row["file"]).name] for row in samples]
    assert only["names"] == ["other", "round"]
    assert only["n"] == [sum(row["group"] == name for row in samples) for name in only["names"]]
    values = [float(row["Grad-CAM/energy_pointing_game"]) for row in samples if row["group"] == "round"]
    row = next(row for row in only["rows"] if row["method"] == "Grad-CAM")
    assert row["values"]["energy_pointing_game"][1]["value"] == pytest.approx(np.mean(values), abs=1e-9)


def test_an_interrupted_run_resumes_with_the_same_groups_alone(whole, inside, tmp_path, monkeypatch, capsys):
    shutil.copy("shapes.csv", tmp_path)
    given = arguments(tmp_path / "out", "--group", str(tmp_path / "shapes.csv"), "--save-every", "1")
    accumulate, batches = CAMComparison.accumulate, []

    def until_third(self, *args):
        batches.append(None)
        if len(batches) == 3:
            raise RuntimeError("out of memory")
        accumulate(self, *args)

    monkeypatch.setattr(CAMComparison, "accumulate", until_third)
    assert main(given) == 2
    assert "memory ran out" in capsys.readouterr().err
    text = (tmp_path / "shapes.csv").read_text()
    (tmp_path / "shapes.csv").write_text(text.replace("000.png,round", "000.png,other"))
    assert main(given) == 2
    assert "another command: state of the groups differ; run" in capsys.readouterr().err
    # Another order of the rows changes no group.
    header, *rows = text.splitlines()
    (tmp_path / "shapes.csv").write_text("\n".join([header, *rows[::-1]]))
    batches.clear()
    monkeypatch.setattr(
        CAMComparison, "accumulate", lambda self, *args: (batches.append(None), accumulate(self, *args))
    )
    assert main(given) == 0
    assert len(batches) == 4
    assert numbers(tmp_path / "out") == numbers(whole)


def test_two_processes_give_the_values_of_one(whole, inside, tmp_path, monkeypatch):
    def on_two_processes(*given: object, **settings: object) -> object:
        # As ddp_spawn, but forked from a server, which starts faster.
        strategy = DDPStrategy(start_method=START_METHOD, timeout=TIMEOUT)
        return evaluate(*given, **(settings | {"devices": 2, "strategy": strategy}))

    monkeypatch.setattr("torchmetrics_cam.cli.evaluate.evaluate", on_two_processes)
    assert main(arguments(tmp_path / "out", "--group", "shapes.csv")) == 0
    assert results(tmp_path / "out")["hardware"]["processes"] == 2
    one, two = groups_of(whole), groups_of(tmp_path / "out")
    assert one.keys() == two.keys() == {"group", "prediction"}
    for kind, grouping in one.items():
        assert two[kind]["n"] == grouping["n"]
        for first, second in zip(grouping["rows"], two[kind]["rows"], strict=True):
            values = [[cell["value"] for cell in row["values"]["average_drop"]] for row in (first, second)]
            assert values[0] == pytest.approx(values[1], abs=1e-6)
