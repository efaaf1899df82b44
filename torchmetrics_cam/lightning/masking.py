"""RandomMaskingCallback: masks the images of training batches, for the fine-tuning of a surrogate."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from torchmetrics_cam.lightning.data import are_images, images_of
from torchmetrics_cam.masking import RandomMasking

_HOOK = "on_after_batch_transfer"
_WAY_OUT = (
    "pass images= to RandomMaskingCallback, a key or an index of the images, or a function that returns all"
    " tensors to mask"
)


class RandomMaskingCallback(Callback):
    """Random masks on the images of every training batch, without a change of module, dataset or loader.

    Batches of the sanity check, of validation and of tests stay whole. Images are masked on the device of the
    module, after its ``on_after_batch_transfer`` or that of the datamodule, and are copies: the tensors of
    the dataset do not change. Searches for a learning rate or a batch size also see masked images.

    With several devices, ``seed_everything`` gives all ranks the same seed, so that they draw the same masks,
    each for its own images. ``torch.manual_seed(seed + self.global_rank)`` in the module's ``on_train_start``
    makes the masks differ.

    Args:
        masking: the masks; None for the defaults of `RandomMasking`.
        images: where the images are in a batch: a key or an index, or a function from the batch to a tensor
            in it or a list of tensors in it, all of which are masked; None takes the images of
            ``(images, labels)`` or of a dict. None refuses a batch that has images in several entries before
            the last one, and a batch of several dataloaders of which more than one has images.

    Raises:
        TypeError: if ``masking`` is no `RandomMasking`; in training, if the images are not floating-point.
        ValueError: in training, if a batch has no images there, or the masks do not fit them; before it, if
            the Trainer has two of these callbacks or ``training_step`` takes ``dataloader_iter``.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule, Trainer
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader
        >>> from torchmetrics_cam import RandomMasking
        >>> from torchmetrics_cam.lightning import RandomMaskingCallback
        >>> class Classifier(LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
        ...     def training_step(self, batch, batch_idx):
        ...         print(int((batch == 0).sum()))  # one cell of four is masked in each of two images
        ...         return self.model(batch).square().mean()
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), lr=0.1)
        >>> masking = RandomMasking(max_fraction=0.25, grid=2, probability=1, upsampling="nearest")
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> quiet |= {"enable_checkpointing": False, "max_epochs": 1, "accelerator": "cpu"}
        >>> trainer = Trainer(callbacks=[RandomMaskingCallback(masking)], **quiet)
        >>> trainer.fit(Classifier(), DataLoader(torch.ones(2, 1, 4, 4), batch_size=2))
        8

    """

    def __init__(
        self,
        masking: RandomMasking | None = None,
        *,
        images: str | int | Callable[[Any], Any] | None = None,
    ) -> None:
        self.masking = RandomMasking() if masking is None else masking
        if not isinstance(self.masking, RandomMasking):
            raise TypeError(f"masking is {masking!r}; pass a RandomMasking, or None for its defaults")
        self.images = images
        self._hook: Callable[[Any, int], Any] | None = None
        self._undo: Callable[[], None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the masking to the hook that Lightning calls when a batch is on the device.

        Raises:
            ValueError: if the Trainer has two of these callbacks, or ``training_step`` fetches its batches.
        """
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        count = sum(isinstance(one, RandomMaskingCallback) for one in callbacks)
        if count > 1:
            raise ValueError(f"{count} RandomMaskingCallbacks would mask each batch {count} times; keep one")
        if stage != "fit":
            return
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise ValueError(
                f"training_step of {type(pl_module).__name__} takes dataloader_iter, and Lightning does not"
                f" call {_HOOK} for batches that it fetches, so RandomMaskingCallback cannot mask them; take"
                " batch instead, or call RandomMasking in training_step"
            )
        # Lightning's searches for a learning rate and a batch size train in their on_fit_start.
        self._install(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the masking to a hook that the module's own ``setup``, which runs later, has set."""
        self._install(trainer, pl_module)

    def mask_images(self, batch: Any, *, combined: bool = False) -> Any:
        """Return a batch with masked images, in collections of the same types; the given batch is unchanged.

        Args:
            batch: a batch of a dataloader.
            combined: whether each entry is a batch of its own, since there are several dataloaders.

        Raises:
            ValueError: if the batch has no images there, or other images, too, and ``images`` is None.
        """
        images = self._images_of(batch, combined)
        masked = {id(one): self.masking.mask_batch(one) for one in images}
        replaced = set()

        def replace(tensor: Tensor) -> Tensor:
            replaced.add(id(tensor))
            return masked.get(id(tensor), tensor)

        result = apply_to_collection(batch, Tensor, replace)
        if not masked.keys() <= replaced:
            raise ValueError(
                f"images={self.images!r} returned a tensor that is not in the batch, so it cannot be"
                " replaced there; return the tensor itself, without a computation"
            )
        return result

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the masking from the hook, also after an error or an interrupt."""
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the masking from the hook."""
        self._release()

    def _images_of(self, batch: Any, combined: bool) -> Sequence[Tensor]:
        """Return the images of a batch, the tensors themselves."""
        if self.images is None:
            count = sum(map(_has_images, _inputs_of(batch, combined)))
            if count > 1:
                raise ValueError(f"{count} entries of the batch have images; {_WAY_OUT}")
            return [images_of(batch, _WAY_OUT)]
        if callable(self.images):
            found = self.images(batch)
        else:
            try:
                found = batch[self.images]
            except (LookupError, TypeError) as error:
                given = list(batch) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
                raise ValueError(
                    f"images={self.images!r} is not in the batch, which is {given}; pass the key or index of"
                    " its images, or a function from the batch to them"
                ) from error
        tensors = found if isinstance(found, list | tuple) else [found]
        if not tensors or not all(isinstance(one, Tensor) and one.ndim >= 3 for one in tensors):
            shapes = (
                f"a tensor of shape {tuple(one.shape)}"
                if isinstance(one, Tensor)
                else f"a {type(one).__name__}"
                for one in tensors
            )
            raise ValueError(
                f"images={self.images!r} gave {', '.join(shapes) or 'no tensor'}; it must give a tensor of"
                " images (N, C, *spatial) in the batch, or a list of such tensors"
            )
        return tensors

    def _install(self, trainer: Trainer, pl_module: LightningModule) -> None:
        datamodule: LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]
        owner: Any = datamodule if is_overridden(_HOOK, datamodule) else pl_module
        hook, own = getattr(owner, _HOOK), vars(owner).get(_HOOK)
        if hook is self._hook:
            return

        @functools.wraps(hook)
        def masked(batch: Any, dataloader_idx: int) -> Any:
            batch = hook(batch, dataloader_idx)
            # A hook that the module's setup has set may call this one, and has a masking of its own.
            if not trainer.training or self._hook is not masked:
                return batch
            loaders = trainer.train_dataloader
            return self.mask_images(
                batch, combined=isinstance(loaders, list | tuple | Mapping) and len(loaders) > 1
            )

        def undo() -> None:
            delattr(owner, _HOOK)
            if own is not None:
                setattr(owner, _HOOK, own)

        setattr(owner, _HOOK, masked)
        self._hook, self._undo = masked, undo

    def _release(self) -> None:
        if self._undo is not None:
            self._undo()
        self._hook = self._undo = None


def _inputs_of(batch: Any, combined: bool) -> Sequence[Any]:
    """Return the entries of a batch that the network may take; the last of a tuple is the target."""
    if combined and isinstance(batch, Mapping):
        return list(batch.values())
    if isinstance(batch, list | tuple):
        return batch if combined else batch[:-1]
    return ()


def _has_images(entry: Any) -> bool:
    tensors: list[Tensor] = []
    apply_to_collection(entry, Tensor, tensors.append)
    return any(map(are_images, tensors))
