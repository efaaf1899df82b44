"""From the output of a model to the score of the explained class or target."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from torchmetrics_cam.protocol import EvaluationProtocol

Target = Callable[[Any], Tensor]
ClassIndex = int | Sequence[int] | Tensor


def logits_of(output: Any) -> Any:
    """Return the class scores within a model's output.

    Args:
        output: a tensor; an object or a mapping with ``logits``, as of transformers, or ``out``, as of
            torchvision's segmentation models; or a tuple, whose first entry they are.

    Returns:
        The class scores, or the output itself where it has none of these forms.
    """
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "out"):
        if isinstance(output, Mapping) and name in output:
            return output[name]
        if isinstance(getattr(output, name, None), Tensor):
            return getattr(output, name)
    return output[0] if isinstance(output, tuple) and output else output


@dataclass(frozen=True)
class Scores:
    """The output of one forward pass, raw and as scores.

    Args:
        raw: the class scores within the model's output (`logits_of`); if targets are explained, its
            ``logits`` or, without these, the whole output.
        scores: the scores that ``logits_fn`` or the protocol computes from it; ``(N, K)`` if classes are
            explained.
        is_binary: whether both were made from one logit, see `ScoreFunction`.
    """

    raw: Any
    scores: Any
    is_binary: bool = False

    def detached(self) -> "Scores":
        """Return the same without the autograd graph; a mapping becomes a dict."""
        return Scores(_detached(self.raw), _detached(self.scores), self.is_binary)


@dataclass(frozen=True)
class ScoreFunction:
    """The function from a model's output to scores: ``logits_fn`` if there is one, else the protocol's.

    A single logit z, ``(N, 1)``, is a binary classifier's: the softmax of the protocol becomes the sigmoid,
    the score of class 1 is sigmoid(z), that of class 0 is sigmoid(-z), and their logits are z and -z.

    Args:
        logits_fn: from the model's output to scores ``(N, K)``; None for the protocol's.
        protocol: its ``scores`` is ``"softmax"`` or ``"raw"``.
        for_targets: whether targets are explained; they receive every part of an output.
    """

    logits_fn: Callable[[Any], Any] | None
    protocol: EvaluationProtocol
    for_targets: bool = False

    def explaining(self, targets: Any) -> "ScoreFunction":
        """Return the same function for these targets, or for classes if they are None."""
        for_targets = targets is not None
        return self if self.for_targets is for_targets else replace(self, for_targets=for_targets)

    def __call__(self, output: Any) -> Scores:
        """Return the scores of an output; those of the protocol's softmax are at least float32."""
        logits = getattr(output, "logits", output) if self.for_targets else logits_of(output)
        if self.logits_fn is not None:
            return Scores(logits, self.logits_fn(output))
        if self.protocol.scores == "raw" or not isinstance(logits, Tensor) or logits.ndim < 2:
            return Scores(logits, logits)
        if logits.shape[1] == 1:
            logits = torch.cat([-logits, logits], 1)
            return Scores(logits, in_float32(logits).sigmoid(), is_binary=True)
        return Scores(logits, in_float32(logits).softmax(1))

    @property
    def normalizes_classes(self) -> bool:
        """Whether it applies a softmax, or the sigmoid to a single logit."""
        return self.logits_fn is None and self.protocol.scores == "softmax" and not self.for_targets


