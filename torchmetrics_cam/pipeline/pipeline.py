"""The pipeline of a metric: from images by sources and model to maps and scores."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.model.compiled import Compilation, compiled_copy, existing_copy
from torchmetrics_cam.model.guard import ModelGuard, eager
from torchmetrics_cam.model.random_numbers import RandomStream
from torchmetrics_cam.model.scores import ClassIndex, ScoreFunction, ScoreSelector, in_float32
from torchmetrics_cam.pipeline.checks import Targets, check_batch, check_scoring
from torchmetrics_cam.pipeline.explain import explain_all
from torchmetrics_cam.pipeline.explanation import Explanation, Question
from torchmetrics_cam.pipeline.perturb import NoPerturbation, Perturbation, check_baselines
from torchmetrics_cam.pipeline.surrogate import Surrogate
from torchmetrics_cam.protocol import EvaluationProtocol

# The largest difference between the scores of scorer and model, relative to the model's score, or to the
# largest one of the batch if they are no probabilities. Compiled float32 models differ by less than 1e-5;
# half precision differs by more than this.
SCORER_TOLERANCE = 1e-3

ValidateArgs = bool | Literal["determinism"]
# The word makes a compiled copy of the model.
Scorer = Callable[[Tensor], Any] | Literal["compile"]


class Pipeline:
    """The sources of one model, and all other settings that determine the value of a metric.

    It is no Module, so that the network does not become part of the metric. Copies of a metric share the
    sources, unless the model is copied with them.

    Args:
        sources: the sources of the maps, all of one model.
        score_function: from the model's output to scores, under the first protocol.
        further_protocols: further protocols that the same images are evaluated under.
        explains_other_class: whether the sources explain another class of each image too.
        scorer: from images to the model's raw output, run on perturbed images in place of the model;
            ``"compile"`` for a compiled copy of the model. With a surrogate it is that of the surrogate.
        surrogate: a network that scores clean and perturbed images in place of the model.
        batch_size: the largest number of perturbed images in one forward pass; None for that of the batch.
        validate_args: False skips the checks that read values off the device; ``"determinism"`` also checks
            on the first batch that the network gives the same image the same score.

    Raises:
        TypeError: if ``logits_fn`` or ``scorer`` is not callable, or ``surrogate`` is no module.
        ValueError: if ``batch_size`` is not a positive integer, or ``validate_args`` has another value.

    Attributes:
        nondeterminism: a sentence on how the network's scores differ for the same image; None if they do not,
            or were not compared.
    """

    def __init__(
        self,
        sources: Sequence[CAMSource],
        score_function: ScoreFunction,
        *,
        further_protocols: Sequence[EvaluationProtocol] = (),
        explains_other_class: bool = False,
        scorer: Scorer | None = None,
        surrogate: nn.Module | None = None,
        batch_size: int | None = None,
        validate_args: ValidateArgs = True,
    ) -> None:
        check_scoring(score_function.logits_fn, scorer, batch_size)
        if validate_args not in (True, False, "determinism"):
            raise ValueError(f"validate_args is {validate_args!r}; it must be a bool or 'determinism'")
        self.sources = sources
        self.score_functions = [
            score_function,
            *(replace(score_function, protocol=protocol) for protocol in further_protocols),
        ]
        self.explains_other_class = explains_other_class
        self.scorer = scorer
        self.surrogate = None if surrogate is None else Surrogate(surrogate)
        self.batch_size = batch_size
        self.validate_args = validate_args
        self._guard: ModelGuard | None = None
        self._has_larger_chunks = False
        self.reset()

    @property
    def model(self) -> nn.Module:
        """The network that is explained."""
        return self.sources[0].model

    @property
    def scoring_network(self) -> nn.Module:
        """The network that scores the images: the surrogate if there is one, else the model."""
        return self.model if self.surrogate is None else self.surrogate.network

    @property
    def score_function(self) -> ScoreFunction:
        """The function from the model's output to scores, under the first protocol."""
        return self.score_functions[0]

    @property
    def protocol(self) -> EvaluationProtocol:
        """The first protocol."""
        return self.score_functions[0].protocol

    @property
    def normalizing_protocol(self) -> EvaluationProtocol:
        """The first protocol that applies a softmax; without one, the first."""
        normalizing = (one.protocol for one in self.score_functions if one.normalizes_classes)
        return next(normalizing, self.protocol)

    @property
    def protocols(self) -> list[EvaluationProtocol]:
        """All protocols, the first of which is `protocol`."""
        return [score_function.protocol for score_function in self.score_functions]

    def reset(self) -> None:
        """Start a new stream of random numbers, and repeat the checks of the first batch on the next one."""
        self.random_stream = RandomStream()
        self.nondeterminism: str | None = None
        self._is_determinism_checked = self.validate_args != "determinism"
        self._is_scorer_compared = self.scorer is None or not self.validate_args
        self._is_copy_current = False
        self._disagreement: str | None = None

    @property
    def compilation(self) -> Compilation | None:
        """How the scoring network was compiled for ``scorer="compile"``; None before its first use."""
        copied = existing_copy(self.scoring_network) if self.scorer == "compile" else None
        if copied is None:
            return None
        return Compilation(copied.seconds, self._disagreement or copied.failure)

    def key(self) -> tuple[Any, ...]:
        """Return the settings that determine a metric's values, equal for metrics that can share updates."""
        sources = [(type(source), vars(source)) for source in self.sources]
        surrogate = self.surrogate and self.surrogate.network
        return (sources, self.protocols, self.score_function.logits_fn, self.scorer, surrogate)

    def active(self, images: Any) -> AbstractContextManager[ModelGuard]:
        """Guard model, surrogate and global random numbers inside the context; it may be nested.

        Args:
            images: a tensor, whose device may have a random generator of its own.

        Returns:
            A context manager that gives the guard of the model.
        """
        return self._activated(images) if self._guard is None else nullcontext(self._guard)

    @contextmanager
    def _activated(self, images: Any) -> Iterator[ModelGuard]:
        device = images.device if isinstance(images, Tensor) else torch.device("cpu")
        try:
            with self.random_stream.drawn(device), ModelGuard(self.model) as self._guard:
                if self.surrogate is None:
                    yield self._guard
                else:
                    with self.surrogate.guarded():
                        yield self._guard
        finally:
            self._guard = None

    # Here and below: a step that is compiled may explain a batch, which cannot be traced.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def explain(
        self,
        images: Tensor,
        class_idx: ClassIndex | None = None,
        *,
        targets: Targets = None,
        cams: Mapping[CAMSource, Tensor] | None = None,
    ) -> list[list[Explanation]]:
        """Return the maps of a batch by each source, under each protocol, with the scores.

        Arguments and errors are those of `explain_all`.
        """
        protocols = [score_function.protocol for score_function in self.score_functions]
        check_batch(
            self.sources,
            images,
            class_idx,
            targets,
            cams or {},
            protocols,
            read_values=bool(self.validate_args),
        )
        for protocol in protocols:
            check_baselines(images, protocol)
        questions = [Question(score_function) for score_function in self.score_functions]
        if self.explains_other_class:
            questions += [replace(question, of_other_class=True) for question in questions]
        with self.active(images) as guard:
            answers = explain_all(
                self.sources,
                images,
                guard,
                questions=questions,
                class_idx=class_idx,
                targets=targets,
                cams=cams,
                read_values=bool(self.validate_args),
            )
            if self.surrogate is not None:
                explained = answers[: len(self.score_functions)]
                scored = self.surrogate.scored(explained, self.score_functions, self.sources)
                answers[: len(scored)] = scored
            if not self._is_scorer_compared:
                self._compare_scorer([answer[0] for answer in answers[: len(self.score_functions)]])
            if not self._is_determinism_checked:
                self._check_determinism(answers[0][0])
        if not self.explains_other_class:
            return answers
        explained, of_other_class = answers[: len(self.score_functions)], answers[len(self.score_functions) :]
        return [
            [replace(one, of_other_class=other) for one, other in zip(*pair, strict=True)]
            for pair in zip(explained, of_other_class, strict=True)
        ]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def explain_again(
        self,
        sources: Sequence[CAMSource],
        images: Tensor,
        selector: ScoreSelector,
        score_function: ScoreFunction,
    ) -> list[Explanation]:
        """Return the maps of other images by some sources, for the classes or targets of an earlier batch."""
        with self.active(images) as guard:
            (explanations,) = explain_all(
                sources,
                images,
                guard,
                questions=[Question(score_function)],
                class_idx=selector.class_idx,
                targets=None if selector.targets is None else list(selector.targets),
                other_sources=self.sources,
                read_values=False,
            )
        return explanations

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def score(
        self,
        perturbations: Sequence[Perturbation],
        clean_scores: Tensor,
        selector: ScoreSelector,
        *,
        score_function: ScoreFunction | None = None,
        of_logits: bool = False,
        scorer: Scorer | None = None,
        batch_size: int | None = None,
    ) -> Tensor:
        """Return the scores on perturbed images.

        Surrogate, model or scorer runs on chunks of perturbed images, which are made one after the other, so
        that only one chunk is in memory.

        Args:
            perturbations: Q perturbations of a batch of N images.
            clean_scores: the scores on the clean images, ``(N,)``. An image that a perturbation leaves
                unchanged keeps its score, which in a chunk of another size, or by a compiled scorer, would
                differ by a rounding error.
            selector: which class or target of each image is scored.
            score_function: from the model's output to scores; None for that of the first protocol.
            of_logits: whether the score is the raw output for the class; ``clean_scores`` then are too.
            scorer: what runs on the images; None for the pipeline's, or else the scoring network.
            batch_size: the largest number of images in a forward pass; None for the pipeline's.

        Returns:
            Scores ``(Q, N)``.
        """
        count, scores = clean_scores.shape[0], []
        batch_size = batch_size or self.batch_size or count
        score_function = (score_function or self.score_functions[0]).explaining(selector.targets)
        scorer, network = self.scorer if scorer is None else scorer, self.scoring_network
        if scorer is None or (scorer == "compile" and self._disagreement):
            scorer = network
        copied = compiled_copy(network) if scorer == "compile" else None
        run: Any = scorer if copied is None else partial(copied, network)
        stance = eager() if run is network else nullcontext()
        with stance, self.active(clean_scores) as guard, torch.no_grad(), ExitStack() as stack:
            guard.begin_pass()
            if self.surrogate is not None:
                self.surrogate.begin_pass()
            for source in self.sources:
                stack.enter_context(source.muted())
            if copied is not None:
                copied.follow(network, is_new=not self._is_copy_current)
                self._is_copy_current = True
            for parts in _chunks(len(perturbations), count, batch_size):
                is_padded = copied is not None and self._is_last_single(parts)
                if is_padded:
                    parts = [*parts, *parts]
                perturbed_parts = [perturbations[index].perturb(chunk) for index, chunk in parts]
                parts_of_images, unchanged = zip(*perturbed_parts, strict=True)
                images = parts_of_images[0] if len(parts_of_images) == 1 else torch.cat(parts_of_images)
                output = run(images if self.surrogate is None else self.surrogate.cast(images))
                selected = ScoreSelector.concatenated([selector[chunk] for _, chunk in parts])
                output_scores = score_function(output)
                perturbed = in_float32(
                    selected.select(output_scores.raw if of_logits else output_scores.scores)
                )
                clean = torch.cat([clean_scores[chunk] for _, chunk in parts])
                result = torch.where(torch.cat(unchanged), clean, perturbed)
                scores.append(result[:1] if is_padded else result)
        return torch.cat(scores).view(len(perturbations), count)

    def _is_last_single(self, parts: Sequence[tuple[int, slice]]) -> bool:
        """Return whether a chunk is a single image after larger chunks, for which the compiler needs two.

        It compiles one image apart from all other numbers, which is only worth it if all chunks are of one.
        """
        is_single = sum(chunk.stop - chunk.start for _, chunk in parts) == 1
        self._has_larger_chunks |= not is_single
        return is_single and self._has_larger_chunks

    def _compare_scorer(self, explanations: Sequence[Explanation]) -> None:
        """Compare the scorer with the scoring network, once, on the clean images of a batch.

        If those of a compiled copy differ, the model runs in its place.

        Args:
            explanations: that of the batch under each protocol: scores that are equal after a softmax may
                differ before it.

        Raises:
            ValueError: if the scores of a given scorer differ.
        """
        if not explanations[0].valid.any():
            return
        differences = [
            self._score_difference(explanation, score_function=score_function)
            for explanation, score_function in zip(explanations, self.score_functions, strict=True)
        ]
        # NaN is too large as well.
        difference = next((each for each in differences if not each <= SCORER_TOLERANCE), 0.0)
        if not difference <= SCORER_TOLERANCE and self.scorer == "compile":
            self._disagreement = (
                "The scores of the compiled network differ by up to"
                f" {difference:.2g} of the network's, and {SCORER_TOLERANCE} is allowed, so the network"
                " scores the perturbed images itself. In half precision, or if the scores depend on chance,"
                " this is expected."
            )
            warnings.warn(self._disagreement, UserWarning, stacklevel=2)
        elif not difference <= SCORER_TOLERANCE:
            scored = "model" if self.surrogate is None else "surrogate"
            raise ValueError(
                f"scorer and {scored} disagree: on the same images their scores differ by up to"
                f" {difference:.2g} of the {scored}'s, and {SCORER_TOLERANCE} is allowed; make the scorer"
                f" from the {scored} as it is now, in evaluation mode and in the same precision. It must"
                f" return the {scored}'s raw output, without a softmax. validate_args=False skips this"
                " comparison"
            )
        self._is_scorer_compared = True

    def _check_determinism(self, explanation: Explanation) -> None:
        """Score the clean images of a batch again, whole and in halves, and warn if the scores differ."""
        if not explanation.valid.any():
            return
        count, name = len(explanation.images), "network" if self.surrogate is None else "surrogate"
        repeated = self._score_difference(explanation, scorer=self.scoring_network, batch_size=count)
        halved = self._score_difference(
            explanation, scorer=self.scoring_network, batch_size=max(count // 2, 1)
        )
        if not repeated <= SCORER_TOLERANCE:
            self.nondeterminism = (
                f"The {name} is not deterministic: scored twice, the same images differ by up to"
                f" {repeated:.2g} of the score, so that the values depend on chance. Look for dropout that"
                " eval() does not turn off."
            )
        elif not halved <= SCORER_TOLERANCE:
            self.nondeterminism = (
                "The score of an image depends on the others in its batch: scored in half batches, the same"
                f" images differ by up to {halved:.2g} of the score, so that the values depend on the batch"
                " size. Look for batch normalization without running statistics."
            )
        if self.nondeterminism is not None:
            warnings.warn(self.nondeterminism, UserWarning, stacklevel=2)
        self._is_determinism_checked = True

    def _score_difference(self, explanation: Explanation, **run: Any) -> float:
        """Return the largest difference of a batch's scores when it is scored again, relative to them."""
        images = [NoPerturbation(explanation.images)]
        (scores,) = self.score(images, explanation.scores, explanation.selector, **run)
        scores, expected = scores[explanation.valid], explanation.scores[explanation.valid]
        scale = expected.abs()
        if ((expected < 0) | (expected > 1)).any():
            # A rounding error is large relative to a raw output near 0.
            scale = scale.amax()
        return float(((scores - expected).abs() / scale.clamp(min=1e-6)).max())

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pipeline":
        # Decided first: copies of the members add further networks to memo.
        is_model_copied, is_scoring_network_copied = id(self.model) in memo, id(self.scoring_network) in memo
        scoring_network = memo.get(id(self.scoring_network), self.scoring_network)
        return Pipeline(
            [deepcopy(source, memo) for source in self.sources],
            deepcopy(self.score_function, memo) if is_model_copied else self.score_function,
            further_protocols=self.protocols[1:],
            explains_other_class=self.explains_other_class,
            scorer=deepcopy(self.scorer, memo) if is_scoring_network_copied else self.scorer,
            surrogate=None if self.surrogate is None else scoring_network,
            batch_size=self.batch_size,
            validate_args=self.validate_args,
        )


def _chunks(batches: int, count: int, size: int) -> Iterator[list[tuple[int, slice]]]:
    """Cut several batches of ``count`` images into chunks of ``size`` images.

    Yields:
        The parts of each chunk: the index of a batch, and which of its images.
    """
    for start in range(0, batches * count, size):
        end = min(start + size, batches * count)
        yield [
            (batch, slice(max(start - batch * count, 0), min(end - batch * count, count)))
            for batch in range(start // count, -(-end // count))
        ]
