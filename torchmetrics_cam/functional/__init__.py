"""The formulas, as pure functions of tensors: no model, no state."""

from torchmetrics_cam.functional.confidence import average_drop, average_gain, increase_in_confidence
from torchmetrics_cam.functional.maps import fuse_maps, min_max, rectify, resize_maps, top_fraction

__all__ = [
    "average_drop",
    "average_gain",
    "fuse_maps",
    "increase_in_confidence",
    "min_max",
    "rectify",
    "resize_maps",
    "top_fraction",
]
