"""Measure whether class activation maps are faithful, as TorchMetrics metrics."""

from torchmetrics_cam.__about__ import __version__
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
    Entropy,
    IncreaseInConfidence,
    InsertionAUC,
    LocalizationAUC,
    MaskIoU,
    PointingGame,
    RelevanceRankAccuracy,
    Sparseness,
    SymmetricRelevanceGain,
    TopKIntersection,
    agreement,
)
from torchmetrics_cam.metrics.randomization import parameter_randomization
from torchmetrics_cam.mosaic import MosaicDataset
from torchmetrics_cam.pipeline.batch import Batch, explain
from torchmetrics_cam.protocol import EvaluationProtocol

__all__ = [
    "ADCC",
    "ROAD",
    "AverageDrop",
    "AverageGain",
    "Batch",
    "CAMComparison",
    "ClassificationMetric",
    "Coherency",
    "Complexity",
    "DeletionAUC",
    "DropInDeletion",
    "EnergyPointingGame",
    "Entropy",
    "EvaluationProtocol",
    "IncreaseInConfidence",
    "InsertionAUC",
    "LocalizationAUC",
    "MaskIoU",
    "MosaicDataset",
    "PointingGame",
    "RelevanceRankAccuracy",
    "Sparseness",
    "SymmetricRelevanceGain",
    "TopKIntersection",
    "__version__",
    "agreement",
    "explain",
    "parameter_randomization",
]
