"""A batch of images with its maps, masks and scores: what every measure is computed from."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.resolve import as_source
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.functional.curves import perturbed_counts
from torchmetrics_cam.functional.statistics import sum_dtype
from torchmetrics_cam.model.scores import ClassIndex, ScoreFunction, Target
from torchmetrics_cam.pipeline.explanation import Explanation
from torchmetrics_cam.pipeline.perturb import (
    apply_mask,
    normalized_maps,
    to_mask,
)
from torchmetrics_cam.pipeline.perturbed_scores import PerturbedScores
from torchmetrics_cam.pipeline.pipeline import Pipeline, Scorer
from torchmetrics_cam.pipeline.sources import maps_by_source, named_sources
from torchmetrics_cam.protocol import EvaluationProtocol, as_protocol


class Batch:
    """N images explained by one source, or by K sources: their maps, masks, masked images and scores.

    The metrics compute their values from it, and `explain` returns one. Every attribute is computed once, on
    first use. For a mapping of sources, attributes that depend on the source have a leading dimension K in
    the order of ``methods``, and iterating over the batch gives the batch of each source.

    With a surrogate all scores are those of the surrogate; maps and target classes are those of the model.

    Attributes:
        methods: the names of the sources; empty for a single source.
        protocol: the `EvaluationProtocol`.
        objects: the annotated object of each image, bool, ``(N, *spatial)``, or None.
        under_further_protocols: the same images under each further protocol of a comparison.
    """

    def __init__(
        self,
        perturbed: PerturbedScores,
        *,
        source: int | None,
        methods: Sequence[str] = (),
        objects: Tensor | None = None,
    ) -> None:
        self._perturbed = perturbed
        self._source = source
        self.methods = tuple(methods)
        self.objects = objects
        self.under_further_protocols: tuple[Batch, ...] = ()

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        images: Tensor,
        class_idx: ClassIndex | None = None,
        *,
        targets: Target | list[Target] | None = None,
        cams: Mapping[Any, Tensor] | None = None,
        objects: Tensor | None = None,
        methods: Sequence[str] = (),
    ) -> "Batch":
        """Explain images by the sources of a pipeline; with ``methods`` the batch has a dimension K."""
        by_protocol = pipeline.explain(images, class_idx, targets=targets, cams=cams)
        marked = None if objects is None else objects.as_subclass(Tensor).to(images.device) > 0
        first, *further = [
            cls(
                PerturbedScores(pipeline, explanations, score_function),
                source=None if methods else 0,
                methods=methods,
                objects=marked,
            )
            for explanations, score_function in zip(by_protocol, pipeline.score_functions, strict=True)
        ]
        first.under_further_protocols = tuple(further)
        return first

    def __iter__(self) -> Iterator["Batch"]:
        """Iterate over the batches of each source."""
        if self._source is not None:
            yield self
            return
        for source in range(len(self.methods)):
            yield Batch(self._perturbed, source=source, objects=self.objects)

    @property
    def protocol(self) -> EvaluationProtocol:
        """The settings that the values depend on."""
        return self._perturbed.protocol

    @property
    def images(self) -> Tensor:
        """The clean images, in the dtype of the model, ``(N, C, *spatial)``."""
        return self._first.images

    @property
    def class_idx(self) -> Tensor | None:
        """The target class of each image, ``(N,)``; None where targets are explained."""
        return self._first.selector.class_idx

    @property
    def num_classes(self) -> int | None:
        """The number of classes of the model; None where targets are explained."""
        return self._first.selector.num_classes

    @cached_property
    def top_class(self) -> Tensor | None:
        """The class that the model predicts for each image, ``(N,)``; None where targets are explained.

        It is the one with the largest raw output or, with a ``logits_fn``, with the highest score. Of a
        single logit, a softmax protocol makes two classes.
        """
        ranked = self._first.ranked
        return None if ranked is None else ranked.as_subclass(Tensor).argmax(1)

    @cached_property
    def maps(self) -> Tensor:
        """The maps at the size in which the source returned them, rectified, ``(N, *any spatial)``.

        Raises:
            ValueError: if several sources gave maps of different sizes.
        """
        sizes = [tuple(explanation.maps.shape[1:]) for explanation in self._perturbed.explanations]
        if self._source is None and len(set(sizes)) > 1:
            given = ", ".join(f"{method} {size}" for method, size in zip(self.methods, sizes, strict=True))
            raise ValueError(
                f"the maps differ in size: {given}; use masks, which have the size of the images, or iterate"
                " over the batch"
            )
        return self._stacked(lambda explanation: explanation.maps)

    @cached_property
    def normalized_maps(self) -> Tensor:
        """The maps in [0, 1] at the images' size, ``(N, *spatial)``."""
        return self._stacked(lambda explanation: normalized_maps(explanation, self.protocol))

    @cached_property
    def masks(self) -> Tensor:
        """The masks in [0, 1], ``(N, *spatial)``: 1 keeps a pixel, 0 hides it."""
        return self._stacked(lambda explanation: to_mask(explanation, self.protocol))

    @cached_property
    def masked_images(self) -> Tensor:
        """The images with masked pixels replaced by the baseline, ``(N, C, *spatial)``.

        All masked pixels are, also where the protocol replaces a random part of them.
        """
        if self._source is None:
            return torch.stack([batch.masked_images for batch in self])
        with self._perturbed.guarded():
            return apply_mask(self.images, self.masks, self.protocol)

    @property
    def scores(self) -> Tensor:
        """The scores of the clean images, ``(N,)``."""
        return self._select(self._perturbed.clean)

    @property
    def masked_scores(self) -> Tensor:
        """The scores of the masked images, ``(N,)``; of a random removal the mean over its samples."""
        return self._select(self._perturbed.masked)

    @property
    def complement_scores(self) -> Tensor:
        """The scores of the images with the highlighted part hidden, ``(N,)``."""
        return self._select(self._perturbed.complement)

    @property
    def deletion_scores(self) -> Tensor:
        """The scores as the most relevant pixels are deleted, at each of ``fractions``, ``(P, N)``."""
        return self._select(self._perturbed.deletion)

    @property
    def insertion_scores(self) -> Tensor:
        """The scores as the most relevant pixels are inserted, at each of ``fractions``, ``(P, N)``."""
        return self._select(self._perturbed.insertion)

    @property
    def insertion_scores_of_deletion_baseline(self) -> Tensor:
        """The scores as the most relevant pixels are inserted into the deletion baseline, ``(P, N)``."""
        return self._select(self._perturbed.insertion_into_deletion_baseline)

    @property
    def fractions(self) -> Tensor:
        """The fraction of the pixels that is deleted or inserted at each point of the curves, ``(P,)``."""
        pixels = self.images[0, 0].numel()
        counts = perturbed_counts(pixels, self.protocol.curve_steps)
        # Created on the device: a copy from the host would synchronize them.
        device = self.scores.device
        points = torch.arange(len(counts), dtype=sum_dtype(device), device=device)
        return (points * counts[1]).clamp(max=pixels) / pixels

    @property
    def road_scores(self) -> Tensor:
        """The scores with each of the protocol's ``road_fractions`` of the pixels imputed, ``(F, 2, N)``.

        Along the second dimension first the most relevant pixels are imputed, then the least relevant.
        """
        return self._select(self._perturbed.road)

    @property
    def coherency(self) -> Tensor:
        """The similarity of the maps of the clean and of the masked images in [0, 1], ``(N,)``."""
        return self._select(self._perturbed.coherency)

    @property
    def cell_drops(self) -> Tensor:
        """How much the logit drops when each cell of the protocol's ``deletion_grid`` is hidden, ``(S, N)``.

        The cells are in row-major order. The same for all sources, without a dimension K.
        """
        return self._perturbed.cell_drops

    @property
    def subset_drops(self) -> Tensor:
        """How much the score drops when each of S random subsets of cells is hidden, ``(S, N)``.

        The same for all sources, without a dimension K.
        """
        return self._perturbed.subset_drops

    @property
    def subset_sums(self) -> Tensor:
        """The sum of the map over each subset, in units of its largest absolute value, ``(S, N)``."""
        return self._select(self._perturbed.subset_sums)

    @property
    def map_changes(self) -> Tensor:
        """The relative change of the map of each noisy copy of the images, ``(R, N)``."""
        return self._select(self._perturbed.map_changes)

    @property
    def other_class_maps(self) -> Tensor:
        """The maps of another class in [0, 1], ``(N, *spatial)``; NaN where there is no other class."""
        maps = self._perturbed.other_class_maps
        return maps if self._source is None else maps[self._source]

    @property
    def perturbed_scores(self) -> Tensor:
        """The scores of perturbed images that have been computed, ``(A, N)``."""
        return self._select(self._perturbed.computed)

    @property
    def has_masked_scores(self) -> bool:
        """Whether ``masked_scores`` have been computed."""
        return "masked" in vars(self._perturbed)

    @property
    def valid(self) -> Tensor:
        """Whether the pixels, the map and the score of the clean image are finite, bool, ``(N,)``."""
        return self._stacked(lambda explanation: explanation.valid)

    @property
    def counted(self) -> Tensor:
        """Whether the image is valid, and all ``perturbed_scores`` are finite, bool, ``(N,)``."""
        return self.valid & self.perturbed_scores.isfinite().all(0)

    @property
    def degenerate(self) -> Tensor:
        """Whether the map is constant, bool, ``(N,)``."""
        return self._stacked(lambda explanation: explanation.degenerate)

    @property
    def outside(self) -> Tensor:
        """Whether the score or any of the ``perturbed_scores`` is outside of [0, 1], bool, ``(N,)``."""
        scores = torch.cat([self.scores.unsqueeze(0), self.perturbed_scores])
        return ((scores < 0) | (scores > 1)).any(0)

    @property
    def normalized_twice(self) -> Tensor:
        """Whether the output looks like probabilities before the softmax of a protocol, ``(N,)``."""
        twice = self._first.normalized_twice
        for other in self.under_further_protocols:
            twice = twice | other.normalized_twice
        return twice

    @property
    def _first(self) -> Explanation:
        return self._perturbed.explanations[0]

    def _stacked(self, of: Callable[[Explanation], Tensor]) -> Tensor:
        """Return a tensor of the explanation, or of the K explanations with a leading dimension."""
        if self._source is not None:
            return of(self._perturbed.explanations[self._source])
        return torch.stack([of(explanation) for explanation in self._perturbed.explanations])

    def _select(self, scores: Tensor) -> Tensor:
        """Return the scores of this batch's source, or of all sources, from scores ``(..., K, N)``."""
        return scores if self._source is None else scores[..., self._source, :]


