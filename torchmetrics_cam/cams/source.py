"""The contract of everything that gives maps: CAMSource."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from torchmetrics_cam.model.guard import unwrapped
from torchmetrics_cam.model.scores import ClassIndex, ScoreFunction, Scores, ScoreSelector
from torchmetrics_cam.protocol import EvaluationProtocol

Graph = Literal["none", "head", "input"]
Sharing = Literal["pass", "scores", "nothing"]


@dataclass(frozen=True)
class ForwardPass:
    """What a source may look at to make its maps: one forward pass of the model on the unmasked images.

    Args:
        images: the images as the model was given them, ``(N, C, *spatial)``; a source does not change them.
        scores: the model's output and what ``logits_fn`` made of it, with their autograd graph if the source
            asked.
        selection: which score of each sample is explained.
        class_idx: the class as the user gave it.
        activations: what each of ``source.layers`` gave, in the order in which they ran; with their graph if
            the source asked for one.
        scoring: how the model's output becomes scores.
        cams: the maps that were handed to ``update``, by the source that they are for.
    """

    images: Tensor
    scores: Scores
    selector: ScoreSelector
    class_idx: ClassIndex | None
    activations: dict[nn.Module, Tensor]
    score_function: ScoreFunction
    cams: Mapping["CAMSource", Tensor] = field(default_factory=dict)

    @property
    def protocol(self) -> EvaluationProtocol:
        """The choices of the evaluation."""
        return self.score_function.protocol

    @property
    def explained(self) -> Any:
        """What the protocol takes the CAM of: the raw output, or the scores."""
        return self.scores.raw if self.protocol.cam_of == "logit" else self.scores.scores

    @cached_property
    def gradients(self) -> Mapping[nn.Module, Tensor | None]:
        """The derivative of the explained score by each activation, from one backward pass for all sources.

        None for a layer that the score does not depend on.

        Raises:
            RuntimeError: if the score has no gradient.
        """
        score = self.selector.select(self.explained).sum()
        if not score.requires_grad:
            raise RuntimeError(
                "the explained score has no gradient: the model or logits_fn runs under no_grad or"
                " inference_mode, or detaches its output; gradient CAMs need a path from layer to score"
            )
        in_graph = {layer: tensor for layer, tensor in self.activations.items() if tensor.requires_grad}
        gradients = torch.autograd.grad(score, list(in_graph.values()), allow_unused=True)
        return dict(zip(in_graph, gradients, strict=True))

    def explained_of(self, output: Any) -> Any:
        """The same of an output that a source got by running the model once more."""
        scores = self.score_function(output)
        return scores.raw if self.protocol.cam_of == "logit" else scores.scores


@dataclass(frozen=True)
class SourceMaps:
    """The maps of one batch, and what their source has already done to them.

    Args:
        layers: one tensor ``(N, *spatial)`` a target layer; most sources have one.
        rectified: negative values have been dealt with.
        normalized: the values are a mask in [0, 1] already, and are only resized.
    """

    layers: Sequence[Tensor]
    rectified: bool = False
    normalized: bool = False


class CAMSource(ABC):
    """Where the maps of one model come from.

    Subclass it for a method of your own: `maps` is the only thing that must be written.

    Attributes:
        model: the network that is explained, without the wrappers of `DistributedDataParallel` and
            ``torch.compile``. It is shared, never copied: a copy of the source (``metric.clone()``) keeps the
            same model, and a copy of the module that holds both follows the copied model.
        graph: the autograd graph that `maps` needs. ``"none"``; ``"head"``: from `layers` on, so that the
            body of the network runs at the cost of inference; ``"input"``: the whole network, to the images.
        sharing: what it may share with other sources of a comparison. ``"pass"``: `maps` looks at the clean
            pass and at nothing else, so one pass serves any number of such sources. ``"scores"``: `maps`
            runs the model by itself, and needs of the clean pass only the scores. ``"nothing"``: it has hooks
            on the model, or a graph of its own, and gets a clean pass of its own.
        hooked: the object of another library that has hooks on the model, if there is one.
        freezes: whether `recording` or `maps` switches the gradients of weights off and on again.
        supports_targets: whether maps of an arbitrary target can be made, or of a class only.
    """

    graph: Graph = "none"
    sharing: Sharing = "nothing"
    hooked: Any = None
    freezes: bool = False
    supports_targets: bool = True

    _model: nn.Module

    @property
    def model(self) -> nn.Module:
        """The network that is explained; wrappers are taken off when it is set."""
        return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._model = unwrapped(model)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The target layers, where the graph starts and activations are recorded."""
        return ()

    @abstractmethod
    def maps(self, clean: ForwardPass) -> SourceMaps:
        """The maps of one batch; called in evaluation mode and with gradients on."""

    def check(self, images: Tensor, cams: Tensor | None) -> None:
        """Refuse a batch before the model runs.

        Raises:
            ValueError: if maps were handed in, which only `PrecomputedMaps` takes.
        """
        if cams is not None:
            raise ValueError(
                f"cams were handed to a metric that takes its maps from {self!r}; use"
                " PrecomputedMaps(model) as the source, or leave cams out"
            )

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around the clean forward pass and `maps`: hooks of the source's own are live."""
        yield

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Around the masked forward passes: hooks of the source's own are silent."""
        yield

    def shares_hooks(self, other: "CAMSource") -> bool:
        """Whether the two have the same hooks, as two settings of one object have."""
        return self.hooked is not None and self.hooked is other.hooked

    def remove_hooks(self) -> None:  # noqa: B027 (most sources have none)
        """Take the source's own hooks off the model for good; it makes no maps any more."""

    def release(self) -> None:  # noqa: B027 (most sources keep nothing)
        """Drop every tensor kept from the batch."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        follows = id(self.model) in memo
        copy = object.__new__(type(self))
        memo[id(self)] = copy
        for name, value in vars(self).items():
            vars(copy)[name] = deepcopy(value, memo) if follows else value
        return copy

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__})"
