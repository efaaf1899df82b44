"""``--methods``: CAM methods by name."""

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
from torchmetrics_cam.cli.errors import UsageError, import_library, usage_error
from torchmetrics_cam.cli.names import call_factory, nearest

_OWN: dict[str, tuple[str, type[LayerSource]]] = {
    "grad_cam": ("Grad-CAM", GradCAM),
    "grad_cam_plus_plus": ("Grad-CAM++", GradCAMPlusPlus),
    "xgrad_cam": ("XGrad-CAM", XGradCAM),
    "layer_cam": ("Layer-CAM", LayerCAM),
    "hires_cam": ("HiRes-CAM", HiResCAM),
}
# CAM methods of other libraries whose names do not contain CAM.
_WITHOUT_CAM_IN_NAME = ("FullGrad", "FEM", "SESS", "LeGrad")

METHODS = (*_OWN, "torchcam:NAME", "pytorch_grad_cam:NAME", "package.module:factory")

Reshape = Callable[[Tensor], Tensor]


def titles_of(names: Sequence[str]) -> list[str]:
    """Return the titles of methods: ``"Grad-CAM"`` of this package's ``grad_cam``, of any other its name."""
    return [_OWN[name][0] if name in _OWN else name for name in names]


def make_sources(
    names: Sequence[str],
    model: nn.Module,
    layer: str | Sequence[str],
    *,
    reshape_transform: Reshape | None = None,
) -> dict[str, CAMSource]:
    """Return the CAM sources of the methods.

    Args:
        names: names as in `METHODS`: a method of this package, a class of ``torchcam.methods`` or of
            ``pytorch_grad_cam``, or a callable that gets the model and the layer and returns a CAM source.
        model: the network.
        layer: the name of the target layer, or several.
        reshape_transform: a function from the output of the layer to ``(N, channels, h, w)``; None if the
            output already has this shape.

    Returns:
        One source for each method, in the order of the names; the key of a method of this package is its
        title, such as ``"Grad-CAM"``, that of another its name.

    Raises:
        UsageError: if a method does not exist, is named twice, or does not support the model or the layer.
        ModuleNotFoundError: if its library is not installed; the message contains the pip command.
    """
    layers = [layer] if isinstance(layer, str) else list(layer)
    if not names:
        raise UsageError(f"--methods is empty; give at least one of {', '.join(METHODS)}")
    sources: dict[str, CAMSource] = {}
    for name, title in zip(names, titles_of(names), strict=True):
        if title in sources:
            raise UsageError(f"--methods contains {name!r} twice; give every method once")
        sources[title] = _source(name, model, layers, reshape_transform)
    return sources


def _source(name: str, model: nn.Module, layers: list[str], reshape: Reshape | None) -> CAMSource:
    if name in _OWN:
        return _OWN[name][1](model, layers, reshape_transform=reshape)
    library, _, class_name = name.partition(":")
    if not class_name:
        raise UsageError(
            f"--methods {name!r} does not exist; the nearest names are {nearest(name, _OWN)}, and all are"
            f" {', '.join(METHODS)}"
        )
    if library == "torchcam":
        cam = _torchcam(name, class_name, model, layers, reshape)
    elif library == "pytorch_grad_cam":
        cam = _pytorch_grad_cam(name, class_name, model, layers, reshape)
    else:
        cam = call_factory(name, "--methods", model, layers[0] if len(layers) == 1 else layers)
    with usage_error(f"--methods {name!r} returned a {type(cam).__name__}, which is not a CAM source"):
        return as_source(cam)


def _torchcam(
    name: str, class_name: str, model: nn.Module, layers: list[str], reshape: Reshape | None
) -> Any:
    module = import_library("torchcam.methods", f"--methods {name}", "torchmetrics-cam[torchcam]")
    if reshape is not None and class_name != "LeGrad":
        raise UsageError(
            f"--methods {name}: torchcam does not support layers whose output is tokens or channels-last,"
            f" such as {', '.join(layers)}; choose a method of this package or of pytorch_grad_cam"
        )
    return _construct(name, class_name, module, model, target_layer=layers)


def _pytorch_grad_cam(
    name: str, class_name: str, model: nn.Module, layers: list[str], reshape: Reshape | None
) -> Any:
    module = import_library("pytorch_grad_cam", f"--methods {name}", "torchmetrics-cam[grad-cam]")
    settings = {} if reshape is None else {"reshape_transform": reshape}
    target_layers = [model.get_submodule(layer) for layer in layers]
    return _construct(name, class_name, module, model, target_layers, **settings)


def _construct(name: str, class_name: str, module: Any, *arguments: Any, **settings: Any) -> Any:
    """Construct a CAM object of another library."""
    available = sorted(
        item
        for item, value in vars(module).items()
        if isinstance(value, type) and ("CAM" in item or item in _WITHOUT_CAM_IN_NAME)
    )
    if class_name not in available:
        raise UsageError(
            f"--methods {name!r} does not exist; the nearest names are {nearest(class_name, available)}, and"
            f" all are {', '.join(available)}"
        )
    message = f"--methods {name!r} cannot be constructed with the model and the layer alone"
    what_to_do = "; construct it in a function of your own, and give that as package.module:factory"
    with usage_error(message, what_to_do):
        return getattr(module, class_name)(*arguments, **settings)
