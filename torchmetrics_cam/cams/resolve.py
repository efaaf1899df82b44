"""as_source: from whatever object a user has to a CAMSource."""

from typing import Any

from torch import Tensor, nn

from torchmetrics_cam.cams.adapters.captum import CaptumSource, is_captum
from torchmetrics_cam.cams.adapters.monai import MonaiSource, is_monai
from torchmetrics_cam.cams.adapters.pytorch_grad_cam import PytorchGradCAMSource, is_pytorch_grad_cam
from torchmetrics_cam.cams.adapters.torchcam import TorchcamSource, is_torchcam_like
from torchmetrics_cam.cams.source import CAMSource

_ADAPTERS = (
    (is_pytorch_grad_cam, PytorchGradCAMSource),
    (is_captum, CaptumSource),
    (is_monai, MonaiSource),
    (is_torchcam_like, TorchcamSource),
)

_ACCEPTED = """a CAM source is one of
  - GradCAM(model, "layer4") and the other classes of torchmetrics_cam.cams, controls too
  - an extractor of torchcam, or any object with .model, __call__(class_idx, scores) and .fuse_cams(list)
  - a CAM of pytorch-grad-cam, an Attribution of captum, or a CAM of MONAI
  - CallableSource(model, fn), for a function fn(model, images, class_idx) that returns maps (N, *spatial)
  - PrecomputedMaps(model), for maps that you have and pass as update(images, cams=maps)"""


def as_source(candidate: Any) -> CAMSource:
    """The `CAMSource` of a CAM object.

    Objects are known by their classes and their behavior; no library is imported to find out.

    Args:
        candidate: a `CAMSource`, an extractor of torchcam or any object that behaves like one, or an object
            of pytorch-grad-cam, captum or MONAI. For settings of its call, wrap it yourself:
            ``PytorchGradCAMSource(cam, aug_smooth=True)``.

    Returns:
        The source, ready for a metric.

    Raises:
        TypeError: if it is none of these; the message lists what is, and what fits best.
    """
    if isinstance(candidate, CAMSource):
        model = getattr(candidate, "model", None)
        if not isinstance(model, nn.Module):
            raise TypeError(f"the model of the source is a {type(model).__name__}, not a torch.nn.Module")
        return candidate
    for fits, adapter in _ADAPTERS:
        if fits(candidate):
            return adapter(candidate)
    raise TypeError(
        f"cam_extractor is {_described(candidate)}, which gives no maps: {_nearest(candidate)}. In full,"
        f" {_ACCEPTED}"
    )


def _described(candidate: Any) -> str:
    if isinstance(candidate, type):
        return f"the class {candidate.__name__}"
    return f"a {type(candidate).__name__}"


def _nearest(candidate: Any) -> str:
    """The way from a mistaken object to the one that was probably meant."""
    if isinstance(candidate, type):
        return f'make one first, as in {candidate.__name__}(model, "layer4")'
    if isinstance(candidate, Tensor):
        return "maps that you have go into update(images, cams=maps), and PrecomputedMaps(model) goes here"
    if isinstance(candidate, str):
        return f"a name needs a model, as in GradCAM(model, {candidate!r})"
    if isinstance(candidate, dict | list | tuple):
        return "a metric takes one source; make one metric each"
    # Attributors of zennit hold a model too, and are neither modules nor functions.
    if isinstance(getattr(candidate, "model", None), nn.Module) and not isinstance(candidate, nn.Module):
        return "wrap what it does with its model in a function, and pass CallableSource(model, fn)"
    if isinstance(candidate, nn.Module):
        return 'say how it is explained and where, as in GradCAM(model, "layer4")'
    if callable(candidate):
        return "for a function of your own, pass CallableSource(model, fn)"
    return 'the usual choice is GradCAM(model, "layer4")'
