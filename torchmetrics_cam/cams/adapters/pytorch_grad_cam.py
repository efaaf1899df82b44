"""Adapter for pytorch-grad-cam: every class of the library that explains a classifier."""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.source import CAMSource, ForwardPass, SourceMaps, library_classes
from torchmetrics_cam.model.graph import ActivationGraph
from torchmetrics_cam.model.guard import attributes_kept, hooks_muted, unwrapped
from torchmetrics_cam.model.scores import samples

_LIBRARY = "pytorch_grad_cam"
# FinerCAM's default: the classes with the second to fourth most similar score.
_DEFAULT_COMPARISON_CATEGORIES = (1, 2, 3)


class PytorchGradCAMSource(CAMSource):
    """Maps from an object of pytorch-grad-cam.

    Supported are all subclasses of its ``BaseCAM``, and ``FinerCAM``, ``RefineCAM``, ``SESS`` and
    ``GuidedBackpropReLUModel``. Objects that need one forward pass of the model use the evaluation's own
    forward pass on the clean images, with an autograd graph from the target layers on.

    The explained score is the one that the protocol's ``cam_of`` chooses. The library sets negative values to
    0, so that ``rectify="abs"`` has no effect, and normalizes its maps. Under the preset ``"grad_cam"`` the
    maps are used as the object returns them; every other protocol normalizes them again.

    Args:
        cam: the pytorch-grad-cam object; the network that it was created with is explained.
        call_arguments: further arguments of the object's call besides the images and targets, such as
            ``aug_smooth=True`` or ``eigen_smooth=True``, or ``alpha`` and ``comparison_categories`` of
            ``FinerCAM``.

    Raises:
        TypeError: if the object does not explain a class, or its call does not accept a given argument.
        ValueError: in ``update``, if the object's target layers are no longer part of the network or run
            several times in a forward pass, or if ``targets`` are given for a ``GuidedBackpropReLUModel``.
        RuntimeError: in ``update``, if a target layer was not executed.

    Example:
        The library's Grad-CAM weights each channel by its mean gradient. The target layer returns the image
        unchanged, two channels of 2 x 2 pixels, and the first row of the weights gives the mean gradients 0.1
        and 0.2: 0.1 times the first channel plus 0.2 times the second is [[0.5, 0.2], [0.4, 0.5]], which the
        library normalizes to [0, 1].

        >>> import torch
        >>> from pytorch_grad_cam import GradCAM
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import PytorchGradCAMSource
        >>> model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(8, 2, bias=False))
        >>> model[2].weight.data[0] = torch.tensor([0.8, 0.0, 0.0, -0.4, 0.2, 0.2, 0.2, 0.2])
        >>> images = torch.tensor([[[[1.0, 2.0], [4.0, 1.0]], [[2.0, 0.0], [0.0, 2.0]]]])
        >>> explain(PytorchGradCAMSource(GradCAM(model, [model[0]])), images, class_idx=0).maps[0]
        tensor([[1.0000, 0.0000],
                [0.6667, 1.0000]])

    """

    differentiates: bool = True

    def __init__(self, cam: Any, **call_arguments: Any) -> None:
        self.cam = self.hooked = cam
        self.base_cams = _base_cams(cam)
        self.model = (self.base_cams[0] if self.base_cams else cam).model
        self.call_arguments = call_arguments
        _check_call_arguments(cam, call_arguments)
        self.supports_targets = bool(self.base_cams)
        # FullGrad, ShapleyCAM and guided backpropagation need the gradient of the image; the others need
        # gradients of their target layers at most.
        self._needs_image_gradient = not self.base_cams or any(
            base.compute_input_gradient for base in self.base_cams
        )
        runs_model_itself = call_arguments.get("aug_smooth") or "SESS" in library_classes(cam, _LIBRARY)
        self._uses_forward_pass = not (self._needs_image_gradient or runs_model_itself)
        if self._uses_forward_pass and any(base.uses_gradients for base in self.base_cams):
            self.graph = "head"

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The target layers, if the object uses the evaluation's forward pass."""
        return self._target_layers if self._uses_forward_pass else ()

    @property
    def counted_layers(self) -> Sequence[nn.Module]:
        """The target layers, if the object runs the model itself."""
        return () if self._uses_forward_pass else self._target_layers

    @property
    def _target_layers(self) -> list[nn.Module]:
        return [unwrapped(layer) for base in self.base_cams for layer in base.target_layers]

    def check(self, images: Tensor, cams: Tensor | None) -> None:
        """Validate the batch and the target layers before the model runs.

        Raises:
            ValueError: if precomputed maps were passed, or a target layer is no longer part of the model.
        """
        super().check(images, cams)
        released = not self._uses_forward_pass and any(not hooks.handles for hooks in self._hooks)
        if released or not set(self._target_layers) <= set(self.model.modules()):
            raise ValueError(
                f"{self!r} has lost its target layers: its `with` block has ended, or the layers were"
                " replaced, as by SyncBatchNorm.convert_sync_batchnorm; create a new object for the current"
                " network"
            )

    def maps(self, forward: ForwardPass) -> SourceMaps:
        """Return the maps that the object returns for the images.

        Raises:
            RuntimeError: if a target layer was not executed in the forward pass.
        """
        images = forward.images.clone().requires_grad_(self._needs_image_gradient)
        for hooks in self._hooks:
            if hooks.reshape_transform is not None:
                # Autograd runs the hooks of gradients on a GPU in threads of its own, without the context.
                hooks.reshape_transform = partial(copy_context().run, hooks.reshape_transform)
        with ExitStack() as stack:
            if self._uses_forward_pass:
                for base in self.base_cams:
                    base.activations_and_grads.model = self._replay(base, forward)
            elif not self._needs_image_gradient:
                stack.enter_context(ActivationGraph(self.model, self._target_layers))
            # Methods that run the model again, such as Score-CAM and Ablation-CAM, get the explained output.
            output_hook = self.model.register_forward_hook(
                lambda _module, _args, output: _indexable(forward.explained_output_of(output))
            )
            stack.callback(output_hook.remove)
            # Score-CAM multiplies the images by float32 maps, whatever dtype the model has.
            cast_hook = self.model.register_forward_pre_hook(
                lambda _module, args: tuple(tensor.to(forward.images.dtype) for tensor in args)
            )
            stack.callback(cast_hook.remove)
            maps = self._call(images, forward)
        as_returned = forward.protocol.normalize == "before_and_after_resize"
        return SourceMaps([torch.from_numpy(maps)], rectified=True, normalized=as_returned)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Prepare the object for `maps`, and restore its state afterwards."""
        ablation_layers = [base.ablation_layer for base in self.base_cams if hasattr(base, "ablation_layer")]
        with ExitStack() as stack:
            stack.enter_context(attributes_kept(self.cam, *self.base_cams, *self._hooks, *ablation_layers))
            stack.enter_context(_without_progress_bars(self.base_cams))
            if self._uses_forward_pass:
                stack.enter_context(self.muted())
            for cam in (self.cam, *self.base_cams):
                cam.model, cam.device = self.model, next(self.model.parameters()).device
            for hooks in self._hooks:
                hooks.model, hooks.activations, hooks.gradients = self.model, [], []
            # ShapleyCAM computes second derivatives, for which the parameters must require gradients.
            if any(not base.detach for base in self.base_cams):
                for parameter in self.model.parameters():
                    parameter.requires_grad_(parameter.is_floating_point())
            yield

    @contextmanager
    def muted(self) -> Iterator[None]:
        """Disable the object's hooks: each would copy its activation to the CPU and keep it."""
        with hooks_muted(handle for hooks in self._hooks for handle in hooks.handles):
            yield

    def remove_hooks(self) -> None:
        """Remove the object's hooks from the model."""
        for hooks in self._hooks:
            hooks.release()

    @property
    def _hooks(self) -> list[Any]:
        return [base.activations_and_grads for base in self.base_cams]

    def _call(self, images: Tensor, forward: ForwardPass) -> Any:
        """Return the object's maps as a NumPy array ``(N, *spatial)``."""
        if self.base_cams:
            return self.cam(images, self._targets(forward), **self.call_arguments)
        # GuidedBackpropReLUModel takes one image, and returns (H, W, C).
        assert forward.selector.class_idx is not None
        classes = forward.selector.class_idx.tolist()
        maps = [
            self.cam(image, index) for image, index in zip(images.detach().unsqueeze(1), classes, strict=True)
        ]
        return torch.stack([torch.from_numpy(one).sum(-1) for one in maps]).numpy()

    def _targets(self, forward: ForwardPass) -> list[Callable[[Any], Tensor]]:
        """Return one target function per image, from its output to the explained score."""
        if forward.selector.targets is not None:
            return list(forward.selector.targets)
        assert forward.selector.class_idx is not None
        classes = forward.selector.class_idx.tolist()
        if "FinerCAM" not in library_classes(self.cam, _LIBRARY):
            return [_ClassScore(index) for index in classes]
        scores = forward.explained_output.detach()
        differences = (scores - forward.selector.select(scores).unsqueeze(1)).abs()
        by_similarity = differences.argsort(dim=1, stable=True).tolist()
        categories = self.call_arguments.get("comparison_categories") or _DEFAULT_COMPARISON_CATEGORIES
        alpha = self.call_arguments.get("alpha", 1)
        finer_target = sys.modules[f"{_LIBRARY}.utils.model_targets"].FinerWeightedTarget
        return [
            finer_target(index, [order[rank] for rank in categories if rank < len(order)], alpha)
            for index, order in zip(classes, by_similarity, strict=True)
        ]

    def _replay(self, base: Any, forward: ForwardPass) -> Callable[[Tensor], Any]:
        """Return a function that replaces the model: it returns the recorded output of the forward pass.

        It also gives the object the activations and gradients that its own hooks would have recorded.
        """
        hooks = base.activations_and_grads
        layers = [unwrapped(layer) for layer in base.target_layers]

        def recorded(tensor: Tensor) -> Tensor:
            # NumPy does not support bfloat16.
            tensor = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
            return (tensor if hooks.reshape_transform is None else hooks.reshape_transform(tensor)).cpu()

        def record_gradient(gradient: Tensor) -> None:
            hooks.gradients = [recorded(gradient), *hooks.gradients]

        def replay(_images: Tensor) -> Any:
            # The library expects the activations in execution order.
            activations = [tensor for layer, tensor in forward.activations.items() if layer in layers]
            if len(activations) < len(set(layers)):
                raise RuntimeError(
                    f"a target layer of {self!r} was not executed in the forward pass; choose a layer that"
                    " the network uses"
                )
            for activation in activations:
                hooks.activations.append(recorded(activation))
                if activation.requires_grad:
                    activation.register_hook(record_gradient)  # type: ignore[no-untyped-call]
            return _indexable(forward.explained_output)

        return replay

    def __repr__(self) -> str:
        names = {module: name for name, module in self.model.named_modules()}
        layers = [names.get(layer, type(layer).__name__) for layer in self._target_layers]
        arguments = [f"{name}={value!r}" for name, value in self.call_arguments.items()]
        shown = [
            type(self.model).__name__,
            *(layers if len(layers) < 5 else [f"{len(layers)} layers"]),
            *arguments,
        ]
        return f"{type(self.cam).__name__}({', '.join(shown)})"