@dataclass(frozen=True)
class ScoreSelector:
    """The explained score of each image: that of its target class, or the value of its target function.

    Args:
        class_idx: the target class of each image, ``(N,)``, or None.
        targets: instead, one callable for each image, from a sample of the output to a scalar.
        num_classes: the number of classes of the model; None if targets are explained.
    """

    class_idx: Tensor | None = None
    targets: Sequence[Target] | None = None
    num_classes: int | None = None

    def select(self, output: Any) -> Tensor:
        """Return the selected score of each image, ``(N,)``, also of a subclass of tensors as a plain tensor.

        Raises:
            TypeError: if targets are given an output without a batch dimension, or one returns no tensor.
            ValueError: if a target returns more than one value.
        """
        if self.targets is None:
            assert self.class_idx is not None
            scores = torch.as_tensor(output).as_subclass(Tensor)
            return scores.gather(1, self.class_idx.unsqueeze(1)).squeeze(1)
        values = [target(sample) for target, sample in zip(self.targets, samples(output), strict=True)]
        for value in values:
            if not isinstance(value, Tensor):
                raise TypeError(f"a target returned {value!r}; it must return a scalar tensor")
            if value.numel() != 1:
                raise ValueError(
                    f"a target returned a tensor of shape {tuple(value.shape)}; it must return a scalar"
                )
        return torch.stack([value.as_subclass(Tensor).reshape(()) for value in values])

    def of_other_class(self, scores: Tensor, other_class: int | None) -> "ScoreSelector":
        """Return the selector of another class of each image than the explained one.

        Args:
            scores: the score of each class, ``(N, K)``.
            other_class: the other class; None for the one with the highest score beside the explained class.

        Raises:
            ValueError: if targets are explained, or there is no other class.
        """
        if self.class_idx is None:
            raise ValueError("targets have no other class to compare with; pass class_idx instead of targets")
        classes = scores.shape[1]
        if classes < 2 or (other_class is not None and other_class >= classes):
            raise ValueError(
                f"the protocol's other_class is {other_class}, and the number of classes that the model"
                f" scores is {classes}; it must be at least 2, and other_class None or an index below it"
            )
        if other_class is None:
            plain = scores.as_subclass(Tensor)
            others = plain.scatter(1, self.class_idx.unsqueeze(1), -torch.inf).argmax(1)
        else:
            others = torch.full_like(self.class_idx, other_class)
        return ScoreSelector(others, num_classes=self.num_classes)

    @classmethod
    def concatenated(cls, parts: Sequence["ScoreSelector"]) -> "ScoreSelector":
        """Return the selector of several batches, one after the other."""
        if parts[0].targets is not None:
            return cls(targets=[target for part in parts for target in part.targets or ()])
        indices = [part.class_idx for part in parts if part.class_idx is not None]
        return cls(torch.cat(indices), num_classes=parts[0].num_classes)

    def __getitem__(self, chunk: slice) -> "ScoreSelector":
        return ScoreSelector(
            None if self.class_idx is None else self.class_idx[chunk],
            None if self.targets is None else self.targets[chunk],
            self.num_classes,
        )


def check_class_idx_and_targets(
    class_idx: ClassIndex | None, targets: Any, batch_size: int, *, read_values: bool
) -> None:
    """Validate class indices or targets before the model runs.

    Raises:
        TypeError: if they are of a wrong type.
        ValueError: if both are given, their number is wrong, or a class index is negative.
    """
    if targets is not None:
        if class_idx is not None:
            raise ValueError("class_idx and targets were both given; pass one of them")
        targets_per_image(targets, batch_size)
    if class_idx is None:
        return
    if isinstance(class_idx, Tensor):
        if class_idx.dtype == torch.bool or class_idx.is_floating_point() or class_idx.is_complex():
            raise TypeError(
                f"class_idx is a tensor of {class_idx.dtype}; class indices are integers (torch.long)"
            )
        if class_idx.shape != (batch_size,):
            raise ValueError(
                f"class_idx has shape {tuple(class_idx.shape)} but input_tensor holds {batch_size} images;"
                f" pass one index for all or a tensor of shape ({batch_size},)"
            )
    elif not _is_integer(class_idx):
        if not isinstance(class_idx, list | tuple) or not all(map(_is_integer, class_idx)):
            raise TypeError(
                f"class_idx is {class_idx!r}; pass an int, a list of ints, a LongTensor (N,), or None"
            )
        if len(class_idx) != batch_size:
            raise ValueError(
                f"class_idx has {len(class_idx)} entries but input_tensor holds {batch_size} images;"
                " pass one index for all images or one for each"
            )
    _check_range(class_idx, None, read_values=read_values)


def check_scores(scores: Any, class_idx: ClassIndex | None, batch_size: int, *, read_values: bool) -> None:
    """Validate that the scores are a tensor ``(N, K)``, and the class indices are below K.

    Raises:
        TypeError: if the scores are no tensor.
        ValueError: if their shape is not ``(N, K)``, or a class index is not below K.
    """
    hint = "pass a logits_fn that returns one row of class scores for each image, or use targets"
    if not isinstance(scores, Tensor):
        raise TypeError(f"the scores are a {type(scores).__name__}, not an (N, K) tensor; {hint}")
    if scores.ndim != 2 or scores.shape[0] != batch_size:
        raise ValueError(
            f"the scores have shape {tuple(scores.shape)} for {batch_size} images, not (N, K); {hint}"
        )
    if class_idx is not None:
        _check_range(class_idx, scores.shape[1], read_values=read_values)


