"""What is timed: bare forward passes, ours, and the libraries that measure the same, on a network and a batch."""

import copy
from collections.abc import Callable
from functools import cached_property, partial
from itertools import cycle, islice
from typing import Any

import pytorch_grad_cam
import torch
import torchcam.methods
import torchcam.metrics
import torchvision
from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
from results import THREADS
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from torchmetrics_cam import AverageDrop, CAMComparison
from torchmetrics_cam.cams import (
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    PytorchGradCAMSource,
    XGradCAM,
    vit_grid,
)
from torchmetrics_cam.cli.demo import load_model

SIDE = 224
LAYERS = {
    "resnet18": "layer4",
    "resnet50": "layer4",
    "mobilenet_v3_large": "features",
    "convnext_tiny": "features",
    "vit_b_16": "encoder.layers.encoder_layer_11.ln_1",
    "efficientnet_lite0": "_blocks.15",
}
OWN = (GradCAM, GradCAMPlusPlus, XGradCAM, LayerCAM, HiResCAM)
TORCHCAMS = ("GradCAM", "GradCAMpp", "XGradCAM", "LayerCAM")
BASELINE, OURS, COMPILED = "bare forwards", "ours", "ours, channels last and compiled scorer"
FOLDED = "the same, batch norms folded"
TORCHCAM, GRAD_CAM, ON_GRAD_CAM = "torchcam", "pytorch-grad-cam", "ours on pytorch-grad-cam's object"


class Setting:
    """A network with a batch of images, and what is compared on it."""

    def __init__(self, network: str, batch: int, methods: int) -> None:
        torch.manual_seed(0)
        self.layer = LAYERS[network]
        if network == "efficientnet_lite0":
            self.model = load_model()
        else:
            self.model = torchvision.models.get_model(network, weights=None).eval()
        self.reshape = vit_grid if network.startswith("vit") else None
        self.images = torch.randn(batch, 3, SIDE, SIDE)
        self.methods = methods
        # Of one case: each runs in a process of its own.
        self.fast: tuple[nn.Module, Callable[[Tensor], Any]] | None = None

    @cached_property
    def classes(self) -> list[int]:
        """The top class of each image, for the libraries that are told it; known before they are timed."""
        with torch.inference_mode():
            return self.model(self.images).argmax(1).tolist()

    def cases(self) -> dict[str, Callable[[Tensor], Any]]:
        """What is timed, by name, as functions of the images."""
        cases: dict[str, Callable[[Tensor], Any]] = {BASELINE: self.bare, OURS: self.ours}
        if self.reshape is None:
            cases[TORCHCAM] = self.torchcam
        if self.methods == 1:
            cases |= {GRAD_CAM: self.grad_cam, ON_GRAD_CAM: self.on_grad_cam}
        if self.methods in (1, 4):
            cases[COMPILED] = self.compiled
        # torch.fx folds into plain convolutions, and those of EfficientNet-Lite are a class of their own.
        kinds = {type(module) for module in self.model.modules()}
        if self.methods == 4 and {nn.Conv2d, nn.BatchNorm2d} <= kinds:
            cases[FOLDED] = self.folded
        return cases

    def bare(self, images: Tensor) -> None:
        """The floor: the model once for the images and once for each method's, in inference mode."""
        with torch.inference_mode():
            for _ in range(1 + self.methods):
                self.model(images)

    def ours(
        self,
        images: Tensor,
        model: nn.Module | None = None,
        scorer: Callable[[Tensor], Any] | None = None,
    ) -> None:
        """Ours, in the default protocol: for one method the single metric, for more a comparison."""
        model = model or self.model
        made = [
            method(model, self.layer, reshape_transform=self.reshape)
            for method in islice(cycle(OWN), self.methods)
        ]
        # What the scorer says is compared with the model once an evaluation, and not once a batch.
        settings: dict[str, Any] = {"scorer": scorer, "validate_args": scorer is None}
        if self.methods == 1:
            AverageDrop(made[0], **settings).update(images)
        else:
            sources = {f"{place} {source!r}": source for place, source in enumerate(made)}
            CAMComparison(sources, controls=False, **settings).update(images)

    def compiled(self, images: Tensor) -> None:
        """The same with a network in channels-last layout, and the masked images through it compiled and frozen."""
        self._with_scorer(images, copy.deepcopy)

    def folded(self, images: Tensor) -> None:
        """The same once more, with batch norms folded into the convolutions before them in the clean pass too."""
        self._with_scorer(images, folded)

    def _with_scorer(self, images: Tensor, copied: Callable[[nn.Module], nn.Module]) -> None:
        if self.fast is None:
            torch._inductor.config.freezing = True
            model = copied(self.model).to(memory_format=torch.channels_last)
            frozen = torch.compile(model)
            self.fast = model, lambda masked: frozen(masked.contiguous(memory_format=torch.channels_last))
        self.ours(images.contiguous(memory_format=torch.channels_last), *self.fast)

    def torchcam(self, images: Tensor) -> None:
        """torchcam's metric as its documentation shows it, one method after the other."""
        for name in islice(cycle(TORCHCAMS), self.methods):
            with getattr(torchcam.methods, name)(self.model, self.layer) as extractor:
                softmax = partial(torch.softmax, dim=-1)
                torchcam.metrics.ClassificationMetric(extractor, softmax).update(images)

    def grad_cam(self, images: Tensor) -> None:
        """pytorch-grad-cam's own metric as its tutorial shows it, the classes known."""
        classes = self.classes[: len(images)]
        with self._object() as cam:
            maps = cam(images, targets=[ClassifierOutputTarget(index) for index in classes])
            softmax = [ClassifierOutputSoftmaxTarget(index) for index in classes]
            DropInConfidence()(images, maps, softmax, self.model)

    def on_grad_cam(self, images: Tensor) -> None:
        """Our metric on its object."""
        with self._object() as cam:
            metric = AverageDrop(PytorchGradCAMSource(cam), protocol="grad_cam")
            metric.update(images, class_idx=self.classes[: len(images)])

    def _object(self) -> Any:
        layers = [self.model.get_submodule(self.layer)]
        return pytorch_grad_cam.GradCAM(self.model, layers, reshape_transform=self.reshape)


def folded(model: nn.Module) -> nn.Module:
    """A copy whose convolutions do what the batch norms behind them did; its modules keep their names."""
    copied, fused = copy.deepcopy(model), dict(fuse(model).named_modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            copied.set_submodule(name, fused[name])
        elif isinstance(module, nn.BatchNorm2d) and name not in fused:
            copied.set_submodule(name, nn.Identity())
    return copied


def case_of(case: str, network: str, batch: int, methods: int) -> Callable[[], Any]:
    """A case on its images, for a process of its own."""
    torch.set_num_threads(THREADS)
    setting = Setting(network, batch, methods)
    return partial(setting.cases()[case], setting.images)
