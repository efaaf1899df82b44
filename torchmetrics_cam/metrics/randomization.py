"""Parameter randomization check: whether maps depend on what the network has learned."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure

from torchmetrics_cam.cams.resolve import as_source
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.functional.complexity import histogram_entropy
from torchmetrics_cam.functional.correlation import rank_correlation
from torchmetrics_cam.model.guard import unwrapped
from torchmetrics_cam.model.scores import ClassIndex, ScoreFunction
from torchmetrics_cam.pipeline.perturb import normalized_maps
from torchmetrics_cam.pipeline.pipeline import Pipeline
from torchmetrics_cam.protocol import EvaluationProtocol, as_protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SSIM_WINDOW = 11  # pixels along each axis


@dataclass(frozen=True)
class RandomizationResult:
    """The maps after each step of a parameter randomization: their similarity to the original, and entropy.

    Args:
        layers: the layer randomized in each step, in addition to those of the earlier steps. The first entry
            is ``"none"``: the network before randomization.
        rank_correlation: Spearman's rank correlation of each image's map with its original map, in [-1, 1],
            ``(steps, N)``; NaN where one of the two maps is constant.
        ssim: their structural similarity index, at most 1, ``(steps, N)``; NaN if the images do not have two
            spatial dimensions of at least 6 pixels, more than half of its window of 11 pixels.
        entropy: the entropy of the histogram of each map, with 100 bins, in nats, ``(steps, N)``; 0 for a
            constant map.
    """

    layers: tuple[str, ...]
    rank_correlation: Tensor
    ssim: Tensor
    entropy: Tensor

    @property
    def entropy_rise(self) -> Tensor:
        r"""The relative rise of the entropy from the given to the fully randomized network, ``(N,)``.

        .. math:: \frac{H(M_\mathrm{randomized}) - H(M)}{H(M)}

        This is the score of the Efficient Model Parameter Randomization Test (eMPRT). It compares no pixels:
        the maps of a method that shows what the network has learned become more complex, so higher is better.
        NaN where the original map is constant, and its entropy 0.
        """
        original, randomized = self.entropy[0], self.entropy[-1]
        return (randomized / original - 1).where(original > 0, torch.nan)

    def plot(self, ax: Any = None) -> tuple["Figure", Any]:
        """Draw the mean similarities over the images against the randomized layers.

        Args:
            ax: the matplotlib axis to draw on; None creates a figure.

        Returns:
            Figure and axis.

        Raises:
            ModuleNotFoundError: if matplotlib is not installed.
        """
        from torchmetrics_cam.plots import randomization_figure

        curves = {"rank correlation": self.rank_correlation.nanmean(1), "SSIM": self.ssim.nanmean(1)}
        return randomization_figure(self.layers, curves, ax)


def parameter_randomization(
    model: nn.Module,
    source: Any | Callable[[nn.Module], Any],
    images: Tensor,
    *,
    class_idx: ClassIndex | None = None,
    protocol: EvaluationProtocol | str | None = None,
    seed: int = 0,
) -> RandomizationResult:
    """Randomize a copy of the network layer by layer, and compare the maps with the original ones.

    This is the cascading parameter randomization test. Layers are randomized one after the other, from the
    output to the input (in reverse order of ``model.named_modules()``), and stay randomized. If the maps stay
    similar to the original ones, the method does not show what the network has learned.

    This checks a method, and does not rank methods: noise that is new in each map is not similar to the
    original either, and a network that is randomized from the output on keeps the scale of many of its
    activations, so that the maps of a faithful method change only to a certain extent (Binder et al., CVPR
    2023, https://arxiv.org/abs/2211.12486). The rise of the entropy depends on no measure of similarity.

    Args:
        model: the network. It is not changed.
        source: a source of this package for this network, or a function from a network to a source, such as
            ``lambda model: torchcam.methods.LayerCAM(model, "layer4")``.
        images: the model's input, ``(N, C, *spatial)``.
        class_idx: the target class of each image, or one for all; None for the class with the highest score
            of the original network. It is the same in all steps.
        protocol: an `EvaluationProtocol` or the name of a preset; None for ``"paper"``. Its fields
            ``scores``, ``cam_of``, ``rectify`` and ``class_selection`` are used; maps are always min-max
            normalized at the size of the images.
        seed: the seed of the random weights. The state of the global random generator is restored.

    Returns:
        The similarities and entropies after each step.

    Raises:
        TypeError: if ``source`` cannot be converted to a source of maps.
        ValueError: if ``source`` explains another network, or if no layer of the network has a method
            ``reset_parameters``.

    Warns:
        UserWarning: if some weights cannot be randomized, such as a position embedding.

    Source: Adebayo et al., Sanity Checks for Saliency Maps, https://arxiv.org/abs/1810.03292, and for the
    entropy Hedström et al., A Fresh Look at Sanity Checks for Saliency Maps, https://arxiv.org/abs/2405.02383

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import parameter_randomization
        >>> from torchmetrics_cam.cams import EdgeMap, GradCAM
        >>> _ = torch.manual_seed(4)
        >>> head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *head)
        >>> images = torch.rand(2, 3, 16, 16)
        >>> edges = parameter_randomization(model, EdgeMap(model), images)
        >>> edges.layers
        ('none', '4', '0')
        >>> edges.rank_correlation.mean(1)  # edges do not depend on the network
        tensor([1., 1., 1.])
        >>> grad_cam = parameter_randomization(model, GradCAM(model, "1"), images)
        >>> bool(grad_cam.rank_correlation[-1].nanmean() < 0.5)  # Grad-CAM does
        True

    """
    model = unwrapped(model)
    copied_model, copied_source = _copy_model_and_source(model, source)
    reset_functions = {
        name: reset_function
        for name, module in copied_model.named_modules()
        if (reset_function := _reset_function_of(module))
    }
    if not reset_functions:
        raise ValueError(
            f"no layer of {type(model).__name__} has a method reset_parameters; pass a network with a"
            " layer that can be randomized"
        )
    not_randomized = [
        f"{name}.{parameter}".lstrip(".")
        for name, module in copied_model.named_modules()
        if name not in reset_functions
        for parameter, _ in module.named_parameters(recurse=False)
    ]
    if not_randomized:
        warnings.warn(
            f"cannot randomize {', '.join(not_randomized)}: their modules have no method reset_parameters, so"
            " these parameters keep their trained values",
            stacklevel=2,
        )
    pipeline = Pipeline([copied_source], ScoreFunction(None, as_protocol(protocol)))
    ((original,),) = pipeline.explain(images, class_idx)
    maps = [normalized_maps(original, EvaluationProtocol())]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for reset_function in reversed(reset_functions.values()):
            reset_function()
            ((randomized,),) = pipeline.explain(images, original.selector.class_idx)
            maps.append(normalized_maps(randomized, EvaluationProtocol()))
    copied_source.remove_hooks()
    return RandomizationResult(
        layers=("none", *reversed(reset_functions)),
        rank_correlation=torch.stack(
            [rank_correlation(step_maps.flatten(1), maps[0].flatten(1)) for step_maps in maps]
        ),
        ssim=torch.stack([_structural_similarities(step_maps, maps[0]) for step_maps in maps]),
        entropy=torch.stack([histogram_entropy(step_maps, reduction="none") for step_maps in maps]),
    )


def _copy_model_and_source(model: nn.Module, source: Any) -> tuple[nn.Module, CAMSource]:
    """Return a copy of the network, and a source that explains the copy."""
    if callable(source) and not isinstance(source, CAMSource):
        copied_model = copy.deepcopy(model)
        return copied_model, as_source(source(copied_model))
    source = as_source(source)
    if source.model is not model:
        raise ValueError(
            f"{source!r} explains another model than the one that is given; pass a source of this model, or a"
            " function from a model to a source"
        )
    # Copied together, so that the copy of the source refers to the copy of the network.
    copied_model, copied_source = copy.deepcopy((model, source))
    return copied_model, copied_source


def _reset_function_of(module: nn.Module) -> Callable[[], Any] | None:
    """Return the method that draws new weights for a module, or None (attention has a private one)."""
    methods = (getattr(module, name, None) for name in ("reset_parameters", "_reset_parameters"))
    return next((method for method in methods if callable(method)), None)


def _structural_similarities(maps: Tensor, originals: Tensor) -> Tensor:
    """Return the structural similarity of each pair of maps, ``(N,)``; see `RandomizationResult`."""
    # The window is completed at the edges by reflection, which needs more pixels than half of it.
    if maps.ndim != 3 or min(maps.shape[1:]) <= _SSIM_WINDOW // 2:
        return maps.new_full((len(maps),), torch.nan)
    similarities = structural_similarity_index_measure(
        maps.unsqueeze(1), originals.unsqueeze(1), data_range=1.0, reduction="none"
    )
    return torch.as_tensor(similarities).view(-1)
