"""Mosaics of images of different classes, whose tiles serve as annotated objects."""

import operator
import random
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

_IMAGE_KEYS = ("image", "img", "pixel_values", "input", "inputs", "x")
_LABEL_KEYS = ("label", "labels", "target", "class", "y")
_NEEDED_LABELS = (
    "a mosaic needs the class of every image: return (image, label) from the dataset, or pass labels="
)


class Mosaic(TypedDict):
    """A mosaic by the names of the arguments of a localization metric's ``update``."""

    input_tensor: Tensor
    class_idx: int
    objects: Tensor


class MosaicDataset(Dataset[Mosaic | None]):
    r"""Mosaics of images of different classes: localization without annotated objects.

    Item i explains image i of a labeled dataset: a mosaic of this image and of images of other classes, the
    label of this image, and the mask of its tile. A map that explains the label should lie on this tile. Of
    a map that ignores the label, on average the tile's share of the mosaic lies there, 1/4 for 2 x 2 tiles,
    if every class has equally many images, and in any case in the mean over the classes (``average="macro"``
    of a metric). In the mean over the images, a map that always highlights the most frequent class has more.

    An item is a dict with the arguments of a localization metric's ``update``, so a default dataloader gives
    batches for ``metric.update(**batch)``, and `torchmetrics_cam.lightning.evaluate` takes the dataset as it
    is:

    - ``input_tensor``: the mosaic ``(C, *spatial)``
    - ``class_idx``: the label of the explained image
    - ``objects``: the pixels of its tile, bool, ``(*spatial)``

    The position of the explained image is drawn uniformly. Each other image is drawn from a class that the
    mosaic does not contain yet, uniformly from these classes and from the images of the class. All draws
    depend only on the seed, the index and the labels, so an item is the same in every process, batch and
    order, and no global random generator is used.

    In the source paper, every image of a grid is explained in turn and images keep their size; in the
    authors' code, only images are used that the network classifies correctly with a confidence above 0.5. For
    its values, pass a `torch.utils.data.Subset` of such images, ``keep_size=False``, and to
    `EnergyPointingGame` the protocol ``EvaluationProtocol(normalize="none")``. The edge of a tile is
    exact, so for `PointingGame` set ``pointing_tolerance=0``: within the default of 15 pixels of the center,
    a map hits every tile of 2 x 2.

    Args:
        dataset: a dataset with a length whose items are ``(image, label)``, or mappings with the names
            ``"image"`` and ``"label"`` or other usual ones. Images are floating-point tensors
            ``(C, *spatial)`` of one shape with one to three spatial dimensions, labels are integers or 0-d
            tensors. An item that is None stands for an image that cannot be read: its mosaic is None, and in
            other mosaics another image takes its place.
        tiles: the number of tiles in each dimension, at least 2.
        labels: the label of each item, which replaces that of the item; None only for one that cannot be
            read. By default the labels are the dataset's ``targets`` or ``labels``, as torchvision's datasets
            have them, also inside a `torch.utils.data.Subset`. Without these, every item is read once when
            the mosaics are made.
        keep_size: whether a mosaic has the size of one image, as networks with a fixed input size need it.
            Each pixel of a tile is then the mean of the pixels that it covers. False keeps the size of the
            tiles.
        seed: an integer; another one gives other mosaics.

    Raises:
        TypeError: if the dataset has no length, or an image or a label is of another type.
        ValueError: if ``tiles`` is less than 2, an image has no label, there are fewer classes than tiles,
            or images differ in shape; if an item has another label than ``targets``, when it is read.

    Source: Böhle et al., Convolutional Dynamic Alignment Networks, https://arxiv.org/abs/2104.00032

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader
        >>> from torchmetrics_cam import EnergyPointingGame, MosaicDataset
        >>> from torchmetrics_cam.cams import UniformMap
        >>> images = [(torch.full((1, 4, 4), float(label)), label) for label in (0, 1, 2, 3)]
        >>> mosaics = MosaicDataset(images)
        >>> mosaics[3]["input_tensor"]
        tensor([[[3., 3., 2., 2.],
                 [3., 3., 2., 2.],
                 [0., 0., 1., 1.],
                 [0., 0., 1., 1.]]])
        >>> metric = EnergyPointingGame(UniformMap(nn.Flatten()))
        >>> for batch in DataLoader(mosaics, batch_size=2):
        ...     metric.update(**batch)
        >>> metric.compute()  # the explained tile is one of four
        tensor(0.2500)

    """

    def __init__(
        self,
        dataset: Any,
        tiles: int = 2,
        *,
        labels: Sequence[int | None] | Tensor | None = None,
        keep_size: bool = True,
        seed: int = 0,
    ) -> None:
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"dataset is a {type(dataset).__name__} without a length; pass one with __len__ and"
                " __getitem__, because a mosaic may contain any of its images"
            )
        if not isinstance(tiles, int) or tiles < 2:
            raise ValueError(
                f"tiles is {tiles!r}; it must be an integer of at least 2, the tiles on one side"
            )
        self.dataset = dataset
        self.tiles = tiles
        self.keep_size = keep_size
        self.seed = seed
        self._labels_are_given = labels is not None
        self._image_shape: torch.Size | None = None
        self._labels = self._given_labels(labels) if labels is not None else self._own_labels()
        # With labels at hand, no image has been read yet.
        indices = iter(range(len(dataset)))
        while self._image_shape is None and (index := next(indices, None)) is not None:
            self._read(index)
        if self._image_shape is None:
            raise ValueError(f"the dataset has {len(dataset)} items, and none of them is an image")
        # Here, where all labels are known: workers would each read the labels of a dataset without targets.
        self._members: dict[int, list[int]] = {}
        for index, label in enumerate(self._labels):
            if label is not None:
                self._members.setdefault(label, []).append(index)
        self._check_number_of_tiles()

    def __len__(self) -> int:
        """Return the number of images in the dataset; each is explained in one mosaic."""
        return len(self._labels)

    def __getitem__(self, index: int) -> Mosaic | None:
        """Return the mosaic that explains an image of the dataset; None if the image cannot be read.

        Raises:
            TypeError: if an image or a label is of another type.
            ValueError: if images differ in shape, or too few of them can be read.
        """
        # A negative index gives the mosaic of the same image. One beyond the end raises the IndexError that
        # ends an iteration.
        index = range(len(self))[index]
        explained, label = self._read(index), self._labels[index]
        if explained is None:
            return None
        if label is None:
            raise ValueError(f"item {index} has no label; {_NEEDED_LABELS}")
        # A text is hashed in the same way in every process; Python's hash of a tuple is not.
        generator = random.Random(f"{self.seed} {index}")
        position = generator.randrange(self._tile_count)
        images = self._draw_partners(label, generator)
        images.insert(position, explained)
        return self._assemble(images, position, label)

    @property
    def _tile_count(self) -> int:
        assert self._image_shape is not None
        count: int = self.tiles ** (len(self._image_shape) - 1)
        return count

    def _draw_partners(self, label: int, generator: random.Random) -> list[Tensor]:
        """Draw images of different classes other than the label, until the mosaic is complete."""
        members = {class_idx: indices for class_idx, indices in self._members.items() if class_idx != label}
        partners: list[Tensor] = []
        while len(partners) < self._tile_count - 1:
            if not members:
                raise ValueError(
                    f"only {len(partners) + 1} classes have images that can be read, and a mosaic needs"
                    f" {self._tile_count}; pass fewer tiles, or a dataset with more classes"
                )
            # Whatever the size of a class: over the classes, each is explained as often as it is shown.
            class_idx = generator.choice(list(members))
            partner = generator.choice(members[class_idx])
            image = self._read(partner)
            if image is not None:
                partners.append(image)
            others = [index for index in members.pop(class_idx) if index != partner]
            if image is None and others:
                members[class_idx] = others
        return partners

    def _assemble(self, images: Sequence[Tensor], position: int, label: int) -> Mosaic:
        """Place the images in the order of the tiles, in which the last dimension changes first."""
        channels, *spatial = images[0].shape
        size = spatial if self.keep_size else [side * self.tiles for side in spatial]
        # The tiles of a side that their number does not divide differ by one pixel.
        edges = [[side * tile // self.tiles for tile in range(self.tiles + 1)] for side in size]
        mosaic = images[0].new_empty(channels, *size)
        objects = torch.zeros(size, dtype=torch.bool, device=mosaic.device)
        for number, tile in enumerate(product(range(self.tiles), repeat=len(size))):
            pixels = tuple(slice(*edge[at : at + 2]) for edge, at in zip(edges, tile, strict=True))
            target = mosaic[(slice(None), *pixels)]
            target.copy_(F.interpolate(images[number][None], target.shape[1:], mode="area")[0])
            objects[pixels] = number == position
        return {"input_tensor": mosaic, "class_idx": label, "objects": objects}

    def _read(self, index: int) -> Tensor | None:
        """Return an image of the dataset, and validate its label; None if the image cannot be read."""
        item = self.dataset[index]
        if item is None:
            return None
        image, label = image_and_label(item)
        image = self._checked(image, index)
        if not self._labels_are_given:
            found, stored = _class_index(label, index), self._labels[index]
            if found != stored:
                raise ValueError(
                    f"item {index} has the label {found}, and the dataset's targets have {stored} for it;"
                    " pass labels=, the label of each item"
                )
        return image

    def _checked(self, image: Any, index: int) -> Tensor:
        """Return an image if it can be a tile; the first one defines the shape of all."""
        if not isinstance(image, Tensor) or not image.is_floating_point() or not 2 <= image.ndim <= 4:
            given = f"{image.dtype} tensor {tuple(image.shape)}" if isinstance(image, Tensor) else None
            raise TypeError(
                f"the image of item {index} is a {given or type(image).__name__}; it must be a floating-point"
                " tensor (C, *spatial) with one to three spatial dimensions, as the transform of a dataset"
                " returns it"
            )
        if self._image_shape is None:
            self._image_shape = image.shape
        if image.shape != self._image_shape:
            raise ValueError(
                f"item {index} has an image of the shape {tuple(image.shape)}, and an earlier one has"
                f" {tuple(self._image_shape)}; a mosaic needs images of one shape, so resize them in the"
                " transform of the dataset"
            )
        return image

    def _check_number_of_tiles(self) -> None:
        assert self._image_shape is not None
        if len(self._members) < self._tile_count:
            shape = " x ".join([str(self.tiles)] * (len(self._image_shape) - 1))
            raise ValueError(
                f"the images have {len(self._members)} classes, and a mosaic of {shape} tiles shows"
                f" {self._tile_count} different ones; pass fewer tiles, or a dataset with more classes"
            )
        if self.keep_size and min(self._image_shape[1:]) < self.tiles:
            raise ValueError(
                f"images of {tuple(self._image_shape[1:])} pixels have no room for {self.tiles} tiles on a"
                " side; pass fewer tiles, or keep_size=False"
            )

    def _given_labels(self, labels: Sequence[int | None] | Tensor) -> list[int | None]:
        if len(labels) != len(self.dataset):
            raise ValueError(
                f"there are {len(labels)} labels and {len(self.dataset)} items; pass one label for each item"
            )
        listed = _listed(labels)
        return [None if label is None else _class_index(label, index) for index, label in enumerate(listed)]

    def _own_labels(self) -> list[int | None]:
        """Return the labels that the dataset stores, or read those of its items."""
        stored = _stored_labels(self.dataset)
        if stored is not None:
            return list(stored)
        labels: list[int | None] = []
        for index in range(len(self.dataset)):
            item = self.dataset[index]
            if item is None:
                labels.append(None)
                continue
            image, label = image_and_label(item)
            self._checked(image, index)
            labels.append(_class_index(label, index))
        return labels


def image_and_label(item: Any) -> tuple[Any, Any]:
    """Return the image and the label in an item of a dataset; without a label, None.

    Args:
        item: the image, ``(image, label)``, or a mapping with usual names such as ``"image"`` and
            ``"label"``. A mapping without an image is returned in place of one.
    """
    if isinstance(item, Mapping):
        image = next((item[key] for key in _IMAGE_KEYS if key in item), item)
        return image, next((item[key] for key in _LABEL_KEYS if key in item), None)
    if isinstance(item, tuple | list) and item:
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _stored_labels(dataset: Any) -> list[int] | None:
    """Return the labels that a dataset has as an attribute; None if there are none that can be used."""
    if isinstance(dataset, Subset):
        whole = _stored_labels(dataset.dataset)
        return None if whole is None else [whole[index] for index in dataset.indices]
    # The attributes are the labels before the transform.
    transforms = (getattr(dataset, "target_transform", None), getattr(dataset, "transforms", None))
    if transforms[0] is not None or getattr(transforms[1], "target_transform", None) is not None:
        return None
    for name in ("targets", "labels"):
        stored = _listed(getattr(dataset, name, None))
        if isinstance(stored, Sequence) and not isinstance(stored, str) and len(stored) == len(dataset):
            try:
                return [_class_index(label, index) for index, label in enumerate(stored)]
            except (TypeError, ValueError):
                continue
    return None


def _listed(labels: Any) -> Any:
    """Return a tensor or an array as a list, and other labels as they are."""
    return labels.tolist() if hasattr(labels, "tolist") else labels


def _class_index(label: Any, index: int) -> int:
    """Return the label of an item as an integer.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if the item has no label.
    """
    if label is None:
        raise ValueError(f"item {index} has no label; {_NEEDED_LABELS}")
    try:
        if getattr(label, "ndim", 0):
            raise TypeError
        number = operator.index(label)
    except TypeError as error:
        raise TypeError(
            f"item {index} has the label {label!r}; a label must be an integer, the index of a class"
        ) from error
    if number < 0:
        raise ValueError(f"item {index} has the label {number}, which is no class; {_NEEDED_LABELS}")
    return number
