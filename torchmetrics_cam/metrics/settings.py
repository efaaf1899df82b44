"""The settings that every metric takes, checked before anything runs."""

from typing import Any, Literal, get_args

import torch

Average = Literal["micro", "macro", "none"]


def check_scoring(logits_fn: Any, scorer: Any, batch_size: Any) -> None:
    """Refuse what cannot turn images into an output and that into scores, or cut a batch into chunks.

    Raises:
        TypeError: if ``logits_fn`` or ``scorer`` is not callable.
        ValueError: if ``batch_size`` is no positive integer.
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
    if batch_size is not None and (
        not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1
    ):
        raise ValueError(f"batch_size is {batch_size!r}; it must be a positive integer, or None")


def check_averaging(num_classes: Any, average: Any) -> None:
    """Refuse an average that is not known, or lacks the number of classes.

    Raises:
        ValueError: if it is so.
    """
    if average not in get_args(Average):
        raise ValueError(f"average is {average!r}; it must be one of {', '.join(get_args(Average))}")
    if num_classes is not None and (
        not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1
    ):
        raise ValueError(f"num_classes is {num_classes!r}; it must be a positive integer, or None")
    if average != "micro" and num_classes is None:
        raise ValueError(f"average={average!r} needs the number of classes; pass num_classes")


def check_masks(masks: Any, images: Any) -> None:
    """Refuse masks of objects that are missing or not of the images' size.

    Raises:
        TypeError: if they are no tensor.
        ValueError: if they do not fit.
    """
    if not isinstance(images, torch.Tensor):
        return
    wanted = (len(images), *images.shape[2:])
    if masks is None:
        raise ValueError(
            f"the objects are missing; pass update(images, masks=...), a tensor {wanted}, or"
            " masks=boxes_to_objects(boxes, size)"
        )
    if not isinstance(masks, torch.Tensor):
        raise TypeError(f"masks is a {type(masks).__name__}; it must be a tensor {wanted}")
    if masks.shape != wanted:
        raise ValueError(f"masks has shape {tuple(masks.shape)}; one mask an image of its size is {wanted}")


def sum_dtype(device: torch.device) -> torch.dtype:
    """float64, in which sums are exact for all purposes; Apple's GPUs have float32."""
    return torch.float32 if device.type == "mps" else torch.float64
