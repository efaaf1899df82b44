"""Finding a target layer: by name or by module."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

import torch
from torch import nn

from torchmetrics_cam.model.guard import unwrapped

TargetLayer = nn.Module | str | Sequence[nn.Module | str]


def layer_names(model: nn.Module, target_layer: TargetLayer) -> tuple[str, ...]:
    """The names of the target layers in the model.

    Raises:
        ValueError: if a name or module is not in the model, or none is given.
        TypeError: if a layer is neither a name nor a module, or the model is not one that has layers.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "a scripted or traced model has no layers to record; pass the module that it was made from"
        )
    if isinstance(target_layer, str | nn.Module):
        return (_layer_name(model, target_layer),)
    if not isinstance(target_layer, Sequence):
        raise TypeError(f"target_layer is {target_layer!r}; it must be a module, a name, or a list of either")
    if not target_layer:
        raise ValueError("target_layer is an empty list; name at least one layer")
    return tuple(_layer_name(model, layer) for layer in target_layer)


def _layer_name(model: nn.Module, layer: nn.Module | str) -> str:
    modules = dict(model.named_modules(remove_duplicate=False))
    if isinstance(layer, nn.Module):
        # The names of a wrapped layer are those of the layer inside, which is the one that gives the map.
        layer = unwrapped(layer)
        found: list[str] = [name for name, module in modules.items() if module is layer]
        if not found:
            raise ValueError(
                f"target_layer {type(layer).__name__} is not a module of this {type(model).__name__};"
                " take it from the model that is given, or pass its name"
            )
        return found[0]
    if not isinstance(layer, str):
        raise TypeError(f"target_layer holds {layer!r}; each layer must be a module or a name")
    if layer not in modules:
        # A name that was read off the wrapped model.
        layer = re.sub(r"^((module|_orig_mod)\.)+", "", layer)
    if layer not in modules:
        near = get_close_matches(layer, modules, n=3, cutoff=0.4) or list(modules)[1:4]
        raise ValueError(
            f"target_layer {layer!r} is not in the model; the nearest names are {near}, and"
            " dict(model.named_modules()) lists all"
        )
    return layer
