"""Whether an evaluation is that of another process: its weights, and the settings of its metrics."""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.baselines import display_name
from torchmetrics_cam.metrics.base import CAMMetric


def of_weights(model: nn.Module) -> str:
    """A number that differs where weights differ."""
    found = 0
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            found = zlib.crc32(name.encode(), found)
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found = zlib.crc32(content.numpy().data, found)
    return f"{found:08x}"


def of_settings(metrics: Sequence[CAMMetric]) -> dict[str, list[Any]]:
    """What changes the numbers of the metrics, by its name; functions are known by theirs."""
    return {
        "protocol": [metric.protocol.caption() for metric in metrics],
        "measures": [[measure.name for measure in metric.measures] for metric in metrics],
        "average": [metric.average for metric in metrics],
        "num_classes": [metric.num_classes for metric in metrics],
        "logits_fn": [display_name(metric._pipeline.score_function.logits_fn) for metric in metrics],
        "settings of sources": [
            {name: value for name, value in vars(source).items() if isinstance(value, str | int | float)}
            for metric in metrics
            for source in metric._pipeline.sources
        ],
    }
