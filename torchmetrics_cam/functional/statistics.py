"""Standard errors, confidence intervals and p-values of means, computed from sums over the samples.

The sums can be added over batches and processes, so no sample has to be kept. Intervals and p-values use the
normal distribution, which is adequate for about thirty samples or more.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for sums: float64, or float32 on Apple GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error.

    Args:
        mean: the mean of the samples; NaN without samples.
        standard_error: its standard error, of the same shape; NaN for fewer than two samples.
    """

    mean: Tensor
    standard_error: Tensor

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the confidence interval of the mean, from the normal distribution.

        Args:
            level: the confidence level, in (0, 1).

        Returns:
            Lower and upper bound.
        """
        margin = _normal_quantile(level) * self.standard_error
        return self.mean - margin, self.mean + margin

    def p_value(self) -> Tensor:
        """Return the two-sided p-value of the null hypothesis that the true mean is 0.

        With a standard error of 0 it is 1 for a mean of 0, and 0 for any other mean. It is NaN where the
        standard error is.
        """
        z = self.mean.abs() / self.standard_error
        z = torch.where(self.mean == 0, torch.zeros_like(z), z)
        p_value = torch.special.erfc(z / math.sqrt(2))
        return torch.where(self.standard_error.isnan(), self.standard_error, p_value)


def estimate(count: Tensor, total: Tensor, squares: Tensor, *, over_groups: bool = False) -> Estimate:
    r"""Compute the mean of samples and its standard error from their sums.

    .. math:: \bar x = \frac{1}{n} \sum x_i, \qquad
              \mathrm{SE} = \sqrt{\frac{\sum x_i^2 - n \bar x^2}{n (n - 1)}}

    Args:
        count: :math:`n`, the number of samples, of any shape.
        total: :math:`\sum x_i`, of a shape that broadcasts with that of ``count``.
        squares: :math:`\sum x_i^2`, of the shape of ``total``.
        over_groups: whether to average over the first dimension, whose entries are groups such as classes.
            The result is then the unweighted mean of the groups' means (macro average); groups without
            samples are left out.

    Returns:
        An estimate of the broadcast shape, without the first dimension if ``over_groups``.

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional.statistics import estimate
        >>> result = estimate(torch.tensor(4), torch.tensor(2.0), torch.tensor(2.0))  # samples 0, 0, 1, 1
        >>> result.mean, result.standard_error
        (tensor(0.5000), tensor(0.2887))

    """
    count = count.to(total.dtype)
    mean = total / count
    variance = (squares - count * mean.square()).clamp(min=0) / (count - 1)
    variance_of_mean = torch.where(count > 1, variance / count, torch.full_like(variance, torch.nan))
    if not over_groups:
        return Estimate(mean, variance_of_mean.sqrt())
    has_samples = (count > 0).expand_as(mean)
    variance_sum = torch.where(has_samples, variance_of_mean, torch.zeros_like(variance)).sum(0)
    return Estimate(mean.nanmean(0), variance_sum.sqrt() / has_samples.sum(0))


def wilson_interval(count: Tensor, successes: Tensor, level: float = 0.95) -> tuple[Tensor, Tensor]:
    r"""Compute Wilson's confidence interval of a proportion.

    .. math:: \frac{\hat p + z^2/2n \pm z \sqrt{\hat p (1 - \hat p)/n + z^2/4n^2}}{1 + z^2/n}

    where :math:`z` is the two-sided quantile of the normal distribution, 1.96 for a level of 0.95. The
    interval lies in [0, 1], and is accurate for few samples and for proportions near 0 and 1 as well.

    Args:
        count: :math:`n`, the number of samples.
        successes: :math:`n \hat p`, the number of samples that count as a success, of the same shape.
        level: the confidence level, in (0, 1).

    Returns:
        Lower and upper bound; NaN without samples.

    Source: Wilson, Journal of the American Statistical Association 22 (1927), 209-212

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional.statistics import wilson_interval
        >>> wilson_interval(torch.tensor(10.0), torch.tensor(0.0))
        (tensor(0.), tensor(0.2775))

    """
    z = _normal_quantile(level)
    count = count.to(torch.promote_types(successes.dtype, torch.float32))
    proportion = successes / count
    center = proportion + z**2 / (2 * count)
    margin = z * (proportion * (1 - proportion) / count + z**2 / (4 * count.square())).sqrt()
    scale = 1 + z**2 / count
    lower, upper = (center - margin) / scale, (center + margin) / scale
    # The bounds at 0 and 1 are exact, but the subtraction above leaves a rounding error.
    return torch.where(proportion == 0, proportion, lower), torch.where(proportion == 1, proportion, upper)


def holm(p_values: Tensor) -> Tensor:
    """Adjust p-values for multiple tests by Holm's method.

    Rejecting the tests whose adjusted p-value is at most alpha limits the probability of any false rejection
    among them (the family-wise error rate) to alpha.

    Args:
        p_values: ``(tests,)``. NaN stays NaN and does not count as a test.

    Returns:
        Adjusted p-values in [0, 1], ``(tests,)``.

    Source: Holm, Scandinavian Journal of Statistics 6 (1979), 65-70

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional.statistics import holm
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


def _normal_quantile(level: float) -> float:
    """Return z such that a normal variable lies within z standard deviations with probability ``level``."""
    return NormalDist().inv_cdf((1 + level) / 2)
