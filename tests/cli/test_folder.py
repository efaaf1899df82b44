"""The output folder: only files that a command has written are replaced or removed."""

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image
from test_evaluate_command import FILES, arguments, numbers, with_three_photos

from torchmetrics_cam.cli import evaluate as command
from torchmetrics_cam.cli import main

FOREIGN = {
    "results.json": json.dumps({"format": 1, "comparison": {"mine": 2}}),
    "results.csv": "method,value\nmine,2\n",
    "samples.csv": "index,file\n0,a.png\n",
    "report.html": "<!doctype html><title>My thesis</title>",
}


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return with_three_photos(tmp_path, monkeypatch)


@pytest.fixture
def unused_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "load_model", lambda *_, **__: pytest.fail("the network was loaded"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.usefixtures("unused_model")
@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("more", [[], ["--fresh"]], ids=["", "fresh"])
def test_a_file_that_no_run_has_written_is_refused_before_the_model_is_loaded(inside, capsys, name, more):
    (inside / name).write_text(FOREIGN[name])
    before = contents(inside)
    assert main(arguments(Path("."), *more)) == 2
    assert capsys.readouterr().err == (
        f"torchmetrics-cam: --out . contains {name}, which no earlier run has written, and the results would"
        " replace it; move it away, or choose another directory\n"
    )
    assert contents(inside) == before


@pytest.mark.usefixtures("unused_model")
def test_a_folder_and_a_pipe_with_the_name_of_a_result_are_refused(inside, capsys):
    (inside / "one" / "report.html").mkdir(parents=True)
    (inside / "two").mkdir()
    os.mkfifo(inside / "two" / "results.json")
    (inside / "three").mkdir()
    (inside / "three" / "samples.csv").symlink_to("nowhere")
    for out, name in (("one", "report.html"), ("two", "results.json"), ("three", "samples.csv")):
        assert main(arguments(Path(out))) == 2
        assert f"--out {out} contains {name}, which no earlier run has written" in capsys.readouterr().err


def test_a_file_that_appears_during_the_run_is_kept(inside, capsys, monkeypatch):
    evaluated = command._evaluated

    def with_report(*given):
        (inside / "out" / "report.html").write_text("mine")
        return evaluated(*given)

    with monkeypatch.context() as patch:
        patch.setattr(command, "_evaluated", with_report)
        assert main(arguments(inside / "out")) == 2
    assert "contains report.html, which no earlier run has written" in capsys.readouterr().err
    assert (inside / "out" / "report.html").read_text() == "mine"
    (inside / "out" / "report.html").unlink()
    # The partial result was kept, so that nothing is computed twice.
    assert (inside / "out" / "partial" / "rank-0.pt").exists()
    assert main(arguments(inside / "out")) == 0
    assert {path.name for path in (inside / "out").iterdir()} == FILES


def test_a_partial_result_that_cannot_be_removed_does_not_end_the_run(inside, monkeypatch, capsys):
    written = command.write_files

    def without_settings(*given):
        (inside / "out" / "partial" / "settings.json").unlink()
        written(*given)

    monkeypatch.setattr(command, "write_files", without_settings)
    assert main(arguments(inside / "out")) == 0
    assert "Report: " in capsys.readouterr().out
    assert (inside / "out" / "partial" / "rank-0.pt").exists()


def test_results_of_an_earlier_run_are_replaced(inside):
    out = inside / "out"
    assert main(arguments(out)) == 0
    expected = numbers(out)
    # Empty files hold nothing that could be lost.
    for name in ("results.csv", "report.html"):
        (out / name).write_bytes(b"")
    (out / "samples.csv").write_text((out / "samples.csv").read_text().replace("\r\n", "\n"))
    assert main(arguments(out, "--limit", "2")) == 0
    assert numbers(out) != expected
    assert main(arguments(out)) == 0
    assert numbers(out) == expected
    assert all((out / name).stat().st_size for name in FILES)


@pytest.mark.usefixtures("unused_model")
@pytest.mark.parametrize("more", [[], ["--fresh"]], ids=["", "fresh"])
@pytest.mark.parametrize(
    "content",
    [
        {"photo.png": "an image"},
        {"rank-0.pt": "of another evaluation"},
        {"settings.json": '{"model": "mine", "data": "photos"}', "rank-0.pt": ""},
        {"settings.json": ""},
    ],
    ids=["an image", "no settings", "settings of others", "empty settings"],
)
def test_a_folder_named_partial_that_no_run_has_written_is_refused(inside, capsys, more, content):
    partial = inside / "partial"
    partial.mkdir()
    for name, text in content.items():
        (partial / name).write_text(text)
    before = contents(inside)
    assert main(arguments(Path("."), *more)) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(
        "torchmetrics-cam: partial is not the partial result of an interrupted run (it contains"
    )
    assert stderr.endswith("move it away, or choose another directory with --out\n")
    assert contents(inside) == before


@pytest.mark.usefixtures("unused_model")
def test_a_file_named_partial_is_refused(inside, capsys):
    (inside / "partial").write_text("mine")
    assert main(arguments(Path("."))) == 2
    assert "(Not a directory)" in capsys.readouterr().err
    assert (inside / "partial").read_text() == "mine"


def test_images_in_a_folder_named_partial_are_kept(inside, capsys):
    shutil.move(inside / "photos", inside / "partial")
    before = contents(inside / "partial")
    for more in ([], ["--fresh"]):
        assert main(arguments(Path("."), "--data", "partial", *more)) == 2
        assert contents(inside / "partial") == before
    assert main(arguments(Path("out"), "--data", "partial")) == 0
    assert contents(inside / "partial") == before


def test_other_files_in_the_folder_of_a_partial_result_are_kept(inside, capsys):
    out, more = inside / "out", ("--model", "mine:hungry", "--layer", "model.3", "--batch-size", "8")
    for number in range(3, 10):
        Image.new("RGB", (16, 16), (9, 20 * number, 200)).save(inside / "photos" / f"{number}.png")
    assert main(arguments(out, *more)) == 2
    assert "memory ran out" in capsys.readouterr().err
    partial = out / "partial"
    (partial / ".DS_Store").write_text("of the system")
    (partial / "notes").mkdir()
    (partial / "notes" / "rank-0.pt").write_text("mine")
    (partial / "rank-0.4242").write_text("an atomic write that was interrupted")
    kept = {".DS_Store": b"of the system", "notes/rank-0.pt": b"mine"}
    assert main(arguments(out, *more, "--batch-size", "4", "--fresh")) == 0
    assert contents(partial) == kept
    shutil.rmtree(partial / "notes")
    assert main(arguments(out)) == 0
    assert contents(partial) == {".DS_Store": b"of the system"}


@pytest.mark.parametrize(
    "command_line", [["demo"], ["evaluate", "--model", "mine:factory", "--data", "photos"]]
)
@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_output_folder_is_refused(inside, capsys, command_line, name):
    before = contents(inside)
    assert main([*command_line, "--out", name]) == 2
    assert capsys.readouterr().err == (
        "torchmetrics-cam: --out is empty; name a directory for the results, as in --out results\n"
    )
    assert contents(inside) == before
