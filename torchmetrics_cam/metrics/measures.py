"""The measures by name: the value of one image, which way is better, and what kind of number it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from torchmetrics_cam.cams.callables import PrecomputedMaps
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.functional.adcc import adcc
from torchmetrics_cam.functional.confidence import (
    average_drop,
    average_gain,
    drop_in_deletion,
    increase_in_confidence,
)
from torchmetrics_cam.functional.curves import area_under_curve
from torchmetrics_cam.functional.localization import energy_pointing_game, mask_iou, pointing_game
from torchmetrics_cam.pipeline.batch import Readings
from torchmetrics_cam.protocol import EvaluationProtocol


@dataclass(frozen=True)
class Measure:
    """What can be read off a batch.

    Args:
        name: as in the keys of `CAMComparison`.
        title: as people read it.
        of: the value of each method and image, ``(K, N)``.
        higher_is_better: which way is better.
        proportion: whether each value is 0 or 1, so that their mean is a proportion.
        relative: whether it is a share of the score, and means nothing where that lies outside of [0, 1];
            the drop is not where the protocol's is absolute.
        of_map: whether it reads the map itself, and not only what the model says.
        needs_objects: whether it compares the map with masks of objects.
        explains_again: whether the source has to explain the masked images too.
    """

    name: str
    title: str
    of: Callable[[Readings], Tensor]
    higher_is_better: bool
    proportion: bool = False
    relative: bool = False
    of_map: bool = False
    explains_again: bool = False
    needs_objects: bool = False

    def warns(self, protocol: EvaluationProtocol) -> bool:
        """Whether scores outside of [0, 1] are worth a warning."""
        return self.relative and not (self.name == "average_drop" and protocol.drop == "absolute")

    def better(self, values: Tensor, others: Tensor) -> Tensor:
        """Where the values are better than the others."""
        return values > others if self.higher_is_better else values < others

    def check(self, sources: Sequence[CAMSource]) -> None:
        """Refuse sources that cannot give what the measure needs.

        Raises:
            ValueError: if there is one.
        """
        if self.explains_again and any(isinstance(source, PrecomputedMaps) for source in sources):
            raise ValueError(
                f"{self.title} needs the maps of the masked images too, and PrecomputedMaps has only those"
                " that come with the batch; pass the CAM that made them"
            )


def _average_drop(read: Readings) -> Tensor:
    return _each(average_drop, read.scores, read.masked, **read.protocol.drop_settings)


def _relative_drop(read: Readings) -> Tensor:
    return _each(average_drop, read.scores, read.masked)


def _increase_in_confidence(read: Readings) -> Tensor:
    return _each(increase_in_confidence, read.scores, read.masked)


def _average_gain(read: Readings) -> Tensor:
    return _each(average_gain, read.scores, read.masked, eps=read.protocol.gain_eps)


def _drop_in_deletion(read: Readings) -> Tensor:
    return _each(drop_in_deletion, read.scores, read.complement)


def _complexity(read: Readings) -> Tensor:
    return read.complexity


def _coherency(read: Readings) -> Tensor:
    return read.coherency


def _adcc(read: Readings) -> Tensor:
    return adcc(read.coherency, read.complexity, _relative_drop(read))


def _deletion_auc(read: Readings) -> Tensor:
    return area_under_curve(read.deletion, read.fractions)


def _insertion_auc(read: Readings) -> Tensor:
    return area_under_curve(read.insertion, read.fractions)


def _road(read: Readings) -> Tensor:
    most, least = read.road.unbind(1)
    return ((least - most) / 2).mean(0)


def _energy_pointing_game(read: Readings) -> Tensor:
    return read.compared(energy_pointing_game)


def _pointing_game(read: Readings) -> Tensor:
    return read.compared(pointing_game, tolerance=read.protocol.pointing_tolerance)


def _mask_iou(read: Readings) -> Tensor:
    return read.compared(mask_iou, threshold=read.protocol.iou_threshold)


def _each(formula: Callable[..., Tensor], scores: Tensor, perturbed: Tensor, **settings: object) -> Tensor:
    """A formula of ``(N,)`` scores for each of K methods."""
    return formula(scores.flatten(), perturbed.flatten(), reduction="none", **settings).view_as(perturbed)


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("average_drop", "Average Drop", _average_drop, higher_is_better=False, relative=True),
        Measure(
            "increase_in_confidence", "Increase in Confidence", _increase_in_confidence, True, proportion=True
        ),
        Measure("average_gain", "Average Gain", _average_gain, higher_is_better=True, relative=True),
        Measure(
            "drop_in_deletion", "Drop in Deletion", _drop_in_deletion, higher_is_better=True, relative=True
        ),
        Measure("deletion_auc", "Deletion AUC", _deletion_auc, higher_is_better=False),
        Measure("insertion_auc", "Insertion AUC", _insertion_auc, higher_is_better=True),
        Measure("road", "ROAD", _road, higher_is_better=True),
        Measure("complexity", "Complexity", _complexity, higher_is_better=False, of_map=True),
        Measure("coherency", "Coherency", _coherency, True, of_map=True, explains_again=True),
        # The drop that ADCC takes, whatever the protocol's is.
        Measure("relative_drop", "Relative Drop", _relative_drop, higher_is_better=False, relative=True),
        Measure("adcc", "ADCC", _adcc, True, relative=True, of_map=True, explains_again=True),
        Measure(
            "energy_pointing_game",
            "Energy Pointing Game",
            _energy_pointing_game,
            higher_is_better=True,
            of_map=True,
            needs_objects=True,
        ),
        Measure("pointing_game", "Pointing Game", _pointing_game, True, of_map=True, needs_objects=True),
        Measure("mask_iou", "Mask IoU", _mask_iou, True, of_map=True, needs_objects=True),
    )
}
DEFAULT_MEASURES = ("average_drop", "increase_in_confidence", "average_gain")
