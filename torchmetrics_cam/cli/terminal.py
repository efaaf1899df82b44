"""The results of a run on the terminal: tables, the verdict, and notes."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from torchmetrics_cam.report.text import describe_compilation, describe_mosaic, printable
from torchmetrics_cam.report.verdict import findings, verdict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_COUNTS = {"n": "N", "excluded": "Excluded", "degenerate": "Constant"}
_COUNTS_EXPLAINED = (
    "N: evaluated images. Excluded: images with a pixel, a score or a map that is not finite. Constant:"
    " evaluated images with a constant map."
)
_TITLE_WIDTH = 11
# Number of unreadable files that are listed.
_UNREADABLE_LISTED = 5


def print_results(results: Mapping[str, Any], report: Path) -> None:
    """Print the values of all methods, the verdict and what a reader must know, and where the report is.

    Args:
        results: the content of ``results.json``.
        report: the file of the report.
    """
    comparison = results["comparison"]
    for under in (comparison, *comparison["further"]):
        print(f"Protocol: {under['protocol']['name']}")
        print_comparison(comparison["measures"], under["rows"])
    for sentence in (*verdict(results), *findings(results)):
        print(printable(sentence))
    for sentence in _notes(results):
        print(printable(sentence))
    # In one line, so that the path can be copied.
    print(printable(f"Report: {report}"))


def print_comparison(measures: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the values of all methods, in several tables if the measures do not fit side by side.

    Args:
        measures: ``"name"``, ``"title"`` and ``"higher_is_better"`` of each.
        rows: the row of each method, as in ``results.json``.
    """
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for table in _tables(console, measures, rows):
        console.print(table)
    console.print(f"{_COUNTS_EXPLAINED}\n")


def _tables(
    console: "Console", measures: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> Iterator["Table"]:
    """Return tables with as many measures as fit into the width of the terminal, and at least one."""
    # Otherwise a table measures at most the width of the terminal, because it can be cut.
    unlimited = console.options.update(max_width=1_000_000)
    start = 0
    while start < len(measures):
        end = len(measures)
        table = _table(measures[start:end], rows)
        while end - start > 1 and console.measure(table, options=unlimited).maximum > console.width:
            end -= 1
            table = _table(measures[start:end], rows)
        yield table
        start = end


def _table(measures: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("Method", vertical="bottom", overflow="fold")
    for measure in measures:
        title = fill(measure["title"], _TITLE_WIDTH, break_long_words=False)
        # In words: arrows cannot be printed on a terminal or pipe that is not UTF-8.
        header = f"{title}\n({'higher' if measure['higher_is_better'] else 'lower'}\nis better)"
        table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
    for header in _COUNTS.values():
        table.add_column(header, justify="right", vertical="bottom", no_wrap=True)
    for heading, is_control in (("CAM methods", False), ("Controls", True)):
        if any(row["control"] == is_control for row in rows):
            table.add_section()
            table.add_row(heading)
        for row in rows:
            if row["control"] == is_control:
                name = row["method"].capitalize() if is_control else printable(row["method"])
                values = (row[measure["name"]]["value"] for measure in measures)
                cells = ["-" if value is None else f"{value:.3f}" for value in values]
                table.add_row(f"  {name}", *cells, *(str(row[count]) for count in _COUNTS))
    return table


def _notes(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield the limits of the values, the images that were left out, and how the network was used."""
    comparison, data, model = results["comparison"], results["data"], results["model"]
    yield from results["protocol_text"].split("\n")
    if comparison["logits_fn"]:
        yield f"Scores by logits_fn={comparison['logits_fn']}, not the protocol's."
    yield from comparison["notes"]
    yield from (one["description"] for one in comparison["rankings"])
    unreadable = data["unreadable"]
    for row in unreadable[:_UNREADABLE_LISTED]:
        yield f"Not read: {row['file']}: {row['reason']}"
    if len(unreadable) > _UNREADABLE_LISTED:
        more = len(unreadable) - _UNREADABLE_LISTED
        yield f"Not read: {more} more, {len(unreadable)} of {data['images']}; see the report"
    for row in data["pixel_ranges"]:
        yield f"Pixel values of {row['images']} of {data['images']} images: {row['range']}"
    for group in data["unused"]:
        yield f"Not used: {len(group['files'])} in the folder, because {group['reason']}; see the report"
    if data["labels"] is not None:
        yield f"Labels: {data['labels']}"
    if data.get("predictions"):
        yield f"Predictions: {data['predictions']}"
    if data.get("groups") is not None:
        yield f"Groups: {data['groups']}"
    if data["mosaic"]:
        yield f"Mosaic: {describe_mosaic(data['mosaic'])}"
    yield f"Layer {', '.join(model['layer'])}: {model['layer_reason']}"
    yield f"Transform: {model['transform']}"
    compilation = results.get("compilation")
    # A failure is one of the notes of the table.
    if compilation and compilation["failure"] is None:
        yield f"Compilation: {describe_compilation(compilation)}"
