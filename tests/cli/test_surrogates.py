"""``--surrogate``: the network that scores the images in place of the model, loaded as the model is."""

import json
from pathlib import Path

import pytest
import torch
from test_evaluate_command import NETWORK, arguments, enter

from torchmetrics_cam import CAMComparison
from torchmetrics_cam.cams import GradCAM
from torchmetrics_cam.cli import main
from torchmetrics_cam.model.weights import weights_checksum

MORE = """

def images():
    return list(torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(5)))


def alone():
    return other()[0]


def of_three():
    model, transform = factory()
    model[-1] = nn.Linear(256, 3)
    return model, transform


def darker():
    return factory()[0], lambda picture: transform(picture) / 2


def equal():
    return factory()[0], lambda picture: transform(picture)


def named():
    return *factory(), [f"class {number}" for number in range(10)]


def renamed():
    return *factory(), [f"class {number}" for number in reversed(range(10))]


def failing():
    return nn.Sequential(nn.Flatten(), nn.Linear(5, 10))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The module of the user, in a working directory of its own."""
    (tmp_path / "mine.py").write_text(NETWORK + MORE)
    enter(tmp_path, monkeypatch)
    import mine

    return mine


def command(out: str, *more: str) -> list[str]:
    return arguments(
        Path(out),
        "--data",
        "mine:images",
        "--methods",
        "grad_cam",
        "--pictures",
        "0",
        "--batch-size",
        "8",
        *more,
    )


def results(out: str) -> dict:
    return json.loads(Path(out, "results.json").read_text())


def test_it_scores_the_images_and_is_named_everywhere(mine, capsys):
    assert main(command("plain")) == 0
    assert main(command("out", "--surrogate", "mine:other")) == 0
    named = "A surrogate scores the clean and the perturbed images in place of the network: Sequential (mine:other)."
    assert f"{named}\n" in capsys.readouterr().out
    assert named in Path("out/report.html").read_text()
    model, surrogate = mine.factory()[0].eval(), mine.other()[0].eval()
    expected = CAMComparison({"Grad-CAM": GradCAM(model, "3")}, surrogate=surrogate)
    expected.update(torch.stack(mine.images()))
    values = {row["method"]: row["average_drop"]["value"] for row in results("out")["comparison"]["rows"]}
    assert values["Grad-CAM"] == pytest.approx(expected.compute()["Grad-CAM/average_drop"].item(), rel=1e-5)
    assert results("out")["surrogate"] == {
        "name": "mine:other",
        "class": "Sequential",
        "checkpoint": None,
        "weights_checksum": weights_checksum(surrogate),
    }
    assert results("out")["comparison"]["surrogate"] == "Sequential (mine:other)"
    assert results("plain")["surrogate"] is None
    assert results("plain")["comparison"]["surrogate"] is None
    assert main(["compare", "plain/results.json", "out/results.json"]) == 0
    printed = capsys.readouterr().out
    scored = f"Sequential with the weights {weights_checksum(surrogate)}"
    assert f"not comparable: surrogate (None and {scored}) differ." in printed
    assert ", 7 images of mine:images, surrogate Sequential (mine:other)\n" in printed


def test_its_weights_come_from_a_checkpoint(mine):
    tuned = mine.other()[0]
    torch.save(tuned.state_dict(), "tuned.pt")
    assert main(command("other", "--surrogate", "mine:other")) == 0
    line = command("tuned", "--surrogate", "mine:factory", "--surrogate-checkpoint", "tuned.pt")
    assert main(line) == 0
    rows = [results(out)["comparison"]["rows"] for out in ("other", "tuned")]
    assert rows[0] == rows[1]
    assert results("tuned")["surrogate"]["checkpoint"] == "tuned.pt"
    assert results("tuned")["comparison"]["surrogate"] == "Sequential (mine:factory, checkpoint tuned.pt)"


def compared(first: str, second: str) -> int:
    return main(["compare", f"{first}/results.json", f"{second}/results.json", "--fail-if-worse"])


