"""Objects of pytorch-grad-cam: every class of that library that explains a classifier."""

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.source import CAMSource, ForwardPass, SourceMaps
from torchmetrics_cam.model.graph import activation_graph
from torchmetrics_cam.model.guard import attributes_kept, hooks_muted, unwrapped
from torchmetrics_cam.model.scores import samples

_LIBRARY = "pytorch_grad_cam"
# What FinerCAM compares a class with if nothing else is asked for: the classes of the next higher scores.
_COMPARED = (1, 2, 3)


class PytorchGradCAMSource(CAMSource):
    """Maps from an object of pytorch-grad-cam.

    Every subclass of its ``BaseCAM`` is understood, and FinerCAM, RefineCAM, SESS and
    GuidedBackpropReLUModel. Where the object needs one forward pass of the model, the clean pass of the
    evaluation serves, and only the head of the network has a graph.

    The class or the target is explained in what the protocol takes the CAM of. With the preset
    ``"grad_cam"`` the maps are those that the object returns, as they are; every other protocol normalizes
    them anew. The library sets negative values to 0, so ``rectify="abs"`` finds none.

    Args:
        cam: the object; its model is the network that is evaluated.
        settings: what its call takes beside images and targets: ``aug_smooth=True``, ``eigen_smooth=True``,
            for FinerCAM ``alpha`` and ``comparison_categories``.

    Raises:
        TypeError: if the object explains no class, or its call does not take a setting.

    Example:
        >>> from torch import nn
        >>> from pytorch_grad_cam import EigenCAM
        >>> from torchmetrics_cam.cams import PytorchGradCAMSource
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> PytorchGradCAMSource(EigenCAM(model, [model[0]]))
        EigenCAM(Sequential, 0)

    """

    freezes: bool = True

    def __init__(self, cam: Any, **settings: Any) -> None:
        self.cam = self.hooked = cam
        self.parts = _parts(cam)
        self.model = (self.parts[0] if self.parts else cam).model
        self.settings = settings
        _check_settings(cam, settings)
        self.supports_targets = bool(self.parts)
        # FullGrad and ShapleyCAM differentiate down to the image; the others as far as their layers.
        self._to_the_image = any(part.compute_input_gradient for part in self.parts) or not self.parts
        self._in_one_pass = not (self._to_the_image or settings.get("aug_smooth") or "SESS" in _kinds(cam))
        if self._in_one_pass and any(part.uses_gradients for part in self.parts):
            self.graph = "head"

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The target layers, if the clean pass of the evaluation serves the object."""
        return self._target_layers if self._in_one_pass else ()

    def check(self, images: Tensor, cams: Tensor | None) -> None:
        """Refuse a batch before the model runs.

        Raises:
            ValueError: if maps were handed in, or target layers are not part of the model any more.
        """
        super().check(images, cams)
        released = not self._in_one_pass and any(not hooks.handles for hooks in self._hooks)
        if released or not set(self._target_layers) <= set(self.model.modules()):
            raise ValueError(
                f"{self!r} has lost its target layers: its `with` block was left, or they were replaced, as"
                " SyncBatchNorm.convert_sync_batchnorm does; make a new one"
            )

    def maps(self, clean: ForwardPass) -> SourceMaps:
        """What the object returns for the images.

        Raises:
            RuntimeError: if a target layer did not run in the forward pass.
            ValueError: if one ran several times.
        """
        if self._in_one_pass and max(self.cam.runs.values(), default=0) > 1:
            raise ValueError(
                f"a target layer of {self!r} runs several times in a forward pass, and of its maps the"
                " library takes the first; choose a layer that runs once, such as the block that it is in"
            )
        images = clean.images.clone().requires_grad_(self._to_the_image)
        with ExitStack() as stack:
            if self._in_one_pass:
                for part in self.parts:
                    part.activations_and_grads.model = self._replay_of(part, clean)
            elif not self._to_the_image:
                stack.enter_context(activation_graph(self.model, self._target_layers))
            # What runs the model again, as Score-CAM and Ablation-CAM do, gets what is explained from it.
            answer = self.model.register_forward_hook(
                lambda _module, _args, output: _by_sample(clean.explained_of(output))
            )
            stack.callback(answer.remove)
            # Score-CAM masks images with maps in float32, whatever the model computes in.
            cast = self.model.register_forward_pre_hook(
                lambda _module, given: tuple(one.to(clean.images.dtype) for one in given)
            )
            stack.callback(cast.remove)
            made = self._called(images, clean)
        as_returned = clean.protocol.normalize == "before_and_after_resize"
        return SourceMaps([torch.from_numpy(made)], rectified=True, normalized=as_returned)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """What the object notes is forgotten afterwards, and its ``backward`` reaches no parameter."""
        ablated = [part.ablation_layer for part in self.parts if hasattr(part, "ablation_layer")]
        with ExitStack() as stack:
            stack.enter_context(attributes_kept(self.cam, *self.parts, *self._hooks, *ablated))
            stack.enter_context(_without_progress_bars(self.parts))
            if self._in_one_pass:
                stack.enter_context(self.muted())
                self.cam.runs = Counter[nn.Module]()
                for layer in set(self._target_layers):
                    counted = layer.register_forward_hook(lambda ran, *_: self.cam.runs.update([ran]))
                    stack.callback(counted.remove)
            for running in (self.cam, *self.parts):
                running.model, running.device = self.model, next(self.model.parameters()).device
            for hooks in self._hooks:
                hooks.model, hooks.activations, hooks.gradients = self.model, [], []
            # ShapleyCAM differentiates twice, also where the second derivative depends on weights alone.
            twice = any(not part.detach for part in self.parts)
            for weight in self.model.parameters():
                weight.requires_grad_(twice and weight.is_floating_point())
            yield

    @contextmanager
    def muted(self) -> Iterator[None]:
        """The object's hooks are silent: each would copy its activation to the host and keep it."""
        with hooks_muted(handle for hooks in self._hooks for handle in hooks.handles):
            yield

    def remove_hooks(self) -> None:
        """Take the object's hooks off the model."""
        for hooks in self._hooks:
            hooks.release()

    @property
    def _hooks(self) -> list[Any]:
        return [part.activations_and_grads for part in self.parts]

    @property
    def _target_layers(self) -> list[nn.Module]:
        return [unwrapped(layer) for part in self.parts for layer in part.target_layers]

    def _called(self, images: Tensor, clean: ForwardPass) -> Any:
        if self.parts:
            return self.cam(images, self._targets(clean), **self.settings)
        assert clean.selector.class_idx is not None
        classes = clean.selector.class_idx.tolist()
        made = [
            self.cam(image, index) for image, index in zip(images.detach().unsqueeze(1), classes, strict=True)
        ]
        return torch.stack([torch.from_numpy(one).sum(-1) for one in made]).numpy()

    def _targets(self, clean: ForwardPass) -> list[Callable[[Any], Tensor]]:
        if clean.selector.targets is not None:
            return list(clean.selector.targets)
        assert clean.selector.class_idx is not None
        classes = clean.selector.class_idx.tolist()
        if "FinerCAM" not in _kinds(self.cam):
            return [_ClassScore(index) for index in classes]
        scores = clean.explained.detach()
        nearest = (
            (scores - clean.selector.select(scores).unsqueeze(1)).abs().argsort(dim=1, stable=True).tolist()
        )
        places = self.settings.get("comparison_categories") or _COMPARED
        alpha = self.settings.get("alpha", 1)
        finer = sys.modules[f"{_LIBRARY}.utils.model_targets"].FinerWeightedTarget
        return [
            finer(index, [order[place] for place in places if place < len(order)], alpha)
            for index, order in zip(classes, nearest, strict=True)
        ]

    def _replay_of(self, part: Any, clean: ForwardPass) -> Callable[[Tensor], Any]:
        """In place of the model: the clean pass, as the object's hooks would have seen it."""
        hooks = part.activations_and_grads
        layers = [unwrapped(layer) for layer in part.target_layers]

        def noted(tensor: Tensor) -> Tensor:
            # NumPy knows no bfloat16.
            tensor = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
            return (tensor if hooks.reshape_transform is None else hooks.reshape_transform(tensor)).cpu()

        def note_gradient(gradient: Tensor) -> None:
            hooks.gradients = [noted(gradient), *hooks.gradients]

        def replay(_images: Tensor) -> Any:
            # In the order in which they ran, which is the order that the library goes by.
            activations = [tensor for layer, tensor in clean.activations.items() if layer in layers]
            if len(activations) < len(set(layers)):
                raise RuntimeError(f"a target layer of {self!r} did not run in the forward pass")
            for activation in activations:
                hooks.activations.append(noted(activation))
                if activation.requires_grad:
                    activation.register_hook(note_gradient)  # type: ignore[no-untyped-call]
            return _by_sample(clean.explained)

        return replay

    def __repr__(self) -> str:
        names = {module: name for name, module in self.model.named_modules()}
        layers = [names.get(layer, type(layer).__name__) for layer in self._target_layers]
        settings = [f"{name}={value!r}" for name, value in self.settings.items()]
        shown = [
            type(self.model).__name__,
            *(layers if len(layers) < 5 else [f"{len(layers)} layers"]),
            *settings,
        ]
        return f"{type(self.cam).__name__}({', '.join(shown)})"


