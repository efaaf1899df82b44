"""The worst explained images of an evaluation, over all batches and ranks, and their figure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchmetrics_cam.functional.confidence import average_drop
from torchmetrics_cam.pipeline.explain import Explanation
from torchmetrics_cam.pipeline.perturb import apply_mask, to_mask
from torchmetrics_cam.plots import ExplanationRow, explanation_figure
from torchmetrics_cam.protocol import EvaluationProtocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class WorstExplained:
    """One image that its maps explain badly, on the CPU.

    Args:
        drop: the drop of its score, the mean over the sources.
        image: ``(C, H, W)``, as the model takes it.
        label: what was explained.
        score: the score of it on the image.
        masks: one a source, ``(H, W)``.
        masked_images: what each mask leaves, ``(C, H, W)``.
        masked_scores: the score on each of them.
    """

    drop: float
    image: Tensor
    label: str
    score: float
    masks: Sequence[Tensor]
    masked_images: Sequence[Tensor]
    masked_scores: Sequence[float]


def worst_of(
    batch: Sequence[tuple[Explanation, Tensor]],
    protocol: EvaluationProtocol,
    *,
    count: int,
    class_names: Sequence[str] | None,
) -> list[WorstExplained]:
    """The worst explained images of a batch, worst first: those with the highest drop.

    Args:
        batch: the explanation of each source and the scores on the images that it masked, ``(N,)``.
        protocol: the choices of the evaluation.
        count: at most so many.
        class_names: the names of the classes, if they have any.
    """
    first = batch[0][0]
    if first.images.ndim != 4:
        return []
    drops = torch.stack(
        [
            average_drop(explanation.scores, masked, **protocol.drop_settings, reduction="none")
            for explanation, masked in batch
        ]
    ).mean(0)
    valid = torch.stack([explanation.valid & masked.isfinite() for explanation, masked in batch]).all(0)
    ranked = torch.where(valid, drops, -1).topk(min(count, len(drops)))
    return [
        _described(batch, protocol, index, drop, class_names)
        for drop, index in zip(ranked.values.tolist(), ranked.indices.tolist(), strict=True)
        if drop >= 0
    ]


def _described(
    batch: Sequence[tuple[Explanation, Tensor]],
    protocol: EvaluationProtocol,
    index: int,
    drop: float,
    class_names: Sequence[str] | None,
) -> WorstExplained:
    first = batch[0][0]
    image = first.images[index : index + 1]
    masks = [to_mask(explanation[index : index + 1], protocol) for explanation, _ in batch]
    return WorstExplained(
        drop=drop,
        image=_kept(image),
        label=_label(first, index, class_names),
        score=first.scores[index].item(),
        masks=[_kept(mask) for mask in masks],
        masked_images=[_kept(apply_mask(image, mask, protocol)) for mask in masks],
        masked_scores=[masked[index].item() for _, masked in batch],
    )


def _kept(batch_of_one: Tensor) -> Tensor:
    return batch_of_one[0].detach().float().cpu().clone()


def _label(explanation: Explanation, index: int, class_names: Sequence[str] | None) -> str:
    if explanation.selector.class_idx is None:
        return "target"
    class_idx = int(explanation.selector.class_idx[index])
    if class_names is None or class_idx >= len(class_names):
        return f"class {class_idx}"
    return class_names[class_idx]


def worst(found: Sequence[WorstExplained], count: int) -> list[WorstExplained]:
    """The worst of several batches or ranks, worst first."""
    return nlargest(count, found, key=lambda one: one.drop)


def worst_figure(
    found: Sequence[WorstExplained],
    methods: Sequence[str],
    to_colors: Callable[[Tensor], Tensor] | None,
) -> "Figure":
    """A pair of columns an image, the worst first, and a row a method.

    Args:
        found: the images.
        methods: the names of the sources.
        to_colors: from images ``(N, C, H, W)`` as the model takes them to colors in [0, 1],
            ``(N, 3, H, W)``; None stretches each image from its lowest to its highest value.
    """
    colors = [_colors(one, to_colors) for one in found]
    rows = [
        ExplanationRow(
            method,
            masks=[one.masks[place] for one in found],
            masked_images=[pictures[1 + place] for pictures in colors],
            masked_scores=torch.tensor([one.masked_scores[place] for one in found]),
        )
        for place, method in enumerate(methods)
    ]
    return explanation_figure(
        [pictures[0] for pictures in colors],
        rows,
        labels=[one.label for one in found],
        scores=torch.tensor([one.score for one in found]),
    )


def _colors(one: WorstExplained, to_colors: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The image, and what each mask leaves of it, in one scale."""
    pictures = torch.stack([one.image, *one.masked_images])
    if to_colors is not None:
        pictures = to_colors(pictures)
    else:
        low, high = one.image.aminmax()
        pictures = (pictures - low) / (high - low).clamp(min=torch.finfo(pictures.dtype).tiny)
    if pictures.shape[1] != 3:
        pictures = pictures.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    return pictures.clamp(0, 1)
