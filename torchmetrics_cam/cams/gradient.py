"""Gradient CAMs: maps computed from the activation of a target layer and the gradient of the score there."""

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.layers import LayerSource, TargetLayer, weighted_sum
from torchmetrics_cam.cams.source import ForwardPass, Graph, SourceMaps
from torchmetrics_cam.model.graph import why_no_gradient


class GradientCAM(LayerSource):
    """Base class of the gradient CAMs; a subclass implements `formula`.

    The explained score is the logit of the target class, or what the protocol's ``cam_of`` and the argument
    ``targets`` choose instead. All gradient CAMs of a comparison share one forward and one backward pass,
    which ends at the target layers. The map has the resolution of the layer; the protocol rectifies (ReLU by
    default), normalizes and resizes it.

    Args:
        model: the explained network; it returns logits ``(N, K)`` for images ``(N, C, *spatial)``.
        target_layer: a module of the model, its name in ``model.named_modules()``, or a list of these. The
            maps of several layers are rectified, min-max normalized, resized to the largest and combined by
            their maximum.
        reshape_transform: a function from the layer's output to ``(N, channels, *spatial)``, such as
            `vit_grid` or `swin_grid`; None if the output already has this shape.

    Raises:
        ValueError: if a layer is not in the model; in ``update``, if its output has no spatial dimensions.
        TypeError: if an argument is of the wrong type.
        RuntimeError: in ``update``, if the explained score has no gradient at the layer.

    Example:
        Grad-CAM Elementwise rectifies each channel's product of gradient and activation. The target layer
        returns the image unchanged, one channel of 2 x 2 pixels, and the gradient of the score of class 0 is
        the first row of the weights.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import GradientCAM
        >>> class GradCAMElementwise(GradientCAM):
        ...     def formula(self, activation, gradient):
        ...         return (gradient * activation).clamp(min=0).sum(1)
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(4, 2, bias=False))
        >>> model[2].weight.data[0] = torch.tensor([0.5, 0.0, 2.0, -1.0])
        >>> images = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> explain(GradCAMElementwise(model, "0"), images, class_idx=0).maps[0]
        tensor([[0.5000, 0.0000],
                [6.0000, 0.0000]])

    """

    graph: Graph = "head"

    @abstractmethod
    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return the map before rectification.

        Args:
            activation: the output of the target layer, ``(N, channels, *spatial)``, at least float32.
            gradient: the gradient of the explained score with respect to it, in the same shape.

        Returns:
            One map per image, ``(N, *spatial)``.
        """

    def maps(self, forward: ForwardPass) -> SourceMaps:
        """Return one map per image for each target layer.

        Raises:
            RuntimeError: if a layer was not executed, or the explained score has no gradient there.
        """
        maps = []
        for name, layer, activation in self._activations(forward):
            gradient = forward.gradients[layer]
            if gradient is None:
                raise RuntimeError(
                    f"the explained score has no gradient at layer {name!r}. {why_no_gradient(self.model)}"
                )
            # Autocast would compute the sums over the channels in half precision.
            with torch.autocast(activation.device.type, enabled=False):
                maps.append(self.formula(self._grid(name, activation.detach()), self._grid(name, gradient)))
        return self._source_maps(maps, forward)


class GradCAM(GradientCAM):
    r"""Grad-CAM: the sum of the channels, each weighted by its mean gradient.

    .. math:: L_{ij} = \sum_k \Big(\frac{1}{Z} \sum_{ab} g^k_{ab}\Big) A^k_{ij}

    :math:`A^k_{ij}` is the activation of channel k at position ij of the target layer, :math:`g^k_{ij}` the
    gradient of the target class's score (by default its logit) with respect to it, and Z the number of
    positions.

    The map ``(N, *spatial)`` has the resolution of the layer. The protocol rectifies (ReLU by default),
    normalizes and resizes it.

    Source: Selvaraju et al., https://arxiv.org/abs/1610.02391

    Args:
        model: the explained network; it returns logits ``(N, K)`` for images ``(N, C, *spatial)``.
        target_layer: a module of the model, its name in ``model.named_modules()``, or a list of these. The
            maps of several layers are rectified, min-max normalized, resized to the largest and combined by
            their maximum.
        reshape_transform: a function from the layer's output to ``(N, channels, *spatial)``, such as
            `vit_grid` or `swin_grid`; None if the output already has this shape.

    Raises:
        ValueError: if a layer is not in the model; in ``update``, if its output has no spatial dimensions.
        TypeError: if an argument is of the wrong type.
        RuntimeError: in ``update``, if the explained score has no gradient at the layer.

    Example:
        The target layer returns the image unchanged: two channels of 2 x 2 pixels. The gradient of the score
        of class 0 is the first row of the weights: 0.8, 0, 0, -0.4 in the first channel and 0.2 everywhere in
        the second. The channels' mean gradients are 0.1 and 0.2: the map is 0.1 times the first plus 0.2
        times the second.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import GradCAM
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 2, bias=False))
        >>> model[2].weight.data[0] = torch.tensor([0.8, 0.0, 0.0, -0.4, 0.2, 0.2, 0.2, 0.2])
        >>> images = torch.tensor([[[[1.0, 2.0], [4.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]]])
        >>> explain(GradCAM(model, "0"), images, class_idx=0).maps[0]
        tensor([[0.5000, 0.2000],
                [0.4000, 0.5000]])

    """

    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return the sum of the channels weighted by their mean gradients; see `GradientCAM.formula`."""
        return weighted_sum(activation, gradient.flatten(2).mean(-1))


class GradCAMPlusPlus(GradientCAM):
    r"""Grad-CAM++: the sum of the channels, each weighted by its positive gradients with pixel-wise factors.

    .. math:: L_{ij} = \sum_k \Big(\sum_{ab} \alpha^k_{ab}\, \mathrm{ReLU}(g^k_{ab})\Big) A^k_{ij}, \qquad
              \alpha^k_{ab} = \frac{(g^k_{ab})^2}{2 (g^k_{ab})^2 + \sum_{cd} A^k_{cd}\, (g^k_{ab})^3 +
              \epsilon}

    :math:`A^k_{ij}` is the activation of channel k at position ij of the target layer, :math:`g^k_{ij}` the
    gradient of the target class's score (by default its logit) with respect to it. The paper has no
    :math:`\epsilon`. Squared gradients of a logit are often near 1e-6, so pytorch-grad-cam's ``eps=1e-6``
    changes the map; set it to reproduce that library.

    The map ``(N, *spatial)`` has the resolution of the layer. The protocol rectifies (ReLU by default),
    normalizes and resizes it.

    Source: Chattopadhyay et al., https://arxiv.org/abs/1710.11063, equation 19

    Args:
        model: the explained network; it returns logits ``(N, K)`` for images ``(N, C, *spatial)``.
        target_layer: a module of the model, its name in ``model.named_modules()``, or a list of these. The
            maps of several layers are rectified, min-max normalized, resized to the largest and combined by
            their maximum.
        reshape_transform: a function from the layer's output to ``(N, channels, *spatial)``, such as
            `vit_grid` or `swin_grid`; None if the output already has this shape.
        eps: :math:`\epsilon`, added to the denominator.

    Raises:
        ValueError: if a layer is not in the model; in ``update``, if its output has no spatial dimensions.
        TypeError: if an argument is of the wrong type.
        RuntimeError: in ``update``, if the explained score has no gradient at the layer.

    Example:
        The target layer returns the image unchanged: two channels of 2 x 2 pixels. The gradient of the score
        of class 0 is the first row of the weights: 0.8, 0, 0, -0.4 in the first channel and 0.2 everywhere in
        the second. Where the gradient g is positive and the activations of the channel sum to S, the factor
        is 1 / (2 + S g): 1 / 8.4 for 0.8 (S = 8) and 1 / 2.8 for 0.2 (S = 4). The weights of the channels are
        0.8 / 8.4 = 0.0952 and 4 * 0.2 / 2.8 = 0.2857.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import GradCAMPlusPlus
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 2, bias=False))
        >>> model[2].weight.data[0] = torch.tensor([0.8, 0.0, 0.0, -0.4, 0.2, 0.2, 0.2, 0.2])
        >>> images = torch.tensor([[[[1.0, 2.0], [4.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]]])
        >>> explain(GradCAMPlusPlus(model, "0"), images, class_idx=0).maps[0]
        tensor([[0.6667, 0.1905],
                [0.3810, 0.6667]])

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
        """Return the sum of the channels weighted as the class describes; see `GradientCAM.formula`."""
        total = activation.sum(tuple(range(2, activation.ndim)), keepdim=True)
        positive = gradient.clamp(min=0)
        if self.eps:
            square = positive**2
            alpha = square / (2 * square + total * square * positive + self.eps)
        else:
            # The fraction is reduced by the squared gradient, which underflows for small gradients.
            alpha = 1 / (2 + total * positive)
        return weighted_sum(activation, (alpha * positive).flatten(2).sum(-1))


class XGradCAM(GradientCAM):
    r"""XGrad-CAM: the sum of the channels, each weighted by the activation-weighted mean of its gradient.

    .. math:: L_{ij} = \sum_k \Big(\sum_{ab} \frac{A^k_{ab}}{\sum_{cd} A^k_{cd}}\, g^k_{ab}\Big) A^k_{ij}

    :math:`A^k_{ij}` is the activation of channel k at position ij of the target layer, :math:`g^k_{ij}` the
    gradient of the target class's score (by default its logit) with respect to it. A channel whose
    activations sum to 0 has weight 0.

    The map ``(N, *spatial)`` has the resolution of the layer. The protocol rectifies (ReLU by default),
    normalizes and resizes it.

    Source: Fu et al., https://arxiv.org/abs/2008.02312

    Args:
        model: the explained network; it returns logits ``(N, K)`` for images ``(N, C, *spatial)``.
        target_layer: a module of the model, its name in ``model.named_modules()``, or a list of these. The
            maps of several layers are rectified, min-max normalized, resized to the largest and combined by
            their maximum.
        reshape_transform: a function from the layer's output to ``(N, channels, *spatial)``, such as
            `vit_grid` or `swin_grid`; None if the output already has this shape.

    Raises:
        ValueError: if a layer is not in the model; in ``update``, if its output has no spatial dimensions.
        TypeError: if an argument is of the wrong type.
        RuntimeError: in ``update``, if the explained score has no gradient at the layer.

    Example:
        The target layer returns the image unchanged: two channels of 2 x 2 pixels. The gradient of the score
        of class 0 is the first row of the weights: 0.8, 0, 0, -0.4 in the first channel and 0.2 everywhere in
        the second. The weights of the channels are (1 * 0.8 - 1 * 0.4) / 8 = 0.05 and (2 * 0.2 + 2 * 0.2) / 4
        = 0.2.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import XGradCAM
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 2, bias=False))
        >>> model[2].weight.data[0] = torch.tensor([0.8, 0.0, 0.0, -0.4, 0.2, 0.2, 0.2, 0.2])
        >>> images = torch.tensor([[[[1.0, 2.0], [4.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]]])
        >>> explain(XGradCAM(model, "0"), images, class_idx=0).maps[0]
        tensor([[0.4500, 0.1000],
                [0.2000, 0.4500]])

    """

    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return the sum of the channels weighted as the class describes; see `GradientCAM.formula`."""
        total = activation.flatten(2).sum(-1)
        weights = (activation * gradient).flatten(2).sum(-1) / total
        return weighted_sum(activation, torch.where(total == 0, torch.zeros_like(weights), weights))


class LayerCAM(GradientCAM):
    r"""Layer-CAM: the sum of the channels, weighted at each position by the positive part of its gradient.

    .. math:: L_{ij} = \sum_k \mathrm{ReLU}(g^k_{ij})\, A^k_{ij}

    :math:`A^k_{ij}` is the activation of channel k at position ij of the target layer, :math:`g^k_{ij}` the
    gradient of the target class's score (by default its logit) with respect to it.

    The map ``(N, *spatial)`` has the resolution of the layer. The protocol rectifies (ReLU by default),
    normalizes and resizes it.

    Source: Jiang et al., https://doi.org/10.1109/TIP.2021.3089943

    Args:
        model: the explained network; it returns logits ``(N, K)`` for images ``(N, C, *spatial)``.
        target_layer: a module of the model, its name in ``model.named_modules()``, or a list of these. The
            maps of several layers are rectified, min-max normalized, resized to the largest and combined by
            their maximum.
        reshape_transform: a function from the layer's output to ``(N, channels, *spatial)``, such as
            `vit_grid` or `swin_grid`; None if the output already has this shape.

    Raises:
        ValueError: if a layer is not in the model; in ``update``, if its output has no spatial dimensions.
        TypeError: if an argument is of the wrong type.
        RuntimeError: in ``update``, if the explained score has no gradient at the layer.

    Example:
        The target layer returns the image unchanged: two channels of 2 x 2 pixels. The gradient of the score
        of class 0 is the first row of the weights: 0.8, 0, 0, -0.4 in the first channel and 0.2 everywhere in
        the second. At the top left the map is 0.8 * 1 + 0.2 * 2; at the bottom right the negative gradient
        counts as 0, and 0.2 * 2 remains.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import LayerCAM
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 2, bias=False))
        >>> model[2].weight.data[0] = torch.tensor([0.8, 0.0, 0.0, -0.4, 0.2, 0.2, 0.2, 0.2])
        >>> images = torch.tensor([[[[1.0, 2.0], [4.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]]])
        >>> explain(LayerCAM(model, "0"), images, class_idx=0).maps[0]
        tensor([[1.2000, 0.0000],
                [0.0000, 0.4000]])

    """

    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return the channel sum of activation times positive gradient; see `GradientCAM.formula`."""
        return (gradient.clamp(min=0) * activation).sum(1)


class HiResCAM(GradientCAM):
    r"""HiRes-CAM: the sum of the channels, weighted at each position by its gradient.

    .. math:: L_{ij} = \sum_k g^k_{ij}\, A^k_{ij}

    :math:`A^k_{ij}` is the activation of channel k at position ij of the target layer, :math:`g^k_{ij}` the
    gradient of the target class's score (by default its logit) with respect to it.

    The map ``(N, *spatial)`` has the resolution of the layer. The protocol rectifies (ReLU by default),
    normalizes and resizes it.

    Source: Draelos and Carin, https://arxiv.org/abs/2011.08891

    Args:
        model: the explained network; it returns logits ``(N, K)`` for images ``(N, C, *spatial)``.
        target_layer: a module of the model, its name in ``model.named_modules()``, or a list of these. The
            maps of several layers are rectified, min-max normalized, resized to the largest and combined by
            their maximum.
        reshape_transform: a function from the layer's output to ``(N, channels, *spatial)``, such as
            `vit_grid` or `swin_grid`; None if the output already has this shape.

    Raises:
        ValueError: if a layer is not in the model; in ``update``, if its output has no spatial dimensions.
        TypeError: if an argument is of the wrong type.
        RuntimeError: in ``update``, if the explained score has no gradient at the layer.

    Example:
        The target layer returns the image unchanged: two channels of 2 x 2 pixels. The gradient of the score
        of class 0 is the first row of the weights: 0.8, 0, 0, -0.4 in the first channel and 0.2 everywhere in
        the second. At the top left the map is 0.8 * 1 + 0.2 * 2, at the bottom right -0.4 * 1 + 0.2 * 2 = 0.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import HiResCAM
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 2, bias=False))
        >>> model[2].weight.data[0] = torch.tensor([0.8, 0.0, 0.0, -0.4, 0.2, 0.2, 0.2, 0.2])
        >>> images = torch.tensor([[[[1.0, 2.0], [4.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]]])
        >>> explain(HiResCAM(model, "0"), images, class_idx=0).maps[0]
        tensor([[1.2000, 0.0000],
                [0.0000, 0.0000]])

    """

    def formula(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """Return the channel sum of activation times gradient; see `GradientCAM.formula`."""
        return (gradient * activation).sum(1)
