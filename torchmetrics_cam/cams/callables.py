"""Sources for maps that the user computes: by a function, or in advance."""

from collections.abc import Callable

from torch import Tensor, nn

from torchmetrics_cam.cams.source import CAMSource, ForwardPass, Sharing, SourceMaps, check_maps
from torchmetrics_cam.model.guard import buffers_kept


class CallableSource(CAMSource):
    """Maps computed by a function of the user.

    The function is called after the forward pass on the clean images, with the model in evaluation mode and
    with autograd enabled. It may run the model, register hooks and call ``backward``: hooks, gradients and
    buffers of the model are restored afterwards. During the call the parameters do not require gradients,
    but the images do.

    Args:
        model: the explained network.
        fn: the function ``fn(model, images, class_idx) -> maps``. It receives a copy of the images
            ``(N, C, *spatial)`` that requires gradients and the target class of each image, a LongTensor
            ``(N,)``. It returns one map per image, ``(N, *spatial)``, at any resolution; negative values
            are allowed and are rectified as the protocol says.

    Raises:
        TypeError: if ``fn`` is not callable; in ``update``, if it does not return a tensor.
        ValueError: in ``update``, if the returned maps do not match the images, or if ``targets`` are given
            instead of classes.

    Example:
        The saliency of a linear network is the absolute value of its weights.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import CallableSource
        >>> def saliency(model, images, class_idx):
        ...     score = model(images).gather(1, class_idx[:, None]).sum()
        ...     return torch.autograd.grad(score, images)[0].abs().amax(1)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> with torch.no_grad():
        ...     _ = model[1].weight.copy_(torch.tensor([[1.0, -2.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
        >>> explain(CallableSource(model, saliency), torch.ones(1, 1, 2, 2), class_idx=0).maps
        tensor([[[1., 2.],
                 [3., 0.]]])

    """

    sharing: Sharing = "scores"
    supports_targets = False
    differentiates: bool = True

    def __init__(self, model: nn.Module, fn: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        if not callable(fn):
            raise TypeError(f"fn is {fn!r}; it must be a callable fn(model, images, class_idx) -> maps")
        self.model = model
        self.fn = fn

    def maps(self, forward: ForwardPass) -> SourceMaps:
        """Return the maps that the function computes."""
        assert forward.selector.class_idx is not None
        images = forward.images.detach().clone().requires_grad_()
        with buffers_kept(self.model):
            return SourceMaps([self.fn(self.model, images, forward.selector.class_idx)])

    def __repr__(self) -> str:
        name = getattr(self.fn, "__name__", type(self.fn).__name__)
        return f"{type(self).__name__}({type(self.model).__name__}, {name})"


class PrecomputedMaps(CAMSource):
    """Maps computed in advance and passed with each batch: ``metric.update(images, cams=maps)``.

    ``cams`` is a floating point tensor ``(N, *spatial)``: one map per image, at any resolution, with as many
    spatial dimensions as the images. Negative values are rectified as the protocol says.

    Args:
        model: the network whose scores are compared.

    Raises:
        ValueError: in ``update``, if ``cams`` is missing or does not match the images.
        TypeError: in ``update``, if ``cams`` is not a floating point tensor.

    Example:
        The image has two pixels, and the score of class 0 comes from the left one. A map that highlights the
        left pixel keeps the confidence (Average Drop 0). A map that highlights the right pixel lets it fall
        from softmax([2, 0])[0] = 0.88 to 0.5, a drop of 43 %.

        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import AverageDrop
        >>> from torchmetrics_cam.cams import PrecomputedMaps
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> images = torch.tensor([[[[4.0, 0.0]], [[0.0, 0.0]]]])
        >>> metric = AverageDrop(PrecomputedMaps(model))
        >>> metric(images, cams=torch.tensor([[[1.0, 0.0]]]))
        tensor(0.)
        >>> metric(images, cams=torch.tensor([[[0.0, 1.0]]]))
        tensor(0.4323)

    """

    sharing: Sharing = "pass"

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def check(self, images: Tensor, cams: Tensor | None) -> None:
        """Validate the precomputed maps before the model runs.

        Args:
            images: the images, ``(N, C, *spatial)``.
            cams: the precomputed maps, ``(N, *spatial)``.

        Raises:
            ValueError: if there are no maps, not one per image, or if their number of dimensions is wrong.
            TypeError: if the maps are not a floating point tensor.
        """
        if cams is None:
            raise ValueError(
                f"{self!r} needs the maps of each batch; pass them with update(images, cams=maps)"
            )
        if not isinstance(cams, Tensor) or not cams.is_floating_point():
            given = cams.dtype if isinstance(cams, Tensor) else type(cams).__name__
            raise TypeError(f"cams is {given}; it must be a floating point tensor (N, *spatial)")
        check_maps(cams, images)

    def maps(self, forward: ForwardPass) -> SourceMaps:
        """Return the maps that were passed to ``update``."""
        return SourceMaps([forward.cams[self]])
