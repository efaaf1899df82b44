"""Where images come from (a folder, a saved dataset or a function), and how they are decoded."""

import os
import stat
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from torchmetrics_cam.cli.digests import content_digest, pixel_digest
from torchmetrics_cam.cli.errors import UnreadableError, UsageError, import_library, summary, usage_error
from torchmetrics_cam.cli.listing import list_folder
from torchmetrics_cam.cli.names import call_factory
from torchmetrics_cam.cli.pixels import check_colors, pixel_range, to_8_bits
from torchmetrics_cam.mosaic import image_and_label


def find_origin(name: str) -> "Origin":
    """Return the images of a folder, a saved dataset or a function.

    Raises:
        UsageError: if the name is none of these.
        ModuleNotFoundError: if a library is not installed; the message contains the pip command.
    """
    path = Path(name)
    with usage_error(f"--data {name!r} is not a path"):
        is_folder, exists = path.is_dir(), path.exists()
    if is_folder and not os.access(path, os.R_OK | os.X_OK):
        raise UsageError(f"--data {name} cannot be read; change its permissions")
    if is_folder and ((path / "dataset_dict.json").is_file() or (path / "state.json").is_file()):
        return _SavedDataset(path)
    if is_folder:
        return _Folder(path)
    if exists:
        raise UsageError(f"--data {name} is a file; give the folder that contains the images")
    # A split that the saved dataset does not have.
    if (path.parent / "dataset_dict.json").is_file():
        return _SavedDataset(path.parent, split=path.name)
    if ":" in name and os.sep not in name:
        return _FactoryDataset(name)
    raise UsageError(
        f"--data {name} does not exist; give a folder of images, a dataset that save_to_disk has written, or"
        " package.module:factory"
    )


class _Folder:
    """A folder of image files; the first level of subfolders are the classes."""

    class_names: list[str] | None = None
    columns: Sequence[str] = ()
    reads_labels_alone = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        content = list_folder(folder)
        self._files, self.unused = content.images, content.unused
        if not self._files:
            others = ""
            if self.unused:
                number = f"{len(self.unused)} other file{'s' if len(self.unused) > 1 else ''}"
                file, reason = self.unused[0]
                others = f" but {number}, such as {file} ({reason})"
            raise UsageError(
                f"--data {folder} contains no image{others}; images are files with suffixes such as .jpg,"
                " .png, .webp, .tif, .bmp and .gif"
            )
        self._labels: list[int | None] = [None] * len(self._files)
        parents = [file.relative_to(folder).parts[:-1] for file in self._files]
        # An image beside the subfolders has no class, so then the subfolders are not classes.
        if all(parents):
            self.class_names = sorted({parent[0] for parent in parents})
            index_of = {name: index for index, name in enumerate(self.class_names)}
            self._labels = [index_of[parent[0]] for parent in parents]

    def __len__(self) -> int:
        return len(self._files)

    def name(self, position: int) -> str:
        return str(self._files[position])

    def short_names(self, position: int) -> list[str]:
        """Return the name of an image in the folder, and without subfolders."""
        file = self._files[position]
        return [str(file.relative_to(self._folder)), file.name]

    def digest(self, position: int) -> str:
        return content_digest(self._files[position])

    def fingerprint(self) -> str:
        checksum = 0
        for file in self._files:
            try:
                status = file.stat()
                state = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:
                state = "unreadable"
            checksum = zlib.crc32(os.fsencode(file) + state.encode(), checksum)
        return f"{checksum:08x}"

    def read(self, position: int) -> tuple[Any, int | None]:
        return read_image(self._files[position]), self._labels[position]

    def labels(self, positions: Sequence[int]) -> list[int | None]:
        return [self._labels[position] for position in positions]

    def pixel_range(self, position: int) -> str | None:
        return _range_of(self._files[position])


class _Rows:
    """A dataset whose images are named by their position.

    Args:
        name: the name of the dataset.
        data: the dataset.

    Attributes:
        columns: the columns that divide images into groups.
        reads_labels_alone: whether labels are read without the images.
    """

    unused: Sequence[tuple[Path, str]] = ()
    columns: Sequence[str] = ()
    reads_labels_alone = True

    def __init__(self, name: str, data: Any) -> None:
        self._name = name
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def name(self, position: int) -> str:
        return f"{self._name}[{position}]"

    def short_names(self, position: int) -> list[str]:
        """Return other names of an image; there are none."""
        return []


