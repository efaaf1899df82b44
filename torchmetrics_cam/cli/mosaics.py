"""``--mosaic``: the options that depend on it, and the images of a run as tiles of mosaics."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from torchmetrics_cam.cli.data import Images, Item
from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.metrics.comparison.rankings import join_names
from torchmetrics_cam.metrics.measures import MEASURES
from torchmetrics_cam.mosaic import MosaicDataset


def resolve_options(arguments: Any, measures: Sequence[str]) -> None:
    """Set the options whose default depends on ``--mosaic``, and refuse those that do not fit it.

    Args:
        arguments: the options of the command.
        measures: the names of the measures.

    Raises:
        UsageError: if a measure needs mosaics, there are too few tiles, or the top class is to be explained.
    """
    if arguments.mosaic is None:
        if need_objects := [name for name in measures if MEASURES[name].needs_objects]:
            verb = "compares" if len(need_objects) == 1 else "compare"
            raise UsageError(
                f"--measures: {join_names(need_objects)} {verb} maps with objects, which the images do not"
                " mark; add --mosaic 2, with which the object is the tile of a mosaic"
            )
        arguments.explain = arguments.explain or "top"
        return
    if arguments.mosaic < 2:
        raise UsageError(f"--mosaic {arguments.mosaic}: a mosaic has at least 2 x 2 tiles; give 2 or more")
    if arguments.explain == "top":
        raise UsageError(
            "--mosaic explains the label of a tile, so --explain top cannot be given with it; omit one of"
            " them"
        )
    arguments.explain = "label"
    if "pointing_game" in measures and arguments.pointing_tolerance is None:
        # The edge of a tile is exact. Within the preset's 15 pixels of the center, a map hits every tile.
        arguments.pointing_tolerance = 0.0


class Mosaics(Dataset[Item | None]):
    """The images of a run, each as one tile of a mosaic of images of different classes.

    An item is that of `Images` with the mosaic as its image, and with ``"objects"``, the mask of the tile. It
    is None if the image cannot be read; another image that cannot be read is replaced.

    Args:
        images: the labeled images.
        tiles: the number of tiles on a side.

    Raises:
        UsageError: if an image has no label, or there are too few classes.
    """

    def __init__(self, images: Images, tiles: int) -> None:
        self._tiles = tiles
        labels = images.labels()
        try:
            self._mosaics = MosaicDataset(images, tiles, labels=labels)
        except (TypeError, ValueError) as error:
            raise self._usage_error(error) from error

    def __len__(self) -> int:
        """Return the number of images, readable or not."""
        return len(self._mosaics)

    def __getitem__(self, index: int) -> Item | None:
        """Return the mosaic that explains an image, or None if the image cannot be read.

        Raises:
            UsageError: if images differ in shape, or too few of them can be read.
        """
        try:
            mosaic = self._mosaics[index]
        except (TypeError, ValueError) as error:
            raise self._usage_error(error) from error
        if mosaic is None:
            return None
        return {
            "image": mosaic["input_tensor"],
            "index": index,
            "label": mosaic["class_idx"],
            "objects": mosaic["objects"],
        }

    def _usage_error(self, error: Exception) -> UsageError:
        return UsageError(f"--mosaic {self._tiles}: {error}")
