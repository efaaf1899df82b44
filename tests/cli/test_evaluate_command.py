"""``torchmetrics-cam evaluate`` and ``compare``, as a person runs them: a network, a folder, files, errors."""

import csv
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_net
from PIL import Image
from processes import Command
from scipy import stats
from sklearn.datasets import load_digits

from torchmetrics_cam import AverageDrop, CAMComparison
from torchmetrics_cam.cams import CallableSource, GradCAM
from torchmetrics_cam.cli import main
from torchmetrics_cam.cli.arguments import parser
from torchmetrics_cam.cli.results import results_of

NETWORK = """
import numpy as np
import torch
from torch import nn


def factory():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10),
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model, transform


def transform(picture):
    pixels = torch.tensor(np.array(picture.resize((16, 16))), dtype=torch.float32)
    return pixels.permute(2, 0, 1) / 255


def other():
    model, transform = factory()
    with torch.no_grad():
        model[2].weight.mul_(1.3)
    return model, transform


def slow():
    import time

    model, transform = factory()
    return Slow(model), transform


class Slow(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        import time

        time.sleep(0.03)
        return self.model(images)


def hungry():
    model, transform = factory()
    return Hungry(model), transform


class Hungry(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        if len(images) > 4:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return self.model(images)
"""
NETWORK += """

def half():
    model, transform = factory()
    return model.half(), transform


def scripted():
    model, transform = factory()
    return torch.jit.script(model), transform


def segmenting():
    return nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU()), transform


def ragged():
    return [(torch.rand(3, 16, 16 + number % 2), 0) for number in range(4)]


def noisy(model, layer):
    from torchmetrics_cam.cams import CallableSource

    return CallableSource(model, lambda model, images, classes: torch.from_numpy(np.random.rand(len(images), 4, 4)))


def labeled():
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(3, 16, 16, generator=generator), number % 3) for number in range(8)]


def half_labeled():
    return [(torch.rand(3, 16, 16), number if number < 6 else -1) for number in range(8)]
"""
FILES = {"results.json", "results.csv", "samples.csv", "report.html"}
CPU = ["--accelerator", "cpu", "--devices", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the user's network, 30 real digits in folders of their classes, and a broken file."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "mine.py").write_text(NETWORK)
    bunch = load_digits()
    for number, (pixels, label) in enumerate(zip(bunch.images[:30], bunch.target[:30], strict=True)):
        of_class = folder / "photos" / f"digit {label}"
        of_class.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype(np.uint8)).save(of_class / f"{number:03}.png")
    (folder / "photos" / "digit 3" / "broken.png").write_bytes(b"no picture")
    (folder / "imagenet" / "n02123045").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(folder / "imagenet" / "n02123045" / "1.png")
    return folder


