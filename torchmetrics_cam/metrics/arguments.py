"""Validation of the arguments of metrics, before the model runs."""

from typing import Any, Literal, get_args

import torch

from torchmetrics_cam.pipeline.checks import is_positive_integer

Average = Literal["micro", "macro", "none"]


def check_averaging(num_classes: Any, average: Any) -> None:
    """Validate ``average`` and ``num_classes``.

    Raises:
        ValueError: if the average is unknown, or the number of classes is missing or not a positive integer.
    """
    if average not in get_args(Average):
        raise ValueError(f"average is {average!r}; it must be one of {', '.join(get_args(Average))}")
    if num_classes is not None and not is_positive_integer(num_classes):
        raise ValueError(f"num_classes is {num_classes!r}; it must be a positive integer, or None")
    if average != "micro" and num_classes is None:
        raise ValueError(f"average={average!r} needs the number of classes; pass num_classes")


def check_objects(objects: Any, images: Any) -> None:
    """Validate the annotated objects of a batch.

    Raises:
        TypeError: if they are no tensor.
        ValueError: if they are missing, or not of the images' size.
    """
    if not isinstance(images, torch.Tensor):
        return
    needed = (len(images), *images.shape[2:])
    if objects is None:
        raise ValueError(
            f"the objects are missing; pass update(images, objects=...), a tensor {needed}, or"
            " objects=boxes_to_objects(boxes, size)"
        )
    if not isinstance(objects, torch.Tensor):
        raise TypeError(f"objects is a {type(objects).__name__}; it must be a tensor {needed}")
    if objects.shape != needed:
        raise ValueError(
            f"objects has shape {tuple(objects.shape)}; one object mask of the image's size for each image is"
            f" {needed}"
        )
