"""Control maps, which do not depend on the target class: a method should have better values than these."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.layers import LayerSource, TargetLayer, weighted_sum
from torchmetrics_cam.cams.source import CAMSource, ForwardPass, Sharing, SourceMaps
from torchmetrics_cam.functional._noise import hashed_noise
from torchmetrics_cam.functional.statistics import sum_dtype


class UniformMap(CAMSource):
    r"""A control: the same mask value at every pixel, :math:`m_{ij} = v`.

    With the value 1 no pixel is masked: Average Drop is 0, its optimum, although the map explains nothing.

    Args:
        model: the network whose scores are compared.
        value: the mask value v, in [0, 1].

    Raises:
        ValueError: if the value is outside of [0, 1].

    Example:
        Half of the intensity of every pixel halves the logits 2 and 0: the confidence falls from 0.88 to
        0.73, by 17 %.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import AverageDrop
        >>> from torchmetrics_cam.cams import UniformMap
        >>> metric = AverageDrop(UniformMap(nn.Flatten(), value=0.5))
        >>> metric(torch.tensor([[[[2.0]], [[0.0]]]]))
        tensor(0.1700)

    """

    sharing: Sharing = "pass"

    def __init__(self, model: nn.Module, value: float = 1.0) -> None:
        if not 0 <= value <= 1:
            raise ValueError(f"UniformMap(value={value}): it must be a mask value in [0, 1]")
        self.model = model
        self.value = value

    def maps(self, forward: ForwardPass) -> SourceMaps:
        """Return masks that have the value at every pixel."""
        images = forward.images
        uniform = torch.full((), self.value, device=images.device).expand(len(images), *images.shape[2:])
        return SourceMaps([uniform], rectified=True, normalized=True)


class RandomMap(CAMSource):
    """A control: uniform noise on a coarse grid, resized to the image like the map of a layer.

    The noise is computed from a hash of the image's values and the seed. The same image has the same map in
    every batch, process and run, and no random number generator is used.

    Args:
        model: the network whose scores are compared.
        seed: the seed; different seeds give different maps.
        grid: the number of grid cells along each axis.

    Raises:
        ValueError: if ``grid`` is not a positive integer.

    Example:
        The map of an image does not depend on the other images of the batch.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import RandomMap
        >>> images = torch.linspace(0, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
        >>> source = RandomMap(nn.Flatten(), grid=4)
        >>> both, second = explain(source, images).maps, explain(source, images[1:]).maps
        >>> both.shape
        torch.Size([2, 4, 4])
        >>> torch.equal(both[1], second[0])
        True

    """

    sharing: Sharing = "pass"

    def __init__(self, model: nn.Module, seed: int = 0, grid: int = 7) -> None:
        if not isinstance(grid, int) or grid < 1:
            raise ValueError(f"RandomMap(grid={grid}): it must be a positive number of cells along each axis")
        self.model = model
        self.seed = seed
        self.grid = grid

    def maps(self, forward: ForwardPass) -> SourceMaps:
        """Return uniform noise in [0, 1), one value per grid cell."""
        shape = (self.grid,) * (forward.images.ndim - 2)
        noise = hashed_noise(forward.images, math.prod(shape), self.seed)
        return SourceMaps([noise.view(-1, *shape)], rectified=True, normalized=True)


class CenterMap(CAMSource):
    r"""A control: a Gaussian at the center of the image, where photographs often show their subject.

    .. math:: m(x) = \exp\Big(-\frac{1}{2} \sum_d \frac{x_d^2}{\sigma^2}\Big)

    :math:`x_d` is the distance of the pixel from the center along axis d, in units of half the image's side.

    Args:
        model: the network whose scores are compared.
        sigma: the standard deviation, in units of half the image's side.

    Raises:
        ValueError: if ``sigma`` is not positive.

    Example:
        In a row of three pixels the centers of the outer ones are 2/3 of half a side from the center of the
        image. Their value is exp(-(2/3 / 0.5)² / 2) = 0.41.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import CenterMap
        >>> explain(CenterMap(nn.Flatten()), torch.zeros(1, 2, 1, 3)).maps
        tensor([[[0.4111, 1.0000, 0.4111]]])

    """

    sharing: Sharing = "pass"

    def __init__(self, model: nn.Module, sigma: float = 0.5) -> None:
        if not sigma > 0:
            raise ValueError(f"CenterMap(sigma={sigma}): it must be positive")
        self.model = model
        self.sigma = sigma

    def maps(self, forward: ForwardPass) -> SourceMaps:
        """Return masks that are highest at the center and fall off towards the borders."""
        size, device = forward.images.shape[2:], forward.images.device
        # Computed in float64, so that pixels at equal distances have equal values on every device.
        log_density = torch.zeros(size, dtype=sum_dtype(device), device=device)
        for axis, side in enumerate(size):
            position = (torch.arange(side, device=device) - (side - 1) / 2).to(log_density.dtype) / (side / 2)
            log_density -= (position / self.sigma).square().div(2).view(-1, *(1,) * (len(size) - 1 - axis))
        density = log_density.exp().float()
        return SourceMaps([density.expand(len(forward.images), *size)], rectified=True, normalized=True)


class EdgeMap(CAMSource):
    r"""A control: the edges of the image, which outline objects without any use of the network.

    .. math:: m = \sqrt{\sum_c \sum_d (\partial_d\, x_c)^2}

    the magnitude of the image gradient over the channels c and the axes d, by central differences. The map
    is not normalized; the protocol does it. An image without edges has a constant map.

    Args:
        model: the network whose scores are compared.

    Example:
        A step from 0 to 1 is an edge; central differences spread it over two pixels.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import EdgeMap
        >>> explain(EdgeMap(nn.Flatten()), torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]])).maps
        tensor([[[0.0000, 0.5000, 0.5000, 0.0000]]])

    """

    sharing: Sharing = "pass"

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def maps(self, forward: ForwardPass) -> SourceMaps:
        """Return the magnitude of the image gradient, at the size of the image."""
        images = forward.images.to(torch.promote_types(forward.images.dtype, torch.float32))
        axes = [axis for axis in range(2, images.ndim) if images.shape[axis] > 1]
        squares = torch.zeros_like(images[:, 0])
        for axis in axes:
            (derivative,) = torch.gradient(images, dim=axis)
            squares += derivative.square().sum(1)
        return SourceMaps([squares.sqrt()], rectified=True)


class RandomWeightsCAM(LayerSource):
    r"""A control: a CAM with random channel weights, which do not depend on the target class.

    .. math:: L_{ij} = \sum_k w_k A^k_{ij}, \qquad w_k \sim U[-1, 1)

    :math:`A^k_{ij}` is the activation of channel k at position ij of the target layer. The map has the
    resolution and smoothness of a CAM and is high where the network responds. A method whose values are no
    better owes them to the layer alone. The weights are computed from a hash of the image's values and the
    seed: the same image has the same map in every batch, process and run.

    Args:
        model: the explained network; it returns logits ``(N, K)`` for images ``(N, C, *spatial)``.
        target_layer: a module of the model, its name in ``model.named_modules()``, or a list of these. The
            maps of several layers are rectified, min-max normalized, resized to the largest and combined by
            their maximum.
        reshape_transform: a function from the layer's output to ``(N, channels, *spatial)``, such as
            `vit_grid` or `swin_grid`; None if the output already has this shape.
        seed: the seed; different seeds give different weights.

    Raises:
        ValueError: if a layer is not in the model; in ``update``, if its output has no spatial dimensions.
        TypeError: if an argument is of the wrong type.
        RuntimeError: in ``update``, if the layer was not executed.

    Example:
        The target layer returns the image unchanged, one channel. The map is therefore proportional to the
        image: twice as high at the second pixel as at the first.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import RandomWeightsCAM
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten())
        >>> images = torch.tensor([[[[1.0, 2.0]]]])
        >>> maps = explain(RandomWeightsCAM(model, "0", seed=1), images).maps
        >>> (maps / maps.amax())
        tensor([[[0.5000, 1.0000]]])

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

    def maps(self, forward: ForwardPass) -> SourceMaps:
        """Return one map per image for each target layer."""
        maps = []
        with torch.autocast(forward.images.device.type, enabled=False):
            for index, (name, _, output) in enumerate(self._activations(forward)):
                activation = self._grid(name, output)
                # Each layer has weights of its own.
                noise = hashed_noise(forward.images, activation.shape[1], self.seed + index * 0x5851F42D)
                maps.append(weighted_sum(activation, (noise * 2 - 1).to(activation.dtype)))
        return self._source_maps(maps, forward)
