"""From a photo to what a network takes, and back to colors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchmetrics_cam.cli.errors import UsageError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Transform = Callable[[Any], Tensor]


@dataclass(frozen=True)
class ToColors:
    """Undo a normalization, for pictures.

    Args:
        mean: what was subtracted of each channel; None where nothing is known of a normalization.
        std: what each channel was divided by.
    """

    mean: Sequence[float] | None
    std: Sequence[float] | None

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` as colors in [0, 1].

        Where the normalization is not known, values outside of [0, 1] are stretched image by image.
        """
        images = images.detach().float()
        if self.mean is not None and self.std is not None:
            mean, std = (
                torch.as_tensor(values, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
                for values in (self.mean, self.std)
            )
            return (images * std + mean).clamp(0, 1)
        lowest, highest = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        stretched = (images - lowest) / (highest - lowest).clamp_min(1e-12)
        return torch.where((lowest < 0) | (highest > 1), stretched, images)


def imagenet_transform(size: int | None) -> Transform:
    """ImageNet's: the short side to 256, the center 224, its mean and deviation; `size` in proportion."""
    transforms = torchvision_transforms()
    side = size or 224
    steps = [
        transforms.Resize(round(side * 256 / 224), antialias=True),
        transforms.CenterCrop(side),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    return transforms.Compose(steps)  # type: ignore[no-any-return]


def torchvision_transforms() -> Any:
    """The module ``torchvision.transforms``.

    Raises:
        ModuleNotFoundError: with the pip line.
    """
    try:
        from torchvision import transforms
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('torchvision is not there: pip install "torchmetrics-cam[cli]"') from error
    return transforms


def normalization_of(transform: Any) -> ToColors:
    """How to undo a transform's last normalization, where one can be seen."""
    for step in (transform, *reversed(list(getattr(transform, "transforms", ()) or ()))):
        mean, std = getattr(step, "mean", None), getattr(step, "std", None)
        if mean is not None and std is not None:
            return ToColors(_floats(mean), _floats(std))
    return ToColors(None, None)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(torch.as_tensor(values, dtype=torch.float64).flatten().tolist())


@dataclass(frozen=True)
class ProcessorTransform:
    """An image processor of transformers as a transform.

    Args:
        processor: the processor.
        settings: what its call is to do otherwise, such as ``size``.
    """

    processor: Any
    settings: dict[str, Any]

    def __call__(self, image: Any) -> Tensor:
        """One picture as a tensor ``(3, H, W)``."""
        pixels: Tensor = self.processor(image, return_tensors="pt", **self.settings)["pixel_values"][0]
        return pixels


def processor_settings(processor: Any, side: int) -> dict[str, Any]:
    """How an image processor makes images of another side, resized and cropped in its own way and proportion.

    Args:
        processor: of transformers.
        side: of the images in pixels.
    """
    own = processor.size
    named = own if isinstance(own, dict) else {key: value for key, value in vars(own).items() if value}
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    resized = side
    if crop:
        height = crop["height"] if isinstance(crop, dict) else crop.height
        resized = max(side, round(side * max(named.values()) / height))
    return {
        "size": {"shortest_edge": resized}
        if "shortest_edge" in named
        else {"height": resized, "width": resized},
        **({"crop_size": {"height": side, "width": side}} if crop else {}),
    }


def check_image_size(size: int | None) -> None:
    """Refuse a side that no image has.

    Raises:
        UsageError: if it is below 1.
    """
    if size is not None and size < 1:
        raise UsageError(f"--image-size {size} is no side of an image; give pixels, such as 224")
