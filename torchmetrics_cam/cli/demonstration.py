"""``torchmetrics-cam demo``: a real network, eleven photos, a table, a picture and the report."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from torchmetrics_cam.cli import demo
from torchmetrics_cam.cli.folder import prepare_folder, write_files, written_to
from torchmetrics_cam.cli.results import circumstances, results_of
from torchmetrics_cam.report.gallery import gallery

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
_MEASURES = ("average_drop", "increase_in_confidence", "average_gain")
_PICTURES = 4


def run(arguments: Any) -> None:
    """Evaluate, draw the picture, print the table and how to read it, and write the report.

    Raises:
        UsageError: if the output folder cannot be written.
        ModuleNotFoundError: if packages are missing; all of them are named.
    """
    demo.check_packages()
    from rich.console import Console
    from rich.progress import Progress

    out: Path = arguments.out
    started = time.perf_counter()
    prepare_folder(out)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        steps = progress.add_task("loading", total=4)
        model = demo.load_model()
        photos = demo.load_photos()
        comparison = demo.comparison(model)
        images = torch.stack(list(photos.values()))
        progress.update(steps, description="evaluating", advance=1)
        comparison.update(images)
        progress.update(steps, description="picture", advance=1)
        sources = {**demo.methods(model), "Random map\n(control)": comparison.sources["random map"]}
        figure = demo.picture(sources, torch.stack([photos[name] for name in demo.PICTURED]))
        with written_to(out):
            figure.savefig(out / "explanations.png")
        progress.update(steps, description="report", advance=1)
        names = list(photos)
        results = results_of(comparison, demo.class_names())
        results |= circumstances(processes=1)
        results |= _about(model, names, out, round(time.perf_counter() - started, 3))
        pictures = gallery(
            comparison,
            image_of=lambda index: images[index],
            file_of=lambda index: names[index],
            label_of=lambda number: demo.class_names()[number],
            to_colors=demo.colors,
            count=_PICTURES,
        )
        write_files(comparison, results, pictures, out, lambda index: names[index])

    protocol = demo.PROTOCOL.caption(measure.name for measure in comparison.measures)
    console = Console(highlight=False, markup=False)
    console.print(_table(results["comparison"]["rows"]))
    for paragraph in (
        "Fractions from 0 to 1. N: photos counted. Excluded: photos with a score or a map that is not finite."
        " Degenerate: counted photos with a constant map.",
        f"EfficientNet-Lite0, layer {demo.TARGET_LAYER}. Protocol {protocol}",
        "Eleven photos are a demonstration, not a sample: these numbers say nothing about the methods in"
        " general.",
        "The controls look at no network and show what a number is worth: the uniform map hides nothing,"
        " explains nothing, and has a perfect Average Drop.",
    ):
        console.print(f"{paragraph}\n")
    # Not wrapped: people copy it.
    console.print(f"Picture: {out / 'explanations.png'}\nReport: {out / 'report.html'}", soft_wrap=True)


def _about(model: torch.nn.Module, photos: Sequence[str], out: Path, seconds: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "model": {
            "name": "EfficientNet-Lite0",
            "class": type(model).__name__,
            "checkpoint": "ImageNet-1k",
            "layer": [demo.TARGET_LAYER],
            "layer_reason": "the network's head takes in the output of its last block whole",
        },
        "data": {
            "name": "photos of scikit-image and scikit-learn",
            "images": len(photos),
            "unreadable": [],
            "class_names": demo.class_names(),
            "explained": "top class",
        },
        "seed": 0,
        "settings": {"out": str(out)},
    }


def _table(rows: Sequence[Mapping[str, Any]]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("Method", vertical="bottom")
    for header in _HEADERS:
        table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
    for heading, is_control in (("CAM methods", False), ("Controls", True)):
        table.add_section()
        table.add_row(heading)
        for row in rows:
            if row["control"] == is_control:
                name = row["method"].capitalize() if is_control else row["method"]
                table.add_row(f"  {name}", *_cells(row))
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    values = (row[measure]["value"] for measure in _MEASURES)
    counts = (row["n"], row["excluded"], row["degenerate"])
    return [*("-" if value is None else f"{value:.3f}" for value in values), *map(str, counts)]
