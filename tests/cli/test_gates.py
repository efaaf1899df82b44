"""Gates: ``evaluate --fail-if`` and ``compare --fail-if-worse``, their exit codes and sentences."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import small_net
from scipy import stats
from test_evaluate_command import NETWORK, arguments, enter, results

from torchmetrics_cam import CAMComparison
from torchmetrics_cam.cams import CallableSource, GradCAM
from torchmetrics_cam.cli import gates, main
from torchmetrics_cam.cli.arguments import parser
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.functional.statistics import estimate
from torchmetrics_cam.protocol import PRESETS

DATA = """
import torch


def many():
    generator = torch.Generator().manual_seed(5)
    return [(torch.rand(3, 16, 16, generator=generator), number % 3) for number in range(24)]


def others():
    generator = torch.Generator().manual_seed(6)
    return [(torch.rand(3, 16, 16, generator=generator), 0) for number in range(3)]


def worse():
    # One layer is perturbed.
    import mine

    model, transform = mine.factory()
    with torch.no_grad():
        model[2].weight[::2] = 0
    return model, transform
"""
TITLES = {
    "average_drop": "Average Drop",
    "increase_in_confidence": "Increase in Confidence",
    "average_gain": "Average Gain",
}
MEASURES = list(TITLES)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with a network, images and a run over them."""
    folder = tmp_path_factory.mktemp("gates")
    (folder / "mine.py").write_text(NETWORK)
    (folder / "data.py").write_text(DATA)
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        assert evaluate("one") == 0
        yield folder


def options(out: str, *more: str) -> list[str]:
    return arguments(Path(out), "--data", "data:many", "--pictures", "0", "--batch-size", "24", *more)


def evaluate(out: str, *more: str) -> int:
    return main(options(out, *more))


def value_of(out: str, method: str, measure: str, number: str = "value") -> float:
    (row,) = [row for row in results(Path(out))["comparison"]["rows"] if row["method"] == method]
    return row[measure][number]


def test_gates_that_pass(place, capsys):
    lower = value_of("one", "Grad-CAM", "average_drop", "lower")
    passing = ["average_drop > 0.99", f"Grad-CAM/average_drop_lower<{lower - 1e-3}"]
    assert evaluate("two", "--fail-if", passing[0], f"--fail-if={passing[1]}") == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("".join(f"Gate passed: {gate}\n" for gate in passing))
    assert "gate" not in printed.err
    assert results(Path("two"))["gates"] == [{"gate": gate, "violations": []} for gate in passing]
    assert results(Path("one"))["gates"] is None


def test_a_gate_that_fails_ends_with_exit_code_3_after_the_files_are_written(place, capsys):
    drops = {method: value_of("one", method, "average_drop") for method in ("Grad-CAM", "Layer-CAM")}
    gain = value_of("one", "Layer-CAM", "average_gain", "upper")
    shutil.rmtree("two", ignore_errors=True)
    given = ["average_drop > 0.01", "Layer-CAM/average_gain_upper >= 0", "average_drop > 0.999"]
    assert evaluate("two", *(word for gate in given for word in ("--fail-if", gate))) == 3
    printed = capsys.readouterr()
    sentences = [
        f"Grad-CAM/average_drop is {drops['Grad-CAM']:.3g}, so the gate 'average_drop > 0.01' fails.",
        f"Layer-CAM/average_drop is {drops['Layer-CAM']:.3g}, so the gate 'average_drop > 0.01' fails.",
        f"Layer-CAM/average_gain_upper is {gain:.3g}, so the gate 'Layer-CAM/average_gain_upper >= 0' fails.",
    ]
    lines = printed.err.splitlines()
    assert lines == [f"torchmetrics-cam: {sentence}" for sentence in sentences]
    assert printed.out.endswith("Report: two/report.html\nGate passed: average_drop > 0.999\n")
    assert results(Path("two"))["gates"] == [
        {"gate": given[0], "violations": sentences[:2]},
        {"gate": given[1], "violations": sentences[2:]},
        {"gate": given[2], "violations": []},
    ]
    assert {file.name for file in Path("two").iterdir()} == {
        "results.json",
        "results.csv",
        "samples.csv",
        "report.html",
    }