@pytest.fixture
def inside(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    enter(place, monkeypatch)
    return place


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a folder with a module `mine` the working directory, from which the module is imported."""
    patch.chdir(folder)
    patch.syspath_prepend(folder)
    # Another folder of another test has a module of this name too.
    patch.delitem(sys.modules, "mine", raising=False)


def with_three_photos(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Put the user's network and three photos into a folder, enter it, and return it."""
    (folder / "mine.py").write_text(NETWORK)
    (folder / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (16, 16), (80 * number, 9, 200)).save(folder / "photos" / f"{number}.png")
    enter(folder, patch)
    return folder


def arguments(out: Path, *more: str) -> list[str]:
    command_line = [
        "evaluate",
        "--model",
        "mine:factory",
        "--data",
        "photos",
        "--layer",
        "3",
        "--batch-size",
        "4",
    ]
    return [*command_line, *CPU, "--out", str(out), *more]


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def numbers(out: Path) -> dict:
    """Return all values that must not depend on how the run was carried out."""
    stored = results(out)
    return {name: stored[name] for name in ("comparison", "paired", "win_rates", "per_class", "methods")}


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        enter(place, patch)
        assert main(arguments(out)) == 0
    return out


def test_only_the_result_files_are_written(whole):
    assert {path.name for path in whole.iterdir()} == FILES


def test_values_equal_those_of_the_metric(whole, inside):
    import mine

    model, transform = mine.factory()
    metric = AverageDrop(GradCAM(model.eval(), "3"))
    files = sorted(path for path in Path("photos").rglob("*.png") if path.name != "broken.png")
    metric.update(torch.stack([transform(Image.open(path).convert("RGB")) for path in files]))
    row = next(row for row in results(whole)["comparison"]["rows"] if row["method"] == "Grad-CAM")
    assert row["average_drop"]["value"] == pytest.approx(float(metric.compute()), abs=1e-6)
    assert row["average_drop"]["value"] > 0.02
    assert row["n"] == 30


def test_explain_label_explains_the_labels(inside, tmp_path, capsys):
    import mine

    options = ["--data", "mine:labeled", "--explain", "label", "--num-workers", "1"]
    assert main(arguments(tmp_path / "out", *options)) == 0
    images, labels = zip(*mine.labeled(), strict=True)
    metric = AverageDrop(GradCAM(mine.factory()[0].eval(), "3"))
    metric.update(torch.stack(images), class_idx=list(labels))
    stored = results(tmp_path / "out")
    row = next(row for row in stored["comparison"]["rows"] if row["method"] == "Grad-CAM")
    assert row["average_drop"]["value"] == pytest.approx(float(metric.compute()), abs=1e-6)
    assert stored["data"]["explained"] == "label"
    assert stored["data"]["labels"] == "indices of the network's outputs"
    assert "Labels: indices of the network's outputs" in capsys.readouterr().out
    metric.reset()
    metric.update(torch.stack(images))
    assert row["average_drop"]["value"] != pytest.approx(float(metric.compute()), abs=1e-3)


def test_unreadable_images_are_named_and_counted(whole):
    (unreadable,) = results(whole)["data"]["unreadable"]
    assert unreadable["file"].endswith("broken.png")
    assert "PIL" in unreadable["reason"]
    assert results(whole)["data"]["images"] == 31


def test_files_that_are_not_used_are_named_and_counted(inside, tmp_path, capsys):
    shutil.copytree(inside / "photos" / "digit 1", tmp_path / "photos")
    for name in ("a.heic", "b.heic", "c.jxl"):
        (tmp_path / "photos" / name).write_bytes(b"no picture")
    assert main([*arguments(tmp_path / "out"), "--data", str(tmp_path / "photos")]) == 0
    assert results(tmp_path / "out")["data"]["unused"] == [
        {
            "reason": "PIL does not read '.heic' files",
            "files": [str(tmp_path / "photos" / name) for name in ("a.heic", "b.heic")],
        },
        {"reason": "PIL does not read '.jxl' files", "files": [str(tmp_path / "photos" / "c.jxl")]},
    ]
    assert (
        "Not used: 2 in the folder, because PIL does not read '.heic' files; see the report\n"
        "Not used: 1 in the folder, because PIL does not read '.jxl' files; see the report\n"
    ) in capsys.readouterr().out
    assert "b.heic" in (tmp_path / "out" / "report.html").read_text()


def test_mean_of_the_samples_is_the_value(whole):
    with (whole / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 30
    mean = sum(float(row["Layer-CAM/average_drop"]) for row in rows) / 30
    layer_cam = next(row for row in results(whole)["comparison"]["rows"] if row["method"] == "Layer-CAM")
    assert mean == pytest.approx(layer_cam["average_drop"]["value"], abs=1e-9)


def test_report_shows_best_and_worst_images_and_the_broken_file(whole):
    page = (whole / "report.html").read_text()
    assert page.count("data:image/") >= 8 * (1 + 2 * 5)
    assert "broken.png" in page
    assert "mine:factory" in page


def test_transform_is_named_in_the_results_and_the_report(whole):
    assert results(whole)["model"]["transform"] == "mine.transform"
    assert "<dt>Transform</dt><dd>mine.transform</dd>" in (whole / "report.html").read_text()


def test_yaml_file_equals_the_command_line(whole, inside, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model: mine:factory\ndata: photos\nlayer: '3'\nbatch_size: 4\naccelerator: cpu\ndevices: '1'\n"
    )
    out = tmp_path / "out"
    assert main(["evaluate", "--config", str(tmp_path / "run.yaml"), "--out", str(out)]) == 0
    assert numbers(out) == numbers(whole)


def test_yaml_file_accepts_lists_and_numbers(inside, tmp_path):
    (tmp_path / "run.yaml").write_text(
        "model: mine:factory\ndata: photos\nmethods: [grad_cam, hires_cam]\nmeasures: [average_drop]\n"
        "layer: [1, 3]\naccelerator: cpu\ndevices: 1\nprecision: 32\nlimit: 3\n"
    )
    out = tmp_path / "out"
    assert main(["evaluate", "--config", str(tmp_path / "run.yaml"), "--out", str(out)]) == 0
    stored = results(out)
    assert stored["methods"][:2] == ["Grad-CAM", "HiRes-CAM"]
    assert stored["model"]["layer"] == ["1", "3"]


def test_half_precision_weights_run_in_the_given_precision(inside, tmp_path, whole):
    assert main(arguments(tmp_path / "out", "--model", "mine:half")) == 0
    ours, theirs = (results(out)["comparison"]["rows"] for out in (tmp_path / "out", whole))
    for one, other in zip(ours, theirs, strict=True):
        assert one["average_drop"]["value"] == pytest.approx(other["average_drop"]["value"], abs=5e-3)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (
            ["--model", "mine:scripted"],
            "--model 'mine:scripted' returned a TorchScript module, whose layers are not accessible",
        ),
        (
            ["--image-size", "64"],
            "--image-size has no effect on 'mine:factory', which returns a transform of its own; omit it",
        ),
        (
            ["--model", "mine:segmenting", "--layer", "1"],
            "The command has no option for logits_fn: write a function that returns the network with it applied",
        ),
        (
            ["--data", "mine:ragged", "--num-workers", "1"],
            "torchmetrics-cam: images of one batch have shapes (3, 16, 16) and (3, 16, 17); resize all images",
        ),
        (
            ["--data", "imagenet", "--explain", "label"],
            "the network returns a tensor (1, 10), not (N, 1000); return (model, transform, class_names) from",
        ),
        (
            ["--data", "mine:half_labeled", "--explain", "label"],
            "--explain label needs a label for every image, and mine:half_labeled[6] has no label; sort the images",
        ),
    ],
    ids=["TorchScript", "image size", "no class scores", "in a worker", "outputs", "unlabeled"],
)
def test_unusable_input_is_reported_with_what_to_do(inside, tmp_path, capsys, more, sentence):
    assert main(arguments(tmp_path / "out", *more)) == 2
    stderr = capsys.readouterr().err
    assert sentence in stderr.splitlines()[-1]
    assert "Traceback" not in stderr


