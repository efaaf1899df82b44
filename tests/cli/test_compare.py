"""``torchmetrics-cam compare``: which images and settings of two runs belong together, and damaged files."""

import copy
import csv
import hashlib
import json
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_evaluate_command import NETWORK, arguments, enter

from torchmetrics_cam.cli import compare, main
from torchmetrics_cam.cli.errors import GateError, UsageError

DATA = """
import torch

IMAGES = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(5))
ORDER = [0, 1, 2, 3, 4]


def varying():
    return [(IMAGES[index], index % 2) for index in ORDER]
"""
DROP = "Grad-CAM/average_drop"
DIFFERENT = "Warning: the values of A and B are not comparable: "


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with networks, images and a run over the five images of the data function."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "mine.py").write_text(NETWORK)
    (folder / "ordered.py").write_text(DATA)
    (folder / "photos").mkdir()
    for number in range(4):
        # The last two are equal.
        color = (min(number, 2) * 80, 9, 200)
        Image.new("RGB", (16, 16), color).save(folder / "photos" / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        evaluate("one")
        yield folder


def evaluate(out: str, *more: str) -> None:
    options = ["--data", "ordered:varying", "--methods", "grad_cam", "--pictures", "0", *more]
    assert main(arguments(Path(out), *options)) == 0


def compared(capsys: pytest.CaptureFixture[str], first: str, second: str) -> str:
    capsys.readouterr()
    assert main(["compare", f"{first}/results.json", f"{second}/results.json"]) == 0
    return capsys.readouterr().out


def row_of(printed: str, method: str = "Grad-CAM", measure: str = "Average Drop") -> list[str]:
    (line,) = [line for line in printed.splitlines() if line.startswith(f"| {method} | {measure} |")]
    return line.strip("| ").split(" | ")[2:]


def samples(out: str) -> list[dict[str, str]]:
    with Path(out, "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--explain", "label"], "--explain (top class and label) differ."),
        (["--average", "macro", "--num-classes", "10"], "--average (micro and macro) differ."),
        (
            ["--mask", "top", "--drop", "absolute"],
            "mask (soft and top), drop (relative and absolute) differ.",
        ),
    ],
    ids=["explain", "average", "protocol"],
)
def test_settings_that_the_values_depend_on_are_compared(place, capsys, more, sentence):
    evaluate("two", *more)
    assert DIFFERENT + sentence in compared(capsys, "one", "two").splitlines()


def test_settings_that_change_no_value_are_not_reported(place, capsys):
    evaluate("two", "--road-noise", "0.2", "--batch-size", "2", "--model", "mine:other")
    assert DIFFERENT not in compared(capsys, "one", "two")


def test_options_that_may_change_values_are_named(place, capsys):
    evaluate("two", "--seed", "3", "--precision", "64")
    assert "Other settings that differ: --precision (32-true and 64), --seed (0 and 3)." in compared(
        capsys, "one", "two"
    )


def test_images_of_a_function_are_paired_by_content(place, capsys, monkeypatch):
    import ordered

    monkeypatch.setattr(ordered, "ORDER", [4, 3, 5, 1, 0])
    evaluate("two", "--num-workers", "1")
    printed = compared(capsys, "one", "two")
    assert "4 images are in both runs." in printed.splitlines()
    assert "Warning: 1 of the other images have the same name in both runs, but different content." in printed
    assert row_of(printed)[2].replace("-", "+") == "+0.000 (+0.000 to +0.000)"
    # By position, the differences are not 0.
    positions = zip(samples("one"), samples("two"), strict=True)
    assert max(abs(float(a[DROP]) - float(b[DROP])) for a, b in positions) > 0.001


def test_files_are_paired_by_content_also_in_another_folder(place, capsys):
    shutil.copytree("photos", "moved", dirs_exist_ok=True)
    Path("moved/3.png").rename("moved/renamed.png")
    evaluate("two", "--data", "photos")
    evaluate("three", "--data", "moved", "--model", "mine:other")
    rows = samples("two"), samples("three")
    for row in rows[0]:
        assert row["sha256"] == hashlib.sha256(Path(row["file"]).read_bytes()).hexdigest()
    printed = compared(capsys, "two", "three")
    assert "4 images are in both runs." in printed.splitlines()
    assert "Warning" not in printed
    mean = sum(float(a[DROP]) - float(b[DROP]) for a, b in zip(*rows, strict=True)) / 4
    assert row_of(printed)[2].startswith(f"{mean:+.3f} (")


def test_differences_of_averages_over_classes_are_averaged_over_classes(place, capsys):
    options = ("--explain", "label", "--average", "macro", "--num-classes", "10")
    evaluate("two", *options)
    evaluate("three", *options, "--model", "mine:other")
    by_class: dict[str, list[float]] = {"0": [], "1": []}
    for a, b in zip(samples("two"), samples("three"), strict=True):
        by_class[a["class_idx"]].append(float(a[DROP]) - float(b[DROP]))
    assert list(map(len, by_class.values())) == [3, 2]
    mean = sum(sum(values) / len(values) for values in by_class.values()) / 2
    first, second, difference = row_of(compared(capsys, "two", "three"))
    assert difference.startswith(f"{mean:+.3f} (")
    assert float(first) - float(second) == pytest.approx(mean, abs=1e-3)


