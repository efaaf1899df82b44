"""From images to maps: one forward pass on the clean images, and the maps of one source or of many."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.layers import image_size_known
from torchmetrics_cam.cams.source import CAMSource, ForwardPass, SourceMaps, check_maps
from torchmetrics_cam.functional.maps import fuse_maps, rectify
from torchmetrics_cam.model.graph import (
    ActivationGraph,
    Activations,
    activations_of,
    quantized_layer,
    why_no_gradient,
)
from torchmetrics_cam.model.guard import ModelGuard, eager
from torchmetrics_cam.model.scores import (
    ClassIndex,
    ScoreFunction,
    Scores,
    ScoreSelector,
    check_scores,
    class_tensor,
    in_float32,
    selected_scores,
    targets_per_image,
)
from torchmetrics_cam.pipeline.checks import Targets, check_logits, check_signature
from torchmetrics_cam.pipeline.explanation import Explanation, Question
from torchmetrics_cam.protocol import EvaluationProtocol


@dataclass(frozen=True)
class _CleanScores:
    """The scores of the clean images for one question.

    Args:
        scores: of all classes, without a graph.
        selector: of the class or target that the maps explain.
        selected: the score of that class or target, ``(N,)``.
        normalized_twice: as in `Explanation`.
        ranked: as in `Explanation`.
    """

    scores: Scores
    selector: ScoreSelector
    selected: Tensor
    normalized_twice: Tensor
    ranked: Tensor | None


def explain_all(
    sources: Sequence[CAMSource],
    images: Tensor,
    guard: ModelGuard,
    *,
    questions: Sequence[Question],
    class_idx: ClassIndex | None = None,
    targets: Targets = None,
    cams: Mapping[CAMSource, Tensor] | None = None,
    other_sources: Sequence[CAMSource] = (),
    read_values: bool = True,
) -> list[list[Explanation]]:
    """Return the maps of one batch by each source, and the scores on its images, for each question.

    Sources that only need the activations and scores of a forward pass share one, for all questions. The
    target class is determined once, in the first forward pass, by the scores of the first question.

    Args:
        sources: the sources of the maps, all of one model.
        images: ``(N, C, *spatial)`` with one to three spatial dimensions, floating point, on the model's
            device; checked by `check_batch`.
        guard: the guard of the model, which has been entered.
        questions: what is asked about the batch.
        class_idx: the target class: one for all images, one for each, or None for the top class of each.
        targets: instead of a class, one callable for all images or one for each, from a sample's output to a
            scalar.
        cams: maps computed beforehand, by their `PrecomputedMaps`.
        other_sources: further sources of the same model, whose hooks are disabled.
        read_values: as for `check_batch`.

    Returns:
        For each question the explanation of the batch by each source, without any autograd graph.

    Raises:
        ValueError: if the model's output does not fit the arguments.
    """
    if guard.has_inference_tensors and any(
        source.graph != "none" or source.differentiates for source in sources
    ):
        guard.refuse_inference_tensors()
    # Also of sources that run the model themselves, and get no forward pass of their own.
    counted_layers = [layer for source in sources for layer in source.counted_layers]
    explanations: dict[tuple[int, CAMSource], Explanation] = {}
    first: ForwardPass | None = None
    clean: list[_CleanScores] = []
    with torch.inference_mode(False), torch.enable_grad(), eager(), image_size_known(images):
        images = images.detach().as_subclass(Tensor)
        images = images.to(guard.dtype_for(images))
        # NaN is both the lowest and the highest value of a sample that has one.
        low, high = _extremes(images)
        finite = low.isfinite() & high.isfinite()
        for group, asked in _runs(sources, questions):
            guard.begin_pass()
            with ExitStack() as stack:
                for source in group:
                    stack.callback(source.release)
                for source in dict.fromkeys([*sources, *other_sources]):
                    if source not in group and not any(map(source.shares_hooks, group)):
                        stack.enter_context(source.muted())
                for source in group:
                    stack.enter_context(source.recording())
                if first is not None and group[0].sharing == "scores":
                    forward = first
                else:
                    forward = _forward_pass(
                        group,
                        images,
                        score_function=questions[0].score_function.explaining(targets),
                        class_idx=class_idx,
                        targets=targets,
                        cams=cams or {},
                        selector=None if first is None else first.selector,
                        counted_layers=counted_layers,
                        read_values=read_values,
                        stack=stack,
                        retains_graph=len(asked) > 1,
                    )
                if first is None:
                    clean = [_clean_scores(forward, question) for question in questions]
                    first = replace(forward, output=None, scores=clean[0].scores, activations={})
                maps: dict[tuple[Any, ...], list[SourceMaps]] = {}
                for index in asked:
                    question = questions[index]
                    settings = question.settings_of_maps
                    if settings not in maps:
                        view = forward if index == 0 else _asked(forward, question, clean[index], group)
                        maps[settings] = [_source_maps(source, view) for source in group]
                    for source, source_maps in zip(group, maps[settings], strict=True):
                        explanations[index, source] = _explanation(
                            source_maps, images, question.score_function.protocol, clean[index], finite
                        )
                # Its graph is freed before the next pass makes another.
                del forward
    return [[explanations[index, source] for source in sources] for index in range(len(questions))]


def _runs(
    sources: Sequence[CAMSource], questions: Sequence[Question]
) -> list[tuple[list[CAMSource], list[int]]]:
    """Return the groups of sources that share a forward pass, and the questions that it answers."""
    every = list(range(len(questions)))
    with_equal_maps: dict[tuple[Any, ...], list[int]] = {}
    for index in every:
        with_equal_maps.setdefault(questions[index].settings_of_maps, []).append(index)
    return [
        (group, asked)
        for group in _groups(sources)
        # An object of another library gets a forward pass for each kind of maps: its hooks serve one.
        for asked in ([every] if _shares_pass(group[0]) else with_equal_maps.values())
    ]


def _groups(sources: Sequence[CAMSource]) -> list[list[CAMSource]]:
    """Return the groups of sources that share a forward pass; each other source is a group of its own."""
    together: list[CAMSource] = []
    alone: list[CAMSource] = []
    for source in dict.fromkeys(sources):
        (together if _shares_pass(source) else alone).append(source)
    # Sources that use the scores of an earlier pass come last.
    alone.sort(key=lambda source: source.sharing == "scores")
    return [group for group in (together, *([source] for source in alone)) if group]


def _shares_pass(source: CAMSource) -> bool:
    # A graph from the images on would not start at the layers of the other sources.
    return source.sharing == "pass" and source.graph != "input"


def _forward_pass(
    sources: Sequence[CAMSource],
    images: Tensor,
    *,
    score_function: ScoreFunction,
    class_idx: ClassIndex | None,
    targets: Targets,
    cams: Mapping[CAMSource, Tensor],
    selector: ScoreSelector | None,
    counted_layers: Sequence[nn.Module],
    read_values: bool,
    stack: ExitStack,
    retains_graph: bool,
) -> ForwardPass:
    """Run the model once with the graph that the sources need; closing the stack releases the graph."""
    activations, output, scores = _run(
        sources[0].model, sources, images, score_function, counted_layers, stack
    )
    if selector is None:
        selector = _selector(scores, class_idx, targets, images.shape[0], read_values=read_values)
    if targets is None and score_function.protocol.cam_of == "logit":
        check_logits(scores, sources)
    return ForwardPass(
        images,
        output,
        scores,
        selector,
        class_idx,
        activations,
        score_function,
        cams,
        retains_graph=retains_graph,
    )


def _clean_scores(forward: ForwardPass, question: Question) -> _CleanScores:
    """Return the scores of the clean images for a question."""
    score_function = question.score_function.explaining(forward.selector.targets)
    is_same = score_function == forward.score_function
    scores = (forward.scores if is_same else score_function(forward.output)).detached()
    selector = forward.selector
    if selector.class_idx is not None and scores.scores.shape[1] != selector.num_classes:
        raise ValueError(
            f"under the protocol {score_function.protocol.name!r} the model scores {scores.scores.shape[1]}"
            f" classes, and under {forward.protocol.name!r} {selector.num_classes}; evaluate them separately"
        )
    # The softmax of a confident network can be 0 for all other classes.
    ranked = scores.scores if score_function.logits_fn else scores.raw
    if question.of_other_class:
        selector = selector.of_other_class(ranked, score_function.protocol.other_class)
    selected, twice = selected_scores(scores, selector, score_function)
    return _CleanScores(scores, selector, selected, twice, None if selector.class_idx is None else ranked)


def _asked(
    forward: ForwardPass, question: Question, clean: _CleanScores, sources: Sequence[CAMSource]
) -> ForwardPass:
    """Return the forward pass for another question than the first."""
    score_function = question.score_function.explaining(clean.selector.targets)
    if clean.selector.targets is None and score_function.protocol.cam_of == "logit":
        check_logits(clean.scores, sources)
    return replace(
        forward,
        # A pass that is shared for its scores alone has no output.
        scores=clean.scores if forward.output is None else score_function(forward.output),
        selector=clean.selector,
        class_idx=clean.selector.class_idx if question.of_other_class else forward.class_idx,
        score_function=score_function,
    )


def _run(
    model: nn.Module,
    sources: Sequence[CAMSource],
    images: Tensor,
    score_function: ScoreFunction,
    counted_layers: Sequence[nn.Module],
    stack: ExitStack,
) -> tuple[Activations, Any, Scores]:
    """Return the activations, the output and the scores, with the longest graph that any source needs.

    The model receives a clone of the images, because it may modify its input in place.
    """
    graphs = {source.graph for source in sources}
    in_graph = [layer for source in sources if source.graph == "head" for layer in source.layers]
    without = [layer for source in sources if source.graph == "none" for layer in source.layers]
    without = [layer for layer in without if layer not in in_graph]
    recorded: Activations = {}

    def run(images: Tensor) -> tuple[Any, Scores]:
        with activations_of(model, without, recorded, counted=counted_layers):
            try:
                output = model(images)
            except TypeError:
                check_signature(model, images)
                raise
        return output, score_function(output)

    if "input" in graphs:
        return recorded, *run(_in_graph(images))
    if "head" not in graphs:
        with torch.no_grad():
            return recorded, *run(images.clone())
    activations = stack.enter_context(ActivationGraph(model, in_graph))
    output, scores = run(images.clone())
    if not (activations and (_has_graph(scores.raw) or _has_graph(scores.scores))):
        # The layers did not run, or the model turned gradients off: leave the gradient mode to the model.
        activations.head_only = False
        output, scores = run(_in_graph(images))
    return recorded | activations, output, scores


def _selector(
    scores: Scores, class_idx: ClassIndex | None, targets: Targets, batch_size: int, *, read_values: bool
) -> ScoreSelector:
    if targets is not None:
        return ScoreSelector(targets=targets_per_image(targets, batch_size))
    check_scores(scores.scores, class_idx, batch_size, read_values=read_values)
    return ScoreSelector(
        class_idx=class_tensor(class_idx, scores.scores).as_subclass(Tensor),
        num_classes=scores.scores.shape[1],
    )


def _source_maps(source: CAMSource, forward: ForwardPass) -> SourceMaps:
    """Return the maps of one source."""
    try:
        return source.maps(forward)
    except (AttributeError, RuntimeError) as error:
        if quantized_layer(source.model) is None:
            raise
        raise RuntimeError(f"{source!r} cannot compute maps. {why_no_gradient(source.model)}") from error


def _explanation(
    source_maps: SourceMaps,
    images: Tensor,
    protocol: EvaluationProtocol,
    clean: _CleanScores,
    finite: Tensor,
) -> Explanation:
    """Return the explanation by the maps of one source."""
    layers = []
    for layer in source_maps.layers:
        check_maps(layer, images)
        layer = in_float32(layer.detach().as_subclass(Tensor).to(images.device))
        if not source_maps.rectified and protocol.rectify != "source":
            layer = rectify(layer, protocol.rectify)
        layers.append(layer)
    maps = fuse_maps(layers)
    low, high = _extremes(maps)
    outputs = clean.scores.raw
    has_outputs = clean.selector.class_idx is not None and isinstance(outputs, Tensor)
    return Explanation(
        images=images,
        scores=clean.selected,
        selector=clean.selector,
        maps=maps,
        normalized=source_maps.normalized,
        valid=finite & low.isfinite() & high.isfinite() & clean.selected.isfinite(),
        degenerate=low == high,
        normalized_twice=clean.normalized_twice,
        outputs=outputs if has_outputs and outputs.shape == clean.scores.scores.shape else None,
        ranked=clean.ranked,
    )


def _in_graph(images: Tensor) -> Tensor:
    """Return the images as an input with a gradient; no leaf, so that the model may modify it in place."""
    given = images.clone().requires_grad_().clone()
    given.retain_grad()
    return given


def _has_graph(output: Any) -> bool:
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return any(map(_has_graph, output))
    return isinstance(output, Tensor) and output.requires_grad


def _extremes(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest value of each sample, ``(N,)``."""
    # amin and amax are faster than torch.aminmax, and need no copy of images in channels-last layout.
    dims = tuple(range(1, tensor.ndim))
    return tensor.amin(dims), tensor.amax(dims)