class _ClassScore:
    """The score of a class, of one sample or, as SESS asks, of several."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, output: Tensor) -> Tensor:
        return output[..., self.index]


def is_pytorch_grad_cam(candidate: Any) -> bool:
    """Whether an object is one of pytorch-grad-cam, or of a class that is derived from one."""
    return not isinstance(candidate, type) and bool(_kinds(candidate))


def _kinds(candidate: Any) -> set[str]:
    return {one.__name__ for one in type(candidate).__mro__ if _is_of_library(one)}


def _is_of_library(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == _LIBRARY


def _parts(cam: Any) -> list[Any]:
    """The objects that look at layers: itself, or those that it is made of."""
    kinds = _kinds(cam)
    if "RefineCAM" in kinds:
        return list(cam.base_cam_per_layer)
    if kinds & {"FinerCAM", "SESS"}:
        return [cam.base_cam]
    if "BaseCAM" in kinds:
        return [cam]
    if "GuidedBackpropReLUModel" in kinds:
        return []
    raise TypeError(
        f"{type(cam).__name__} of pytorch-grad-cam explains no class of a classifier; pass one of its CAMs,"
        " such as GradCAM(model, [layer])"
    )


def _check_settings(cam: Any, settings: dict[str, Any]) -> None:
    parameters = inspect.signature(type(cam).__call__).parameters
    if "kwargs" in parameters:
        parameters = inspect.signature(type(cam).forward).parameters
    known = sorted(
        set(parameters) - {"self", "input_tensor", "targets", "target_idx", "input_img", "target_category"}
    )
    for name in settings:
        if name not in known:
            raise TypeError(
                f"{type(cam).__name__} takes no {name!r}; beside images and targets it takes {known}"
            )


def _by_sample(explained: Any) -> Any:
    return explained if isinstance(explained, Tensor) else samples(explained)


@contextmanager
def _without_progress_bars(parts: Sequence[Any]) -> Iterator[None]:
    """Score-CAM and Ablation-CAM draw one an image."""
    names = {one.__module__ for part in parts for one in type(part).__mro__ if _is_of_library(one)}
    modules: list[Any] = [sys.modules[name] for name in names if hasattr(sys.modules[name], "tqdm")]
    before = [(module, module.tqdm) for module in modules]
    try:
        for module, _ in before:
            module.tqdm = SimpleNamespace(tqdm=iter)
        yield
    finally:
        for module, tqdm in before:
            module.tqdm = tqdm
