"""Adapter for captum: layer attributions and input attributions."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from torchmetrics_cam.cams.source import CAMSource, ForwardPass, Sharing, SourceMaps
from torchmetrics_cam.model.guard import attributes_kept, unwrapped


class CaptumSource(CAMSource):
    """Maps from an ``Attribution`` of captum, summed over the channels.

    Supported is every attribution that returns one value per position, or one per channel and position, of
    the image or of a layer: ``LayerGradCam``, ``GuidedGradCam``, ``LayerActivation``,
    ``LayerGradientXActivation``, ``Saliency``, ``IntegratedGradients``, ``Occlusion``, ``NoiseTunnel`` and
    others. A protocol with ``rectify="abs"`` takes absolute values before the sum over the channels.

    Args:
        attribution: the captum object; its ``forward_func`` must be the network or its method ``forward``.
        reshape_transform: a function from the attribution of a layer to ``(N, channels, *spatial)``, such as
            `vit_grid` or `swin_grid`; None if it already has this shape.
        call_arguments: further arguments of ``attribution.attribute`` besides ``inputs`` and ``target``, such
            as ``sliding_window_shapes=(3, 15, 15)`` for ``Occlusion``.

    Raises:
        TypeError: if the object explains a neuron, its network cannot be determined, or ``attribute`` does
            not accept a given argument or requires one that is missing; in ``update``, if it does not return
            one tensor.
        ValueError: in ``update``, if the maps do not match the images, or if ``targets`` are given instead of
            classes.

    Example:
        captum's Grad-CAM weights each channel by its mean gradient. The target layer returns the image
        unchanged, two channels of 2 x 2 pixels, and the first row of the weights gives the mean gradients 0.1
        and 0.2: the map is 0.1 times the first channel plus 0.2 times the second.

        >>> import torch
        >>> from captum.attr import LayerGradCam
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import CaptumSource
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 2, bias=False))
        >>> model[2].weight.data[0] = torch.tensor([0.8, 0.0, 0.0, -0.4, 0.2, 0.2, 0.2, 0.2])
        >>> images = torch.tensor([[[[1.0, 2.0], [4.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]]])
        >>> explain(CaptumSource(LayerGradCam(model, model[0])), images, class_idx=0).maps[0]
        tensor([[0.5000, 0.2000],
                [0.4000, 0.5000]])

    """

    sharing: Sharing = "scores"
    supports_targets = False
    differentiates: bool = True

    def __init__(
        self,
        attribution: Any,
        *,
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        **call_arguments: Any,
    ) -> None:
        self.attribution = attribution
        self.model = _network(attribution)
        self.reshape_transform = reshape_transform
        self.call_arguments = call_arguments
        self._takes_target = _check_call_arguments(attribution, call_arguments)

    @property
    def counted_layers(self) -> Sequence[nn.Module]:
        """The layer or layers that the object attributes to; none for an attribution to the input."""
        layers = getattr(self.attribution, "layer", ())
        return [layers] if isinstance(layers, nn.Module) else list(layers)

    def maps(self, forward: ForwardPass) -> SourceMaps:
        """Return the attribution, summed over the channels.

        Raises:
            TypeError: if ``attribute`` does not return one tensor.
        """
        target = {"target": forward.selector.class_idx} if self._takes_target else {}
        images = forward.images.clone().requires_grad_()
        # captum explains the output of the network: the hook makes it the one that the protocol chooses.
        output_hook = self.model.register_forward_hook(
            lambda _module, _args, output: forward.explained_output_of(output)
        )
        callers = [self.attribution, getattr(self.attribution, "attribution_method", self.attribution)]
        with attributes_kept(*callers):
            # Forward hooks do not run when captum calls the method `forward` instead of the module.
            for caller in callers:
                caller.forward_func = self.model
            try:
                maps = self.attribution.attribute(images, **target, **self.call_arguments)
            finally:
                output_hook.remove()
        if isinstance(maps, tuple) and len(maps) == 1:
            maps = maps[0]
        if not isinstance(maps, Tensor):
            raise TypeError(
                f"{self!r} returned a {type(maps).__name__}; it must return one tensor: choose an attribution"
                " to a single layer or input"
            )
        if self.reshape_transform is not None:
            maps = self.reshape_transform(maps)
        if forward.protocol.rectify == "abs":
            maps = maps.abs()
        return SourceMaps([maps.sum(1)])

    def __repr__(self) -> str:
        shown = [type(self.model).__name__]
        layer = getattr(self.attribution, "layer", None)
        if isinstance(layer, nn.Module):
            names = {module: name for name, module in self.model.named_modules()}
            shown.append(names.get(layer, type(layer).__name__))
        shown += [f"{name}={value!r}" for name, value in self.call_arguments.items()]
        return f"{type(self.attribution).__name__}({', '.join(shown)})"


def _network(attribution: Any) -> nn.Module:
    """Return the network that an attribution was built on."""
    function, name = attribution.forward_func, type(attribution).__name__
    is_forward = getattr(function, "__name__", None) == "forward"
    network = getattr(function, "__self__", None) if is_forward else function
    if not isinstance(network, nn.Module):
        described = getattr(function, "__qualname__", type(function).__name__)
        raise TypeError(
            f"{name} was built on {described}, which is not a network; build it on the network itself, and"
            " pass what the function does to the network's output as logits_fn of the metric"
        )
    if unwrapped(network) is not network:
        raise TypeError(
            f"{name} was built on a {type(network).__name__}, which synchronizes with other processes or"
            " skips hooks; build it on the network inside"
        )
    return network


def _check_call_arguments(attribution: Any, call_arguments: dict[str, Any]) -> bool:
    """Validate the arguments of ``attribute``; return whether it accepts a target class."""
    parameters = dict(inspect.signature(attribution.attribute).parameters)
    name = type(attribution).__name__
    if "neuron_selector" in parameters:
        raise TypeError(
            f"{name} explains a neuron, not a class; pass an attribution to a layer or to the input instead"
        )
    takes_target = parameters.pop("target", None) is not None
    parameters.pop("inputs", None)
    takes_any = parameters.pop("kwargs", None) is not None
    for argument in call_arguments:
        if argument not in parameters and not takes_any:
            raise TypeError(
                f"{name}.attribute has no argument {argument!r}; its arguments are {sorted(parameters)}"
            )
    missing = [
        argument
        for argument, parameter in parameters.items()
        if parameter.default is inspect.Parameter.empty and argument not in call_arguments
    ]
    if missing:
        raise TypeError(
            f"{name}.attribute requires {', '.join(missing)}; pass"
            f" CaptumSource(attribution, {missing[0]}=...)"
        )
    return takes_target or takes_any
