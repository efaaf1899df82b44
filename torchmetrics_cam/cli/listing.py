"""The images in a folder, and the other files in it."""

import os
from dataclasses import dataclass
from pathlib import Path

from torchmetrics_cam.cli.errors import import_library

# Documents and films, for which Pillow needs programs that are seldom installed.
_DOCUMENTS = {".pdf", ".eps", ".ps", ".mpg", ".mpeg"}


@dataclass(frozen=True)
class FolderContent:
    """The files in a folder and its subfolders.

    Args:
        images: the images, sorted.
        unused: every other file, and every folder whose files are not used, with the reason.
    """

    images: list[Path]
    unused: list[tuple[Path, str]]


def list_folder(folder: Path) -> FolderContent:
    """List a folder and its subfolders; links to folders are followed, and each folder is listed once."""
    suffixes = _image_suffixes()
    images: list[Path] = []
    unused: list[tuple[Path, str]] = []

    def note_error(error: OSError) -> None:
        unused.append((Path(error.filename), f"the folder cannot be read: {error.strerror}"))

    visited = set()
    starts = [folder]
    # Links are followed last: a link to a folder of another class must not take the images of that class.
    for start in starts:
        for parent, subfolders, names in os.walk(start, onerror=note_error):
            real_path = os.path.realpath(parent)
            if real_path in visited:
                unused.append((Path(parent), "its files are listed under another path"))
                subfolders.clear()
                continue
            visited.add(real_path)
            hidden = {name for name in (*subfolders, *names) if name.startswith(".")}
            unused += [(Path(parent, name), "its name starts with a dot") for name in hidden]
            subfolders[:] = sorted(set(subfolders) - hidden)
            starts += [path for name in subfolders if (path := Path(parent, name)).is_symlink()]
            for path in (Path(parent, name) for name in names if name not in hidden):
                suffix = path.suffix
                if suffix.lower() in suffixes:
                    images.append(path)
                else:
                    # The representation of the suffix has no control characters.
                    reason = f"PIL does not read {suffix!r} files" if suffix else "its name has no suffix"
                    unused.append((path, reason))
    return FolderContent(sorted(images, key=lambda file: file.parts), sorted(unused))


def _image_suffixes() -> frozenset[str]:
    """Return the suffixes, in lower case, of the images that PIL reads."""
    image = import_library("PIL.Image", "reading images", "torchmetrics-cam[cli]")
    readable = {suffix for suffix, kind in image.registered_extensions().items() if kind in image.OPEN}
    return frozenset(readable - _DOCUMENTS)
