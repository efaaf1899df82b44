"""From a map to a mask, from mask and baseline to images, and to what the model says of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.baselines import Picture, baseline_of
from torchmetrics_cam.explanation import Explanation
from torchmetrics_cam.functional.maps import min_max, resize_maps, top_fraction
from torchmetrics_cam.guard import untouched
from torchmetrics_cam.protocol import EvaluationProtocol
from torchmetrics_cam.scoring import Scoring, Selection


def to_mask(explanation: Explanation, protocol: EvaluationProtocol) -> Tensor:
    """The maps as masks in [0, 1] of the images' size, ``(N, *spatial)``; 1 keeps, 0 hides.

    An image that is not valid gets a mask of 0, and so does one whose map is constant, unless the map is not
    normalised.
    """
    maps, normalize = explanation.maps, protocol.normalize
    constant, valid = (
        which.view(-1, *(1,) * (maps.ndim - 1)) for which in (explanation.degenerate, explanation.valid)
    )
    if explanation.normalized:
        normalize = "none"
    if normalize != "none":
        # Resized, a constant map has rounding errors, which its normalisation would make as large as a map.
        maps = torch.where(constant, torch.zeros_like(maps), maps)
    if normalize in ("before_resize", "before_and_after_resize"):
        maps = min_max(maps, eps=protocol.normalize_eps)
    maps = resize_maps(maps, explanation.images.shape[2:])
    if normalize in ("after_resize", "before_and_after_resize"):
        maps = min_max(maps, eps=protocol.normalize_eps)
    if protocol.mask == "top":
        # A constant map has no top: it stays as it is, all hidden, or for the uniform control all kept.
        maps = torch.where(constant, maps, top_fraction(maps, protocol.mask_fraction))
    if protocol.mask == "threshold":
        maps = (maps >= protocol.mask_threshold).to(maps.dtype)
    return torch.where(valid, maps, torch.zeros_like(maps))


def apply_mask(images: Tensor, mask: Tensor, protocol: EvaluationProtocol) -> Tensor:
    """The images with the baseline where the mask hides them: M * x + (1 - M) * b.

    Args:
        images: ``(N, C, *spatial)``.
        mask: ``(N, *spatial)``.
        protocol: its ``baseline`` is b.

    Returns:
        Images of the same shape, dtype and device.
    """
    mask = mask.to(images.dtype).unsqueeze(1)
    masked = mask * images
    if not callable(protocol.baseline) and protocol.baseline == 0:
        return masked
    return torch.addcmul(masked, 1 - mask, baseline_of(images, protocol.baseline))


def check_baseline(images: Tensor, protocol: EvaluationProtocol) -> None:
    """Refuse a baseline that does not fit the images.

    Raises:
        ValueError: if it has not one value a channel, or is a picture of another shape.
    """
    baseline = protocol.baseline
    if isinstance(baseline, tuple) and len(baseline) != images.shape[1]:
        raise ValueError(
            f"the protocol's baseline has {len(baseline)} values but the images have {images.shape[1]}"
            " channels; give one value, or one a channel"
        )
    if isinstance(baseline, Picture):
        baseline.check(images)


def masked_scores(
    model: nn.Module,
    explanations: Sequence[Explanation],
    *,
    scoring: Scoring,
    muted: Sequence[AbstractContextManager[None]] = (),
    scorer: Callable[[Tensor], Any] | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """The score of what is explained on the images that each explanation masks.

    The masked images of all explanations go through the model one after the other, in chunks that are made
    when their turn comes, so the memory is that of one chunk.

    Args:
        model: the network.
        explanations: of one batch, by K sources.
        scoring: how the model's output becomes scores.
        muted: contexts in which the hooks of CAM extractors are silent.
        scorer: runs in place of the model, from images to the model's raw output.
        batch_size: at most so many masked images at once; None for as many as the batch has.

    Returns:
        A tensor of shape ``(K, N)``.
    """
    count, scores = len(explanations[0].images), []
    selection = explanations[0].selection
    scoring = scoring.explaining(selection.targets)
    run = model if scorer is None else scorer
    with torch.no_grad(), untouched(model, compiled=scorer is not None), ExitStack() as stack:
        for context in muted:
            stack.enter_context(context)
        for chunks in _chunks(len(explanations), count, batch_size or count):
            parts = [explanations[source][chunk] for source, chunk in chunks]
            masks = [to_mask(part, scoring.protocol) for part in parts]
            masked = [
                apply_mask(part.images, mask, scoring.protocol)
                for part, mask in zip(parts, masks, strict=True)
            ]
            output = run(masked[0] if len(masked) == 1 else torch.cat(masked))
            found = Selection.joined([part.selection for part in parts]).of(scoring(output).scores)
            # A mask that hides nothing leaves the score as it is. In a chunk of another size, or by a
            # compiled scorer, it would come out a rounding error higher or lower.
            whole = torch.cat([mask.flatten(1).amin(1) == 1 for mask in masks])
            scores.append(torch.where(whole, torch.cat([part.scores for part in parts]), found))
    return torch.cat(scores).view(len(explanations), count)


def _chunks(sources: int, count: int, size: int) -> Iterator[list[tuple[int, slice]]]:
    """The images of all sources in chunks of ``size``: of which source which images, for each chunk."""
    for start in range(0, sources * count, size):
        end = min(start + size, sources * count)
        yield [
            (source, slice(max(start - source * count, 0), min(end - source * count, count)))
            for source in range(start // count, -(-end // count))
        ]
