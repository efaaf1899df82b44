"""300 bad invocations and broken inputs: each ends with a message and an exit code, never a traceback."""

import json
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from test_evaluate_command import with_three_photos

from torchmetrics_cam.cli import main
from torchmetrics_cam.cli.arguments import parser

BROKEN_NETWORKS = """
def no_model():
    return 3


def needs_argument(size):
    return None


def fails():
    raise RuntimeError("the weights are gone")


def one_layer():
    import torch

    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(3))


def wrong_input():
    import torch

    return torch.nn.Conv2d(7, 3, 1)


def text():
    class Text:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return "a picture"

    return Text()


def endless():
    return iter([1])


def not_finite():
    import torch

    return [(torch.full((3, 16, 16), float("nan")), 0)] * 3
"""
# The folder two levels up may have pictures.
MAY_BE_RIGHT = "../.."
WORDS = (
    "",
    " ",
    "x",
    "-1",
    "nan",
    "1e400",
    "0",
    "résumé",
    MAY_BE_RIGHT,
    "a:b",
    "a.b:c",
    "os:getcwd",
    "{",
    "[1,",
    "\\",
    "%s",
)


def broken_pictures(folder: Path) -> dict[str, Path]:
    """A folder per kind of broken image file."""
    whole = folder / "whole.png"
    Image.new("RGB", (8, 8), "red").save(whole)
    png = whole.read_bytes()
    whole.unlink()
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = (
        png[:8] + struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    contents = {
        "empty": b"",
        "text": b"hello",
        "cut": png[: len(png) // 2],
        "head": png[:16],
        "bomb": bomb,
        "zeros": bytes(1000),
        "html": b"<html></html>",
        "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(50),
        "gif": b"GIF89a" + bytes(8),
        "tiff": b"II*\x00" + b"\xff" * 40,
    }
    folders = {}
    for name, content in contents.items():
        folders[name] = folder / name
        folders[name].mkdir()
        for suffix in (".png", ".jpg", ".tif"):
            (folders[name] / f"picture{suffix}").write_bytes(content)
    return folders


def invocations(place: Path) -> Iterator[list[str]]:
    """Command lines in which one option, or two, are wrong."""
    right = {
        "--model": "mine:factory",
        "--data": str(place / "photos"),
        "--layer": "3",
        "--accelerator": "cpu",
        "--devices": "1",
        "--out": str(place / "out"),
    }

    def replaced(**changes: str | None) -> list[str]:
        options = right | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        return ["evaluate", *(part for pair in options.items() if pair[1] is not None for part in pair)]

    wrong = {
        "model": [
            *WORDS,
            "torchvision:",
            "torchvision:resnet19",
            "timm:resnet_18",
            "hf:/nowhere",
            "mine:nothing",
            "nowhere:f",
            "bad:no_model",
            "bad:needs_argument",
            "bad:fails",
            "bad:one_layer",
            "bad:wrong_input",
            "resnet18",
            "mine",
            ":",
        ],
        "data": [
            *WORDS,
            "/nowhere",
            "nowhere:f",
            "bad:text",
            "bad:endless",
            "bad:fails",
            "bad:not_finite",
            str(place / "mine.py"),
            str(place / "nothing"),
            "mine:factory",
        ],
        "layer": [*WORDS, "3,9", "layer4", "5", "6", "nowhere", "3.weight", ",", "3,,nowhere"],
        "methods": [
            *WORDS,
            "grad_cam,grad_cam",
            "gradcam",
            "torchcam:",
            "torchcam:Nothing",
            "pytorch_grad_cam:Nothing",
            ",",
            "bad:fails",
            "bad:no_model",
            "torchcam:LeGrad",
            "mine:nothing",
            "nowhere:f",
        ],
        "measures": [*WORDS, "average_drop,average_drop", "mask_iou", "pointing_game", "average drop", ","],
        "explain": [*WORDS, "labels", "label"],
        "protocol": [*WORDS, "papers", "Paper"],
        "checkpoint": [*WORDS, "/nowhere.pt", str(place / "mine.py"), str(place / "photos"), "random"],
        "batch_size": [*WORDS, "1.5", "-3", "none"],
        "limit": ["0", "-1", "x", "1.5", "[]"],
        "image_size": ["0", "-5", "x", "1.5"],
        "pictures": ["-1", "x", "1.5"],
        "save_every": ["0", "-1", "x"],
        "num_workers": ["-1", "x"],
        "num_classes": ["0", "-1", "x", "1", "2"],
        "average": [*WORDS, "none", "weighted"],
        "devices": ["x", "-5", "0", "1.5", "[7,8]"],
        "accelerator": ["x", "gpu", "tpu", "cuda"],
        "strategy": ["x", "dpp", "fsdp", "deepspeed"],
        "precision": ["x", "17", "8"],
        "seed": ["x", "1.5"],
        "out": [str(place / "mine.py"), str(place / "mine.py" / "under"), "/proc/nothing"],
        "config": ["/nowhere.yaml", str(place / "photos"), *(str(one) for one in yaml_files(place))],
        "mask_fraction": ["0", "-1", "2", "x", "nan", "[1]"],
        "mask_threshold": ["0", "2", "x"],
        "baseline": ["x", "{a: 1}", "[1, 2, 3, 4, 5]", "means"],
        "drop": ["x", "relativ"],
        "scores": ["x", "sigmoid"],
        "mask": ["x", "hard"],
        "rectify": ["x"],
        "normalize": ["x"],
        "drop_eps": ["-1", "x"],
        "curve_steps": ["0", "-1", "1.5", "x"],
        "road_fractions": ["[0.1, 2]", "x", "[]", "0.3"],
        "road_noise": ["-1", "x"],
        "class_selection": ["x", "given"],
    }
    for name, values in wrong.items():
        for value in values:
            yield replaced(**{name: value})
    for folder in broken_pictures(place).values():
        yield replaced(data=str(folder))
    for missing in ("model", "data"):
        yield replaced(**{missing: None})
    yield from (
        [],
        ["evaluat"],
        ["evaluate", "--nothing"],
        ["evaluate", "photos"],
        ["demo", "x"],
        ["--nothing"],
        ["compare"],
    )
    result = place / "a.json"
    for content in (
        "",
        "{",
        "[]",
        "{}",
        "null",
        json.dumps({"format": 1}),
        json.dumps({"format": 9, "comparison": {}}),
    ):
        name = place / f"{zlib.crc32(content.encode())}.json"
        name.write_text(content)
        yield ["compare", str(name), str(name)]
    yield ["compare", str(result), str(result)]
    yield ["compare", str(place), str(place)]
    chance = random.Random(0)
    names = sorted(wrong)
    while True:
        first, second = chance.sample(names, 2)
        yield replaced(**{first: chance.choice(wrong[first]), second: chance.choice(wrong[second])})


def yaml_files(place: Path) -> list[Path]:
    contents = (
        "{",
        "a: b: c",
        "- 1\n- 2",
        "nothing: 1",
        "batch_size: many",
        "\x00",
        "model: [1, 2]",
        "limit: {}",
        "text",
    )
    files = []
    for number, content in enumerate(contents):
        files.append(place / f"{number}.yaml")
        files[-1].write_text(content)
    return files


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "bad.py").write_text(BROKEN_NETWORKS)
    (folder / "nothing").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        yield with_three_photos(folder, patch)


def test_300_bad_invocations_end_with_a_message(place, capsys):
    failed, succeeded = [], []
    for arguments in invocations(place):
        code = main([*arguments])
        printed = capsys.readouterr()
        if code == 0:
            succeeded.append(arguments)
            continue
        failed.append(arguments)
        problem = f"{arguments}\n{printed.err}"
        assert code in (1, 2), problem
        assert "Traceback" not in printed.err + printed.out, problem
        sentence = printed.err.strip().splitlines()[-1]
        assert sentence.startswith("torchmetrics-cam: "), problem
        assert len(sentence) > 30, problem
        if len(failed) == 300:
            break
    assert len(failed) == 300
    assert all(MAY_BE_RIGHT in arguments for arguments in succeeded), succeeded


def bomb(levels: int) -> str:
    """YAML whose last value has ten to the power of `levels` entries, through aliases."""
    lines = ["l0: &l0 x"]
    for level in range(1, levels + 1):
        lines.append(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "content",
    [
        f"{bomb(9)}\nlayer: *l9\n",
        f"{bomb(9)}\nmeasures: [*l9]\n",
        bomb(5),
        "layer: &cycle [*cycle]\n",
        "a: &a {<<: *a, b: 1}\n",
    ],
    ids=["option", "list", "no option", "cycle", "merged cycle"],
)
def test_a_value_that_grows_through_aliases_is_refused(place, capsys, content):
    file = place / "bomb.yaml"
    file.write_text(content)
    assert main(["evaluate", "--config", str(file), "--model", "mine:factory", "--data", "photos"]) == 2
    stderr = capsys.readouterr().err
    assert len(stderr) < 5_000
    if "<<" not in content:
        assert stderr.endswith(
            "the YAML has more than 10,000 values after its aliases are replaced; write the options without"
            " aliases\n"
        )


def test_an_alias_of_a_value_is_accepted(place):
    (place / "alias.yaml").write_text("measures: &names [average_drop]\nmethods: [grad_cam]\nlayer: *names\n")
    parsed = parser().parse_args(["evaluate", "--config", str(place / "alias.yaml")]).evaluate
    assert parsed.measures == parsed.layer == ["average_drop"]


def test_a_long_value_is_cut_in_the_message(capsys):
    assert main(["evaluate", "--limit", "x" * 100_000]) == 2
    assert len(capsys.readouterr().err.splitlines()[-1]) < 600
