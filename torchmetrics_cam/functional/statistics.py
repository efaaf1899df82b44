"""Standard errors, confidence intervals and p-values of means, computed from sums over the samples.

The sums can be added over batches and processes, so no sample has to be kept. Intervals and p-values of means
use Student's t distribution, and the intervals stay in the range of the values where it is known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import torch
from torch import Tensor

from torchmetrics_cam.functional._student_t import two_sided_quantile, two_sided_tail

# A mean that differs from an end of the range by no more than this, in units of the range, is at this end:
# rounding errors of float32 scores reach a tenth of it.
_END_TOLERANCE = 1e-6
# Number of samples, their sum and the sum of their squares.
Sums = tuple[Tensor, Tensor, Tensor]


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype for sums: float64, or float32 on Apple GPUs, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error.

    Args:
        mean: the mean of the samples; NaN without samples.
        standard_error: its standard error, of the same shape; NaN for fewer than two samples.
        degrees_of_freedom: those of the standard error, of a shape that broadcasts.
        count: the number of samples, of a shape that broadcasts. For a mean over groups, it is the number of
            groups times that of the smallest group's samples.
    """

    mean: Tensor
    standard_error: Tensor
    degrees_of_freedom: Tensor
    count: Tensor

    def interval(
        self, level: float = 0.95, *, low: float = -math.inf, high: float = math.inf
    ) -> tuple[Tensor, Tensor]:
        r"""Return the confidence interval of the mean.

        Without a range it is :math:`\bar x \pm t\,\mathrm{SE}`, with the quantile t of Student's
        distribution. In a range it is computed on a scale without ends and transformed back, so that it stays
        in the range:

        .. math:: g^{-1}\left(g(\bar x) \pm t\,\mathrm{SE}\,g'(\bar x)\right), \qquad
                  g(x) = \log(x - \mathrm{low}) - \log(\mathrm{high} - x)

        :math:`g` is the logit of the range; the logarithm of an infinite end is left out.

        If the mean is at an end of the range, all samples are, and a standard error of 0 does not bound
        the fraction of the population that differs. The interval then reaches from this end over the fraction
        :math:`1 - (\frac{1 - \mathrm{level}}{2})^{1/n}` of the range, about 3.7/n for a level of 0.95. It is
        the bound of Clopper and Pearson: if a larger fraction differed, n equal samples would have a
        probability below ``(1 - level) / 2``. A range with one end bounds nothing there, so the interval is
        NaN. Samples that all have the same value elsewhere in the range have an interval of width 0, as
        without a range.

        Args:
            level: the confidence level, in (0, 1).
            low: the lowest value that a sample can have.
            high: the highest.

        Returns:
            Lower and upper bound; NaN for fewer than two samples. A mean outside of the range has the
            interval without a range.

        Source: for the ends of the range, Clopper and Pearson, Biometrika 26 (1934), 404-413
        """
        margin = two_sided_quantile(level, self.degrees_of_freedom) * self.standard_error
        plain = torch.stack([self.mean - margin, self.mean + margin])
        if math.isinf(low) and math.isinf(high):
            return plain[0], plain[1]
        if math.isinf(low):
            lower, upper = replace(self, mean=-self.mean).interval(level, low=-high)
            return -upper, -lower
        width = high - low if math.isfinite(high) else 1.0
        above, below = (self.mean - low) / width, (high - self.mean) / width
        factor = (margin / width * (1 / above + 1 / below)).exp()
        share = above if math.isfinite(high) else torch.zeros_like(above)
        bounds = torch.stack([above / (share + (1 - share) * each) for each in (factor, 1 / factor)])
        is_bounded = self.standard_error.isfinite() & math.isfinite(high)
        fraction = torch.where(is_bounded, -(math.log((1 - level) / 2) / self.count).expm1(), torch.nan)
        at_end = torch.stack([0 * fraction, fraction])
        bounds = torch.where(above <= _END_TOLERANCE, at_end, bounds)
        bounds = torch.where(below <= _END_TOLERANCE, 1 - at_end.flip(0), bounds)
        is_outside = torch.minimum(above, below) < -_END_TOLERANCE
        bounds = torch.where(is_outside, plain, low + width * bounds)
        return bounds[0], bounds[1]

    def p_value(self) -> Tensor:
        """Return the two-sided p-value of the null hypothesis that the true mean is 0, by Student's t test.

        With a standard error of 0 it is 1 for a mean of 0. For any other mean all n samples have the same
        value, which the t test cannot judge: a few equal values are ordinary where each sample is 0 or 1. The
        p-value is then that of the sign test, :math:`2^{1 - n}`. It is NaN where the standard error is.
        """
        is_constant = self.standard_error == 0
        t = torch.where(is_constant, 0, self.mean.abs() / self.standard_error)
        of_equal_signs = torch.exp2(1 - self.count.to(t.dtype))
        p_value = two_sided_tail(t, self.degrees_of_freedom)
        p_value = torch.where(is_constant & (self.mean != 0), of_equal_signs, p_value)
        return torch.where(self.standard_error.isnan(), self.standard_error, p_value)


