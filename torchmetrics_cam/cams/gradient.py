"""Gradient CAMs: a method is a formula over the activation of a layer and the gradient of the score there."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.layer_source import LayerSource, weighted_sum
from torchmetrics_cam.cams.layers import TargetLayer
from torchmetrics_cam.cams.source import ForwardPass, Graph, SourceMaps


class GradientCAM(LayerSource):
    """What the gradient CAMs share; subclass it and write `formula` for another.

    Args and errors as `LayerSource`.
    """

    graph: Graph = "head"

    @abstractmethod
    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """The map before rectification.

        Args:
            activation: what the layer gave, ``(N, channels, *spatial)``, at least float32.
            gradient: the derivative of the explained score with respect to it, the same shape.

        Returns:
            A tensor of shape ``(N, *spatial)``.
        """

    def maps(self, clean: ForwardPass) -> SourceMaps:
        """One map a target layer, from one backward pass that ends at the layers.

        Raises:
            RuntimeError: if a layer did not run, or the explained score does not depend on it.
        """
        maps = []
        for name, layer, activation in zip(self.layer_names, self.layers, self._recorded(clean), strict=True):
            gradient = clean.gradients[layer]
            if gradient is None:
                raise RuntimeError(
                    f"the explained score does not depend on layer {name!r}; choose another layer, and do not"
                    " checkpoint this one with use_reentrant=True"
                )
            # Autocast would run the sums over the channels in half precision.
            with torch.autocast(activation.device.type, enabled=False):
                maps.append(self.formula(self._grid(name, activation.detach()), self._grid(name, gradient)))
        return self._rectified(maps, clean)


class GradCAM(GradientCAM):
    r"""Grad-CAM: channels weighted by the mean of their gradient.

    .. math:: L = \sum_k \Big(\frac{1}{Z} \sum_{ij} g^k_{ij}\Big) A^k

    Args and errors as `GradientCAM`. Source: Selvaraju et al., https://arxiv.org/abs/1610.02391

    Example:
        >>> from torch import nn
        >>> from torchmetrics_cam.cams import GradCAM
        >>> head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head)
        >>> GradCAM(model, "1")
        GradCAM(Sequential, 1)

    """

    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """See the class."""
        return weighted_sum(activation, gradient.flatten(2).mean(-1))


class GradCAMPlusPlus(GradientCAM):
    r"""Grad-CAM++: channels weighted by their positive gradients, each with its own coefficient.

    .. math:: L = \sum_k \Big(\sum_{ij} \alpha^k_{ij}\, \mathrm{ReLU}(g^k_{ij})\Big) A^k, \qquad
              \alpha^k_{ij} = \frac{(g^k_{ij})^2}{2 (g^k_{ij})^2 + \sum_{ab} A^k_{ab}\, (g^k_{ij})^3 +
              \epsilon}

    The paper has no :math:`\epsilon`, and the default is 0. Squared gradients of a logit are often near 1e-6,
    so pytorch-grad-cam's ``eps=1e-6`` changes the map; set it to reproduce that library.

    Args and errors as `GradientCAM`, and ``eps``. Source: Chattopadhyay et al., https://arxiv.org/abs/1710.11063
    (equation 19).
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: TargetLayer,
        *,
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        eps: float = 0.0,
    ) -> None:
        super().__init__(model, target_layer, reshape_transform=reshape_transform)
        self.eps = eps

    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """See the class."""
        total = activation.sum(tuple(range(2, activation.ndim)), keepdim=True)
        positive = gradient.clamp(min=0)
        if self.eps:
            square = positive**2
            alpha = square / (2 * square + total * square * positive + self.eps)
        else:
            # The fraction reduced by the squared gradient, which underflows where the gradient is small.
            alpha = 1 / (2 + total * positive)
        return weighted_sum(activation, (alpha * positive).flatten(2).sum(-1))


class XGradCAM(GradientCAM):
    r"""XGrad-CAM: channels weighted by the mean of their gradient, weighted by the activation.

    .. math:: L = \sum_k \Big(\sum_{ij} \frac{A^k_{ij}}{\sum_{ab} A^k_{ab}}\, g^k_{ij}\Big) A^k

    A channel whose activations sum to 0 has weight 0.

    Args and errors as `GradientCAM`. Source: Fu et al., https://arxiv.org/abs/2008.02312
    """

    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """See the class."""
        total = activation.flatten(2).sum(-1)
        weights = (activation * gradient).flatten(2).sum(-1) / total
        return weighted_sum(activation, torch.where(total == 0, torch.zeros_like(weights), weights))


class LayerCAM(GradientCAM):
    r"""Layer-CAM: each position of each channel weighted by its positive gradient.

    .. math:: L_{ij} = \sum_k \mathrm{ReLU}(g^k_{ij})\, A^k_{ij}

    Args and errors as `GradientCAM`. Source: Jiang et al., https://doi.org/10.1109/TIP.2021.3089943
    """

    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """See the class."""
        return (gradient.clamp(min=0) * activation).sum(1)


class HiResCAM(GradientCAM):
    r"""HiRes-CAM: each position of each channel weighted by its gradient.

    .. math:: L_{ij} = \sum_k g^k_{ij}\, A^k_{ij}

    Args and errors as `GradientCAM`. Source: Draelos and Carin, https://arxiv.org/abs/2011.08891
    """

    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """See the class."""
        return (gradient * activation).sum(1)