class _SavedDataset(_Rows):
    """A dataset of Hugging Face's datasets, written by ``save_to_disk``."""

    def __init__(self, folder: Path, split: str | None = None) -> None:
        datasets = import_library("datasets", f"--data {folder}", "datasets")
        with usage_error(f"--data {folder} cannot be read as a saved dataset"):
            data = datasets.load_from_disk(str(folder))
        if isinstance(data, datasets.DatasetDict):
            problem = f"has no split {split!r}" if split else "has several splits"
            splits = ", ".join(f"{folder}/{name}" for name in data)
            raise UsageError(f"--data {folder} {problem}; name one of {splits}")
        types = {column: type(feature).__name__ for column, feature in data.features.items()}
        image_columns = [column for column, kind in types.items() if kind == "Image"]
        label_columns = [column for column, kind in types.items() if kind == "ClassLabel"]
        if not image_columns:
            columns = ", ".join(f"{column} ({kind})" for column, kind in types.items())
            raise UsageError(
                f"--data {folder} has no column of images, only {columns}; cast one to datasets.Image and"
                " save it again"
            )
        self._image = image_columns[0]
        self.columns = [column for column, kind in types.items() if kind in ("Value", "ClassLabel")]
        self._label = label_columns[0] if label_columns else None
        self.class_names = list(data.features[self._label].names) if self._label else None
        # Decoded by `read_image`, which reports why an image is broken and converts every mode.
        super().__init__(str(folder), data.cast_column(self._image, datasets.Image(decode=False)))

    def digest(self, position: int) -> str:
        return content_digest(self._content(self._data[position]) or b"")

    def fingerprint(self) -> str:
        return str(self._data._fingerprint)

    def read(self, position: int) -> tuple[Any, int | None]:
        row = self._data[position]
        content = self._content(row)
        if not content:
            raise UnreadableError("this row has no image")
        return read_image(content), row[self._label] if self._label else None

    def labels(self, positions: Sequence[int]) -> list[int | None]:
        if self._label is None:
            return [None] * len(positions)
        return self._column(self._label, positions)

    def column(self, name: str, positions: Sequence[int]) -> list[str | None]:
        """Return the values of a column as texts, of classes their names; None for an empty one."""
        values = self._column(name, positions)
        names = getattr(self._data.features[name], "names", None)
        if names is not None:
            values = [None if value is None or value < 0 else names[value] for value in values]
        return [None if value is None else str(value).strip() or None for value in values]

    def _column(self, name: str, positions: Sequence[int]) -> list[Any]:
        # A column is read without the images.
        return self._data.select_columns(name)[list(positions)][name]  # type: ignore[no-any-return]

    def pixel_range(self, position: int) -> str | None:
        content = self._content(self._data[position])
        return _range_of(content) if content else None

    def _content(self, row: dict[str, Any]) -> bytes | str | None:
        stored = row[self._image] or {}
        return stored.get("bytes") or stored.get("path")


class _FactoryDataset(_Rows):
    """A dataset that the user's function returns."""

    reads_labels_alone = False

    def __init__(self, name: str) -> None:
        super().__init__(name, call_factory(name, "--data"))
        self._ranges: dict[int, str | None] = {}
        self._digests: dict[int, str] = {}
        if not hasattr(self._data, "__len__") or not hasattr(self._data, "__getitem__"):
            raise UsageError(
                f"--data {name!r} returned a {type(self._data).__name__}; it must return a dataset with"
                " __len__ and __getitem__"
            )
        # torchvision's ImageNet has the WordNet ids beside its classes, which are tuples of synonyms.
        classes = getattr(self._data, "wnids", getattr(self._data, "classes", None))
        self.class_names: list[str] | None = None
        if isinstance(classes, Sequence) and not isinstance(classes, str):
            self.class_names = [str(item) for item in classes]

    def digest(self, position: int) -> str:
        if position not in self._digests:
            try:
                self.read(position)
            except UnreadableError:
                return ""
        return self._digests[position]

    def fingerprint(self) -> str:
        return str(len(self))

    def read(self, position: int) -> tuple[Any, Any]:
        try:
            image, label = _image_and_label(self._data[position])
            # Kept, because the data may be slow to read, or random. A worker's are lost with it.
            self._digests[position] = pixel_digest(image)
            if not isinstance(image, Tensor):
                stated = pixel_range(image)
                self._ranges[position] = None if stated is None else stated.text
                image = _to_rgb(image)
            return image, label
        except UnreadableError:
            raise
        except Exception as error:
            raise UnreadableError(summary(error)) from error

    def labels(self, positions: Sequence[int]) -> list[Any]:
        """Read the images for their labels, which may be transformed; None where an image cannot be read."""
        labels = []
        for position in positions:
            try:
                labels.append(self.read(position)[1])
            except UnreadableError:
                labels.append(None)
        return labels

    def pixel_range(self, position: int) -> str | None:
        """Return the range of an image that was read in this process; to read it again may be expensive."""
        return self._ranges.get(position)


