"""CAMSource, the interface of all sources of maps, with its input and its result."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
    """One forward pass of the model on the clean images: the input of `CAMSource.maps`.

    Args:
        images: the images as the model received them, ``(N, C, *spatial)``. A source must not modify them.
        output: the output of the model.
        scores: the class scores within the output, and the scores computed from them, with their autograd
            graph if the source needs one (`CAMSource.graph`).
        selector: selects the explained score of each image, by class index or by target.
        class_idx: the class index as the user passed it to ``update``.
        activations: the output of each layer of `CAMSource.layers`, in execution order, with its autograd
            graph if the source needs one.
        score_function: computes scores from an output of the model.
        cams: the precomputed maps passed to ``update``, by the source that returns them.
        retains_graph: whether the graph is kept after a backward pass, for maps of other classes or scores.
    """

    images: Tensor
    output: Any
    scores: Scores
    selector: ScoreSelector
    class_idx: ClassIndex | None
    activations: dict[nn.Module, Tensor]
    score_function: ScoreFunction
    cams: Mapping["CAMSource", Tensor] = field(default_factory=dict)
    retains_graph: bool = False

    @property
    def protocol(self) -> EvaluationProtocol:
        """The protocol of the evaluation."""
        return self.score_function.protocol

    @property
    def explained_output(self) -> Any:
        """The output that contains the explained score: raw, or the scores if ``cam_of="scores"``."""
        return self._explained(self.scores)

    def explained_output_of(self, output: Any) -> Any:
        """Return the `explained_output` of another raw output of the model.

        For sources that run the model themselves.
        """
        return self._explained(self.score_function(output))

    def require_output_per_class(self, source: "CAMSource") -> None:
        """Refuse a model with one logit, for a source that reads its own output or weights for each class.

        Raises:
            ValueError: if the model has one logit.
        """
        if self.scores.is_binary:
            raise ValueError(
                f"{source!r} needs an output of the model for each class, and the model has one logit; use a"
                " gradient CAM, or a model with two outputs"
            )

    def _explained(self, scores: Scores) -> Any:
        return scores.raw if self.protocol.cam_of == "logit" else scores.scores

    @cached_property
    def gradients(self) -> Mapping[nn.Module, Tensor | None]:
        """The gradient of the explained score with respect to each activation, in the activation's shape.

        One backward pass computes it for all sources that share this forward pass. The value is None where
        there is no gradient.
        """
        score = self.selector.select(self.explained_output).sum()
        if not score.requires_grad:
            return dict.fromkeys(self.activations)
        in_graph = {layer: tensor for layer, tensor in self.activations.items() if tensor.requires_grad}
        gradients = torch.autograd.grad(
            score, list(in_graph.values()), allow_unused=True, retain_graph=self.retains_graph
        )
        return dict(zip(in_graph, gradients, strict=True))


@dataclass(frozen=True)
class SourceMaps:
    """The maps of one batch, and which processing steps their source has already applied.

    Args:
        layers: one tensor ``(N, *spatial)`` per target layer; most sources have one layer.
        rectified: whether negative values are already rectified; if not, the protocol's ``rectify`` applies.
        normalized: whether the values are already a mask in [0, 1], which is only resized to the image.
    """

    layers: Sequence[Tensor]
    rectified: bool = False
    normalized: bool = False


class CAMSource(ABC):
    """Base class of all sources of maps (class activation maps) of one model.

    A subclass sets `model` and implements `maps`. The other attributes and methods have defaults that suit
    a source without hooks and without gradients.

    Attributes:
        model: the explained network, without the wrappers of `DistributedDataParallel` and
            ``torch.compile``. It is never copied: a copy of the source (``metric.clone()``) refers to the
            same model, unless model and source are copied together as parts of one module.
        graph: the autograd graph that `maps` needs: ``"none"``; ``"head"``, from `layers` to the output, so
            that the layers before run at the cost of inference; or ``"input"``, from the images to the
            output.
        sharing: what the source can share with other sources in a comparison. ``"pass"``: `maps` uses only
            the recorded forward pass, so that one pass serves all such sources. ``"scores"``: `maps` runs
            the model itself and needs only the scores of a forward pass. ``"nothing"``: the source has
            hooks on the model or needs its own graph, and gets a forward pass of its own.
        hooked: the object of another library whose hooks are on the model, or None.
        differentiates: whether `maps` runs the model itself with autograd.
        supports_targets: whether the source can explain a target function, or only a class.

    Example:
        A source that returns the brightness of each pixel, the mean over the channels.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import CAMSource, SourceMaps
        >>> class BrightnessMap(CAMSource):
        ...     def __init__(self, model):
        ...         self.model = model
        ...     def maps(self, forward):
        ...         return SourceMaps([forward.images.mean(1)])
        >>> images = torch.tensor([[[[1.0, 2.0]], [[3.0, 0.0]]]])
        >>> explain(BrightnessMap(nn.Flatten()), images).maps
        tensor([[[2., 1.]]])

    """

    graph: Graph = "none"
    sharing: Sharing = "nothing"
    hooked: Any = None
    differentiates: bool = False
    supports_targets: bool = True

    _model: nn.Module

    @property
    def model(self) -> nn.Module:
        """The explained network; the setter removes wrappers, and refuses an exported program."""
        return self._model

    @model.setter
    def model(self, model: nn.Module) -> None:
        self._model = unwrapped(model)
        # torch.export replaces the method by one that raises.
        if isinstance(self._model, torch.fx.GraphModule) and "eval" in vars(self._model):
            raise TypeError(
                "the model is an exported program (torch.export), which cannot be set to evaluation mode and"
                " has no layers; pass the network that was exported"
            )

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The layers whose activations are recorded and where a graph ``"head"`` starts."""
        return ()

    @property
    def counted_layers(self) -> Sequence[nn.Module]:
        """Further layers that the maps are computed from; like `layers`, each may only run once."""
        return ()

    @abstractmethod
    def maps(self, forward: ForwardPass) -> SourceMaps:
        """Return the maps of one batch.

        Called with the model in evaluation mode and with autograd enabled. The parameters do not require
        gradients; a source that needs them enables them in `recording`.

        Args:
            forward: the forward pass of the model on the clean images.

        Returns:
            One map per image for each target layer.
        """

    def check(self, images: Tensor, cams: Tensor | None) -> None:
        """Validate the batch before the model runs.

        Args:
            images: the images, ``(N, C, *spatial)``.
            cams: the precomputed maps passed to ``update`` for this source, or None.

        Raises:
            ValueError: if precomputed maps were passed; only `PrecomputedMaps` accepts them.
        """
        if cams is not None:
            raise ValueError(
                f"cams was passed, but {self!r} computes its own maps; remove cams, or use"
                " PrecomputedMaps(model) as the cam_extractor"
            )

    def recording(self) -> AbstractContextManager[None]:
        """Enable the source's own hooks; entered around the forward pass on the clean images and `maps`."""
        return nullcontext()

    def muted(self) -> AbstractContextManager[None]:
        """Disable the source's own hooks; entered around the forward passes on perturbed images."""
        return nullcontext()

    def shares_hooks(self, other: "CAMSource") -> bool:
        """Return whether both sources wrap the same object, and therefore use the same hooks."""
        return self.hooked is not None and self.hooked is other.hooked

    def remove_hooks(self) -> None:  # noqa: B027 (most sources have no hooks)
        """Remove the source's own hooks from the model; afterwards the source cannot compute maps."""

    def release(self) -> None:  # noqa: B027 (most sources keep no tensors)
        """Release all tensors that were kept from the last batch."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        model_is_copied = id(self.model) in memo
        copy = object.__new__(type(self))
        memo[id(self)] = copy
        for name, value in vars(self).items():
            vars(copy)[name] = deepcopy(value, memo) if model_is_copied else value
        return copy

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.model).__name__})"


def library_classes(candidate: Any, library: str) -> set[str]:
    """Return the names of the classes of a library that an object is an instance of.

    The library is not imported.

    Args:
        candidate: any object.
        library: the package of the classes, such as ``"captum.attr"``.
    """
    return {cls.__name__ for cls in type(candidate).__mro__ if f"{cls.__module__}.".startswith(f"{library}.")}


def check_maps(maps: Tensor, images: Tensor) -> None:
    """Validate that there is one map per image, with as many spatial dimensions as the images.

    Args:
        maps: the maps to validate, ``(N, *spatial)``.
        images: the images, ``(N, C, *spatial)``.

    Raises:
        TypeError: if the maps are not a tensor.
        ValueError: if their number or their number of dimensions does not match the images, or if they are
            empty.
    """
    if not isinstance(maps, Tensor):
        raise TypeError(f"the maps are a {type(maps).__name__}; return a tensor (N, *spatial)")
    if maps.ndim != images.ndim - 1:
        raise ValueError(
            f"cam has shape {tuple(maps.shape)} but input_tensor has {images.ndim - 2} spatial dimensions;"
            " return maps (N, *spatial) without a channel dimension. If the target layer returns tokens, pass"
            " reshape_transform"
        )
    if maps.shape[0] != images.shape[0]:
        raise ValueError(
            f"cam has {len(maps)} maps but input_tensor holds {len(images)} images; return one map per image"
        )
    if not maps.numel():
        raise ValueError(
            f"cam has shape {tuple(maps.shape)}, which is empty; return at least one pixel per map"
        )
