"""The sums of deletion and insertion curves, of one source or of many."""

import torch
from torch import Tensor

from torchmetrics_cam.functional.curves import resampled_curve
from torchmetrics_cam.metrics.batch_values import BatchValues
from torchmetrics_cam.pipeline.batch import Readings
from torchmetrics_cam.protocol import EvaluationProtocol

# The place of each measure's curve.
CURVES = {"deletion_auc": 0, "insertion_auc": 1}


def curve_shares(protocol: EvaluationProtocol) -> list[float]:
    """The shares of positions at which curves are added up, whatever the size of the images."""
    return [place / protocol.curve_steps for place in range(protocol.curve_steps + 1)]


def both_curves(read: Readings) -> Tensor:
    """Deletion and insertion of a batch at those shares, ``(P, 2, K, N)``."""
    both = torch.stack([read.deletion, read.insertion], 1)
    return resampled_curve(both, read.fractions, read.protocol.curve_steps + 1)


def curve_contributions(batch: BatchValues) -> Tensor:
    """What each image adds to the sums of the curves, ``(N, P, 2, K)``."""
    assert batch.curves is not None
    return torch.where(batch.valid, batch.curves, torch.zeros_like(batch.curves)).movedim(3, 0)
