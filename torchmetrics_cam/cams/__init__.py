"""Where maps come from."""

from torchmetrics_cam.cams.callables import CallableSource, PrecomputedMaps
from torchmetrics_cam.cams.controls import CenterMap, RandomMap, UniformMap
from torchmetrics_cam.cams.gradient import GradCAM, GradCAMPlusPlus, GradientCAM, HiResCAM, LayerCAM, XGradCAM
from torchmetrics_cam.cams.reshape import swin_grid, vit_grid
from torchmetrics_cam.cams.resolve import as_source
from torchmetrics_cam.cams.source import CAMSource, CleanPass, SourceMaps
from torchmetrics_cam.cams.torchcam import TorchcamSource

__all__ = [
    "CAMSource",
    "CallableSource",
    "CenterMap",
    "CleanPass",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientCAM",
    "HiResCAM",
    "LayerCAM",
    "PrecomputedMaps",
    "RandomMap",
    "SourceMaps",
    "TorchcamSource",
    "UniformMap",
    "XGradCAM",
    "as_source",
    "swin_grid",
    "vit_grid",
]
