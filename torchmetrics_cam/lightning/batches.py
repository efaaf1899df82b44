"""From a batch of a dataloader to the arguments of a metric's update."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

BatchInputs = Callable[[Any], Tensor | Mapping[str, Any]]

# Where a batch holds more than one tensor that could be images, these names decide, in this order.
_IMAGE_NAMES = ("input_tensor", "pixel_values", "images", "image", "inputs", "input", "x")


def update_arguments(batch: Any, inputs: BatchInputs | None) -> dict[str, Any]:
    """What ``update`` is called with.

    Args:
        batch: what the dataloader gave.
        inputs: from the batch to images, or to the arguments of ``update`` by name; None finds the images.

    Raises:
        TypeError: if ``inputs`` returns something else.
        ValueError: if there are no images in the batch, or more than one tensor could be.
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
    """The images of a batch: the batch itself, the first of ``(images, labels)``, or an entry of a mapping.

    Images are floating point with one to three spatial dimensions, ``(N, C, *spatial)``.

    Raises:
        ValueError: if there are none, or a mapping has several tensors like this and none of a usual name.
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
        f"the batch is a {type(batch).__name__} that does not begin with floating point images"
        f" (N, C, *spatial); {way_out}"
    )


def _are_images(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and 3 <= value.ndim <= 5
