"""What a rank has so far of an evaluation, in a file, so that an interrupted run goes on from there."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torchmetrics import Metric

from torchmetrics_cam.whole_file import write_whole

States = dict[str, tuple[int, dict[str, Any]]]


class PartialResult:
    """The file of one rank: how many places of its share are done, and the states that they gave.

    Args:
        folder: where the files of all ranks are.
        rank: the rank of this process.
        key: what must be the same in the run that goes on: the metrics, the images, the number of ranks.
    """

    def __init__(self, folder: Path, rank: int, key: dict[str, Any]) -> None:
        self.file = folder / f"rank-{rank}.pt"
        self.key = key

    def save(self, done: int, members: Iterable[tuple[str, Metric]]) -> None:
        """Write the file anew; a run that is killed meanwhile leaves the old one."""
        states = {name: (metric._update_count, metric._copy_state_dict()) for name, metric in members}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # torch.save into a file says nothing of use when the disk is full.
        content = BytesIO()
        torch.save({"key": self.key, "done": done, "states": states}, content)
        write_whole(self.file, content.getbuffer())

    def load(self) -> tuple[int, States]:
        """How many places are done, and the states; 0 and nothing where there is no file.

        Raises:
            ValueError: if the file is of another run, or cannot be read.
        """
        if not self.file.exists():
            return 0, {}
        try:
            found = torch.load(self.file, map_location="cpu", weights_only=True)
            key, done, states = found["key"], found["done"], found["states"]
        except Exception as error:
            # Not in torch's own words, which would have people load the file unchecked.
            kind = type(error).__name__
            message = f"{self.file} is no partial result ({kind}); remove it to begin anew"
            raise ValueError(message) from error
        for name, value in self.key.items():
            if key.get(name) != value:
                raise ValueError(
                    f"{self.file} is of a run with {name}={key.get(name)!r}, and this one has {value!r}; run"
                    " the same again, or remove the folder to begin anew"
                )
        return done, states