def test_images_whose_explained_class_differs_are_counted(place, capsys):
    evaluate("two", "--explain", "label")
    differing = sum(
        a["class_idx"] != b["class_idx"] for a, b in zip(samples("one"), samples("two"), strict=True)
    )
    assert differing > 0
    sentence = f"{differing} of them are explained for another class in B than in A."
    assert sentence in compared(capsys, "one", "two").splitlines()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.rsplit("\n", 2)[0] + "\n",
        lambda text: text.replace(",0.", ",1.", 1),
        lambda text: "",
        lambda text: text.encode().replace(b"ordered", b"\xff", 1).decode("latin-1"),
    ],
    ids=["cut", "changed", "empty", "other characters"],
)
def test_samples_that_are_not_those_of_the_run_are_refused(place, capsys, change):
    shutil.copytree("one", "changed", dirs_exist_ok=True)
    file = Path("changed/samples.csv")
    file.write_bytes(change(file.read_bytes().decode()).encode("latin-1"))
    assert main(["compare", "one/results.json", "changed/results.json"]) == 2
    assert (
        "samples.csv is not the file that the run of changed/results.json has written"
        in capsys.readouterr().err
    )


def test_samples_with_other_ends_of_lines_are_accepted(place, capsys):
    shutil.copytree("one", "changed", dirs_exist_ok=True)
    file = Path("changed/samples.csv")
    file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n"))
    assert "5 images are in both runs." in compared(capsys, "one", "changed")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"format": 1, "comparison": {}}', "is damaged"),
        (b'{"format": 9, "comparison": {}}', "has format 9, and this version reads format 1; evaluate again"),
        (b'{"format": 1}', "was not written by torchmetrics-cam evaluate"),
        (b"[1]", "was not written by torchmetrics-cam evaluate"),
    ],
)
def test_a_file_that_is_not_a_result_is_refused(place, capsys, content, message):
    shutil.copytree("one", "damaged", dirs_exist_ok=True)
    if b"comparison" in content:
        stored = json.loads(content)
        digest = json.loads(Path("one/results.json").read_text())["samples_sha256"]
        content = json.dumps({**stored, "samples_sha256": digest}).encode()
    Path("damaged/results.json").write_bytes(content)
    assert main(["compare", "one/results.json", "damaged/results.json"]) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("torchmetrics-cam: damaged/results.json ")
    assert message in stderr
    assert len(stderr.splitlines()) == 1


def damages(value: Any, depth: int = 4) -> Iterator[Any]:
    """Copies of a JSON value in each of which one part is missing or has another type."""
    for replacement in (None, [[]], "x", {"name": 1}):
        if replacement != value:
            yield replacement
    if depth and isinstance(value, dict | list):
        for key in list(value if isinstance(value, dict) else range(min(len(value), 2))):
            without = copy.copy(value)
            del without[key]
            yield without
            for damaged in damages(value[key], depth - 1):
                changed = copy.copy(value)
                changed[key] = damaged
                yield changed


def test_no_damage_to_the_results_ends_in_another_error(place, capsys):
    whole = json.loads(Path("one/results.json").read_text())
    # The parts that compare reads; a change elsewhere has no effect on it.
    read = ("format", "comparison", "model", "data", "settings", "samples_sha256")
    whole = {name: whole[name] for name in read}
    unread = {"agreement": {}, "groups": [], "rankings": []}
    whole["comparison"] = {**whole["comparison"], "rows": whole["comparison"]["rows"][:2], **unread}
    shutil.copytree("one", "damaged", dirs_exist_ok=True)
    damaged, messages, count = Path("damaged/results.json"), [], 0
    for content in damages(whole):
        damaged.write_text(json.dumps(content))
        for files in ((damaged, Path("one/results.json")), (Path("one/results.json"), damaged)):
            try:
                compare.run(Namespace(first=files[0], second=files[1], fail_if_worse=True))
            except GateError:
                continue
            except UsageError as error:
                messages.append(str(error))
        count += 1
    assert count > 300
    assert len(messages) > 200
    assert all(len(message.splitlines()) == 1 for message in messages)


def test_truncated_results_are_refused(place, capsys):
    whole = Path("one/results.json").read_bytes()
    shutil.copytree("one", "damaged", dirs_exist_ok=True)
    for size in range(0, len(whole) - 2, len(whole) // 50):
        Path("damaged/results.json").write_bytes(whole[:size])
        with pytest.raises(UsageError, match=r"results\.json is not JSON"):
            compare.run(
                Namespace(
                    first=Path("damaged/results.json"), second=Path("one/results.json"), fail_if_worse=True
                )
            )


def test_a_digest_depends_on_type_shape_and_values():
    from torchmetrics_cam.cli.digests import pixel_digest

    image = torch.rand(3, 4, 5)
    others = [image + 1, image.double(), image.bfloat16(), image.reshape(3, 5, 4), Image.new("RGB", (5, 4))]
    digests = {pixel_digest(one) for one in [image, *others]}
    assert len(digests) == 6
    assert pixel_digest(image.clone().transpose(1, 2).contiguous().transpose(1, 2)) == pixel_digest(image)
