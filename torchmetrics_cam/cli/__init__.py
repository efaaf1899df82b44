"""The command ``torchmetrics-cam``."""

import sys
import warnings
from collections.abc import Sequence
from io import TextIOWrapper

from torchmetrics_cam.cli.arguments import PROG, parse
from torchmetrics_cam.cli.errors import GateError, UsageError, message_of, summary
from torchmetrics_cam.report.text import printable


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: the command line without the name of the program; None takes that of the process.

    Returns:
        The exit code: 0 on success; 1 after an error or if a package is missing; 2 if the arguments or the
        data cannot be used; 3 if a gate fails; 130 after an interrupt. Errors and violations of gates are
        reported on stderr.
    """
    command_line = sys.argv[1:] if argv is None else list(argv)
    # Names of files and classes may have characters that the terminal cannot encode.
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            # Libraries warn programmers; the table and the report state what users must know.
            warnings.simplefilter("ignore")
            _run(command_line)
        return 0
    except KeyboardInterrupt as interrupt:
        messages, code = [str(interrupt) or "interrupted"], 130
    except UsageError as error:
        messages, code = [message_of(error)], 2
    except GateError as error:
        messages, code = list(error.args), 3
    except ModuleNotFoundError as error:
        messages, code = [str(error)], 1
    except Exception as error:
        if "--traceback" in command_line:
            raise
        messages, code = [f"{summary(error)} (--traceback shows where it was raised)"], 1
    for message in messages:
        print(f"{PROG}: {printable(message)}", file=sys.stderr)
    return code


def _run(command_line: list[str]) -> None:
    arguments = parse(command_line)
    # Imported after the parser, so that --help and a mistyped option answer at once.
    from torchmetrics_cam.cli import compare, demo, evaluate, protocols
    from torchmetrics_cam.cli.results import how_to_resume

    commands = {
        "compare": compare.run,
        "demo": demo.run,
        "evaluate": evaluate.run,
        "protocols": protocols.run,
    }
    options = arguments[arguments.command]
    try:
        commands[arguments.command](options)
    except KeyboardInterrupt as interrupt:
        if arguments.command != "evaluate":
            raise
        message = f"interrupted; the partial result is kept, and {how_to_resume(options)}"
        raise KeyboardInterrupt(message) from interrupt
