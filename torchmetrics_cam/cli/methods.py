"""``--methods``: sources of maps by their names."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from torchmetrics_cam.cams import (
    CAMSource,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    LayerSource,
    XGradCAM,
    as_source,
)
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.names import call_factory, load_factory, nearest, short

_OWN: dict[str, tuple[str, type[LayerSource]]] = {
    "grad_cam": ("Grad-CAM", GradCAM),
    "grad_cam_plus_plus": ("Grad-CAM++", GradCAMPlusPlus),
    "xgrad_cam": ("XGrad-CAM", XGradCAM),
    "layer_cam": ("Layer-CAM", LayerCAM),
    "hires_cam": ("HiRes-CAM", HiResCAM),
}

METHODS = {
    **{name: title for name, (title, _) in _OWN.items()},
    "torchcam:NAME": "a class of torchcam.methods, such as torchcam:ScoreCAM",
    "pytorch_grad_cam:NAME": "a class of pytorch-grad-cam, such as pytorch_grad_cam:EigenCAM",
    "package.module:factory": "your own: called with the model and the layer, returns a source of maps",
}

Layer = str | Sequence[str]
Reshape = Callable[[Tensor], Tensor]


def make_sources(
    names: Sequence[str], model: nn.Module, layer: Layer, *, reshape_transform: Reshape | None = None
) -> dict[str, CAMSource]:
    """The sources of the methods, by their titles.

    Args:
        names: names as in `METHODS`.
        model: the network.
        layer: the name of the target layer, or several.
        reshape_transform: from what the layer gives to channels-first grids; None where it gives them.

    Returns:
        A source a method, in the order of the names. The title of a method that is not this package's own is
        its name as it was given.

    Raises:
        UsageError: if a method is not known, named twice, or does not go with the model or the layer.
        ModuleNotFoundError: if its library is not installed; the message is the pip line.
    """
    layers = (layer,) if isinstance(layer, str) else tuple(layer)
    if not names:
        raise UsageError(f"--methods names no method; name at least one of {', '.join(METHODS)}")
    sources: dict[str, CAMSource] = {}
    for name in names:
        title = _OWN[name][0] if name in _OWN else name
        if title in sources:
            raise UsageError(f"--methods names {name!r} twice; name every method once")
        sources[title] = _source(name, model, layers, reshape_transform)
    return sources


def _source(name: str, model: nn.Module, layers: tuple[str, ...], reshape: Reshape | None) -> CAMSource:
    if name in _OWN:
        return _OWN[name][1](model, list(layers), reshape_transform=reshape)
    library, _, rest = name.partition(":")
    if not rest:
        raise UsageError(
            f"--methods {name!r} is not known; the nearest are {nearest(name, _OWN)}, and all are"
            f" {', '.join(METHODS)}"
        )
    if library == "torchcam":
        made = _torchcam(name, rest, model, layers, reshape)
    elif library == "pytorch_grad_cam":
        made = _pytorch_grad_cam(name, rest, model, layers, reshape)
    else:
        layer = layers[0] if len(layers) == 1 else list(layers)
        made = call_factory(load_factory(name, "--methods"), name, "--methods", model, layer)
    try:
        return as_source(made)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"--methods {name!r} gave a {type(made).__name__}, which is no source of maps: {short(error)}"
        ) from error


def _torchcam(
    name: str, wanted: str, model: nn.Module, layers: tuple[str, ...], reshape: Reshape | None
) -> Any:
    try:
        from torchcam import methods
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'--methods {name} needs torchcam: pip install "torchmetrics-cam[torchcam]"'
        ) from error
    if reshape is not None and wanted != "LeGrad":
        raise UsageError(
            f"--methods {name}: torchcam takes no layer of tokens or channels-last grids, as"
            f" {', '.join(layers)} is; choose a method of this package, or one of pytorch_grad_cam"
        )
    known = [item for item, value in vars(methods).items() if _is_method(value, "torchcam")]
    return _made(name, wanted, methods, known, lambda cam: cam(model, target_layer=list(layers)))


def _pytorch_grad_cam(
    name: str, wanted: str, model: nn.Module, layers: tuple[str, ...], reshape: Reshape | None
) -> Any:
    try:
        import pytorch_grad_cam
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'--methods {name} needs pytorch-grad-cam: pip install "torchmetrics-cam[grad-cam]"'
        ) from error
    modules = [model.get_submodule(layer) for layer in layers]
    known = [
        item
        for item, value in vars(pytorch_grad_cam).items()
        if (_is_method(value, "pytorch_grad_cam") and "CAM" in item) or item in ("FullGrad", "FEM", "SESS")
    ]
    return _made(
        name,
        wanted,
        pytorch_grad_cam,
        known,
        lambda cam: cam(model, modules, reshape_transform=reshape) if reshape else cam(model, modules),
    )


def _is_method(value: Any, library: str) -> bool:
    return isinstance(value, type) and value.__module__.startswith(library) and "Target" not in value.__name__


def _made(name: str, wanted: str, module: Any, known: list[str], build: Callable[[Any], Any]) -> Any:
    if wanted not in known:
        raise UsageError(
            f"--methods {name!r} is not known; the nearest are {nearest(wanted, known)}, and all are"
            f" {', '.join(sorted(known))}"
        )
    try:
        return build(getattr(module, wanted))
    except Exception as error:
        raise UsageError(
            f"--methods {name!r} cannot be made of the model and the layer alone ({short(error)}); make it in"
            " a function of your own, and name that as package.module:factory"
        ) from error
