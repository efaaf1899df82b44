"""The arguments that every metric takes, validated before anything runs."""

from typing import Any, Literal, get_args

import torch

Average = Literal["micro", "macro", "none"]


def check_scoring(logits_fn: Any, scorer: Any, batch_size: Any) -> None:
    """Validate ``logits_fn``, ``scorer`` and ``batch_size``.

    Raises:
        TypeError: if ``logits_fn`` or ``scorer`` is not callable.
        ValueError: if ``batch_size`` is not a positive integer.
    """
    if logits_fn is not None and not callable(logits_fn):
        raise TypeError(
            f"logits_fn is {logits_fn!r}; it must be a callable from the model's output to scores (N, K)"
        )
    if scorer is not None and not callable(scorer):
        raise TypeError(
            f"scorer is {scorer!r}; it must be a callable from images to the model's raw output, such as"
            " torch.compile(model)"
        )
    if batch_size is not None and not _is_positive_integer(batch_size):
        raise ValueError(f"batch_size is {batch_size!r}; it must be a positive integer, or None")


def check_averaging(num_classes: Any, average: Any) -> None:
    """Validate ``average`` and ``num_classes``.

    Raises:
        ValueError: if the average is unknown, or the number of classes is missing or not a positive integer.
    """
    if average not in get_args(Average):
        raise ValueError(f"average is {average!r}; it must be one of {', '.join(get_args(Average))}")
    if num_classes is not None and not _is_positive_integer(num_classes):
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


def _is_positive_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
