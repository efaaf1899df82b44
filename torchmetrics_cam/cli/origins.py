"""Where images come from: a folder, a saved dataset, or a dataset of the user's."""

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.names import call_factory, load_factory, short
from torchmetrics_cam.cli.pictures import UnreadableError, pillow, read_picture, suffixes, to_rgb

_IMAGE_KEYS = ("image", "img", "pixel_values", "input", "inputs", "x")
_LABEL_KEYS = ("label", "labels", "target", "class", "y")


class Origin(Protocol):
    """Where images come from, in a fixed order."""

    class_names: list[str] | None

    def __len__(self) -> int:
        """How many images."""

    def name(self, position: int) -> str:
        """The file, or what names the image where it has none."""

    def fingerprint(self) -> str:
        """What differs where the images do, as far as that is known without reading them."""

    def read(self, position: int) -> tuple[Any, int]:
        """The picture of PIL or the tensor, and the label; raises UnreadableError."""


def find_origin(name: str) -> Origin:
    """What a name of ``--data`` stands for.

    Raises:
        UsageError: if it is nothing that there is.
        ModuleNotFoundError: if a library is not installed.
    """
    path = Path(name)
    try:
        folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise UsageError(f"--data {name!r} is no path: {short(error)}") from error
    if folder and not os.access(path, os.R_OK | os.X_OK):
        raise UsageError(f"--data {name} may not be read; change its permissions")
    if folder and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        return _SavedDataset(path)
    if folder:
        return _Folder(path)
    if exists:
        raise UsageError(f"--data {name} is a file; give the folder that holds the images")
    # A split that a saved dataset does not have.
    if (path.parent / "dataset_dict.json").is_file():
        return _SavedDataset(path.parent, split=path.name)
    if ":" in name and os.sep not in name:
        return _Made(name)
    raise UsageError(
        f"--data {name} is not there; give a folder of images, a dataset that save_to_disk has written, or"
        " package.module:factory"
    )


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._files = _files(folder)
        if not self._files:
            known = ".jpg, .png, .webp, .tif, .bmp, .gif"
            raise UsageError(
                f"--data {folder} holds no image; files with suffixes such as {known} are images"
            )
        parents = [file.relative_to(folder).parts[:-1] for file in self._files]
        self.class_names: list[str] | None = None
        # A picture beside the subfolders belongs to none of them, so they are no classes.
        if all(parents):
            self.class_names = sorted({parent[0] for parent in parents})
            numbers = {name: number for number, name in enumerate(self.class_names)}
            self._labels = [numbers[parent[0]] for parent in parents]
        else:
            self._labels = [-1] * len(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def name(self, position: int) -> str:
        return str(self._files[position])

    def fingerprint(self) -> str:
        found = 0
        for file in self._files:
            try:
                written = file.stat()
                state = f"{written.st_size} {written.st_mtime_ns}"
            except OSError:
                state = "unreadable"
            found = zlib.crc32(os.fsencode(file) + state.encode(), found)
        return f"{found:08x}"

    def read(self, position: int) -> tuple[Any, int]:
        return read_picture(self._files[position]), self._labels[position]


def _files(folder: Path) -> list[Path]:
    """The pictures in a folder and all below, sorted; links are followed, each folder once."""
    known, seen, files = suffixes(), set(), []
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(item for item in folders if not item.startswith("."))
        files += [
            Path(place, item)
            for item in names
            if not item.startswith(".") and Path(item).suffix.lower() in known
        ]
    return sorted(files, key=lambda file: file.parts)


class _SavedDataset:
    def __init__(self, folder: Path, split: str | None = None) -> None:
        try:
            import datasets
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"--data {folder} was written by datasets, which is not there: pip install datasets"
            ) from error
        self._folder = folder
        try:
            data: Any = datasets.load_from_disk(str(folder))
        except Exception as error:
            raise UsageError(f"--data {folder} cannot be read as a saved dataset: {short(error)}") from error
        if isinstance(data, datasets.DatasetDict):
            given = f"has no split {split!r}" if split else "has several splits"
            raise UsageError(
                f"--data {folder} {given}; name one of {', '.join(f'{folder}/{part}' for part in data)}"
            )
        kinds = {column: type(feature).__name__ for column, feature in data.features.items()}
        pictures = [column for column, kind in kinds.items() if kind == "Image"]
        classes = [column for column, kind in kinds.items() if kind == "ClassLabel"]
        if not pictures:
            raise UsageError(
                f"--data {folder} has no column of images, only"
                f" {', '.join(f'{column} ({kind})' for column, kind in kinds.items())}; cast one to"
                " datasets.Image and save it again"
            )
        self._image, self._label = pictures[0], classes[0] if classes else None
        self.class_names = list(data.features[self._label].names) if self._label else None
        # Decoded here, where a broken picture has a reason and odd modes are known.
        self._data = data.cast_column(self._image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self._data)

    def name(self, position: int) -> str:
        return f"{self._folder}[{position}]"

    def fingerprint(self) -> str:
        return str(self._data._fingerprint)

    def read(self, position: int) -> tuple[Any, int]:
        row = self._data[position]
        stored = row[self._image] or {}
        content = stored.get("bytes") or stored.get("path")
        if not content:
            raise UnreadableError("there is no picture in this row")
        label = row[self._label] if self._label else None
        return read_picture(content), -1 if label is None else int(label)


class _Made:
    """A dataset of the user's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._data = call_factory(load_factory(name, "--data"), name, "--data")
        self.class_names: list[str] | None = None
        if not hasattr(self._data, "__len__") or not hasattr(self._data, "__getitem__"):
            raise UsageError(
                f"--data {name!r} returned a {type(self._data).__name__}; it must return a dataset with"
                " __len__ and __getitem__"
            )
        classes = getattr(self._data, "classes", None)
        if isinstance(classes, Sequence) and not isinstance(classes, str):
            self.class_names = [str(item) for item in classes]

    def __len__(self) -> int:
        return len(self._data)

    def name(self, position: int) -> str:
        return f"{self._name}[{position}]"

    def fingerprint(self) -> str:
        return str(len(self))

    def read(self, position: int) -> tuple[Any, int]:
        try:
            return _picture_and_label(self._data[position])
        except UnreadableError:
            raise
        except Exception as error:
            raise UnreadableError(short(error)) from error


def _picture_and_label(item: Any) -> tuple[Any, int]:
    label: Any = None
    if isinstance(item, dict):
        label = next((item[key] for key in _LABEL_KEYS if key in item), None)
        item = next((item[key] for key in _IMAGE_KEYS if key in item), item)
    elif isinstance(item, tuple | list) and item:
        label = item[1] if len(item) > 1 else None
        item = item[0]
    if isinstance(item, pillow().Image):
        item = to_rgb(item)
    elif not isinstance(item, Tensor):
        raise UnreadableError(
            f"the item is a {type(item).__name__}; it must be a tensor, a picture of PIL, (image, label) or a"
            " dict with 'image'"
        )
    return item, int(label) if isinstance(label, int) or getattr(label, "ndim", None) == 0 else -1
