"""The metrics, one file a family."""

from torchmetrics_cam.metrics.classification import ClassificationMetric
from torchmetrics_cam.metrics.comparison import CAMComparison
from torchmetrics_cam.metrics.confidence import AverageDrop, AverageGain, IncreaseInConfidence

__all__ = ["AverageDrop", "AverageGain", "CAMComparison", "ClassificationMetric", "IncreaseInConfidence"]
