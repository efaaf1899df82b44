"""Objects given by name: ``package.module:factory``, and suggestions for a name that does not exist."""

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from operator import attrgetter
from typing import Any

from torchmetrics_cam.cli.errors import UsageError, usage_error


def nearest(name: str, available: Iterable[str], *, count: int = 3) -> str:
    """Return the available names most similar to `name`, quoted; the first ones if none is similar."""
    by_lower = {item.lower(): item for item in available}
    similar = get_close_matches(name.lower(), by_lower, n=count, cutoff=0.5) or list(by_lower)[:count]
    return ", ".join(repr(by_lower[item]) for item in similar)


def did_you_mean(name: str, available: Iterable[str]) -> str:
    """Return a question with the available name that is close to `name`, as a typing error is; else empty."""
    by_lower = {item.lower(): item for item in available}
    similar = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.8)
    return f"; did you mean {by_lower[similar[0]]!r}?" if similar else "."


def call_factory(name: str, option: str, *arguments: Any) -> Any:
    """Import ``package.module:factory`` and return what the factory returns.

    Modules in the working directory are found too.

    Args:
        name: the module and the name of the callable in it, separated by a colon.
        option: the option with this value, for messages.
        arguments: the arguments of the call.

    Raises:
        UsageError: if the module cannot be imported, has no such callable, or the call fails.
    """
    factory = _load_factory(name, option)
    how = f"with {len(arguments)} arguments" if arguments else "without arguments"
    with usage_error(f"{option} {name!r}: calling it {how} failed"):
        return factory(*arguments)


def _load_factory(name: str, option: str) -> Callable[..., Any]:
    module_name, _, attribute = name.partition(":")
    working_directory = os.getcwd()
    if working_directory not in sys.path and "" not in sys.path:
        sys.path.insert(0, working_directory)
    if not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(
            f"{option} {name!r} is not of the form package.module:factory, as in my_project.models:build"
        )
    with usage_error(f"{option} {name!r}: importing {module_name} failed", "; fix that first"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A module that it imports is missing, not the module itself or a package that contains it.
            if not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise UsageError(
                f"{option} {name!r}: there is no module {error.name!r} on Python's path or in"
                f" {working_directory}; run the command from the folder that contains it, or set PYTHONPATH"
            ) from error
    try:
        factory = attrgetter(attribute)(module)
    except AttributeError as error:
        public = [item for item in vars(module) if not item.startswith("_")]
        raise UsageError(
            f"{option} {name!r}: {module_name} has no {attribute!r}; the nearest names in it are"
            f" {nearest(attribute, public) or 'none'}"
        ) from error
    if not callable(factory):
        raise UsageError(
            f"{option} {name!r} is of type {type(factory).__name__} and cannot be called; name a function or"
            " a class"
        )
    return factory  # type: ignore[no-any-return]