def estimate(count: Tensor, total: Tensor, squares: Tensor, *, over_groups: bool = False) -> Estimate:
    r"""Compute the mean of samples and its standard error from their sums.

    .. math:: \bar x = \frac{1}{n} \sum x_i, \qquad
              \mathrm{SE} = \sqrt{\frac{\sum x_i^2 - n \bar x^2}{n (n - 1)}}

    The standard error has :math:`n - 1` degrees of freedom, and that of a mean over groups g the degrees of
    freedom of Welch and Satterthwaite:

    .. math:: \nu = \frac{\left(\sum_g \mathrm{SE}_g^2\right)^2}{\sum_g \mathrm{SE}_g^4 / (n_g - 1)}

    Args:
        count: :math:`n`, the number of samples, of any shape.
        total: :math:`\sum x_i`, of a shape that broadcasts with that of ``count``.
        squares: :math:`\sum x_i^2`, of the shape of ``total``.
        over_groups: whether to average over the first dimension, whose entries are groups such as classes.
            The result is then the unweighted mean of the groups' means (macro average); groups without
            samples are left out.

    Returns:
        An estimate of the broadcast shape, without the first dimension if ``over_groups``.

    Source: Satterthwaite, Biometrics Bulletin 2 (1946), 110-114; Welch, Biometrika 34 (1947), 28-35

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional.statistics import estimate
        >>> result = estimate(torch.tensor(4), torch.tensor(2.0), torch.tensor(2.0))  # samples 0, 0, 1, 1
        >>> result.mean, result.standard_error
        (tensor(0.5000), tensor(0.2887))
        >>> result.interval()
        (tensor(-0.4187), tensor(1.4187))
        >>> result.interval(low=0.0, high=1.0)
        (tensor(0.0247), tensor(0.9753))

    """
    count = count.to(total.dtype)
    mean = total / count
    variance = (squares - count * mean.square()).clamp(min=0) / (count - 1)
    variance_of_mean = torch.where(count > 1, variance / count, torch.full_like(variance, torch.nan))
    if not over_groups:
        return Estimate(mean, variance_of_mean.sqrt(), count - 1, count)
    has_samples = (count > 0).expand_as(mean)
    groups, count = has_samples.sum(0), count.expand_as(mean)
    parts = torch.where(has_samples, variance_of_mean, 0)
    total_variance = parts.sum(0)
    shares = torch.where(total_variance > 0, parts / total_variance, has_samples / groups)
    return Estimate(
        mean.nanmean(0),
        total_variance.sqrt() / groups,
        1 / torch.where(has_samples, shares.square() / (count - 1), 0).sum(0),
        groups * torch.where(has_samples, count, torch.inf).amin(0),
    )


