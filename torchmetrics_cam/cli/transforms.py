"""Preprocessing: from an image to the input of a network, and back to colors."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchmetrics_cam.cli.errors import import_library

Transform = Callable[[Any], Tensor]


@dataclass(frozen=True)
class ToColors:
    """The inverse of a normalization, for display.

    Args:
        mean: the mean that was subtracted from each channel; None if the normalization is not known.
        std: the standard deviation that each channel was divided by; None if it is not known.
    """

    mean: Sequence[float] | None
    std: Sequence[float] | None

    def __call__(self, images: Tensor) -> Tensor:
        """Return images ``(N, C, H, W)`` as colors in [0, 1].

        If the normalization is not known, each image that has values outside of [0, 1] is min-max normalized.
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


def imagenet_transform(side: int) -> Transform:
    """Return torchvision's transform for ImageNet: resize, crop the center, normalize.

    Args:
        side: height and width of the result in pixels; 224 resizes the shorter side to 256, others in
            proportion.
    """
    torchvision = import_library("torchvision", "preprocessing", "torchmetrics-cam[cli]")
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V1
    transform: Transform = weights.transforms(crop_size=side, resize_size=round(side * 256 / 224))
    return transform


def normalization_of(transform: Any) -> ToColors:
    """Return the inverse of the last normalization in a transform, if it has one."""
    for step in (transform, *reversed(list(getattr(transform, "transforms", ()) or ()))):
        mean, std = getattr(step, "mean", None), getattr(step, "std", None)
        if mean is not None and std is not None:
            return ToColors(_floats(mean), _floats(std))
    return ToColors(None, None)


def name_of(transform: Any) -> str:
    """Return a transform in words: the name of a function, or an object as it prints itself, on one line."""
    if hasattr(transform, "__qualname__"):
        return f"{transform.__module__}.{transform.__qualname__}"
    # An address says nothing, and differs between two runs.
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(transform).split()))


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(torch.as_tensor(values, dtype=torch.float64).flatten().tolist())


@dataclass(frozen=True)
class ProcessorTransform:
    """An image processor of transformers as a transform.

    Args:
        processor: the image processor.
        settings: arguments of its call that replace its own settings, such as ``size``.
    """

    processor: Any
    settings: dict[str, Any]

    def __call__(self, image: Any) -> Tensor:
        """Return an image as a tensor ``(3, H, W)``."""
        pixels: Tensor = self.processor(image, return_tensors="pt", **self.settings)["pixel_values"][0]
        return pixels


def processor_settings(processor: Any, side: int) -> dict[str, Any]:
    """Return the arguments with which an image processor returns images of another size.

    Resizing and cropping keep their proportion.

    Args:
        processor: the image processor of transformers.
        side: height and width of the result in pixels.
    """
    own = processor.size
    sizes = own if isinstance(own, dict) else {key: value for key, value in vars(own).items() if value}
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None
    resized = side
    if crop:
        height = crop["height"] if isinstance(crop, dict) else crop.height
        resized = max(side, round(side * max(sizes.values()) / height))
    size = {"shortest_edge": resized} if "shortest_edge" in sizes else {"height": resized, "width": resized}
    return {"size": size, **({"crop_size": {"height": side, "width": side}} if crop else {})}
