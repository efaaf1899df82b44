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
from torchmetrics_cam.metrics.identity import identity
from torchmetrics_cam.perturbation import check_baseline, masked_scores, to_mask
from torchmetrics_cam.protocol import EvaluationProtocol, as_protocol
from torchmetrics_cam.scoring import ClassIndex, Scoring, Target


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

    default_protocol: ClassVar[str] = "paper"

    def __init__(
        self,
        cam_extractor: Any,
        logits_fn: Callable[[Any], Any] | None = None,
        *,
        protocol: EvaluationProtocol | str | None = None,
        batch_size: int | None = None,
        validate_args: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if logits_fn is not None and not callable(logits_fn):
            raise TypeError(
                f"logits_fn is {logits_fn!r}; it must be a callable from the model's output to scores (N, K)"
            )
        if batch_size is not None and (
            not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1
        ):
            raise ValueError(f"batch_size is {batch_size!r}; it must be a positive integer, or None")
        source = as_source(cam_extractor)
        self._evaluation = _Evaluation(
            source, Scoring(logits_fn, as_protocol(protocol, self.default_protocol))
        )
        self.batch_size = batch_size
        self.validate_args = validate_args
        self._identity = self._evaluation.identity()
        self.add_state(self._identity, torch.tensor(0), dist_reduce_fx="sum")

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
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            for name, state in states.items():
                setattr(self, name, state)
            self._update_count = update_count
            self._to_sync, self._should_unsync, self._enable_grad, self.compute_on_cpu = settings
            self._computed = None
            raise

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
        self._persistent[self._identity] = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        before, self._identity = self._identity, self._evaluation.identity()
        tables: tuple[dict[str, Any], ...] = (
            self.__dict__,
            self._defaults,
            self._reductions,
            self._persistent,
        )
        for table in tables:
            table[self._identity] = table.pop(before)

    def _explained(
        self,
        images: Tensor,
        class_idx: ClassIndex | None,
        targets: Target | list[Target] | None,
        cams: Tensor | None,
    ) -> tuple[Explanation, Tensor]:
        """The clean pass of a batch, and the score of what is explained on its masked images."""
        scoring = self._evaluation.scoring
        try:
            if isinstance(images, Tensor) and images.ndim > 1:
                check_baseline(images, self.protocol)
            explanation = explain(
                self.source,
                images,
                scoring=scoring,
                class_idx=class_idx,
                targets=targets,
                cams=cams,
                validate_args=self.validate_args,
            )
            masked = masked_scores(
                self.source.model,
                explanation,
                to_mask(explanation, self.protocol),
                scoring=scoring,
                muted=self.source.muted(),
                batch_size=self.batch_size,
            )
        except BaseException:
            # The base class counts an update before it runs.
            self._update_count -= 1
            raise
        return explanation, masked

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

    def identity(self) -> str:
        """The name under which metrics on one source, protocol and ``logits_fn`` know each other."""
        source, scoring = self.source, self.scoring
        key = identity(type(source), vars(source), repr(scoring.protocol), scoring.logits_fn)
        return f"identity_{key}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Evaluation":
        follows = id(self.source.model) in memo
        scoring = deepcopy(self.scoring, memo) if follows else self.scoring
        return _Evaluation(deepcopy(self.source, memo), scoring)


def warn_scores_outside_unit_interval(count: Tensor) -> None:
    """One warning where a relative change was taken of something that is no fraction."""
    if count:
        warnings.warn(
            f"{int(count)} scores lie outside of [0, 1], and a change relative to such a score means nothing;"
            " pass logits_fn, for instance functools.partial(torch.softmax, dim=-1)",
            UserWarning,
            stacklevel=3,
        )


def _moved(state: Tensor, device: torch.device) -> Tensor:
    if device.type == "mps" and state.dtype == torch.float64:
        state = state.float()
    return state.to(device)
