"""Measure whether class activation maps are faithful, as TorchMetrics metrics."""

from torchmetrics_cam.metrics import (
    ADCC,
    ROAD,
    AverageDrop,
    AverageGain,
    CAMComparison,
    ClassificationMetric,
    Coherency,
    Complexity,
    DeletionAUC,
    DropInDeletion,
    EnergyPointingGame,
    IncreaseInConfidence,
    InsertionAUC,
    MaskIoU,
    PointingGame,
    agreement,
)
from torchmetrics_cam.protocol import EvaluationProtocol
from torchmetrics_cam.sanity import parameter_randomization

__version__ = "0.1.0"

__all__ = [
    "ADCC",
    "ROAD",
    "AverageDrop",
    "AverageGain",
    "CAMComparison",
    "ClassificationMetric",
    "Coherency",
    "Complexity",
    "DeletionAUC",
    "DropInDeletion",
    "EnergyPointingGame",
    "EvaluationProtocol",
    "IncreaseInConfidence",
    "InsertionAUC",
    "MaskIoU",
    "PointingGame",
    "agreement",
    "parameter_randomization",
]
