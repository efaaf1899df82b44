"""Dataloaders and their batches: the arguments of update, the shard of each rank, the index of each image."""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

# It returns a tensor or a mapping. LightningCLI would accept only functions with exactly that annotation.
BatchInputs = Callable[[Any], Any]

# Where several tensors of a batch could be images, the first of these names that occurs decides.
_IMAGE_NAMES = ("input_tensor", "pixel_values", "images", "image", "inputs", "input", "x")
# A batch with exactly these names, such as one of a MosaicDataset, has all arguments of `update`.
_LOCALIZATION_NAMES = {"input_tensor", "class_idx", "objects"}


def update_arguments(batch: Any, inputs: BatchInputs | None) -> dict[str, Any]:
    """Return the keyword arguments of a metric's ``update`` for a batch.

    Args:
        batch: a batch of the dataloader.
        inputs: a function from the batch to its images, or to the arguments of ``update`` by name; None
            searches the batch for images, or takes a dict of ``"input_tensor"``, ``"class_idx"`` and
            ``"objects"`` as it is.

    Raises:
        TypeError: if ``inputs`` returns neither a tensor nor a mapping.
        ValueError: if the batch has no images, or several tensors that could be images.
    """
    if inputs is None and isinstance(batch, Mapping) and batch.keys() == _LOCALIZATION_NAMES:
        return dict(batch)
    found = images_of(batch) if inputs is None else inputs(batch)
    if isinstance(found, Tensor):
        return {"input_tensor": found}
    if isinstance(found, Mapping):
        return dict(found)
    raise TypeError(
        f"inputs returned a {type(found).__name__}; return the images, or update's arguments by name such as"
        " {'input_tensor': images, 'class_idx': labels}"
    )


def images_of(batch: Any, way_out: str = "pass inputs=, a function from the batch to its images") -> Tensor:
    """Return the images of a batch: the batch itself, the first entry of a tuple, or an entry of a dict.

    Images are floating-point tensors with one to three spatial dimensions, ``(N, C, *spatial)``.

    Args:
        batch: a batch of the dataloader.
        way_out: the end of an error's message, which says what to do.

    Raises:
        ValueError: if there are no images, or several entries of a dict could be images and none has a usual
            name.
    """
    if isinstance(batch, Tensor) and are_images(batch):
        return batch
    if isinstance(batch, Mapping):
        images: dict[Any, Tensor] = {name: value for name, value in batch.items() if are_images(value)}
        named = [name for name in _IMAGE_NAMES if name in images]
        if named or len(images) == 1:
            return images[named[0]] if named else next(iter(images.values()))
        if images:
            raise ValueError(f"the batch has {list(images)}, and each of them could be images; {way_out}")
        raise ValueError(f"the batch has {list(batch)}, and none of them is a tensor of images; {way_out}")
    if isinstance(batch, list | tuple) and batch and (are_images(batch[0]) or isinstance(batch[0], Mapping)):
        return images_of(batch[0], way_out)
    raise ValueError(
        f"the batch is a {type(batch).__name__} that does not begin with floating-point images"
        f" (N, C, *spatial); {way_out}"
    )


def are_images(value: Any) -> bool:
    """Return whether a value is a floating-point tensor with one to three spatial dimensions."""
    return isinstance(value, Tensor) and value.is_floating_point() and 3 <= value.ndim <= 5


class IndexedBatch(NamedTuple):
    """A batch with the indices of the items of the dataset that it was made of.

    Args:
        indices: the index of each item in the dataset; None if they are not known.
        none_items: the positions of the items that are None, which stand for images that cannot be read.
        content: the batch.
    """

    indices: list[int] | None
    none_items: list[int]
    content: Any

    def index_of_images(self, count: int) -> list[int]:
        """Return the index of each of the images in the batch; -1 where it is not known.

        A collate function, or the function ``inputs``, may leave out images. It is known which ones where
        they are the items that are None.

        Args:
            count: the number of images in the batch.
        """
        indices = self.indices or []
        without_none = [index for position, index in enumerate(indices) if position not in self.none_items]
        return next((known for known in (indices, without_none) if len(known) == count), [-1] * count)