def _image_and_label(item: Any) -> tuple[Any, Any]:
    """Return the tensor or image of PIL of an item of the user's dataset, and its label or None."""
    image, label = image_and_label(item)
    if not isinstance(image, Tensor | _pillow().Image):
        raise UnreadableError(
            f"the item is a {type(image).__name__}; it must be a tensor, an image of PIL, (image, label) or a"
            " dict with 'image'"
        )
    return image, label


Origin = _Folder | _SavedDataset | _FactoryDataset


def _pillow() -> Any:
    """Return the module ``PIL.Image``.

    Raises:
        ModuleNotFoundError: if Pillow is not installed; the message contains the pip command.
    """
    return import_library("PIL.Image", "reading images", "torchmetrics-cam[cli]")


def read_image(source: str | Path | bytes) -> Any:
    """Read an image as RGB with its EXIF orientation applied; of an animation the first frame.

    Args:
        source: a file, or its content.

    Raises:
        UnreadableError: if it cannot be read.
    """
    with _opened(source) as image:
        return _to_rgb(image)


def _range_of(source: str | Path | bytes) -> str | None:
    """Return the range of the pixel values of a file in words; None if it has 8 bits or is no image."""
    try:
        with _opened(source) as image:
            found = pixel_range(image)
    except UnreadableError:
        return None
    return None if found is None else found.text


@contextmanager
def _opened(source: str | Path | bytes) -> Iterator[Any]:
    """Open an image of PIL; errors, also those during the context, become an `UnreadableError`."""
    image = _pillow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", image.DecompressionBombWarning)
        try:
            if not isinstance(source, bytes) and not stat.S_ISREG(os.stat(source).st_mode):
                # To open a pipe would wait for somebody who writes to it.
                raise UnreadableError("it is not a regular file but a pipe, a socket or a device")
            with image.open(BytesIO(source) if isinstance(source, bytes) else source) as opened:
                yield opened
        except (image.DecompressionBombWarning, image.DecompressionBombError) as error:
            raise UnreadableError(
                f"it has more than the {image.MAX_IMAGE_PIXELS:,} pixels that PIL accepts; resize it"
            ) from error
        except image.UnidentifiedImageError as error:
            raise UnreadableError(
                "it is not an image in a format that PIL reads; convert it, for example to PNG"
            ) from error
        except UnreadableError:
            raise
        # A damaged file raises different errors, depending on which byte is wrong.
        except Exception as error:
            raise UnreadableError(summary(error)) from error


def _to_rgb(opened: Any) -> Any:
    """Convert an image of PIL of any mode to RGB, as viewers show it.

    Transparent pixels are composed with white. Gray values of more than 8 bits are scaled to 8 bits.

    Raises:
        UnreadableError: if the range of such values is not known.
    """
    from PIL import ImageOps

    image = _pillow()
    # Before the image is loaded, because PIL then forgets how the file stores it.
    stated = pixel_range(opened)
    opened.load()
    oriented = ImageOps.exif_transpose(opened)
    if stated is not None and stated.colors:
        check_colors(oriented)
    elif stated is not None:
        return image.fromarray(to_8_bits(np.asarray(oriented), oriented.mode, stated)).convert("RGB")
    if oriented.has_transparency_data or oriented.mode in ("La", "RGBa"):
        transparent = oriented.convert("RGBA")
        white = image.new("RGBA", transparent.size, (255, 255, 255, 255))
        return image.alpha_composite(white, transparent).convert("RGB")
    return oriented.convert("RGB")
