"""The report of an evaluation: an HTML page for people, a CSV table for programs."""

from torchmetrics_cam.report.gallery import ExplainedImage
from torchmetrics_cam.report.write import write_csv, write_report

__all__ = ["ExplainedImage", "write_csv", "write_report"]