class _ClassScore:
    """The score of one class: of one output ``(K,)``, or of several ``(M, K)`` as SESS needs it."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, output: Tensor) -> Tensor:
        return output[..., self.index]


def _base_cams(cam: Any) -> list[Any]:
    """Return the ``BaseCAM`` objects of a CAM object: itself, or those that it combines."""
    names = library_classes(cam, _LIBRARY)
    if "RefineCAM" in names:
        return list(cam.base_cam_per_layer)
    if names & {"FinerCAM", "SESS"}:
        return [cam.base_cam]
    if "BaseCAM" in names:
        return [cam]
    if "GuidedBackpropReLUModel" in names:
        return []
    raise TypeError(
        f"{type(cam).__name__} of pytorch-grad-cam does not explain a class; pass one of its CAMs, such as"
        " GradCAM(model, [layer])"
    )


def _check_call_arguments(cam: Any, call_arguments: dict[str, Any]) -> None:
    """Validate the arguments of the object's call."""
    parameters = inspect.signature(type(cam).__call__).parameters
    if "kwargs" in parameters:
        parameters = inspect.signature(type(cam).forward).parameters
    known = sorted(
        set(parameters) - {"self", "input_tensor", "targets", "target_idx", "input_img", "target_category"}
    )
    for name in call_arguments:
        if name not in known:
            raise TypeError(
                f"{type(cam).__name__} has no argument {name!r}; besides images and targets it accepts"
                f" {known}"
            )


def _indexable(output: Any) -> Any:
    """Return an output in which index i is the output of image i, as the library's targets expect it."""
    return output if isinstance(output, Tensor) else samples(output)


@contextmanager
def _without_progress_bars(base_cams: Sequence[Any]) -> Iterator[None]:
    """Disable the progress bars that Score-CAM and Ablation-CAM print for each image."""
    names = {cls.__module__ for base in base_cams for cls in type(base).__mro__}
    modules: list[Any] = [
        sys.modules[name]
        for name in names
        if name.startswith(_LIBRARY) and hasattr(sys.modules[name], "tqdm")
    ]
    before = [(module, module.tqdm) for module in modules]
    try:
        for module, _ in before:
            module.tqdm = SimpleNamespace(tqdm=iter)
        yield
    finally:
        for module, tqdm in before:
            module.tqdm = tqdm
