r"""Student's t distribution: the probability of its tails and its quantiles, which torch does not have.

With :math:`t = \sqrt{\nu} \sinh u` the density of :math:`\nu` degrees of freedom is proportional to
:math:`\cosh(u)^{-\nu}`, so that tail and normalization are the same integral from different starts.
"""

import math
from statistics import NormalDist

import torch
from torch import Tensor

# The trapezoidal rule after the substitution w = exp(x - exp(-x)), whose error decreases exponentially with
# the number of points for an integrand that decays exponentially. This step and these ends leave an error of
# 1e-11, relative to the integral.
_STEP, _FIRST, _LAST = 1 / 7, -22, 28


def two_sided_tail(t: Tensor, df: Tensor) -> Tensor:
    """Return the probability that a variable is further from 0 than t.

    Args:
        t: at least 0 and finite, of any shape.
        df: the degrees of freedom, at least 1, not necessarily an integer, of a shape that broadcasts.

    Returns:
        Probabilities of the broadcast shape and of the dtype of ``t``, with a relative error of 1e-10 in
        float64; NaN where an argument is.
    """
    df = df.to(t.dtype)
    density = (-df / 2 * (t.square() / df).log1p()).exp()
    return density * _integral(t, df) / _integral(torch.zeros_like(t), df)


def two_sided_quantile(level: float, df: Tensor) -> Tensor:
    """Return the value that a variable exceeds in absolute value with the probability ``1 - level``.

    Args:
        level: in (0, 1).
        df: the degrees of freedom, at least 1, not necessarily an integer, float, of any shape.

    Returns:
        Quantiles of the shape and the dtype of ``df``, with a relative error of 1e-10 in float64; NaN where
        ``df`` is.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    # The start is Wallace's approximation (1959); two steps from it leave an error below 1e-12.
    t = (df * ((z * (8 * df + 3) / (8 * df + 1)).square() / df).expm1()).sqrt()
    s = df.sqrt() * (t / df.sqrt()).asinh()
    log_normalization = _integral(torch.zeros_like(df), df).log() + math.log(1 - level)
    for _ in range(2):
        # Halley's method for the logarithm of the tail, whose derivative by s is -1 / integral.
        t = df.sqrt() * (s / df.sqrt()).sinh()
        integral = _integral(t, df)
        excess = integral.log() - df / 2 * (t.square() / df).log1p() - log_normalization
        curvature = 1 - df.sqrt() * t / (df + t.square()).sqrt() * integral
        s = s + 2 * excess * integral / (2 + excess * curvature)
    return df.sqrt() * (s / df.sqrt()).sinh()


def _integral(t: Tensor, df: Tensor) -> Tensor:
    r"""Return the integral of :math:`(\cosh(u + w / \sqrt{\nu}) / \cosh u)^{-\nu}` over w from 0."""
    x = _STEP * torch.arange(_FIRST, _LAST + 1, dtype=t.dtype, device=t.device)
    w = (x - (-x).exp()).exp()
    weights = _STEP * w * (1 + (-x).exp())
    t, df = t.unsqueeze(-1), df.unsqueeze(-1)
    # cosh(u + step) / cosh(u) - 1 = (cosh(step) - 1) + sinh(step) tanh(u), all of them from expm1(step).
    growth = (w / df.sqrt()).expm1()
    decay = growth / (1 + growth)
    rise = (growth * decay + (growth + decay) * t / (df + t.square()).sqrt()) / 2
    return ((-df * rise.log1p()).exp() * weights).sum(-1)
