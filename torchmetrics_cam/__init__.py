"""Measure whether class activation maps are faithful, as TorchMetrics metrics."""

from torchmetrics_cam.metrics import (
    AverageDrop,
    AverageGain,
    CAMComparison,
    ClassificationMetric,
    IncreaseInConfidence,
)
from torchmetrics_cam.protocol import EvaluationProtocol

__version__ = "0.1.0"

__all__ = [
    "AverageDrop",
    "AverageGain",
    "CAMComparison",
    "ClassificationMetric",
    "EvaluationProtocol",
    "IncreaseInConfidence",
]
