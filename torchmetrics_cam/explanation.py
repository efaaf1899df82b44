"""explain(): one batch, one guarded clean forward pass, one map an image."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import mode
from typing import Any

import torch
from torch import Tensor

from torchmetrics_cam.cams.callables import check_maps
from torchmetrics_cam.cams.source import CAMSource, CleanPass, SourceMaps
from torchmetrics_cam.functional.maps import fuse_maps, rectify
from torchmetrics_cam.graph import activation_graph, activations_of, gradients_on, refuse_inference_tensors
from torchmetrics_cam.guard import refuse_lazy_modules, untouched
from torchmetrics_cam.scoring import (
    ClassIndex,
    Scores,
    Scoring,
    Selection,
    Target,
    check_scores,
    check_selection,
    class_tensor,
    resolve_targets,
)


@dataclass(frozen=True)
class Explanation:
    """What the clean forward pass of one batch gave: the scores, what is explained, and the maps.

    Args:
        images: the images as the model was given them, ``(N, C, *spatial)``.
        scores: the score of the explained class or target on each image, ``(N,)``.
        selection: which class or target each image is explained for.
        maps: one map an image, ``(N, *any spatial)``, rectified, not normalised unless ``normalized``.
        normalized: the maps are masks in [0, 1] already.
        valid: images whose pixels, score and map are all finite, ``(N,)``; the others leave the metric.
        degenerate: images whose map is constant, ``(N,)``.
    """

    images: Tensor
    scores: Tensor
    selection: Selection
    maps: Tensor
    normalized: bool
    valid: Tensor
    degenerate: Tensor


def explain(
    source: CAMSource,
    images: Tensor,
    *,
    scoring: Scoring,
    class_idx: ClassIndex | None = None,
    targets: Target | list[Target] | None = None,
    cams: Tensor | None = None,
    validate_args: bool = True,
) -> Explanation:
    """Scores and maps of one batch, from one forward pass of the model; nothing is left on the model.

    Args:
        source: where the maps come from.
        images: ``(N, C, *spatial)`` with one to three spatial dimensions, floating point, on the model's
            device.
        scoring: how the model's output becomes scores.
        class_idx: the class to explain: one for all, one an image, or None for the top class of each.
        targets: instead of a class, one callable for all or one an image, from a sample's output to a scalar.
        cams: maps computed beforehand, for `PrecomputedMaps`.
        validate_args: False skips the checks that read values off the device.

    Returns:
        The explanation of the batch, without any autograd graph.

    Raises:
        TypeError: if an argument is of a wrong type; the model has not run.
        ValueError: if an argument does not fit the others; the model has not run, unless only its output
            could tell.
    """
    _check_images(images, source)
    check_selection(class_idx, targets, len(images), read_values=validate_args)
    if class_idx is None and targets is None and scoring.protocol.class_selection == "given":
        raise ValueError(
            f"the protocol {scoring.protocol.name!r} explains a given class; pass class_idx or targets"
        )
    if targets is not None and not source.supports_targets:
        raise ValueError(
            f"{source!r} explains a class, not an arbitrary target; pass class_idx instead of targets"
        )
    source.check(images, cams)
    scoring = scoring.explaining(targets)
    refuse_lazy_modules(source.model)
    if source.graph != "none":
        refuse_inference_tensors(source.model)

    with gradients_on(), untouched(source.model), ExitStack() as stack:
        stack.callback(source.release)
        images = images.detach().to(_model_dtype(source, images))
        clean = _clean_pass(source, images, scoring, class_idx, targets, cams, validate_args, stack)
        made = source.maps(clean)
        for layer in made.layers:
            check_maps(layer, images)
        maps = _one_map(made, clean)
        scores = clean.selection.of(clean.scores.scores).detach()
    return Explanation(
        images=images,
        scores=scores,
        selection=clean.selection,
        maps=maps,
        normalized=made.normalized,
        valid=_all_finite(images) & _all_finite(maps) & scores.isfinite(),
        degenerate=maps.flatten(1).amax(1) == maps.flatten(1).amin(1),
    )


def _clean_pass(
    source: CAMSource,
    images: Tensor,
    scoring: Scoring,
    class_idx: ClassIndex | None,
    targets: Target | list[Target] | None,
    cams: Tensor | None,
    validate_args: bool,
    stack: ExitStack,
) -> CleanPass:
    """One forward pass with the graph that the source needs, open until the maps are made.

    The model gets a clone of the images: it may work on its input in place, and the images are needed again.
    """
    stack.enter_context(source.recording())
    activations: dict[Any, Tensor] = {}
    if source.graph == "none":
        with torch.no_grad(), activations_of(source.layers) as activations:
            scores = scoring(source.model(images.clone()))
    elif source.graph == "input":
        scores = scoring(source.model(_in_graph(images)))
    else:
        attempt = stack.enter_context(ExitStack())
        activations = attempt.enter_context(activation_graph(source.model, source.layers)).activations
        scores = scoring(source.model(images.clone()))
        if not (activations and (_has_graph(scores.raw) or _has_graph(scores.scores))):
            # The layers were not reached, or the model itself turned gradients off: run it as it is written.
            attempt.close()
            activations = stack.enter_context(
                activation_graph(source.model, source.layers, head_only=False)
            ).activations
            scores = scoring(source.model(_in_graph(images)))
    if targets is not None:
        selection = Selection(targets=resolve_targets(targets, len(images)))
    else:
        check_scores(scores.scores, class_idx, len(images), read_values=validate_args)
        num_classes = scores.scores.shape[1]
        selection = Selection(class_idx=class_tensor(class_idx, scores.scores), num_classes=num_classes)
        if scoring.protocol.cam_of == "logit" and source.graph != "none":
            _check_logits(scores)
    return CleanPass(images, scores, selection, class_idx, activations, scoring, cams)


def _one_map(made: SourceMaps, clean: CleanPass) -> Tensor:
    """The maps of all layers rectified and fused, in at least float32 and on the device of the images."""
    layers = [
        layer.detach().to(clean.images.device, torch.promote_types(layer.dtype, torch.float32))
        for layer in made.layers
    ]
    if not made.rectified and clean.protocol.rectify != "source":
        layers = [rectify(layer, clean.protocol.rectify) for layer in layers]
    return fuse_maps(layers)


def _check_images(images: Tensor, source: CAMSource) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(
            f"input_tensor is a {type(images).__name__}; it must be a tensor (N, C, *spatial) of images"
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
            f"input_tensor has shape {tuple(images.shape)} and holds nothing; skip empty batches"
        )
    weight = next(source.model.parameters(), None)
    if weight is not None and weight.device != images.device:
        raise ValueError(
            f"input_tensor is on {images.device} but the model is on {weight.device}; move one of them:"
            " images.to(device) or model.to(device)"
        )


def _check_logits(scores: Scores) -> None:
    if not isinstance(scores.raw, Tensor) or scores.raw.shape != scores.scores.shape:
        given = tuple(scores.raw.shape) if isinstance(scores.raw, Tensor) else type(scores.raw).__name__
        raise ValueError(
            f"the protocol takes the CAM of the logit, but the model returns {given}, not one logit a class;"
            " return (N, K) or an object with .logits, or use a protocol with cam_of='scores'"
        )


def _model_dtype(source: CAMSource, images: Tensor) -> torch.dtype:
    """The images' own dtype if a weight of the model has it, else that of most of the model's weights."""
    floating = [weight.dtype for weight in source.model.parameters() if weight.is_floating_point()]
    return images.dtype if images.dtype in floating or not floating else mode(floating)


def _in_graph(images: Tensor) -> Tensor:
    """The images as an input with a gradient; no leaf, so that a model may still work on it in place."""
    given = images.clone().requires_grad_().clone()
    given.retain_grad()
    return given


def _has_graph(output: Any) -> bool:
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return any(map(_has_graph, output))
    return isinstance(output, Tensor) and output.requires_grad


def _all_finite(tensor: Tensor) -> Tensor:
    """Whether every value of a sample is finite, ``(N,)``, without a mask of the tensor's size."""
    low, high = tensor.flatten(1).aminmax(dim=1)
    return low.isfinite() & high.isfinite()
