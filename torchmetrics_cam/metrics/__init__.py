"""The metrics, one file for each family of measures."""

from torchmetrics_cam.metrics.adcc import ADCC, Coherency
from torchmetrics_cam.metrics.comparison.metric import CAMComparison
from torchmetrics_cam.metrics.comparison.table import agreement
from torchmetrics_cam.metrics.complexity import Complexity, Entropy, Sparseness
from torchmetrics_cam.metrics.confidence import (
    AverageDrop,
    AverageGain,
    ClassificationMetric,
    DropInDeletion,
    IncreaseInConfidence,
)
from torchmetrics_cam.metrics.correlation import FaithfulnessCorrelation, SingleDeletion
from torchmetrics_cam.metrics.curves import ROAD, DeletionAUC, InsertionAUC, SymmetricRelevanceGain
from torchmetrics_cam.metrics.localization import (
    EnergyPointingGame,
    LocalizationAUC,
    MaskIoU,
    PointingGame,
    RelevanceRankAccuracy,
    TopKIntersection,
)
from torchmetrics_cam.metrics.sensitivity import AverageSensitivity, ClassSensitivity, MaxSensitivity

__all__ = [
    "ADCC",
    "ROAD",
    "AverageDrop",
    "AverageGain",
    "AverageSensitivity",
    "CAMComparison",
    "ClassSensitivity",
    "ClassificationMetric",
    "Coherency",
    "Complexity",
    "DeletionAUC",
    "DropInDeletion",
    "EnergyPointingGame",
    "Entropy",
    "FaithfulnessCorrelation",
    "IncreaseInConfidence",
    "InsertionAUC",
    "LocalizationAUC",
    "MaskIoU",
    "MaxSensitivity",
    "PointingGame",
    "RelevanceRankAccuracy",
    "SingleDeletion",
    "Sparseness",
    "SymmetricRelevanceGain",
    "TopKIntersection",
    "agreement",
]
