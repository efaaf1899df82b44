"""The best and the worst explained images, explained once more for their pictures."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from torchmetrics_cam.functional.confidence import average_drop
from torchmetrics_cam.metrics.comparison.metric import CAMComparison
from torchmetrics_cam.pipeline.batch import explain
from torchmetrics_cam.report import Picture


def gallery(
    comparison: CAMComparison,
    *,
    image_of: Callable[[int], Tensor],
    file_of: Callable[[int], str],
    label_of: Callable[[int], str],
    to_colors: Callable[[Tensor], Tensor],
    count: int,
) -> list[Picture]:
    """Pictures of the images with the best and the worst mean of the first measure over the methods.

    Args:
        comparison: with the samples of all ranks.
        image_of: the image of an index, as the model takes it, ``(C, H, W)``.
        file_of: its file.
        label_of: the name of a class.
        to_colors: from a batch of images to colors in [0, 1].
        count: how many of each kind.
    """
    samples = comparison.samples()
    measure = comparison.measures[0]
    methods = len(comparison.methods) - len(comparison.controls)
    usable = samples["valid"].all(1).nonzero().flatten()
    if not len(usable) or count < 1:
        return []
    values = samples[measure.name][usable, :methods].mean(1)
    ranked = usable[values.argsort(descending=measure.higher_is_better, stable=True)]
    best, worst = ranked[:count].tolist(), ranked.flip(0)[: min(count, max(len(ranked) - count, 0))].tolist()
    found = []
    kinds: tuple[tuple[Literal["best", "worst"], list[int]], ...] = (("best", best), ("worst", worst))
    for kind, rows in kinds:
        for row in rows:
            index, class_idx = int(samples["index"][row]), int(samples["class_idx"][row])
            image = image_of(index).unsqueeze(0)
            found.append(
                Picture(
                    kind=kind,
                    index=index,
                    file=file_of(index),
                    label=label_of(class_idx),
                    score=float(samples["score"][row]),
                    image=_colors(image, to_colors),
                    rows=_rows(comparison, image, class_idx, to_colors),
                )
            )
    return found


def _rows(
    comparison: CAMComparison, image: Tensor, class_idx: int, to_colors: Callable[[Tensor], Tensor]
) -> list[tuple[str, Tensor, Tensor, float, float]]:
    batch = explain(comparison.sources, image, class_idx, protocol=comparison.protocol)
    rows = []
    for method, one in zip(batch.methods, batch, strict=True):
        drop = average_drop(one.scores, one.masked_scores, **comparison.protocol.drop_settings)
        shown = _colors(one.masked_images, to_colors)
        rows.append((method, one.masks[0].cpu(), shown, float(one.masked_scores), float(drop)))
    return rows


def _colors(image: Tensor, to_colors: Callable[[Tensor], Tensor]) -> Tensor:
    colors = to_colors(image).clamp(0, 1)[0].float().cpu()
    return colors if len(colors) == 3 else colors.mean(0, keepdim=True).expand(3, -1, -1)
