"""``--data``: images by the name of a folder, a saved dataset or a function."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.names import short
from torchmetrics_cam.cli.origins import Origin, find_origin
from torchmetrics_cam.cli.pictures import UnreadableError

Item = dict[str, Any]


class Images(Dataset[Item | None]):
    """Images with what a run and a report need to know of them.

    An item is ``{"image": Tensor, "index": int, "label": int}``, with -1 for a label that is not known, or
    None where the image cannot be read.

    Args:
        origin: where they come from.
        transform: from an RGB picture of PIL to a tensor.
        limit: how many; None for all. The first of a shuffle with a fixed seed, so that few images are a
            sample of all, and the same ones every time.
        class_names: the names of the model's classes. Where all names of the data are among them, labels are
            the numbers of the model's classes.
        labeled: whether an image without a label is an error.
    """

    def __init__(
        self,
        origin: Origin,
        transform: Callable[[Any], Tensor],
        *,
        limit: int | None = None,
        class_names: Sequence[str] | None = None,
        labeled: bool = False,
    ) -> None:
        self._origin = origin
        self._labeled = labeled
        self._transform = transform
        self._order = list(range(len(origin)))
        if limit is not None:
            random.Random(0).shuffle(self._order)
            self._order = self._order[:limit]
        own = origin.class_names
        self.class_names = own if own is not None else None if class_names is None else list(class_names)
        self._numbers: list[int] | None = None
        if own is not None and class_names is not None:
            numbers = {_folded(name): number for number, name in enumerate(class_names)}
            if all(_folded(name) in numbers for name in own):
                self._numbers = [numbers[_folded(name)] for name in own]
                self.class_names = list(class_names)

    @property
    def labels_are_classes(self) -> bool:
        """Whether the labels were found by name among the model's classes."""
        return self._numbers is not None

    def __len__(self) -> int:
        """How many images, readable or not."""
        return len(self._order)

    def __getitem__(self, index: int) -> Item | None:
        """An image, or None where it cannot be read.

        Raises:
            UsageError: if it has no label and needs one. This is the place to look, where labels are numbers
                of Python: to look at a batch of them on a GPU is to wait for it.
        """
        try:
            image, label = self._read(index)
        except UnreadableError:
            return None
        if self._labeled and label < 0:
            raise UsageError(
                f"--explain label needs a label for every image, and {self.file(index)} has no label; sort"
                " images into subfolders named as the classes, or leave it out, or explain the top class"
                " with --explain top"
            )
        return {"image": image, "index": index, "label": label}

    def fingerprint(self) -> str:
        """What differs where the images do, as far as that is known without reading them."""
        return self._origin.fingerprint()

    def file(self, index: int) -> str:
        """The file of an image, or what names it where it has none."""
        return self._origin.name(self._order[index])

    def reason(self, index: int) -> str | None:
        """Why an image cannot be read: it is tried again. None where it can."""
        try:
            self._read(index)
        except UnreadableError as error:
            return str(error)
        return None

    def _read(self, index: int) -> tuple[Tensor, int]:
        picture, label = self._origin.read(self._order[index])
        if self._numbers is not None and 0 <= label < len(self._numbers):
            label = self._numbers[label]
        if isinstance(picture, Tensor):
            return picture, label
        try:
            image = self._transform(picture)
        except Exception as error:
            raise UnreadableError(f"the transform failed on it with {short(error)}") from error
        if not isinstance(image, Tensor):
            raise UnreadableError(f"the transform made a {type(image).__name__} of it, not a tensor")
        return image, label


def load_data(
    name: str,
    transform: Callable[[Any], Tensor],
    *,
    limit: int | None = None,
    class_names: Sequence[str] | None = None,
    labeled: bool = False,
) -> Images:
    """The images of a name.

    Args:
        name: a folder of images, with or without subfolders, whose first level are then the classes; a folder
            of a dataset of Hugging Face's ``save_to_disk``; or ``package.module:factory``, a callable without
            arguments that returns a dataset with a length.
        transform: from an RGB picture of PIL to a tensor.
        limit: how many; see `Images`.
        class_names: the names of the model's classes; see `Images`.
        labeled: whether every image needs a label that is the number of one of the model's outputs.

    Raises:
        UsageError: if there is no such folder or function, no image in it can be read, or labels are needed
            and not there.
        ModuleNotFoundError: if a library is not installed; the message is the pip line.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit} leaves no image; give at least 1, or leave it out for all")
    images = Images(find_origin(name), transform, limit=limit, class_names=class_names, labeled=labeled)
    if len(images) == 0:
        raise UsageError(f"--data {name} holds no image")
    if all(images[index] is None for index in range(len(images))):
        raise UsageError(
            f"--data {name}: none of {len(images)} images can be read; the first, {images.file(0)}: "
            f"{images.reason(0)}"
        )
    if labeled and images.class_names is not None and not images.labels_are_classes:
        raise UsageError(
            "--explain label: the names of the data's classes are not those of the model, so nobody knows"
            " which of its outputs a label is; use a dataset of your own (package.module:factory), whose"
            " labels are numbers of outputs, or --explain top"
        )
    return images


def collate(items: Sequence[Item | None]) -> dict[str, Tensor] | None:
    """A batch of the items that could be read; None where none could.

    Raises:
        UsageError: if the images differ in shape.
    """
    read = [item for item in items if item is not None]
    if not read:
        return None
    shapes = {tuple(item["image"].shape) for item in read}
    if len(shapes) > 1:
        raise UsageError(
            f"images of one batch have shapes {' and '.join(map(str, sorted(shapes)[:2]))}; let the transform"
            " bring all to one size, or set --batch-size 1"
        )
    return {
        "image": torch.stack([item["image"] for item in read]),
        "index": torch.tensor([item["index"] for item in read]),
        "label": torch.tensor([item["label"] for item in read]),
    }


def _folded(name: str) -> str:
    return name.strip().lower().replace("_", " ")