def class_tensor(class_idx: ClassIndex | None, scores: Tensor) -> Tensor:
    """Return the target class of each image, ``(N,)``: the given one, or that of the highest score."""
    if class_idx is None:
        return scores.detach().argmax(dim=-1)
    if isinstance(class_idx, Tensor):
        # A copy: labels that were made in inference mode may not enter the autograd graph.
        return class_idx.to(device=scores.device, dtype=torch.long, copy=True)
    if _is_integer(class_idx):
        return torch.full((len(scores),), int(class_idx), device=scores.device)  # type: ignore[arg-type]
    return torch.tensor(list(class_idx), device=scores.device, dtype=torch.long)  # type: ignore[arg-type]


def targets_per_image(targets: Target | Sequence[Target], batch_size: int) -> list[Target]:
    """Return one target for each image, from one for all images or one for each.

    Raises:
        TypeError: if they are not callable.
        ValueError: if their number is not that of the images.
    """
    if callable(targets):
        return [targets] * batch_size
    if not isinstance(targets, list | tuple) or not all(map(callable, targets)):
        raise TypeError(
            f"targets is {targets!r}; it must be a callable or a list with one callable for each image"
        )
    if len(targets) != batch_size:
        raise ValueError(f"targets has {len(targets)} entries but input_tensor holds {batch_size} images")
    return list(targets)


def samples(output: Any) -> Sequence[Any]:
    """Return the output of each image: of a tensor ``(N, ...)``, a list, a tuple or a mapping of these.

    Raises:
        TypeError: if the output has no batch dimension.
    """
    if isinstance(output, list):
        return output
    if isinstance(output, Mapping):
        return [dict(zip(output, sample, strict=True)) for sample in samples(tuple(output.values()))]
    if isinstance(output, tuple) and output:
        return list(zip(*map(samples, output), strict=True))
    if isinstance(output, Tensor) and output.ndim:
        return output.unbind(0)
    raise TypeError(
        "targets need a tensor (N, ...), a list of N outputs, or a tuple or dict of these, and the model"
        f" returned {type(output).__name__}"
    )


def selected_scores(
    scores: Scores, selector: ScoreSelector, score_function: ScoreFunction
) -> tuple[Tensor, Tensor]:
    """Return the score of each image, and whether its output looks as if it was normalized before, ``(N,)``.

    Args:
        scores: those of all classes.
        selector: of the class or target of each image.
        score_function: the function that made the scores.
    """
    selected = in_float32(selector.select(scores.scores))
    if score_function.normalizes_classes:
        return selected, _look_like_probabilities(scores)
    return selected, torch.zeros_like(selected, dtype=torch.bool)


def _look_like_probabilities(scores: Scores) -> Tensor:
    """Return whether the raw output of each image looks like probabilities, bool, ``(N,)``.

    After a softmax, the outputs are in [0, 1] and sum to 1. After a sigmoid they are in [0, 1]; for two to
    nine outputs this is no evidence, because logits often are there by chance.
    """
    outputs = (scores.raw[:, 1:] if scores.is_binary else scores.raw).as_subclass(Tensor)
    are_fractions: Tensor = (outputs >= 0).all(1) & (outputs <= 1).all(1)
    if 1 < outputs.shape[1] < 10:
        tolerance = 1e-5 if outputs.dtype in (torch.float32, torch.float64) else 0.03
        are_fractions &= (in_float32(outputs).sum(1) - 1).abs() < tolerance
    return are_fractions


def in_float32(values: Tensor) -> Tensor:
    """Convert values to at least float32, whatever the dtype of the model."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _detached(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, Mapping):
        return {name: _detached(part) for name, part in output.items()}
    if type(output) in (list, tuple):
        return type(output)(map(_detached, output))
    return output


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_range(class_idx: ClassIndex, num_classes: int | None, *, read_values: bool) -> None:
    if isinstance(class_idx, Tensor):
        indices = class_idx.tolist() if read_values else []
    else:
        indices = [class_idx] if _is_integer(class_idx) else list(class_idx)  # type: ignore[arg-type]
    wrong = [index for index in indices if index < 0 or (num_classes is not None and index >= num_classes)]
    if wrong:
        needed = (
            "a class index is not negative" if num_classes is None else f"the model has {num_classes} classes"
        )
        raise ValueError(f"class_idx {wrong[0]} is out of range: {needed}")
