"""One image of the gallery, and what each method made of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Picture:
    """One of the best or worst explained images.

    Args:
        kind: which of the two.
        index: the number of the image in its dataset.
        file: where it lies, if it is a file.
        label: the name of the explained class.
        score: the score of that class on the image.
        image: colors in [0, 1], ``(3, H, W)``.
        rows: for each method its name, the mask in [0, 1] ``(H, W)``, the image that the mask leaves
            ``(3, H, W)``, the score of the class on it, and the drop.
    """

    kind: Literal["best", "worst"]
    index: int
    file: str | None
    label: str
    score: float
    image: Tensor
    rows: Sequence[tuple[str, Tensor, Tensor, float, float]]
