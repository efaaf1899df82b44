"""Print the cost tables of README.md (short) and GUIDE.md (all columns) from `cost.json`.

Usage: ``python tests/benchmarks/front_page.py``
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results import table

NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mobilenet_v3_large": "MobileNetV3-large",
    "convnext_tiny": "ConvNeXt-Tiny",
    "vit_b_16": "ViT-B/16",
    "efficientnet_lite0": "EfficientNet-Lite0",
}
# The columns of the short table: title, batch size, number of methods, whether it is time or memory.
SHORT_COLUMNS = (
    ("time, 1 method", 32, 1, "seconds"),
    ("time, 4 methods", 32, 4, "seconds"),
    ("time, 1 method, batch 1", 1, 1, "seconds"),
    ("memory, 1 method", 32, 1, "bytes"),
)
# The columns of the full table, and their names in `cost.json`.
COLUMNS = {
    "ours": "ours",
    "ours, compiled": "ours, channels last and compiled scorer",
    "torchcam": "torchcam",
    "pytorch-grad-cam": "pytorch-grad-cam",
}

Cell = Mapping[str, Any]


def costs() -> str:
    """Return the table of the README: a row for each network, with the ratios of this package and of torchcam."""
    cells = _cells()
    rows = []
    for key, network in NETWORKS.items():
        row = [network]
        for _, batch, methods, quantity in SHORT_COLUMNS:
            cell = next(
                cell
                for cell in cells
                if (cell["network"], cell["batch"], cell["methods"]) == (key, batch, methods)
            )
            row.append(_ours_and_torchcam(cell, quantity, 2 if quantity == "seconds" else 1))
        rows.append(row)
    return table(("", *(title for title, *_ in SHORT_COLUMNS)), rows)


def all_costs(batch: int = 32, methods: tuple[int, ...] = (1, 4)) -> str:
    """Return the table of the guide: a row for each network and number of methods K, with all libraries."""
    rows = []
    for cell in _cells():
        if cell["batch"] == batch and cell["methods"] in methods:
            name = f"{NETWORKS[cell['network']]}, K = {cell['methods']}"
            times = [_ratio(cell["seconds"], library, 2) for library in COLUMNS.values()]
            rows.append((name, *times, _ours_and_torchcam(cell, "bytes", 1)))
    return table(("", *COLUMNS, "memory, ours / torchcam"), rows)


def _cells() -> list[Cell]:
    cells: list[Cell] = json.loads((Path(__file__).parent / "cost.json").read_text())["cells"]
    return cells


def _ours_and_torchcam(cell: Cell, quantity: str, digits: int) -> str:
    return " / ".join(_ratio(cell[quantity], library, digits) or "-" for library in ("ours", "torchcam"))


def _ratio(cases: Mapping[str, Mapping[str, float]], name: str, digits: int) -> str:
    return f"{cases[name]['ratio']:.{digits}f}" if name in cases else ""


if __name__ == "__main__":
    print(costs(), all_costs(), sep="\n\n")
