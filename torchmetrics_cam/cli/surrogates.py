"""``--surrogate``: a network that scores the images in place of that of ``--model``."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchmetrics_cam.cli.errors import UsageError, import_library, usage_error
from torchmetrics_cam.cli.models import LoadedModel, load_model
from torchmetrics_cam.model.scores import logits_of
from torchmetrics_cam.model.weights import weights_checksum

_OPTION_OF = {"--model": "--surrogate", "--checkpoint": "--surrogate-checkpoint"}


def load_surrogate(arguments: Any, explained: LoadedModel, image: Tensor) -> LoadedModel | None:
    """Load the network of ``--surrogate``, and check that it can score the images of the other.

    Args:
        arguments: the options of the command.
        explained: the network of ``--model``.
        image: an image as this network takes it, ``(C, H, W)``.

    Returns:
        The surrogate; None without the option.

    Raises:
        UsageError: as `load_model`, or if its preprocessing or its classes are not those of the network.
        ModuleNotFoundError: if its library is not installed; the message contains the pip command.
    """
    name = arguments.surrogate
    if name is None:
        if arguments.surrogate_checkpoint is not None:
            raise UsageError("--surrogate-checkpoint was given without --surrogate; name its network there")
        return None
    try:
        surrogate = load_model(name, arguments.surrogate_checkpoint, image_size=arguments.image_size)
    except (UsageError, ModuleNotFoundError) as error:
        told = re.sub(r"--(model|checkpoint)\b", lambda option: _OPTION_OF[option[0]], str(error))
        raise type(error)(told) from error
    _check_transform(name, surrogate, explained)
    names = surrogate.class_names, explained.class_names
    if None not in names and names[0] != names[1]:
        raise UsageError(
            f"--surrogate {name} has other class names than --model {arguments.model}; a surrogate scores the"
            " class that the network predicts, so give one with the same classes in the same order"
        )
    with torch.no_grad(), usage_error(f"--surrogate {name} cannot score an image of --model"):
        outputs = [logits_of(one.model(image.unsqueeze(0))) for one in (surrogate, explained)]
    classes = [output.shape[-1] if isinstance(output, Tensor) and output.ndim else 1 for output in outputs]
    if classes[0] != classes[1]:
        raise UsageError(
            f"--surrogate {name} scores {classes[0]} classes, and --model {arguments.model} {classes[1]};"
            " give a surrogate with the classes of the network, such as a copy that was fine-tuned on masked"
            " images"
        )
    return surrogate


def fingerprint_of(surrogate: LoadedModel | None) -> dict[str, str]:
    """Return a checksum of the weights of the surrogate by its name in messages; nothing without one."""
    return {} if surrogate is None else {"surrogate": weights_checksum(surrogate.model)}


def name_surrogate(
    results: dict[str, Any], arguments: Any, surrogate: LoadedModel | None, fingerprints: Mapping[str, str]
) -> None:
    """Add the surrogate to the results, or None, and its text to those of the comparison.

    Args:
        results: those of the run, which are changed.
        arguments: the options of the command.
        surrogate: the network of ``--surrogate``, if there is one.
        fingerprints: those before the evaluation, with that of `fingerprint_of`.
    """
    results["surrogate"] = None
    if surrogate is not None:
        checkpoint = arguments.surrogate_checkpoint
        kind = type(surrogate.model).__name__
        results["surrogate"] = {
            "name": arguments.surrogate,
            "class": kind,
            "checkpoint": checkpoint,
            "weights_checksum": fingerprints["surrogate"],
        }
        from_file = f", checkpoint {checkpoint}" if checkpoint else ""
        results["comparison"]["surrogate"] = f"{kind} ({arguments.surrogate}{from_file})"


def _check_transform(name: str, surrogate: LoadedModel, explained: LoadedModel) -> None:
    """Refuse a surrogate whose own preprocessing is another, because it receives the network's images.

    Raises:
        UsageError: if both transforms give different tensors for a picture.
    """
    if not surrogate.has_own_transform or surrogate.transform_name == explained.transform_name:
        return
    pixels = np.arange(96 * 80 * 3).reshape(96, 80, 3) % 256
    picture = import_library("PIL.Image", "preprocessing", "torchmetrics-cam[cli]").fromarray(
        pixels.astype(np.uint8)
    )
    with usage_error(f"--surrogate {name}: its transform cannot be compared with that of --model"):
        inputs = [one.transform(picture) for one in (surrogate, explained)]
    if inputs[0].shape != inputs[1].shape or not torch.allclose(inputs[0], inputs[1], atol=1e-5):
        raise UsageError(
            f"--surrogate {name} needs other preprocessing than the network: {surrogate.transform_name}"
            f" instead of {explained.transform_name}. It receives the images of the network, so give one with"
            " the same preprocessing, or a function that returns the surrogate alone"
        )
