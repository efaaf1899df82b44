"""Weights from a file: what people and trainers save, brought to the names of the network."""

import pickle
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchmetrics_cam.cli.errors import UsageError
from torchmetrics_cam.cli.names import short

_INSIDE = ("state_dict", "model_state_dict", "model")
_SHOWN = 3


def read_state(checkpoint: str) -> dict[str, Tensor]:
    """The state dict in a file of ``torch.save`` or safetensors; no code that the file holds is run.

    Raises:
        UsageError: if the file is not there, cannot be read, or holds no state dict.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise UsageError(
            f"--checkpoint {checkpoint} is {'a folder' if path.is_dir() else 'not there'}; give a file with a"
            " state dict, 'random' for random weights, or leave it out for the library's pretrained ones"
        )
    try:
        if path.suffix == ".safetensors":
            state: Any = _safetensors(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(
            f"--checkpoint {checkpoint} holds more than weights, or is no file of torch.save, and is not"
            " loaded, because that could run code; save model.state_dict() and give that file"
        ) from error
    except ModuleNotFoundError:
        raise
    except Exception as error:  # What a damaged file raises depends on the byte that is wrong.
        raise UsageError(f"--checkpoint {checkpoint} cannot be read: {short(error)}") from error
    for key in _INSIDE:
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = isinstance(state, Mapping) and {
        str(key): value for key, value in state.items() if isinstance(value, Tensor)
    }
    if not tensors:
        raise UsageError(
            f"--checkpoint {checkpoint} holds no state dict but a {type(state).__name__}; save"
            " model.state_dict(), by itself or under the key 'state_dict' or 'model'"
        )
    return tensors


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a .safetensors file needs safetensors: pip install safetensors") from error
    return load_file(path)


def without_prefix(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The entries under the prefix that brings most names to the model's, such as Lightning's ``model.``."""
    wanted = model.state_dict().keys()
    prefixes = Counter[str]()
    for key in state:
        parts = key.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in wanted:
                prefixes["".join(f"{part}." for part in parts[:depth])] += 1
    if not prefixes or max(prefixes.values()) <= prefixes[""]:
        return dict(state)
    prefix = prefixes.most_common(1)[0][0]
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def classes_in(state: Mapping[str, Tensor], model: nn.Module, classes: int) -> int | None:
    """How many classes the file's last layer has, where it is only that in which file and model differ."""
    own = model.state_dict()
    different = [
        (own[key].shape, value.shape)
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    counts = {theirs[0] for _, theirs in different if theirs}
    only_classes = all(
        ours and theirs and ours[0] == classes and ours[1:] == theirs[1:] for ours, theirs in different
    )
    return counts.pop() if len(counts) == 1 and only_classes else None


def load_state(model: nn.Module, state: Mapping[str, Tensor], checkpoint: str) -> None:
    """Load the weights, all of them.

    Raises:
        UsageError: if file and model do not fit; the first keys in which they differ are named.
    """
    own = model.state_dict()
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    different = [
        f"{key} ({tuple(value.shape)} in the file, {tuple(own[key].shape)} in the model)"
        for key, value in state.items()
        if key in own and own[key].shape != value.shape
    ]
    # Counters of batch norms, which old files do not have and an evaluation does not use.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected or different:
        parts = [
            f"{len(keys)} {what}: {', '.join(keys[:_SHOWN])}{', …' if len(keys) > _SHOWN else ''}"
            for what, keys in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", different),
            )
            if keys
        ]
        raise UsageError(
            f"--checkpoint {checkpoint} does not fit this {type(model).__name__} ({'; '.join(parts)}); name"
            " with --model the network that was trained"
        )
    model.load_state_dict(dict(state), strict=False)
