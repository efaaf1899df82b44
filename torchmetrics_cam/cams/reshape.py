"""From the tokens of a transformer to a channels-first grid: `reshape_transform` of the gradient CAMs."""

from math import isqrt

from torch import Tensor


def vit_grid(tokens: Tensor, prefix_tokens: int = 1, grid: tuple[int, ...] | None = None) -> Tensor:
    """Tokens of a ViT ``(N, prefix + positions, D)`` to ``(N, D, *grid)``.

    Use `functools.partial` to set the arguments: ``reshape_transform=partial(vit_grid, prefix_tokens=5)``.

    Args:
        tokens: shape ``(N, T, D)``.
        prefix_tokens: how many tokens (class token, registers) come before the positions.
        grid: the number of patches along each axis; None for a square.

    Returns:
        A tensor of shape ``(N, D, *grid)``.

    Raises:
        ValueError: if the tokens do not fill the grid.

    Example:
        >>> import torch
        >>> vit_grid(torch.zeros(2, 1 + 14 * 14, 768)).shape
        torch.Size([2, 768, 14, 14])

    """
    if tokens.ndim != 3:
        raise ValueError(f"vit_grid takes tokens (N, T, D), and the layer gave shape {tuple(tokens.shape)}")
    positions = tokens.shape[1] - prefix_tokens
    if grid is None:
        grid = (isqrt(max(positions, 0)),) * 2
    filled = 1
    for side in grid:
        filled *= side
    if filled != positions or positions < 1:
        raise ValueError(
            f"{tokens.shape[1]} tokens less {prefix_tokens} prefix tokens do not fill a grid of {grid};"
            " set prefix_tokens and grid with functools.partial(vit_grid, ...)"
        )
    return tokens[:, prefix_tokens:].transpose(1, 2).reshape(len(tokens), -1, *grid)


def swin_grid(activation: Tensor) -> Tensor:
    """A channels-last grid ``(N, *spatial, D)`` to ``(N, D, *spatial)``.

    Swin transformers of torchvision and timm give such grids.

    Example:
        >>> import torch
        >>> swin_grid(torch.zeros(2, 7, 7, 768)).shape
        torch.Size([2, 768, 7, 7])

    """
    return activation.movedim(-1, 1)
