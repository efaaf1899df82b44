"""What the model says to a batch and to perturbations of it: what every measure is made of."""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchmetrics_cam.baselines import baseline_of
from torchmetrics_cam.functional.adcc import complexity, map_correlation
from torchmetrics_cam.functional.curves import perturbed_counts, position_ranks
from torchmetrics_cam.model.scores import ScoreSelector
from torchmetrics_cam.pipeline.explain import Explanation, explain
from torchmetrics_cam.pipeline.perturb import (
    Perturbed,
    apply_mask,
    hide_positions,
    impute_positions,
    masked_images,
    perturbed_scores,
    to_mask,
)
from torchmetrics_cam.protocol import EvaluationProtocol

if TYPE_CHECKING:
    from torchmetrics_cam.pipeline.evaluation import Evaluation


class Readings:
    """A batch of N images by K sources. A perturbation is scored when a measure first asks for it, and once.

    Args:
        evaluation: the sources, and how images become scores.
        explanations: of the batch, by each source.
        objects: where the object of each image is, bool, ``(N, *spatial)``, if a measure asks.
    """

    def __init__(
        self, evaluation: "Evaluation", explanations: Sequence[Explanation], objects: Tensor | None = None
    ) -> None:
        self._evaluation = evaluation
        self.explanations = explanations
        self._objects = objects
        self._asked: list[Tensor] = []

    @property
    def protocol(self) -> EvaluationProtocol:
        """The choices of the evaluation."""
        return self._evaluation.scoring.protocol

    @property
    def selection(self) -> ScoreSelector:
        """What is explained."""
        return self.explanations[0].selection

    @property
    def asked(self) -> Tensor:
        """All scores on perturbed images that were asked for so far, ``(A, K, N)``."""
        return torch.stack(self._asked) if self._asked else self.scores.new_zeros(0, *self.scores.shape)

    @property
    def valid(self) -> Tensor:
        """Where pixels, maps and all scores that were asked for are finite, ``(K, N)``."""
        return torch.stack([one.valid for one in self.explanations]) & self.asked.isfinite().all(0)

    @property
    def degenerate(self) -> Tensor:
        """Where the map is constant, ``(K, N)``."""
        return torch.stack([one.degenerate for one in self.explanations])

    @cached_property
    def scores(self) -> Tensor:
        """The score on the image, the same for all sources, ``(K, N)``."""
        return self.explanations[0].scores.expand(len(self.explanations), -1)

    @cached_property
    def masked(self) -> Tensor:
        """The score on what the mask leaves of the image, ``(K, N)``."""
        left = [partial(masked_images, one, self.protocol) for one in self.explanations]
        self._asked.append(self._scored(left))
        return self._asked[-1]

    @cached_property
    def complement(self) -> Tensor:
        """The score on what the mask takes of the image, ``(K, N)``."""
        taken = [partial(masked_images, one, self.protocol, complement=True) for one in self.explanations]
        self._asked.append(self._scored(taken))
        return self._asked[-1]

    def compared(self, formula: Callable[..., Tensor], **settings: float) -> Tensor:
        """A formula of maps and objects for each source, ``(K, N)``."""
        maps = [self._map(explanation) for explanation in self.explanations]
        return torch.stack([formula(one, self._objects, reduction="none", **settings) for one in maps])

    @cached_property
    def complexity(self) -> Tensor:
        """The mean of the map, ``(K, N)``."""
        return torch.stack([complexity(self._map(one), reduction="none") for one in self.explanations])

    @cached_property
    def coherency(self) -> Tensor:
        """How alike the map of the image and that of the masked image are, ``(K, N)``."""
        return torch.stack([self._coherency(one) for one in range(len(self.explanations))])

    @cached_property
    def deletion(self) -> Tensor:
        """The score while the most relevant positions go, first to last point of the curve, ``(P, K, N)``."""
        self._asked += [*self._curves[0]]
        return self._curves[0]

    @cached_property
    def insertion(self) -> Tensor:
        """The score while the most relevant positions come, ``(P, K, N)``."""
        self._asked += [*self._curves[1]]
        return self._curves[1]

    @cached_property
    def fractions(self) -> Tensor:
        """The share of positions that is perturbed at each point of the curves, ``(P,)``."""
        positions = self.explanations[0].images[0, 0].numel()
        counts = perturbed_counts(positions, self.protocol.curve_steps)
        # Made on the device: a copy from the host would wait for it.
        points = torch.arange(len(counts), dtype=torch.float32, device=self.scores.device)
        return (points * counts[1]).clamp(max=positions) / positions

    @cached_property
    def _curves(self) -> tuple[Tensor, Tensor]:
        """Both, because their end points are the image itself and, on one baseline, the same hidden image."""
        curves = [self._curves_of(one) for one in self.explanations]
        deletion, insertion = (torch.stack(parts, 1) for parts in zip(*curves, strict=True))
        return deletion, insertion

    def _curves_of(self, explanation: Explanation) -> tuple[Tensor, Tensor]:
        """Those of one source, ``(P, N)`` each."""
        ranks = position_ranks(self._map(explanation))
        *between, whole = perturbed_counts(ranks[0].numel(), self.protocol.curve_steps)[1:]
        gone, kept = self.protocol.deletion_baseline, self.protocol.insertion_baseline
        images = explanation.images
        # Once a batch: a blur is a twentieth of a forward pass of a ResNet-18.
        shown = {keep: baseline_of(images, kept if keep else gone) for keep in (False, True)}

        def hidden(count: int, keep: bool) -> Callable[[slice], Perturbed]:
            def chosen(chunk: slice) -> Perturbed:
                of_each = shown[keep].ndim == images.ndim and len(shown[keep]) == len(images)
                part = shown[keep][chunk] if of_each else shown[keep]
                return hide_positions(images[chunk], (ranks[chunk] < count) != keep, part)

            return chosen

        asked = [hidden(count, False) for count in [*between, whole]]
        asked += [hidden(count, True) for count in ([] if gone == kept else [0]) + between]
        scores = self._scored(asked)
        image = explanation.scores.to(scores.dtype).unsqueeze(0)
        deletion = scores[: len(between) + 1]
        insertion = scores[len(between) + 1 :]
        if gone == kept:
            insertion = torch.cat([deletion[-1:], insertion])
        return torch.cat([image, deletion]), torch.cat([insertion, image])

    @cached_property
    def road(self) -> Tensor:
        """The score with a share of the positions imputed, the most or least relevant, ``(F, 2, K, N)``."""
        scores = torch.stack([self._road_of(explanation) for explanation in self.explanations], 1)
        self._asked += [*scores]
        return scores.view(-1, 2, *scores.shape[1:])

    def _road_of(self, explanation: Explanation) -> Tensor:
        """That of one source, ``(F * 2, N)``."""
        ranks = position_ranks(self._map(explanation))
        positions, noise = ranks[0].numel(), self.protocol.road_noise

        def imputed(count: int, most: bool, seed: int) -> Callable[[slice], Perturbed]:
            def chosen(chunk: slice) -> Perturbed:
                part = ranks[chunk]
                hidden = part < count if most else part >= positions - count
                return impute_positions(explanation.images[chunk], hidden, noise, seed)

            return chosen

        counts = [round(share * positions) for share in self.protocol.road_fractions]
        asked = [
            imputed(count, most, 2 * place + most)
            for place, count in enumerate(counts)
            for most in (True, False)
        ]
        return self._scored(asked)

    def _map(self, explanation: Explanation) -> Tensor:
        """The map itself, in [0, 1] and of the images' size, also where the mask is cut out of it."""
        return to_mask(explanation, self.protocol.replace(mask="soft"))

    def _scored(self, asked: Sequence[Callable[[slice], Perturbed]]) -> Tensor:
        return perturbed_scores(
            asked, self.explanations[0].scores, self.selection, **self._evaluation.scored_by()
        )

    def _coherency(self, place: int) -> Tensor:
        """The source explains the masked images anew, for the class that it explained before."""
        explanation, source = self.explanations[place], self._evaluation.sources[place]
        mask = to_mask(explanation, self.protocol)
        again = explain(
            source,
            apply_mask(explanation.images, mask, self.protocol),
            scoring=self._evaluation.scoring,
            class_idx=self.selection.class_idx,
            targets=None if self.selection.targets is None else list(self.selection.targets),
            silent=self._evaluation.sources,
            validate_args=False,
        )
        correlation = map_correlation(self._map(explanation), self._map(again))
        return torch.where(again.valid, correlation, torch.full_like(correlation, torch.nan))
