"""The classes of a dataset and the outputs of a network: by name, or by WordNet id."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
from torch import Tensor, nn

from torchmetrics_cam.cli.errors import UnmatchedClassesError, UsageError, import_library
from torchmetrics_cam.cli.names import nearest
from torchmetrics_cam.model.scores import logits_of

# Libraries shorten or change the names of a few classes. In another order hardly any name would be equal.
_EQUAL_NAMES_OF_IMAGENET = 900
_LISTED = 3
EXPLAIN_LABEL = "--explain label"


@dataclass(frozen=True)
class ClassMatch:
    """The output of the network that belongs to each class of a dataset.

    Args:
        indices: the index of the output for each class of the dataset.
        reason: how they were matched.
        outputs: the number of outputs that the network must have, where its classes are not known.
    """

    indices: list[int]
    reason: str
    outputs: int | None = None


@cache
def imagenet_ids() -> list[str]:
    """Return the WordNet ids of the classes of ImageNet-1k (ILSVRC 2012), in the order of its labels."""
    return files(__package__).joinpath("imagenet_ids.txt").read_text("utf-8").split()


def match_classes(
    data: Sequence[str],
    model: Sequence[str] | None,
    wordnet_ids: Sequence[str] | None = None,
    *,
    option: str = EXPLAIN_LABEL,
) -> ClassMatch:
    """Find the output of the network for each class of a dataset.

    Upper case, underscores and spaces around a name do not count. Names that are WordNet ids, such as
    ``n02123045``, are matched with the ids of the network's classes; a network without class names must have
    the 1,000 outputs of ImageNet-1k.

    Args:
        data: the names of the classes of the dataset.
        model: the names of the network's classes; None if they are not known.
        wordnet_ids: the WordNet ids of the network's classes; None stands for those of ImageNet-1k, if the
            network has its classes.
        option: the option that needs labels, for messages.

    Raises:
        UnmatchedClassesError: if a class of the dataset belongs to no output of the network, or to several.
    """
    by_id = all(re.fullmatch(r"n\d{8}", name) for name in data)
    known_ids = wordnet_ids or (imagenet_ids() if model is None or _is_imagenet(model) else None)
    if by_id and known_ids and not (model and set(data) <= set(model)):
        where = f"the {len(known_ids):,} WordNet ids of the network's classes"
        reason = f"WordNet ids, matched with those of the network's {len(known_ids):,} classes"
        if model is None:
            where = "the 1,000 WordNet ids of ImageNet-1k"
            reason = (
                "WordNet ids, if the network's outputs are the 1,000 classes of ImageNet-1k in their order"
            )
        indices = _indices(data, known_ids, where, option)
        return ClassMatch(indices, reason, len(known_ids) if model is None else None)
    if model is None:
        way_out = "return (model, transform, class_names) from the function of --model"
        raise UnmatchedClassesError(
            f"{option}: the data has class names, such as {data[0]!r}, and the network has none, so a"
            f" label cannot be matched with one of its outputs; {way_out}, or {without_labels(option)}",
            f"the network has no class names; {way_out}",
        )
    indices = _indices(data, model, "the class names of the network", option)
    return ClassMatch(indices, "class names of the network")


def check_outputs(model: nn.Module, image: Tensor, needed: int, option: str) -> None:
    """Refuse a network whose outputs are not the classes that labels stand for.

    Args:
        model: the network.
        image: an image.
        needed: the number of outputs.
        option: the option that needs labels, for messages.

    Raises:
        UsageError: if it returns something else.
    """
    with torch.no_grad():
        output = logits_of(model(image.unsqueeze(0)))
    if not isinstance(output, Tensor) or output.ndim != 2 or output.shape[1] != needed:
        given = f"a tensor {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(
            f"{option}: the classes of the data are WordNet ids of ImageNet-1k, and the network returns"
            f" {given}, not (N, {needed}); return (model, transform, class_names) from the function of"
            f" --model, with the WordNet ids or names of its classes, or {without_labels(option)}"
        )


def without_labels(option: str) -> str:
    """Return what to do instead, for messages, if an option needs labels and the data has none."""
    return "use --explain top" if option == EXPLAIN_LABEL else f"omit {option}"


def _indices(wanted: Sequence[str], available: Sequence[str], where: str, option: str) -> list[int]:
    positions: dict[str, list[int]] = {}
    for position, name in enumerate(available):
        positions.setdefault(_normalized(name), []).append(position)
    missing = [name for name in wanted if _normalized(name) not in positions]
    if missing:
        listed = ", ".join(map(repr, missing[:_LISTED]))
        more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise UnmatchedClassesError(
            f"{option}: {len(missing)} of the {len(wanted)} classes of the data are not among {where}:"
            f" {listed}{more}; the nearest names to the first are {nearest(missing[0], available)}. Rename"
            " them, use a dataset of your own (package.module:factory) whose labels are indices of the"
            f" network's outputs, or {without_labels(option)}",
            f"{len(missing)} of the {len(wanted)} classes of the data, such as {missing[0]!r},"
            f" {'is' if len(missing) == 1 else 'are'} not among {where}; rename the classes of the data",
        )
    for name in wanted:
        if len(found := positions[_normalized(name)]) > 1:
            raise UnmatchedClassesError(
                f"{option}: the class {name!r} of the data is the name of the network's classes"
                f" {' and '.join(map(str, found))}, so its images cannot be told apart; name the folders of"
                " ImageNet by WordNet id, such as n02012849, or use a dataset of your own"
                " (package.module:factory) whose labels are indices of the network's outputs",
                f"the network has several classes with the name {name!r}; give each one a name of its own",
            )
    return [positions[_normalized(name)][0] for name in wanted]


def _is_imagenet(class_names: Sequence[str]) -> bool:
    """Return whether names are those of ImageNet-1k in its order; of synonyms the first one counts."""
    if len(class_names) != len(imagenet_ids()):
        return False
    torchvision = import_library("torchvision", "--explain label", "torchmetrics-cam[cli]")
    names = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    pairs = zip(class_names, names, strict=True)
    equal = sum(_normalized(ours.partition(",")[0]) == _normalized(theirs) for ours, theirs in pairs)
    return equal >= _EQUAL_NAMES_OF_IMAGENET


def _normalized(class_name: str) -> str:
    return class_name.strip().lower().replace("_", " ")
