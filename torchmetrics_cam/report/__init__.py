"""What an evaluation writes for people: a page to read, and a table for other programs."""

from torchmetrics_cam.report.picture import Picture
from torchmetrics_cam.report.write import write_csv, write_report

__all__ = ["Picture", "write_csv", "write_report"]