def explain(
    cam_extractor: Any,
    input_tensor: Tensor,
    class_idx: ClassIndex | None = None,
    *,
    logits_fn: Callable[[Any], Any] | None = None,
    protocol: EvaluationProtocol | str | None = None,
    targets: Target | list[Target] | None = None,
    cams: Tensor | Mapping[str, Tensor] | None = None,
    scorer: Scorer | None = None,
    surrogate: nn.Module | None = None,
    batch_size: int | None = None,
) -> Batch:
    """Explain a batch of images, and return its maps, masks, masked images and scores.

    The metrics compute their values from the same object. The state of the model is restored.

    Args:
        cam_extractor: the source of the maps, as for `AverageDrop`; or a mapping from names to several
            sources of one model, which share the forward pass on the clean images.
        input_tensor: images ``(N, C, *spatial)`` with one to three spatial dimensions, as the model takes
            them.
        class_idx: the target class: an int for all images, a list or LongTensor ``(N,)`` with one for each,
            or None for the model's top class of each image.
        logits_fn: from the model's raw output to scores ``(N, K)``; None takes the protocol's.
        protocol: an `EvaluationProtocol` or the name of a preset; None for ``"paper"``.
        targets: instead of a class, one callable for all images or one for each, from a sample's output to a
            scalar.
        cams: maps computed beforehand ``(N, *any spatial)``, if a source is `PrecomputedMaps`; for several
            of them, a mapping from the names of the sources.
        scorer: from images to the model's raw output, run on masked images in place of the model, or
            ``"compile"`` for a compiled copy of the model, which further calls use again.
        surrogate: a network that scores clean and perturbed images in place of the model, such as a copy
            that was fine-tuned on masked images (`RandomMasking`); maps and target classes are the model's.
            It runs once more, on the clean images.
        batch_size: the largest number of masked images in one forward pass; None for that of the batch.

    Returns:
        A `Batch`. Scores of masked images are computed on first use, with the weights that the model then
        has.

    Raises:
        TypeError: if an argument is of a wrong type.
        ValueError: if an argument does not fit the model or the others.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torchmetrics_cam import explain
        >>> from torchmetrics_cam.cams import CallableSource
        >>> model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())  # scores the mean of each channel
        >>> source = CallableSource(model, lambda model, images, class_idx: images.mean(1))
        >>> image = torch.tensor([[[[0.8, 0.4], [0.0, 0.0]]]])
        >>> batch = explain(source, image, logits_fn=lambda scores: scores)
        >>> batch.masks  # the image itself, normalized
        tensor([[[1.0000, 0.5000],
                 [0.0000, 0.0000]]])
        >>> batch.scores, batch.masked_scores  # (0.8 + 0.4) / 4, and (0.8 + 0.5 * 0.4) / 4
        (tensor([0.3000]), tensor([0.2500]))

    """
    maps: dict[CAMSource, Any]
    if isinstance(cam_extractor, Mapping):
        sources = named_sources(cam_extractor)
        methods, maps = list(sources), maps_by_source(sources, cams)
    else:
        source = as_source(cam_extractor)
        sources, methods, maps = {"": source}, [], {} if cams is None else {source: cams}
    pipeline = Pipeline(
        list(sources.values()),
        ScoreFunction(logits_fn, as_protocol(protocol)),
        scorer=scorer,
        surrogate=surrogate,
        batch_size=batch_size,
    )
    return Batch.of(
        pipeline,
        input_tensor,
        class_idx,
        targets=targets,
        cams=maps,
        methods=methods,
    )
