"""The HTML report and the CSV table of an evaluation."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmetrics_cam.__about__ import __version__
from torchmetrics_cam.metrics.comparison.groups import FEWEST_IMAGES
from torchmetrics_cam.metrics.comparison.statistics import interval_text
from torchmetrics_cam.protocol import reads
from torchmetrics_cam.report import figures
from torchmetrics_cam.report.citations import bibtex
from torchmetrics_cam.report.gallery import ExplainedImage
from torchmetrics_cam.report.text import (
    describe_compilation,
    describe_mosaic,
    describe_protocol,
    printable,
)
from torchmetrics_cam.report.verdict import findings, title_in_sentence, verdict

# The name under which the files state which program has written them.
GENERATOR = "torchmetrics-cam"
_COUNTS = ("n", "excluded", "degenerate")
CSV_COLUMNS = ("method", "control", "measure", "value", "lower", "upper", "rank", *_COUNTS, "protocol")


def write_report(
    results: Mapping[str, Any],
    path: str | Path,
    *,
    gallery: Mapping[str, Sequence[ExplainedImage]] | None = None,
) -> None:
    """Write an HTML page that loads no other file and needs no network.

    Args:
        results: the content of ``results.json``.
        path: the file to write.
        gallery: explained images in colors, under ``"best"`` and under ``"worst"``; None for no gallery.

    Raises:
        ModuleNotFoundError: if jinja2 or matplotlib is not installed.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'write_report needs {error.name}: pip install "torchmetrics-cam[cli]"', name=error.name
        ) from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("torchmetrics_cam.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_without_control_characters,
    )
    environment.filters |= {
        "compilation": describe_compilation,
        "mosaic": describe_mosaic,
        "interval": interval_text,
        "number": _number,
        "setting": _setting,
        "photo": figures.photo,
        "overlay": figures.overlay,
        "title_in_sentence": title_in_sentence,
    }
    page = environment.get_template("template.html").render(**_content(results, gallery or {}))
    Path(path).write_text(page, encoding="utf-8", errors="backslashreplace")


def write_csv(results: Mapping[str, Any], path: str | Path) -> None:
    """Write one row for each protocol, method and measure; unknown values are empty.

    Args:
        results: the content of ``results.json``.
        path: the file to write.
    """
    comparison = results["comparison"]
    with Path(path).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, CSV_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for measure in comparison["measures"]:
            for under in (comparison, *comparison.get("further", [])):
                for row in under["rows"]:
                    cells = {**row, **row[measure["name"]], "measure": measure["name"]}
                    texts = {"method": row["method"], "protocol": under["protocol"]["name"]}
                    writer.writerow(cells | {name: cell_text(text) for name, text in texts.items()})


def cell_text(text: str) -> str:
    """Return a text for a cell of a CSV table: printable, and not a formula of a spreadsheet."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _content(results: Mapping[str, Any], gallery: Mapping[str, Sequence[ExplainedImage]]) -> dict[str, Any]:
    """Return the variables of the template."""
    comparison = results["comparison"]
    measures, rows = comparison["measures"], comparison["rows"]
    titles = {measure["name"]: measure["title"] for measure in measures}
    ordered = {name: _ordered(rows, name) for name in titles}
    agreement = comparison.get("agreement") or {}
    curves = results.get("curves") or {}
    controls = {row["method"] for row in rows if row["control"]}
    gates, groupings = results.get("gates") or [], comparison.get("groups") or []
    mosaic = results["data"].get("mosaic")
    protocol = {name: value for name, value in comparison["protocol"].items() if reads(titles, name)}
    return {
        "r": results,
        "comparison": comparison,
        "titles": titles,
        "verdict": verdict(results),
        "findings": findings(results),
        "gates": gates,
        "failed": sum(bool(gate["violations"]) for gate in gates),
        "groupings": groupings,
        "has_small_groups": any(n < FEWEST_IMAGES for grouping in groupings for n in grouping["n"]),
        "ordered": ordered,
        "intervals": {one["name"]: figures.interval_svg(one, ordered[one["name"]]) for one in measures},
        "agreement": figures.agreement_svg(agreement, titles) if len(agreement) > 2 else None,
        "rankings": comparison.get("rankings") or [],
        "rankings_figure": figures.rankings_svg(comparison["rankings"], titles)
        if comparison.get("rankings")
        else None,
        "by_protocol": [comparison, *comparison.get("further", [])],
        "curves": [
            figures.curves_svg(curves["fractions"], curves[name], name.capitalize(), controls)
            for name in ("deletion", "insertion")
            if curves.get(name)
        ],
        "classes": results.get("per_class") or [],
        "gallery": {kind: images for kind, images in gallery.items() if images},
        "mosaic": mosaic,
        "protocol": describe_protocol(protocol),
        "generator": f"{GENERATOR} {__version__}",
        "bibtex": bibtex(
            list(titles),
            (results.get("versions") or {}).get("torchmetrics-cam"),
            has_mosaics=mosaic is not None,
        ),
    }


def _without_control_characters(value: Any) -> Any:
    """Return a value of the page with control characters escaped; the lines of a text stay lines."""
    return "\n".join(map(printable, value.split("\n"))) if type(value) is str else value


def _ordered(rows: Sequence[Mapping[str, Any]], measure: str) -> list[Mapping[str, Any]]:
    """Return the rows ranked by a measure, those without a value last."""
    return sorted(rows, key=lambda row: row[measure]["rank"] or len(rows) + 1)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
