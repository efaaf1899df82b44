"""Text of the report: the description of a protocol, of a mosaic and of a compilation."""

import re
from collections.abc import Callable, Mapping
from typing import Any

_SCORES = {
    "softmax": "The score of a class is its softmax probability; from a single logit z, sigmoid(z) for class"
    " 1 and sigmoid(-z) for class 0.",
    "raw": "The score of a class is the raw output of the network.",
}
_CAM_OF = {
    "logit": "Gradient methods differentiate the raw output of the class.",
    "scores": "Gradient methods differentiate the score of the class.",
}
_RECTIFY = {
    "relu": "Negative values of a map are set to 0.",
    "abs": "Maps are replaced by their absolute values.",
    "source": "Negative values of a map are handled as the method defines.",
}
_NORMALIZE = {
    "before_resize": "Each map is min-max normalized to [0, 1] before it is resized to the image.",
    "after_resize": "Each map is resized to the image and then min-max normalized to [0, 1].",
    "before_and_after_resize": "Each map is min-max normalized to [0, 1] before and after it is resized.",
    "none": "Maps are not normalized.",
}
_DROP = {
    "relative": "The drop is the decrease of the score relative to the score of the clean image, at least 0.",
    "absolute": "The drop is the absolute decrease of the score, at least 0.",
}
_CLASS_SELECTION = {
    "argmax": "The target class is the given class or, without one, the predicted class.",
    "given": "The target class must be given.",
}


# Control characters, separators of lines, and marks that reverse the direction of the text after them.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Return a text with escapes such as ``\n`` for characters that would change how a terminal shows it."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def describe_protocol(protocol: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each field of a protocol.

    Args:
        protocol: the fields of an `EvaluationProtocol` by name, baselines as text.

    Example:
        >>> describe_protocol({"scores": "softmax", "curve_steps": 20})
        ['The score of a class is its softmax probability; from a single logit z, sigmoid(z) for class 1 and \
sigmoid(-z) for class 0.', 'Deletion and insertion curves have at most 20 steps.']

    """
    sentences: dict[str, Callable[[Any], str | None]] = {
        "scores": _SCORES.get,
        "cam_of": _CAM_OF.get,
        "rectify": _RECTIFY.get,
        "normalize": _NORMALIZE.get,
        "normalize_eps": lambda eps: eps and f"The normalization adds {eps:g} to its denominator.",
        "mask": lambda mask: _describe_mask(mask, protocol),
        "baseline": lambda value: f"Masked pixels are replaced by {_describe_baseline(value)}.",
        "removal_limit": lambda limit: _describe_removal(limit, protocol),
        "drop": _DROP.get,
        "drop_eps": lambda eps: eps and f"The drop adds {eps:g} to its denominator.",
        "gain_eps": lambda eps: eps and f"The gain adds {eps:g} to its denominator.",
        "curve_steps": lambda steps: f"Deletion and insertion curves have at most {steps} steps.",
        "deletion_baseline": lambda value: f"Deleted pixels are replaced by {_describe_baseline(value)}.",
        "insertion_baseline": lambda value: (
            f"Pixels not yet inserted are replaced by {_describe_baseline(value)}."
        ),
        "road_fractions": lambda fractions: (
            f"ROAD imputes {', '.join(f'{fraction:.0%}' for fraction in fractions)} of the pixels."
        ),
        "road_noise": lambda noise: f"ROAD adds noise of standard deviation {noise:g} to imputed pixels.",
        "pointing_tolerance": lambda pixels: f"The pointing game has a tolerance of {pixels:g} pixels.",
        "iou_threshold": lambda threshold: f"Mask IoU thresholds the map at {threshold:g}.",
        "top_k": lambda pixels: f"Top-K Intersection takes the {pixels} highest pixels.",
        "deletion_grid": lambda cells: f"Single Deletion hides {cells} cells along each axis.",
        "correlation_grid": lambda cells: (
            f"Faithfulness Correlation hides subsets of a grid of {cells} cells along each axis."
        ),
        "correlation_subsets": lambda count: f"It draws {count} subsets.",
        "correlation_fraction": lambda fraction: f"Each subset has {fraction:.0%} of the cells.",
        "sensitivity_samples": lambda count: f"The sensitivity has {count} noisy copies of each image.",
        "sensitivity_radius": lambda radius: f"Their noise is uniform and at most {radius:g}.",
        "other_class": lambda index: (
            "Class Sensitivity compares with the class of the second-highest score."
            if index is None
            else f"Class Sensitivity compares with class {index}."
        ),
        "class_selection": _CLASS_SELECTION.get,
    }
    described = [sentence(protocol[field]) for field, sentence in sentences.items() if field in protocol]
    return [sentence for sentence in described if sentence]


def _describe_mask(mask: str, protocol: Mapping[str, Any]) -> str:
    if mask == "top":
        return f"The mask keeps the highest {protocol.get('mask_fraction', 0.5):.0%} of the pixels unchanged."
    if mask == "threshold":
        threshold = protocol.get("mask_threshold", 0.5)
        return f"The mask keeps the pixels where the map is at least {threshold:g} unchanged."
    return "The mask is the normalized map: each pixel is the mean of image and baseline, weighted by it."


def _describe_removal(limit: float, protocol: Mapping[str, Any]) -> str | None:
    probability, samples = protocol.get("removal_probability", 1.0), protocol.get("removal_samples", 1)
    if limit == probability == 1:
        return None
    return (
        f"Of the pixels that a mask or a curve hides, a random {probability:.0%} are replaced, but of an"
        f" image on average at most {limit:.0%}; its score is the mean over {samples} random removals."
    )


def _describe_baseline(value: Any) -> str:
    known = {"0.0": "0 in units of the network's input", "ImageMean()": "the mean color of the image"}
    text = str(value)
    return known.get(text, f"the blurred image, {text}" if text.startswith("GaussianBlur") else text)


def describe_compilation(compilation: Mapping[str, Any]) -> str:
    """Return how long the network was compiled, or why it scored the perturbed images itself.

    Args:
        compilation: ``seconds``, None if this process compiled nothing, and ``failure``, None for no failure.
    """
    if compilation["failure"] is not None:
        return str(compilation["failure"])
    if compilation["seconds"] is None:
        return "this process scored no images, so the time is not known"
    return f"{compilation['seconds']:.1f} s, for the copy of the network that scored the perturbed images"


def describe_mosaic(tiles: int) -> str:
    """Return what is explained in a mosaic, and what share of a map that ignores the class lies there.

    Args:
        tiles: the number of tiles on a side.
    """
    return (
        f"each image in a mosaic of {tiles} x {tiles} images of different classes, with its tile as the"
        f" object; a map that ignores the class has 1/{tiles**2} of its sum on the tile on average, if the"
        " classes have equally many images or the average is over classes"
    )