def test_output_names_the_best_method_and_counts_unreadable_files(inside, tmp_path, capsys):
    shutil.copytree(inside / "photos" / "digit 1", tmp_path / "photos")
    for number in range(7):
        (tmp_path / "photos" / f"broken {number}.png").write_bytes(b"no picture")
    count = len(list((tmp_path / "photos").iterdir()))
    assert main([*arguments(tmp_path / "out"), "--data", str(tmp_path / "photos")]) == 0
    printed = capsys.readouterr().out
    assert f"Not read: 2 more, 7 of {count}; see the report" in printed
    assert "has the best Average Drop" in printed
    assert "\nTransform: mine.transform\nReport: " in printed


def test_several_protocols_in_one_run(inside, tmp_path, capsys):
    """Another baseline, and fields that all protocols have in common."""
    given = "paper,paper:baseline=[1.5,1.5,1.5],score_cam"
    options = ["--protocol", given, "--measures", "average_drop,average_gain"]
    assert main(arguments(tmp_path / "out", *options, "--normalize", "before_resize")) == 0
    printed = capsys.readouterr().out
    stored = results(tmp_path / "out")
    comparison = stored["comparison"]
    assert comparison["protocol"]["name"] == "modified paper"
    names = [one["protocol"]["name"] for one in comparison["further"]]
    assert names == ["modified paper:baseline=[1.5,1.5,1.5]", "modified score_cam"]
    assert [one["protocol"]["baseline"] for one in comparison["further"]] == ["(1.5, 1.5, 1.5)", "0.0"]
    assert {one["protocol"]["normalize"] for one in [comparison, *comparison["further"]]} == {"before_resize"}
    assert "Average Drop: " in printed
    assert all(ranking["description"] in printed for ranking in comparison["rankings"])
    assert '<h2 id="protocols">' in (tmp_path / "out" / "report.html").read_text()
    # Each protocol as it is alone.
    alone = ["--protocol", "paper", "--baseline", "1.5", "--measures", "average_drop,average_gain"]
    assert main(arguments(tmp_path / "alone", *alone, "--normalize", "before_resize")) == 0
    expected = {row["method"]: row for row in results(tmp_path / "alone")["comparison"]["rows"]}
    for row in comparison["further"][0]["rows"]:
        for measure in ("average_drop", "average_gain"):
            assert row[measure]["value"] == pytest.approx(expected[row["method"]][measure]["value"], abs=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("paper,paper", "--protocol has paper twice"),
        ("paper,papers", "--protocol papers: protocol='papers' is not a preset"),
        ("paper,paper:base=1", "'base=1' is not a field and its value"),
        ("paper,paper:mask=top:mask=soft", "'mask=soft' is not a field and its value, each field once"),
        ("paper,paper:baseline=[1", "'[1' is not a value in YAML"),
        (",", "--protocol is empty"),
        ("paper,paper:baseline", "did you mean 'baseline'?"),
        ("paper,paper:mask_fraction=2", "must lie in (0, 1]"),
        ("paper,xplique", "xplique explains a given class; add --explain label"),
    ],
)
def test_protocols_that_cannot_be_are_refused(given, message, inside, tmp_path, capsys):
    assert main(arguments(tmp_path / "out", "--protocol", given)) == 2
    assert message in capsys.readouterr().err


