"""What can be asked of the command, on the command line or in a YAML file."""

import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchmetrics_cam.__about__ import __version__
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.methods import METHODS
from torchmetrics_cam.cli.models import FORMS
from torchmetrics_cam.metrics.measures import DEFAULT_MEASURES, MEASURES
from torchmetrics_cam.protocol import BASELINES, PRESETS, EvaluationProtocol

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

# Those that compare maps with objects need masks, which no folder of images has.
ASKED = [name for name, measure in MEASURES.items() if not measure.needs_objects]
PROTOCOL_FIELDS = [field.name for field in fields(EvaluationProtocol) if field.name != "name"]
PROG = "torchmetrics-cam"


def parser() -> "ArgumentParser":
    """The parser of the command.

    Raises:
        ModuleNotFoundError: if jsonargparse is missing; the message is the pip line.
    """
    try:
        from jsonargparse import ArgumentParser
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the command needs jsonargparse: pip install "torchmetrics-cam[cli]"', name="jsonargparse"
        ) from error
    whole = ArgumentParser(
        prog=PROG, description="Measure whether class activation maps are faithful.", exit_on_error=False
    )
    whole.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = whole.add_subcommands(required=True, dest="command")
    commands.add_subcommand("evaluate", _evaluate(), help="evaluate CAM methods on your network and images")
    commands.add_subcommand("compare", _compare(), help="set two results side by side")
    commands.add_subcommand("demo", _demo(), help="five methods on a real network and eleven photos")
    return whole


def _new(description: str) -> "ArgumentParser":
    from jsonargparse import ArgumentParser

    made = ArgumentParser(description=description, exit_on_error=False)
    made.add_argument(
        "--traceback", action="store_true", help="show where an error comes from, for those who look for it"
    )
    return made


def _evaluate() -> "ArgumentParser":
    made = _new(
        "Evaluate CAM methods on a network and images, with controls and intervals, and write results.json,"
        " results.csv, samples.csv and report.html. An interrupted run goes on when it is called again."
    )
    add = made.add_argument
    add("--config", action="config", help="a YAML file with any of these options")
    add("--model", type=str, help=f"the network: {FORMS}")
    add("--checkpoint", type=str, default=None, help="a file of weights, or `random`; else pretrained ones")
    add("--data", type=str, help="a folder of images, a saved dataset, or package.module:factory")
    add("--methods", type=_Names(), default="grad_cam,layer_cam", help=f"of {', '.join(METHODS)}")
    add("--layer", type=_Names(), default="auto", help="the target layer, several with commas, or `auto`")
    add("--measures", type=_Names(), default=",".join(DEFAULT_MEASURES), help=f"of {', '.join(ASKED)}")
    add("--explain", type=str, default="top", help="the model's `top` class, or the `label` of the image")
    add("--limit", type=int, default=None, help="so many images, a random sample, always the same")
    add("--image_size", "--image-size", type=int, default=None, help="the side of the images in pixels")
    add("--batch_size", "--batch-size", type=int, default=32, help="images in a batch and device")
    add("--halve_on_oom", "--halve-on-oom", action="store_true", help="halve the batch if memory runs out")
    add("--num_workers", "--num-workers", type=int, default=0, help="processes that load images")
    add("--num_classes", "--num-classes", type=int, default=None, help="needed for the average over classes")
    add("--average", type=str, default="micro", help="over images (`micro`) or classes (`macro`)")
    add("--accelerator", type=str, default="auto", help="as of lightning.Trainer")
    add("--devices", type=_Devices(), default="auto", help="as of lightning.Trainer")
    add("--strategy", type=str, default="auto", help="as of lightning.Trainer, such as ddp")
    add("--num_nodes", "--num-nodes", type=int, default=1, help="as of lightning.Trainer")
    add("--precision", type=_Names(), default="32-true", help="as of lightning.Trainer")
    add("--seed", type=int, default=0, help="of random weights and methods")
    add("--pictures", type=int, default=4, help="how many best and worst explained images the report shows")
    add("--save_every", "--save-every", type=int, default=20, help="keep a partial result after N batches")
    add("--fresh", action="store_true", help="begin anew where a partial result is left")
    add("--out", type=Path, default=Path("torchmetrics-cam-results"), help="the folder of what is written")
    add("--protocol", type=str, default="paper", help=f"a preset, {', '.join(PRESETS)}; its fields follow")
    explained = _explained_fields()
    for name in PROTOCOL_FIELDS:
        flags = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
        add(*flags, type=Any, default=None, help=f"of the protocol: {explained.get(name, name)}")
    return made


def _explained_fields() -> dict[str, str]:
    """What the docstring of `EvaluationProtocol` says of each field, without its markup."""
    section = (EvaluationProtocol.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.split(r"^ {8}(\w+): ", section, flags=re.MULTILINE)[1:]
    return {
        name: " ".join(text.replace("`", "").split()).rstrip(".").replace("%", "%%")
        for name, text in zip(entries[::2], entries[1::2], strict=True)
    }


class _Names:
    """A type of an option: names with commas between them, or a list in a YAML file, with numbers as well."""

    def __call__(self, value: Any) -> str:
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, str | int) and not isinstance(part, bool) for part in parts):
            raise ValueError(f"give names, with commas between them or as a list, not {value!r}")
        return ",".join(map(str, parts))

    def __repr__(self) -> str:
        return "names"


class _Devices(_Names):
    """The same for devices, of which a list of one is the number of a device, and no number of devices."""

    def __call__(self, value: Any) -> str:
        joined = super().__call__(value)
        return f"{joined}," if isinstance(value, list) and len(value) == 1 else joined


def _compare() -> "ArgumentParser":
    made = _new(
        "Set two results side by side, with paired intervals over the images that both have. The files"
        " samples.csv must lie beside them."
    )
    made.add_argument("first", type=Path, help="results.json of a run")
    made.add_argument("second", type=Path, help="results.json of another run")
    return made


def _demo() -> "ArgumentParser":
    made = _new("Compare five CAM methods and three controls on a real network and eleven photos.")
    made.add_argument(
        "--out",
        type=Path,
        default=Path("torchmetrics-cam-demo"),
        help="where the report and the picture go (default: ./torchmetrics-cam-demo)",
    )
    return made


def protocol_of(arguments: Any) -> EvaluationProtocol:
    """The preset that was asked for, with the fields that were given.

    Raises:
        UsageError: if there is no such preset, or a field does not take the value.
    """
    given = {name: arguments[name] for name in PROTOCOL_FIELDS if arguments[name] is not None}
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = tuple(value)
        if name in BASELINES and isinstance(value, dict):
            raise UsageError(f"--{name} is a mapping; give a number, a list of one a channel, mean or blur")
    try:
        preset = EvaluationProtocol.preset(arguments.protocol)
        return preset.replace(**given) if given else preset
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


def names_in(value: str, option: str) -> list[str]:
    """The names of a list with commas.

    Raises:
        UsageError: if there is none.
    """
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{option} names nothing")
    return names
