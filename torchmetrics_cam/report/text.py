"""What the numbers and the protocol say, in sentences."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

_FEW = 30

_SCORES = {
    "softmax": "The score of a class is its probability after the softmax.",
    "raw": "The score of a class is the raw output of the network.",
}
_CAM_OF = {
    "logit": "Gradient methods differentiate the raw output of the class.",
    "scores": "Gradient methods differentiate the score, through what made it of the raw output.",
}
_RECTIFY = {
    "relu": "Negative values of a map are set to 0.",
    "abs": "Negative values of a map count as much as positive ones.",
    "source": "Negative values of a map are left as the method itself leaves them.",
}
_NORMALIZE = {
    "before_resize": "Each map is stretched to the range from 0 to 1 before it is resized to the image.",
    "after_resize": "Each map is resized to the image, and then stretched to the range from 0 to 1.",
    "before_and_after_resize": "Each map is stretched to the range from 0 to 1 before and after its resize.",
    "none": "Maps are not normalized.",
}
_DROP = {
    "relative": "A drop is the lost share of the score on the whole image, and 0 where the score rises.",
    "absolute": "A drop is the lost score itself, not its share, and 0 where the score rises.",
}
_CLASS_SELECTION = {
    "argmax": "The class that is explained is the given one, or else the top class of the network.",
    "given": "The class that is explained must be given.",
}


def verdict(comparison: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the first measure: who leads, how surely, and what the controls do.

    Args:
        comparison: a comparison as its table's ``to_json`` gives it.
    """
    measure = comparison["measures"][0]
    name, title = measure["name"], measure["title"]
    known = [row for row in comparison["rows"] if row[name]["value"] is not None]
    known.sort(key=lambda row: row[name]["value"], reverse=bool(measure["higher_is_better"]))
    methods = [row for row in known if not row["control"]]
    controls = [row for row in known if row["control"]]
    if not methods:
        return [f"No method has a value of {title}, so nothing can be said of them."]
    best = methods[0]
    others = [row for row in methods if row is not best]
    sentences = [_leader(best, others, name, title), *_against_controls(best, controls, name)]
    blank = [row["method"] for row in methods if row["n"] and row["degenerate"] == row["n"]]
    if blank:
        sentences.append(
            f"Warning: every map of {listed(blank)} is constant, as where the class scores do not depend on"
            " the positions of the layer; choose an earlier layer."
        )
    fewest = min(row["n"] for row in known)
    if fewest < _FEW:
        images = "1 image is" if fewest == 1 else f"{fewest} images are"
        sentences.append(f"{images} few: the intervals are too short, and the order is a first impression.")
    return sentences


def _leader(best: Mapping[str, Any], others: Sequence[Mapping[str, Any]], name: str, title: str) -> str:
    value = f"{best['method']} has the best {title}, {_with_interval(best[name])}"
    if not others:
        return f"{value}. It is the only method with a value."
    same = [row["method"] for row in others if row["method"] in best["coincides_with"]]
    near = [
        row["method"]
        for row in others
        if row["method"] in best[name]["indistinct_from"] and row["method"] not in same
    ]
    parts = [value + "."]
    if same:
        parts.append(f"To the network it is one method with {listed(same)}.")
    if near:
        parts.append(f"It cannot be told from {listed(near)} at the 5 % level.")
    elif len(same) < len(others):
        parts.append("It differs from every other method at the 5 % level.")
    return " ".join(parts)


