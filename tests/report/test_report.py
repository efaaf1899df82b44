"""The report: its content, and its display in a browser."""

import csv
import html
import json
import re
import shutil
import sys

import pytest
import torch
from conftest import find_or_skip

from torchmetrics_cam import CAMComparison
from torchmetrics_cam.cams import GradCAM, LayerCAM
from torchmetrics_cam.protocol import EvaluationProtocol
from torchmetrics_cam.report import ExplainedImage, write_csv, write_report
from torchmetrics_cam.report.text import describe_protocol
from torchmetrics_cam.report.verdict import findings, verdict

EVIL = "<script>alert(1)</script>"


def results_of(comparison: CAMComparison, **changes) -> dict:
    """Return the content of results.json for a comparison, after a round trip through JSON."""
    methods = list(comparison.methods)
    results = {
        "format": 1,
        "date": "2026-11-25T06:00:00+00:00",
        "seconds": 12.3,
        "model": {
            "name": "digits",
            "class": "Sequential",
            "checkpoint": None,
            "layer": ["3"],
            "layer_reason": "given",
            "transform": "mine.transform",
        },
        "data": {
            "name": f"photos/{EVIL}",
            "images": 40,
            "unreadable": [{"file": "a<b>.jpg", "reason": "not an image"}],
            "unused": [{"reason": "no suffix", "files": [f"<{number}>" for number in range(25)]}],
            "pixel_ranges": [{"range": "0 to 4095, as the file states", "images": 7}],
            "class_names": None,
            "explained": "top class",
            "labels": None,
        },
        "comparison": json.loads(comparison.table().to_json()),
        "protocol_text": str(comparison.protocol),
        "methods": methods,
        "win_rates": {},
        "paired": [],
        "per_class": [],
        "curves": {},
        "versions": {"torchmetrics-cam": "9.8.7"},
        "seed": 0,
        "hardware": {"platform": "Linux", "device": "cpu", "processes": 1, "threads": 2},
        "settings": {"model": "digits", "limit": None},
    }
    return results | changes


@pytest.fixture(scope="module")
def comparison(digits) -> CAMComparison:
    model, images, _ = digits
    sources = {"Grad-CAM": GradCAM(model, "3"), "Layer-CAM": LayerCAM(model, "3"), EVIL: GradCAM(model, "1")}
    found = CAMComparison(sources)
    found.update(images[:40])
    return found


@pytest.fixture(scope="module")
def gallery() -> dict[str, list[ExplainedImage]]:
    colors = torch.rand(3, 300, 260, generator=torch.Generator().manual_seed(0))
    mask = torch.linspace(0, 1, 300)[:, None].expand(300, 260)
    explained = ExplainedImage(
        image=colors,
        label=f"cat {EVIL}",
        score=0.95,
        methods=["Grad-CAM", EVIL],
        masks=mask.expand(2, -1, -1),
        masked_images=(colors * mask).expand(2, -1, -1, -1),
        masked_scores=[0.61, 0.61],
        drops=[0.36, 0.36],
        index=3,
    )
    return {"best": [explained], "worst": [explained]}


@pytest.fixture(scope="module")
def full(comparison) -> dict:
    methods = list(comparison.methods)
    differ = comparison.paired_difference(*methods[:2])
    pair = {key: float(getattr(differ, key)) for key in ("mean", "lower", "upper", "p_value")}
    curve = {method: [1.0, 0.5, 0.1 * place] for place, method in enumerate(methods)}
    values = {method: {"average_drop": 0.1 * place} for place, method in enumerate(methods)}
    names = [measure.name for measure in comparison.measures]
    results = results_of(
        comparison,
        paired=[{"measure": "average_drop", "first": methods[0], "second": methods[1], "count": 40, **pair}],
        curves={"fractions": [0, 0.5, 1], "deletion": curve, "insertion": curve},
        per_class=[
            {"class_idx": 10, "name": EVIL, "n": 12, "values": values},
            {"class_idx": 9, "name": None, "n": 28, "values": {}},
        ],
        gates=[
            {"gate": "average_drop > 0.4", "violations": [f"{EVIL} has 0.5."]},
            {"gate": "average_gain < 0", "violations": []},
        ],
    )
    rows = [
        (method, method in comparison.controls, place % 2 == 0, names) for place, method in enumerate(methods)
    ]
    results["comparison"]["groups"] = [grouping_of([*rows[:-1], (*rows[-1][:2], None, names)])]
    return results


