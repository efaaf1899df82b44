"""The metrics, one file a family."""

from torchmetrics_cam.metrics.adcc import ADCC, Coherency, Complexity
from torchmetrics_cam.metrics.classification import ClassificationMetric
from torchmetrics_cam.metrics.comparison.metric import CAMComparison
from torchmetrics_cam.metrics.comparison.table import agreement
from torchmetrics_cam.metrics.confidence import AverageDrop, AverageGain, IncreaseInConfidence
from torchmetrics_cam.metrics.curves import DeletionAUC, InsertionAUC
from torchmetrics_cam.metrics.deletion import DropInDeletion
from torchmetrics_cam.metrics.localization import EnergyPointingGame, MaskIoU, PointingGame
from torchmetrics_cam.metrics.road import ROAD

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
    "IncreaseInConfidence",
    "InsertionAUC",
    "MaskIoU",
    "PointingGame",
    "agreement",
]
