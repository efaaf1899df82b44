"""The command ``torchmetrics-cam``."""

import argparse
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import torch

import torchmetrics_cam
from torchmetrics_cam import demo

if TYPE_CHECKING:
    from rich.table import Table

# Words and no arrows: a terminal or a pipe that is not UTF-8 could not print them. Broken by hand, so that no
# word is cut at 80 columns.
_HEADERS = (
    "Average\ndrop\n(lower\nis better)",
    "Increase in\nconfidence\n(higher\nis better)",
    "Average\ngain\n(higher\nis better)",
    "N",
    "Excluded",
    "Degenerate",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; None takes those of the process.

    Returns:
        The exit code: 0, or 1 where something is missing or cannot be written, which is said on stderr.
    """
    parser = argparse.ArgumentParser(
        prog="torchmetrics-cam", description="Measure whether class activation maps are faithful."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {torchmetrics_cam.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "demo", help="compare five CAM methods and three controls on a real network and eleven photos"
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("torchmetrics-cam-demo"),
        metavar="DIR",
        help="where the picture goes, made if it is not there (default: ./%(default)s)",
    )
    arguments = parser.parse_args(argv)
    try:
        demo.check_packages()
        _demo(arguments.out)
    except (ModuleNotFoundError, _CannotWriteError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


class _CannotWriteError(Exception):
    """The output directory is of no use; the message says why."""


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _CannotWriteError(
            f"--out {out} cannot be written: {error.strerror}; choose another directory"
        ) from error


def _demo(out: Path) -> None:
    """Evaluate, draw the picture, print the table and how to read it."""
    from rich.console import Console
    from rich.progress import Progress

    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        # Before the run, so that nobody waits for a picture that has no place.
        TemporaryFile(dir=out).close()

    with Progress(console=Console(stderr=True), transient=True) as progress:
        steps = progress.add_task("loading", total=None)
        model = demo.load_model()
        photos = demo.load_photos()
        methods, controls = demo.methods(model), demo.controls(model)
        images = torch.stack(list(photos.values()))
        progress.update(steps, total=len(methods) + len(controls) + 1)
        results = {}
        for name, source in {**methods, **controls}.items():
            progress.update(steps, description=name)
            results[name] = demo.evaluate(source, images)
            progress.advance(steps)
        progress.update(steps, description="picture")
        pictured = torch.stack([photos[name] for name in demo.PICTURED])
        figure = demo.picture({**methods, "Random map\n(control)": controls["Random map"]}, pictured)
        with _writing(out):
            figure.savefig(out / "explanations.png")

    console = Console(highlight=False, markup=False)
    console.print(_table(results, controls=controls))
    for paragraph in (
        "Fractions from 0 to 1. N: photos counted. Excluded: photos with a score or a map that is not finite."
        " Degenerate: counted photos with a constant map.",
        f"EfficientNet-Lite0, layer {demo.TARGET_LAYER}. Protocol {demo.PROTOCOL}",
        "Eleven photos are a demonstration, not a sample: these numbers say nothing about the methods in"
        " general.",
        "The controls look at no network and show what a number is worth: the uniform map hides nothing,"
        " explains nothing, and has a perfect Average Drop.",
    ):
        console.print(f"{paragraph}\n")
    # Not wrapped: people copy it.
    console.print(f"Picture: {out / 'explanations.png'}", soft_wrap=True)


def _table(results: Mapping[str, demo.Result], *, controls: Container[str]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("Method", vertical="bottom")
    for header in _HEADERS:
        table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
    for heading, is_control in (("CAM methods", False), ("Controls", True)):
        table.add_section()
        table.add_row(heading)
        for name, result in results.items():
            if (name in controls) == is_control:
                table.add_row(f"  {name}", *_cells(result))
    return table


def _cells(result: demo.Result) -> list[str]:
    fractions = (result.average_drop, result.increase_in_confidence, result.average_gain)
    counts = (result.total, result.nan_count, result.degenerate_count)
    return [*(f"{fraction:.3f}" for fraction in fractions), *map(str, counts)]
