"""as_source: the CAMSource for a CAM object of any supported library."""

from typing import Any

from torch import Tensor, nn

from torchmetrics_cam.cams.adapters.captum import CaptumSource
from torchmetrics_cam.cams.adapters.monai import MonaiSource
from torchmetrics_cam.cams.adapters.pytorch_grad_cam import PytorchGradCAMSource
from torchmetrics_cam.cams.adapters.torchcam import TorchcamSource, is_torchcam_like
from torchmetrics_cam.cams.source import CAMSource, library_classes

_ACCEPTED = """Accepted are
  - GradCAM(model, "layer4") and the other classes of torchmetrics_cam.cams, including the controls
  - an extractor of torchcam, or any object with .model, __call__(class_idx, scores) and .fuse_cams(list)
  - a CAM of pytorch-grad-cam, an Attribution of captum, or a CAM of MONAI
  - CallableSource(model, fn), for a function fn(model, images, class_idx) that returns maps (N, *spatial)
  - PrecomputedMaps(model), for maps computed in advance, passed with update(images, cams=maps)"""


def as_source(candidate: Any) -> CAMSource:
    """Return the `CAMSource` of a CAM object.

    Every metric calls this function on its ``cam_extractor``. An object is recognized by its class or, for
    extractors like torchcam's, by its methods; no CAM library is imported for it.

    Args:
        candidate: a `CAMSource`, which is returned unchanged; an extractor of torchcam or an object with the
            same methods; or an object of pytorch-grad-cam, captum or MONAI. To pass arguments to the object's
            call, create the adapter yourself: ``PytorchGradCAMSource(cam, aug_smooth=True)``.

    Returns:
        The source, as a metric accepts it.

    Raises:
        TypeError: if the object is none of these; the message lists what is accepted and suggests the most
            likely alternative.

    Example:
        >>> from torch import nn
        >>> from torchcam.methods import GradCAM
        >>> from torchmetrics_cam.cams import as_source
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> source = as_source(GradCAM(model, "0"))
        >>> type(source).__name__, source.model is model
        ('TorchcamSource', True)

    """
    if isinstance(candidate, CAMSource):
        model = getattr(candidate, "model", None)
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"the model of the source is a {type(model).__name__}; it must be a torch.nn.Module"
            )
        return candidate
    if library_classes(candidate, "pytorch_grad_cam"):
        return PytorchGradCAMSource(candidate)
    if "Attribution" in library_classes(candidate, "captum.attr"):
        return CaptumSource(candidate)
    if "CAMBase" in library_classes(candidate, "monai.visualize"):
        return MonaiSource(candidate)
    if is_torchcam_like(candidate):
        return TorchcamSource(candidate)
    described = (
        f"the class {candidate.__name__}" if isinstance(candidate, type) else f"a {type(candidate).__name__}"
    )
    raise TypeError(
        f"cam_extractor is {described}, which gives no maps: {_suggestion(candidate)}. {_ACCEPTED}"
    )


def _suggestion(candidate: Any) -> str:
    """Return what the user should pass instead of an object that is not a source of maps."""
    if isinstance(candidate, type):
        return f'create an object of it, as in {candidate.__name__}(model, "layer4")'
    if isinstance(candidate, Tensor):
        return "pass PrecomputedMaps(model) here, and the maps with update(images, cams=maps)"
    if isinstance(candidate, str):
        return f"a layer name needs a model and a method, as in GradCAM(model, {candidate!r})"
    if isinstance(candidate, dict | list | tuple):
        return "a metric accepts one source; create one metric per source, or use CAMComparison"
    # Attributors of zennit have a model too, but are neither modules nor functions.
    if isinstance(getattr(candidate, "model", None), nn.Module) and not isinstance(candidate, nn.Module):
        return "write a function that computes the maps with this object, and pass CallableSource(model, fn)"
    if isinstance(candidate, nn.Module):
        return 'choose a CAM method and a layer for the model, as in GradCAM(model, "layer4")'
    if callable(candidate):
        return "to use your own function, pass CallableSource(model, fn)"
    return 'pass for example GradCAM(model, "layer4")'
