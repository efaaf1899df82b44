"""Sanity checks: a map that stays when the network forgets explains something else than the network."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.regression import spearman_corrcoef

from torchmetrics_cam.cams.resolve import as_source
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.model.guard import unwrapped
from torchmetrics_cam.model.scores import ClassIndex
from torchmetrics_cam.pipeline.batch import explain
from torchmetrics_cam.protocol import EvaluationProtocol, as_protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class RandomizationResult:
    """How alike the maps stay while the layers of a network are randomized from the top down.

    Args:
        layers: what was randomized in each step, beside all before it; ``"none"`` first.
        rank_correlation: Spearman's of each image's map with its first, ``(steps, N)``; NaN for a constant
            map.
        ssim: the structural similarity of the two, ``(steps, N)``; NaN where a map is not of two dimensions.
    """

    layers: tuple[str, ...]
    rank_correlation: Tensor
    ssim: Tensor

    def plot(self, ax: Any = None) -> tuple["Figure", Any]:
        """Both means over the layers.

        Args:
            ax: a matplotlib axis to draw on; None makes a figure.

        Returns:
            Figure and axis.

        Raises:
            ModuleNotFoundError: if matplotlib is missing.
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
    """Randomize the layers of a copy of the network one by one, the last first, and compare the maps.

    A method whose maps stay alike does not look at what the network has learnt.

    Args:
        model: the network; it is not changed.
        source: one of our own sources of this model, or a function from a model to any source, as
            ``lambda model: torchcam.methods.LayerCAM(model, "layer4")``.
        images: ``(N, C, *spatial)``.
        class_idx: the class to explain; None for the network's own top class, which stays the same.
        protocol: as for `AverageDrop`; how maps are rectified.
        seed: of the new weights.

    Returns:
        The similarity after each step; the first is of the network as it is.

    Raises:
        TypeError: if the source is none.
        ValueError: if no layer can be randomized, which needs a ``reset_parameters``.

    Warns:
        UserWarning: of weights that no layer randomizes, as a position embedding.

    Source: Adebayo et al., Sanity Checks for Saliency Maps, https://arxiv.org/abs/1810.03292

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import parameter_randomization
        >>> from torchmetrics_cam.cams import GradCAM
        >>> head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *head)
        >>> parameter_randomization(model, GradCAM(model, "1"), torch.rand(2, 3, 16, 16)).layers
        ('none', '4', '0')

    """
    model = unwrapped(model)
    copied, random_source = _copied(model, source)
    resets = {name: reset for name, module in copied.named_modules() if (reset := _reset_of(module))}
    if not resets:
        raise ValueError(
            f"no layer of {type(model).__name__} has reset_parameters, so none can be randomized"
        )
    kept = [
        f"{name}.{weight}".lstrip(".")
        for name, module in copied.named_modules()
        if name not in resets
        for weight, _ in module.named_parameters(recurse=False)
    ]
    if kept:
        warnings.warn(
            f"nothing randomizes {', '.join(kept)}: their modules have no reset_parameters, and keep what"
            " they have learnt",
            stacklevel=2,
        )
    protocol = as_protocol(protocol).replace(normalize="after_resize", normalize_eps=0.0)
    first = explain(random_source, images, class_idx, protocol=protocol)
    maps = [first.normalized_maps]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for reset in reversed(resets.values()):
            reset()
            again = explain(random_source, images, first.class_idx, protocol=protocol)
            maps.append(again.normalized_maps)
    random_source.remove_hooks()
    return RandomizationResult(
        layers=("none", *reversed(resets)),
        rank_correlation=torch.stack([_rank_correlation(one, maps[0]) for one in maps]),
        ssim=torch.stack([_ssim(one, maps[0]) for one in maps]),
    )


def _copied(model: nn.Module, source: Any) -> tuple[nn.Module, CAMSource]:
    """A copy of the network, and the source of it."""
    if callable(source) and not isinstance(source, CAMSource):
        copied = copy.deepcopy(model)
        return copied, as_source(source(copied))
    source = as_source(source)
    if source.model is not model:
        raise ValueError(f"{source!r} explains another model than the one that is given")
    pair = copy.deepcopy((model, source))
    return pair


def _reset_of(module: nn.Module) -> Callable[[], Any] | None:
    """What gives a module new weights of its own; attention has it under another name."""
    named = (getattr(module, name, None) for name in ("reset_parameters", "_reset_parameters"))
    return next((reset for reset in named if callable(reset)), None)


def _rank_correlation(maps: Tensor, others: Tensor) -> Tensor:
    values = [
        spearman_corrcoef(one.flatten(), other.flatten())
        if one.std() and other.std()
        else one.new_tensor(torch.nan)
        for one, other in zip(maps, others, strict=True)
    ]
    return torch.stack(values)


def _ssim(maps: Tensor, others: Tensor) -> Tensor:
    if maps.ndim != 3:
        return maps.new_full((len(maps),), torch.nan)
    pair = maps.unsqueeze(1), others.unsqueeze(1)
    return torch.as_tensor(structural_similarity_index_measure(*pair, data_range=1.0, reduction="none")).view(
        -1
    )
