"""Maps from a function of the user's own, and maps computed beforehand."""

from collections.abc import Callable

from torch import Tensor, nn

from torchmetrics_cam.cams.source import CAMSource, ForwardPass, Sharing, SourceMaps
from torchmetrics_cam.model.guard import buffers_kept


class CallableSource(CAMSource):
    """Maps from any function.

    The function runs after the clean forward pass, in evaluation mode and with gradients on. It may run the
    model, register hooks and call ``backward``: nothing of it is left on the model afterwards. Meanwhile the
    parameters of the model require no gradient; the images do.

    Args:
        model: the network that is explained.
        fn: ``fn(model, images, class_idx) -> maps``; images ``(N, C, *spatial)`` are a copy that requires a
            gradient, class_idx a LongTensor ``(N,)``, maps ``(N, *any spatial)``.

    Raises:
        TypeError: if ``fn`` is not callable.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.cams import CallableSource
        >>> def input_gradient(model, images, class_idx):
        ...     scores = model(images).gather(1, class_idx[:, None]).sum()
        ...     return torch.autograd.grad(scores, images)[0].abs().amax(1)
        >>> CallableSource(torch.nn.Flatten(), input_gradient)
        CallableSource(Flatten, input_gradient)

    """

    sharing: Sharing = "scores"
    supports_targets = False
    freezes: bool = True

    def __init__(self, model: nn.Module, fn: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        if not callable(fn):
            raise TypeError(f"fn is {fn!r}; it must be a callable fn(model, images, class_idx) -> maps")
        self.model = model
        self.fn = fn

    def maps(self, clean: ForwardPass) -> SourceMaps:
        """What the function returns."""
        assert clean.selector.class_idx is not None
        images = clean.images.detach().clone().requires_grad_()
        # No gradient reaches a parameter, so none of the user's hooks on gradients runs.
        self.model.requires_grad_(False)
        with buffers_kept(self.model):
            return SourceMaps([self.fn(self.model, images, clean.selector.class_idx)])

    def __repr__(self) -> str:
        name = getattr(self.fn, "__name__", type(self.fn).__name__)
        return f"{type(self).__name__}({type(self.model).__name__}, {name})"


class PrecomputedMaps(CAMSource):
    """Maps that come with the batch: ``metric.update(images, cams=maps)``, shape ``(N, *any spatial)``.

    Args:
        model: the network that is evaluated.
    """

    sharing: Sharing = "pass"

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def check(self, images: Tensor, cams: Tensor | None) -> None:
        """Refuse a batch without one map an image.

        Raises:
            ValueError: if there is no map, not one an image, or of another rank.
            TypeError: if the maps are no floating point tensor.
        """
        if cams is None:
            raise ValueError(f"{self!r} has no maps of its own; pass them with update(images, cams=maps)")
        if not isinstance(cams, Tensor) or not cams.is_floating_point():
            given = cams.dtype if isinstance(cams, Tensor) else type(cams).__name__
            raise TypeError(f"cams is {given}; it must be a floating point tensor (N, *spatial)")
        check_maps(cams, images)

    def maps(self, clean: ForwardPass) -> SourceMaps:
        """What was handed in."""
        return SourceMaps([clean.cams[self]])


def check_maps(maps: Tensor, images: Tensor) -> None:
    """Refuse maps that are not one an image, with the image's number of spatial dimensions.

    Raises:
        TypeError: if they are no tensor.
        ValueError: if their number or rank is wrong.
    """
    if not isinstance(maps, Tensor):
        raise TypeError(f"the maps are a {type(maps).__name__}; return a tensor (N, *spatial)")
    if maps.ndim != images.ndim - 1:
        raise ValueError(
            f"cam has shape {tuple(maps.shape)} but input_tensor has {images.ndim - 2} spatial dimensions;"
            " return (N, *spatial) without a channel dimension, or pass reshape_transform for tokens"
        )
    if len(maps) != len(images):
        raise ValueError(
            f"cam has {len(maps)} maps but input_tensor holds {len(images)} images; return one map per image"
        )
    if not maps.numel():
        raise ValueError(f"cam has shape {tuple(maps.shape)}; a map needs at least one position")
