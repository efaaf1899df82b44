"""``--data``: the dataset of a run."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchmetrics_cam.cli.classes import (
    EXPLAIN_LABEL,
    ClassMatch,
    imagenet_ids,
    match_classes,
    without_labels,
)
from torchmetrics_cam.cli.errors import UnmatchedClassesError, UnreadableError, UsageError, summary
from torchmetrics_cam.cli.images import Origin, find_origin
from torchmetrics_cam.report.text import printable

Item = dict[str, Any]


class Images(Dataset[Item | None]):
    """A dataset of images with their labels and file names.

    An item is ``{"image": Tensor, "index": int, "label": int}``, with label -1 if it is not known, or None if
    the image cannot be read.

    Args:
        origin: where the images come from.
        transform: a function from an RGB image of PIL to a tensor.
        limit: the number of images; None for all. They are a random sample with a fixed seed.
        class_names: the names of the model's classes.
        wordnet_ids: the WordNet ids of the model's classes; see `match_classes`.
        labeled: whether every image needs a label that is a class index of the model. Class names of the data
            are then matched with those of the model.
        labeled_if_possible: whether they are matched where that is possible for all images and reads none.
        option: the option that needs labels, for messages.

    Attributes:
        origin: where the images come from.
        positions: the position of each image there.
        has_class_indices: whether the label of every image is a class index of the model.
        unmatched_reason: why labels were not matched where that is possible, and what to do; None if they
            were, or if this was not asked for.

    Raises:
        UsageError: if labels are needed and a class of the data belongs to no class of the model, or to
            several.
    """

    def __init__(
        self,
        origin: Origin,
        transform: Callable[[Any], Tensor],
        *,
        limit: int | None = None,
        class_names: Sequence[str] | None = None,
        wordnet_ids: Sequence[str] | None = None,
        labeled: bool = False,
        labeled_if_possible: bool = False,
        option: str = EXPLAIN_LABEL,
    ) -> None:
        self.origin = origin
        self._option = option
        self.has_class_indices = labeled
        self._transform = transform
        self._class_names = class_names
        self.positions = list(range(len(origin)))
        if limit is not None:
            random.Random(0).shuffle(self.positions)
            self.positions = self.positions[:limit]
        own_names = origin.class_names
        self._match: ClassMatch | None = None
        if labeled and own_names is not None:
            self._match = match_classes(own_names, class_names, wordnet_ids, option=option)
        self.class_names = class_names if labeled or own_names is None else own_names
        if self.needed_outputs is not None:
            self.class_names = imagenet_ids()
        self.unmatched_reason: str | None = None
        if labeled_if_possible and not labeled:
            self.unmatched_reason = self._match_if_possible(own_names, class_names, wordnet_ids)
            self.has_class_indices = self.unmatched_reason is None

    def pixel_ranges(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """Return the ranges of pixel values of more than 8 bits, for JSON: ``{"range": str, "images": int}``.

        Args:
            indices: the images that count.
        """
        found = Counter(self.origin.pixel_range(self.positions[index]) for index in indices)
        return [{"range": text, "images": images} for text, images in found.most_common() if text is not None]

    @property
    def unused(self) -> list[dict[str, Any]]:
        """The files of the folder that are not used, for JSON: ``{"reason": str, "files": list}`` each."""
        files: dict[str, list[str]] = {}
        for file, reason in self.origin.unused:
            files.setdefault(reason, []).append(str(file))
        return [{"reason": reason, "files": files[reason]} for reason in sorted(files)]

    @property
    def are_sorted_into_classes(self) -> bool:
        """Whether the images are in subfolders, or have class labels in a saved dataset."""
        return self.origin.reads_labels_alone and self.origin.class_names is not None

    @property
    def label_source(self) -> str | None:
        """How labels became class indices of the model; None if the labels are not used."""
        if not self.has_class_indices:
            return None
        return "indices of the network's outputs" if self._match is None else self._match.reason

    @property
    def needed_outputs(self) -> int | None:
        """The number of outputs that the labels assume the model to have; None if its classes are known."""
        return None if self._match is None else self._match.outputs

    @property
    def model_classes(self) -> int | None:
        """The number of classes that the labels assume the model to have; None if it is not known."""
        return self.needed_outputs or (None if self._class_names is None else len(self._class_names))

    def drop_labels(self) -> None:
        """Use the labels no longer as class indices of the model."""
        self.has_class_indices, self._match = False, None

    def __len__(self) -> int:
        """Return the number of images, readable or not."""
        return len(self.positions)

    def __getitem__(self, index: int) -> Item | None:
        """Return an image, or None if it cannot be read.

        Raises:
            UsageError: if it needs a label and has none that is a class index. The check is here because
                labels are numbers here: to read them from a batch on a GPU would wait for the GPU.
        """
        try:
            image, label = self._read(index)
        except UnreadableError:
            return None
        class_idx = self._class_index(label, index) if self.has_class_indices else _whole_number(label)
        return {"image": image, "index": index, "label": -1 if class_idx is None else class_idx}

    def labels(self) -> list[int | None]:
        """Return the class index of each image, and None for images without a label that cannot be read.

        Of a folder or a saved dataset no image is read.

        Raises:
            UsageError: if an image that can be read has no label that is a class index.
        """
        labels = enumerate(self.origin.labels(self.positions))
        # An image without a label is no reason to stop if it cannot be read either.
        return [
            None if label is None and self[index] is None else self._class_index(label, index)
            for index, label in labels
        ]

    def fingerprint(self) -> str:
        """Return a checksum that changes with the images, as far as this is visible without decoding them."""
        return self.origin.fingerprint()

    def file(self, index: int) -> str:
        """Return the printable name of an image: its file, or its dataset and the position there."""
        return printable(self.origin.name(self.positions[index]))

    def digest(self, index: int) -> str:
        """Return the SHA-256 of an image's file or, without one, of its pixels; empty if it is not known."""
        return self.origin.digest(self.positions[index])

    def reason(self, index: int) -> str | None:
        """Read an image again, and return why that fails; None if it succeeds."""
        try:
            self._read(index)
        except UnreadableError as error:
            return str(error)
        return None

    def unreadable(self, evaluated: Sequence[int]) -> list[dict[str, str]]:
        """Return the file of every image that was not evaluated, and the reason."""
        return [
            {"file": self.file(index), "reason": self.reason(index) or "it was unreadable during the run"}
            for index in sorted(set(range(len(self))).difference(evaluated))
        ]

    def _match_if_possible(
        self,
        own_names: Sequence[str] | None,
        class_names: Sequence[str] | None,
        wordnet_ids: Sequence[str] | None,
    ) -> str | None:
        """Match the classes of the data with those of the model; return the reason if that fails."""
        if not self.origin.reads_labels_alone:
            return (
                "labels that a function returns are only used on request; add --group correct, or --explain"
                " label"
            )
        if own_names is None:
            return (
                "the data has no classes; sort the images into subfolders named after the classes of the"
                " network"
            )
        labels = self.origin.labels(self.positions)
        if not all(label is not None and 0 <= label < len(own_names) for label in labels):
            return "not every image has a label; label them all"
        try:
            self._match = match_classes(own_names, class_names, wordnet_ids, option=self._option)
        except UnmatchedClassesError as error:
            return error.reason
        return None

    def _class_index(self, label: Any, index: int) -> int:
        number = _whole_number(label)
        if label is None or (number is not None and number < 0):
            raise UsageError(
                f"{self._option} needs a label for every image, and {self.file(index)} has no label; sort"
                " the images into subfolders named after the classes, remove this one, or"
                f" {without_labels(self._option)}"
            )
        if number is None:
            raise UsageError(
                f"{self._option}: {self.file(index)} has the label {label!r}, which is not a whole number;"
                f" return the index of a class, or {without_labels(self._option)}"
            )
        classes = self.class_names if self._match is None else self._match.indices
        if classes is not None and number >= len(classes):
            has = "network" if self._match is None else "dataset"
            raise UsageError(
                f"{self._option}: {self.file(index)} has the label {number}, and the {has} has"
                f" {len(classes)} classes; labels are 0 to {len(classes) - 1}"
            )
        return number if self._match is None else self._match.indices[number]

    def _read(self, index: int) -> tuple[Tensor, Any]:
        image, label = self.origin.read(self.positions[index])
        if isinstance(image, Tensor):
            return image, label
        try:
            tensor = self._transform(image)
        except Exception as error:
            raise UnreadableError(f"the transform failed on it with {summary(error)}") from error
        if not isinstance(tensor, Tensor):
            raise UnreadableError(f"the transform returned a {type(tensor).__name__}, not a tensor")
        return tensor, label


