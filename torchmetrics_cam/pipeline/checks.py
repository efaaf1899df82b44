"""Checks of settings, of a batch before the model runs, and of the model's signature and output."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.model.scores import ClassIndex, Scores, Target, check_class_idx_and_targets
from torchmetrics_cam.protocol import EvaluationProtocol

Targets = Target | list[Target] | None


def check_batch(
    sources: Sequence[CAMSource],
    images: Tensor,
    class_idx: ClassIndex | None,
    targets: Targets,
    cams: Mapping[CAMSource, Tensor],
    protocols: Sequence[EvaluationProtocol],
    *,
    read_values: bool,
) -> None:
    """Validate a batch before the model runs.

    Args:
        sources: the sources of the maps.
        images: as for `explain_all`.
        class_idx: as for `explain_all`.
        targets: as for `explain_all`.
        cams: as for `explain_all`.
        protocols: the protocols of the evaluation.
        read_values: whether to check the values of class indices, which synchronizes a GPU with the host.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if an argument does not fit the others or the sources.
    """
    _check_images(images)
    check_class_idx_and_targets(class_idx, targets, images.shape[0], read_values=read_values)
    for protocol in protocols:
        if class_idx is None and targets is None and protocol.class_selection == "given":
            raise ValueError(
                f"the protocol {protocol.name!r} explains a given class; pass class_idx or targets"
            )
    for source in sources:
        if targets is not None and not source.supports_targets:
            raise ValueError(
                f"{source!r} explains a class, not an arbitrary target; pass class_idx instead of targets"
            )
        source.check(images, cams.get(source))


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(
            f"input_tensor is a {type(images).__name__}; it must be a tensor of images (N, C, *spatial),"
            " (N, C, H, W) for photos. Convert a NumPy array with torch.from_numpy(array); if its channels"
            " come last, add .permute(0, 3, 1, 2); stack a list of images with torch.stack"
        )
    if not images.is_floating_point():
        raise TypeError(
            f"input_tensor is of {images.dtype}; the model's input must be floating point, images.float()"
        )
    if not 3 <= images.ndim <= 5:
        raise ValueError(
            f"input_tensor has shape {tuple(images.shape)}; images are (N, C, *spatial) with one to three"
            " spatial dimensions. In a MetricCollection pass them by name:"
            " update(preds=..., target=..., input_tensor=images)"
        )
    if not images.numel():
        raise ValueError(
            f"input_tensor has shape {tuple(images.shape)} and holds no image; skip empty batches"
        )


def check_signature(model: nn.Module, images: Tensor) -> None:
    """Refuse a model that cannot be called with images alone."""
    signature = inspect.signature(model.forward)
    try:
        signature.bind(images)
    except TypeError as error:
        raise TypeError(
            f"the model is called with the images alone, but its forward{signature} does not accept that"
            f" ({error}); wrap it in a module whose forward takes the images and passes on the rest"
        ) from error


def check_logits(scores: Scores, sources: Sequence[CAMSource]) -> None:
    """Refuse an output without one logit for each class, for sources that differentiate the logit.

    Raises:
        ValueError: if the model returns something else.
    """
    if isinstance(scores.raw, Tensor) and scores.raw.shape == scores.scores.shape:
        return
    if any(source.graph != "none" for source in sources):
        given = tuple(scores.raw.shape) if isinstance(scores.raw, Tensor) else type(scores.raw).__name__
        raise ValueError(
            f"the protocol takes the CAM of the logit, but the model returns {given}, not one logit for each"
            " class; return (N, K) or an object with .logits, or use a protocol with cam_of='scores'"
        )


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
    if scorer not in (None, "compile") and not callable(scorer):
        raise TypeError(
            f"scorer is {scorer!r}; it must be a callable from images to the model's raw output, or 'compile'"
        )
    if batch_size is not None and not is_positive_integer(batch_size):
        raise ValueError(f"batch_size is {batch_size!r}; it must be a positive integer, or None")


def is_positive_integer(value: Any) -> bool:
    """Return whether a value is an int of at least 1, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
