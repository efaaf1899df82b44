"""``--checkpoint``: the state dict in a file, with the keys of the network."""

import pickle
import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cli.errors import UsageError, import_library, usage_error

_NESTED_UNDER = ("state_dict", "model_state_dict", "model")


def read_state(checkpoint: str) -> dict[str, Tensor]:
    """Read the state dict in a file of ``torch.save`` or safetensors, without running code from the file.

    Raises:
        UsageError: if the file does not exist, cannot be read, or contains no state dict.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise UsageError(
            f"--checkpoint {checkpoint} {'is a folder' if path.is_dir() else 'does not exist'}; give a file"
            " with a state dict, 'random' for random weights, or omit it for pretrained weights"
        )
    load: Callable[[Path], Any] = partial(torch.load, map_location="cpu", weights_only=True)
    if path.suffix == ".safetensors":
        load = import_library("safetensors.torch", f"--checkpoint {checkpoint}", "safetensors").load_file
    with usage_error(f"--checkpoint {checkpoint} cannot be read"):
        try:
            state = load(path)
        except pickle.UnpicklingError as error:
            raise UsageError(
                f"--checkpoint {checkpoint} contains more than weights, or is not a file of torch.save; it is"
                " not loaded, because that could run code; save model.state_dict() and give that file"
            ) from error
    for key in _NESTED_UNDER:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    entries = state.items() if isinstance(state, Mapping) else ()
    tensors = {str(key): value for key, value in entries if isinstance(value, Tensor)}
    if not tensors:
        raise UsageError(
            f"--checkpoint {checkpoint} contains no state dict but a {type(state).__name__}; save"
            " model.state_dict(), by itself or under the key 'state_dict' or 'model'"
        )
    return tensors


def without_prefix(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Remove the prefix of the keys, such as Lightning's ``model.``, that makes most of them the model's.

    Entries without that prefix, such as the buffers of a loss, are dropped.
    """
    keys_of_model = model.state_dict().keys()
    matches = Counter(
        key[:start]
        for key in state
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", key)))
        if key[start:] in keys_of_model
    )
    if not matches or max(matches.values()) <= matches[""]:
        return dict(state)
    prefix = matches.most_common(1)[0][0]
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def classes_in(state: Mapping[str, Tensor], model: nn.Module) -> int | None:
    """Return the number of classes of a state dict if it differs from the model in this number only."""
    own = model.state_dict()
    different = [
        (own[key].shape, value.shape)
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    # The number of classes is the first dimension of the weight and the bias of the last layer.
    classes = {(ours[:1], theirs[:1]) for ours, theirs in different}
    only_first_dimension = all(ours[1:] == theirs[1:] for ours, theirs in different)
    if len(classes) != 1 or not only_first_dimension:
        return None
    ((ours, theirs),) = classes
    return theirs[0] if ours and theirs else None


def load_state(model: nn.Module, state: Mapping[str, Tensor], checkpoint: str) -> None:
    """Load all weights.

    Raises:
        UsageError: if the file and the model do not match; the message says in which keys.
    """
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        differences = [shorten(line, 160, placeholder=" …") for line in str(error).splitlines()[1:4]]
        raise UsageError(
            f"--checkpoint {checkpoint} does not match this {type(model).__name__} ({' '.join(differences)});"
            " give the network that was trained with --model"
        ) from error
