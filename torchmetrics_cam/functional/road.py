"""Remove And Debias (ROAD): its score, and the linear imputation that replaces pixels."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from torchmetrics_cam.functional._multigrid import GridPoints, SparseMatrix, solve
from torchmetrics_cam.functional.statistics import sum_dtype

# Larger batches are imputed in parts, which keeps the memory to a few hundred megabytes.
_MAX_PIXELS_PER_PART = 2**19


def road_score(most_first: Tensor, least_first: Tensor) -> Tensor:
    r"""Compute the ROAD score: half the difference between the two orders of imputation. Higher is better.

    .. math:: \frac{1}{F} \sum_{f=1}^F \frac{\mathrm{LeRF}_f - \mathrm{MoRF}_f}{2}

    For scores in [0, 1] the value lies in [-0.5, 0.5]. It is 0 on average for a map without information.

    Args:
        most_first: :math:`\mathrm{MoRF}`, the score of the target class with each of F fractions of the
            pixels imputed, the most relevant first, ``(F, N)``.
        least_first: :math:`\mathrm{LeRF}`, the same with the least relevant pixels imputed first, ``(F, N)``.

    Returns:
        One value per sample, ``(N,)``, in units of the scores.

    Source: Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods,
    https://arxiv.org/abs/2202.00449, with the two orders combined as in pytorch-grad-cam's ``ROADCombined``

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import road_score
        >>> road_score(torch.tensor([[0.6, 0.5], [0.2, 0.5]]), torch.tensor([[0.9, 0.5], [0.7, 0.3]]))
        tensor([ 0.2000, -0.0500])

    """
    return ((least_first - most_first) / 2).mean(0)


def linear_imputation(images: Tensor, hidden: Tensor, *, tolerance: float = 1e-6) -> Tensor:
    r"""Replace each hidden pixel by the weighted mean of its neighbors, which may be hidden themselves.

    .. math:: x_i = \frac{\sum_{j \in \mathcal{N}(i)} w_{ij} x_j}{\sum_{j \in \mathcal{N}(i)} w_{ij}}
              \quad \text{for each hidden pixel } i

    where :math:`\mathcal{N}(i)` are the neighbors inside the image, including the diagonal ones, and
    :math:`w_{ij}` is inversely proportional to the number of steps along the axes from one to the other. In
    two dimensions this gives direct neighbors the weight 1/6 and diagonal ones 1/12. The equations form one
    sparse linear system per image. The systems of a batch are solved together, by multigrid on the images'
    device.

    Args:
        images: ``(N, C, *spatial)``, in any unit.
        hidden: the pixels to impute, bool ``(N, *spatial)``. An image with all pixels hidden becomes 0.
        tolerance: the approximate error, relative to the largest imputed value of the image. float32 images
            reach no less than 1e-7.

    Returns:
        Images of the same shape, dtype and unit. The result for an image does not depend on the rest of the
        batch.

    Source: Rong et al., A Consistent and Efficient Evaluation Strategy for Attribution Methods,
    https://arxiv.org/abs/2202.00449

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional import linear_imputation
        >>> image, hidden = torch.tensor([[[1.0, 9.0, 9.0, 4.0]]]), torch.tensor([[False, True, True, False]])
        >>> linear_imputation(image, hidden)
        tensor([[[1., 2., 3., 4.]]])

    """
    part_size = max(1, _MAX_PIXELS_PER_PART // hidden.shape[1:].numel())
    if len(images) > part_size:
        parts = zip(torch.split(images, part_size), torch.split(hidden, part_size), strict=True)
        return torch.cat([linear_imputation(*part, tolerance=tolerance) for part in parts])
    imputed = images.masked_fill(hidden.unsqueeze(1), 0)
    unknowns = GridPoints(hidden)
    if len(unknowns.indices) == 0:
        return imputed
    matrix, right_hand_side = _assemble_system(imputed, unknowns)
    solution = solve(matrix, right_hand_side, unknowns, tolerance=tolerance)
    image, *pixel = unknowns.indices.unbind(1)
    imputed.movedim(1, -1)[(image, *pixel)] = solution.to(images.dtype)
    return imputed


def _assemble_system(visible: Tensor, unknowns: GridPoints) -> tuple[SparseMatrix, Tensor]:
    """Assemble the linear system A x = b of the imputation.

    The row of an unknown has the sum of the weights of its neighbors on the diagonal, and minus the weight of
    each neighbor that is an unknown. The right-hand side is the weighted sum of the known neighbors.

    Args:
        visible: the images with zeros at the unknowns, ``(N, C, *spatial)``.
        unknowns: the hidden pixels.

    Returns:
        A, and b of shape ``(unknowns, C)``.
    """
    distances = [sum(map(abs, offset)) for offset in product((-1, 0, 1), repeat=len(unknowns.spatial))]
    total = sum(1 / distance for distance in distances if distance)
    weights = [1 / distance / total if distance else 0.0 for distance in distances]
    # The weighted sum over an additional channel of ones is the sum of the weights inside the image.
    pixels = visible.movedim(1, -1)
    pixels = torch.cat([pixels, torch.ones_like(pixels[..., :1])], -1)
    pixels = F.pad(pixels, (0, 0) + (1, 1) * len(unknowns.spatial)).flatten(0, -2)
    neighborhood = unknowns.padded_neighborhood(unknowns.indices)
    dtype = sum_dtype(visible.device)
    weighted_sums = torch.zeros(len(neighborhood), pixels.shape[1], dtype=dtype, device=visible.device)
    for weight, neighbors in zip(weights, neighborhood.unbind(1), strict=True):
        weighted_sums.add_(pixels[neighbors], alpha=weight)
    columns = unknowns.neighbor_numbers(unknowns.indices)
    diagonal = columns[:, len(weights) // 2, None]
    entries = -torch.tensor(weights, dtype=dtype, device=visible.device) * (columns >= 0)
    entries = torch.where(columns == diagonal, weighted_sums[:, -1:], entries)
    return SparseMatrix(torch.where(columns < 0, diagonal, columns), entries), weighted_sums[:, :-1]
