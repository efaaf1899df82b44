"""The timed cases: bare forward passes, this package, torchcam and pytorch-grad-cam, on a network and a batch."""

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
from torchmetrics_cam.pipeline.pipeline import Scorer

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
WORD = "ours, scorer='compile'"
UNCHECKED = "ours, validate_args=False"
TORCHCAM, GRAD_CAM, ON_GRAD_CAM = "torchcam", "pytorch-grad-cam", "ours on pytorch-grad-cam's object"


class Setting:
    """A network, a batch of random images, and the cases that are timed on them.

    Args:
        network: a name in `LAYERS`.
        batch: the number of images.
        methods: K, the number of CAM methods.
        device: the device of the network and the images.
    """

    def __init__(self, network: str, batch: int, methods: int, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.layer = LAYERS[network]
        if network == "efficientnet_lite0":
            # Imported here, because the other networks need no extra of the package.
            from torchmetrics_cam.cli.demo import load_model

            self.model = load_model().to(device)
        else:
            self.model = torchvision.models.get_model(network, weights=None).eval().to(device)
        self.reshape = vit_grid if network.startswith("vit") else None
        self.images = torch.randn(batch, 3, SIDE, SIDE).to(device)
        self.methods = methods
        self.validate_args = True
        # The network and the compiled scorer of one case: each case has a process and a setting of its own.
        self.compiled_scorer: tuple[nn.Module, Callable[[Tensor], Any]] | None = None
        # Metrics are made once, as in an evaluation, and not for every batch.
        self.metric: AverageDrop | CAMComparison | None = None
        self.torchcam_metric: torchcam.metrics.ClassificationMetric | None = None

    @cached_property
    def classes(self) -> list[int]:
        """The top class of each image, for pytorch-grad-cam; computed before the timing starts."""
        with torch.inference_mode():
            return self.model(self.images).argmax(1).tolist()

    def cases(self) -> dict[str, Callable[[Tensor], Any]]:
        """Return the cases that the network supports, by name, as functions of the images."""
        cases: dict[str, Callable[[Tensor], Any]] = {BASELINE: self.bare, OURS: self.ours}
        if self.reshape is None:
            cases[TORCHCAM] = self.torchcam
        if self.methods == 1:
            cases |= {GRAD_CAM: self.grad_cam, ON_GRAD_CAM: self.on_grad_cam}
        if self.methods in (1, 4):
            cases[COMPILED] = self.compiled
        # torch.fx folds batch norms into nn.Conv2d only; EfficientNet-Lite has a subclass of it.
        if self.methods == 4:
            cases[WORD] = self.compiled_by_word
        types = {type(module) for module in self.model.modules()}
        if self.methods == 4 and {nn.Conv2d, nn.BatchNorm2d} <= types:
            cases[FOLDED] = self.folded
        return cases

    def bare(self, images: Tensor) -> None:
        """Run the reference: one forward pass for the images and one per method, in inference mode."""
        with torch.inference_mode():
            for _ in range(1 + self.methods):
                self.model(images)

    def ours(
        self,
        images: Tensor,
        model: nn.Module | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        """Run `AverageDrop` for one method, and `CAMComparison` for several, in the default protocol."""
        if self.metric is None:
            model = model or self.model
            sources = [
                method(model, self.layer, reshape_transform=self.reshape)
                for method in islice(cycle(OWN), self.methods)
            ]
            if self.methods == 1:
                self.metric = AverageDrop(sources[0], scorer=scorer, validate_args=self.validate_args)
            else:
                named = {f"{index} {source!r}": source for index, source in enumerate(sources)}
                self.metric = CAMComparison(
                    named, controls=False, scorer=scorer, validate_args=self.validate_args
                )
            self.metric.to(images.device)
        self.metric.update(images)

    def unchecked(self, images: Tensor) -> None:
        """Run `ours` without the checks that read values off the device."""
        self.validate_args = False
        self.ours(images)

    def compiled_by_word(self, images: Tensor) -> None:
        """Run `ours` on the network as it is, with ``scorer="compile"``."""
        self.ours(images, scorer="compile")

    def compiled(self, images: Tensor) -> None:
        """Run `ours` on a channels-last copy of the network, with its compiled and frozen version as scorer."""
        self._with_scorer(images, copy.deepcopy)

    def folded(self, images: Tensor) -> None:
        """Run `compiled` on a network whose batch norms are folded into the convolutions, also in the clean pass."""
        self._with_scorer(images, fold_batch_norms)

    def _with_scorer(self, images: Tensor, copy_model: Callable[[nn.Module], nn.Module]) -> None:
        if self.compiled_scorer is None:
            torch._inductor.config.freezing = True
            model = copy_model(self.model).to(memory_format=torch.channels_last)
            frozen = torch.compile(model)
            self.compiled_scorer = (
                model,
                lambda masked: frozen(masked.contiguous(memory_format=torch.channels_last)),
            )
        self.ours(images.contiguous(memory_format=torch.channels_last), *self.compiled_scorer)

    def torchcam(self, images: Tensor) -> None:
        """Run torchcam's metric as in its documentation, several methods one after the other."""
        softmax = partial(torch.softmax, dim=-1)
        if self.methods == 1:
            if self.torchcam_metric is None:
                extractor = torchcam.methods.GradCAM(self.model, self.layer)
                self.torchcam_metric = torchcam.metrics.ClassificationMetric(extractor, softmax)
            self.torchcam_metric.update(images)
            return
        for name in islice(cycle(TORCHCAMS), self.methods):
            with getattr(torchcam.methods, name)(self.model, self.layer) as extractor:
                torchcam.metrics.ClassificationMetric(extractor, softmax).update(images)

    def grad_cam(self, images: Tensor) -> None:
        """Run pytorch-grad-cam's metric as in its tutorial; the target classes are given."""
        classes = self.classes[: len(images)]
        with self._grad_cam_object() as cam:
            maps = cam(images, targets=[ClassifierOutputTarget(index) for index in classes])
            softmax = [ClassifierOutputSoftmaxTarget(index) for index in classes]
            DropInConfidence()(images, maps, softmax, self.model)

    def on_grad_cam(self, images: Tensor) -> None:
        """Run `AverageDrop` on the object of pytorch-grad-cam."""
        with self._grad_cam_object() as cam:
            metric = AverageDrop(PytorchGradCAMSource(cam), protocol="grad_cam")
            metric.update(images, class_idx=self.classes[: len(images)])

    def _grad_cam_object(self) -> Any:
        layers = [self.model.get_submodule(self.layer)]
        return pytorch_grad_cam.GradCAM(self.model, layers, reshape_transform=self.reshape)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Return a copy with batch norms folded into the convolutions before them; module names stay the same."""
    copied, fused = copy.deepcopy(model), dict(fuse(model).named_modules())
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            copied.set_submodule(name, fused[name])
        elif isinstance(module, nn.BatchNorm2d) and name not in fused:
            copied.set_submodule(name, nn.Identity())
    return copied


def case_of(case: str, network: str, batch: int, methods: int) -> Callable[[], Any]:
    """Return a case with its images, ready to run; called in the process of the case."""
    torch.set_num_threads(THREADS)
    setting = Setting(network, batch, methods)
    return partial(setting.cases()[case], setting.images)
