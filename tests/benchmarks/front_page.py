"""The table of costs that stands in the README, from the figures of `cost.json`.

python tests/benchmarks/front_page.py
"""

import json
from pathlib import Path

from results import table

NETWORKS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mobilenet_v3_large": "MobileNetV3-large",
    "convnext_tiny": "ConvNeXt-Tiny",
    "vit_b_16": "ViT-B/16",
    "efficientnet_lite0": "EfficientNet-Lite0",
}
COMPILED = "ours, channels last and compiled scorer"
COLUMNS = {
    "ours": "ours",
    "ours, compiled": COMPILED,
    "torchcam": "torchcam",
    "pytorch-grad-cam": "pytorch-grad-cam",
}
BATCH, METHODS = 32, (1, 4)


def costs() -> str:
    """Time and memory of one method and of four, at batch 32."""
    cells = json.loads((Path(__file__).parent / "cost.json").read_text())["cells"]
    rows = []
    for cell in cells:
        if cell["batch"] == BATCH and cell["methods"] in METHODS:
            times = [_ratio(cell["seconds"], name, 2) for name in COLUMNS.values()]
            memory = [_ratio(cell["bytes"], name, 1) for name in ("ours", "torchcam")]
            name = f"{NETWORKS[cell['network']]}, K = {cell['methods']}"
            rows.append((name, *times, " / ".join(one or "-" for one in memory)))
    return table(("", *COLUMNS, "memory, ours / torchcam"), rows)


def _ratio(cases: dict[str, dict[str, float]], name: str, digits: int) -> str:
    return f"{cases[name]['ratio']:.{digits}f}" if name in cases else ""


if __name__ == "__main__":
    print(costs())