def test_gates_of_a_yaml_file_and_of_the_command_line_all_apply(place, capsys):
    Path("run.yaml").write_text("fail_if: ['average_drop > 0.01', 'average_gain < 0']\n")
    parsed = parser().parse_args(["evaluate", "--config", "run.yaml", "--fail_if+", "adcc < 1"])
    assert parsed.evaluate.fail_if == ["average_drop > 0.01", "average_gain < 0", "adcc < 1"]
    assert evaluate("two", "--config", "run.yaml", "--fail-if", "increase_in_confidence > 2") == 3
    given = [row["gate"] for row in results(Path("two"))["gates"]]
    assert given == ["average_drop > 0.01", "average_gain < 0", "increase_in_confidence > 2"]
    Path("run.yaml").write_text("fail_if: average_drop > 0.01\n")
    assert evaluate("two", "--config", "run.yaml") == 2
    way_out = 'write fail_if: ["average_drop > 0.01"]; see torchmetrics-cam --help'
    assert f"--fail_if: average_drop > 0.01 is not a list; {way_out}\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("average_dorp > 0.4", "'average_dorp' is not a measure or a bound of its interval, as average_drop_lower; did"
         " you mean 'average_drop'?"),
        ("adccs > 0.4", "did you mean 'adcc'?"),
        ("average_drop_middle > 0.4", "'average_drop_middle' is not a measure"),
        ("average_drop_lower_upper > 0.4", "'average_drop_lower_upper' is not a measure"),
        ("= average_drop > 0.4", "'= average_drop' is not a measure"),
        ("average_drop => 0.4", "'=>' is not an operator; the operators are > >= < <="),
        ("average_drop == 0.4", "'==' is not an operator; the operators are > >= < <="),
        ("average_drop = 0.4", "'=' is not an operator"),
        ("average_drop > = 0.4", "'=' is not an operator"),
        ("average_drop <> 0.4", "'<>' is not an operator"),
        ("average_drop != 0.4", "'!=' is not an operator"),
        (" > 0.4", "'' is not a measure"),
        ("adcc < 0.4", "adcc is not measured; add it to --measures"),
        ("grad_cam/average_drop > 0.4", "'grad_cam' is not one of Grad-CAM, Layer-CAM, uniform map, random map, center"
         " map, correct, wrong; did you mean 'Grad-CAM'? A gate is [PROTOCOL/ or GROUP/][METHOD/]MEASURE and a limit."
         " Groups need --group, and are those of the first protocol, which needs no name"),
        ("score_cam/average_drop > 0.4", "'score_cam' is not one of Grad-CAM, Layer-CAM, uniform map, random map, center"
         " map, correct, wrong. A gate is [PROTOCOL/ or GROUP/][METHOD/]MEASURE"),
        ("south/average_drop>0.1", "center map, correct, wrong. A gate is [PROTOCOL/ or GROUP/][METHOD/]MEASURE"),
        ("worng/Grad-CAM/average_drop > 1", "did you mean 'wrong/Grad-CAM'?"),
        ("paper/average_drop > 0.4", ": 'paper' is the first protocol, which needs no name; omit 'paper/'"),
        ("paper/Grad-CAM/average_drop > 0.4", ": 'paper' is the first protocol, which needs no name; omit 'paper/'"),
        ("Grad-CAM/abc > 0.4", "'abc' is not a measure or a bound of its interval, as average_drop_lower. A gate is ["),
        ("average_drop > a half", "'a half' is not a number; give one such as 0.4"),
        ("average_drop > nan", "'nan' is not a number"),
        ("average_drop > 40%", "'40%' is not a number"),
        ("average_drop >", "'' is not a number"),
        ("average_drop > 0.4 < 0.5", "'average_drop > 0.4' is not a measure"),
        ("Grad-CAM: average_drop", "has no comparison; give a measure, one of > >= < <= and a number, as in"),
        ("", "has no comparison"),
    ],
)  # fmt: skip
def test_a_gate_that_cannot_be_is_refused_before_the_network_is_loaded(place, capsys, gate, message):
    assert evaluate("none", "--model", "mine:missing", "--fail-if", gate) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"torchmetrics-cam: --fail-if {gate!r}")
    assert message in line
    assert not Path("none").exists()


