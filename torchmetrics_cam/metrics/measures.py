"""The measures by name: the value of each image of a batch, and the properties of the measure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.functional.adcc import adcc
from torchmetrics_cam.functional.complexity import complexity, entropy, sparseness
from torchmetrics_cam.functional.confidence import (
    average_drop,
    average_gain,
    drop_in_deletion,
    increase_in_confidence,
)
from torchmetrics_cam.functional.correlation import check_grid, faithfulness_correlation, single_deletion
from torchmetrics_cam.functional.curves import area_under_curve
from torchmetrics_cam.functional.localization import (
    check_top_k,
    energy_pointing_game,
    localization_auc,
    mask_iou,
    pointing_game,
    relevance_rank_accuracy,
    top_k_intersection,
)
from torchmetrics_cam.functional.road import road_score
from torchmetrics_cam.functional.sensitivity import class_sensitivity
from torchmetrics_cam.pipeline.batch import Batch
from torchmetrics_cam.pipeline.sources import refuse_precomputed_maps
from torchmetrics_cam.protocol import EvaluationProtocol

FurtherMaps = Literal["", "the masked images", "noisy images", "another class"]


@dataclass(frozen=True)
class Measure:
    """Definition of a measure: its formula and properties.

    Args:
        name: as in the keys of `CAMComparison`.
        title: as in tables and figures.
        values: from the batch of one source to the value of each image, ``(N,)``; if the measure is
            ``elementwise``, also from the batch of K sources to ``(K, N)``.
        value_range: the lowest and the highest value of an image if scores and maps lie in [0, 1]; infinite
            where there is no limit.
        higher_is_better: whether a higher value is better.
        proportion: whether each value is 0 or 1, so that their mean is a proportion.
        relative: whether it is relative to the score, and has no meaning for scores outside of [0, 1];
            Average Drop is not if the protocol's ``drop`` is ``"absolute"``.
        of_scores: whether it is an average or a difference of scores, and in their units.
        of_map: whether it depends on the map itself, and not only on scores of perturbed images.
        in_unit_of_map: whether its value has the unit of the map.
        range_needs_rectified_maps: whether values leave the ``value_range`` where maps are negative.
        elementwise: whether each value depends on one clean and one perturbed score alone.
        further_maps: what the source has to explain beside the images: ``"the masked images"``, ``"noisy
            images"`` or ``"another class"``; empty for nothing.
        needs_objects: whether it compares the map with annotated objects.
        needs_class: whether it has no meaning for targets.
        check_size: validates that images of a spatial size are large enough for the protocol; None where all
            are.
    """

    name: str
    title: str
    values: Callable[[Batch], Tensor]
    value_range: tuple[float, float] = (-math.inf, math.inf)
    higher_is_better: bool = True
    proportion: bool = False
    relative: bool = False
    of_scores: bool = False
    of_map: bool = False
    in_unit_of_map: bool = False
    range_needs_rectified_maps: bool = False
    elementwise: bool = False
    further_maps: FurtherMaps = ""
    needs_objects: bool = False
    needs_class: bool = False
    check_size: Callable[[Sequence[int], EvaluationProtocol], None] | None = None

    def summary(self) -> dict[str, Any]:
        """Return name, title and direction, as tables and figures need them."""
        return {"name": self.name, "title": self.title, "higher_is_better": self.higher_is_better}

    def needs_fractions(self, protocol: EvaluationProtocol) -> bool:
        """Return whether the measure has no meaning for scores outside of [0, 1]."""
        return self.relative and not (self.name == "average_drop" and protocol.drop == "absolute")

    def range_in(self, protocol: EvaluationProtocol) -> tuple[float, float]:
        """Return the lowest and the highest value of an image if scores lie in [0, 1].

        Without normalization maps are negative only if ``rectify`` leaves that to their source.
        """
        if protocol.normalize != "none":
            return self.value_range
        if self.range_needs_rectified_maps and protocol.rectify == "source":
            return -math.inf, math.inf
        return (self.value_range[0], math.inf) if self.in_unit_of_map else self.value_range

    @property
    def range_needs_fractions(self) -> bool:
        """Whether values leave the ``value_range`` where scores are outside of [0, 1]."""
        return self.relative or self.of_scores

    def better(self, values: Tensor, others: Tensor) -> Tensor:
        """Return where the values are better than the others."""
        return values > others if self.higher_is_better else values < others

    def check(self, sources: Sequence[CAMSource]) -> None:
        """Validate that the sources have the maps that the measure needs.

        Raises:
            ValueError: if one has no others than those of the images.
        """
        if self.further_maps:
            refuse_precomputed_maps(sources, self.title, self.further_maps)

    def check_batch(self, images: Any, targets: Any, protocol: EvaluationProtocol) -> None:
        """Validate what this measure needs of a batch, before the model runs.

        Raises:
            ValueError: if targets are given and it needs a class, or the images are too small.
        """
        if targets is not None and self.needs_class:
            raise ValueError(f"targets were given, and {self.title} needs a class; pass class_idx instead")
        if self.check_size and isinstance(images, Tensor) and images.ndim > 2:
            self.check_size(images.shape[2:], protocol)


def _of_scores(
    formula: Callable[..., Tensor], batch: Batch, perturbed_scores: Tensor, **settings: Any
) -> Tensor:
    """Return a formula of the clean and the perturbed score of each image, for one source or for all."""
    scores = batch.scores
    flat = scores.flatten(), perturbed_scores.flatten()
    return formula(*flat, reduction="none", **settings).view(scores.shape)


def _average_drop(batch: Batch) -> Tensor:
    is_relative, eps = batch.protocol.drop == "relative", batch.protocol.drop_eps
    return _of_scores(average_drop, batch, batch.masked_scores, relative=is_relative, eps=eps)


def _relative_drop(batch: Batch) -> Tensor:
    return _of_scores(average_drop, batch, batch.masked_scores)


def _increase_in_confidence(batch: Batch) -> Tensor:
    return _of_scores(increase_in_confidence, batch, batch.masked_scores)


def _average_gain(batch: Batch) -> Tensor:
    return _of_scores(average_gain, batch, batch.masked_scores, eps=batch.protocol.gain_eps)


def _drop_in_deletion(batch: Batch) -> Tensor:
    return _of_scores(drop_in_deletion, batch, batch.complement_scores)


def _complexity(batch: Batch) -> Tensor:
    return complexity(batch.normalized_maps, reduction="none")


def _sparseness(batch: Batch) -> Tensor:
    return sparseness(batch.normalized_maps, reduction="none")


def _entropy(batch: Batch) -> Tensor:
    return entropy(batch.normalized_maps, reduction="none")


def _coherency(batch: Batch) -> Tensor:
    return batch.coherency


def _adcc(batch: Batch) -> Tensor:
    return adcc(batch.coherency, _complexity(batch), _relative_drop(batch))


def _deletion_auc(batch: Batch) -> Tensor:
    return area_under_curve(batch.deletion_scores, batch.fractions)


def _insertion_auc(batch: Batch) -> Tensor:
    return area_under_curve(batch.insertion_scores, batch.fractions)


def _symmetric_relevance_gain(batch: Batch) -> Tensor:
    inserted = area_under_curve(batch.insertion_scores_of_deletion_baseline, batch.fractions)
    return inserted - _deletion_auc(batch)


def _road(batch: Batch) -> Tensor:
    return road_score(*batch.road_scores.unbind(1))


def _single_deletion(batch: Batch) -> Tensor:
    return single_deletion(batch.normalized_maps, batch.cell_drops, reduction="none")


def _faithfulness_correlation(batch: Batch) -> Tensor:
    # The sums of a constant map would differ where the cells have not all the same number of pixels.
    sums = batch.subset_sums.where(~batch.degenerate, torch.nan)
    return faithfulness_correlation(sums, batch.subset_drops, reduction="none")


def _max_sensitivity(batch: Batch) -> Tensor:
    return batch.map_changes.amax(0)


def _average_sensitivity(batch: Batch) -> Tensor:
    return batch.map_changes.mean(0)


def _class_sensitivity(batch: Batch) -> Tensor:
    return class_sensitivity(batch.normalized_maps, batch.other_class_maps, reduction="none")


def _objects_of(batch: Batch) -> Tensor:
    """Return the objects, which were checked before the model ran."""
    assert batch.objects is not None
    return batch.objects


def _energy_pointing_game(batch: Batch) -> Tensor:
    return energy_pointing_game(batch.normalized_maps, _objects_of(batch), reduction="none")


def _pointing_game(batch: Batch) -> Tensor:
    tolerance = batch.protocol.pointing_tolerance
    return pointing_game(batch.normalized_maps, _objects_of(batch), tolerance=tolerance, reduction="none")


def _mask_iou(batch: Batch) -> Tensor:
    threshold = batch.protocol.iou_threshold
    return mask_iou(batch.normalized_maps, _objects_of(batch), threshold=threshold, reduction="none")


def _relevance_rank_accuracy(batch: Batch) -> Tensor:
    return relevance_rank_accuracy(batch.normalized_maps, _objects_of(batch), reduction="none")


def _localization_auc(batch: Batch) -> Tensor:
    return localization_auc(batch.normalized_maps, _objects_of(batch), reduction="none")


def _top_k_intersection(batch: Batch) -> Tensor:
    return top_k_intersection(
        batch.normalized_maps, _objects_of(batch), k=batch.protocol.top_k, reduction="none"
    )


def _check_grid(size: Sequence[int], protocol: EvaluationProtocol, *, field: str) -> None:
    check_grid(size, getattr(protocol, field), field)


def _check_top_k(size: Sequence[int], protocol: EvaluationProtocol) -> None:
    check_top_k(math.prod(size), protocol.top_k)


MEASURES = {
    measure.name: measure
    for measure in (
        Measure(
            "average_drop",
            "Average Drop",
            _average_drop,
            (0, 1),
            higher_is_better=False,
            relative=True,
            elementwise=True,
        ),
        Measure(
            "increase_in_confidence",
            "Increase in Confidence",
            _increase_in_confidence,
            (0, 1),
            proportion=True,
            elementwise=True,
        ),
        Measure("average_gain", "Average Gain", _average_gain, (0, 1), relative=True, elementwise=True),
        Measure(
            "drop_in_deletion",
            "Drop in Deletion",
            _drop_in_deletion,
            (-math.inf, 1),
            relative=True,
            elementwise=True,
        ),
        Measure(
            "deletion_auc", "Deletion AUC", _deletion_auc, (0, 1), higher_is_better=False, of_scores=True
        ),
        Measure("insertion_auc", "Insertion AUC", _insertion_auc, (0, 1), of_scores=True),
        Measure(
            "symmetric_relevance_gain",
            "Symmetric Relevance Gain",
            _symmetric_relevance_gain,
            (-1, 1),
            of_scores=True,
        ),
        Measure("road", "ROAD", _road, (-0.5, 0.5), of_scores=True),
        Measure(
            "complexity",
            "Complexity",
            _complexity,
            (0, 1),
            higher_is_better=False,
            of_map=True,
            in_unit_of_map=True,
            range_needs_rectified_maps=True,
        ),
        Measure("sparseness", "Sparseness", _sparseness, (0, 1), of_map=True),
        Measure("entropy", "Entropy", _entropy, (0, math.inf), higher_is_better=False, of_map=True),
        Measure("coherency", "Coherency", _coherency, (0, 1), of_map=True, further_maps="the masked images"),
        # The drop that is part of ADCC, whatever the protocol's is.
        Measure(
            "relative_drop",
            "Relative Drop",
            _relative_drop,
            (0, 1),
            higher_is_better=False,
            relative=True,
            elementwise=True,
        ),
        Measure(
            "adcc",
            "ADCC",
            _adcc,
            (0, 1),
            relative=True,
            of_map=True,
            range_needs_rectified_maps=True,
            further_maps="the masked images",
        ),
        Measure(
            "single_deletion",
            "Single Deletion",
            _single_deletion,
            (-1, 1),
            of_map=True,
            needs_class=True,
            check_size=partial(_check_grid, field="deletion_grid"),
        ),
        Measure(
            "faithfulness_correlation",
            "Faithfulness Correlation",
            _faithfulness_correlation,
            (-1, 1),
            of_map=True,
            check_size=partial(_check_grid, field="correlation_grid"),
        ),
        Measure(
            "max_sensitivity",
            "Max-Sensitivity",
            _max_sensitivity,
            (0, math.inf),
            higher_is_better=False,
            of_map=True,
            further_maps="noisy images",
        ),
        Measure(
            "average_sensitivity",
            "Average Sensitivity",
            _average_sensitivity,
            (0, math.inf),
            higher_is_better=False,
            of_map=True,
            further_maps="noisy images",
        ),
        Measure(
            "class_sensitivity",
            "Class Sensitivity",
            _class_sensitivity,
            (0, 1),
            of_map=True,
            further_maps="another class",
            needs_class=True,
        ),
        Measure(
            "energy_pointing_game",
            "Energy Pointing Game",
            _energy_pointing_game,
            (0, 1),
            of_map=True,
            range_needs_rectified_maps=True,
            needs_objects=True,
        ),
        Measure("pointing_game", "Pointing Game", _pointing_game, (0, 1), of_map=True, needs_objects=True),
        Measure("mask_iou", "Mask IoU", _mask_iou, (0, 1), of_map=True, needs_objects=True),
        Measure(
            "relevance_rank_accuracy",
            "Relevance Rank Accuracy",
            _relevance_rank_accuracy,
            (0, 1),
            of_map=True,
            needs_objects=True,
        ),
        Measure(
            "localization_auc",
            "Localization AUC",
            _localization_auc,
            (0, 1),
            of_map=True,
            needs_objects=True,
        ),
        Measure(
            "top_k_intersection",
            "Top-K Intersection",
            _top_k_intersection,
            (0, 1),
            check_size=_check_top_k,
            of_map=True,
            needs_objects=True,
        ),
    )
}
DEFAULT_MEASURES = ("average_drop", "increase_in_confidence", "average_gain")
