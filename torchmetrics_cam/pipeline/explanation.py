"""A question about a batch of images, and its answer: the maps by one source, and the scores."""

from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from torchmetrics_cam.model.scores import ScoreFunction, ScoreSelector, in_float32


@dataclass(frozen=True)
class Question:
    """What is asked about a batch of images, which one clean forward pass can answer for several questions.

    Args:
        score_function: from the model's output to scores, with the protocol.
        of_other_class: whether the maps are those of another class of each image than the explained one, as
            the protocol's ``other_class`` says.
    """

    score_function: ScoreFunction
    of_other_class: bool = False

    @property
    def settings_of_maps(self) -> tuple[Any, ...]:
        """What the maps of a source depend on; questions with equal settings have the same maps."""
        protocol, logits_fn = self.score_function.protocol, self.score_function.logits_fn
        differentiates_scores = protocol.cam_of == "scores" and (logits_fn or protocol.scores != "raw")
        other_class = ("other", protocol.other_class) if self.of_other_class else "explained"
        return (other_class, bool(differentiates_scores), protocol.rectify, protocol.normalize)


@dataclass(frozen=True)
class Explanation:
    """The maps of one batch by one source, and the scores on the clean images.

    ``explanation[chunk]`` is that of some of the images.

    Args:
        images: the images as the model was given them, ``(N, C, *spatial)``.
        scores: the score of the explained class or target on each image, ``(N,)``.
        selector: which class or target of each image is explained.
        maps: one map for each image, ``(N, *any spatial)``, rectified, not normalized unless ``normalized``.
        normalized: whether the maps already are masks in [0, 1].
        valid: whether the pixels, the score and the map of an image are all finite, ``(N,)``.
        degenerate: whether the map of an image is constant, ``(N,)``.
        normalized_twice: whether the output of the model looks like probabilities before the protocol's
            softmax, ``(N,)``.
        outputs: the raw output of the model for each class, ``(N, classes)``; None if it has another form.
        ranked: what the model's top class is the largest of: its raw output or, with a ``logits_fn``, the
            scores of this, ``(N, classes)``; None if targets are explained.
        of_other_class: the same source's explanation of another class of each image, if it was asked for.
    """

    images: Tensor
    scores: Tensor
    selector: ScoreSelector
    maps: Tensor
    normalized: bool
    valid: Tensor
    degenerate: Tensor
    normalized_twice: Tensor
    outputs: Tensor | None = None
    ranked: Tensor | None = None
    of_other_class: "Explanation | None" = None

    def __getitem__(self, chunk: slice) -> "Explanation":
        if chunk == slice(0, self.images.shape[0]):
            return self
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        del parts["normalized"]
        chunks: dict[str, Any] = {name: part if part is None else part[chunk] for name, part in parts.items()}
        return replace(self, **chunks)

    @property
    def logits(self) -> Tensor:
        """The raw output of the model for the explained class of each image, at least float32, ``(N,)``.

        Raises:
            ValueError: if the model has no output for each class, or targets are explained.
        """
        if self.outputs is None:
            raise ValueError(
                "the drop of the logit needs one output of the model for each class, (N, K), and a class"
                " instead of targets; return logits from the model, and apply logits_fn to these"
            )
        return in_float32(self.selector.select(self.outputs))