def test_gates_under_a_further_protocol(place, capsys):
    given = ["--protocol", "paper,score_cam,paper:baseline=0.5", "--measures", "average_drop"]
    names = ["score_cam/Grad-CAM", "score_cam", "paper:baseline=0.5/Layer-CAM", "random map"]
    failing = [word for name in names for word in ("--fail-if", f"{name}/average_drop >= 0")]
    assert evaluate("two", *given, *failing) == 3
    comparison = results(Path("two"))["comparison"]
    expected = {"random map/average_drop": value_of("two", "random map", "average_drop")}
    for one in comparison["further"]:
        for row in one["rows"]:
            expected[f"{one['protocol']['name']}/{row['method']}/average_drop"] = row["average_drop"]["value"]
    violations = [[row["violations"] for row in results(Path("two"))["gates"]][index] for index in range(4)]
    keys = [
        ["score_cam/Grad-CAM/average_drop"],
        ["score_cam/Grad-CAM/average_drop", "score_cam/Layer-CAM/average_drop"],
        ["paper:baseline=0.5/Layer-CAM/average_drop"],
        ["random map/average_drop"],
    ]
    assert [[sentence.split(" is ")[0] for sentence in part] for part in violations] == keys
    for part in violations:
        for sentence in part:
            key, _, rest = sentence.partition(" is ")
            assert rest.startswith(f"{expected[key]:.3g}, so the gate ")


def test_keys_are_those_of_compute():
    """With several protocols and groups, and a method with a slash in its name."""
    net = small_net()
    comparison = CAMComparison(
        {"Grad-CAM": GradCAM(net, "body"), "a/b": CallableSource(net, lambda model, x, c: x.mean(1))},
        protocols=["paper", PRESETS["score_cam"]],
        measures=["average_drop", "complexity"],
        groups=["tops", "bags"],
    )
    comparison.update(
        torch.rand(5, 3, 12, 12, dtype=torch.float64), group=["tops", "bags", "tops", "bags", "tops"]
    )
    values = gates.values_by_key(json.loads(comparison.table().to_json()))
    expected = comparison.compute()
    assert values.keys() == expected.keys()
    for key, value in values.items():
        assert value == pytest.approx(expected[key].item(), abs=1e-6)
    parsed = gates.parse_gates(
        ["a/b/complexity > 2", "score_cam/a/b/complexity_upper < 2"],
        ["complexity"],
        ["Grad-CAM", "a/b"],
        ["score_cam"],
    )
    passed, failed = gates.check_gates(parsed, values, comparison.methods)
    assert passed["violations"] == []
    assert failed["violations"][0].startswith("score_cam/a/b/complexity_upper is 0.")


@pytest.mark.parametrize(
    ("comparison", "limit", "fails"),
    [
        (">", 0.5, False),
        (">=", 0.5, True),
        ("<", 0.5, False),
        ("<=", 0.5, True),
        (">", -1, True),
        ("<", 1e3, True),
    ],
)
def test_operators(comparison, limit, fails):
    parsed = gates.parse_gates([f"adcc{comparison}{limit}"], ["adcc"], ["one"], [])
    (row,) = gates.check_gates(parsed, {"one/adcc": 0.5}, ["one"])
    assert bool(row["violations"]) == fails


@pytest.mark.parametrize("comparison", [">", "<", ">=", "<="])
def test_a_value_that_is_not_defined_fails_every_gate(comparison):
    gate = f"adcc_lower {comparison} 0.4"
    parsed = gates.parse_gates([gate], ["adcc"], ["one", "two"], [])
    (row,) = gates.check_gates(
        parsed, {"one/adcc_lower": None, "two/adcc_lower": float("nan")}, ["one", "two"]
    )
    assert row["violations"] == [
        f"{method}/adcc_lower has no value, so the gate '{gate}' cannot be checked and fails."
        for method in ("one", "two")
    ]


def test_a_group_without_a_value_fails():
    """What may stand before a method can be a group, of which no image was evaluated."""
    parsed = gates.parse_gates(["boots/adcc < 0.1"], ["adcc"], ["one"], ["boots", "bags"])
    (row,) = gates.check_gates(parsed, {"one/adcc": 0.5, "bags/one/adcc": 0.5}, ["one"])
    assert row["violations"] == [
        "boots/one/adcc has no value, so the gate 'boots/adcc < 0.1' cannot be checked and fails."
    ]


def test_a_bound_of_a_single_image_is_not_defined(place, capsys):
    assert evaluate("two", "--limit", "1", "--fail-if", "Grad-CAM/average_drop_lower > 0.999") == 3
    message = capsys.readouterr().err
    assert "Grad-CAM/average_drop_lower has no value, so the gate " in message


