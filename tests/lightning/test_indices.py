"""The index of each image: that of the dataset for any order in which a dataloader loads it, or -1."""

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    default_collate,
    get_worker_info,
)
from torchmetrics import MetricCollection, MetricTracker

from torchmetrics_cam import AverageDrop, CAMComparison
from torchmetrics_cam.cams import UniformMap
from torchmetrics_cam.lightning import evaluate

QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
IMAGES = torch.arange(1.0, 25.0).view(24, 1, 1, 1).expand(-1, -1, 4, 4) / 24


def brightness():
    """Return a comparison in which the score of image i is (i + 1) / 24."""
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return CAMComparison({"half": UniformMap(net, 0.5)}, nn.Identity(), controls=False, per_sample=True)


def indices(data, **settings):
    """Return the index of each image; where it is known, the score must be that of this image."""
    comparison = brightness()
    evaluate(comparison, data, **settings, **QUIET)
    samples = comparison.samples()
    known = samples["index"] >= 0
    expected = (samples["index"][known] + 1) / 24
    torch.testing.assert_close(samples["score"][known].float(), expected.float())
    return samples["index"].tolist()


class Stream(IterableDataset):
    """The images one after the other; each worker has every second one."""

    def __init__(self, batched=False):
        self.batched = batched

    def __iter__(self):
        worker = get_worker_info()
        own = IMAGES if worker is None else IMAGES[worker.id :: worker.num_workers]
        return iter(own.split(2) if self.batched else own)


class ByName(Dataset):
    """Images by a key that is no number."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, key):
        return IMAGES[int(key.removeprefix("image "))]


class WithGetItems(TensorDataset):
    """A dataset that loads a whole batch at once."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


class Subclass(DataLoader):
    """A dataloader that may do anything with its batches."""

    def __iter__(self):
        return reversed(list(super().__iter__()))


def without_none(items):
    return default_collate([item for item in items if item is not None])


def without_dark(items):
    return default_collate([item for item in items if item.mean() > 0.2])


CHOSEN = [20, 3, 7, 11]
MISSING = [None if index in (1, 4, 5) else image for index, image in enumerate(IMAGES)]
LOADERS = {
    "a list as sampler": (lambda: DataLoader(IMAGES, 5, sampler=CHOSEN), CHOSEN),
    "batches that are shorter than the sampler": (lambda: DataLoader(IMAGES, 2, sampler=CHOSEN), CHOSEN),
    "workers": (lambda: DataLoader(IMAGES, 1, sampler=CHOSEN, num_workers=2), CHOSEN),
    "a repeated image": (lambda: DataLoader(IMAGES, 2, sampler=[4, 4, 9]), [4, 4, 9]),
    "indices that are tensors": (lambda: DataLoader(IMAGES, 2, sampler=torch.tensor(CHOSEN)), CHOSEN),
    "a batch sampler": (lambda: DataLoader(IMAGES, batch_sampler=[[9, 2], [17], [4, 5]]), [9, 2, 17, 4, 5]),
    "one item a batch": (lambda: DataLoader(IMAGES.unsqueeze(1), batch_size=None, sampler=CHOSEN), CHOSEN),
    "lists of indices without collation": (
        lambda: DataLoader(IMAGES, batch_size=None, sampler=BatchSampler(CHOSEN, 3, drop_last=False)),
        CHOSEN,
    ),
    "a whole dataset of single items": (
        lambda: DataLoader(IMAGES.unsqueeze(1), batch_size=None),
        list(range(24)),
    ),
    "batches in the dataset": (lambda: DataLoader(IMAGES.split(2), batch_size=None), [-1] * 24),
    "__getitems__": (lambda: DataLoader(WithGetItems(IMAGES), 3, sampler=CHOSEN), CHOSEN),
    "keys instead of indices": (lambda: DataLoader(ByName(), 3, sampler=["image 3", "image 8"]), [-1, -1]),
    "shuffle": (lambda: DataLoader(IMAGES, 5, shuffle=True), list(range(24))),
    "items that are None": (
        lambda: DataLoader(MISSING, 3, collate_fn=without_none),
        [0, 2, 3, *range(6, 24)],
    ),
    "items that are None, with a sampler": (
        lambda: DataLoader(MISSING, 3, sampler=[9, 1, 8, 0, 5, 2], collate_fn=without_none),
        [9, 8, 0, 2],
    ),
    # Image 4 is the first that is not dark, and the others of its batch are left out.
    "items that the collate function leaves out": (
        lambda: DataLoader(IMAGES, 3, sampler=range(3, 12), collate_fn=without_dark),
        [-1, -1, *range(6, 12)],
    ),
    "a stream": (lambda: DataLoader(Stream(), 5), list(range(24))),
    "batches in a stream": (lambda: DataLoader(Stream(batched=True), batch_size=None), [-1] * 24),
    "a stream with workers": (lambda: DataLoader(Stream(), 5, num_workers=2), [-1] * 24),
    "a subclass": (lambda: Subclass(IMAGES, 5), [-1] * 24),
}


@pytest.mark.filterwarnings("ignore:.*num_workers")
@pytest.mark.parametrize("name", LOADERS)
def test_an_index_is_that_of_the_dataset_or_not_known(name):
    make, expected = LOADERS[name]
    assert indices(make()) == expected


def test_an_index_that_inputs_gives_is_kept():
    loader = Subclass(TensorDataset(IMAGES, torch.arange(24)), 5)
    given = indices(loader, inputs=lambda batch: {"input_tensor": batch[0], "index": batch[1]})
    assert given == [*range(20, 24), *range(15, 20), *range(10, 15), *range(5, 10), *range(5)]


def test_images_that_inputs_leaves_out_have_no_known_index():
    assert indices(IMAGES, batch_size=3, inputs=lambda batch: batch[1:]) == [-1] * 16


@pytest.mark.filterwarnings("ignore:.*was called before the ``update`` method")
def test_a_comparison_in_a_collection_or_a_tracker_gets_the_index_too():
    loader = DataLoader(IMAGES, 3, sampler=CHOSEN)
    comparison = brightness()
    drop = AverageDrop(UniformMap(comparison.model, 0.5), nn.Identity())
    evaluate(MetricCollection({"all": comparison, "drop": drop}), loader, **QUIET)
    assert comparison.samples()["index"].tolist() == CHOSEN
    tracker = MetricTracker(brightness(), maximize=False)
    tracker.increment()
    evaluate(tracker, loader, **QUIET)
    assert tracker[-1].samples()["index"].tolist() == CHOSEN


def read_attribute(_):
    assert get_worker_info().dataset.tensors[0].shape == IMAGES.shape


def test_a_worker_init_fn_sees_the_attributes_of_the_dataset():
    loader = DataLoader(TensorDataset(IMAGES), sampler=CHOSEN, num_workers=1, worker_init_fn=read_attribute)
    assert indices(loader) == CHOSEN
