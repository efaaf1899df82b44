"""EvaluationProtocol: every choice that changes a number, in one object that prints itself."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torchmetrics_cam.baselines import BLUR, Baseline, as_baseline, described, is_number

BASELINES = ("baseline", "deletion_baseline", "insertion_baseline")
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
        normalize: min-max normalization of each map ``"before_resize"``, ``"after_resize"``,
            ``"before_and_after_resize"`` or ``"none"``.
        normalize_eps: added to the denominator of the min-max normalization.
        mask: ``"soft"`` multiplies by the map; ``"top"`` keeps the ``mask_fraction`` highest positions whole,
            of equal ones those that come first; ``"threshold"`` keeps whole what is at least
            ``mask_threshold`` in the normalized map.
        mask_fraction: the share of positions that ``mask="top"`` keeps, in (0, 1].
        mask_threshold: in (0, 1], for ``mask="threshold"``.
        baseline: what hidden positions show, in units of the model's input: one value, a tuple of one for
            each channel (`baselines.black` gives that of black pixels), ``"mean"`` for each image's own mean
            color, ``"blur"`` for the blurred image (`baselines.GaussianBlur` sets how much), a picture
            ``(C, *spatial)``, or a function from images ``(N, C, *spatial)`` to what broadcasts to them.
        drop: ``"relative"`` for (p - o) / p, ``"absolute"`` for p - o, both clamped at 0.
        drop_eps: added to the denominator of the relative drop.
        gain_eps: added to the denominator of the gain, (o - p) / (1 - p).
        curve_steps: at most so many steps of a deletion or insertion curve.
        deletion_baseline: what deleted positions show, in the forms of ``baseline``.
        insertion_baseline: what positions show that are not yet inserted.
        road_fractions: the shares of positions that ROAD imputes, each in (0, 1).
        road_noise: the standard deviation of its noise, in units of the model's input.
        pointing_tolerance: so many pixels beside an object still count in the pointing game.
        iou_threshold: in (0, 1]; a map is high where it is at least this.
        class_selection: ``"argmax"`` explains the class given or else the top class; ``"given"`` demands one.

    Raises:
        ValueError: if a field holds a value that it does not know.

    Presets, for `preset` and wherever a metric takes a ``protocol``:

    - ``"paper"``: the Grad-CAM++ paper (arXiv 1710.11063).
    - ``"torchcam"``: torchcam's ``ClassificationMetric``. Maps are taken through the scores.
    - ``"grad_cam"``: pytorch-grad-cam's ``DropInConfidence`` and ``IncreaseInConfidence``. The drop is
      absolute.
    - ``"score_cam"``: the Score-CAM paper (arXiv 1910.01279). The upper half of the positions is kept whole.
    - ``"xplique"``: Xplique's ``AverageDropMetric``, ``AverageIncreaseMetric`` and ``AverageGainMetric``.
      Negative values count as much as positive ones, and the class must be given.

    Example:
        >>> from torchmetrics_cam import EvaluationProtocol
        >>> EvaluationProtocol.preset("torchcam").cam_of
        'scores'
        >>> EvaluationProtocol.preset("paper").replace(mask="top").name
        'modified paper'

    """

    name: str = ""
    scores: Literal["softmax", "raw"] = "softmax"
    cam_of: Literal["logit", "scores"] = "logit"
    rectify: Literal["relu", "abs", "source"] = "relu"
    normalize: Normalization = "after_resize"
    normalize_eps: float = 0.0
    mask: Literal["soft", "top", "threshold"] = "soft"
    mask_fraction: float = 0.5
    mask_threshold: float = 0.5
    baseline: Baseline | str = 0.0
    drop: Literal["relative", "absolute"] = "relative"
    drop_eps: float = 0.0
    gain_eps: float = 0.0
    curve_steps: int = 20
    deletion_baseline: Baseline | str = 0.0
    insertion_baseline: Baseline | str = BLUR
    road_fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    road_noise: float = 0.01
    pointing_tolerance: float = 15.0
    iou_threshold: float = 0.5
    class_selection: Literal["argmax", "given"] = "argmax"

    def __post_init__(self) -> None:
        for field, hint in get_type_hints(type(self)).items():
            value = getattr(self, field)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise ValueError(
                    f"EvaluationProtocol({field}={value!r}): it must be one of {list(get_args(hint))}"
                )
        for field in ("mask_fraction", "mask_threshold", "iou_threshold"):
            value = getattr(self, field)
            if not (is_number(value) and 0 < value <= 1):
                raise ValueError(f"EvaluationProtocol({field}={value!r}): it must lie in (0, 1]")
        for field in ("normalize_eps", "drop_eps", "gain_eps", "road_noise", "pointing_tolerance"):
            value = getattr(self, field)
            if not (is_number(value) and value >= 0):
                raise ValueError(f"EvaluationProtocol({field}={value!r}): it must be a number, not negative")
        shares = self.road_fractions
        if not (
            isinstance(shares, tuple) and shares and all(is_number(one) and 0 < one < 1 for one in shares)
        ):
            raise ValueError(
                f"EvaluationProtocol(road_fractions={shares!r}): it must be a tuple of numbers in (0, 1)"
            )
        steps = self.curve_steps
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ValueError(f"EvaluationProtocol(curve_steps={steps!r}): it must be a positive integer")
        for field in BASELINES:
            object.__setattr__(self, field, as_baseline(getattr(self, field)))
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

    def replace(self, **changes: object) -> "EvaluationProtocol":
        """A copy with some fields changed; unless a ``name`` is among them, it is called a modified one."""
        base = self.name.removeprefix("modified ")
        return dataclasses.replace(self, **{"name": f"modified {base}", **changes})  # type: ignore[arg-type]

    @property
    def drop_settings(self) -> dict[str, Any]:
        """What the formula `average_drop` takes beside the scores."""
        return {"relative": self.drop == "relative", "eps": self.drop_eps}

    def caption(self, measures: Iterable[str] = ()) -> str:
        """The protocol in one line, for the caption of a table or figure.

        Args:
            measures: names of measures. Settings of other measures are left out; without names, none.

        Example:
            >>> from torchmetrics_cam import EvaluationProtocol
            >>> EvaluationProtocol().caption(["complexity"])
            'paper: scores=softmax, cam_of=logit, rectify=relu, normalize=after_resize, normalize_eps=0.0, \
mask=soft, baseline=0.0, class_selection=argmax'

        """
        names = [field.name for field in fields(self)[1:]]
        if measures := set(measures):
            other_masks = {name for name, mask in _OF_MASK.items() if mask != self.mask}
            names = [name for name in names if reads(measures, name) and name not in other_masks]
        values = {name: getattr(self, name) for name in names}
        values |= {name: described(values[name]) for name in BASELINES if name in values}
        return f"{self.name}: {', '.join(f'{name}={value}' for name, value in values.items())}"

    def __str__(self) -> str:
        return self.caption()


