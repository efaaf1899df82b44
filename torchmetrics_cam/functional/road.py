"""Noisy linear imputation: hidden positions take the weighted mean of their neighbours, and some noise."""

import warnings
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

_POOLINGS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
_COARSEST = 8
_CHECK_EVERY = 10


def linear_imputation(images: Tensor, hidden: Tensor, *, tolerance: float = 1e-7) -> Tensor:
    r"""Every hidden position is the weighted mean of its neighbours, hidden or not; the others stay.

    Direct neighbours weigh 1/6 and diagonal ones 1/12 in two dimensions, in general in inverse proportion to
    the number of steps. At the border the weights that are left count. This is one sparse linear system an
    image; conjugate gradients solve those of a batch at once, on the images' device (Apple's has no float64,
    so there on the CPU), and begin with the solution of the image at half the size.

    Args:
        images: ``(N, C, *spatial)``.
        hidden: which positions, ``(N, *spatial)``. An image of which everything is hidden becomes 0.
        tolerance: the iteration ends where the residual of each image is below this share of its right-hand
            side.

    Returns:
        Images of the same shape and dtype.

    Source: Rong et al., ROAD, https://arxiv.org/abs/2202.00449

    Example:
        >>> import torch
        >>> image, hidden = torch.tensor([[[1.0, 9.0, 9.0, 4.0]]]), torch.tensor([[False, True, True, False]])
        >>> linear_imputation(image, hidden)
        tensor([[[1., 2., 3., 4.]]])

    """
    device = torch.device("cpu") if images.device.type == "mps" else images.device
    solved = _solved(images.to(device, torch.float64), hidden.to(device), tolerance).to(images)
    return torch.where(hidden.unsqueeze(1), solved, images)


