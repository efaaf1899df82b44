"""Which images of a dataloader a rank looks at: over all ranks each image exactly once."""

from typing import Any

from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)


def length(loader: DataLoader[Any]) -> int:
    """How many images there are over all ranks."""
    return len(loader.dataset)  # type: ignore[arg-type]


def is_dealt_out(loader: DataLoader[Any]) -> bool:
    """Whether `share` decides which images a rank looks at, and in what order."""
    return _chooses_its_images(loader) is None


def share(loader: DataLoader[Any], rank: int, world_size: int, done: int = 0) -> DataLoader[Any]:
    """The part of the data that one rank looks at, but for the first ``done`` places of it."""
    if not is_dealt_out(loader):
        keeps_all = loader.batch_size is None or type(loader) is not DataLoader
        return loader if keeps_all else _like(loader, loader.dataset, sampler=loader.sampler)
    indices = range(rank + done * world_size, length(loader), world_size)
    if not indices:
        # A rank without a batch would leave the loop early, and the others would wait for it at the end.
        return DataLoader([None], batch_size=None)  # type: ignore[arg-type]
    return _like(loader, Subset(loader.dataset, indices))


def _like(loader: DataLoader[Any], dataset: Dataset[Any], sampler: Any = None) -> DataLoader[Any]:
    """A dataloader with the same settings that leaves no image out."""
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
    )


def _chooses_its_images(loader: DataLoader[Any]) -> str | None:
    """What in a dataloader decides which images there are; None where it is each of the dataset once."""
    if type(loader) is not DataLoader:
        return f"dataloader of the class {type(loader).__name__}"
    if isinstance(loader.dataset, IterableDataset):
        return f"dataloader with a {type(loader.dataset).__name__}"
    if loader.batch_size is None and loader.batch_sampler is not None:
        return "dataloader with a batch_sampler"
    sampler = loader.sampler
    plain = type(sampler) in (SequentialSampler, DistributedSampler)
    if isinstance(sampler, RandomSampler):
        plain = not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    return None if plain else f"dataloader with a {type(sampler).__name__}"


def check_divisible(loader: DataLoader[Any]) -> None:
    """Refuse a dataloader that would have to be asked for its images on every rank.

    Raises:
        ValueError: if its images cannot be told from those of its dataset.
    """
    kind = _chooses_its_images(loader)
    if kind is not None:
        raise ValueError(
            f"a {kind} cannot be split over ranks so that each image counts once; pass a dataset with a"
            " length, such as torch.utils.data.Subset(dataset, indices)"
        )