def test_protocol_and_its_fields(inside, tmp_path):
    fields = ["--protocol", "score_cam", "--mask-fraction", "0.3", "--baseline", "mean"]
    assert main(arguments(tmp_path / "out", *fields, "--measures", "average_drop,deletion_auc")) == 0
    protocol = results(tmp_path / "out")["comparison"]["protocol"]
    assert (protocol["name"], protocol["mask"], protocol["mask_fraction"]) == (
        "modified score_cam",
        "top",
        0.3,
    )
    assert protocol["baseline"] == "ImageMean()"
    curves = results(tmp_path / "out")["curves"]
    assert (len(curves["fractions"]), len(curves["deletion"]["Grad-CAM"])) == (21, 21)
    assert "insertion" not in curves
    assert 'id="curves"' in (tmp_path / "out" / "report.html").read_text()


def test_two_processes_give_the_values_of_one_and_one_exit_code(whole, place, tmp_path):
    gate = ["--fail-if", "Grad-CAM/average_drop >= 0"]
    given = arguments(tmp_path / "out", "--devices", "2", "--strategy", "ddp", *gate)
    done = subprocess.run(
        [sys.executable, "-m", "torchmetrics_cam", *given],
        cwd=place,
        timeout=180,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    (violation,) = results(tmp_path / "out")["gates"][0]["violations"]
    assert done.stderr.count(f"torchmetrics-cam: {violation}\n") == 1
    assert done.stdout.count("   Grad-CAM ") == 1
    assert results(tmp_path / "out")["hardware"]["processes"] == 2
    one, two = numbers(whole), numbers(tmp_path / "out")
    assert one["win_rates"] == two["win_rates"]
    for first, second in zip(one["comparison"]["rows"], two["comparison"]["rows"], strict=True):
        assert first["method"] == second["method"]
        assert first["average_drop"]["value"] == pytest.approx(second["average_drop"]["value"], abs=1e-6)
        assert (first["n"], first["excluded"]) == (second["n"], second["excluded"])


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill"])
def test_run_interrupted_three_times_gives_the_same_values(place, tmp_path, whole, how):
    more = ("--model", "mine:slow", "--layer", "model.3", "--batch-size", "1", "--save-every", "2")
    expected = tmp_path / "expected"
    assert Command(arguments(expected, *more), place, tmp_path).finish()[1]
    out = tmp_path / "out"
    seen = []
    for _ in range(3):
        running = Command(arguments(out, *more), place, tmp_path)
        kept, before = out / "partial" / "rank-0.pt", seen[-1] if seen else 0
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and running.process.is_alive():
            if kept.exists() and kept.stat().st_mtime_ns > before:
                break
            time.sleep(0.01)
        os.kill(running.process.pid, how)
        code, _, stderr = running.finish(60)
        assert code == (130 if how == signal.SIGINT else -signal.SIGKILL), stderr
        if how == signal.SIGINT:
            assert "interrupted; the partial result is kept, and the same command resumes" in stderr
            assert "Traceback" not in stderr
        seen.append(kept.stat().st_mtime_ns)
    places = torch.load(out / "partial" / "rank-0.pt", weights_only=True)["done"]
    assert 4 <= places < 31
    assert Command(arguments(out, *more), place, tmp_path).finish()[1]
    assert numbers(out) == numbers(expected)
    assert {path.name for path in out.iterdir()} == FILES


def test_partial_result_of_another_command_is_refused(inside, tmp_path, capsys):
    partial = tmp_path / "out" / "partial"
    partial.mkdir(parents=True)
    settings = {"written_by": "torchmetrics-cam evaluate", "model": "torchvision:resnet18"}
    (partial / "settings.json").write_text(json.dumps(settings))
    assert main(arguments(tmp_path / "out")) == 2
    stderr = capsys.readouterr().err
    assert "holds the partial result of another command: model," in stderr
    assert "--fresh" in stderr
    assert main(arguments(tmp_path / "out", "--fresh")) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--explain", "labels"], "--explain: labels is not one of 'top', 'label'"),
        (["--scores", "sigmoid"], "--scores: sigmoid is not one of 'softmax', 'raw'"),
        (["--batch-size", "0"], "--batch_size: 0 is not > 0"),
        (["--batch-size", "many"], "--batch_size: many is not of type int"),
        (["--pictures", "-1"], "--pictures: -1 is not >= 0"),
        (["--drop-eps", "small"], "--drop_eps: small is not of type float"),
    ],
)
def test_a_wrong_option_is_named_with_what_is_needed(tmp_path, capsys, option, message):
    assert main(arguments(tmp_path / "out", *option)) == 2
    assert f"torchmetrics-cam: {message}; see torchmetrics-cam --help" in capsys.readouterr().err


