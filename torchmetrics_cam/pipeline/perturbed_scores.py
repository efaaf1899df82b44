"""The scores of the perturbed images of a batch, for all of its sources together."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property

import torch
from torch import Tensor

from torchmetrics_cam.baselines import baseline_values
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.functional.adcc import map_correlation
from torchmetrics_cam.functional.curves import perturbed_counts, position_ranks
from torchmetrics_cam.model.scores import ScoreFunction
from torchmetrics_cam.pipeline.explanation import Explanation
from torchmetrics_cam.pipeline.perturb import (
    Imputation,
    Masking,
    Perturbation,
    Replacement,
    apply_mask,
    normalized_maps,
    to_mask,
)
from torchmetrics_cam.pipeline.pipeline import Pipeline
from torchmetrics_cam.pipeline.sources import refuse_precomputed_maps


class PerturbedScores:
    """The scores of N perturbed images for K sources, each computed once, on first use.

    The batch of all sources and the batches of each share one object, so that the model runs on the perturbed
    images of all sources together.
    """

    def __init__(
        self, pipeline: Pipeline, explanations: Sequence[Explanation], score_function: ScoreFunction
    ) -> None:
        self.pipeline = pipeline
        self.explanations = explanations
        self.score_function = score_function
        self.protocol = score_function.protocol
        self._computed: list[Tensor] = []

    @property
    def computed(self) -> Tensor:
        """The scores of perturbed images that have been computed, ``(A, K, N)``."""
        if not self._computed:
            return self.clean.new_zeros(0, *self.clean.shape)
        return torch.stack(self._computed)

    @property
    def clean(self) -> Tensor:
        """The scores of the clean images, the same for all sources, ``(K, N)``."""
        return self.explanations[0].scores.expand(len(self.explanations), -1)

    @cached_property
    def masked(self) -> Tensor:
        """The scores of the masked images, ``(K, N)``."""
        scores = self._score([Masking(one, self.protocol) for one in self.explanations])
        self._computed.append(scores)
        return scores

    @cached_property
    def complement(self) -> Tensor:
        """The scores of the images with the highlighted part hidden, ``(K, N)``."""
        scores = self._score([Masking(one, self.protocol, complement=True) for one in self.explanations])
        self._computed.append(scores)
        return scores

    @cached_property
    def deletion(self) -> Tensor:
        """The scores as the most relevant pixels are deleted, ``(P, K, N)``."""
        deleted = self._replaced([*self._counts, self._pixels], "deletion_baseline")
        return torch.cat([self.clean.to(deleted.dtype).unsqueeze(0), deleted])

    @cached_property
    def insertion(self) -> Tensor:
        """The scores as the most relevant pixels are inserted into the insertion baseline, ``(P, K, N)``."""
        if self.protocol.insertion_baseline == self.protocol.deletion_baseline:
            return self.insertion_into_deletion_baseline
        inserted = self._replaced([0, *self._counts], "insertion_baseline", keep=True)
        return torch.cat([inserted, self.clean.to(inserted.dtype).unsqueeze(0)])

    @cached_property
    def insertion_into_deletion_baseline(self) -> Tensor:
        """The scores as the most relevant pixels are inserted into the deletion baseline, ``(P, K, N)``.

        It begins with the last image of the deletion curve.
        """
        inserted = self._replaced(self._counts, "deletion_baseline", keep=True)
        return torch.cat([self.deletion[-1:], inserted, self.clean.to(inserted.dtype).unsqueeze(0)])

    @property
    def _pixels(self) -> int:
        return self.explanations[0].images[0, 0].numel()

    @property
    def _counts(self) -> list[int]:
        """The numbers of perturbed pixels between the end points of a curve."""
        return perturbed_counts(self._pixels, self.protocol.curve_steps)[1:-1]

    def _replaced(self, counts: Sequence[int], baseline: str, *, keep: bool = False) -> Tensor:
        """Return the scores with the most relevant pixels replaced, ``(len(counts), K, N)``.

        Args:
            counts: how many pixels are the most relevant ones.
            baseline: the field of the protocol that has the values which replace them.
            keep: whether to keep these and to replace all other pixels.
        """
        if not counts:
            return self.clean.new_zeros(0, *self.clean.shape)
        images, scores = self.explanations[0].images, []
        with self.guarded():
            # Computed once for each batch: a blur takes 1/20 of the time of a forward pass of a ResNet-18.
            values = baseline_values(images, getattr(self.protocol, baseline))
            for explanation in self.explanations:
                ranks = position_ranks(normalized_maps(explanation, self.protocol))
                scores.append(
                    self._score(
                        [Replacement(images, ranks, count, keep=keep, baseline=values) for count in counts]
                    )
                )
        replaced = torch.stack(scores, 1)
        self._computed += [*replaced]
        return replaced

    @cached_property
    def road(self) -> Tensor:
        """The scores with a fraction of the pixels imputed, most and least relevant, ``(F, 2, K, N)``."""
        scores = torch.stack([self._road_of(one) for one in self.explanations], 1)
        self._computed += [*scores]
        return scores.view(-1, 2, *scores.shape[1:])

    def _road_of(self, explanation: Explanation) -> Tensor:
        """Return the scores of one source, ``(F * 2, N)``."""
        protocol = self.protocol
        ranks = position_ranks(normalized_maps(explanation, protocol))
        counts = [round(fraction * ranks[0].numel()) for fraction in protocol.road_fractions]
        return self._score(
            [
                Imputation(
                    explanation.images,
                    ranks,
                    count,
                    most_relevant=most_relevant,
                    noise=protocol.road_noise,
                    seed=2 * index + most_relevant,
                )
                for index, count in enumerate(counts)
                for most_relevant in (True, False)
            ]
        )

    @cached_property
    def coherency(self) -> Tensor:
        """The similarity of the maps of the clean and of the masked images, ``(K, N)``."""
        refuse_precomputed_maps(self.pipeline.sources, "Coherency")
        with self.guarded():
            pairs = zip(self.pipeline.sources, self.explanations, strict=True)
            return torch.stack([self._coherency_of(*pair) for pair in pairs])

    def _coherency_of(self, source: CAMSource, explanation: Explanation) -> Tensor:
        """Return the similarity of the maps of one source, ``(N,)``."""
        protocol = self.protocol
        masked = apply_mask(explanation.images, to_mask(explanation, protocol), protocol)
        (again,) = self.pipeline.explain_again([source], masked, explanation.selector, self.score_function)
        maps, maps_again = (normalized_maps(one, protocol) for one in (explanation, again))
        return map_correlation(maps, maps_again).where(again.valid, torch.nan)

    def guarded(self) -> AbstractContextManager[object]:
        """Guard the model and the random numbers inside: a baseline may be a function that uses either."""
        return self.pipeline.active(self.explanations[0].images)

    def _score(self, perturbations: Sequence[Perturbation]) -> Tensor:
        first = self.explanations[0]
        scores: Tensor = self.pipeline.score(
            perturbations, first.scores, first.selector, score_function=self.score_function
        )
        return scores