def _solved(images: Tensor, hidden: Tensor, tolerance: float) -> Tensor:
    """The images with hidden positions solved for."""
    count, channels, *spatial = images.shape
    places = hidden.flatten().nonzero().squeeze(1)
    known = images.masked_fill(hidden.unsqueeze(1), 0)
    if not len(places):
        return known

    def at_places(values: Tensor) -> Tensor:
        return values.movedim(1, -1).reshape(-1, channels)[places]

    solution = _conjugate_gradients(
        _system(hidden, places),
        at_places(_neighbours(known)),
        at_places(_guess(images, hidden, tolerance)),
        torch.bincount(places // hidden[0].numel(), minlength=count),
        tolerance,
    )
    filled = known.movedim(1, -1).reshape(-1, channels).index_copy(0, places, solution)
    return filled.view(count, *spatial, channels).movedim(-1, 1)


def _system(hidden: Tensor, places: Tensor) -> Tensor:
    """The sparse matrix ``(R, R)`` that takes from R hidden positions their shares of each other.

    On its diagonal are the weights of all neighbours. It is symmetric and positive definite.

    Args:
        hidden: which positions, ``(N, *spatial)``.
        places: where they are in all images, flat.
    """
    spatial = hidden.shape[1:]
    numbers = torch.full_like(hidden, -1, dtype=torch.long).flatten()
    numbers[places] = torch.arange(len(places), device=places.device)
    numbers = F.pad(numbers.view_as(hidden), (1, 1) * len(spatial), value=-1)
    # Of each position the place in the padded images, and from there so far to each neighbour.
    padded = torch.arange(numbers.numel(), device=places.device).view_as(numbers)
    for axis, side in enumerate(spatial, start=1):
        padded = padded.narrow(axis, 1, side)
    offsets, weights = _stencil(len(spatial))
    strides = numbers.stride()[1:]
    steps = [sum(step * stride for step, stride in zip(one, strides, strict=True)) for one in offsets]
    own = padded.flatten()[places].unsqueeze(1)
    columns = numbers.flatten()[own + torch.tensor([0, *steps], device=places.device)]
    total = _neighbours(hidden.new_ones(1, 1, *spatial, dtype=torch.float64)).flatten()
    values = torch.tensor([0.0, *(-weight for weight in weights)], dtype=torch.float64, device=places.device)
    values = values.repeat(len(places), 1)
    values[:, 0] = total[places % len(total)]
    return _sparse(columns, values, len(places))


def _sparse(columns: Tensor, values: Tensor, width: int) -> Tensor:
    """A sparse matrix from the columns and values of each row, ``(R, E)``; columns below 0 are none."""
    there = columns >= 0
    ends = F.pad(there.sum(1).cumsum(0), (1, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            ends, columns[there], values[there], (len(columns), width), check_invariants=False
        )


def _conjugate_gradients(
    system: Tensor,
    wanted: Tensor,
    solution: Tensor,
    rows: Tensor,
    tolerance: float,
) -> Tensor:
    """Solve ``system @ x = wanted`` from a first guess, each image and channel on its own.

    Args:
        system: ``(R, R)``.
        wanted: ``(R, C)``.
        solution: a first guess, ``(R, C)``.
        rows: how many rows belong to each image, ``(N,)``.
        tolerance: as of `linear_imputation`.
    """

    def summed(values: Tensor) -> Tensor:
        return torch.segment_reduce(values, "sum", lengths=rows)

    of_image = torch.repeat_interleave(rows, output_size=len(wanted))
    residual = wanted - system @ solution
    direction, square = residual.clone(), summed(residual * residual)
    enough = (tolerance**2 * summed(wanted * wanted)).clamp(min=torch.finfo(wanted.dtype).tiny)
    nothing = torch.zeros_like(square)
    for step in range(2 * len(wanted)):
        if step % _CHECK_EVERY == 0 and bool((square <= enough).all()):
            break
        image = system @ direction
        curvature = summed(direction * image)
        # Images that are solved stand still while the others go on.
        length = torch.where((square > enough) & (curvature > 0), square / curvature, nothing)[of_image]
        solution.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        before, square = square, summed(residual * residual)
        turn = torch.where(before > 0, square / before, nothing)[of_image]
        direction.mul_(turn).add_(residual)
    return solution


def _guess(images: Tensor, hidden: Tensor, tolerance: float) -> Tensor:
    """The solution at half the size, enlarged."""
    spatial = images.shape[2:]
    if min(spatial) <= _COARSEST:
        return torch.zeros_like(images)
    pool = _POOLINGS[len(spatial)]
    shown = (~hidden).unsqueeze(1).to(images.dtype)
    seen = pool(shown, 2, ceil_mode=True)
    coarse = pool(images * shown, 2, ceil_mode=True) / torch.where(seen > 0, seen, torch.ones_like(seen))
    # A guess needs no more digits than the image shows.
    solved = _solved(coarse, (seen == 0).squeeze(1), max(tolerance, 1e-3))
    return F.interpolate(solved, spatial, mode=_LINEAR_MODES[len(spatial)], align_corners=False)


def _stencil(dims: int) -> tuple[list[tuple[int, ...]], list[float]]:
    """The steps to the neighbours of a position, and their weights."""
    offsets = [offset for offset in product((-1, 0, 1), repeat=dims) if any(offset)]
    weights = [1 / sum(map(abs, offset)) for offset in offsets]
    return offsets, [weight / sum(weights) for weight in weights]


def _neighbours(images: Tensor) -> Tensor:
    """The weighted sum of the neighbours of each position, nothing beyond the border."""
    spatial = images.shape[2:]
    total = torch.zeros_like(images)
    for offset, weight in zip(*_stencil(len(spatial)), strict=True):
        given, taken = total, images
        for axis, (step, side) in enumerate(zip(offset, spatial, strict=True), start=2):
            given = given.narrow(axis, max(-step, 0), side - abs(step))
            taken = taken.narrow(axis, max(step, 0), side - abs(step))
        given.add_(taken, alpha=weight)
    return total
