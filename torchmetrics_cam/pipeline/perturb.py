"""From a map to a mask, from mask and baseline to images, and to what the model says of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from operator import gt
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.baselines import Picture, baseline_of
from torchmetrics_cam.functional._noise import normal_noise
from torchmetrics_cam.functional.maps import min_max, resize_maps, top_fraction
from torchmetrics_cam.functional.road import linear_imputation
from torchmetrics_cam.model.guard import untouched
from torchmetrics_cam.model.scores import ScoreFunction, ScoreSelector, in_float32
from torchmetrics_cam.pipeline.explain import Explanation
from torchmetrics_cam.protocol import BASELINES, EvaluationProtocol

# Images ``(n, C, *spatial)``, and which of them are what they were, ``(n,)``.
Perturbed = tuple[Tensor, Tensor]


def to_mask(explanation: Explanation, protocol: EvaluationProtocol) -> Tensor:
    """The maps as masks in [0, 1] of the images' size, ``(N, *spatial)``; 1 keeps, 0 hides.

    An image that is not valid gets a mask of 0, and so does one whose map is constant, unless the map is not
    normalized.
    """
    maps, normalize = explanation.maps, "none" if explanation.normalized else protocol.normalize
    constant, valid = (
        which.view(-1, *(1,) * (maps.ndim - 1)) for which in (explanation.degenerate, explanation.valid)
    )
    maps, constant = torch.where(valid, maps, torch.zeros_like(maps)), constant | ~valid
    if normalize in ("before_resize", "before_and_after_resize"):
        maps = min_max(maps, eps=protocol.normalize_eps)
    maps, constant = _resized(maps, explanation.images.shape[2:], constant)
    if normalize in ("after_resize", "before_and_after_resize"):
        maps = min_max(maps, eps=protocol.normalize_eps)
    if protocol.mask == "top":
        # A constant map has no top: it stays as it is, all hidden, or for the uniform control all kept.
        maps = torch.where(constant, maps, top_fraction(maps, protocol.mask_fraction))
    if protocol.mask == "threshold":
        maps = ((maps >= protocol.mask_threshold) & valid).to(maps.dtype)
    return maps


def _resized(maps: Tensor, size: Sequence[int], constant: Tensor) -> tuple[Tensor, Tensor]:
    """The maps at the images' size, and which are constant there, without the rounding errors of the resize.

    Normalized, the errors would be as large as a map; and a map of ones that they make smaller than 1 would
    hide a little. What a smaller size averages out, such as a column of two in a row of two, is constant too.
    """
    resized = resize_maps(maps, size)
    if resized is maps:
        return maps, constant
    dims = tuple(range(1, maps.ndim))
    low, high = maps.amin(dims, keepdim=True), maps.amax(dims, keepdim=True)
    if any(map(gt, maps.shape, resized.shape)):
        span = resized.amax(dims, keepdim=True) - resized.amin(dims, keepdim=True)
        constant = constant | (span <= 4 * torch.finfo(maps.dtype).eps * torch.maximum(high, -low))
    value = resized.flatten(1)[:, 0].view_as(low).clamp(low, high)
    return torch.where(constant, value, resized), constant


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


def check_baselines(images: Tensor, protocol: EvaluationProtocol) -> None:
    """Refuse a baseline that does not fit the images.

    Raises:
        ValueError: if it has not one value a channel, or is a picture of another shape.
    """
    for name in BASELINES:
        baseline = getattr(protocol, name)
        if isinstance(baseline, tuple) and len(baseline) != images.shape[1]:
            raise ValueError(
                f"the protocol's {name} has {len(baseline)} values but the images have {images.shape[1]}"
                " channels; give one value, or one a channel"
            )
        if isinstance(baseline, Picture):
            baseline.check(images)


def masked_images(
    explanation: Explanation, protocol: EvaluationProtocol, chunk: slice, *, complement: bool = False
) -> Perturbed:
    """What the masks leave of some of the images, or with ``complement`` what they take.

    Args:
        explanation: of the batch.
        protocol: how a map becomes a mask, and what hidden positions show.
        chunk: which of the images.
        complement: whether the mask hides instead of keeping.

    Returns:
        The images, and which of them are whole.
    """
    part = explanation[chunk]
    mask = to_mask(part, protocol)
    mask = 1 - mask if complement else mask
    return apply_mask(part.images, mask, protocol), mask.flatten(1).amin(1) == 1


def hide_positions(images: Tensor, hidden: Tensor, shown: Tensor) -> Perturbed:
    """The images with something else at some positions.

    Args:
        images: ``(N, C, *spatial)``.
        hidden: which positions, ``(N, *spatial)``.
        shown: what they show, of a shape that broadcasts to the images.

    Returns:
        Images of the same shape, and those of which nothing is hidden.
    """
    return torch.where(hidden.unsqueeze(1), shown, images), ~hidden.flatten(1).any(1)


def impute_positions(images: Tensor, hidden: Tensor, noise: float, seed: int) -> Perturbed:
    """The images with some positions imputed from their neighbors, and noise added there.

    Args:
        images: ``(N, C, *spatial)``.
        hidden: which positions, ``(N, *spatial)``.
        noise: the standard deviation of the noise, in units of the images.
        seed: of the noise, which is otherwise the image's own.

    Returns:
        Images of the same shape, and those of which nothing is hidden.
    """
    imputed = linear_imputation(images, hidden)
    if noise:
        imputed = imputed + noise * normal_noise(images, seed) * hidden.unsqueeze(1)
    return imputed, ~hidden.flatten(1).any(1)


def perturbed_scores(
    perturbed: Sequence[Callable[[slice], Perturbed]],
    scores: Tensor,
    selection: ScoreSelector,
    *,
    model: nn.Module,
    scoring: ScoreFunction,
    muted: Sequence[AbstractContextManager[None]] = (),
    scorer: Callable[[Tensor], Any] | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """The score of what is explained on perturbed images.

    The perturbed batches go through the model one after the other, in chunks that are made when their turn
    comes, so the memory is that of one chunk.

    Args:
        perturbed: Q functions from some of the N images to what is left of them.
        scores: on the images themselves, ``(N,)``.
        selection: what is explained.
        model: the network.
        scoring: how the model's output becomes scores.
        muted: contexts in which the hooks of CAM extractors are silent.
        scorer: runs in place of the model, from images to the model's raw output.
        batch_size: at most so many perturbed images at once; None for as many as the batch has.

    Returns:
        A tensor of shape ``(Q, N)``.
    """
    count, found = len(scores), []
    scoring = scoring.explaining(selection.targets)
    run = model if scorer is None else scorer
    with torch.no_grad(), untouched(model, compiled=scorer is not None), ExitStack() as stack:
        for context in muted:
            stack.enter_context(context)
        for chunks in _chunks(len(perturbed), count, batch_size or count):
            images, same = zip(*(perturbed[place](chunk) for place, chunk in chunks), strict=True)
            output = run(images[0] if len(images) == 1 else torch.cat(images))
            selected = ScoreSelector.joined([selection[chunk] for _, chunk in chunks])
            # An image of which nothing is hidden keeps its score. In a chunk of another size, or by a
            # compiled scorer, it would come out a rounding error higher or lower.
            clean = torch.cat([scores[chunk] for _, chunk in chunks])
            said = in_float32(selected.of(scoring(output).scores))
            found.append(torch.where(torch.cat(same), clean, said))
    return torch.cat(found).view(len(perturbed), count)


def masked_scores(model: nn.Module, explanation: Explanation, *, scoring: ScoreFunction) -> Tensor:
    """The score of what is explained on the masked images of one explanation, ``(N,)``."""
    masked = partial(masked_images, explanation, scoring.protocol)
    return perturbed_scores(
        [masked], explanation.scores, explanation.selection, model=model, scoring=scoring
    )[0]


def _chunks(batches: int, count: int, size: int) -> Iterator[list[tuple[int, slice]]]:
    """The images of all batches in chunks of ``size``: of which batch which images, for each chunk."""
    for start in range(0, batches * count, size):
        end = min(start + size, batches * count)
        yield [
            (batch, slice(max(start - batch * count, 0), min(end - batch * count, count)))
            for batch in range(start // count, -(-end // count))
        ]
