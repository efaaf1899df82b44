"""Lightning's progress bar with the name of the task: that of a test loop is "Testing"."""

from importlib.util import find_spec
from typing import Any

from lightning.pytorch.callbacks import Callback, ProgressBar, RichProgressBar


class EvaluationProgressBar(RichProgressBar):
    """Lightning's progress bar on the terminal, which says "Evaluating"."""

    @property
    def test_description(self) -> str:
        """The name of the task."""
        return "Evaluating"


def with_progress_bar(trainer_arguments: dict[str, Any]) -> dict[str, Any]:
    """Add the progress bar to the arguments of a Trainer, unless they have one or switch it off.

    Without rich, Lightning chooses another one.
    """
    given = trainer_arguments.get("callbacks") or []
    callbacks = [given] if isinstance(given, Callback) else list(given)
    has_own = any(isinstance(callback, ProgressBar) for callback in callbacks)
    if has_own or trainer_arguments.get("enable_progress_bar") is False or not find_spec("rich"):
        return trainer_arguments
    return trainer_arguments | {"callbacks": [*callbacks, EvaluationProgressBar()]}
