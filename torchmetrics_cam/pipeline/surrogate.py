"""Surrogate: the network that scores clean and perturbed images in place of the model."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.model.guard import ModelGuard, eager, unwrapped
from torchmetrics_cam.model.scores import ScoreFunction, check_scores, selected_scores
from torchmetrics_cam.model.weights import weights_checksum
from torchmetrics_cam.pipeline.explanation import Explanation


class Surrogate:
    """A network that scores clean and perturbed images in place of the model, such as one that knows masks.

    Maps and target classes are those of the model. The surrogate runs as the model does: in evaluation mode,
    without gradients, and with its state restored.

    Args:
        network: the network, with the same input and classes as the model.

    Raises:
        TypeError: if it is no module.
    """

    def __init__(self, network: nn.Module) -> None:
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"surrogate is {network!r}; it must be a torch.nn.Module with the input and the classes of"
                " the model, such as a copy of it that was fine-tuned on masked images"
            )
        self.network = unwrapped(network)
        self._guard: ModelGuard | None = None

    @property
    def name(self) -> str:
        """The class name of the network."""
        return type(self.network).__name__

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Guard the network inside the context."""
        try:
            with ModelGuard(self.network, role="surrogate") as self._guard:
                yield
        finally:
            self._guard = None

    def begin_pass(self) -> None:
        """Undo the changes that an earlier forward pass has made to the network, which must be guarded."""
        assert self._guard is not None
        self._guard.begin_pass()

    def cast(self, images: Tensor) -> Tensor:
        """Return images in the dtype of the network, which may be another than that of the model.

        Raises:
            ValueError: if the network is on another device.
        """
        assert self._guard is not None
        return images.to(self._guard.dtype_for(images))

    def scored(
        self,
        explanations: Sequence[Sequence[Explanation]],
        score_functions: Sequence[ScoreFunction],
        sources: Iterable[CAMSource],
    ) -> list[list[Explanation]]:
        """Return the explanations of a batch with the scores of the surrogate; its network runs once.

        Args:
            explanations: those by each source, under each protocol.
            score_functions: from the network's output to scores, one for each protocol.
            sources: the sources of the maps, whose hooks are disabled: they may be on layers of the network.

        Raises:
            TypeError: if the surrogate's scores are no tensor.
            ValueError: if it has another number of classes than the model, or is on another device.
        """
        self.begin_pass()
        with torch.inference_mode(False), torch.no_grad(), eager(), ExitStack() as stack:
            for source in sources:
                stack.enter_context(source.muted())
            # A clone, because the network may modify its input in place.
            output = self.network(self.cast(explanations[0][0].images.clone()))
            return [
                _with_scores(by_source, output, score_function.explaining(by_source[0].selector.targets))
                for by_source, score_function in zip(explanations, score_functions, strict=True)
            ]

    def __repr__(self) -> str:
        return f"{self.name} with the weights {weights_checksum(self.network)}"


def _with_scores(
    explanations: Sequence[Explanation], output: Any, score_function: ScoreFunction
) -> list[Explanation]:
    """Return the explanations of a batch by each source with the scores of another network's output."""
    selector, scores = explanations[0].selector, score_function(output).detached()
    outputs = None
    if selector.class_idx is not None:
        check_scores(scores.scores, None, len(selector.class_idx), read_values=False)
        if scores.scores.shape[1] != selector.num_classes:
            raise ValueError(
                f"the surrogate scores {scores.scores.shape[1]} classes and the model {selector.num_classes};"
                " pass a surrogate with the classes of the model, such as a copy of it that was fine-tuned on"
                " masked images"
            )
        if isinstance(scores.raw, Tensor) and scores.raw.shape == scores.scores.shape:
            outputs = scores.raw
    selected, twice = selected_scores(scores, selector, score_function)
    return [
        replace(
            one,
            scores=selected,
            valid=one.valid & selected.isfinite(),
            normalized_twice=twice,
            outputs=outputs,
        )
        for one in explanations
    ]