def test_a_value_near_the_limit_is_shown_with_enough_digits():
    (gate,) = gates.parse_gates(["adcc > 0.4"], ["adcc"], ["one"], [])
    (row,) = gates.check_gates([gate], {"one/adcc": 0.4000012}, ["one"])
    assert row["violations"] == ["one/adcc is 0.400001, so the gate 'adcc > 0.4' fails."]


def test_gates_may_change_when_a_run_is_resumed(place, capsys, monkeypatch):
    def interrupted(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    shutil.rmtree("two", ignore_errors=True)
    with monkeypatch.context() as patch:
        patch.setattr("torchmetrics_cam.cli.evaluate.evaluate", interrupted)
        assert evaluate("two", "--fail-if", "average_drop > 0.99") == 130
    assert Path("two/partial/settings.json").exists()
    assert evaluate("two", "--fail-if", "average_drop > 0.01") == 3
    # A finished run is evaluated anew.
    assert evaluate("two") == 0
    assert results(Path("two"))["gates"] is None


GUIDE = Path(__file__).parents[2] / "GUIDE.md"
STEP = re.search(r"<!-- gates -->\n```yaml\n(.*?)```", GUIDE.read_text(), re.DOTALL)[1]


@pytest.fixture(scope="module")
def perturbed(place: Path) -> str:
    """A run with one perturbed layer."""
    assert evaluate("worse", "--model", "data:worse") == 0
    return "worse"


def compare(first: str, second: str) -> int:
    return main(["compare", f"{first}/results.json", f"{second}/results.json", "--fail-if-worse"])


def samples(out: str) -> list[dict[str, str]]:
    with Path(out, "samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def holm_adjusted(p_values: list[float]) -> list[float]:
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        highest = max(highest, (len(p_values) - place) * p_values[index])
        adjusted[index] = highest
    return adjusted


def test_a_perturbed_layer_is_a_regression(place, perturbed, capsys):
    capsys.readouterr()
    assert compare("one", perturbed) == 3
    printed = capsys.readouterr()
    assert "| Grad-CAM | Average Drop |" in printed.out
    tables = samples("one"), samples(perturbed)
    keys = [(measure, method) for measure in MEASURES for method in ("Grad-CAM", "Layer-CAM")]
    pairs = [
        [np.array([float(row[f"{method}/{measure}"]) for row in table]) for table in tables]
        for measure, method in keys
    ]
    adjusted = holm_adjusted([1.0 if (a == b).all() else stats.ttest_rel(a, b).pvalue for a, b in pairs])
    expected = []
    for (measure, method), (a, b), p_value in zip(keys, pairs, adjusted, strict=True):
        worse = b - a if measure == "average_drop" else a - b
        if p_value < 0.05 and worse.mean() > 0:
            low, high = stats.t.interval(0.95, len(worse) - 1, worse.mean(), stats.sem(worse))
            expected.append(
                f"torchmetrics-cam: {method}: {TITLES[measure]} is worse in B than in A by {worse.mean():.3g} on the"
                f" same images (95 % interval {low:.3g} to {high:.3g}; p = {p_value:.2g}, adjusted for 6 differences)."
            )
    assert printed.err.splitlines() == expected
    assert 1 <= len(expected) < 6


def test_the_better_run_and_the_same_run_pass(place, perturbed, capsys):
    """In the better direction no measure that is worse the other way round is reported."""
    assert compare("one", "one") == 0
    printed = capsys.readouterr()
    assert printed.out.endswith("Gate passed: B is not significantly worse than A.\n")
    assert printed.err == ""
    assert compare("one", perturbed) == 3
    one_way = {line.split(" is ")[0] for line in capsys.readouterr().err.splitlines()}
    compare(perturbed, "one")
    other_way = {line.split(" is ")[0] for line in capsys.readouterr().err.splitlines()}
    assert not one_way & other_way


def test_the_same_network_in_other_batches_passes(place, capsys):
    assert evaluate("two", "--batch-size", "5") == 0
    assert compare("one", "two") == 0


def test_without_the_option_a_worse_run_is_no_error(place, perturbed):
    assert main(["compare", "one/results.json", f"{perturbed}/results.json"]) == 0


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (["--mask", "top"], "mask (soft and top) differ"),
        (["--explain", "label"], "--explain (top class and label) differ"),
        (["--data", "data:others"], "0 images are in both runs, and a comparison needs two or more"),
        (["--limit", "1"], "1 images are in both runs, and a comparison needs two or more"),
    ],
    ids=["protocol", "class", "images", "one image"],
)
def test_runs_that_are_not_comparable_are_refused(place, capsys, more, problem):
    assert evaluate("two", *more) == 0
    capsys.readouterr()
    assert compare("one", "two") == 2
    printed = capsys.readouterr()
    assert printed.err == (
        f"torchmetrics-cam: --fail-if-worse: the values of A and B are not comparable, because {problem}; evaluate B"
        " with the options and the images of A\n"
    )
    assert "| Grad-CAM | Average Drop |" in printed.out


