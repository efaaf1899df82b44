"""What every metric shares: it holds a CAM source without owning the model, and keeps its sums exact."""

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from torchmetrics_cam.cams.resolve import as_source
from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.explanation import Explanation, explain
from torchmetrics_cam.metrics.identity import identity, own
from torchmetrics_cam.metrics.settings import Average, check_averaging, check_scoring
from torchmetrics_cam.perturbation import check_baseline, masked_scores, to_mask
from torchmetrics_cam.protocol import EvaluationProtocol, as_protocol
from torchmetrics_cam.random_numbers import OwnRandomNumbers
from torchmetrics_cam.scoring import ClassIndex, Scoring, Selection, Target

_CPU = torch.device("cpu")


class CAMMetric(Metric):
    """A metric over the maps of one CAM source.

    The source, the model behind it and ``logits_fn`` are held by reference and never registered: the metric
    has no parameters, its ``state_dict`` holds no network, and ``metric.to``, ``metric.eval`` and
    ``metric.clone`` leave the model alone. In a LightningModule assign the model before the metric, so that a
    copy of the module keeps the two together.
    """

    is_differentiable: bool = False
    full_state_update: bool = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    plot_legend_name: str = "Class"

    identity: Tensor
    default_protocol: ClassVar[str] = "paper"
    _in_forward: bool = False

    def __init__(
        self,
        cam_extractor: Any,
        logits_fn: Callable[[Any], Any] | None = None,
        *,
        protocol: EvaluationProtocol | str | None = None,
        batch_size: int | None = None,
        num_classes: int | None = None,
        average: Average = "micro",
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_scoring(logits_fn, batch_size)
        check_averaging(num_classes, average)
        source = as_source(cam_extractor)
        self._evaluation = _Evaluation(
            source, Scoring(logits_fn, as_protocol(protocol, self.default_protocol))
        )
        self.batch_size = batch_size
        self.num_classes = num_classes
        self.average = average
        self.validate_args = validate_args
        self.add_state("identity", self._evaluation.identity(), dist_reduce_fx=own)

    @property
    def source(self) -> CAMSource:
        """Where the maps come from."""
        return self._evaluation.source

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
            self._evaluation.random_numbers = OwnRandomNumbers()

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the sums of another metric, such as a shard that was computed elsewhere.

        Args:
            incoming_state: a metric of the same class, or its ``metric_state``.

        Raises:
            ValueError: if its protocol or its classes are not those of this metric.
        """
        if isinstance(incoming_state, CAMMetric) and incoming_state.protocol != self.protocol:
            raise ValueError(
                f"a metric of the protocol {incoming_state.protocol} cannot be merged into one of"
                f" {self.protocol}; their sums are of different things"
            )
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
        identity = self._evaluation.identity().to(self.device)
        self._defaults["identity"], self.identity = identity, identity.clone()

    # A LightningModule that is compiled has its steps traced, and they call this.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _explained(
        self,
        images: Tensor,
        class_idx: ClassIndex | None,
        targets: Target | list[Target] | None,
        cams: Tensor | None,
    ) -> tuple[Explanation, Tensor]:
        """The clean pass of a batch, and the score of what is explained on its masked images."""
        try:
            if targets is not None and self.average != "micro":
                raise ValueError(
                    f"average={self.average!r} is over classes, and targets have none; pass class_idx instead"
                )
            if isinstance(images, Tensor) and images.ndim > 1:
                check_baseline(images, self.protocol)
            with self._evaluation.random_numbers.drawn(getattr(images, "device", _CPU)):
                explanation = explain(
                    self.source,
                    images,
                    scoring=self._evaluation.scoring,
                    class_idx=class_idx,
                    targets=targets,
                    cams=cams,
                    validate_args=self.validate_args,
                )
                self._check_classes(explanation.selection)
                masked = masked_scores(
                    self.source.model,
                    explanation,
                    to_mask(explanation, self.protocol),
                    scoring=self._evaluation.scoring,
                    muted=self.source.muted(),
                    batch_size=self.batch_size,
                )
        except BaseException:
            # The base class counts an update before it runs.
            self._update_count -= 1
            raise
        return explanation, masked

    def _check_classes(self, selection: Selection) -> None:
        scored = selection.num_classes
        if None not in (self.num_classes, scored) and self.num_classes != scored:
            raise ValueError(f"the model scores {scored} classes but num_classes is {self.num_classes}")

    def _add_sum(self, name: str, dtype: torch.dtype) -> None:
        """A state that adds up over batches and ranks: one value, or one a class."""
        shape = () if self.average == "micro" else (self.num_classes or 0,)
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def _add(self, name: str, values: Tensor, selection: Selection) -> None:
        """Add the values of a batch, ``(N,)``.

        Out of place: a state that was reset in inference mode may not be written to outside of it.
        """
        state: Tensor = getattr(self, name)
        values = values.to(state.dtype)
        if state.ndim:
            assert selection.class_idx is not None
            summed = torch.zeros_like(state, device=values.device)
            summed = summed.index_add(0, selection.class_idx, values)
        else:
            summed = values.sum()
        setattr(self, name, state + summed.to(state.device))

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> "CAMMetric":
        """Move the states, but never cast them: a bfloat16 counter stops at 256."""
        super()._apply(fn, exclude_state=tuple(self._defaults))
        for name, default in self._defaults.items():
            if name not in exclude_state and isinstance(default, Tensor):
                self._defaults[name] = _moved(default, self.device)
                setattr(self, name, _moved(getattr(self, name), self.device))
        # The base class casts the value that it remembers; from the states it is computed again as it was.
        self._computed = None
        return self

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.source!r}, protocol={self.protocol.name!r})"


class _Evaluation:
    """A holder that is no Module, so that the network behind it does not become part of the metric."""

    def __init__(self, source: CAMSource, scoring: Scoring) -> None:
        self.source = source
        self.scoring = scoring
        self.random_numbers = OwnRandomNumbers()

    def identity(self) -> Tensor:
        """By what metrics on one source, protocol and ``logits_fn`` know each other."""
        source, scoring = self.source, self.scoring
        return identity(type(source), vars(source), scoring.protocol, scoring.logits_fn)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Evaluation":
        follows = id(self.source.model) in memo
        scoring = deepcopy(self.scoring, memo) if follows else self.scoring
        return _Evaluation(deepcopy(self.source, memo), scoring)


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
    if device.type == "mps" and state.dtype == torch.float64:
        state = state.float()
    return state.to(device)
