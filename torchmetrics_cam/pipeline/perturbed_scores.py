"""The scores of the perturbed images of a batch, for all of its sources together."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property

import torch
from torch import Tensor

from torchmetrics_cam.baselines import baseline_values
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.functional._noise import hashed_noise
from torchmetrics_cam.functional.adcc import map_correlation
from torchmetrics_cam.functional.correlation import cell_numbers, cell_sums, random_subsets
from torchmetrics_cam.functional.curves import perturbed_counts, position_ranks
from torchmetrics_cam.functional.sensitivity import sensitivity
from torchmetrics_cam.model.scores import ScoreFunction
from torchmetrics_cam.pipeline.explanation import Explanation
from torchmetrics_cam.pipeline.perturb import (
    Hiding,
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

_SUBSETS_SEED = 0x2545F491


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
        self.protocol = protocol = score_function.protocol
        # The numbers of the random removals, whose mean score counts; None where nothing is random.
        self.samples: Sequence[int | None] = (
            range(protocol.removal_samples) if protocol.removes_at_random else (None,)
        )
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
        scores = self._mean_score(
            [
                Masking(one, self.protocol, sample=sample)
                for one in self.explanations
                for sample in self.samples
            ]
        )
        self._computed.append(scores)
        return scores

    @cached_property
    def complement(self) -> Tensor:
        """The scores of the images with the highlighted part hidden, ``(K, N)``."""
        scores = self._mean_score(
            [
                Masking(one, self.protocol, complement=True, sample=sample)
                for one in self.explanations
                for sample in self.samples
            ]
        )
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
                    self._mean_score(
                        [
                            Replacement(images, ranks, count, keep, values, self.protocol, sample)
                            for count in counts
                            for sample in self.samples
                        ]
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
        refuse_precomputed_maps(self.pipeline.sources, "Coherency", "the masked images")
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

    @cached_property
    def cell_drops(self) -> Tensor:
        """How much the logit drops when a cell of a grid is hidden, the same for all sources, ``(S, N)``."""
        images, per_axis = self.explanations[0].images, self.protocol.deletion_grid
        numbers = cell_numbers(images.shape[2:], per_axis, device=images.device)
        cells = torch.eye(per_axis**numbers.ndim, dtype=torch.bool, device=images.device)
        hidden = [cell.expand(len(images), -1) for cell in cells.unbind()]
        return self._drops(hidden, numbers, of_logits=True)

    @cached_property
    def subset_drops(self) -> Tensor:
        """How much the score drops when a subset is hidden, the same for all sources, ``(S, N)``."""
        return self._drops(self.subsets.unbind(1), self._correlation_cells)

    @cached_property
    def subset_sums(self) -> Tensor:
        """The sum of the map over each subset, in units of its largest absolute value, ``(S, K, N)``."""
        numbers, cells = self._correlation_cells, self.subsets.shape[2]
        maps = [normalized_maps(one, self.protocol) for one in self.explanations]
        sums = torch.stack([cell_sums(one, numbers, cells) for one in maps])
        return torch.einsum("nsc,knc->skn", self.subsets.to(sums.dtype), sums)

    @cached_property
    def subsets(self) -> Tensor:
        """The cells in each random subset, bool, ``(N, S, cells)``."""
        protocol = self.protocol
        cells = protocol.correlation_grid**self._correlation_cells.ndim
        return random_subsets(
            self.explanations[0].images,
            cells,
            size=min(max(round(protocol.correlation_fraction * cells), 1), cells - 1),
            count=protocol.correlation_subsets,
            # Not that of a random map, which would then decide which cells are hidden.
            seed=_SUBSETS_SEED,
        )

    @cached_property
    def _correlation_cells(self) -> Tensor:
        """The number of the cell that each pixel is in, ``(*spatial)``."""
        images = self.explanations[0].images
        return cell_numbers(images.shape[2:], self.protocol.correlation_grid, device=images.device)

    def _drops(self, hidden: Sequence[Tensor], numbers: Tensor, *, of_logits: bool = False) -> Tensor:
        """Return how much the score, or the logit, drops when cells are hidden, ``(len(hidden), N)``.

        Args:
            hidden: which cells are hidden together, each bool, ``(N, cells)``.
            numbers: the number of the cell that each pixel is in, ``(*spatial)``.
            of_logits: whether the logit is meant.
        """
        first = self.explanations[0]
        clean = first.logits if of_logits else first.scores
        with self.guarded():
            baseline = baseline_values(first.images, self.protocol.baseline)
            scores: Tensor = self.pipeline.score(
                [Hiding(first.images, cells, numbers, baseline) for cells in hidden],
                clean,
                first.selector,
                score_function=self.score_function,
                of_logits=of_logits,
            )
        return clean - scores

    @cached_property
    def map_changes(self) -> Tensor:
        """The relative change of the map of each noisy copy of the images, ``(R, K, N)``."""
        refuse_precomputed_maps(self.pipeline.sources, "sensitivity", "noisy images")
        first, protocol = self.explanations[0], self.protocol
        maps = [normalized_maps(one, protocol) for one in self.explanations]
        changes = []
        with self.guarded():
            for seed in range(protocol.sensitivity_samples):
                noise = hashed_noise(first.images, first.images[0].numel(), seed) * 2 - 1
                noise = protocol.sensitivity_radius * noise.view_as(first.images)
                noisy = self.pipeline.explain_again(
                    self.pipeline.sources,
                    # Rounded once, to the dtype of the model.
                    (first.images + noise).to(first.images.dtype),
                    first.selector,
                    self.score_function,
                )
                for clean, one in zip(maps, noisy, strict=True):
                    change = sensitivity(clean, normalized_maps(one, protocol).unsqueeze(0), reduction="none")
                    changes.append(change.where(one.valid, torch.nan))
        return torch.stack(changes).view(-1, *self.clean.shape)

    @cached_property
    def other_class_maps(self) -> Tensor:
        """The normalized maps of another class, ``(K, N, *spatial)``; NaN where there is no other class."""
        return torch.stack([self._other_class_map(one) for one in self.explanations])

    def _other_class_map(self, explanation: Explanation) -> Tensor:
        other = explanation.of_other_class
        if other is None:
            raise ValueError("the maps of another class were not asked for when the batch was explained")
        assert other.selector.class_idx is not None
        valid = other.valid & (other.selector.class_idx != explanation.selector.class_idx)
        maps = normalized_maps(other, self.protocol)
        return maps.where(valid.view(-1, *(1,) * (maps.ndim - 1)), torch.nan)

    def guarded(self) -> AbstractContextManager[object]:
        """Guard the model and the random numbers inside: a baseline may be a function that uses either."""
        return self.pipeline.active(self.explanations[0].images)

    def _score(self, perturbations: Sequence[Perturbation]) -> Tensor:
        first = self.explanations[0]
        scores: Tensor = self.pipeline.score(
            perturbations, first.scores, first.selector, score_function=self.score_function
        )
        return scores

    def _mean_score(self, perturbations: Sequence[Perturbation]) -> Tensor:
        """Return the mean scores over the random removals, from a perturbation for each of them."""
        scores, samples, clean = self._score(perturbations), len(self.samples), self.explanations[0].scores
        if samples == 1:
            return scores
        # The mean of equal scores can differ from them by a rounding error, and count as an increase.
        return clean + (scores.view(-1, samples, len(clean)) - clean).mean(1)
