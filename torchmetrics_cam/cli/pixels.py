"""The range of pixel values of more than 8 bits: from the file, or assumed where the values allow it."""

import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from torchmetrics_cam.cli.errors import UnreadableError

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
# For unsigned integers, and for every other type.
_LOWEST, _HIGHEST = (280, 340), (281, 341)
# The ends of the ranges from 0 that are assumed, and the value that the brightest pixel must exceed: below it
# the image would be almost black, which rather means that its values have another range.
_ASSUMED = {1: 0, 255: 255 / 16, 65535: 65535 / 16}
_WHAT_TO_DO = (
    "write their range into the TIFF tags MinSampleValue and MaxSampleValue, convert the image to 8 bits, or"
    " return images from a dataset of your own (package.module:factory)"
)


@dataclass(frozen=True)
class PixelRange:
    """The range of the values of an image of more than 8 bits, as far as its file states it.

    Args:
        text: the range in words; None if the format defines it.
        low: the value of black.
        high: the value of white; None if the file does not state it.
        significant_bits: the number of bits that the file states instead; None if it does not.
        inverted: whether low values are white.
        colors: whether the image has several channels, of which PIL reads the upper 8 of 16 bits.
    """

    text: str | None
    low: float = 0
    high: float | None = None
    significant_bits: int | None = None
    inverted: bool = False
    colors: bool = False


def pixel_range(image: Any) -> PixelRange | None:
    """Return the range of the values of an image of PIL that is not loaded yet; None if it has 8 bits."""
    if not is_deep(image.mode):
        # PIL reads these colors as 8 bits, and only the mode of the file tells that there were 16.
        tiles = getattr(image, "tile", ())
        if tiles and re.search(r";16[BLN]\b", str(tiles[0][3])):
            return PixelRange("colors of 16 bits, assumed to be 0 to 65535", colors=True)
        return None
    if image.format in ("PPM", "JPEG2000") and image.mode != "F":
        return PixelRange(None, high=65535)
    if image.format == "PNG" and (bits := _significant_bits(image)):
        text = f"{bits} significant bits of 16, as the file states"
        return PixelRange(text, significant_bits=bits)
    tags = image.tag_v2 if image.format == "TIFF" else {}
    inverted = tags.get(_PHOTOMETRIC) == 0
    lowest, highest = (
        next((tags[tag][0] for tag in names if tag in tags), None) for names in (_LOWEST, _HIGHEST)
    )
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    if highest is None and bits < 16:
        highest = 2**bits - 1
    if highest is not None:
        low, high = float(lowest or 0), float(highest)
        return PixelRange(f"{low:g} to {high:g}, as the file states", low, high, inverted=inverted)
    *others, last = _assumed(image.mode)
    ends = f"{', '.join(map(str, others))} or {last} (the first that contains them)" if others else last
    return PixelRange(f"assumed to be 0 to {ends}, because the file states no range", inverted=inverted)


def is_deep(mode: str) -> bool:
    """Return whether a mode of PIL has gray values of more than 8 bits."""
    return mode in ("I", "F") or mode.startswith("I;16")


def to_8_bits(values: Any, mode: str, stated: PixelRange) -> Any:
    """Scale gray values to 8 bits; values that are not a number become black.

    Args:
        values: an array of the values.
        mode: the mode of the image in PIL.
        stated: the range, as `pixel_range` returned it.

    Raises:
        UnreadableError: if the range is not known, or does not contain the values.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        raise UnreadableError("none of its pixel values is finite")
    lowest, highest = finite.min(), finite.max()
    low, high = stated.low, stated.high
    if stated.significant_bits:
        high = _end_of_significant(values, stated.significant_bits)
    elif high is None:
        ends = (end for end, dark in _assumed(mode).items() if (dark < highest <= end) or highest == 0)
        high = next(ends, None) if lowest >= 0 else None
        if high is None:
            raise UnreadableError(
                f"its pixel values are {lowest:g} to {highest:g}, and the file does not state which value is"
                f" white; {_WHAT_TO_DO}"
            )
    if not (low <= lowest and highest <= high and low < high):
        raise UnreadableError(
            f"the file states pixel values of {low:g} to {high:g}, and they are {lowest:g} to {highest:g};"
            f" {_WHAT_TO_DO}"
        )
    scaled = np.nan_to_num(
        (values.astype(np.float64) - low) * (255 / (high - low)), nan=0, posinf=255, neginf=0
    )
    gray = np.rint(scaled).astype(np.uint8)
    return 255 - gray if stated.inverted else gray


def check_colors(image: Any) -> None:
    """Refuse the upper 8 of 16 bits of an image if hardly any of them is used.

    Raises:
        UnreadableError: if no color exceeds 1/16 of the range, and the image is not black.
    """
    extrema = zip(image.getbands(), image.getextrema(), strict=True)
    brightest = max(highest for band, (_, highest) in extrema if band not in ("A", "a"))
    if 0 < brightest < 16:
        raise UnreadableError(
            "its 16-bit colors use less than 1/16 of the range, so they may have fewer than 16 bits; convert"
            " the image to 8 bits, or return images from a dataset of your own (package.module:factory)"
        )


def _assumed(mode: str) -> dict[int, float]:
    first = {"F": 1, "I": 255}.get(mode, 65535)
    return {end: dark for end, dark in _ASSUMED.items() if end >= first}


def _significant_bits(image: Any) -> int | None:
    """Return the number of significant bits in the chunk sBIT of a PNG file, which PIL does not read."""
    if getattr(image, "fp", None) is None:
        return None
    position = image.fp.tell()
    image.fp.seek(8)
    try:
        while len(header := image.fp.read(8)) == 8:
            length, name = struct.unpack(">I4s", header)
            if name == b"sBIT":
                return int(image.fp.read(1)[0])
            if name == b"IDAT":
                return None
            image.fp.seek(length + 4, 1)
        return None
    finally:
        image.fp.seek(position)


def _end_of_significant(values: Any, bits: int) -> int:
    """Return the value of white in a 16-bit PNG file that states fewer significant bits.

    The specification scales the values to 16 bits, and then the low bits of dark values are 0, or 1 by
    rounding. Some programs write the values as they are.
    """
    end: int = 2**bits - 1
    low_bits = values.astype(np.int64) & (2 ** (16 - bits) - 1)
    return end if values.max() <= end and low_bits.max() > 1 else 65535
