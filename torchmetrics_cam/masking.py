"""Random masks of a coarse grid: what a network is fine-tuned on before it scores masked images."""

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchmetrics_cam.baselines import (
    Baseline,
    as_baseline,
    baseline_values,
    check_baseline,
    display_name,
    is_finite_number,
)
from torchmetrics_cam.functional.maps import resize_maps
from torchmetrics_cam.protocol import EvaluationProtocol, as_protocol

Upsampling = Literal["linear", "nearest"]


class RandomMasking(nn.Module):
    r"""Random masks on images, for the fine-tuning of a network on masked images.

    A network that was trained on whole images has not seen masked ones, so a drop of its score may come from
    the mask itself instead of from what the mask hides. A copy that was fine-tuned on images with random
    masks is less affected, and can score the images as ``surrogate`` of a metric. The masks do not depend on
    any CAM, so that they favor none.

    Each mask is drawn on a coarse grid, enlarged to the size of the image and shifted cyclically by a random
    offset. A masked image is :math:`m \odot x + (1 - m) \odot b` with the baseline b of the protocol, as in
    the metrics. It is a transform for one image, after the normalization, or a module for a batch, each image
    of which has a mask of its own. After ``eval()`` it returns its input, as dropout does.

    Random numbers come from torch's generator of the images' device, so ``torch.manual_seed``, the seeds of
    dataloader workers and Lightning's ``seed_everything`` apply.

    Args:
        max_fraction: the largest fraction of the cells that is masked, in (0, 1]. The number of masked cells
            of an image is uniform from 1 up to this fraction. It should reach the fraction that the masks of
            the metrics hide: most of an image in the protocol ``"paper"``, half in ``"score_cam"``.
        grid: the number of cells along each axis.
        probability: the probability that an image is masked; otherwise it stays whole.
        upsampling: ``"linear"`` for soft masks by (bi-, tri-)linear interpolation between cells, as in RISE
            and as a CAM is enlarged; ``"nearest"`` for cells with sharp edges.
        baseline: the value that replaces masked pixels, in the forms of `EvaluationProtocol`; None for that
            of the protocol.
        protocol: instead of a baseline, an `EvaluationProtocol` or the name of a preset, whose ``baseline``
            is taken; None for ``"paper"``.
        spatial_dims: the number of spatial dimensions of an image, 1 to 3, which distinguishes one image from
            a batch.

    Raises:
        TypeError: if the protocol is of another type; in a call, if the input is no floating-point tensor.
        ValueError: if a number is out of range, or ``baseline`` and ``protocol`` are both given; in a call,
            if the shape is not that of an image or batch, the baseline does not fit the images, an axis has
            fewer pixels than the grid has cells, or ``max_fraction`` is less than one cell.

    Source: random masking, explanation-agnostic and of at most a fraction of the image, is that of Zheng et
    al., F-Fidelity, https://arxiv.org/abs/2410.02970, which masks single pixels. Grids enlarged by linear
    interpolation are those of Petsiuk et al., RISE, https://arxiv.org/abs/1806.07421.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.masking import RandomMasking
        >>> masking = RandomMasking(max_fraction=0.5, grid=2, probability=1, upsampling="nearest")
        >>> masked = masking(torch.ones(1, 4, 4))  # one or two of four cells, of 4 pixels each
        >>> int((masked == 0).sum()) in (4, 8)
        True

    """

    def __init__(
        self,
        max_fraction: float = 0.8,
        *,
        grid: int = 7,
        probability: float = 0.8,
        upsampling: Upsampling = "linear",
        baseline: Baseline | str | None = None,
        protocol: EvaluationProtocol | str | None = None,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        for name, value in (("max_fraction", max_fraction), ("probability", probability)):
            if not (is_finite_number(value) and 0 < value <= 1):
                raise ValueError(f"RandomMasking({name}={value!r}): it must lie in (0, 1]")
        if not isinstance(grid, int) or isinstance(grid, bool) or grid < 2:
            raise ValueError(f"RandomMasking(grid={grid!r}): it must be an integer of at least 2")
        if upsampling not in get_args(Upsampling):
            raise ValueError(
                f"RandomMasking(upsampling={upsampling!r}): it must be one of {list(get_args(Upsampling))}"
            )
        if spatial_dims not in (1, 2, 3):
            raise ValueError(f"RandomMasking(spatial_dims={spatial_dims!r}): it must be 1, 2 or 3")
        if baseline is not None and protocol is not None:
            raise ValueError("baseline and protocol were both given; pass one of them")
        self.max_fraction = max_fraction
        self.grid = grid
        self.probability = probability
        self.upsampling = upsampling
        self.baseline = as_protocol(protocol).baseline if baseline is None else as_baseline(baseline)
        self.spatial_dims = spatial_dims

    def forward(self, images: Tensor) -> Tensor:
        """Mask one image ``(C, *spatial)`` or a batch ``(N, C, *spatial)``; the input is unchanged.

        Returns:
            Images of the same shape, dtype and device.
        """
        if not isinstance(images, Tensor):
            raise TypeError(
                f"RandomMasking was given a {type(images).__name__}; it takes tensors, so put it at the end"
                " of the transform, after ToTensor and Normalize"
            )
        if not self.training:
            return images
        if images.ndim == self.spatial_dims + 1:
            return self.mask_batch(images.unsqueeze(0)).squeeze(0)
        if images.ndim == self.spatial_dims + 2:
            return self.mask_batch(images)
        raise ValueError(
            f"RandomMasking was given shape {tuple(images.shape)}; with spatial_dims={self.spatial_dims} an"
            f" image has {self.spatial_dims + 1} dimensions and a batch {self.spatial_dims + 2}"
        )

    def mask_batch(self, images: Tensor) -> Tensor:
        """Mask a batch ``(N, C, *spatial)`` with any number of spatial dimensions, in either mode.

        Returns:
            Images of the same shape, dtype and device.
        """
        if not images.is_floating_point():
            raise TypeError(
                f"RandomMasking was given images of {images.dtype}; the baseline is in units of the network's"
                " floating-point input, so put it at the end of the transform, after Normalize"
            )
        images = images.as_subclass(Tensor)
        check_baseline(images, self.baseline, "RandomMasking's baseline")
        mask = self.random_masks(images).to(images.dtype).unsqueeze(1)
        return mask * images + (1 - mask) * baseline_values(images, self.baseline)

    def random_masks(self, images: Tensor) -> Tensor:
        """Draw a mask for each image of a batch.

        Args:
            images: ``(N, C, *spatial)``, of which only size and device matter.

        Returns:
            Masks in [0, 1], float32, ``(N, *spatial)``; 1 keeps a pixel, 0 hides it.
        """
        count, size, device = len(images), images.shape[2:], images.device
        if min(size) < self.grid:
            raise ValueError(
                f"images of {' x '.join(map(str, size))} pixels have an axis with fewer pixels than"
                f" RandomMasking(grid={self.grid}) has cells; use a smaller grid"
            )
        cells = self.grid ** len(size)
        # Rounded first: 0.3 of 10 cells is 2.9999999999999996.
        most = math.floor(round(self.max_fraction * cells, 6))
        if not most:
            raise ValueError(
                f"RandomMasking(max_fraction={self.max_fraction}) is less than one of {cells} cells; use a"
                " larger fraction or a finer grid"
            )
        masked = 1 + torch.rand(count, 1, device=device).mul(most).long().clamp(max=most - 1)
        masked = masked * (torch.rand(count, 1, device=device) < self.probability)
        ranks = torch.rand(count, cells, device=device).argsort(1).argsort(1)
        masks = (ranks >= masked).float().view(count, *(self.grid,) * len(size))
        if self.upsampling == "linear":
            masks = resize_maps(masks, size)
        else:
            masks = F.interpolate(masks.unsqueeze(1), tuple(size)).squeeze(1)
        # Interpolation between ones has rounding errors; an image without a mask stays as it is.
        masks = masks.clamp(0, 1).where(masked.view(count, *(1,) * len(size)) > 0, 1.0)
        for axis, pixels in enumerate(size, 1):
            offsets = torch.rand(count, device=device).mul(pixels).long()
            shifted = (torch.arange(pixels, device=device) + offsets.unsqueeze(1)) % pixels
            shape = [count, *(pixels if axis == one else 1 for one in range(1, masks.ndim))]
            masks = masks.gather(axis, shifted.view(shape).expand_as(masks))
        return masks

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        settings: dict[str, Any] = {
            "max_fraction": self.max_fraction,
            "grid": self.grid,
            "probability": self.probability,
            "upsampling": self.upsampling,
            "baseline": display_name(self.baseline),
        }
        return ", ".join(f"{name}={value}" for name, value in settings.items())
