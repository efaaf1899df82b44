"""RandomMaskingCallback in real trainings: which batches it masks, and what it leaves alone."""

from collections import namedtuple

import lightning.pytorch as pl
import pytest
import torch
from digits import Digits, data, trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, TensorDataset

from torchmetrics_cam import RandomMasking
from torchmetrics_cam.lightning import RandomMaskingCallback

pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]
# Of 16 cells of 2 x 2 pixels, one to eight show the baseline, in every image.
MASKING = {"max_fraction": 0.5, "grid": 4, "probability": 1, "upsampling": "nearest", "baseline": -1.0}


def hidden(images):
    """Return the number of pixels of each image that show the baseline."""
    return (images == -1).flatten(1).sum(1)


class Recording(Digits):
    """Keeps the images of every step, by the kind of step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = {"train": [], "validation": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch[0].clone())
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx):
        self.seen["validation"].append(batch[0].clone())
        super().validation_step(batch, batch_idx)

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch[0].clone())


def fitted(folder, module, *, callback=None, **data_arguments):
    callback = callback or RandomMaskingCallback(RandomMasking(**MASKING))
    fit = trainer(folder, callbacks=[callback], max_epochs=1, enable_checkpointing=False)
    fit.fit(module, **data_arguments)
    return fit


def test_training_batches_are_masked_and_all_others_are_whole(tmp_path):
    module, train, validation = Recording(), data(0, 64), data(64, 96)
    original = train.tensors[0].clone()
    fit = fitted(
        tmp_path,
        module,
        train_dataloaders=DataLoader(train, batch_size=16),
        val_dataloaders=DataLoader(validation, batch_size=16),
    )
    fit.test(module, DataLoader(validation, batch_size=16), verbose=False)
    seen = torch.cat(module.seen["train"])
    counts = hidden(seen)
    assert ((counts >= 4) & (counts <= 32) & (counts % 4 == 0)).all()
    assert len(counts.unique()) == 8
    visible = seen != -1
    assert torch.equal(seen[visible], original[visible])
    # Two batches of the sanity check come first.
    expected = torch.cat([validation.tensors[0], validation.tensors[0]])
    assert torch.equal(torch.cat(module.seen["validation"]), expected)
    assert torch.equal(torch.cat(module.seen["test"]), validation.tensors[0])
    assert torch.equal(train.tensors[0], original)
    assert "on_after_batch_transfer" not in vars(module)


def test_batches_that_the_dataset_keeps_do_not_change(tmp_path):
    images = data(0, 32).tensors[0]
    batches = [(images[:16], torch.zeros(16).long()), (images[16:], torch.zeros(16).long())]
    original, module = images.clone(), Recording()
    fitted(tmp_path, module, train_dataloaders=DataLoader(batches, batch_size=None))
    assert (hidden(torch.cat(module.seen["train"])) > 0).all()
    assert torch.equal(images, original)


def test_the_images_are_masked_after_the_hook_of_the_module(tmp_path):
    class Normalizing(Recording):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] * 2, batch[1]]

    module, train = Normalizing(), data(0, 16)
    fitted(tmp_path, module, train_dataloaders=DataLoader(train, batch_size=16))
    (seen,) = module.seen["train"]
    visible = seen != -1
    assert (hidden(seen) > 0).all()
    assert torch.equal(seen[visible], (train.tensors[0] * 2)[visible])
    assert module.on_after_batch_transfer([torch.ones(1), 0], 0)[0] == 2


def test_the_images_are_masked_after_the_hook_of_a_datamodule(tmp_path):
    class Doubling(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader(data(0, 16), batch_size=16)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return [batch[0] * 2, batch[1]]

    module, datamodule = Recording(), Doubling()
    fitted(tmp_path, module, datamodule=datamodule)
    (seen,) = module.seen["train"]
    visible = seen != -1
    assert (hidden(seen) > 0).all()
    assert torch.equal(seen[visible], (data(0, 16).tensors[0] * 2)[visible])
    assert "on_after_batch_transfer" not in vars(datamodule) | vars(module)


def test_after_an_error_the_module_has_its_own_hook_again(tmp_path):
    class Failing(Recording):
        def training_step(self, batch, batch_idx):
            raise ArithmeticError("on purpose")

    module = Failing()
    with pytest.raises(ArithmeticError, match="on purpose"):
        fitted(tmp_path, module, train_dataloaders=DataLoader(data(0, 16), batch_size=16))
    assert "on_after_batch_transfer" not in vars(module)


IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", ["images", "labels"])
BATCHES = {
    "a tensor": (IMAGES, None, lambda batch: batch),
    "a list": ([IMAGES, 1], None, lambda batch: batch[0]),
    "a named tuple": (Pair(IMAGES, torch.zeros(4)), None, lambda batch: batch.images),
    "a dict": ({"pixel_values": IMAGES, "labels": torch.zeros(4)}, None, lambda batch: batch["pixel_values"]),
    "a key": ({"first": IMAGES, "second": IMAGES + 1}, "second", lambda batch: batch["second"] - 1),
    "images and a target of their shape": ([IMAGES, IMAGES + 1], None, lambda batch: batch[0]),
    "an index": ((torch.zeros(4), IMAGES), 1, lambda batch: batch[1]),
    "a function": ([{"a": IMAGES}, {"b": 0}], lambda batch: batch[0]["a"], lambda batch: batch[0]["a"]),
}


@pytest.mark.parametrize("case", BATCHES)
def test_images_are_replaced_where_they_are_and_the_batch_keeps_its_form(case):
    batch, where, find = BATCHES[case]
    given = torch.stack([find(batch)])
    settings = MASKING | ({"baseline": 9.0} if case == "a key" else {})
    result = RandomMaskingCallback(RandomMasking(**settings), images=where).mask_images(batch)
    assert type(result) is type(batch)
    assert not torch.equal(find(result), given[0])
    assert torch.equal(find(batch), given[0])
    if case == "a key":
        assert result["first"] is batch["first"]


@pytest.mark.parametrize(
    ("batch", "images", "message"),
    [
        (
            (1, IMAGES),
            None,
            "the batch is a tuple that does not begin with floating-point images.*images= to",
        ),
        (
            {"a": IMAGES, "b": IMAGES},
            None,
            r"\['a', 'b'\], and each of them could be images; pass images= to RandomMaskingCallback, a key or",
        ),
        (
            {"a": IMAGES},
            "b",
            r"images='b' is not in the batch, which is \['a'\]; pass the key or index of its",
        ),
        ((IMAGES,), 3, "images=3 is not in the batch, which is a tuple"),
        (
            {"a": 1},
            "a",
            r"images='a' gave a int; it must give a tensor of images \(N, C, \*spatial\) in the batch, or a list",
        ),
        ((IMAGES, 1), list, r"gave a tensor of shape \(4, 1, 8, 8\), a int; it must give a tensor"),
        ((IMAGES, torch.rand(4, 10)), 1, r"images=1 gave a tensor of shape \(4, 10\); it must give"),
        ((IMAGES,), lambda batch: [], "gave no tensor; it must give a tensor of images"),
        ((IMAGES,), lambda batch: [batch[0], IMAGES + 1], "returned a tensor that is not in the batch"),
        (
            (IMAGES, IMAGES + 1, 3),
            None,
            "2 entries of the batch have images; pass images= to RandomMaskingCallback, a key or an index of the"
            " images, or a function that returns all tensors to mask",
        ),
        (
            (IMAGES,),
            lambda batch: batch[0] / 255,
            "returned a tensor that is not in the batch, so it cannot be",
        ),
    ],
)
def test_batches_without_images_are_refused(batch, images, message):
    with pytest.raises(ValueError, match=message):
        RandomMaskingCallback(RandomMasking(**MASKING), images=images).mask_images(batch)


def test_in_a_training_the_refusal_comes_with_the_first_batch(tmp_path):
    class OfTwo(Recording):
        def training_step(self, batch, batch_idx):
            raise AssertionError("no step")

    module = OfTwo()
    labels = TensorDataset(torch.zeros(16).long(), data(0, 16).tensors[0])
    with pytest.raises(ValueError, match="does not begin with floating-point images"):
        fitted(tmp_path, module, train_dataloaders=DataLoader(labels, batch_size=16))
    assert "on_after_batch_transfer" not in vars(module)


def test_a_second_callback_and_another_masking_are_refused(tmp_path):
    callbacks = [RandomMaskingCallback(), RandomMaskingCallback()]
    fit = trainer(tmp_path, callbacks=callbacks, enable_checkpointing=False)
    with pytest.raises(ValueError, match="2 RandomMaskingCallbacks would mask each batch 2 times; keep one"):
        fit.fit(Recording(), DataLoader(data(0, 16), batch_size=16))
    with pytest.raises(TypeError, match=r"masking is 0\.5; pass a RandomMasking, or None for its defaults"):
        RandomMaskingCallback(0.5)


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
def test_a_training_step_that_fetches_its_batches_itself_is_refused(tmp_path):
    class Fetching(Recording):
        def training_step(self, dataloader_iter):
            raise AssertionError("no step")

    module = Fetching()
    message = (
        "training_step of Fetching takes dataloader_iter, and Lightning does not call on_after_batch_transfer"
    )
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path, module, train_dataloaders=DataLoader(data(0, 16), batch_size=16))
    assert "on_after_batch_transfer" not in vars(module)
    # Without a training, there is nothing to mask.
    fit = trainer(tmp_path, callbacks=[RandomMaskingCallback()], enable_checkpointing=False)
    fit.validate(module, DataLoader(data(0, 16), batch_size=16), verbose=False)


class Tunable(Recording):
    """Has the dataloaders and the attributes that Lightning's searches need."""

    def __init__(self) -> None:
        super().__init__()
        self.batch_size, self.lr = 4, 1e-3

    def train_dataloader(self):
        return DataLoader(data(0, 16), batch_size=self.batch_size)

    val_dataloader = train_dataloader