def test_refused_arguments_leave_no_partial_result(inside, tmp_path, capsys):
    assert main(arguments(tmp_path / "out", "--num-classes", "0")) == 2
    assert "num_classes is 0; it must be a positive integer" in capsys.readouterr().err
    assert main(arguments(tmp_path / "out", "--num-classes", "10")) == 0


@pytest.fixture
def left_over(inside, tmp_path, capsys) -> list[str]:
    """A command whose run broke off and left a partial result, on photos of its own."""
    shutil.copytree(inside / "photos", tmp_path / "photos")
    more = ("--model", "mine:hungry", "--layer", "model.3", "--batch-size", "16")
    command_line = [*arguments(tmp_path / "out", *more), "--data", str(tmp_path / "photos")]
    assert main(command_line) == 2
    assert main(command_line) == 2
    assert "memory ran out" in capsys.readouterr().err.splitlines()[-1]
    return command_line


@pytest.mark.parametrize("change", ["renamed", "rewritten", "removed"])
def test_changed_images_do_not_resume(left_over, tmp_path, capsys, change):
    photo = tmp_path / "photos" / "digit 4" / "004.png"
    if change == "renamed":
        photo.rename(photo.with_name("999.png"))
    elif change == "rewritten":
        Image.new("L", (8, 8), 77).save(photo)
    else:
        photo.unlink()
    assert main(left_over) == 2
    assert "another command: state of the images differ; run" in capsys.readouterr().err


def test_changed_weights_do_not_resume(left_over, monkeypatch, capsys):
    import mine

    model, transform = mine.hungry()
    with torch.no_grad():
        model.model[0].bias[0] += 1e-3
    monkeypatch.setattr(mine, "hungry", lambda: (model, transform))
    assert main(left_over) == 2
    assert "another command: state of the weights differ; run" in capsys.readouterr().err


