"""Errors that the command reports, and the text of their messages."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from torchmetrics_cam.report.text import printable


class UsageError(Exception):
    """Arguments or data that cannot be used; the message says what was given, what is needed, what to do."""


class UnmatchedClassesError(UsageError):
    """Classes of a dataset that do not belong to one output of the network each.

    Args:
        message: for the option that needs them.
        reason: why they do not, and what to do, without this option.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class GateError(Exception):
    """A gate that failed; the arguments are sentences, one for each violation."""


class UnreadableError(Exception):
    """An image that cannot be read; the message gives the reason."""


@contextmanager
def usage_error(message: str, what_to_do: str = "") -> Iterator[None]:
    """Report an error of other code as a `UsageError`: the message, the error and what to do.

    Running out of memory is left alone, as are errors that are reported already.
    """
    try:
        yield
    except (UsageError, MemoryError, torch.OutOfMemoryError):
        raise
    # Code of users and of other libraries may raise anything, or end the process.
    except (Exception, SystemExit) as error:
        raise UsageError(f"{message} ({summary(error)}){what_to_do}") from error


def summary(error: BaseException, *, limit: int = 200) -> str:
    """Return the type and the first line of an error, printable and cut at `limit` characters."""
    lines = message_of(error).splitlines()
    text = printable(f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def message_of(error: BaseException) -> str:
    """Return the message of an error without the traceback that a DataLoader worker puts before it."""
    text = str(error).strip()
    if text.startswith("Caught ") and "Original Traceback" in text:
        # The last line of the traceback that is not indented is "TypeOfError: message".
        last = [line for line in text.splitlines() if line and not line.startswith(" ")][-1]
        return last.partition(": ")[2] or last
    return text


def import_library(module: str, needed_by: str, requirement: str) -> Any:
    """Import a module of an optional library.

    Args:
        module: the name of the module.
        needed_by: what needs it, the first words of the message.
        requirement: the argument of ``pip install`` that installs it.

    Raises:
        ModuleNotFoundError: if the library is not installed; the message contains the pip command.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        message = f'{needed_by} needs {library}: pip install "{requirement}"'
        raise ModuleNotFoundError(message, name=library) from error
