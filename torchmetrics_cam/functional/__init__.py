"""The formulas of the metrics as pure functions of tensors, without model and state."""

from torchmetrics_cam.functional.adcc import adcc, map_correlation
from torchmetrics_cam.functional.complexity import complexity, entropy, histogram_entropy, sparseness
from torchmetrics_cam.functional.confidence import (
    average_drop,
    average_gain,
    drop_in_deletion,
    increase_in_confidence,
)
from torchmetrics_cam.functional.correlation import (
    faithfulness_correlation,
    grid_cells,
    random_subsets,
    single_deletion,
)
from torchmetrics_cam.functional.curves import area_under_curve
from torchmetrics_cam.functional.localization import (
    boxes_to_objects,
    energy_pointing_game,
    localization_auc,
    mask_iou,
    pointing_game,
    relevance_rank_accuracy,
    top_k_intersection,
)
from torchmetrics_cam.functional.maps import fuse_maps, min_max, rectify, resize_maps, top_fraction
from torchmetrics_cam.functional.road import linear_imputation, road_score
from torchmetrics_cam.functional.sensitivity import class_sensitivity, sensitivity

__all__ = [
    "adcc",
    "area_under_curve",
    "average_drop",
    "average_gain",
    "boxes_to_objects",
    "class_sensitivity",
    "complexity",
    "drop_in_deletion",
    "energy_pointing_game",
    "entropy",
    "faithfulness_correlation",
    "fuse_maps",
    "grid_cells",
    "histogram_entropy",
    "increase_in_confidence",
    "linear_imputation",
    "localization_auc",
    "map_correlation",
    "mask_iou",
    "min_max",
    "pointing_game",
    "random_subsets",
    "rectify",
    "relevance_rank_accuracy",
    "resize_maps",
    "road_score",
    "sensitivity",
    "single_deletion",
    "sparseness",
    "top_fraction",
    "top_k_intersection",
]