def test_the_rows_of_classes_count_no_excluded_images():
    net = small_net()

    def unfinished(model, images, class_idx):
        maps = images.mean(1)
        maps[images[:, 0, 0, 0] == 7] = torch.nan
        return maps

    sources = {"Grad-CAM": GradCAM(net, "body"), "unfinished": CallableSource(net, unfinished)}
    comparison = CAMComparison(sources, controls=False, per_sample=True)
    images = torch.rand(6, 3, 12, 12, dtype=torch.float64)
    images[1] = torch.nan
    images[2, 0, 0, 0] = images[5, 0, 0, 0] = 7
    comparison.update(images, class_idx=[0, 0, 0, 0, 2, 3])
    first, second, third = results_of(comparison, None)["per_class"]
    assert (first["n"], first["counted"]) == (3, {"Grad-CAM": 3, "unfinished": 2})
    assert (second["n"], second["counted"]) == (1, {"Grad-CAM": 1, "unfinished": 1})
    assert (third["n"], third["counted"]) == (1, {"Grad-CAM": 1, "unfinished": 0})
    assert third["values"]["unfinished"]["average_drop"] is None


THEIRS = """
import threading
from pathlib import Path

import torch
from torch import nn
from torchmetrics_cam.cams import CallableSource


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)

    def forward(self, images):
        if Path("stop").exists() and len(images) > 1 and images.max() > 0.9:
            raise RuntimeError("can't allocate memory")
        return self.body(images).mean((2, 3))


def network():
    torch.manual_seed(0)
    return Net(), lambda picture: torch.tensor(list(picture.getdata())).reshape(3, 8, 8) / 255


def images():
    return [torch.full((3, 8, 8), number / 11) for number in range(12)]


def method(model, layer):
    return CallableSource(model, lambda model, images, class_idx: images.mean(1))


def unclear(model, layer):
    lock = threading.Lock()
    return CallableSource(model, lambda model, images, class_idx: (lock, images.mean(1))[1])
"""
CHANGES = {
    "nothing": ("", "", None),
    "the values of a data function": ("number / 11", "(11 - number) / 11", "content of the images"),
    "the method": ("images.mean(1)", "images.amax(1)", "settings of sources"),
    "the network": (".mean((2, 3))", ".amax((2, 3))", "network"),
    "the transform": ("/ 255", "/ 256", "content of the images"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_changed_functions_of_the_user_do_not_resume(tmp_path, monkeypatch, capsys, what):
    old, new, named = CHANGES[what]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    if what == "the transform":
        Path("photos").mkdir()
        for number in range(12):
            Image.new("RGB", (8, 8), (number * 23,) * 3).save(f"photos/{number:02}.png")
    data = "photos" if what == "the transform" else "theirs:images"
    more = ["--methods", "grad_cam,theirs:method", "--batch-size", "2", "--save-every", "1"]
    command_line = ["evaluate", "--model", "theirs:network", "--data", data, "--layer", "body", *more, *CPU]
    for text, stop in ((THEIRS, True), (THEIRS.replace(old, new), False)):
        Path("theirs.py").write_text(text)
        monkeypatch.delitem(sys.modules, "theirs", raising=False)
        shutil.rmtree("__pycache__", ignore_errors=True)
        if stop:
            Path("stop").touch()
            assert main([*command_line, "--out", "out"]) == 2
            assert "memory ran out" in capsys.readouterr().err
            Path("stop").unlink()
    partial = Path("out/partial/rank-0.pt")
    assert torch.load(partial, weights_only=True)["done"] == 10
    before = partial.read_bytes()
    assert main([*command_line, "--out", "out"]) == (0 if named is None else 2)
    if named is None:
        return
    stderr = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        rf"out/partial/rank-0.pt belongs to a run with {named}=.*; start again with --fresh", stderr
    )
    assert partial.read_bytes() == before
    assert main([*command_line, "--out", "out", "--fresh"]) == 0
    assert main([*command_line, "--out", "whole"]) == 0
    assert numbers(Path("out")) == numbers(Path("whole"))


@pytest.mark.filterwarnings("ignore:after an interruption, this evaluation continues only with")
def test_a_function_that_cannot_be_compared_resumes_only_if_told_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    Path("theirs.py").write_text(THEIRS)
    more = ["--layer", "body", "--methods", "theirs:unclear", "--batch-size", "2", "--save-every", "1"]
    command_line = ["evaluate", "--model", "theirs:network", "--data", "theirs:images", *more, *CPU]
    Path("stop").touch()
    assert main([*command_line, "--out", "out"]) == 2
    Path("stop").unlink()
    capsys.readouterr()
    assert main([*command_line, "--out", "out"]) == 2
    stderr = capsys.readouterr().err.splitlines()[-1]
    assert (
        "out/partial/rank-0.pt may belong to another run: settings of sources (a _thread.lock) cannot be"
        in stderr
    )
    assert "or if nothing has changed, with --assume-unchanged" in stderr
    assert main([*command_line, "--out", "out", "--assume-unchanged"]) == 0
    assert main([*command_line, "--out", "whole"]) == 0
    assert numbers(Path("out")) == numbers(Path("whole"))


@pytest.mark.parametrize("full_after", ["nothing", "partial", "results.json", "report.html"])
def test_full_disk_is_reported_and_keeps_the_earlier_results(inside, tmp_path, capsys, request, full_after):
    out = tmp_path / "out"
    assert main(arguments(out)) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    full = OSError(errno.ENOSPC, "No space left on device")
    disk = pytest.MonkeyPatch()
    request.addfinalizer(disk.undo)
    for write in ("write_text", "write_bytes"):
        disk.setattr(Path, write, until_full(getattr(Path, write), full_after, full))
    capsys.readouterr()
    assert main(arguments(out, "--seed", "1")) == 2
    stderr = capsys.readouterr().err.splitlines()[-1]
    assert stderr == (
        f"torchmetrics-cam: --out {out} cannot be written: No space left on device; free some space and run"
        " the same command to resume, or choose another directory"
    )
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert {path.name for path in out.rglob("*")} <= {*before, "partial", "settings.json", "rank-0.pt"}
    disk.undo()
    assert main(arguments(out, "--seed", "1")) == 0


def until_full(write, name, full):
    """Writing that leaves half a file behind where the disk is full."""
    names = {"nothing": "settings", "partial": "rank-0", "results.json": "results", "report.html": "report"}

    def writing(path, content, *more, **settings):
        if path.name.startswith(names[name]):
            write(path, content[: len(content) // 2], *more, **settings)
            raise full
        return write(path, content, *more, **settings)

    return writing


def test_file_names_that_are_not_utf8_are_written_and_printed(inside, tmp_path, capsys):
    folder = os.fsencode(tmp_path / "photos")
    os.mkdir(folder)
    for number in range(3):
        Image.new("L", (8, 8), 80 * number).save(tmp_path / "photo.png")
        os.rename(tmp_path / "photo.png", os.path.join(folder, b"caf\xe9 %d.png" % number))
    Path(os.fsdecode(os.path.join(folder, b"\xff.png"))).write_bytes(b"no picture")
    out = tmp_path / "out"
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) as printed:
        assert main([*arguments(out), "--data", str(tmp_path / "photos")]) == 0, capsys.readouterr().err
    printed.seek(0)
    assert r"Not read: " in (text := printed.read())
    assert r"\udcff.png" in text
    assert results(out)["data"]["unreadable"][0]["file"].endswith("\udcff.png")
    assert r"caf\udce9 1.png" in (out / "report.html").read_text()
    assert main(["compare", *[str(out / "results.json")] * 2]) == 0
    assert "3 images are in both runs" in capsys.readouterr().out


def test_out_of_memory_is_reported_or_halves_the_batch_size(inside, tmp_path, capsys, whole):
    more = ("--model", "mine:hungry", "--layer", "model.3", "--batch-size", "16")
    assert main(arguments(tmp_path / "out", *more)) == 2
    assert (
        "memory ran out with 16 images per batch; try --batch-size 8, or --halve-on-oom"
        in capsys.readouterr().err
    )
    assert main(arguments(tmp_path / "out", *more, "--halve-on-oom")) == 0
    assert main(arguments(tmp_path / "smaller", *more)) == 2
    assert (tmp_path / "smaller" / "partial" / "settings.json").exists()
    assert main(arguments(tmp_path / "smaller", *more, "--batch-size", "4")) == 0
    theirs = results(whole)["comparison"]["rows"]
    for out in (tmp_path / "out", tmp_path / "smaller"):
        for one, other in zip(results(out)["comparison"]["rows"], theirs, strict=True):
            assert one["average_drop"]["value"] == pytest.approx(other["average_drop"]["value"], abs=1e-6)


def test_batch_size_is_not_halved_with_several_processes(inside, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torchmetrics_cam.cli.evaluate._is_distributed", lambda: True)
    more = ("--model", "mine:hungry", "--layer", "model.3", "--batch-size", "16", "--halve-on-oom", "--fresh")
    assert main(arguments(tmp_path / "out", *more)) == 2
    stderr = capsys.readouterr().err
    assert "try --batch-size 8, or --halve-on-oom on one device" in stderr
    assert "the same command without --fresh resumes from it" in stderr


def test_interrupt_reports_how_to_resume(inside, tmp_path, capsys, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    for module in ("evaluate", "demo"):
        monkeypatch.setattr(f"torchmetrics_cam.cli.{module}.run", interrupted)
    for line, sentence in (
        (
            arguments(tmp_path),
            "interrupted; the partial result is kept, and the same command resumes from it",
        ),
        (arguments(tmp_path, "--fresh"), "is kept, and the same command without --fresh resumes from it"),
        (["demo", "--out", str(tmp_path)], "torchmetrics-cam: interrupted"),
    ):
        assert main(line) == 130
        assert capsys.readouterr().err.strip().endswith(sentence)


def test_torchrun_distributes_the_images(place, tmp_path, whole):
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    gate = ["--fail-if", "Grad-CAM/average_drop >= 0"]
    command_line = ["torchmetrics_cam", *arguments(tmp_path / "out", *gate)]
    place_of_devices = command_line.index("--devices")
    del command_line[place_of_devices : place_of_devices + 2]
    done = subprocess.run(
        [*line, *command_line],
        cwd=place,
        timeout=240,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    # The exit code of torchrun is 1 for every failure.
    assert done.returncode == 1, done.stdout
    assert re.search(r"exitcode +: 3 ", done.stdout), done.stdout
    assert results(tmp_path / "out")["hardware"]["processes"] == 2
    ours, theirs = (results(out)["comparison"]["rows"] for out in (tmp_path / "out", whole))
    for one, other in zip(ours, theirs, strict=True):
        assert (one["method"], one["n"]) == (other["method"], other["n"])
        assert one["average_drop"]["value"] == pytest.approx(other["average_drop"]["value"], abs=1e-6)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_seed_applies_to_all_generators(inside, tmp_path):
    for out in ("first", "second"):
        np.random.rand()
        assert main(arguments(tmp_path / out, "--methods", "mine:noisy", "--limit", "5", "--seed", "3")) == 0
    assert numbers(tmp_path / "first") == numbers(tmp_path / "second")


def test_devices_are_a_number_or_a_list_of_device_numbers(tmp_path):
    (tmp_path / "run.yaml").write_text("devices: [0]\n")
    parsed = parser().parse_args(["evaluate", "--config", str(tmp_path / "run.yaml")])
    assert parsed.evaluate.devices == [0]
    assert parser().parse_args(["evaluate", "--devices", "3"]).evaluate.devices == 3


def test_drop_below_a_picture_follows_the_protocol(whole):
    page = (whole / "report.html").read_text()
    shown = re.findall(r"(0\.\d\d) → (0\.\d\d) <span title=.drop.>\(drop (0\.\d\d)\)", page)
    assert len(shown) >= 8
    for p, o, drop in (map(float, one) for one in shown):
        if p > 0.3:
            assert drop == pytest.approx(max(p - o, 0) / p, abs=0.04)


def test_compare_pairs_the_same_images(inside, whole, tmp_path, capsys):
    assert main(arguments(tmp_path / "other", "--model", "mine:other", "--limit", "12")) == 0
    capsys.readouterr()
    assert main(["compare", str(whole / "results.json"), str(tmp_path / "other" / "results.json")]) == 0
    printed = capsys.readouterr().out
    tables = []
    for out in (whole, tmp_path / "other"):
        with (out / "samples.csv").open(newline="") as file:
            tables.append({row["file"]: row for row in csv.DictReader(file)})
    shared = [name for name in tables[0] if name in tables[1]]
    assert f"{len(shared)} images are in both runs." in printed
    gaps = np.array(
        [
            float(tables[0][n]["Grad-CAM/average_drop"]) - float(tables[1][n]["Grad-CAM/average_drop"])
            for n in shared
        ]
    )
    reach = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5
    assert f"| {gaps.mean():+.3f} ({gaps.mean() - reach:+.3f} to {gaps.mean() + reach:+.3f}) |" in printed


def test_command_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "torchmetrics_cam", "--version"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.startswith("torchmetrics-cam ")
