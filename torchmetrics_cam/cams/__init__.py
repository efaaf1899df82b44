"""Sources of maps: gradient CAMs, controls, user functions, and adapters of other CAM libraries."""

from torchmetrics_cam.cams.adapters.captum import CaptumSource
from torchmetrics_cam.cams.adapters.monai import MonaiSource
from torchmetrics_cam.cams.adapters.pytorch_grad_cam import PytorchGradCAMSource
from torchmetrics_cam.cams.adapters.torchcam import TorchcamSource
from torchmetrics_cam.cams.callables import CallableSource, PrecomputedMaps
from torchmetrics_cam.cams.controls import CenterMap, EdgeMap, RandomMap, RandomWeightsCAM, UniformMap
from torchmetrics_cam.cams.gradient import GradCAM, GradCAMPlusPlus, GradientCAM, HiResCAM, LayerCAM, XGradCAM
from torchmetrics_cam.cams.layers import LayerSource, swin_grid, vit_grid
from torchmetrics_cam.cams.resolve import as_source
from torchmetrics_cam.cams.source import CAMSource, ForwardPass, SourceMaps

__all__ = [
    "CAMSource",
    "CallableSource",
    "CaptumSource",
    "CenterMap",
    "EdgeMap",
    "ForwardPass",
    "GradCAM",
    "GradCAMPlusPlus",
    "GradientCAM",
    "HiResCAM",
    "LayerCAM",
    "LayerSource",
    "MonaiSource",
    "PrecomputedMaps",
    "PytorchGradCAMSource",
    "RandomMap",
    "RandomWeightsCAM",
    "SourceMaps",
    "TorchcamSource",
    "UniformMap",
    "XGradCAM",
    "as_source",
    "swin_grid",
    "vit_grid",
]