@pytest.fixture(scope="module")
def page(full, gallery, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(full, path, gallery=gallery)
    return path


def test_the_sections_are_in_order(page):
    heads = re.findall(r'<h2 id="(\w+)"', page.read_text())
    assert heads == [
        "gates",
        "ranking",
        "groups",
        "agreement",
        "curves",
        "classes",
        "gallery",
        "paired",
        "protocol",
        "run",
        "cite",
    ]


def test_names_are_escaped_everywhere(page):
    text = page.read_text()
    assert EVIL not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert text.count("<script>") == 1  # the page's own


def test_the_page_needs_no_other_file(page):
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page.read_text())
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(http" not in page.read_text()


def test_values_and_environment_are_shown(page, full):
    text = page.read_text()
    for row in full["comparison"]["rows"]:
        assert f"{row['average_drop']['value']:.3f}" in text
    unused = "25, because no suffix: &lt;0&gt;, &lt;1&gt;, "
    assert "<dd>7 of 40 images: 0 to 4095, as the file states</dd>" in text
    assert "&lt;19&gt;, and 5 more, which results.json names" in text
    for words in (
        "0.95 → 0.61",
        "a&lt;b&gt;.jpg: not an image",
        unused,
        "version = {9.8.7}",
        "arXiv:1710.11063",
    ):
        assert words in text


def test_groups_and_gates_are_shown(page):
    text = page.read_text()
    assert "1 of 2 gates failed." in text
    assert "average_drop &gt; 0.4" in text
    assert f"<li>{html.escape(EVIL)} has 0.5.</li>" in text
    assert "bags|&lt;b&gt; (40)" in text
    assert (
        '<td class="n" data-value="0.3">0.300 (0.100 to 0.500)</td><td class="n" data-value="0.012">0.012</td>'
        in text
    )
    # A method without a worst group.
    assert '<td data-value="">-</td>' in text


def test_groups_of_one_image_are_explained(full, page, tmp_path):
    sentence = "A group of one image cannot be the worst."
    assert sentence not in page.read_text()
    (grouping,) = full["comparison"]["groups"]
    write_report(
        full | {"comparison": full["comparison"] | {"groups": [grouping | {"n": [99, 1]}]}},
        tmp_path / "small.html",
    )
    assert sentence in (tmp_path / "small.html").read_text()


def test_the_verdict_comes_before_everything_else(page):
    text = page.read_text()
    assert text.index("has the best Average Drop") < text.index("40 images of photos") < text.index("<h2")


def test_the_page_is_small(page):
    assert page.stat().st_size < 1_000_000


def test_one_method_without_values_makes_a_page(digits, tmp_path):
    model, images, _ = digits
    alone = CAMComparison({"Grad-CAM": GradCAM(model, "3")}, controls=False)
    alone.update(images[:1])
    results = results_of(alone)
    write_report(results, tmp_path / "one.html")
    text = (tmp_path / "one.html").read_text()
    assert "and is the only method with a value." in text
    assert "1 image is few: the coverage of the intervals was measured from 10 images." in text
    assert "There is no control" in text
    assert 'id="agreement"' not in text
    for measure in results["comparison"]["measures"]:
        results["comparison"]["rows"][0][measure["name"]].update(
            value=None, lower=None, upper=None, rank=None
        )
    write_report(results, tmp_path / "none.html")
    assert "No method has a value of Average Drop" in (tmp_path / "none.html").read_text()


def cell(value, rank, indistinct=()):
    return {
        "value": value,
        "lower": value - 0.1,
        "upper": value + 0.1,
        "rank": rank,
        "indistinct_from": indistinct,
    }


def row(method, value, rank, *, control=False, indistinct=(), coincides=(), n=100, degenerate=1):
    return {
        "method": method,
        "control": control,
        "n": n,
        "degenerate": degenerate,
        "coincides_with": coincides,
        "m": cell(value, rank, indistinct),
    }


MEASURE = {"name": "m", "title": "M", "higher_is_better": False}


@pytest.mark.parametrize(
    ("rows", "expected", "unexpected"),
    [
        (
            [row("A", 0.2, 1), row("B", 0.4, 2), row("R", 0.6, 3, control=True)],
            [
                "A has the best M, 0.200 (95 % interval 0.100 to 0.300); it is significantly different from every other",
                "It is significantly better than the control R.",
            ],
            ["Warning", "only", "constant"],
        ),
        (
            [
                row("A", 0.2, 1, degenerate=100),
                row("B", 0.4, 2, degenerate=100),
                row("C", 0.4, 2),
                row("U", 0.9, 4, control=True, degenerate=100),
            ],
            ["Warning: every map of A and B is constant", "choose an earlier layer"],
            ["map of U", "maps of U"],
        ),
        (
            [row("R", 0.1, 1, control=True), row("A", 0.2, 2), row("B", 0.4, 3)],
            ["Warning: the control R is significantly better; so this measure does not show"],
            ["better than the control"],
        ),
        (
            [
                row("A", 0.2, 1, indistinct=("B", "R"), coincides=("C",)),
                row("C", 0.2, 1),
                row("B", 0.3, 3),
                row("R", 0.3, 3, control=True),
            ],
            [
                "; its scores are identical to those of C, and it is not significantly different from B at",
                "Warning: it is not significantly different from the control R; so this measure does not show",
            ],
            ["significantly better"],
        ),
    ],
    ids=["clear", "constant maps", "better control", "not significant"],
)
def test_the_verdict_follows_from_the_values(rows, expected, unexpected):
    results = results_with(rows)
    sentences = verdict(results)
    assert len(sentences) == 3
    # Each is one sentence, so that it can be quoted.
    assert all(re.search(r"[.!] [A-Z]", sentence) is None for sentence in sentences)
    assert (
        sentences[2]
        == "This holds for 100 images of photos and net, layer layer4, under the protocol 'paper'."
    )
    text = " ".join(sentences + findings(results))
    for words in expected:
        assert words in text
    for words in unexpected:
        assert words not in text


def results_with(rows, checkpoint=None, **changes):
    return {
        "model": {"name": "net", "layer": ["layer4"], "checkpoint": checkpoint},
        "data": {"name": "photos"},
        "comparison": {"measures": [MEASURE], "rows": rows, "protocol": {"name": "paper"}} | changes,
    }


def test_the_verdict_says_that_weights_are_random():
    results = results_with([row("A", 0.2, 1)], checkpoint="random")
    assert verdict(results)[2] == (
        "Warning: the weights of net are random, so the values (100 images of photos, layer layer4, the protocol 'paper')"
        " say nothing about a trained network."
    )


def test_the_verdict_without_a_value_has_three_sentences_too():
    empty = row("A", 0.2, 1, n=0)
    empty["m"]["value"] = None
    assert verdict(results_with([empty]))[0] == "No method has a value of M."
    assert len(verdict(results_with([empty]))) == 3


def grouping_of(rows):
    """Return a grouping of two groups, with the worst group and its significance for each method."""
    cells = [
        {"value": value, "lower": value - 0.1, "upper": value + 0.1, "n": n}
        for value, n in ((0.2, 60), (0.5, 40))
    ]
    gap = {
        "group": "bags|<b>",
        "value": 0.5,
        "others": 0.2,
        "gap": 0.3,
        "lower": 0.1,
        "upper": 0.5,
        "p_value": 0.012,
    }
    return {
        "grouping": "group",
        "title": "Group",
        "names": ["tops", "bags|<b>"],
        "n": [60, 40],
        "rows": [
            {
                "method": method,
                "control": control,
                "values": {name: cells for name in measures},
                "worst": {name: None if significant is None else gap | {"significant": significant} for name in measures},
            }
            for method, control, significant, measures in rows
        ],
    }  # fmt: skip


def test_findings_name_the_significantly_worst_groups_of_methods():
    rows = [
        ("A", False, True, ["m"]),
        ("B", False, False, ["m"]),
        ("C", False, True, ["m"]),
        ("R", True, True, ["m"]),
    ]
    several = results_with([], groups=[grouping_of(rows)])
    assert findings(several) == [
        "By group, M is significantly worse than on all other images for bags|<b> (A 0.500 against 0.200; C 0.500 against"
        " 0.200)."
    ]
    none = results_with([], groups=[grouping_of(rows[1:2]) | {"title": "US state"}])
    assert findings(none) == [
        "By US state, no group is significantly worse than all other images in any measure."
    ]
    unknown = grouping_of([("A", False, True, ["m"]), ("R", True, None, ["m"])])
    unknown["rows"][0]["worst"]["m"]["significant"] = None
    assert findings(results_with([], groups=[unknown]))[1] == (
        "By group, these gaps could not be tested, for too few images: A in M."
    )
    alone = results_with(
        [], groups=[grouping_of(rows) | {"grouping": "prediction", "title": "Prediction", "n": [99, 1]}]
    )
    assert findings(alone) == [
        "Between correct and wrong predictions, nothing can be compared: fewer than two groups have 2 images or more."
    ]
    second = {"name": "o", "title": "O", "higher_is_better": True}
    other = results_with([], groups=[grouping_of([("A", False, True, ["o"])])], measures=[MEASURE, second])
    assert findings(other)[0].startswith(
        "By group, O is significantly worse than on all other images for bags|<b> (A"
    )


UNIFORM = row("uniform map", 0.0, 1, control=True, degenerate=100)


@pytest.mark.parametrize(
    ("random_rank", "similar", "expected"),
    [
        (
            3,
            (),
            "It is significantly better than the control random map (the uniform map masks nothing, so its M is always 0).",
        ),
        (
            3,
            ("center map", "random map"),
            "Warning: it is not significantly different from the controls random map and center map; so this measure does"
            " not show here that a method explains the network (the uniform map masks nothing, so its M is always 0).",
        ),
        (
            2,
            ("random map",),
            "Warning: it is not significantly different from the control random map, which has a better value, though it is"
            " significantly better than the control center map; so this measure does not show here that a method explains"
            " the network (the uniform map masks nothing, so its M is always 0).",
        ),
    ],
    ids=["better", "similar", "one leads"],
)
def test_the_uniform_map_is_no_yardstick_for_a_drop(random_rank, similar, expected):
    rows = [
        UNIFORM,
        row("A", 0.2, 5 - random_rank, indistinct=similar),
        row("random map", 0.1 if random_rank == 2 else 0.4, random_rank, control=True),
    ]
    if len(similar) or random_rank == 2:
        rows.append(row("center map", 0.6, 4, control=True))
    for one in rows:
        one["average_drop"] = one.pop("m") if "m" in one else one["average_drop"]
    results = results_with(rows)
    results["comparison"]["measures"] = [MEASURE | {"name": "average_drop"}]
    assert verdict(results)[1] == expected
    for one in rows:
        one["m"] = one.pop("average_drop")


def test_many_constant_maps_are_a_finding():
    rows = [
        row("A", 0.2, 1, degenerate=9),
        row("B", 0.3, 2, degenerate=10),
        row("C", 0.4, 3, control=True, degenerate=50),
    ]
    assert findings(results_with(rows)) == [
        "Warning: 10 of 100 maps of B are constant, and highlight nothing."
    ]


def test_findings_name_the_surrogate():
    assert findings(results_with([], surrogate="ResNet of tuned.pt")) == [
        "A surrogate scores the clean and the perturbed images in place of the network: ResNet of tuned.pt."
    ]


def test_every_field_of_a_protocol_has_a_sentence(comparison):
    protocol = json.loads(comparison.table().to_json())["protocol"]
    # The name has no sentence, and two settings each of the mask and of a random removal are part of one.
    assert len(protocol) == len(EvaluationProtocol.__dataclass_fields__)
    eps = {"normalize_eps": 0.5, "drop_eps": 0.25, "gain_eps": 0.125}
    removal = {"removal_probability": 0.5, "removal_limit": 0.1, "removal_samples": 50}
    assert len(describe_protocol(protocol | eps | removal)) == len(protocol) - 5
    assert len(describe_protocol(protocol | eps)) == len(protocol) - 6
    text = " ".join(describe_protocol(protocol | {"mask": "top", "mask_fraction": 0.2} | removal))
    assert "a random 50% are replaced, but of an image on average at most 10%; its score is the mean" in text
    assert "highest 20% of the pixels" in text
    assert "10%, 20%" in text


def test_csv_has_a_row_for_each_method_and_measure(full, tmp_path):
    write_csv(full, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(full["methods"])
    assert list(rows[0]) == [
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
        "protocol",
    ]
    first = full["comparison"]["rows"][0]
    assert rows[0]["method"] == first["method"]
    assert float(rows[0]["value"]) == first["average_drop"]["value"]
    assert EVIL in {one["method"] for one in rows}


def test_values_and_ranks_under_each_protocol_are_shown(digits, gallery, tmp_path):
    model, images, _ = digits
    sources = {"Grad-CAM": GradCAM(model, "3"), "Layer-CAM": LayerCAM(model, "3"), EVIL: GradCAM(model, "1")}
    comparison = CAMComparison(sources, protocols=("paper", "score_cam", "grad_cam"))
    comparison.update(images[:40])
    results = results_of(comparison)
    write_report(results, tmp_path / "report.html", gallery=gallery)
    text = (tmp_path / "report.html").read_text()
    assert '<h2 id="protocols">' in text
    assert EVIL not in text
    (section,) = re.findall(r'<section aria-labelledby="protocols">.*?</section>', text, re.DOTALL)
    for one in results["comparison"]["rankings"]:
        assert one["description"].split(":")[0] in section
        assert "the same order under all protocols" in section
    values = [row["average_drop"]["value"] for row in results["comparison"]["further"][0]["rows"]]
    assert all(f"{value:.3f}" in section for value in values)
    # One line for each method and measure in the one figure.
    assert section.count("<svg") == 1
    write_csv(results, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * len(results["methods"])
    assert {row["protocol"] for row in rows} == {"paper", "score_cam", "grad_cam"}


def test_csv_leaves_unknown_values_empty(full, tmp_path):
    copy = json.loads(json.dumps(full))
    copy["comparison"]["rows"][0]["average_drop"].update(lower=None, upper=None)
    write_csv(copy, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        assert next(csv.DictReader(file))["lower"] == ""


def test_csv_has_no_formulas_and_its_numbers_stay_numbers(full, tmp_path):
    copy = json.loads(json.dumps(full))
    rows = copy["comparison"]["rows"]
    for row, name in zip(rows, ("=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", "a\nb"), strict=False):
        row["method"] = name
        row["average_drop"]["lower"] = -0.25
    write_csv(copy, tmp_path / "results.csv")
    with (tmp_path / "results.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    expected = ["'=HYPERLINK(1)", "'+1", "'-1", "'@SUM(1)", r"\t=1", r"a\nb"]
    assert [row["method"] for row in written[: len(rows)]] == expected[: len(rows)]
    assert len(rows) == 6
    assert {row["lower"] for row in written[:6]} == {"-0.25"}


def test_control_characters_are_escaped_in_the_page(full, tmp_path):
    copy = json.loads(json.dumps(full))
    copy["data"]["unreadable"] = [{"file": "a\x1b[1m\u202egnp.\x00", "reason": "not an image"}]
    write_report(copy, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert r"a\x1b[1m\u202egnp.\x00: not an image" in page
    assert not set(page) & {"\x00", "\x1b", "\u202e"}
    assert "@software" in page
    assert page.count("\n") > 100


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named_with_its_pip_line(package, full, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf'needs {package}: pip install "torchmetrics-cam\[cli\]"'):
        write_report(full, tmp_path / "report.html")


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium = find_or_skip(shutil.which("chromium"), "chromium")
    driver_path = find_or_skip(shutil.which("chromedriver"), "chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(chromium)
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(driver_path)))
    yield driver
    driver.quit()


def opened(browser, page, width=1000):
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    return browser


def test_the_page_loads_without_errors_or_requests(browser, page):
    opened(browser, page)
    assert [one for one in browser.get_log("browser") if one["level"] == "SEVERE"] == []
    widths = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert len(widths) == 2 * (1 + 2 * 2)
    assert all(0 < width <= 224 for width in widths)
    messages = [json.loads(one["message"])["message"] for one in browser.get_log("performance")]
    asked = [
        one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in asked
    assert [address for address in asked if address.startswith("http")] == []


def test_a_click_on_a_header_sorts_the_table_both_ways(browser, page):
    opened(browser, page)
    look = """const t = document.getElementById("table-average_drop");
        return [[...t.tBodies[0].rows].map(r => +r.cells[2].dataset.value),
                t.tHead.rows[0].cells[2].getAttribute("aria-sort")]"""
    click = 'document.querySelectorAll("#table-average_drop thead button")[arguments[0]].click()'
    browser.execute_script(click, 1)
    by_name, _ = browser.execute_script(look)
    for direction in ("ascending", "descending"):
        browser.execute_script(click, 2)
        values, said = browser.execute_script(look)
        assert said == direction
        assert values == sorted(values, reverse=direction == "descending")
        assert values != by_name


def test_markers_of_methods_are_filled_and_of_controls_hollow_in_dark_mode(browser, page):
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    opened(browser, page)
    ink, paper, fills = browser.execute_script("""const body = getComputedStyle(document.body);
        const marks = document.querySelector("svg").querySelectorAll("g > use");
        return [body.color, body.backgroundColor, [...marks].map(m => getComputedStyle(m).fill)]""")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert ink != paper
    assert fills.count(paper) == 3
    assert fills.count(ink) >= 3


def test_a_phone_shows_the_page_without_scrolling_sideways(browser, page):
    opened(browser, page, width=360)
    assert browser.execute_script("return window.innerWidth") == 360
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360


def test_a_phone_keeps_the_name_of_a_method_in_view_while_its_table_scrolls(browser, page):
    opened(browser, page, width=390)
    box, name, width = (
        browser.execute_script("""const box = document.querySelector("section[aria-labelledby=groups] .box");
        box.scrollLeft = 10000;
        const cell = box.querySelector("tbody th").getBoundingClientRect();
        return [box.getBoundingClientRect().left, cell.left, box.scrollWidth - box.clientWidth]""")
    )
    assert width > 50
    assert name == pytest.approx(box, abs=1)


def test_a_printed_page_cuts_no_table_and_unfolds_everything(browser, page):
    # The width between the margins of A4, at 96 pixels per inch.
    width = round((210 - 2 * 14) / 25.4 * 96)
    opened(browser, page, width=width)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.execute_script('dispatchEvent(new Event("beforeprint"))')
    wide, folded = browser.execute_script("""return [[...document.querySelectorAll("table, svg, pre, img")]
        .map(one => one.getBoundingClientRect().right), document.querySelectorAll("details:not([open])").length]""")
    browser.execute_script('dispatchEvent(new Event("afterprint"))')
    folded_again = browser.execute_script('return document.querySelectorAll("details:not([open])").length')
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert max(wide) <= width
    assert folded == 0
    assert folded_again > 3
