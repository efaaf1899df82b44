"""The bytes of a tensor, and a checksum of the weights of a network."""

import zlib

import torch
from torch import Tensor, nn


def weights_checksum(model: nn.Module) -> str:
    """Return a CRC-32 checksum of the names and values of all weights and buffers, as hexadecimal digits."""
    checksum = 0
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            checksum = zlib.crc32(name.encode(), checksum)
            checksum = zlib.crc32(tensor_bytes(value), checksum)
    return f"{checksum:08x}"


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the values of a strided tensor as bytes, which are copied only if they are not in order."""
    plain = tensor.detach().as_subclass(Tensor)
    content = plain.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    return content.numpy().data
