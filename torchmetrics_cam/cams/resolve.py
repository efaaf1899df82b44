"""as_source: from whatever object a user has to a CAMSource."""

from typing import Any

from torch import nn

from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.cams.torchcam import TorchcamSource, is_torchcam_like


def as_source(candidate: Any) -> CAMSource:
    """The `CAMSource` of a CAM object.

    Objects are known by their behaviour; no library is imported to find out.

    Args:
        candidate: a `CAMSource`, or an extractor of torchcam or any object that behaves like one: ``.model``,
            ``__call__(class_idx, scores)`` returning a list of maps, and ``.fuse_cams(list)``.

    Returns:
        The source, ready for a metric.

    Raises:
        TypeError: if the object is neither.
    """
    if isinstance(candidate, CAMSource):
        model = getattr(candidate, "model", None)
        if not isinstance(model, nn.Module):
            raise TypeError(f"the model of the source is a {type(model).__name__}, not a torch.nn.Module")
        return candidate
    if is_torchcam_like(candidate):
        return TorchcamSource(candidate)
    raise TypeError(
        f"cam_extractor is a {type(candidate).__name__}, which gives no maps that are understood; pass a CAM"
        " of torchmetrics_cam.cams such as GradCAM(model, 'layer4'), a torchcam extractor,"
        " CallableSource(model, fn) for a function of your own, or PrecomputedMaps(model) for maps you have"
    )