def load_data(
    name: str,
    transform: Callable[[Any], Tensor],
    *,
    limit: int | None = None,
    class_names: Sequence[str] | None = None,
    wordnet_ids: Sequence[str] | None = None,
    labeled: bool = False,
    labeled_if_possible: bool = False,
    option: str = EXPLAIN_LABEL,
) -> Images:
    """Load the images of ``--data``.

    Args:
        name: a folder of images, whose first level of subfolders, if it has any, are the classes; a folder
            that ``save_to_disk`` of Hugging Face's datasets has written; or ``package.module:factory``, a
            callable without arguments that returns a dataset with a length.
        transform: a function from an RGB image of PIL to a tensor.
        limit: the number of images; see `Images`.
        class_names: the names of the model's classes; see `Images`.
        wordnet_ids: the WordNet ids of the model's classes; see `Images`.
        labeled: whether every image needs a label that is a class index of the model.
        labeled_if_possible: whether labels are matched with the classes of the model where that is possible.
        option: the option that needs labels, for messages.

    Raises:
        UsageError: if there is no such folder or function, no image can be read, or labels are needed and
            missing or no class indices of the model.
        ModuleNotFoundError: if a library is not installed; the message contains the pip command.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} leaves no image; give at least 1, or omit it to use all images")
    images = Images(
        find_origin(name),
        transform,
        limit=limit,
        class_names=class_names,
        wordnet_ids=wordnet_ids,
        labeled=labeled,
        labeled_if_possible=labeled_if_possible,
        option=option,
    )
    if len(images) == 0:
        raise UsageError(f"--data {name} contains no image")
    if all(images[index] is None for index in range(len(images))):
        raise UsageError(
            f"--data {name}: none of {len(images)} images can be read; the first is {images.file(0)}:"
            f" {images.reason(0)}"
        )
    return images


def collate(items: Sequence[Item | None]) -> dict[str, Any] | None:
    """Stack the readable items to a batch; return None if there is none.

    Indices and labels stay lists of integers: to read them from a tensor on a GPU would wait for the GPU.

    Raises:
        UsageError: if the images differ in shape.
    """
    readable = [item for item in items if item is not None]
    if not readable:
        return None
    shapes = sorted({tuple(item["image"].shape) for item in readable})
    if len(shapes) > 1:
        raise UsageError(
            f"images of one batch have shapes {shapes[0]} and {shapes[1]}; resize all images to one size in"
            " the transform, or set --batch-size 1"
        )
    tensors = [name for name in ("image", "objects") if name in readable[0]]
    stacked: dict[str, Any] = {name: torch.stack([item[name] for item in readable]) for name in tensors}
    return stacked | {name: [item[name] for item in readable] for name in ("index", "label")}


def _whole_number(label: Any) -> int | None:
    """Return a label as an integer; None if it is not one number without a fraction."""
    value = label.item() if getattr(label, "ndim", None) == 0 else label
    return int(float(value)) if isinstance(value, Real) and float(value).is_integer() else None
