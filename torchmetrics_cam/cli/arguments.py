"""The options of the command, on the command line or in a YAML file."""

import math
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torchmetrics_cam.__about__ import __version__
from torchmetrics_cam.cli.errors import UsageError, import_library, usage_error
from torchmetrics_cam.cli.methods import METHODS
from torchmetrics_cam.cli.models import MODEL_NAMES
from torchmetrics_cam.cli.names import nearest
from torchmetrics_cam.metrics.measures import DEFAULT_MEASURES, MEASURES
from torchmetrics_cam.protocol import BASELINES, PRESETS, EvaluationProtocol

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

PROG = "torchmetrics-cam"
# Measures that compare maps with objects need --mosaic: a folder of images has no annotation.
_LOCALIZATION = [name for name, measure in MEASURES.items() if measure.needs_objects]
PROTOCOL_FIELDS = [field.name for field in fields(EvaluationProtocol) if field.name != "name"]

# One name, names separated by commas, or a list in a YAML file; the names of layers may be numbers.
Names = str | int | list[str | int]

_MOST_VALUES = 10_000
_LONGEST_MESSAGE = 500
_PARSER_MODE = "yaml of limited size"
_EXIT_CODES = (
    "Exit codes: 0 success; 1 an error, or a package is missing; 2 the arguments or the data cannot be used;"
    " 3 a gate fails; 130 interrupted."
)

# The parser's own messages name types and conditions of Python.
_PLAIN_MESSAGES = (
    (r'^Parser key "(.+?)":', r"--\1:"),
    (r"Expected a typing\.Literal\[(.+)\]\. Got value: (.+)", r"\2 is not one of \1"),
    (r"Expected a <class 'list'>\. Got value: (.+)", r"\1 is not a list"),
    (r"^--fail_if: (.+) is not a list$", r'--fail_if: \1 is not a list; write fail_if: ["\1"]'),
    (r"Expected a <class '(\w+)'>\. Got value: (.+)", r"\2 is not of type \1"),
    (r"Not of type \w+: invalid literal for int\(\) with base 10: '(.+)'", r"\1 is not of type int"),
    (r"Not of type \w+: (.+) does not conform to restriction v>(=?)(.+)", r"\1 is not >\2 \3"),
)


def parser() -> "ArgumentParser":
    """Return the parser of the command.

    Raises:
        ModuleNotFoundError: if jsonargparse is not installed; the message contains the pip command.
    """
    import_library("jsonargparse", "the command", "torchmetrics-cam[cli]")
    yaml = import_library("yaml", "the command", "torchmetrics-cam[cli]")
    from jsonargparse import ArgumentParser, set_loader

    set_loader(_PARSER_MODE, _load_yaml, exceptions=(yaml.YAMLError,))
    command = ArgumentParser(
        prog=PROG,
        description="Measure whether class activation maps are faithful.",
        epilog=_EXIT_CODES,
        exit_on_error=False,
        parser_mode=_PARSER_MODE,
    )
    command.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subcommands = command.add_subcommands(required=True, dest="command")
    subcommands.add_subcommand(
        "evaluate", _evaluate(), help="evaluate CAM methods on your network and images"
    )
    subcommands.add_subcommand("compare", _compare(), help="compare the results of two runs")
    subcommands.add_subcommand(
        "demo", _demo(), help="compare five methods on a real network and eleven photos"
    )
    listing = "list the presets of --protocol, and the evaluations of papers"
    subcommands.add_subcommand("protocols", _subcommand(f"{listing.capitalize()}."), help=listing)
    return command


def parse(command_line: list[str]) -> "Namespace":
    """Parse the command line; options may be spelled with dashes or underscores.

    Raises:
        UsageError: if the parser refuses it; the usage is printed to stderr first.
    """
    command = parser()
    from jsonargparse import ArgumentError

    try:
        return command.parse_args([_with_underscores(word) for word in command_line])
    except ArgumentError as error:
        command.print_usage(sys.stderr)
        message = " ".join(str(error).split()).rstrip(".")
        for pattern, replacement in _PLAIN_MESSAGES:
            message = re.sub(pattern, replacement, message)
        if len(message) > _LONGEST_MESSAGE:
            message = f"{message[:_LONGEST_MESSAGE]}…"
        raise UsageError(f"{message}; see {PROG} --help") from error


def _load_yaml(text: str) -> Any:
    """Load a YAML text of limited size.

    The parser copies values that aliases share. A few lines can have so many that this takes hours.

    Raises:
        UsageError: if it has too many values.
    """
    from jsonargparse import get_loader

    value = get_loader("yaml")(text)
    if _count_values(value, {}) > _MOST_VALUES:
        raise UsageError(
            f"the YAML has more than {_MOST_VALUES:,} values after its aliases are replaced; write the"
            " options without aliases"
        )
    return value


