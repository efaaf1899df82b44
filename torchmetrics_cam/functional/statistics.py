"""How sure a mean is: intervals, paired differences and their p-values, from sums over the samples.

Everything here takes sums that add up over batches and ranks, so no sample has to be kept. Intervals and
p-values are those of the normal distribution, and need some thirty samples to be trusted.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of sums: float64, or float32 on Apple GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Estimate:
    """A mean, and the standard error of it.

    Args:
        mean: NaN where there is no sample.
        standard_error: NaN where there are fewer than two samples.
    """

    mean: Tensor
    standard_error: Tensor

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Lower and upper bound of the mean, by the normal distribution."""
        reach = _quantile(level) * self.standard_error
        return self.mean - reach, self.mean + reach

    def p_value(self) -> Tensor:
        """How probable a mean at least as far from 0 is if the true one is 0, two-sided.

        Without any scatter it is 1 for a mean of 0, and 0 for any other.
        """
        distance = self.mean.abs() / self.standard_error
        distance = torch.where(self.mean == 0, torch.zeros_like(distance), distance)
        p_value = torch.special.erfc(distance / math.sqrt(2))
        return torch.where(self.standard_error.isnan(), self.standard_error, p_value)


def estimate(count: Tensor, total: Tensor, squares: Tensor, *, over_groups: bool = False) -> Estimate:
    r"""The mean of samples and its standard error, from their sums.

    .. math:: \bar x = \frac{1}{n} \sum x_i, \qquad
              \mathrm{SE} = \sqrt{\frac{\sum x_i^2 - n \bar x^2}{n (n - 1)}}

    Args:
        count: :math:`n`, any shape.
        total: :math:`\sum x_i`, the same shape or one that broadcasts with it.
        squares: :math:`\sum x_i^2`.
        over_groups: the first dimension is groups, such as classes; the result is the mean of the means of
            those groups that have samples (the macro average), each group as it is.

    Returns:
        An estimate of the shape of the sums, without the first dimension if ``over_groups``.

    Example:
        >>> import torch
        >>> found = estimate(torch.tensor(4), torch.tensor(2.0), torch.tensor(2.0))  # of 0, 0, 1, 1
        >>> found.mean, found.standard_error
        (tensor(0.5000), tensor(0.2887))

    """
    count = count.to(total.dtype)
    mean = total / count
    variance = (squares - count * mean.square()).clamp(min=0) / (count - 1)
    # Of one sample nothing is known about the scatter.
    variance = torch.where(count > 1, variance / count, torch.full_like(variance, torch.nan))
    if not over_groups:
        return Estimate(mean, variance.sqrt())
    seen = (count > 0).expand_as(mean)
    groups = seen.sum(0)
    summed = torch.where(seen, variance, torch.zeros_like(variance)).sum(0)
    return Estimate(mean.nanmean(0), summed.sqrt() / groups)


def wilson_interval(count: Tensor, successes: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    r"""Wilson's interval of a proportion, which stays in [0, 1] and serves few samples and rare events too.

    .. math:: \frac{\hat p + z^2/2n \pm z \sqrt{\hat p (1 - \hat p)/n + z^2/4n^2}}{1 + z^2/n}

    Args:
        count: :math:`n`.
        successes: :math:`n \hat p`, the same shape.
        level: the confidence, in (0, 1).

    Returns:
        Lower and upper bound, NaN where there is no sample.

    Source: Wilson, Journal of the American Statistical Association 22 (1927), 209-212

    Example:
        >>> import torch
        >>> wilson_interval(torch.tensor(10.0), torch.tensor(0.0))
        (tensor(0.), tensor(0.2775))

    """
    z = _quantile(level)
    count = count.to(torch.promote_types(successes.dtype, torch.float32))
    share = successes / count
    center = share + z**2 / (2 * count)
    reach = z * (share * (1 - share) / count + z**2 / (4 * count.square())).sqrt()
    scale = 1 + z**2 / count
    lower, upper = (center - reach) / scale, (center + reach) / scale
    # Exact at the ends, where the subtraction leaves a rounding error.
    return torch.where(share == 0, share, lower), torch.where(share == 1, share, upper)


def holm(p_values: Tensor) -> Tensor:
    """p-values of several tests, adjusted so that the level holds for a false discovery among all of them.

    Args:
        p_values: ``(tests,)``; NaN stays NaN and counts as no test.

    Returns:
        Adjusted p-values ``(tests,)``.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65-70

    Example:
        >>> import torch
        >>> holm(torch.tensor([0.01, 0.04, 0.03]))
        tensor([0.0300, 0.0600, 0.0600])

    """
    known = ~p_values.isnan()
    order = p_values[known].argsort()
    factors = torch.arange(len(order), 0, -1, device=p_values.device)
    adjusted = (p_values[known][order] * factors).clamp(max=1)
    adjusted = adjusted.cummax(0).values if len(order) else adjusted
    result = torch.full_like(p_values, torch.nan)
    result[known] = torch.empty_like(adjusted).scatter(0, order, adjusted)
    return result


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