def mean_difference(
    first: Sums, second: Sums, *, over_groups: bool = False, level: float = 0.95
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Compute the difference of the means of two independent samples, with its interval and p-value.

    Both are the more cautious ones of two t tests: the wider interval and the larger p-value. Welch's test
    has the standard error :math:`\sqrt{s_1^2 / n_1 + s_2^2 / n_2}`. It does not assume equal variances, but
    takes the variance of a small sample as known: if three images have the value 0 of a proportion, it is 0.
    Student's test has the variance of both samples together, and assumes that they are equal. It alone is
    used where one sample has a single value.

    If all values of the first sample are equal, and all values of the second, no t test can judge. The bounds
    are then NaN. The p-value is 1 for equal means, and otherwise that of an exact permutation test: the
    :math:`n_1 + n_2` images can be divided into two samples of these sizes in
    :math:`\binom{n_1 + n_2}{n_1}` ways, and at most two of them have a difference this large.

    Args:
        first: count, sum and sum of squares of the first sample, as for `estimate`.
        second: those of the second, of shapes that broadcast.
        over_groups: whether the means are averages over the first dimension, as for `estimate`. The variance
            of both samples together is then that within each group.
        level: the confidence level, in (0, 1).

    Returns:
        First mean minus second, lower bound, upper bound and p-value; NaN without samples, and the bounds and
        the p-value also for two single values.

    Source: Welch, Biometrika 34 (1947), 28-35; Satterthwaite, Biometrics Bulletin 2 (1946), 110-114

    Example:
        >>> import torch
        >>> from torchmetrics_cam.functional.statistics import mean_difference
        >>> first = torch.tensor(4), torch.tensor(2.0), torch.tensor(2.0)  # of 0, 0, 1, 1
        >>> second = torch.tensor(3), torch.tensor(6.0), torch.tensor(14.0)  # of 1, 2, 3
        >>> [round(float(value), 3) for value in mean_difference(first, second)]
        [-1.5, -3.554, 0.554, 0.103]

    """
    samples = [estimate(*sums, over_groups=over_groups) for sums in (first, second)]
    tests = _welch(*samples), _student(first, second, samples, over_groups=over_groups)
    difference = tests[0].mean
    (lower, upper), (other_lower, other_upper) = (test.interval(level) for test in tests)
    lower, upper = torch.fmin(lower, other_lower), torch.fmax(upper, other_upper)
    p_value = torch.fmax(*(test.p_value() for test in tests))
    sizes = [one.count.to(difference.dtype).expand_as(difference) for one in samples]
    log_ways = (sizes[0] + sizes[1] + 1).lgamma() - (sizes[0] + 1).lgamma() - (sizes[1] + 1).lgamma()
    of_constants = (2 * (-log_ways).exp()).clamp(max=1).where(difference != 0, 1)
    is_constant = torch.fmax(*(test.standard_error for test in tests)) == 0
    nan = difference.new_full((), torch.nan)
    return (
        difference,
        lower.where(~is_constant, nan),
        upper.where(~is_constant, nan),
        torch.where(is_constant, of_constants, p_value).where(difference.isfinite(), nan),
    )


def _welch(first: Estimate, second: Estimate) -> Estimate:
    """Return the difference of two means, whose variances are estimated separately."""
    variances = first.standard_error.square(), second.standard_error.square()
    total = variances[0] + variances[1]
    df = total.square() / (
        variances[0].square() / first.degrees_of_freedom + variances[1].square() / second.degrees_of_freedom
    )
    return Estimate(first.mean - second.mean, total.sqrt(), df, first.count + second.count)


def _student(first: Sums, second: Sums, samples: Sequence[Estimate], *, over_groups: bool) -> Estimate:
    """Return the difference of two means, whose variance is that of both samples together, in each group."""
    difference = samples[0].mean - samples[1].mean
    spread = weight = degrees = torch.zeros((), dtype=difference.dtype, device=difference.device)
    for sums in (first, second):
        count, total, squares = (part if over_groups else part.unsqueeze(0) for part in sums)
        count = count.to(total.dtype).expand_as(total)
        has_samples = count > 0
        spread = spread + torch.where(has_samples, squares - total.square() / count, 0).clamp(min=0)
        weight = weight + torch.where(has_samples, 1 / count, 0) / has_samples.sum(0).square()
        degrees = degrees + (count - 1).clamp(min=0)
    parts = torch.where(weight > 0, spread / degrees * weight, 0)
    variance = parts.sum(0)
    shares = torch.where(weight > 0, (parts / variance).square() / degrees, 0)
    return Estimate(difference, variance.sqrt(), 1 / shares.sum(0), samples[0].count + samples[1].count)


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
