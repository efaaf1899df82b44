"""The measures by name: the formula of one sample, which way is better, and what kind of number it is."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from torchmetrics_cam.functional.confidence import average_drop, average_gain, increase_in_confidence
from torchmetrics_cam.protocol import EvaluationProtocol

# (scores (N,), scores on the masked images (N,), protocol) -> one value a sample (N,)
Formula = Callable[[Tensor, Tensor, EvaluationProtocol], Tensor]


@dataclass(frozen=True)
class Measure:
    """What can be read off the scores before and after the masking.

    Args:
        name: as in the keys of `CAMComparison`.
        title: as people read it.
        of: the value of each sample.
        higher_is_better: which way is better.
        proportion: whether each value is 0 or 1, so that their mean is a proportion.
        relative: whether it is a share of the score, and means nothing where that lies outside of [0, 1];
            the drop is not where the protocol's is absolute.
    """

    name: str
    title: str
    of: Formula
    higher_is_better: bool
    proportion: bool = False
    relative: bool = False

    def warns(self, protocol: EvaluationProtocol) -> bool:
        """Whether scores outside of [0, 1] are worth a warning."""
        return self.relative and not (self.name == "average_drop" and protocol.drop == "absolute")

    def better(self, values: Tensor, others: Tensor) -> Tensor:
        """Where the values are better than the others."""
        return values > others if self.higher_is_better else values < others


def _drop(scores: Tensor, masked: Tensor, protocol: EvaluationProtocol) -> Tensor:
    relative = protocol.drop == "relative"
    return average_drop(scores, masked, relative=relative, eps=protocol.drop_eps, reduction="none")


def _increase(scores: Tensor, masked: Tensor, protocol: EvaluationProtocol) -> Tensor:
    return increase_in_confidence(scores, masked, reduction="none")


def _gain(scores: Tensor, masked: Tensor, protocol: EvaluationProtocol) -> Tensor:
    return average_gain(scores, masked, eps=protocol.gain_eps, reduction="none")


MEASURES = {
    measure.name: measure
    for measure in (
        Measure("average_drop", "Average Drop", _drop, higher_is_better=False, relative=True),
        Measure("increase_in_confidence", "Increase in Confidence", _increase, True, proportion=True),
        Measure("average_gain", "Average Gain", _gain, higher_is_better=True, relative=True),
    )
}
