"""One forward pass of the model on the unmasked images, open until the maps of its sources are made."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from statistics import mode
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.source import CAMSource, ForwardPass
from torchmetrics_cam.model.graph import activation_graph, activations_of
from torchmetrics_cam.model.scores import (
    ClassIndex,
    ScoreFunction,
    Scores,
    ScoreSelector,
    Target,
    check_scores,
    class_tensor,
    resolve_targets,
)


@contextmanager
def clean_pass(
    sources: Sequence[CAMSource],
    images: Tensor,
    *,
    scoring: ScoreFunction,
    class_idx: ClassIndex | None,
    targets: Target | list[Target] | None,
    cams: Mapping[CAMSource, Tensor],
    selection: ScoreSelector | None,
    validate_args: bool,
) -> Iterator[ForwardPass]:
    """One forward pass with the graph that its sources need.

    The model gets a clone of the images: it may work on its input in place, and the images are needed again.

    Args:
        sources: one source, or several that share a pass.
        images: as for `explain`.
        scoring: as for `explain`.
        class_idx: as for `explain`.
        targets: as for `explain`.
        cams: the maps that were handed in, by their source.
        selection: what an earlier pass over the images has selected; None to select now.
        validate_args: as for `explain`.
    """
    model = sources[0].model
    with ExitStack() as stack:
        for source in sources:
            stack.enter_context(source.recording())
        activations, scores = _run(model, sources, images, scoring, stack)
        if selection is None:
            selection = _selected(scores, class_idx, targets, len(images), read_values=validate_args)
        if targets is None and scoring.protocol.cam_of == "logit":
            _check_logits(scores, sources)
        yield ForwardPass(images, scores, selection, class_idx, activations, scoring, cams)


def _run(
    model: nn.Module, sources: Sequence[CAMSource], images: Tensor, scoring: ScoreFunction, stack: ExitStack
) -> tuple[dict[nn.Module, Tensor], Scores]:
    """What the layers gave, and the scores; the graph is as long as the source needs that goes furthest."""
    in_graph = [layer for source in sources if source.graph == "head" for layer in source.layers]
    beside = [layer for source in sources if source.graph == "none" for layer in source.layers]
    recorded = stack.enter_context(activations_of([layer for layer in beside if layer not in in_graph]))
    if any(source.graph == "input" for source in sources):
        return recorded, scoring(model(_in_graph(images)))
    if not any(source.graph == "head" for source in sources):
        with torch.no_grad():
            return recorded, scoring(model(images.clone()))
    attempt = stack.enter_context(ExitStack())
    graph = attempt.enter_context(activation_graph(model, in_graph))
    scores = scoring(model(images.clone()))
    if not (graph.activations and (_has_graph(scores.raw) or _has_graph(scores.scores))):
        # The layers were not reached, or the model itself turned gradients off: run it as it is written.
        attempt.close()
        graph = stack.enter_context(activation_graph(model, in_graph, head_only=False))
        scores = scoring(model(_in_graph(images)))
    return recorded | graph.activations, scores


def _selected(
    scores: Scores,
    class_idx: ClassIndex | None,
    targets: Target | list[Target] | None,
    batch_size: int,
    *,
    read_values: bool,
) -> ScoreSelector:
    if targets is not None:
        return ScoreSelector(targets=resolve_targets(targets, batch_size))
    check_scores(scores.scores, class_idx, batch_size, read_values=read_values)
    return ScoreSelector(class_idx=class_tensor(class_idx, scores.scores), num_classes=scores.scores.shape[1])


def _check_logits(scores: Scores, sources: Sequence[CAMSource]) -> None:
    if all(source.graph == "none" for source in sources):
        return
    if not isinstance(scores.raw, Tensor) or scores.raw.shape != scores.scores.shape:
        given = tuple(scores.raw.shape) if isinstance(scores.raw, Tensor) else type(scores.raw).__name__
        raise ValueError(
            f"the protocol takes the CAM of the logit, but the model returns {given}, not one logit a class;"
            " return (N, K) or an object with .logits, or use a protocol with cam_of='scores'"
        )


def model_dtype(model: nn.Module, images: Tensor) -> torch.dtype:
    """The images' own dtype if a weight of the model has it, else that of most of the model's weights."""
    floating = [weight.dtype for weight in model.parameters() if weight.is_floating_point()]
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