def _count_values(value: Any, counted: dict[int, float]) -> float:
    """Return the number of values in nested lists and dicts; infinity if one contains itself.

    Args:
        value: a value that YAML can have.
        counted: the numbers of the lists and dicts that were counted before, by identity.
    """
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in counted:
        counted[id(value)] = math.inf
        parts = value.values() if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_count_values(part, counted) for part in parts)
    return counted[id(value)]


def _with_underscores(word: str) -> str:
    option, equals, value = word.partition("=")
    if not word.startswith("--"):
        return word
    name = option[2:].replace("-", "_")
    # The parser's notation for an option that adds to a list.
    return f"--{name}{'+' if name == 'fail_if' else ''}{equals}{value}"


def _subcommand(description: str) -> "ArgumentParser":
    from jsonargparse import ArgumentParser

    subcommand = ArgumentParser(
        description=description, epilog=_EXIT_CODES, exit_on_error=False, parser_mode=_PARSER_MODE
    )
    subcommand.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    return subcommand


def _evaluate() -> "ArgumentParser":
    from jsonargparse.typing import NonNegativeInt, PositiveInt

    subcommand = _subcommand(
        "Evaluate CAM methods on a network and images, with control maps and confidence intervals, and write"
        " results.json, results.csv, samples.csv and report.html. Call it again to resume an interrupted run."
    )
    add = subcommand.add_argument
    add("--config", action="config", help="a YAML file with any of these options")
    add("--model", type=str, help=f"the network: {MODEL_NAMES}")
    add("--checkpoint", type=str, default=None, help="a file with weights, or `random`; default: pretrained")
    surrogate = "a network that scores clean and masked images in place of --model, given as that is"
    add("--surrogate", type=str, default=None, help=surrogate)
    add("--surrogate_checkpoint", type=str, default=None, help="as --checkpoint, for the surrogate")
    add("--data", type=str, help="a folder of images, a saved dataset, or package.module:factory")
    add("--methods", type=Names, default="grad_cam,layer_cam", help=f"CAM methods: {', '.join(METHODS)}")
    add("--layer", type=Names, default="auto", help="target layer, several separated by commas, or `auto`")
    measures = ",".join(DEFAULT_MEASURES)
    add("--measures", type=Names, default=measures, help=f"measures: {', '.join(MEASURES)}")
    explain = "explain the `top` class of the model (default), or the `label` of each image (with --mosaic)"
    add("--explain", type=Literal["top", "label"], default=None, help=explain)
    mosaic = (
        "explain the label of each image in a mosaic of N x N images of different classes. Its tile is the"
        f" object with which measures of localization compare the map: --measures {','.join(_LOCALIZATION)}"
    )
    add("--mosaic", type=int, default=None, metavar="N", help=mosaic)
    group = (
        "groups of images whose values are compared: a CSV file with a header and two columns, the name of"
        " the image in the folder and its group; a column of a saved dataset; or `correct`, which separates"
        " right and wrong predictions, and is done without this option where the classes are known"
    )
    add("--group", type=str, default=None, metavar="CSV|COLUMN|correct", help=group)
    add("--limit", type=int, default=None, help="number of images, a random sample that is always the same")
    add("--image_size", type=int, default=None, help="height and width of the images in pixels")
    add("--batch_size", type=PositiveInt, default=32, help="images per batch on each device")
    compiled = "score the perturbed images by a compiled copy of the network"
    add("--compile", action="store_true", help=compiled)
    add("--halve_on_oom", action="store_true", help="halve the batch size when memory runs out")
    add("--num_workers", type=NonNegativeInt, default=0, help="processes that load images")
    add("--num_classes", type=int, default=None, help="number of classes, needed for --average macro")
    average = "average over images (`micro`) or over classes (`macro`)"
    add("--average", type=Literal["micro", "macro"], default="micro", help=average)
    add("--accelerator", type=str, default="auto", help="as in lightning.Trainer")
    add("--devices", type=int | str | list[int], default="auto", help="as in lightning.Trainer")
    add("--strategy", type=str, default="auto", help="as in lightning.Trainer, for example ddp")
    add("--num_nodes", type=int, default=1, help="as in lightning.Trainer")
    add("--precision", type=str | int, default="32-true", help="as in lightning.Trainer")
    add("--seed", type=int, default=0, help="seed of random weights and of methods that draw random numbers")
    gate = (
        "end with exit code 3 if this is true of a value: `average_drop > 0.4` for every method except"
        " controls, `Grad-CAM/average_drop_lower > 0.4` for the lower bound of one. The operators are > >= <"
        " <=. A value that is not defined fails too. Give the option several times, or a list in YAML"
    )
    add("--fail_if", type=list[str], default=[], metavar="GATE", help=gate)
    pictures = "number of best and of worst explained images in the report"
    add("--pictures", type=NonNegativeInt, default=4, help=pictures)
    add("--save_every", type=PositiveInt, default=20, help="batches between two saves of the partial result")
    add("--fresh", action="store_true", help="discard the partial result of an interrupted run")
    unchanged = "resume although it cannot be checked whether a function is unchanged"
    add("--assume_unchanged", action="store_true", help=unchanged)
    add("--out", type=str, default="torchmetrics-cam-results", help="the output folder")
    presets = (
        f"presets: {', '.join(PRESETS)}; the first is the main one, and others show whether the ranking"
        " depends on the protocol. A preset can have fields of its own, as in paper,paper:baseline=blur; the"
        " options below change the fields of all others"
    )
    add("--protocol", type=Names, default="paper", help=presets)
    subcommand.add_class_arguments(EvaluationProtocol, skip={"name", *BASELINES})
    for name, pixels in zip(BASELINES, ("masked", "deleted", "not yet inserted"), strict=True):
        # Narrower than the field: a tensor or a function cannot be written on a command line.
        explanation = f"value of {pixels} pixels: a number, a list of one per channel, `mean` or `blur`"
        add(f"--{name}", type=float | tuple[float, ...] | str, help=explanation)
    # A field that is not given keeps the value of the preset.
    subcommand.set_defaults(dict.fromkeys(PROTOCOL_FIELDS))
    return subcommand