SEARCHES = {
    "learning rate": lambda: LearningRateFinder(num_training_steps=3, update_attr=False),
    "batch size": lambda: BatchSizeFinder(max_trials=1, steps_per_trial=1),
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("first", [True, False])
def test_a_search_at_the_start_of_a_training_sees_masked_images(search, first, tmp_path):
    callbacks = [RandomMaskingCallback(RandomMasking(**MASKING)), SEARCHES[search]()]
    module = Tunable()
    fit = trainer(
        tmp_path, callbacks=callbacks if first else callbacks[::-1], max_epochs=1, enable_checkpointing=False
    )
    fit.fit(module)
    assert len(module.seen["train"]) > 16 / module.batch_size  # the batches of the training alone
    counts = hidden(torch.cat(module.seen["train"]))
    assert ((counts >= 4) & (counts <= 32)).all()
    assert "on_after_batch_transfer" not in vars(module)


def test_a_tuner_sees_masked_images_and_leaves_the_hook_alone(tmp_path):
    module, callback = Tunable(), RandomMaskingCallback(RandomMasking(**MASKING))
    fit = trainer(tmp_path, callbacks=[callback], enable_checkpointing=False)
    Tuner(fit).lr_find(module, num_training=3, update_attr=False)
    assert len(module.seen["train"]) >= 3
    assert (hidden(torch.cat(module.seen["train"])) > 0).all()
    assert "on_after_batch_transfer" not in vars(module)


def test_after_an_error_in_the_setup_the_module_has_its_own_hook_again(tmp_path):
    class Failing(Recording):
        def setup(self, stage):
            raise ArithmeticError("on purpose")

    module = Failing()
    with pytest.raises(ArithmeticError, match="on purpose"):
        fitted(tmp_path, module, train_dataloaders=DataLoader(data(0, 16), batch_size=16))
    assert "on_after_batch_transfer" not in vars(module)


@pytest.mark.parametrize("wrapping", [True, False])
def test_images_are_masked_once_after_a_hook_that_the_setup_of_the_module_sets(wrapping, tmp_path):
    class Setting(Recording):
        def setup(self, stage):
            before = self.on_after_batch_transfer

            def double(batch, dataloader_idx):
                images, labels = before(batch, dataloader_idx) if wrapping else batch
                return [images * 2, labels]

            self.on_after_batch_transfer = double

    module, images = Setting(), data(0, 16).tensors[0]
    fitted(tmp_path, module, train_dataloaders=DataLoader(data(0, 16), batch_size=16))
    (seen,) = module.seen["train"]
    # Images that had been masked before the hook, too, would show -2.
    assert (hidden(seen) > 0).all()
    assert torch.equal(seen[seen != -1], (images * 2)[seen != -1])
    assert torch.equal(module.on_after_batch_transfer([images, 0], 0)[0], images * 2)


class Idle(pl.LightningModule):
    """Keeps the batches of the training, of any form."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append(batch)
        return self.weight * 1

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(form=None):
    """Return a dataloader of eight images: of tensors, or of dicts with these names."""
    images = data(0, 8).tensors[0]
    return DataLoader(images if form is None else [{form: one} for one in images], batch_size=4)


AMBIGUOUS = {
    "a list of tensors": lambda: [loader(), loader()],
    "a list of dicts": lambda: [loader("images"), loader("images")],
    "a list of pairs": lambda: [DataLoader(data(0, 8), batch_size=4), DataLoader(data(0, 8), batch_size=4)],
    "a dict of tensors": lambda: {"images": loader(), "other": loader()},
    "a dict of a tensor and a dict": lambda: {"images": loader(), "other": loader("images")},
    "a combined loader": lambda: CombinedLoader({"x": loader(), "other": loader()}, "min_size"),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_images_of_several_dataloaders_are_not_masked_in_part(case, tmp_path):
    module = Idle()
    with pytest.raises(ValueError, match="2 entries of the batch have images; pass images= to RandomMask"):
        fitted(tmp_path, module, train_dataloaders=AMBIGUOUS[case]())
    assert not module.batches
    assert "on_after_batch_transfer" not in vars(module)


@pytest.mark.parametrize(
    ("images", "loaders", "find"),
    [
        (lambda batch: [batch[0]["a"], batch[1]], lambda: [loader("a"), loader()], None),
        (lambda batch: tuple(batch.values()), lambda: {"a": loader(), "b": loader()}, None),
        (None, lambda: [loader(), DataLoader(torch.arange(8), batch_size=4)], lambda batch: [batch[0]]),
        (None, lambda: {"images": loader()}, lambda batch: [batch["images"]]),
    ],
)
def test_all_images_of_several_dataloaders_are_masked(images, loaders, find, tmp_path):
    module, callback = Idle(), RandomMaskingCallback(RandomMasking(**MASKING), images=images)
    fitted(tmp_path, module, callback=callback, train_dataloaders=loaders())
    assert len(module.batches) == 2
    for batch in module.batches:
        found = (find or images)(batch)
        assert all((hidden(one) > 0).all() for one in found)
        assert find or not torch.equal(found[0] == -1, found[1] == -1)  # masks of their own


def test_a_key_chooses_one_of_several_dataloaders(tmp_path):
    module, callback = Idle(), RandomMaskingCallback(RandomMasking(**MASKING), images="b")
    fitted(tmp_path, module, callback=callback, train_dataloaders={"a": loader(), "b": loader()})
    assert all((hidden(batch["a"]) == 0).all() for batch in module.batches)
    assert all((hidden(batch["b"]) > 0).all() for batch in module.batches)
