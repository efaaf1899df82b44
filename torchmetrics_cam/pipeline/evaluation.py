"""Evaluation: the sources of one model and all that decides a number, run on one batch at a time."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.model.random_numbers import OwnRandomNumbers
from torchmetrics_cam.model.scores import ClassIndex, ScoreFunction, ScoreSelector, Target
from torchmetrics_cam.pipeline.batch import Readings
from torchmetrics_cam.pipeline.explain import Explanation, explain_all
from torchmetrics_cam.pipeline.perturb import Perturbed, check_baselines, perturbed_scores

# How far the scores of a scorer may be from the model's, as a share of the model's, or of the largest one in
# the batch where they are no probabilities. Compiled float32 models are within 1e-5; half precision is not.
SCORER_TOLERANCE = 1e-3

T = TypeVar("T")

_CPU = torch.device("cpu")


class Evaluation:
    """The sources, the model behind them, and how maps become scores; shared by the copies of a metric.

    It is no Module, so that the network does not become part of the metric that holds it.

    Args:
        sources: of one model.
        scoring: how the model's output becomes scores.
        scorer: runs the masked images in place of the model.
        batch_size: at most so many masked images at once.
        validate_args: False skips the checks that read values off the device.
    """

    def __init__(
        self,
        sources: Sequence[CAMSource],
        scoring: ScoreFunction,
        *,
        scorer: Callable[[Tensor], Any] | None,
        batch_size: int | None,
        validate_args: bool,
    ) -> None:
        self.sources = sources
        self.scoring = scoring
        self.scorer = scorer
        self.batch_size = batch_size
        self.validate_args = validate_args
        self.begin()

    @property
    def model(self) -> nn.Module:
        """The network that is explained."""
        return self.sources[0].model

    def begin(self) -> None:
        """Begin anew, with the random numbers and with the comparison of scorer and model."""
        self.random_numbers = OwnRandomNumbers()
        self._compared = self.scorer is None or not self.validate_args

    def parts(self) -> tuple[Any, ...]:
        """By what metrics know that they measure the same."""
        sources = [(type(source), vars(source)) for source in self.sources]
        return (sources, self.scoring.protocol, self.scoring.logits_fn, self.scorer)

    def scored_by(self) -> dict[str, Any]:
        """How perturbed images are scored: what `perturbed_scores` wants to know."""
        return {
            "model": self.model,
            "scoring": self.scoring,
            "muted": [source.muted() for source in self.sources],
            "scorer": self.scorer,
            "batch_size": self.batch_size,
        }

    def run(
        self,
        images: Tensor,
        class_idx: ClassIndex | None,
        targets: Target | list[Target] | None,
        cams: Mapping[CAMSource, Tensor],
        *,
        check: Callable[[ScoreSelector], None],
        read: Callable[[Readings], T],
        objects: Tensor | None = None,
    ) -> T:
        """What is read off a batch.

        Args:
            images: as for `explain_all`.
            class_idx: as for `explain_all`.
            targets: as for `explain_all`.
            cams: as for `explain_all`.
            check: is called with what is explained before any perturbed image is scored.
            read: asks for the perturbations that it needs.
            objects: where the object of each image is, ``(N, *spatial)``.
        """
        if isinstance(images, Tensor) and images.ndim > 1:
            check_baselines(images, self.scoring.protocol)
        with self.random_numbers.drawn(getattr(images, "device", _CPU)):
            explanations = explain_all(
                self.sources,
                images,
                scoring=self.scoring,
                class_idx=class_idx,
                targets=targets,
                cams=cams,
                validate_args=self.validate_args,
            )
            check(explanations[0].selection)
            self._compare(explanations[0])
            marked = None if objects is None else objects.to(images.device) > 0
            return read(Readings(self, explanations, marked))

    def _compare(self, explanation: Explanation) -> None:
        """Once, on a batch's own images: the scorer and the model must say the same.

        Raises:
            ValueError: if they do not.
        """
        if self._compared or self.scorer is None:
            return
        images, valid = explanation.images, explanation.valid

        def whole(chunk: slice) -> Perturbed:
            part = images[chunk].clone()
            return part, torch.zeros(len(part), dtype=torch.bool, device=part.device)

        said = perturbed_scores([whole], explanation.scores, explanation.selection, **self.scored_by())[0]
        said, expected = said[valid], explanation.scores[valid]
        if not valid.any():
            return
        scale = expected.abs()
        if ((expected < 0) | (expected > 1)).any():
            # Of a raw output near 0 any rounding is a large share.
            scale = scale.amax()
        apart = (said - expected).abs() / scale.clamp(min=1e-6)
        if not (apart <= SCORER_TOLERANCE).all():
            raise ValueError(
                f"scorer and model disagree: on the same images their scores differ by up to"
                f" {apart.max():.2g} of the model's, and {SCORER_TOLERANCE} is allowed; make the scorer from"
                " the model as it is now, in evaluation mode and in the same precision. It must return the"
                " model's raw output, without a softmax. validate_args=False takes it as it is"
            )
        self._compared = True

    def __deepcopy__(self, memo: dict[int, Any]) -> "Evaluation":
        follows = id(self.model) in memo
        return Evaluation(
            [deepcopy(source, memo) for source in self.sources],
            deepcopy(self.scoring, memo) if follows else self.scoring,
            scorer=deepcopy(self.scorer, memo) if follows else self.scorer,
            batch_size=self.batch_size,
            validate_args=self.validate_args,
        )
