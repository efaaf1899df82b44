"""The output folder of a run: which of its files a command has written, and may replace or remove."""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.report.write import CSV_COLUMNS, GENERATOR

SAMPLE_COLUMNS = ("index", "file", "sha256", "class_idx", "score")
RESULT_FILES = ("results.csv", "samples.csv", "report.html", "results.json")
DEMO_FIGURE = "explanations.png"
# Text at the start of each file, by which a command recognizes a file that it has written.
_SIGNATURES = {
    "results.json": f'"written_by": "{GENERATOR}',
    "settings.json": f'"written_by": "{GENERATOR}',
    "results.csv": ",".join(CSV_COLUMNS),
    "samples.csv": ",".join(SAMPLE_COLUMNS),
    "report.html": f'<meta name="generator" content="{GENERATOR}',
    DEMO_FIGURE: f"Software\0{GENERATOR}",
}
_SIGNATURE_BYTES = 1000
# The second form is a temporary file of an atomic write.
_PARTIAL_FILES = re.compile(r"(settings|rank-\d+)\.(json|pt|\d+)")
# Errors that only writing causes; other system errors may have any cause.
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def prepare_folder(name: str, files: Iterable[str] = RESULT_FILES) -> Path:
    """Create the output folder and check that the results can be written there, before the evaluation starts.

    Args:
        name: the value of ``--out``.
        files: the names of the files that the run will write.

    Returns:
        The output folder.

    Raises:
        UsageError: if the name is empty, nothing can be written there, or a file would be lost.
    """
    if not name.strip():
        raise UsageError("--out is empty; name a directory for the results, as in --out results")
    out = Path(name)
    with write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()
    check_files(out, files)
    return out


def check_files(out: Path, files: Iterable[str]) -> None:
    """Check that the existing files with these names are results of an earlier run.

    Raises:
        UsageError: if one is not.
    """
    for name in files:
        if os.path.lexists(out / name) and not _is_own(out / name):
            raise UsageError(
                f"--out {out} contains {name}, which no earlier run has written, and the results would"
                " replace it; move it away, or choose another directory"
            )


def check_partial(partial: Path) -> None:
    """Check that the folder of the partial result holds one, or no files at all.

    Raises:
        UsageError: if it is the user's.
    """
    if not os.path.lexists(partial) or _is_own(partial / "settings.json"):
        return
    try:
        # Systems add hidden files to folders, such as .DS_Store.
        names = sorted(file.name for file in partial.iterdir() if not file.name.startswith("."))
    except OSError as error:
        raise UsageError(_not_own(partial, error.strerror or "it cannot be read")) from error
    # An atomic write that was interrupted leaves its temporary file.
    foreign = [name for name in names if not re.fullmatch(r"settings\.\d+", name)]
    if foreign:
        raise UsageError(_not_own(partial, f"it contains {foreign[0]} and no settings.json of a run"))


def remove_partial_files(partial: Path) -> None:
    """Remove the files of a partial result; keep all other files of the folder.

    Raises:
        UsageError: if it is the user's folder.
    """
    check_partial(partial)
    if not partial.is_dir():
        return
    files = [file for file in partial.iterdir() if _PARTIAL_FILES.fullmatch(file.name) and file.is_file()]
    # The settings last, because the folder is recognized by them.
    for file in sorted(files, key=lambda file: (file.name == "settings.json", file.name)):
        file.unlink(missing_ok=True)


@contextmanager
def write_errors(out: Path, *, only_certain: bool = False) -> Iterator[None]:
    """Report system errors during writing as errors of ``--out``.

    Args:
        out: the output folder.
        only_certain: whether to report only errors that nothing but writing causes, such as a full disk.

    Raises:
        UsageError: if the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if only_certain and error.errno not in _WRITE_ERRORS:
            raise
        disk_is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        free_space = "free some space and run the same command to resume, or " if disk_is_full else ""
        raise UsageError(
            f"--out {out} cannot be written: {error.strerror}; {free_space}choose another directory"
        ) from error


def _is_own(file: Path) -> bool:
    """Return whether a command has written a file; an empty file has no content that could be lost."""
    try:
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            start = opened.read(_SIGNATURE_BYTES)
    except OSError:
        return False
    is_empty_result = not start and file.name != "settings.json"
    return is_empty_result or _SIGNATURES[file.name].encode() in start


def _not_own(partial: Path, reason: str) -> str:
    return (
        f"{partial} is not the partial result of an interrupted run ({reason}), and the command needs this"
        " name for its own; move it away, or choose another directory with --out"
    )
