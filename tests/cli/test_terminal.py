"""What a run prints: the tables, and the verdict."""

import json
from pathlib import Path

import pytest
from test_evaluate_command import arguments, with_three_photos

from torchmetrics_cam.cli import main
from torchmetrics_cam.cli.terminal import print_comparison
from torchmetrics_cam.metrics.measures import MEASURES


def row(method, control=False, **values):
    return {
        "method": method, "control": control, "n": 12, "excluded": 3, "degenerate": 1,
        **{name: {"value": value} for name, value in values.items()},
    }  # fmt: skip


def measures_of(*names):
    return [
        {"name": name, "title": MEASURES[name].title, "higher_is_better": MEASURES[name].higher_is_better}
        for name in names
    ]


def test_the_table_by_hand(capsys):
    rows = [
        row("Grad-CAM", average_drop=0.25, increase_in_confidence=None),
        row("random map", control=True, average_drop=0.5, increase_in_confidence=0.125),
    ]
    print_comparison(measures_of("average_drop", "increase_in_confidence"), rows)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["Method", "is", "better)", "is", "better)", "N", "Excluded", "Constant"] in lines
    assert ["(lower", "(higher"] in lines
    order = [line for line in lines if line[:1] in (["CAM"], ["Grad-CAM"], ["Controls"], ["Random"])]
    assert order == [
        ["CAM", "methods"],
        ["Grad-CAM", "0.250", "-", "12", "3", "1"],
        ["Controls"],
        ["Random", "map", "0.500", "0.125", "12", "3", "1"],
    ]


def test_measures_that_do_not_fit_side_by_side_have_tables_of_their_own(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [row("Grad-CAM", **dict.fromkeys(MEASURES, 0.25))]
    print_comparison(measures_of(*MEASURES), rows)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("0.250") for line in lines) == len(MEASURES)
    assert "…" not in "".join(lines)
    assert sum("Grad-CAM" in line for line in lines) < len(MEASURES) / 2


def test_a_run_prints_the_table_the_verdict_and_where_the_report_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    with_three_photos(tmp_path, monkeypatch)
    assert main(arguments(Path("out"))) == 0
    printed = capsys.readouterr().out
    comparison = json.loads(Path("out/results.json").read_text())["comparison"]
    for one in comparison["rows"]:
        name = one["method"].capitalize() if one["control"] else one["method"]
        (line,) = [line for line in printed.splitlines() if line.startswith(f"   {name} ")]
        assert f"{one['average_drop']['value']:.3f}" in line
    assert "has the best Average Drop" in printed
    assert printed.index("CAM methods") < printed.index("has the best Average Drop")
    assert printed.rstrip().endswith("Report: out/report.html")


def test_a_run_warns_of_random_weights(tmp_path, monkeypatch, capsys):
    with_three_photos(tmp_path, monkeypatch)
    assert (
        main(
            arguments(
                Path("out"), "--model", "torchvision:resnet18", "--checkpoint", "random", "--layer", "layer4"
            )
        )
        == 0
    )
    warning = "Warning: the weights of torchvision:resnet18 are random, so the values (3 images of photos, layer layer4,"
    assert warning in capsys.readouterr().out
    assert warning in Path("out/report.html").read_text()
