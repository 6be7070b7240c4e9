"""Mean, interval and rank over few seeds.

**Interval.** With scores x_1 … x_n of n seeds, mean m and sample standard deviation s (divisor n − 1), the 95 %
interval is m ± t(0.975, n − 1) · s / √n with Student's t: it covers the mean over all seeds at the nominal rate when
the scores of seeds are normally distributed, also for n as small as 2 or 3. One seed has no interval. It speaks of the
spread over seeds, not over test items.

**Rank.** Competition ranks (1, 2, 2, 4): equal scores share a rank, the next one is skipped. Overlap of two intervals
is reported apart and is no test of a difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

METHOD = "mean ± half width of the 95 % interval over seeds (Student t, n − 1 degrees of freedom; none for one seed)"


@dataclass(frozen=True)
class Summary:
    """Scores of ``n`` seeds, in the metric's unit. ``ci95`` is (low, high), None for one seed."""

    mean: float
    ci95: tuple[float, float] | None
    n: int


def summarise(values: Sequence[float]) -> Summary:
    """Mean and 95 % interval of one score per seed; the order of the seeds does not matter, to the last bit.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    n = len(values)
    if n == 0 or not all(math.isfinite(value) for value in values):
        raise ValueError(f"a summary needs finite values, got {list(values)!r}")
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(mean, None, 1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = _t975(n - 1) * deviation / math.sqrt(n)
    return Summary(mean, (mean - half, mean + half), n)


def intervals_overlap(a: Summary, b: Summary) -> bool:
    """Whether the 95 % intervals share a point; an interval that is not there counts as wide open (nothing known)."""
    if a.ci95 is None or b.ci95 is None:
        return True
    return a.ci95[0] <= b.ci95[1] and b.ci95[0] <= a.ci95[1]


def competition_ranks(scores: Sequence[float | None], higher_is_better: bool) -> list[int | None]:
    """Rank of each score, 1 the best, equal ones sharing the better rank; None stays None and takes no rank."""
    present = sorted((score for score in scores if score is not None), reverse=higher_is_better)
    first: dict[float, int] = {}
    for rank, score in enumerate(present, 1):
        first.setdefault(score, rank)
    return [None if score is None else first[score] for score in scores]


def mean_ranks(ranks: Mapping[str, Sequence[int | None]]) -> list[float | None]:
    """Mean over the columns of the ranks that each row has (column -> rank per row); None for a row without any."""
    rows = zip(*ranks.values(), strict=True)
    present = [[rank for rank in row if rank is not None] for row in rows]
    return [sum(row) / len(row) if row else None for row in present]


@cache
def _t975(degrees: int) -> float:
    """Quantile 0.975 of Student's t for whole degrees of freedom.

    Computed here because importing scipy.special would take longer than all the rest of a table. P(|T| ≤ t) is a finite
    sum in θ = atan(t / √degrees) (Abramowitz and Stegun 26.7.3 and 26.7.4); it grows with θ, so halving finds 0.95.
    """

    def within(theta: float) -> float:
        sine, cosine = math.sin(theta), math.cos(theta)
        odd = degrees % 2
        term, total = (cosine, 0.0) if odd else (1.0, 0.0)
        for k in range(2 + odd, degrees + 1, 2):
            total += term
            term *= (k - 1) / k * cosine**2
        return (theta + sine * total) * 2 / math.pi if odd else sine * total

    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if within(middle) < 0.95 else (low, middle)
    return math.sqrt(degrees) * math.tan(middle)
