"""Confidence intervals of means, as bands and tables show them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

_FEW = (12.706205, 4.302653, 3.182446, 2.776445, 2.570582)
_NORMAL = 1.959963984540054


def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with so many degrees of freedom, to four digits.

    Example:
        >>> [round(student(freedom), 3) for freedom in (1, 5, 12, 100)]
        [12.706, 2.571, 2.179, 1.984]

    Source: Abramowitz & Stegun, 26.7.5, the expansion around the normal quantile; of few degrees their table.
    """
    if freedom <= len(_FEW):
        return _FEW[freedom - 1]
    z, n = _NORMAL, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / n ** (i + 1) for i, term in enumerate(terms))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """A mean and half the width of its 95 % confidence interval, by Student's t; the half is NaN for one value, and
    where some are not finite.

    Example:
        >>> mean, half = interval([1.0, 2.0, 3.0])
        >>> round(mean, 3), round(half, 3)
        (2.0, 2.484)
    """
    n = len(values)
    mean = statistics.fmean(values)
    varies = n > 1 and all(map(math.isfinite, values))
    return mean, student(n - 1) * statistics.stdev(values) / math.sqrt(n) if varies else math.nan
