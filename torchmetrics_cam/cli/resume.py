"""Whether a run goes on with the partial result that is there."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.results import write_json

# What may differ between a run and the one that goes on with it: nothing that a number depends on. The size
# of a batch may have been too large for the memory.
_MAY_DIFFER = (
    "config",
    "traceback",
    "fresh",
    "out",
    "pictures",
    "save_every",
    "num_workers",
    "batch_size",
    "halve_on_oom",
)


def settings_of(arguments: Any) -> dict[str, Any]:
    """All options of a run, for JSON."""
    given = {name: value for name, value in vars(arguments).items() if name not in ("config", "traceback")}
    return {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}


def way_on(arguments: Any) -> str:
    """How a run goes on that was ended."""
    same = "the same command without --fresh" if arguments.fresh else "the same command"
    return f"{same} goes on from there"


def go_on_or_begin(partial: Path, arguments: Any, states: Mapping[str, str]) -> None:
    """Let a run go on with its own partial result only: of the same command, weights and images.

    Args:
        partial: the folder of the partial result.
        arguments: of the command.
        states: fingerprints of what the arguments name, such as the weights.

    Raises:
        UsageError: if the folder holds that of another run.
    """
    wanted = {name: value for name, value in settings_of(arguments).items() if name not in _MAY_DIFFER}
    wanted |= {f"state of the {name}": fingerprint for name, fingerprint in states.items()}
    # As it comes back from the file, where a tuple is a list.
    wanted = json.loads(json.dumps(wanted, default=str))
    file = partial / "settings.json"
    if arguments.fresh:
        shutil.rmtree(partial, ignore_errors=True)
    if file.exists():
        try:
            found = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            raise UsageError(f"{file} cannot be read; begin anew with --fresh") from error
        other = [name for name in wanted if not isinstance(found, dict) or found.get(name) != wanted[name]]
        if other:
            raise UsageError(
                f"{partial} has the partial result of another command, with another {', '.join(other)}; run"
                " that again, or begin anew with --fresh"
            )
        return
    partial.mkdir(exist_ok=True)
    # Nobody knows of what run.
    for left in partial.glob("rank-*.pt"):
        left.unlink()
    write_json(wanted, file)
