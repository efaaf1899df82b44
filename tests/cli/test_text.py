"""Text that names of files bring into the terminal, the tables and the report."""

import csv
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from PIL import Image
from test_evaluate_command import arguments, results, with_three_photos

from torchmetrics_cam.cli import main

CONTROL = re.compile("[\\x00-\\x09\\x0b-\\x1f\\x7f-\\x9f\\u2028\\u202e\\u2066]")
# Red text, a line break, a C1 control character, and text from right to left.
UNSAFE = "a\x1b[31m\n| Grad-CAM\x9b1m\u2028\u202egnp.\u2066"
SAFE = r"a\x1b[31m\n| Grad-CAM\x9b1m\u2028\u202egnp.\u2066"


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return with_three_photos(tmp_path, monkeypatch)


def samples(out: Path) -> list[dict[str, str]]:
    with (out / "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_control_characters_of_file_names_are_escaped(inside, capsys):
    shutil.move("photos/0.png", f"photos/{UNSAFE}.png")
    Path(f"photos/{UNSAFE} broken.png").write_bytes(b"no image")
    assert main(arguments(Path("out"))) == 0
    printed = capsys.readouterr().out
    lines = printed[printed.index("Protocol: paper") :]
    assert not CONTROL.search(lines)
    assert f"\nNot read: photos/{SAFE} broken.png: " in lines
    assert sum(line.startswith("   Grad-CAM") for line in lines.splitlines()) == 1
    assert {row["file"] for row in samples(Path("out"))} >= {f"photos/{SAFE}.png"}
    for name in ("report.html", "results.json", "results.csv", "samples.csv"):
        assert not CONTROL.search((Path("out") / name).read_text()), name
    assert SAFE in (Path("out") / "report.html").read_text()
    assert main(["compare", "out/results.json", "out/results.json"]) == 0
    assert "3 images are in both runs." in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--data", "--model", "--checkpoint", "--out", "--layer", "--explain"])
def test_control_characters_of_arguments_are_escaped_in_messages(inside, capsys, option):
    (inside / UNSAFE).touch()
    assert main(arguments(Path("out"), option, UNSAFE)) == 2
    (message,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert message.startswith("torchmetrics-cam: ")
    assert r"\x1b[31m" in message
    assert not CONTROL.search(message)


def test_control_characters_of_results_are_escaped(inside, capsys):
    assert main(arguments(Path("out"))) == 0
    stored = results(Path("out"))
    stored["model"]["name"] = stored["comparison"]["measures"][0]["title"] = UNSAFE
    (inside / "out" / "results.json").write_text(json.dumps(stored))
    capsys.readouterr()
    assert main(["compare", "out/results.json", "out/results.json"]) == 0
    printed = capsys.readouterr().out
    assert f"A: out/results.json: {SAFE}, checkpoint" in printed
    assert f"| Grad-CAM | {SAFE} |" in printed
    assert not CONTROL.search(printed)


def test_ordinary_names_of_any_language_are_unchanged(inside):
    names = ["zażółć", "日本　語", "👩\u200d💻", "صورة", "a b'c"]
    for number, name in enumerate(names):
        Image.new("RGB", (16, 16), (9, 9, 40 * number)).save(f"photos/{name}.png")
    assert main(arguments(Path("out"))) == 0
    assert {row["file"] for row in samples(Path("out"))} >= {f"photos/{name}.png" for name in names}


@pytest.mark.parametrize("first", "=+-@")
def test_file_names_are_no_formulas_in_a_spreadsheet(inside, monkeypatch, first):
    monkeypatch.chdir(inside / "photos")
    name = f"{first}HYPERLINK(1).png"
    Path("0.png").rename(name)
    assert main(arguments(inside / "out", "--data", ".")) == 0
    rows = samples(inside / "out")
    assert sorted(row["file"] for row in rows) == sorted([f"'{name}", "1.png", "2.png"])
    with redirect_stdout(io.StringIO()) as printed:
        assert main(["compare", *[str(inside / "out" / "results.json")] * 2]) == 0
    assert "3 images are in both runs." in printed.getvalue()
