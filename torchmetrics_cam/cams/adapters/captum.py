"""Attributions of captum: those of a layer that has positions, and those of the image."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from torchmetrics_cam.cams.source import CAMSource, ForwardPass, Sharing, SourceMaps
from torchmetrics_cam.model.guard import attributes_kept, unwrapped

_LIBRARY = "captum.attr"


class CaptumSource(CAMSource):
    """Maps from an ``Attribution`` of captum, summed over the channels.

    ``LayerGradCam``, ``GuidedGradCam``, ``LayerActivation``, ``LayerGradientXActivation``, ``Saliency``,
    ``IntegratedGradients``, ``Occlusion``, ``NoiseTunnel`` and every other that gives one value, or one a
    channel, for each position of the image or of the layer.

    A protocol with ``rectify="abs"`` takes the absolute values before the sum.

    Args:
        attribution: the object; its ``forward_func`` must be the network, or its method ``forward``.
        reshape_transform: from the attribution of a layer to ``(N, channels, *spatial)``; `vit_grid` and
            `swin_grid` serve transformers.
        settings: what its ``attribute`` takes beside inputs and target, such as
            ``sliding_window_shapes=(3, 15, 15)`` for ``Occlusion``.

    Raises:
        TypeError: if the object attributes to no class, its network is not to be found, or ``attribute``
            does not take a setting or lacks one.

    Example:
        >>> from captum.attr import LayerGradCam
        >>> from torch import nn
        >>> from torchmetrics_cam.cams import CaptumSource
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> CaptumSource(LayerGradCam(model, model[0]))
        LayerGradCam(Sequential, 0)

    """

    sharing: Sharing = "scores"
    supports_targets = False
    freezes: bool = True

    def __init__(
        self,
        attribution: Any,
        *,
        reshape_transform: Callable[[Tensor], Tensor] | None = None,
        **settings: Any,
    ) -> None:
        self.attribution = attribution
        self.model = _network(attribution)
        self.reshape_transform = reshape_transform
        self.settings = settings
        self._takes_target = _check_settings(attribution, settings)

    def maps(self, clean: ForwardPass) -> SourceMaps:
        """What ``attribute`` returns, summed over the channels.

        Raises:
            TypeError: if it returns more than one tensor.
        """
        target = {"target": clean.selector.class_idx} if self._takes_target else {}
        images = clean.images.clone().requires_grad_()
        # No gradient reaches a parameter, so none of the user's hooks on gradients runs.
        self.model.requires_grad_(False)
        # However captum calls the network, it gets what the protocol takes the CAM of.
        answer = self.model.register_forward_hook(lambda _m, _args, output: clean.explained_of(output))
        callers = [self.attribution, getattr(self.attribution, "attribution_method", self.attribution)]
        with attributes_kept(*callers):
            # A hook sees no call of the method `forward`.
            for caller in callers:
                caller.forward_func = self.model
            try:
                made = self.attribution.attribute(images, **target, **self.settings)
            finally:
                answer.remove()
        if isinstance(made, tuple) and len(made) == 1:
            made = made[0]
        if not isinstance(made, Tensor):
            raise TypeError(f"{self!r} gave {type(made).__name__}, and a map is made of one tensor")
        if self.reshape_transform is not None:
            made = self.reshape_transform(made)
        if clean.protocol.rectify == "abs":
            made = made.abs()
        return SourceMaps([made.sum(1)])

    def __repr__(self) -> str:
        shown = [type(self.model).__name__]
        layer = getattr(self.attribution, "layer", None)
        if isinstance(layer, nn.Module):
            names = {module: name for name, module in self.model.named_modules()}
            shown.append(names.get(layer, type(layer).__name__))
        shown += [f"{name}={value!r}" for name, value in self.settings.items()]
        return f"{type(self.attribution).__name__}({', '.join(shown)})"


def is_captum(candidate: Any) -> bool:
    """Whether an object is an attribution of captum, or of a class that is derived from one."""
    classes = type(candidate).__mro__
    return not isinstance(candidate, type) and any(
        one.__name__ == "Attribution" and one.__module__.startswith(_LIBRARY) for one in classes
    )


def _network(attribution: Any) -> nn.Module:
    given = attribution.forward_func
    found = getattr(given, "__self__", None) if getattr(given, "__name__", None) == "forward" else given
    if isinstance(found, nn.Module) and unwrapped(found) is found:
        return found
    if isinstance(found, nn.Module):
        raise TypeError(
            f"{type(attribution).__name__} was built on a {type(found).__name__}, which waits for other ranks"
            " or does not see hooks; build it on the network inside"
        )
    raise TypeError(
        f"{type(attribution).__name__} was built on {given!r}, and the network behind it is not to be seen;"
        " build it on the network, and pass what the function does to its output as logits_fn"
    )


def _check_settings(attribution: Any, settings: dict[str, Any]) -> bool:
    """Whether the call takes a target; what it takes beside that must fit the settings."""
    parameters = dict(inspect.signature(attribution.attribute).parameters)
    name = type(attribution).__name__
    if "neuron_selector" in parameters:
        raise TypeError(
            f"{name} attributes to a neuron, not to a class; pass a layer's or the input's attribution"
        )
    takes_target = parameters.pop("target", None) is not None
    parameters.pop("inputs", None)
    variable = parameters.pop("kwargs", None) is not None
    for setting in settings:
        if setting not in parameters and not variable:
            raise TypeError(f"{name}.attribute takes no {setting!r}; it takes {sorted(parameters)}")
    lacking = [
        parameter
        for parameter, described in parameters.items()
        if described.default is inspect.Parameter.empty and parameter not in settings
    ]
    if lacking:
        raise TypeError(
            f"{name}.attribute needs {', '.join(lacking)}; pass CaptumSource(attribution, {lacking[0]}=...)"
        )
    return takes_target or variable
