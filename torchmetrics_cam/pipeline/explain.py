"""explain(): one batch, one guarded clean forward pass, the maps of one source or of many."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from torchmetrics_cam.cams.callables import check_maps
from torchmetrics_cam.cams.source import CAMSource, ForwardPass
from torchmetrics_cam.functional.maps import fuse_maps, rectify
from torchmetrics_cam.model.graph import gradients_on, refuse_inference_tensors
from torchmetrics_cam.model.guard import refuse_lazy_modules, untouched
from torchmetrics_cam.model.scores import (
    ClassIndex,
    ScoreFunction,
    ScoreSelector,
    Target,
    check_selection,
    in_float32,
)
from torchmetrics_cam.pipeline.clean_pass import clean_pass, model_dtype


@dataclass(frozen=True)
class Explanation:
    """What the clean forward pass of one batch gave: the scores, what is explained, and the maps.

    ``explanation[chunk]`` is that of some of the images.

    Args:
        images: the images as the model was given them, ``(N, C, *spatial)``.
        scores: the score of the explained class or target on each image, ``(N,)``.
        selection: which class or target each image is explained for.
        maps: one map an image, ``(N, *any spatial)``, rectified, not normalized unless ``normalized``.
        normalized: the maps are masks in [0, 1] already.
        valid: images whose pixels, score and map are all finite, ``(N,)``; the others leave the metric.
        degenerate: images whose map is constant, ``(N,)``.
    """

    images: Tensor
    scores: Tensor
    selection: ScoreSelector
    maps: Tensor
    normalized: bool
    valid: Tensor
    degenerate: Tensor

    def __getitem__(self, chunk: slice) -> "Explanation":
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: part[chunk] for name, part in parts.items() if name != "normalized"})


def explain(source: CAMSource, images: Tensor, *, cams: Tensor | None = None, **settings: Any) -> Explanation:
    """`explain_all` of one source; ``cams`` are the maps that were computed beforehand."""
    return explain_all([source], images, cams={} if cams is None else {source: cams}, **settings)[0]


def explain_all(
    sources: Sequence[CAMSource],
    images: Tensor,
    *,
    scoring: ScoreFunction,
    class_idx: ClassIndex | None = None,
    targets: Target | list[Target] | None = None,
    cams: Mapping[CAMSource, Tensor] | None = None,
    silent: Sequence[CAMSource] = (),
    validate_args: bool = True,
) -> list[Explanation]:
    """Scores and maps of one batch; nothing is left on the model.

    All sources that look only at what a clean forward pass has recorded share one. What is explained is
    decided once, on the first pass.

    Args:
        sources: where the maps come from; all of one model.
        images: ``(N, C, *spatial)`` with one to three spatial dimensions, floating point, on the model's
            device.
        scoring: how the model's output becomes scores.
        class_idx: the class to explain: one for all, one an image, or None for the top class of each.
        targets: instead of a class, one callable for all or one an image, from a sample's output to a scalar.
        cams: maps computed beforehand, by their `PrecomputedMaps`.
        silent: more sources of the model, whose hooks must not notice.
        validate_args: False skips the checks that read values off the device.

    Returns:
        The explanation of the batch by each source, without any autograd graph.

    Raises:
        TypeError: if an argument is of a wrong type; the model has not run.
        ValueError: if an argument does not fit the others; the model has not run, unless only its output
            could tell.
    """
    model, cams = sources[0].model, cams or {}
    _check_images(images, sources[0])
    check_selection(class_idx, targets, len(images), read_values=validate_args)
    if class_idx is None and targets is None and scoring.protocol.class_selection == "given":
        raise ValueError(
            f"the protocol {scoring.protocol.name!r} explains a given class; pass class_idx or targets"
        )
    for source in sources:
        if targets is not None and not source.supports_targets:
            raise ValueError(
                f"{source!r} explains a class, not an arbitrary target; pass class_idx instead of targets"
            )
        source.check(images, cams.get(source))
    refuse_lazy_modules(model)
    if any(source.graph != "none" or source.freezes for source in sources):
        refuse_inference_tensors(model)

    with gradients_on():
        images = images.detach().to(model_dtype(model, images))
    finite = _all_finite(images)
    made: dict[CAMSource, Explanation] = {}
    first: ForwardPass | None = None
    for group in _groups(sources):
        with gradients_on(), untouched(model), ExitStack() as stack:
            for source in group:
                stack.callback(source.release)
            for source in dict.fromkeys([*sources, *silent]):
                if not any(source is one or source.shares_hooks(one) for one in group):
                    stack.enter_context(source.muted())
            if first is not None and group[0].sharing == "scores":
                stack.enter_context(group[0].recording())
                clean = first
            else:
                one_pass = clean_pass(
                    group,
                    images,
                    scoring=scoring.explaining(targets),
                    class_idx=class_idx,
                    targets=targets,
                    cams=cams,
                    selection=None if first is None else first.selection,
                    validate_args=validate_args,
                )
                clean = stack.enter_context(one_pass)
            if first is None:
                first = replace(clean, scores=clean.scores.detached(), activations={})
                scores = in_float32(first.selection.of(first.scores.scores).detach())
            for source in group:
                made[source] = _explanation(source, clean, first.selection, scores, finite)
            # Its graph goes before the next pass makes another.
            del clean
    return [made[source] for source in sources]


def _groups(sources: Sequence[CAMSource]) -> list[list[CAMSource]]:
    """Which sources have a clean pass together: those that share one, and each of the others by itself."""
    together: list[CAMSource] = []
    alone: list[CAMSource] = []
    for source in dict.fromkeys(sources):
        # A graph down to the images would not end at the layers of the others.
        shares = source.sharing == "pass" and source.graph != "input"
        (together if shares else alone).append(source)
    # Those that can do with the scores of another's pass come last.
    alone.sort(key=lambda source: source.sharing == "scores")
    return [group for group in (together, *([source] for source in alone)) if group]


def _explanation(
    source: CAMSource, clean: ForwardPass, selection: ScoreSelector, scores: Tensor, finite: Tensor
) -> Explanation:
    """The maps of a source, and what does not depend on the source."""
    made = source.maps(clean)
    for layer in made.layers:
        check_maps(layer, clean.images)
    layers = [in_float32(layer.detach().to(clean.images.device)) for layer in made.layers]
    if not made.rectified and clean.protocol.rectify != "source":
        layers = [rectify(layer, clean.protocol.rectify) for layer in layers]
    maps = fuse_maps(layers)
    return Explanation(
        images=clean.images,
        scores=scores,
        selection=selection,
        maps=maps,
        normalized=made.normalized,
        valid=finite & _all_finite(maps) & scores.isfinite(),
        degenerate=maps.flatten(1).amax(1) == maps.flatten(1).amin(1),
    )


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


def _all_finite(tensor: Tensor) -> Tensor:
    """Whether every value of a sample is finite, ``(N,)``, without a mask of the tensor's size."""
    # Both are many times faster than torch.aminmax, and need no copy of images in channels-last layout.
    dims = tuple(range(1, tensor.ndim))
    return tensor.amin(dims).isfinite() & tensor.amax(dims).isfinite()
