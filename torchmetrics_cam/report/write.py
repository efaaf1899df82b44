"""The files that an evaluation writes for people: ``report.html`` and ``results.csv``."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchmetrics_cam.protocol import reads
from torchmetrics_cam.report.citations import bibtex
from torchmetrics_cam.report.picture import Picture
from torchmetrics_cam.report.text import protocol_in_words, verdict

_COLUMNS = (
    "method",
    "control",
    "measure",
    "value",
    "lower",
    "upper",
    "rank",
    "n",
    "excluded",
    "degenerate",
)


def write_report(results: Mapping[str, Any], path: str | Path, *, gallery: Sequence[Picture] = ()) -> None:
    """Write one page of HTML that needs no other file and no network.

    Args:
        results: what ``results.json`` holds.
        path: the file to write.
        gallery: images that were explained best and worst.

    Raises:
        ModuleNotFoundError: if jinja2 or matplotlib is missing.
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
    )
    environment.filters["number"] = _number
    environment.filters["setting"] = _setting
    page = environment.get_template("template.html").render(**_content(results, gallery))
    Path(path).write_text(page, encoding="utf-8", errors="backslashreplace")


def write_csv(results: Mapping[str, Any], path: str | Path) -> None:
    """Write a row a method and measure; what is not known is left empty.

    Args:
        results: what ``results.json`` holds.
        path: the file to write.
    """
    comparison = results["comparison"]
    with Path(path).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, _COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for measure in comparison["measures"]:
            for row in comparison["rows"]:
                writer.writerow({**row, **row[measure["name"]], "measure": measure["name"]})


def _content(results: Mapping[str, Any], gallery: Sequence[Picture]) -> dict[str, Any]:
    from markupsafe import Markup

    from torchmetrics_cam.report import figures

    comparison = results["comparison"]
    measures, rows = comparison["measures"], comparison["rows"]
    titles = {measure["name"]: measure["title"] for measure in measures}
    agreement = comparison.get("agreement") or {}
    curves = results.get("curves") or {}
    controls = {row["method"] for row in rows if row["control"]}
    # The figures escape what they show; all else is escaped by the template.
    drawn_curves = [
        Markup(figures.curves_svg(curves["fractions"], curves[name], name.capitalize(), controls))
        for name in ("deletion", "insertion")
        if curves.get(name)
    ]
    protocol = {name: value for name, value in comparison["protocol"].items() if reads(titles, name)}
    return {
        "r": results,
        "comparison": comparison,
        "titles": titles,
        "verdict": verdict(comparison),
        "ordered": {one["name"]: _ordered(rows, one["name"]) for one in measures},
        "intervals": {
            one["name"]: Markup(figures.interval_svg(one, _ordered(rows, one["name"]))) for one in measures
        },
        "agreement": Markup(figures.agreement_svg(agreement, titles)) if len(agreement) > 2 else None,
        "curves": drawn_curves,
        "classes": results.get("per_class") or [],
        "gallery": [
            (kind, _shown(gallery, kind))
            for kind in ("best", "worst")
            if any(one.kind == kind for one in gallery)
        ],
        "protocol": protocol_in_words(protocol),
        "bibtex": bibtex(list(titles), (results.get("versions") or {}).get("torchmetrics-cam")),
    }


def _ordered(rows: Sequence[Mapping[str, Any]], measure: str) -> list[Mapping[str, Any]]:
    """The best of a measure first, and last what has no value."""
    return sorted(rows, key=lambda row: row[measure]["rank"] or len(rows) + 1)


def _shown(gallery: Sequence[Picture], kind: str) -> list[dict[str, Any]]:
    from torchmetrics_cam.report.figures import overlay, photo

    return [
        {
            "picture": one,
            "photo": photo(one.image),
            "rows": [
                {
                    "method": method,
                    "overlay": overlay(one.image, mask),
                    "masked": photo(masked),
                    "score": score,
                    "drop": drop,
                }
                for method, mask, masked, score, drop in one.rows
            ],
        }
        for one in gallery
        if one.kind == kind
    ]


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
