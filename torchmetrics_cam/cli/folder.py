"""``--out``: the folder of what is written, and files that are all there or none."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.results import write_json, write_samples
from torchmetrics_cam.metrics.comparison.metric import CAMComparison

# What only writing meets; other errors of the system may come from anything that a run does.
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def prepare_folder(out: Path) -> None:
    """Make the folder of what is written, before anybody waits for what has no place.

    Raises:
        UsageError: if nothing can be written there.
    """
    with written_to(out):
        out.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=out).close()


def write_files(
    comparison: CAMComparison,
    results: dict[str, Any],
    pictures: Any,
    out: Path,
    name_of: Callable[[int], str],
) -> None:
    """Write ``results.json``, ``results.csv``, ``samples.csv`` and ``report.html``.

    They replace those of a run before at the end, so that no two runs are mixed.

    Raises:
        UsageError: if one of them cannot be written.
    """
    from torchmetrics_cam.report import write_csv, write_report

    with written_to(out), TemporaryDirectory(prefix="unfinished-", dir=out) as folder:
        unfinished = Path(folder)
        write_json(results, unfinished / "results.json")
        write_csv(results, unfinished / "results.csv")
        write_samples(comparison, name_of, unfinished / "samples.csv")
        write_report(results, unfinished / "report.html", gallery=pictures)
        for file in list(unfinished.iterdir()):
            file.replace(out / file.name)


@contextmanager
def written_to(out: Path, *, among_others: bool = False) -> Iterator[None]:
    """What the system says while something is written becomes a sentence.

    Args:
        out: the folder.
        among_others: leave errors alone that may come from something else than writing.

    Raises:
        UsageError: if it cannot be written.
    """
    try:
        yield
    except OSError as error:
        if among_others and error.errno not in _OF_WRITING:
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        way_out = "make room, and the same command goes on with what is kept, or " if full else ""
        raise UsageError(
            f"--out {out} cannot be written: {error.strerror}; {way_out}choose another directory"
        ) from error