def _against_controls(best: Mapping[str, Any], controls: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Whether a control beats the best method, or cannot be told from it."""
    if not controls:
        return ["No control took part, so the numbers have nothing to be held against."]
    indistinct = best[name]["indistinct_from"]
    better = [row["method"] for row in controls if _ahead(row, best, name)]
    ahead = [method for method in better if method not in indistinct]
    near = [row["method"] for row in controls if row["method"] in indistinct]
    sentences = []
    if ahead:
        are, beat = ("is a control", "beats") if len(ahead) == 1 else ("are controls", "beat")
        sentences.append(
            f"Warning: {listed(ahead)}, which {are} and looked at no network, {beat} it."
            " This measure can be won here without explaining anything."
        )
    if near:
        kind = "control" if len(near) == 1 else "controls"
        lucky = [method for method in near if method in better]
        also = f", and {listed(lucky)} came out better" if lucky else ""
        sentences.append(f"Warning: it cannot be told from the {kind} {listed(near)} at the 5 % level{also}.")
    return sentences or ["It is better than every control at the 5 % level."]


def _ahead(control: Mapping[str, Any], best: Mapping[str, Any], name: str) -> bool:
    return bool((control[name]["rank"] or 0) < (best[name]["rank"] or 0))


def protocol_in_words(protocol: Mapping[str, Any]) -> list[str]:
    """Every field of a protocol as a plain sentence.

    Args:
        protocol: the fields of an `EvaluationProtocol`, baselines as they stand in captions.

    Example:
        >>> protocol_in_words({"scores": "softmax", "curve_steps": 20})
        ['The score of a class is its probability after the softmax.', 'Deletion and insertion curves have at most 20 steps.']

    """  # noqa: E501
    sentences: dict[str, Callable[[Any], str | None]] = {
        "scores": _SCORES.get,
        "cam_of": _CAM_OF.get,
        "rectify": _RECTIFY.get,
        "normalize": _NORMALIZE.get,
        "normalize_eps": lambda eps: eps and f"The stretch adds {eps:g} to its denominator.",
        "mask": lambda mask: _mask(mask, protocol),
        "baseline": lambda value: f"Hidden positions show {_baseline(value)}.",
        "drop": _DROP.get,
        "drop_eps": lambda eps: eps and f"The drop adds {eps:g} to its denominator.",
        "gain_eps": lambda eps: eps and f"The gain adds {eps:g} to its denominator.",
        "curve_steps": lambda steps: f"Deletion and insertion curves have at most {steps} steps.",
        "deletion_baseline": lambda value: f"Deleted positions show {_baseline(value)}.",
        "insertion_baseline": lambda value: f"Positions that are not yet inserted show {_baseline(value)}.",
        "road_fractions": lambda shares: f"ROAD imputes the shares {', '.join(f'{s:.0%}' for s in shares)}.",
        "road_noise": lambda noise: f"ROAD adds noise of standard deviation {noise:g} to imputed positions.",
        "pointing_tolerance": lambda far: f"The pointing game allows {far:g} pixels beside the object.",
        "iou_threshold": lambda level: f"Mask IoU cuts the map at {level:g}.",
        "class_selection": _CLASS_SELECTION.get,
    }
    made = [
        sentence(protocol[field]) for field, sentence in sentences.items() if protocol.get(field) is not None
    ]
    return [sentence for sentence in made if sentence]


def _mask(mask: str, protocol: Mapping[str, Any]) -> str:
    if mask == "top":
        return f"The highest {protocol.get('mask_fraction', 0.5):.0%} of the positions are kept whole."
    if mask == "threshold":
        return f"Positions where the map is at least {protocol.get('mask_threshold', 0.5):g} are kept whole."
    return "The image is multiplied by the map, so a position is kept as far as the map is high there."


def _baseline(value: Any) -> str:
    known = {"0.0": "0 in units of the network's input", "ImageMean()": "the mean color of the image"}
    text = str(value)
    return known.get(text, f"the image, blurred, {text}" if text.startswith("GaussianBlur") else text)


def listed(names: Sequence[str]) -> str:
    """Names as they stand in a sentence."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _with_interval(cell: Mapping[str, Any]) -> str:
    if cell["lower"] is None or cell["upper"] is None:
        return f"{cell['value']:.3f}"
    return f"{cell['value']:.3f} (95 % interval {cell['lower']:.3f} to {cell['upper']:.3f})"
