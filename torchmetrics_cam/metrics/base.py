"""The base class of all metrics: sources without ownership of the model, and exact sums."""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from torchmetrics_cam.cams.source import CAMSource
from torchmetrics_cam.functional.statistics import sum_dtype
from torchmetrics_cam.metrics.arguments import Average, check_averaging
from torchmetrics_cam.metrics.compute_groups import identity
from torchmetrics_cam.model.compiled import Compilation
from torchmetrics_cam.model.scores import ClassIndex, Target
from torchmetrics_cam.pipeline.batch import Batch
from torchmetrics_cam.pipeline.pipeline import Pipeline
from torchmetrics_cam.protocol import EvaluationProtocol


class CAMMetric(Metric):
    """A metric over the maps of CAM sources of one model.

    The sources, the model behind them, ``logits_fn``, ``scorer`` and ``surrogate`` are held by reference and
    never registered: the metric has no parameters, its ``state_dict`` holds no network, and ``metric.to``,
    ``metric.eval`` and ``metric.clone`` leave model and surrogate alone. In a LightningModule assign these
    before the metric, so that a copy of the module keeps them together.
    """

    is_differentiable: bool = False
    full_state_update: bool = False
    plot_lower_bound: float = 0.0
    plot_upper_bound: float = 1.0
    plot_legend_name: str = "Class"

    identity: Tensor
    output_count: Tensor
    _in_forward: bool = False

    def __init__(
        self, pipeline: Pipeline, *, num_classes: int | None, average: Average, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        check_averaging(num_classes, average)
        self._pipeline = pipeline
        self.num_classes = num_classes
        self.average = average
        self._sum_dtype = torch.float64
        # The images whose output looks like logits, and like probabilities before the protocol's softmax.
        self.add_state("output_count", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    @property
    def model(self) -> nn.Module:
        """The network that is explained."""
        return self._pipeline.model

    @property
    def surrogate(self) -> nn.Module | None:
        """The network that scores the images in place of the model, if there is one."""
        return None if self._pipeline.surrogate is None else self._pipeline.surrogate.network

    @property
    def protocol(self) -> EvaluationProtocol:
        """The settings that the value depends on."""
        return self._pipeline.protocol

    @property
    def compilation(self) -> Compilation | None:
        """How the network was compiled for ``scorer="compile"``; None before the first update."""
        return self._pipeline.compilation

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values: float32, or float64 after ``set_dtype(torch.float64)``; sums are exact."""
        return torch.float64 if self._dtype == torch.float64 else torch.float32

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Update the states and return the value of this batch; an error leaves the states unchanged."""
        states, update_count = self._copy_state_dict(), self._update_count
        flags = self._to_sync, self._should_unsync, self._enable_grad, self.compute_on_cpu
        self._in_forward = True
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            for name, state in states.items():
                setattr(self, name, state)
            self._update_count = update_count
            self._to_sync, self._should_unsync, self._enable_grad, self.compute_on_cpu = flags
            self._computed = None
            raise
        finally:
            self._in_forward = False

    def reset(self) -> None:
        """Reset the states and the random numbers, and compare scorer and model again."""
        super().reset()
        # Within forward the base class resets for the value of the batch; the random numbers continue.
        if not self._in_forward:
            self._pipeline.reset()

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the sums of another metric, such as a shard that was computed elsewhere.

        Args:
            incoming_state: a metric of the same class, or its ``metric_state``.

        Raises:
            ValueError: if it is neither, or its classes or, of a metric, its protocol or surrogate are not
                those of this metric. A ``metric_state`` contains neither of the two, and no names of
                groups.
        """
        if isinstance(incoming_state, CAMMetric):
            theirs = incoming_state._settings_of_sums()
            for setting, ours in self._settings_of_sums().items():
                if theirs.get(setting) != ours:
                    raise ValueError(
                        f"a metric with {setting}={theirs.get(setting)} cannot be merged into one with"
                        f" {setting}={ours}; create both with the same {setting}"
                    )
        if isinstance(incoming_state, dict | Metric):
            self._check_states(incoming_state)
        super().merge_state(incoming_state)
        # The base class keeps the cached value, and counts no update.
        self._computed = None
        self._update_count += incoming_state._update_count if isinstance(incoming_state, Metric) else 1

    def plot(self, val: Any = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
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
        """Set whether the states are part of ``state_dict``; the identity never is, because it may change."""
        super().persistent(mode)
        self._persistent["identity"] = False

    @contextmanager
    def _explained(
        self,
        images: Tensor,
        class_idx: ClassIndex | None,
        *,
        targets: Target | list[Target] | None,
        cams: Mapping[CAMSource, Tensor],
        objects: Tensor | None = None,
        methods: Sequence[str] = (),
    ) -> Iterator[Batch]:
        """Explain a batch, and guard the model until the context ends."""
        if targets is not None and self.average != "micro":
            raise ValueError(
                f"average={self.average!r} is over classes, and targets have none; pass class_idx instead"
            )
        with self._pipeline.active(images):
            batch = Batch.of(
                self._pipeline,
                images,
                class_idx,
                targets=targets,
                cams=cams,
                objects=objects,
                methods=methods,
            )
            if None not in (self.num_classes, batch.num_classes) and self.num_classes != batch.num_classes:
                raise ValueError(
                    f"the model scores {batch.num_classes} classes but num_classes is {self.num_classes}"
                )
            yield batch

    def _zeros(self, dtype: torch.dtype, *shape: int) -> Tensor:
        """Return zeros ``(*shape)`` for a sum, or ``(num_classes, *shape)`` for a sum for each class."""
        classes = () if self.average == "micro" else (self.num_classes or 0,)
        return torch.zeros((*classes, *shape), dtype=dtype)

    def _sum(self, batch: Batch, values: Tensor) -> Tensor:
        """Sum values over the images of a batch, in int64, or in float64 where the device has it.

        Args:
            batch: the batch.
            values: one value for each image, ``(N, *shape)``.

        Returns:
            The sum ``(*shape)``, or one for each target class, ``(num_classes, *shape)``.
        """
        dtype = self._sum_dtype if values.is_floating_point() else torch.int64
        values = values.detach().to(self.device).to(dtype)
        if self.average == "micro":
            return values.sum(0)
        assert batch.class_idx is not None
        classes = batch.class_idx.to(self.device)
        return self._zeros(dtype, *values.shape[1:]).to(self.device).index_add(0, classes, values)

    def _count_outputs(self, batch: Batch, valid: Tensor) -> None:
        """Count the outputs that look like probabilities before the protocol's softmax, and the others.

        Args:
            batch: the batch.
            valid: which of its images are counted, ``(N,)``.
        """
        twice = batch.normalized_twice
        counts = torch.stack([valid & ~twice, valid & twice]).sum(1)
        self.output_count = self.output_count + counts.to(self.device)

    def _describe_outputs(self) -> str | None:
        """Return a sentence if all outputs look like probabilities before the protocol's softmax."""
        logits, probabilities = self.output_count.tolist()
        if logits or not probabilities:
            return None
        return (
            f"The model's output is in [0, 1] for all of {probabilities} images, as after a softmax or"
            f" sigmoid, and the protocol {self._pipeline.normalizing_protocol.name!r} applies another one,"
            " after which the scores differ little; remove it from the network, or pass"
            " logits_fn=torch.nn.Identity()."
        )

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Warn if all outputs of the model look like probabilities before the protocol's softmax."""

        @functools.wraps(compute)
        def warned(*args: Any, **kwargs: Any) -> Any:
            message = self._describe_outputs()
            if message is not None:
                warnings.warn(message, UserWarning, stacklevel=4)
            return compute(*args, **kwargs)

        return super()._wrap_compute(warned)

    def _wrap_update(self, update: Callable[..., Any]) -> Callable[..., None]:
        """Count an update only if it succeeds, and refuse the argument ``target`` with an explanation."""
        wrapped = super()._wrap_update(update)

        @functools.wraps(update)
        def counted(*args: Any, **kwargs: Any) -> None:
            if "target" in kwargs:
                raise TypeError(
                    "update has no argument 'target': a metric of CAMs takes images, not predictions and"
                    " labels. To explain the labels, pass class_idx=labels; targets= takes callables from an"
                    " output to a scalar"
                )
            count = self._update_count
            try:
                wrapped(*args, **kwargs)
            except BaseException:
                self._update_count = count
                raise

        # The steps of a compiled LightningModule call update, which cannot be traced.
        return torch.compiler.disable(counted)  # type: ignore[no-any-return, no-untyped-call]

    def _check_states(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Refuse states that lack one of this metric's, or have another shape.

        Raises:
            ValueError: if they do.
        """
        states = incoming_state if isinstance(incoming_state, dict) else vars(incoming_state)
        missing = [name for name in self._defaults if isinstance(incoming_state, dict) and name not in states]
        if missing:
            raise ValueError(f"the states to merge lack {missing}; pass a metric, or its metric_state")
        for name in self._defaults:
            given, own = states.get(name), getattr(self, name)
            if isinstance(given, Tensor) and given.shape != own.shape:
                raise ValueError(
                    f"the state {name!r} to merge has shape {tuple(given.shape)}, not {tuple(own.shape)};"
                    " give both metrics the same num_classes and average"
                )

    def _settings_of_sums(self) -> dict[str, Any]:
        """Return the settings that metrics must have in common for their sums to be added."""
        surrogate = self._pipeline.surrogate
        return {"protocol": self.protocol, "surrogate": surrogate and repr(surrogate)}

    def _described_settings(self) -> str:
        """Return the names of the protocol and of the surrogate, if there is one, for ``repr``."""
        surrogate = self._pipeline.surrogate
        return f"protocol={self.protocol.name!r}{f', surrogate={surrogate.name}' if surrogate else ''}"

    def _kind_of_sums(self) -> Any:
        """Return what determines the sums of a metric beside its sources and protocol."""
        return type(self).update.__qualname__

    def _identity(self) -> Tensor:
        return identity(*self._pipeline.key(), self._kind_of_sums())

    @contextmanager
    def _all_ranks(self) -> Iterator[None]:
        """Synchronize the states of all ranks inside the context; every rank must enter it."""
        is_synced = self._is_synced
        if not is_synced:
            self.sync(dist_sync_fn=self.dist_sync_fn, should_sync=self.sync_on_compute)
        try:
            yield
        finally:
            if not is_synced and self._is_synced:
                self.unsync()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load states but keep their dtype: a counter in bfloat16 would stop at 256."""
        super()._load_from_state_dict(*args, **kwargs)
        for name, default in self._defaults.items():
            if isinstance(default, Tensor):
                setattr(self, name, getattr(self, name).to(default.dtype))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A copied or loaded metric may have another model, and therefore another identity.
        own = self._identity().to(self.device)
        self._defaults["identity"], self.identity = own, own.clone()

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> "CAMMetric":
        """Move the states, but never cast them: a counter in bfloat16 would stop at 256."""
        dtype = self._dtype
        super()._apply(fn, exclude_state=tuple(self._defaults))
        if not self._dtype_convert:
            # The base class forgets the dtype of set_dtype when the metric is moved.
            self._dtype = dtype
        self._sum_dtype = sum_dtype(self.device)
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
        # The base class casts the cached value; it is computed again from the states.
        self._computed = None
        return self


def _moved(state: Tensor, device: torch.device) -> Tensor:
    if state.dtype == torch.float64:
        return state.to(sum_dtype(device)).to(device)
    return state.to(device)