# Settings that some measures read alone, and settings of one kind of mask. All others change every number.
_OF_MEASURES = {
    "drop": {"average_drop"},
    "drop_eps": {"average_drop"},
    "gain_eps": {"average_gain"},
    "curve_steps": {"deletion_auc", "insertion_auc"},
    "deletion_baseline": {"deletion_auc"},
    "insertion_baseline": {"insertion_auc"},
    "road_fractions": {"road"},
    "road_noise": {"road"},
    "pointing_tolerance": {"pointing_game"},
    "iou_threshold": {"mask_iou"},
}
_OF_MASK = {"mask_fraction": "top", "mask_threshold": "threshold"}


def reads(measures: Iterable[str], setting: str) -> bool:
    """Whether a setting of a protocol changes the value of one of the measures."""
    return setting not in _OF_MEASURES or not _OF_MEASURES[setting].isdisjoint(measures)


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
        EvaluationProtocol(
            name="grad_cam",
            normalize="before_and_after_resize",
            normalize_eps=1e-7,
            drop="absolute",
        ),
        EvaluationProtocol(name="score_cam", mask="top"),
        EvaluationProtocol(
            name="xplique",
            scores="raw",
            cam_of="scores",
            rectify="abs",
            normalize_eps=1e-8,
            drop_eps=1e-8,
            gain_eps=1e-8,
            class_selection="given",
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