def _compare() -> "ArgumentParser":
    subcommand = _subcommand(
        "Compare the results of two runs, with confidence intervals of the paired differences over the images"
        " that both have. A is the first run, for example of the released network, and B the second, for"
        " example of a new one. Each samples.csv must be in the folder of its results.json."
    )
    subcommand.add_argument("first", type=Path, help="results.json of run A")
    subcommand.add_argument("second", type=Path, help="results.json of run B, which is compared with A")
    worse = (
        "end with exit code 3 if B is significantly worse than A in a measure of a method that is no control"
        " (at the 5 % level, adjusted for the number of differences)"
    )
    subcommand.add_argument("--fail_if_worse", action="store_true", help=worse)
    return subcommand


def _demo() -> "ArgumentParser":
    subcommand = _subcommand(
        "Compare five CAM methods and three controls on a real network and eleven photos."
    )
    out = "torchmetrics-cam-demo"
    subcommand.add_argument("--out", type=str, default=out, help="the output folder")
    return subcommand


def protocols_of(arguments: Any) -> list[EvaluationProtocol]:
    """Return the presets of ``--protocol`` with the fields that were given.

    Raises:
        UsageError: if there is no such preset or field, or a field does not accept its value.
    """
    changes = {name: arguments[name] for name in PROTOCOL_FIELDS if arguments[name] is not None}
    given = arguments.protocol
    # A comma within brackets is part of a value.
    entries = given if isinstance(given, list) else re.split(r",(?![^\[]*\])", str(given))
    entries = [str(entry).strip() for entry in entries if str(entry).strip()]
    if not entries:
        raise UsageError("--protocol is empty; give at least one name")
    repeated = [entry for entry in entries if entries.count(entry) > 1]
    if repeated:
        raise UsageError(f"--protocol has {repeated[0]} twice; give each protocol once")
    return [_protocol(entry, changes) for entry in entries]


def _protocol(entry: str, changes: dict[str, Any]) -> EvaluationProtocol:
    """Return a preset with some fields changed.

    Args:
        entry: the name of the preset and fields of this protocol alone, as ``"paper:baseline=blur"``.
        changes: the fields of all protocols, except for those that the entry changes.
    """
    preset, *settings = entry.split(":")
    own: dict[str, Any] = {}
    for setting in settings:
        field, equals, value = setting.partition("=")
        field = field.replace("-", "_")
        if not equals or field not in PROTOCOL_FIELDS or field in own:
            raise UsageError(
                f"--protocol {entry}: {setting!r} is not a field and its value, each field once, as in"
                f" paper:baseline=blur; did you mean {nearest(field, PROTOCOL_FIELDS, count=1)}?"
            )
        with usage_error(f"--protocol {entry}: {value!r} is not a value in YAML"):
            parsed = _load_yaml(value)
        own[field] = tuple(parsed) if isinstance(parsed, list) else parsed
    try:
        protocol = EvaluationProtocol.preset(preset)
        if own:
            name = f"modified {entry}" if changes else entry
            return protocol.replace(**{**changes, **own, "name": name})
        return protocol.replace(**changes) if changes else protocol
    except (ValueError, TypeError) as error:
        raise UsageError(f"--protocol {entry}: {error}") from error


def names_in(value: Names, option: str) -> list[str]:
    """Return the names in the value of an option.

    Raises:
        UsageError: if there is none.
    """
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UsageError(f"{option} is empty; give at least one name")
    return names
