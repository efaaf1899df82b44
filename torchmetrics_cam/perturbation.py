"""From a map to a mask, from mask and baseline to images, and to what the model says of them."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from torchmetrics_cam.baselines import Picture, baseline_of
from torchmetrics_cam.explanation import Explanation
from torchmetrics_cam.functional.maps import min_max, resize_maps, top_fraction
from torchmetrics_cam.guard import untouched
from torchmetrics_cam.protocol import EvaluationProtocol
from torchmetrics_cam.scoring import Scoring


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
    explanation: Explanation,
    mask: Tensor,
    *,
    scoring: Scoring,
    muted: AbstractContextManager[None] | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """The score of the explained class on the masked images.

    Args:
        model: the network.
        explanation: the clean pass of the batch.
        mask: ``(N, *spatial)`` in [0, 1].
        scoring: how the model's output becomes scores.
        muted: a context in which the hooks of the CAM extractor are silent.
        batch_size: at most so many masked images are made and scored at once; None for all.

    Returns:
        A tensor of shape ``(N,)``.
    """
    images, scores = explanation.images, []
    scoring = scoring.explaining(explanation.selection.targets)
    with torch.no_grad(), untouched(model), muted or nullcontext():
        for start in range(0, len(images), batch_size or len(images)):
            chunk = slice(start, start + (batch_size or len(images)))
            masked = apply_mask(images[chunk], mask[chunk], scoring.protocol)
            scores.append(explanation.selection[chunk].of(scoring(model(masked)).scores))
    return torch.cat(scores)