def test_runs_are_compared_by_the_weights_of_the_surrogate_and_not_by_its_path(mine, capsys):
    def evaluate(out: str, network: torch.nn.Module, file: str) -> str:
        torch.save(network.state_dict(), file)
        assert main(command(out, "--surrogate", "mine:factory", "--surrogate-checkpoint", file)) == 0
        return f"Sequential with the weights {weights_checksum(network)}"

    before, after = mine.factory()[0], mine.other()[0]
    first = evaluate("first", before, "tuned.pt")
    second = evaluate("second", after, "tuned.pt")
    evaluate("moved", before, "moved.pt")
    assert compared("first", "moved") == 0
    printed = capsys.readouterr().out
    assert "not comparable" not in printed
    assert ", surrogate Sequential (mine:factory, checkpoint moved.pt)\n" in printed
    assert compared("first", "second") == 2
    printed = capsys.readouterr()
    different = f"surrogate ({first} and {second}) differ"
    assert f"Warning: the values of A and B are not comparable: {different}.\n" in printed.out
    assert f"--fail-if-worse: the values of A and B are not comparable, because {different};" in printed.err


@pytest.mark.parametrize("factory", ["alone", "equal"])
def test_a_surrogate_without_a_transform_or_with_an_equal_one_is_taken(mine, factory):
    assert main(command("out", "--surrogate", f"mine:{factory}")) == 0


REFUSED = {
    "no network": (["mine:nothing"], "--surrogate 'mine:nothing': mine has no 'nothing'; the nearest names"),
    "no library": (
        ["nothing"],
        "--surrogate 'nothing' does not say where the network comes from; give torchvision:",
    ),
    "another library's name": (
        ["torchvision:resnet19"],
        "--surrogate torchvision:resnet19 is not a classifier of",
    ),
    "a missing file": (
        ["mine:factory", "--surrogate-checkpoint", "missing.pt"],
        "--surrogate-checkpoint missing.pt",
    ),
    "other classes": (
        ["mine:of_three"],
        "--surrogate mine:of_three scores 3 classes, and --model mine:factory 10; give a surrogate with",
    ),
    "other preprocessing": (
        ["mine:darker"],
        "--surrogate mine:darker needs other preprocessing than the network: mine.darker.<locals>.<lambda> instead"
        " of mine.transform. It receives the images of the network",
    ),
    "another input": (
        ["mine:failing"],
        "--surrogate mine:failing cannot score an image of --model (RuntimeError",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unsuitable_surrogate_is_refused_before_the_run(case, mine, capsys):
    options, message = REFUSED[case]
    assert main(command("out", "--surrogate", *options)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert not list(Path("out").iterdir())


def test_class_names_in_another_order_are_refused(mine, capsys):
    line = command("out", "--model", "mine:named", "--surrogate", "mine:renamed")
    assert main(line) == 2
    assert "--surrogate mine:renamed has other class names than --model mine:named" in capsys.readouterr().err


def test_its_checkpoint_without_it_is_refused(mine, capsys):
    assert main(command("out", "--surrogate-checkpoint", "tuned.pt")) == 2
    message = "--surrogate-checkpoint was given without --surrogate; name its network there"
    assert message in capsys.readouterr().err


def test_changed_weights_of_the_surrogate_do_not_resume(mine, monkeypatch, capsys):
    line = command("out", "--surrogate", "mine:hungry")
    # Its memory ends with the first batch, and the run can be resumed.
    assert main(line) == 2
    assert "memory ran out with 8 images per batch" in capsys.readouterr().err
    model, transform = mine.hungry()
    with torch.no_grad():
        model.model[0].bias[0] += 1e-3
    monkeypatch.setattr(mine, "hungry", lambda: (model, transform))
    assert main(line) == 2
    assert "another command: state of the surrogate differ; run" in capsys.readouterr().err


def test_a_compiled_copy_of_it_scores_the_images(mine):
    torch._dynamo.reset()
    assert main(command("plain", "--surrogate", "mine:other")) == 0
    assert main(command("compiled", "--surrogate", "mine:other", "--compile")) == 0
    assert results("compiled")["compilation"]["failure"] is None
    plain, compiled = (
        {row["method"]: row["average_drop"]["value"] for row in results(out)["comparison"]["rows"]}
        for out in ("plain", "compiled")
    )
    assert compiled == pytest.approx(plain, rel=1e-4)
