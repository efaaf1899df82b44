"""Dataloaders and their batches: the arguments of update, and the shard of each rank."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

BatchInputs = Callable[[Any], Tensor | Mapping[str, Any]]

# Where several tensors of a batch could be images, the first of these names that occurs decides.
_IMAGE_NAMES = ("input_tensor", "pixel_values", "images", "image", "inputs", "input", "x")


def update_arguments(batch: Any, inputs: BatchInputs | None) -> dict[str, Any]:
    """Return the keyword arguments of a metric's ``update`` for a batch.

    Args:
        batch: a batch of the dataloader.
        inputs: a function from the batch to its images, or to the arguments of ``update`` by name; None
            searches the batch for images.

    Raises:
        TypeError: if ``inputs`` returns neither a tensor nor a mapping.
        ValueError: if the batch has no images, or several tensors that could be images.
    """
    found = images_of(batch) if inputs is None else inputs(batch)
    if isinstance(found, Tensor):
        return {"input_tensor": found}
    if isinstance(found, Mapping):
        return dict(found)
    raise TypeError(
        f"inputs returned a {type(found).__name__}; return the images, or update's arguments by name such as"
        " {'input_tensor': images, 'class_idx': labels}"
    )


def images_of(batch: Any) -> Tensor:
    """Return the images of a batch: the batch itself, the first entry of a tuple, or an entry of a dict.

    Images are floating-point tensors with one to three spatial dimensions, ``(N, C, *spatial)``.

    Raises:
        ValueError: if there are no images, or several entries of a dict could be images and none has a usual
            name.
    """
    way_out = "pass inputs=, a function from the batch to its images"
    if isinstance(batch, Tensor) and _are_images(batch):
        return batch
    if isinstance(batch, Mapping):
        images: dict[Any, Tensor] = {name: value for name, value in batch.items() if _are_images(value)}
        named = [name for name in _IMAGE_NAMES if name in images]
        if named or len(images) == 1:
            return images[named[0]] if named else next(iter(images.values()))
        if images:
            raise ValueError(f"the batch has {list(images)}, and each of them could be images; {way_out}")
        raise ValueError(f"the batch has {list(batch)}, and none of them is a tensor of images; {way_out}")
    if isinstance(batch, list | tuple) and batch and (_are_images(batch[0]) or isinstance(batch[0], Mapping)):
        return images_of(batch[0])
    raise ValueError(
        f"the batch is a {type(batch).__name__} that does not begin with floating-point images"
        f" (N, C, *spatial); {way_out}"
    )


def _are_images(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and 3 <= value.ndim <= 5


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
    """
    if custom_selection(loader) is not None:
        unchanged = loader.batch_size is None or type(loader) is not DataLoader
        return loader if unchanged else _with_data(loader, loader.dataset, sampler=loader.sampler)
    indices = range(rank + done * world_size, len(loader.dataset), world_size)  # type: ignore[arg-type]
    if not indices:
        # A rank without a batch would leave the loop early, and the other ranks would wait for it at the end.
        return DataLoader([None], batch_size=None)  # type: ignore[arg-type]
    return _with_data(loader, Subset(loader.dataset, indices))


def _with_data(loader: DataLoader[Any], dataset: Dataset[Any], sampler: Any = None) -> DataLoader[Any]:
    """Return a dataloader with the same settings but another dataset and ``drop_last=False``."""
    return DataLoader(
        dataset,
        batch_size=loader.batch_size,
        sampler=None if isinstance(dataset, IterableDataset) else sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
        generator=loader.generator,
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
