"""EvaluationProtocol: all settings that change the value of a metric."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin, get_type_hints

from torchmetrics_cam.baselines import Baseline, RiseBlur, as_baseline, display_name, is_finite_number

# The fields that hold a baseline.
BASELINES = ("baseline", "deletion_baseline", "insertion_baseline")
Normalization = Literal["before_resize", "after_resize", "before_and_after_resize", "none"]


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """The settings of an evaluation: how a map becomes a mask, what replaces masked pixels, and the formulas.

    Values of a metric can only be compared if their protocols are equal, so tables and figures print it.

    Args:
        name: the name in tables and ``repr``. By default ``"paper"``, or ``"modified paper"`` if a field
            differs from that preset.
        scores: how the model's output becomes scores if no ``logits_fn`` is given: ``"softmax"`` over
            dimension 1, or ``"raw"`` for the output itself. A single logit z, ``(N, 1)``, is that of a binary
            classifier: the softmax gives class 1 the score sigmoid(z) and class 0 sigmoid(-z).
        cam_of: what gradient CAMs differentiate: ``"logit"`` for the raw output of the target class, or
            ``"scores"`` for its score after ``logits_fn``. Through a softmax the two give different maps.
        rectify: how negative values of a map are treated: ``"relu"`` sets them to 0, ``"abs"`` takes absolute
            values, ``"source"`` leaves it to the CAM method.
        normalize: when each map is min-max normalized: ``"before_resize"``, ``"after_resize"``,
            ``"before_and_after_resize"`` or ``"none"``.
        normalize_eps: added to the denominator of the min-max normalization, in units of the map.
        mask: how a map becomes a mask: ``"soft"`` uses the map itself; ``"top"`` keeps the ``mask_fraction``
            highest pixels, of equal ones the first in row-major order; ``"threshold"`` keeps the pixels whose
            value in the normalized map is at least ``mask_threshold``.
        mask_fraction: the fraction of pixels that ``mask="top"`` keeps, in (0, 1].
        mask_threshold: the threshold of ``mask="threshold"``, in (0, 1].
        baseline: the value that replaces masked pixels, in units of the model's input: a number, a tuple with
            one number per channel (`baselines.black` computes that of black pixels), ``"mean"`` for the mean
            color of each image, ``"blur"`` for the blurred image (`baselines.GaussianBlur` has its
            parameters), an image ``(C, *spatial)``, or a function from images ``(N, C, *spatial)`` to a
            tensor that broadcasts to them.
        removal_probability: the probability, in (0, 1], with which a pixel is replaced that a mask hides, or
            that a deletion or insertion curve replaces; below 1 the removal is random.
        removal_limit: the largest fraction of an image's pixels that is replaced, in (0, 1], as an expected
            value: where ``removal_probability`` would replace more, it is lowered. A network that was
            fine-tuned with at most this fraction masked then sees no others.
        removal_samples: the number of random removals of each image, whose mean score counts as its score.
        drop: the formula of Average Drop, for the scores p of the clean image and o of the masked image:
            ``"relative"`` for max(0, p - o) / p, ``"absolute"`` for max(0, p - o).
        drop_eps: added to the denominator of the relative drop.
        gain_eps: added to the denominator of Average Gain, max(0, o - p) / (1 - p).
        curve_steps: the largest number of steps of a deletion or insertion curve.
        deletion_baseline: the value that replaces deleted pixels, in the same forms as ``baseline``.
        insertion_baseline: the value of pixels that are not inserted yet, in the same forms as ``baseline``.
        road_fractions: the fractions of pixels that ROAD imputes, each in (0, 1).
        road_noise: the standard deviation of the noise that ROAD adds to imputed pixels, in units of the
            model's input.
        pointing_tolerance: the distance from the object, in pixels, up to which the pointing game counts a
            hit.
        iou_threshold: the value from which Mask IoU counts a pixel of the map as highlighted, in (0, 1].
        deletion_grid: the number of cells along each axis that Single Deletion hides one after the other.
        correlation_grid: the number of cells along each axis of the grid from whose cells Faithfulness
            Correlation draws subsets.
        correlation_subsets: the number of random subsets, at least 3.
        correlation_fraction: the fraction of the cells in each subset, in (0, 1).
        sensitivity_samples: the number of noisy copies of each image for Max-Sensitivity and Average
            Sensitivity.
        sensitivity_radius: the largest absolute value of the noise, which is uniform, in units of the model's
            input.
        other_class: the class whose map Class Sensitivity compares with that of the explained class; None for
            the class with the highest score beside the explained one.
        top_k: the number of highest pixels that Top-K Intersection takes; images must have more pixels.
        class_selection: which class is explained: ``"argmax"`` for the given class or, without one, the class
            with the highest score; ``"given"`` makes it an error to give none.

    Raises:
        ValueError: if a field has a value that is not listed here.

    The random removal is that of Zheng et al., F-Fidelity, https://arxiv.org/abs/2410.02970: there
    ``removal_probability`` is called alpha, and ``removal_limit`` beta. The authors' code has the values 0.5,
    0.1 and 50 samples, and counts correct classifications instead of scores.

    Presets, for `preset` and wherever a metric takes a ``protocol``:

    - ``"paper"``: the Grad-CAM++ paper (https://arxiv.org/abs/1710.11063); the defaults above.
    - ``"torchcam"``: torchcam's ``ClassificationMetric``. Gradients are taken of the scores.
    - ``"grad_cam"``: pytorch-grad-cam's ``DropInConfidence`` and ``IncreaseInConfidence``. The drop is
      absolute.
    - ``"score_cam"``: the Score-CAM paper (https://arxiv.org/abs/1910.01279). The mask keeps the upper half
      of the pixels.
    - ``"xplique"``: Xplique's ``AverageDropMetric``, ``AverageIncreaseMetric`` and ``AverageGainMetric``.
      Maps become absolute values, and the class must be given.
    - ``"rise"``: the deletion and insertion of RISE (https://arxiv.org/abs/1806.07421), as in its published
      code: 28 steps, and insertion starts from its own blur. Of other measures the values are those of
      ``"paper"``, except that negative values of maps are left to the CAM method.

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
    removal_probability: float = 1.0
    removal_limit: float = 1.0
    removal_samples: int = 1
    drop: Literal["relative", "absolute"] = "relative"
    drop_eps: float = 0.0
    gain_eps: float = 0.0
    curve_steps: int = 20
    deletion_baseline: Baseline | str = 0.0
    insertion_baseline: Baseline | str = "blur"
    road_fractions: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    road_noise: float = 0.01
    pointing_tolerance: float = 15.0
    iou_threshold: float = 0.5
    deletion_grid: int = 4
    correlation_grid: int = 4
    correlation_subsets: int = 16
    correlation_fraction: float = 0.25
    sensitivity_samples: int = 10
    sensitivity_radius: float = 0.02
    other_class: int | None = None
    top_k: int = 1000
    class_selection: Literal["argmax", "given"] = "argmax"

    def __post_init__(self) -> None:
        for field, hint in get_type_hints(type(self)).items():
            value = getattr(self, field)
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise ValueError(
                    f"EvaluationProtocol({field}={value!r}): it must be one of {list(get_args(hint))}"
                )
        for field in (
            "mask_fraction",
            "mask_threshold",
            "removal_probability",
            "removal_limit",
            "iou_threshold",
        ):
            value = getattr(self, field)
            if not (is_finite_number(value) and 0 < value <= 1):
                raise ValueError(f"EvaluationProtocol({field}={value!r}): it must lie in (0, 1]")
        for field in (
            "normalize_eps",
            "drop_eps",
            "gain_eps",
            "road_noise",
            "pointing_tolerance",
            "sensitivity_radius",
        ):
            value = getattr(self, field)
            if not (is_finite_number(value) and value >= 0):
                raise ValueError(
                    f"EvaluationProtocol({field}={value!r}): it must be a finite number of at least 0"
                )
        fractions = self.road_fractions
        if not (
            isinstance(fractions, tuple)
            and fractions
            and all(is_finite_number(fraction) and 0 < fraction < 1 for fraction in fractions)
        ):
            raise ValueError(
                f"EvaluationProtocol(road_fractions={fractions!r}): it must be a tuple of numbers in (0, 1),"
                " such as (0.25, 0.5)"
            )
        other = self.other_class
        if other is not None and (not isinstance(other, int) or isinstance(other, bool) or other < 0):
            raise ValueError(
                f"EvaluationProtocol(other_class={other!r}): it must be the index of a class, or None"
            )
        for field, least in (
            ("removal_samples", 1),
            ("curve_steps", 1),
            ("top_k", 1),
            ("sensitivity_samples", 1),
            ("deletion_grid", 2),
            ("correlation_grid", 2),
            ("correlation_subsets", 3),
        ):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                needed = "a positive integer" if least == 1 else f"an integer of at least {least}"
                raise ValueError(f"EvaluationProtocol({field}={value!r}): it must be {needed}")
        fraction = self.correlation_fraction
        if not (is_finite_number(fraction) and 0 < fraction < 1):
            raise ValueError(f"EvaluationProtocol(correlation_fraction={fraction!r}): it must lie in (0, 1)")
        if not self.name.isprintable():
            raise ValueError(f"EvaluationProtocol(name={self.name!r}): it must be one line of printable text")
        for field in BASELINES:
            object.__setattr__(self, field, as_baseline(getattr(self, field)))
        if not self.name:
            defaults = {field.name: field.default for field in fields(self)[1:]}
            defaults |= {field: as_baseline(defaults[field]) for field in BASELINES}
            modified = any(getattr(self, field) != default for field, default in defaults.items())
            object.__setattr__(self, "name", "modified paper" if modified else "paper")

    @classmethod
    def preset(cls, name: str) -> "EvaluationProtocol":
        """Return the protocol of a paper or of a library.

        Args:
            name: ``"paper"``, ``"torchcam"``, ``"grad_cam"``, ``"score_cam"``, ``"xplique"`` or ``"rise"``.

        Raises:
            ValueError: if no preset has this name.

        Example:
            >>> from torchmetrics_cam import EvaluationProtocol
            >>> EvaluationProtocol.preset("grad_cam").drop
            'absolute'

        """
        if name not in PRESETS:
            raise ValueError(f"protocol={name!r} is not a preset; the presets are {sorted(PRESETS)}")
        return PRESETS[name]

    def replace(self, **changes: object) -> "EvaluationProtocol":
        """Return a copy with some fields changed.

        Args:
            changes: new values by field name. Without a ``name``, the copy is named ``"modified ..."``.

        Raises:
            ValueError: if a field does not accept its value.
            TypeError: if there is no field of a name.

        Example:
            >>> from torchmetrics_cam import EvaluationProtocol
            >>> EvaluationProtocol.preset("torchcam").replace(drop="absolute").name
            'modified torchcam'

        """
        name = f"modified {self.name.removeprefix('modified ')}"
        return dataclasses.replace(self, **{"name": name, **changes})  # type: ignore[arg-type]

    @property
    def removes_at_random(self) -> bool:
        """Whether only a random part of the pixels that a mask or a curve hides is replaced."""
        return self.removal_probability < 1 or self.removal_limit < 1

    def caption(self, measures: Iterable[str] = ()) -> str:
        """Return the protocol as one line of text, for the caption of a table or figure.

        Args:
            measures: names of measures, such as ``"average_drop"``. Settings that change none of them are
                left out. Without names, the line has all settings.

        Example:
            >>> from torchmetrics_cam import EvaluationProtocol
            >>> EvaluationProtocol().caption(["complexity"])
            'paper: scores=softmax, cam_of=logit, rectify=relu, normalize=after_resize, normalize_eps=0.0, \
mask=soft, baseline=0.0, class_selection=argmax'

        """
        names = [field.name for field in fields(self)[1:]]
        if measures := set(measures):
            names = [
                name
                for name in names
                if reads(measures, name)
                and _MASK_THAT_READS.get(name, self.mask) == self.mask
                and (self.removes_at_random or name not in _REMOVAL)
            ]
        values = {name: getattr(self, name) for name in names}
        values |= {name: display_name(values[name]) for name in BASELINES if name in values}
        return f"{self.name}: {', '.join(f'{name}={value}' for name, value in values.items())}"

    def __str__(self) -> str:
        return self.caption()


_REMOVAL = ("removal_probability", "removal_limit", "removal_samples")
_OF_REMOVED_PIXELS = {
    "average_drop",
    "increase_in_confidence",
    "average_gain",
    "drop_in_deletion",
    "deletion_auc",
    "insertion_auc",
    "symmetric_relevance_gain",
    "relative_drop",
    "adcc",
}
# Settings that change only some measures, and settings that change only one kind of mask. All others change
# every value.
_MEASURES_THAT_READ = {
    **dict.fromkeys(_REMOVAL, _OF_REMOVED_PIXELS),
    "drop": {"average_drop"},
    "drop_eps": {"average_drop"},
    "gain_eps": {"average_gain"},
    "curve_steps": {"deletion_auc", "insertion_auc", "symmetric_relevance_gain"},
    "deletion_baseline": {"deletion_auc", "symmetric_relevance_gain"},
    "insertion_baseline": {"insertion_auc"},
    "road_fractions": {"road"},
    "road_noise": {"road"},
    "pointing_tolerance": {"pointing_game"},
    "iou_threshold": {"mask_iou"},
    "deletion_grid": {"single_deletion"},
    "correlation_grid": {"faithfulness_correlation"},
    "correlation_subsets": {"faithfulness_correlation"},
    "correlation_fraction": {"faithfulness_correlation"},
    "sensitivity_samples": {"max_sensitivity", "average_sensitivity"},
    "sensitivity_radius": {"max_sensitivity", "average_sensitivity"},
    "other_class": {"class_sensitivity"},
    "top_k": {"top_k_intersection"},
}
_MASK_THAT_READS = {"mask_fraction": "top", "mask_threshold": "threshold"}


def reads(measures: Iterable[str], setting: str) -> bool:
    """Return whether a setting of the protocol changes the value of any of the measures.

    Args:
        measures: names of measures.
        setting: a field of `EvaluationProtocol`.
    """
    return setting not in _MEASURES_THAT_READ or not _MEASURES_THAT_READ[setting].isdisjoint(measures)


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
        EvaluationProtocol(
            name="rise",
            rectify="source",
            # Of 224 x 224 pixels, 8 rows in each step.
            curve_steps=28,
            insertion_baseline=RiseBlur(),
        ),
    )
}


def as_protocol(protocol: EvaluationProtocol | str | None, default: str = "paper") -> EvaluationProtocol:
    """Convert the ``protocol`` argument of a metric to a protocol.

    Args:
        protocol: a protocol, the name of a preset, or None for the default preset.
        default: the name of the default preset.

    Raises:
        ValueError: if no preset has this name.
        TypeError: if the argument has another type.
    """
    if isinstance(protocol, EvaluationProtocol):
        return protocol
    if protocol is None or isinstance(protocol, str):
        return EvaluationProtocol.preset(default if protocol is None else protocol)
    raise TypeError(
        f"protocol is of type {type(protocol).__name__}; pass an EvaluationProtocol or the name of a preset,"
        f" one of {sorted(PRESETS)}"
    )
