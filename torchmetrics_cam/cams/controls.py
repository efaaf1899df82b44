"""Maps that know nothing of the class: what every comparison of methods should be read against."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.layer_source import LayerSource, weighted_sum
from torchmetrics_cam.cams.layers import TargetLayer
from torchmetrics_cam.cams.source import CAMSource, ForwardPass, Sharing, SourceMaps
from torchmetrics_cam.functional._noise import hashed_noise


class Control(CAMSource):
    """What the controls share that look at no network: any number of them is served by one clean pass."""

    sharing: Sharing = "pass"


class UniformMap(Control):
    """The same value everywhere: at 1 nothing is hidden, and Average Drop is as good as it can be.

    Args:
        model: the network that is evaluated.
        value: the mask's value, in [0, 1].

    Raises:
        ValueError: if the value is outside of [0, 1].
    """

    def __init__(self, model: nn.Module, value: float = 1.0) -> None:
        if not 0 <= value <= 1:
            raise ValueError(f"UniformMap(value={value}): a mask's value lies in [0, 1]")
        self.model = model
        self.value = value

    def maps(self, clean: ForwardPass) -> SourceMaps:
        """The value at every position."""
        images = clean.images
        uniform = torch.full((), self.value, device=images.device).expand(len(images), *images.shape[2:])
        return SourceMaps([uniform], rectified=True, normalized=True)


class RandomMap(Control):
    """Noise on a coarse grid, resized like a CAM: what a map without knowledge of the image gives.

    The noise is a hash of the image's own bits and the seed: one image has the same map in any batch, order,
    rank and run, and no random generator is touched.

    Args:
        model: the network that is evaluated.
        seed: another seed gives other maps.
        grid: the number of cells along each axis.
    """

    def __init__(self, model: nn.Module, seed: int = 0, grid: int = 7) -> None:
        if not isinstance(grid, int) or grid < 1:
            raise ValueError(f"RandomMap(grid={grid}): it must be a positive number of cells")
        self.model = model
        self.seed = seed
        self.grid = grid

    def maps(self, clean: ForwardPass) -> SourceMaps:
        """Uniform noise in [0, 1), one value a cell."""
        shape = (self.grid,) * (clean.images.ndim - 2)
        noise = hashed_noise(clean.images, math.prod(shape), self.seed)
        return SourceMaps([noise.view(-1, *shape)], rectified=True, normalized=True)


class CenterMap(Control):
    """A Gaussian around the middle: what knowing only that photographers center their subject gives.

    Args:
        model: the network that is evaluated.
        sigma: the standard deviation, as a share of half the image's side.
    """

    def __init__(self, model: nn.Module, sigma: float = 0.5) -> None:
        if not sigma > 0:
            raise ValueError(f"CenterMap(sigma={sigma}): it must be positive")
        self.model = model
        self.sigma = sigma

    def maps(self, clean: ForwardPass) -> SourceMaps:
        """1 in the middle, falling off towards the borders."""
        size = clean.images.shape[2:]
        log_density = torch.zeros(size, device=clean.images.device)
        for axis, side in enumerate(size):
            position = (torch.arange(side, device=clean.images.device) - (side - 1) / 2) / (side / 2)
            log_density -= (position / self.sigma).square().div(2).view(-1, *(1,) * (len(size) - 1 - axis))
        return SourceMaps(
            [log_density.exp().expand(len(clean.images), *size)], rectified=True, normalized=True
        )


class EdgeMap(Control):
    """Where the image changes most: what a map gives that outlines objects and knows no network.

    The length of the image's gradient, over all channels, by central differences.

    Args:
        model: the network that is evaluated.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def maps(self, clean: ForwardPass) -> SourceMaps:
        """The length of the gradient, not normalized."""
        images = clean.images.to(torch.promote_types(clean.images.dtype, torch.float32))
        axes = [axis for axis in range(2, images.ndim) if images.shape[axis] > 1]
        squares = torch.zeros_like(images[:, 0])
        for axis in axes:
            (change,) = torch.gradient(images, dim=axis)
            squares += change.square().sum(1)
        return SourceMaps([squares.sqrt()], rectified=True)


class RandomWeightsCAM(LayerSource):
    """The activations of a layer, summed with random weights: a CAM that was told nothing about the class.

    It has the resolution and the smoothness of a CAM, and responds where the network responds. A method that
    does not beat it owes its result to the layer. The weights, one a channel, are uniform in [-1, 1), a hash
    of the image and the seed: one image has the same map in any batch, order, rank and run.

    Args:
        model: as for `GradCAM`.
        target_layer: as for `GradCAM`.
        reshape_transform: as for `GradCAM`.
        seed: another seed gives other weights.
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: TargetLayer,
        *,
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, target_layer, reshape_transform=reshape_transform)
        self.seed = seed

    def maps(self, clean: ForwardPass) -> SourceMaps:
        """One map a target layer, not rectified."""
        maps = []
        with torch.autocast(clean.images.device.type, enabled=False):
            for place, (name, given) in enumerate(zip(self.layer_names, self._recorded(clean), strict=True)):
                activation = self._grid(name, given)
                noise = hashed_noise(clean.images, activation.shape[1], self.seed + place * 0x5851F42D)
                maps.append(weighted_sum(activation, (noise * 2 - 1).to(activation.dtype)))
        return self._rectified(maps, clean)