class _Indexed(Dataset[Any]):
    """A dataset that returns each item, or list of items, as a pair with its index, for `_IndexedCollate`."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        return index, self.dataset[index]

    def __getitems__(self, indices: list[Any]) -> tuple[list[Any], Any]:
        fetch = getattr(self.dataset, "__getitems__", None)
        return indices, fetch(indices) if fetch else [self.dataset[index] for index in indices]

    def __getattr__(self, name: str) -> Any:
        # A worker_init_fn may read attributes of the dataset. Unpickling asks before there is one.
        if name == "dataset":
            raise AttributeError(name)
        return getattr(self.dataset, name)


class _IndexedStream(IterableDataset[Any]):
    """An iterable dataset that returns each item as a pair with its position, for `_IndexedCollate`."""

    def __init__(self, dataset: IterableDataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return enumerate(self.dataset)


class _IndexedCollate:
    """The collate function of the user, for items with their indices."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate = collate

    def __call__(self, fetched: Any) -> IndexedBatch:
        # `_Indexed` returns a pair of lists, `_IndexedStream` a list of pairs.
        indices, items = map(list, zip(*fetched, strict=True)) if isinstance(fetched, list) else fetched
        listed = items if isinstance(items, list) else [items]
        none_items = [position for position, item in enumerate(listed) if item is None]
        return IndexedBatch(_integers(indices), none_items, self.collate(items))


def _integers(indices: Any) -> list[int] | None:
    """Return the indices that a sampler has chosen as integers; None if they are of another type."""
    listed = indices.tolist() if isinstance(indices, Tensor) else indices
    try:
        return list(map(operator.index, listed if isinstance(listed, list) else [listed]))
    except TypeError:
        return None


def shard(loader: DataLoader[Any], rank: int, world_size: int, done: int = 0) -> DataLoader[Any]:
    """Return a dataloader over the images of one rank: ``rank``, ``rank + world_size`` and so on.

    Every image belongs to exactly one rank. A dataloader with a `custom_selection` keeps it.

    Lightning's ``UnrepeatedDistributedSampler`` has the same order, but no start offset, and it fails where
    a rank has no image.

    Args:
        loader: the dataloader over the whole dataset.
        rank: the rank of this process.
        world_size: the number of processes.
        done: the number of images of this rank to skip.

    Returns:
        A dataloader of `IndexedBatch`. A subclass of `DataLoader`, and a dataloader of an iterable dataset
        with workers, is returned unchanged: the indices of its images are not known.
    """
    if type(loader) is not DataLoader:
        return loader
    if isinstance(loader.dataset, IterableDataset):
        # Workers share the items of an iterable dataset in a way that only the dataset knows.
        stream = _IndexedStream(loader.dataset)
        return loader if loader.num_workers else _with_data(loader, stream, batch_size=loader.batch_size)
    dataset = _Indexed(loader.dataset)
    if custom_selection(loader) is not None:
        if loader.batch_size is None and loader.batch_sampler is not None:
            return _with_data(loader, dataset, batch_sampler=loader.batch_sampler)
        return _with_data(loader, dataset, batch_size=loader.batch_size, sampler=loader.sampler)
    indices = range(rank + done * world_size, len(dataset), world_size)
    if not indices:
        # A rank without a batch would leave the loop early, and the other ranks would wait for it at the end.
        return DataLoader([None], batch_size=None)  # type: ignore[arg-type]
    return _with_data(loader, dataset, batch_size=loader.batch_size, sampler=indices)


def _with_data(loader: DataLoader[Any], dataset: Dataset[Any], **selection: Any) -> DataLoader[Any]:
    """Return a dataloader of `IndexedBatch` with the same settings but ``drop_last=False``.

    Args:
        loader: the dataloader with the settings.
        dataset: its dataset, with indices.
        selection: the arguments of `DataLoader` that select the items.
    """
    return DataLoader(
        dataset,
        collate_fn=_IndexedCollate(loader.collate_fn),
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        generator=loader.generator,
        **selection,
    )


def custom_selection(loader: DataLoader[Any]) -> str | None:
    """Describe how a dataloader selects images itself, so that it cannot be split over ranks.

    Returns:
        The description; None if the dataloader loads each image of its dataset once, in any order.
    """
    if type(loader) is not DataLoader:
        return f"dataloader of the class {type(loader).__name__}"
    if isinstance(loader.dataset, IterableDataset):
        return f"dataloader with a {type(loader.dataset).__name__}"
    if loader.batch_size is None and loader.batch_sampler is not None:
        return "dataloader with a batch_sampler"
    sampler = loader.sampler
    once = type(sampler) in (SequentialSampler, DistributedSampler)
    if isinstance(sampler, RandomSampler):
        once = not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    return None if once else f"dataloader with a {type(sampler).__name__}"
