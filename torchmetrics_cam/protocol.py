"""EvaluationProtocol: every choice that changes a number, in one object that prints itself."""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args, get_origin, get_type_hints

Normalization = Literal["before_resize", "after_resize", "before_and_after_resize", "none"]


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """How a map is turned into a number. A number without its protocol is not a result.

    Args:
        name: what the protocol is called in tables and ``repr``; by default ``"paper"``, or
            ``"modified paper"`` where a field differs from it.
        scores: what the model's output is turned into when no ``logits_fn`` is given: its ``"softmax"`` over
            dimension 1, or the ``"raw"`` output.
        cam_of: what gradient CAMs differentiate: the raw output of the class (``"logit"``) or what
            ``logits_fn`` makes of it (``"scores"``). Through a softmax the two give different maps.
        rectify: what happens to negative values of a map: ``"relu"``, ``"abs"``, or ``"source"`` for what the
            CAM method itself does.
        normalize: min-max normalisation of each map ``"before_resize"``, ``"after_resize"``,
            ``"before_and_after_resize"`` or ``"none"``.
        normalize_eps: added to the denominator of the min-max normalisation.
        mask: ``"soft"`` multiplies by the map; ``"top"`` keeps the ``mask_fraction`` highest positions whole.
        mask_fraction: the share of positions that ``mask="top"`` keeps, in (0, 1].
        baseline: what hidden positions show, in units of the model's input: one value, or one for each
            channel.
        drop: ``"relative"`` for (p - o) / p, ``"absolute"`` for p - o, both clamped at 0.
        drop_eps: added to the denominator of the relative drop.
        class_selection: ``"argmax"`` explains the class given or else the top class; ``"given"`` demands one.

    Raises:
        ValueError: if a field holds a value that it does not know.

    Example:
        >>> from torchmetrics_cam import EvaluationProtocol
        >>> EvaluationProtocol.preset("torchcam").cam_of
        'scores'
        >>> EvaluationProtocol.preset("paper").but(mask="top").name
        'modified paper'

    """

    name: str = ""
    scores: Literal["softmax", "raw"] = "softmax"
    cam_of: Literal["logit", "scores"] = "logit"
    rectify: Literal["relu", "abs", "source"] = "relu"
    normalize: Normalization = "after_resize"
    normalize_eps: float = 0.0
    mask: Literal["soft", "top"] = "soft"
    mask_fraction: float = 0.5
    baseline: float | tuple[float, ...] = 0.0
    drop: Literal["relative", "absolute"] = "relative"
    drop_eps: float = 0.0
    class_selection: Literal["argmax", "given"] = "argmax"

    def __post_init__(self) -> None:
        for field, hint in get_type_hints(type(self)).items():
            value = getattr(self, field)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise ValueError(
                    f"EvaluationProtocol({field}={value!r}): it must be one of {list(get_args(hint))}"
                )
        if not (_is_number(self.mask_fraction) and 0 < self.mask_fraction <= 1):
            raise ValueError(
                f"EvaluationProtocol(mask_fraction={self.mask_fraction!r}): it must lie in (0, 1]"
            )
        for field in ("normalize_eps", "drop_eps"):
            value = getattr(self, field)
            if not (_is_number(value) and value >= 0):
                raise ValueError(f"EvaluationProtocol({field}={value!r}): it must be a number, not negative")
        values = self.baseline if isinstance(self.baseline, tuple) else (self.baseline,)
        if not (values and all(map(_is_number, values))):
            raise ValueError(
                f"EvaluationProtocol(baseline={self.baseline!r}): it must be a finite number, or a tuple"
                " of one for each channel"
            )
        if not self.name:
            modified = any(getattr(self, field.name) != field.default for field in fields(self)[1:])
            object.__setattr__(self, "name", "modified paper" if modified else "paper")

    @classmethod
    def preset(cls, name: str) -> "EvaluationProtocol":
        """The protocol of a paper or of a library.

        Raises:
            ValueError: if there is no preset of that name.
        """
        if name not in PRESETS:
            raise ValueError(f"protocol={name!r} is no preset; the presets are {sorted(PRESETS)}")
        return PRESETS[name]

    def but(self, **changes: object) -> "EvaluationProtocol":
        """A copy with some fields changed; unless a ``name`` is among them, it is called a modified one."""
        base = self.name.removeprefix("modified ")
        return replace(self, **{"name": f"modified {base}", **changes})  # type: ignore[arg-type]

    def __str__(self) -> str:
        choices = ", ".join(f"{field.name}={getattr(self, field.name)}" for field in fields(self)[1:])
        return f"{self.name}: {choices}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


PRESETS = {
    preset.name: preset
    for preset in (
        EvaluationProtocol(),
        EvaluationProtocol(
            name="torchcam",
            scores="raw",
            cam_of="scores",
            rectify="source",
            normalize="before_resize",
            normalize_eps=1e-8,
            drop_eps=1e-7,
        ),
    )
}


def as_protocol(protocol: EvaluationProtocol | str | None, default: str = "paper") -> EvaluationProtocol:
    """A protocol from itself, from a preset's name, or from None for the default preset.

    Raises:
        ValueError: if there is no preset of that name.
        TypeError: if it is something else.
    """
    if isinstance(protocol, EvaluationProtocol):
        return protocol
    if protocol is None or isinstance(protocol, str):
        return EvaluationProtocol.preset(default if protocol is None else protocol)
    raise TypeError(
        f"protocol is a {type(protocol).__name__}; pass an EvaluationProtocol or the name of a preset,"
        f" {sorted(PRESETS)}"
    )
