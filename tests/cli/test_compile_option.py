"""``torchmetrics-cam evaluate --compile``: values, compile time, and what happens where it fails."""

import html
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_evaluate_command import NETWORK, arguments, enter

from torchmetrics_cam.cli import main

DATA = """
import torch


def images():
    return list(torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(5)))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a network, seven images, and a run without the option."""
    folder = tmp_path_factory.mktemp("compile")
    (folder / "mine.py").write_text(NETWORK)
    (folder / "some.py").write_text(DATA)
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        assert main(command("plain")) == 0
        yield folder


def command(out: str, *more: str) -> list[str]:
    return arguments(Path(out), "--data", "some:images", "--methods", "grad_cam", "--pictures", "1", *more)


def test_values_are_those_of_the_network_and_the_time_is_reported(place, capsys):
    torch._dynamo.reset()
    # As a YAML file gives it; `--compile` is in the test below.
    Path("run.yaml").write_text("compile: true\n")
    line = command("compiled")
    assert main([line[0], "--config", "run.yaml", *line[1:]]) == 0
    printed = capsys.readouterr().out
    plain, compiled = (json.loads(Path(out, "results.json").read_text()) for out in ("plain", "compiled"))
    assert plain["compilation"] is None
    seconds = compiled["compilation"]["seconds"]
    assert seconds > 0
    assert compiled["compilation"]["failure"] is None
    sentence = f"{seconds:.1f} s, for the copy of the network that scored the perturbed images"
    assert f"Compilation: {sentence}\n" in printed
    assert f"<dt>Compilation</dt><dd>{sentence}</dd>" in Path("compiled/report.html").read_text()
    assert "<dt>Compilation</dt>" not in Path("plain/report.html").read_text()
    for one, other in zip(plain["comparison"]["rows"], compiled["comparison"]["rows"], strict=True):
        assert one["n"] == other["n"] == 7
        assert one["average_drop"]["value"] == pytest.approx(
            other["average_drop"]["value"], rel=1e-4, abs=1e-6
        )
    assert main(["compare", "plain/results.json", "compiled/results.json"]) == 0
    assert "Other settings that differ: --compile (False and True)." in capsys.readouterr().out
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The network could not be compiled")
def test_a_failure_is_reported_and_the_network_runs(place, capsys, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(place / "cache"))
    with torch._inductor.config.patch({"cpp.cxx": ("no-compiler",)}):
        assert main(command("failed", "--compile")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    plain, failed = (json.loads(Path(out, "results.json").read_text()) for out in ("plain", "failed"))
    failure = failed["compilation"]["failure"]
    assert failure.startswith("The network could not be compiled, so it scores the perturbed images itself (")
    assert "no-compiler" in failure
    assert printed.count(failure) == 1
    assert failure in failed["comparison"]["notes"]
    assert failure in html.unescape(Path("failed/report.html").read_text())
    assert failed["comparison"]["rows"] == plain["comparison"]["rows"]


def test_a_partial_result_without_the_option_is_not_resumed_with_it(place, capsys, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("torchmetrics_cam.cli.evaluate.write_files", interrupt)
        assert main(command("partial")) != 0
    capsys.readouterr()
    assert main(command("partial", "--compile")) == 2
    assert "holds the partial result of another command: compile differ" in capsys.readouterr().err
