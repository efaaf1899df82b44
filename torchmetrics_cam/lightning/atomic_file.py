"""Files that are whole or not there."""

import os
from pathlib import Path


def write_whole(file: Path, content: bytes | memoryview) -> None:
    """Write a file anew. Where that fails, or the process is killed meanwhile, the old one stays.

    Args:
        file: the file; the new content is written beside it first.
        content: all of it.
    """
    unfinished = file.with_suffix(f".{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