def test_settings_that_none_of_the_common_measures_reads_may_differ(place):
    assert evaluate("two", "--road-noise", "0.3") == 0
    assert compare("one", "two") == 0


def changed(out: str, new: str, change: Any) -> None:
    """Copy a run with other results."""
    shutil.copytree(out, new, dirs_exist_ok=True)
    stored = results(Path(new))
    change(stored["comparison"])
    Path(new, "results.json").write_text(json.dumps(stored))


def test_measures_without_a_direction_and_controls_are_left_out(place, perturbed, capsys):
    def without_directions(comparison: dict[str, Any]) -> None:
        for measure in comparison["measures"]:
            measure["higher_is_better"] = None

    def only_controls(comparison: dict[str, Any]) -> None:
        comparison["rows"] = [row for row in comparison["rows"] if row["control"]]

    for change in (without_directions, only_controls):
        changed(perturbed, "changed", change)
        assert compare("one", "changed") == 2
        assert "the methods in both runs are controls, or no measure in both says" in capsys.readouterr().err


def test_what_only_one_run_has_is_named(place, capsys):
    assert evaluate("two", "--methods", "grad_cam,hires_cam", "--measures", "average_drop") == 0
    capsys.readouterr()
    assert compare("one", "two") == 0
    sentence = "Not compared, because only one run has them: HiRes-CAM, Layer-CAM, average_gain, increase_in_confidence."
    assert sentence in capsys.readouterr().out.splitlines()


def estimate_of(differences: torch.Tensor) -> Any:
    count = torch.tensor(len(differences))
    return estimate(count, differences.sum(), differences.square().sum())


def regressions_of(differences: torch.Tensor) -> list[str]:
    """The sentences on one measure, with the differences A - B of each method in a row."""
    pairs = {(f"{row}", "adcc"): estimate_of(values) for row, values in enumerate(differences.double())}
    return gates.regressions(pairs, {"adcc": True}, {"adcc": "ADCC"})


def test_equally_good_runs_are_reported_in_at_most_one_of_twenty():
    """200 comparisons of 12 methods each, without a true difference."""
    noise = torch.randn(200, 12, 30, generator=torch.Generator().manual_seed(0))
    reported = sum(bool(regressions_of(one)) for one in noise)
    assert 1 <= reported <= 10
    unadjusted = (stats.ttest_1samp(noise.numpy(), 0, axis=2).pvalue < 0.05).any(1).sum()
    assert unadjusted > 50


def test_differences_within_rounding_errors_are_no_regression():
    assert regressions_of(torch.full((1, 40), 1e-8)) == []
    assert len(regressions_of(torch.full((1, 40), 1e-2))) == 1


def test_a_measure_that_cannot_be_compared_fails():
    undefined = {("one", "adcc"): None, ("two", "adcc"): estimate_of(torch.ones(1).double())}
    assert gates.regressions(undefined, {"adcc": True}, {"adcc": "ADCC"}) == [
        f"{method}: ADCC has no values on two images of both runs or more, so B cannot be compared with A."
        for method in ("one", "two")
    ]


