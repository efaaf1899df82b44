"""What every metric shares: it holds CAM sources without owning the model, and keeps its sums exact."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.metrics.batch_values import BatchValues
from torchmetrics_cam.metrics.compute_groups import identity, own
from torchmetrics_cam.metrics.measures import MEASURES, Measure
from torchmetrics_cam.metrics.settings import Average, check_averaging, check_masks, check_scoring, sum_dtype
from torchmetrics_cam.model.scores import ClassIndex, ScoreFunction, ScoreSelector, Target
from torchmetrics_cam.pipeline.batch import Readings
from torchmetrics_cam.pipeline.evaluation import Evaluation
from torchmetrics_cam.protocol import EvaluationProtocol, as_protocol


class CAMMetric(Metric):
    """A metric over the maps of CAM sources of one model.

    The sources, the model behind them, ``logits_fn`` and ``scorer`` are held by reference and never
    registered: the metric has no parameters, its ``state_dict`` holds no network, and ``metric.to``,
    ``metric.eval`` and ``metric.clone`` leave the model alone. In a LightningModule assign the model before
    the metric, so that a copy of the module keeps the two together.
    """

    is_differentiable: bool = False
    full_state_update: bool = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    plot_legend_name: str = "Class"

    identity: Tensor
    measures: tuple[Measure, ...]
    default_protocol: ClassVar[str] = "paper"
    _in_forward: bool = False

    def __init__(
        self,
        sources: Sequence[CAMSource],
        measures: Sequence[str],
        logits_fn: Callable[[Any], Any] | None = None,
        *,
        protocol: EvaluationProtocol | str | None = None,
        scorer: Callable[[Tensor], Any] | None = None,
        batch_size: int | None = None,
        num_classes: int | None = None,
        average: Average = "micro",
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_scoring(logits_fn, scorer, batch_size)
        check_averaging(num_classes, average)
        self.measures = tuple(MEASURES[name] for name in measures)
        for measure in self.measures:
            measure.check(sources)
        self._evaluation = Evaluation(
            sources,
            ScoreFunction(logits_fn, as_protocol(protocol, self.default_protocol)),
            scorer=scorer,
            batch_size=batch_size,
            validate_args=validate_args,
        )
        self.num_classes = num_classes
        self.average = average
        self.add_state("identity", self._identity(), dist_reduce_fx=own)

    @property
    def model(self) -> nn.Module:
        """The network that is explained."""
        return self._evaluation.model

    @property
    def protocol(self) -> EvaluationProtocol:
        """Every choice that the number depends on."""
        return self._evaluation.scoring.protocol

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Update, and return the value of this batch alone; a refused batch loses nothing accumulated."""
        states, update_count = self._copy_state_dict(), self._update_count
        settings = self._to_sync, self._should_unsync, self._enable_grad, self.compute_on_cpu
        self._in_forward = True
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            for name, state in states.items():
                setattr(self, name, state)
            self._update_count = update_count
            self._to_sync, self._should_unsync, self._enable_grad, self.compute_on_cpu = settings
            self._computed = None
            raise
        finally:
            self._in_forward = False

    def reset(self) -> None:
        """Begin anew, also with the random numbers of sources that draw some."""
        super().reset()
        # The base class resets within forward, for the value of the batch; there the stream goes on.
        if not self._in_forward:
            self._evaluation.begin()

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the sums of another metric, such as a shard that was computed elsewhere.

        Args:
            incoming_state: a metric of the same class, or its ``metric_state``.

        Raises:
            ValueError: if its protocol or its classes are not those of this metric.
        """
        if isinstance(incoming_state, CAMMetric):
            theirs = incoming_state._sums_of()
            for what, ours in self._sums_of().items():
                if theirs.get(what) != ours:
                    raise ValueError(
                        f"a metric of the {what} {theirs.get(what)} cannot be merged into one of {ours};"
                        " their sums are of different things"
                    )
        missing = [
            name
            for name in self._defaults
            if not isinstance(incoming_state, Metric) and name not in incoming_state
        ]
        if missing:
            raise ValueError(f"the states to merge lack {missing}; pass a metric, or its metric_state")
        for name in self._defaults:
            given = (
                getattr(incoming_state, name, None)
                if isinstance(incoming_state, Metric)
                else incoming_state.get(name)
            )
            if isinstance(given, Tensor) and given.shape != getattr(self, name).shape:
                raise ValueError(
                    f"the state {name!r} to merge has shape {tuple(given.shape)}, not"
                    f" {tuple(getattr(self, name).shape)}; give both metrics the same num_classes and average"
                )
        super().merge_state(incoming_state)
        # The base class returns the value that it computed before, and counts no update.
        self._computed = None
        self._update_count += incoming_state._update_count if isinstance(incoming_state, Metric) else 1

    def plot(
        self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None
    ) -> _PLOT_OUT_TYPE:
        """Plot one value, or several over time.

        Args:
            val: what `compute` or `forward` returned, or a list of it; None calls `compute`.
            ax: a matplotlib axis to draw on; None makes a figure.

        Returns:
            Figure and axis.

        Raises:
            ModuleNotFoundError: if matplotlib is missing; ``pip install "torchmetrics-cam[plot]"`` has it.
        """
        return self._plot(val, ax)

    def persistent(self, mode: bool = False) -> None:
        """Whether the states are part of ``state_dict``; the identity never is, it may change."""
        super().persistent(mode)
        self._persistent["identity"] = False

    def _load_from_state_dict(self, *arguments: Any, **settings: Any) -> None:
        """States keep their dtype: a checkpoint in half precision makes no counter that stops at 256."""
        super()._load_from_state_dict(*arguments, **settings)
        for name, default in self._defaults.items():
            if isinstance(default, Tensor):
                setattr(self, name, getattr(self, name).to(default.dtype))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # The model may be another one now, and so the metric another: a copy, or read from a file.
        identity = self._identity().to(self.device)
        self._defaults["identity"], self.identity = identity, identity.clone()

    def _sums_of(self) -> dict[str, Any]:
        """What metrics must have in common for their sums to be added."""
        return {"protocol": self.protocol}

    @contextmanager
    def _all_ranks(self) -> Iterator[None]:
        """The states of all ranks inside, unless they are those already; every rank must ask."""
        synced_before = self._is_synced
        if not synced_before:
            self.sync(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute)
        try:
            yield
        finally:
            if not synced_before and self._is_synced:
                self.unsync()

    def _identity(self) -> Tensor:
        return identity(*self._evaluation.parts(), [measure.name for measure in self.measures])

    # A LightningModule that is compiled has its steps traced, and they call this.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _evaluated(
        self,
        images: Tensor,
        class_idx: ClassIndex | None,
        targets: Target | list[Target] | None,
        cams: Mapping[CAMSource, Tensor],
        masks: Tensor | None = None,
    ) -> BatchValues:
        """What the measures of this metric say to a batch."""
        with self._uncounted_if_refused():
            if targets is not None and self.average != "micro":
                raise ValueError(
                    f"average={self.average!r} is over classes, and targets have none; pass class_idx instead"
                )
            if masks is not None or any(measure.needs_objects for measure in self.measures):
                check_masks(masks, images)
            arguments = (images, class_idx, targets, cams)
            return self._evaluation.run(*arguments, check=self._check_classes, read=self._read, objects=masks)

    def _read(self, read: Readings) -> BatchValues:
        return BatchValues.read(read, self.measures)

    @contextmanager
    def _uncounted_if_refused(self) -> Iterator[None]:
        """The base class counts an update before it runs."""
        try:
            yield
        except BaseException:
            self._update_count -= 1
            raise

    def _check_classes(self, selection: ScoreSelector) -> None:
        scored = selection.num_classes
        if None not in (self.num_classes, scored) and self.num_classes != scored:
            raise ValueError(f"the model scores {scored} classes but num_classes is {self.num_classes}")

    def _add_sum(self, name: str, dtype: torch.dtype, *shape: int) -> None:
        """A state that adds up over batches and ranks, ``(*shape)``, or a class ``(num_classes, *shape)``."""
        classes = () if self.average == "micro" else (self.num_classes or 0,)
        self.add_state(name, torch.zeros((*classes, *shape), dtype=dtype), dist_reduce_fx="sum")

    def _add(self, name: str, values: Tensor, selection: ScoreSelector) -> None:
        """Add the values of a batch, ``(N, *shape)``.

        Out of place: a state that was reset in inference mode may not be written to outside of it.
        """
        state: Tensor = getattr(self, name)
        values = values.to(state.device).to(state.dtype)
        if self.average == "micro":
            summed = values.sum(0)
        else:
            assert selection.class_idx is not None
            classes = selection.class_idx.to(state.device)
            summed = torch.zeros_like(state).index_add(0, classes, values)
        setattr(self, name, state + summed)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> "CAMMetric":
        """Move the states, but never cast them: a bfloat16 counter stops at 256."""
        super()._apply(fn, exclude_state=tuple(self._defaults))
        for name, default in self._defaults.items():
            if name in exclude_state:
                continue
            state = getattr(self, name)
            if isinstance(default, Tensor):
                self._defaults[name] = _moved(default, self.device)
            if isinstance(state, Tensor):
                setattr(self, name, _moved(state, self.device))
            else:
                setattr(self, name, [_moved(part, self.device) for part in state])
        # The base class casts the value that it remembers; from the states it is computed again as it was.
        self._computed = None
        return self


def warn_scores_outside_unit_interval(count: Tensor) -> None:
    """One warning where a relative change was taken of something that is no fraction."""
    if count.any():
        warnings.warn(
            f"{int(count.sum())} scores lie outside of [0, 1], and a change relative to such a score means"
            " nothing; pass logits_fn, for instance functools.partial(torch.softmax, dim=-1)",
            UserWarning,
            stacklevel=3,
        )


def _moved(state: Tensor, device: torch.device) -> Tensor:
    if state.dtype == torch.float64:
        return state.to(sum_dtype(device)).to(device)
    return state.to(device)
