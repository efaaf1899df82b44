"""Reading pictures: every mode to RGB as it looks, and a reason where a file cannot be read."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from torchmetrics_cam.cli.names import short


class UnreadableError(Exception):
    """A picture cannot be read; the message says why."""


def pillow() -> Any:
    """The module ``PIL.Image`` with all its formats.

    Raises:
        ModuleNotFoundError: with the pip line.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('Pillow is not there: pip install "torchmetrics-cam[cli]"') from error
    return Image


def suffixes() -> frozenset[str]:
    """The suffixes, in lower case, of the formats that PIL opens as pictures."""
    image = pillow()
    image.init()
    readable = {suffix for suffix, kind in image.registered_extensions().items() if kind in image.OPEN}
    # They hold documents and films; PIL opens them through programs that are seldom there.
    return frozenset(readable - {".pdf", ".eps", ".ps", ".mpg", ".mpeg"})


def read_picture(source: str | Path | bytes) -> Any:
    """A picture in RGB, turned as its EXIF orientation says; of an animation the first frame.

    What is transparent is laid on white. 16-bit gray is scaled to 8 bits.

    Args:
        source: a file, or what is in it.

    Raises:
        UnreadableError: if it cannot be read.
    """
    image = pillow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", image.DecompressionBombWarning)
        try:
            with image.open(BytesIO(source) if isinstance(source, bytes) else source) as opened:
                opened.load()
                return to_rgb(opened)
        except (image.DecompressionBombWarning, image.DecompressionBombError) as error:
            raise UnreadableError(
                f"it has more than the {image.MAX_IMAGE_PIXELS:,} pixels that PIL takes; make it smaller"
            ) from error
        except image.UnidentifiedImageError as error:
            raise UnreadableError("it is no picture in a format that PIL knows") from error
        except Exception as error:  # What a damaged file raises depends on the byte that is wrong.
            raise UnreadableError(short(error)) from error


def to_rgb(picture: Any) -> Any:
    """A picture of any mode in RGB; see `read_picture`."""
    from PIL import ImageOps

    image = pillow()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I;16") or picture.mode in ("I", "F"):
        return image.fromarray(_gray(np.asarray(picture), picture.mode)).convert("RGB")
    if picture.has_transparency_data or picture.mode in ("La", "RGBa"):
        seen = picture.convert("RGBA")
        white = image.new("RGBA", seen.size, (255, 255, 255, 255))
        return image.alpha_composite(white, seen).convert("RGB")
    return picture.convert("RGB")


def _gray(values: Any, mode: str) -> Any:
    """Gray values of more than 8 bits as 8 bits."""
    values = np.nan_to_num(values.astype(np.float64))
    if mode == "F" and values.max() <= 1:
        scale = 255.0
    else:
        # PIL reads some 16-bit files, and some 8-bit ones, as 32-bit integers.
        scale = 1 / 257 if mode.startswith("I;16") or values.max() > 255 else 1.0
    return np.clip(np.rint(values * scale), 0, 255).astype(np.uint8)
