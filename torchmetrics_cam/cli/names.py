"""What every option that names something has in common: nearest names, and ``package.module:factory``."""

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

from torchmetrics_cam.cli.errors import UsageError


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> str:
    """The known names that are most like a name, quoted; the first ones where none is."""
    by_lower = {item.lower(): item for item in known}
    found = get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5) or list(by_lower)[:count]
    return ", ".join(repr(by_lower[item]) for item in found)


def short(error: BaseException, *, limit: int = 200) -> str:
    """The first line of an error with its kind, cut at `limit` characters."""
    lines = plain(error).splitlines()
    text = f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def plain(error: BaseException) -> str:
    """What an error says, without the traceback that torch puts before that of a process that loads data."""
    text = str(error).strip()
    if text.startswith("Caught ") and "Original Traceback" in text:
        # The traceback ends with a line that begins with the kind of the error, and no blank before it.
        last = [line for line in text.splitlines() if line and not line.startswith(" ")][-1]
        return last.partition(": ")[2] or last
    return text


def load_factory(name: str, option: str) -> Callable[..., Any]:
    """The callable behind ``package.module:factory``; modules of the working directory are found too.

    Args:
        name: the module and the name in it, with a colon between.
        option: the option that it was given to, for the message.

    Raises:
        UsageError: if the module cannot be imported, or holds no such callable.
    """
    module_name, _, attribute = name.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    if not module_name or not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(
            f"{option} {name!r} is not of the form package.module:factory, as in my_project.models:build"
        )
    try:
        found: Any = importlib.import_module(module_name)
    # A module of the user's runs any code, and may end in any way.
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "") in _parents(module_name):
            raise UsageError(
                f"{option} {name!r}: there is no module {error.name!r} on Python's path or in {here}; run the"
                " command from the folder that holds it, or set PYTHONPATH"
            ) from error
        raise UsageError(
            f"{option} {name!r}: importing {module_name} failed with {short(error)}; mend that first"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = [item for item in vars(found) if not item.startswith("_")]
            raise UsageError(
                f"{option} {name!r}: {module_name} has no {attribute!r}; the nearest names in it are"
                f" {nearest(attribute, public) or 'none'}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(
            f"{option} {name!r} is a {type(found).__name__}, which cannot be called; name a function or class"
        )
    return found  # type: ignore[no-any-return]


def call_factory(factory: Callable[..., Any], name: str, option: str, *arguments: Any) -> Any:
    """What the factory returns.

    Raises:
        UsageError: if it raises anything.
    """
    try:
        return factory(*arguments)
    except (Exception, SystemExit) as error:
        given = f"with {len(arguments)} arguments" if arguments else "without arguments"
        raise UsageError(f"{option} {name!r}: calling it {given} failed with {short(error)}") from error


def _parents(module: str) -> set[str]:
    parts = module.split(".")
    return {".".join(parts[: count + 1]) for count in range(len(parts))}
