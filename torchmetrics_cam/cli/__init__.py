"""The command ``torchmetrics-cam``."""

import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper

from torchmetrics_cam.cli.arguments import PROG, parser
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.names import plain, short


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: its arguments; None takes those of the process.

    Returns:
        The exit code: 0; 1 where something is missing or failed; 2 where what was given cannot be used; 130
        after an interrupt. What went wrong is said on stderr.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    # Names of files and classes have letters that a terminal may not have.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            # Advice of libraries to programmers; what a person must know is in the table and the report.
            warnings.simplefilter("ignore")
            return _run(given)
    except KeyboardInterrupt as interrupt:
        return _said(str(interrupt) or "interrupted", 130)
    except UsageError as error:
        return _said(plain(error), 2)
    except ModuleNotFoundError as error:
        return _said(str(error), 1)
    except Exception as error:
        if "--traceback" in given:
            raise
        return _said(f"{short(error)} (--traceback shows where this comes from)", 1)


def _run(given: list[str]) -> int:
    made = parser()
    from jsonargparse import ArgumentError

    try:
        arguments = made.parse_args(given)
    except ArgumentError as error:
        made.print_usage(sys.stderr)
        raise UsageError(" ".join(str(error).split())) from error
    from torchmetrics_cam.cli import compare, demonstration, evaluate
    from torchmetrics_cam.cli.resume import way_on

    commands = {"compare": compare.run, "demo": demonstration.run, "evaluate": evaluate.run}
    asked = arguments[arguments.command]
    try:
        commands[arguments.command](asked)
    except KeyboardInterrupt as interrupt:
        if arguments.command != "evaluate":
            raise
        raise KeyboardInterrupt(f"interrupted; what was done is kept, and {way_on(asked)}") from interrupt
    return 0


def _said(sentence: str, code: int) -> int:
    print(f"{PROG}: {sentence}", file=sys.stderr)
    return code
