"""Digests of images, by which the images of two runs are paired."""

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor

from torchmetrics_cam.model.weights import tensor_bytes


def content_digest(source: str | Path | bytes) -> str:
    """Return the SHA-256 of an image file, or of its content; an empty string if it cannot be read."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    try:
        with Path(source).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def text_digest(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8."""
    return content_digest(text.encode())


def pixel_digest(image: Any) -> str:
    """Return the SHA-256 of the pixels of a tensor or an image of PIL, with their type and shape."""
    if isinstance(image, Tensor):
        kind, content = f"{image.dtype} {tuple(image.shape)}", tensor_bytes(image)
    else:
        kind, content = f"{image.mode} {image.size}", image.tobytes()
    checksum = hashlib.sha256(kind.encode())
    checksum.update(content)
    return checksum.hexdigest()