def test_the_step_of_a_pipeline_stops_at_a_gate_that_fails(place, perturbed, tmp_path):
    """As GitHub Actions runs it: the script of the step, by ``bash -e``."""
    (script,) = [part["run"] for part in yaml.safe_load(STEP)]
    shutil.copytree(place / "one", tmp_path / "results" / "released")
    for name in ("mine.py", "data.py"):
        shutil.copy(place / name, tmp_path)
    (tmp_path / "evaluation.yaml").write_text(
        "model: data:worse\ndata: data:many\nlayer: '3'\naccelerator: cpu\ndevices: 1\npictures: 0\n"
    )
    (tmp_path / "step.sh").write_text(f"{script}echo deployed\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "step.sh"],
        cwd=tmp_path,
        env=os.environ | {"PATH": path},
        timeout=180,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "Gate passed: average_drop_lower > 0.9\n" in done.stdout
    assert "is worse in B than in A by" in done.stderr
    assert "deployed" not in done.stdout


@pytest.mark.parametrize("command", ["", "evaluate", "compare"])
def test_help_lists_the_exit_codes(capsys, command):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "Exit codes: 0 success; 1 an error, or a package is missing; 2 the arguments or the data cannot be used; 3 a"
        " gate fails; 130 interrupted."
    ) in printed


# Names


def parsed(text: str, **more: Any) -> gates.Gate:
    """A gate of a run with two methods, a further protocol and two groups."""
    given = {"methods": ["Grad-CAM", "Grad-CAM++"], "prefixes": ["score_cam", "south", "north"]} | more
    (gate,) = gates.parse_gates([text], ["average_drop"], **given)
    return gate


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("", ["Grad-CAM", "Grad-CAM++"]),
        ("Grad-CAM++/", ["Grad-CAM++"]),
        ("random map/", ["random map"]),
        ("south/", ["south/Grad-CAM", "south/Grad-CAM++"]),
        ("south/Grad-CAM/", ["south/Grad-CAM"]),
        ("score_cam/uniform map/", ["score_cam/uniform map"]),
    ],
)
def test_the_values_that_a_gate_is_about(name, keys):
    """Also where they have no value."""
    gate = parsed(f"{name}average_drop_upper < 1")
    (row,) = gates.check_gates([gate], {}, ["Grad-CAM", "Grad-CAM++"])
    assert row["violations"] == [
        f"{key}/average_drop_upper has no value, so the gate {gate.text!r} cannot be checked and fails."
        for key in keys
    ]


def test_a_gate_on_predictions_that_are_not_separated_is_refused_before_the_evaluation(place, capsys):
    """The network of the run has no class names, and its images are not in subfolders."""
    assert evaluate("none", "--fail-if", "wrong/Grad-CAM/average_drop < 1", "--fresh") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "torchmetrics-cam: --fail-if 'wrong/Grad-CAM/average_drop < 1': right and wrong predictions are not separated"
        " in this run, because labels that a function returns are only used on request; add --group correct, or"
        " --explain label"
    )
    assert not Path("none/results.json").exists()
    assert not Path("none/partial").exists()


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        (
            "g",
            {"methods": ["g", "Grad-CAM"], "prefixes": ["g"]},
            "'g' is both the method g and all methods in the group or under the protocol g; rename one of them",
        ),
        (
            "a/b",
            {"methods": ["b", "c"], "prefixes": ["a", "a/b"]},
            "'a/b' is both the method b in the group or under the protocol a and all methods in the group or under the"
            " protocol a/b; rename one of them",
        ),
    ],
)
def test_a_name_with_two_meanings_is_refused(name, more, message):
    """Else the gate would pass whatever the values of the other one are."""
    with pytest.raises(UsageError) as error:
        parsed(f"{name}/average_drop > 0.1", **more)
    assert str(error.value) == f"--fail-if '{name}/average_drop > 0.1': {message}"
    scope, method = more["prefixes"][-1], more["methods"][-1]
    # A name that belongs to one alone can be given.
    assert parsed(f"{scope}/{method}/average_drop > 0.1", **more).keys([]) == [
        f"{scope}/{method}/average_drop"
    ]


def test_a_group_has_no_values_under_a_further_protocol():
    with pytest.raises(UsageError) as error:
        parsed("score_cam/south/average_drop > 0.1")
    assert str(error.value).endswith(
        "'score_cam/south' is not one of Grad-CAM, Grad-CAM++, uniform map, random map, center map, score_cam, south,"
        " north. A gate is [PROTOCOL/ or GROUP/][METHOD/]MEASURE and a limit. Groups need --group, and are those of the"
        " first protocol, which needs no name"
    )


def test_help_has_no_doubled_percent_sign(capsys):
    with pytest.raises(SystemExit):
        main(["compare", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "that is no control (at the 5 % level, adjusted for the number of differences)" in printed
