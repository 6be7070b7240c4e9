"""Means, intervals, paired comparisons and ranks over few seeds and many test items.

**Interval over seeds.** With scores x_1 … x_n of n seeds, mean m and sample standard deviation s (divisor n − 1), the
95 % interval is m ± t(0.975, n − 1) · s / √n with Student's t: it covers the mean over all seeds at the nominal rate
when the scores of seeds are normally distributed, also for n as small as 2 or 3. One seed has no interval. It speaks of
the spread over seeds, not over test items.

**Interval over items.** Where a metric is the mean of one score per test item, :func:`item_interval` resamples the
items (bootstrap) and answers another question: how far would the number move with other test items of the same kind,
the trained networks staying as they are? It says nothing of the spread over seeds.

**Comparison.** Rows of a column are tested together (:func:`pooled_tests`): score = row + seed + noise, fitted by least
squares over all rows, with **one variance of the noise for all rows** of the column. Few seeds say little of one row's
spread; the residuals of all rows say enough. For k rows with the same n seeds this is the two-way analysis of variance
without replication, with (k − 1)(n − 1) degrees of freedom. Rows may have different seeds, or one; rows that no common
seeds link are tested without the seeds (score = row + noise). Where every row has one seed there are no residuals, and
what remains is the test items: random sign flips of the differences (:func:`sign_flip`). The p values of all pairs of a
column are corrected together (:func:`holm`).

**Rank.** :func:`significant_ranks`: one more than the number of rows that are significantly better. Rows that no test
separates therefore tie. Where nothing can be tested (one seed, and no items or too few, :func:`enough_items`) the
numbers as shown decide: :func:`competition_ranks` (1, 2, 2, 4). Overlap of two intervals is no test of a difference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy as np

Number = TypeVar("Number", float, "np.ndarray")

METHOD = "mean ± half width of the 95 % interval over seeds (Student t, n − 1 degrees of freedom; none for one seed)"
ITEM_METHOD = "[low, high]: 95 % sampling interval over test items (bootstrap), seeds held fixed"
PAIR_METHODS = {
    "seeds": "t tests of score = row + seed + noise, fitted to all rows of a column (without the seed where no common "
             "seeds link them), one variance of the noise for all",
    "items": "with one seed a row, sign flips over common test items",
}
CORRECTION = "Holm over the column's pairs"
LEVEL = 0.05  # of a significant difference, after the correction; the customary one
RESAMPLES = 2000  # of the items: the 2.5 % quantile then wobbles by about 1 % of the interval's width
FLIPS = 10_000  # random ones at least, where all 2^n are more than that: the least p value is then 1e-4
_FLIPS_A_PAIR = 40  # twice 1 / LEVEL: the least p value stays below LEVEL when it is multiplied by the number of pairs
_MOST_FLIPS = 2**18  # enough for 114 rows
_EXACT = 13  # items at most: 2^13 ≤ FLIPS
FEWEST_ITEMS = 8  # fewer have too few distinct resamples for quantiles this far out
MOST_RESAMPLED = 5000  # more items: the bootstrap's normal limit, which then differs by less than its own noise
_CHUNK = 2**22  # numbers in memory at once while resampling


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
    half = t975(n - 1) * deviation / math.sqrt(n)
    return Summary(mean, (mean - half, mean + half), n)


def prediction_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % interval in which the score of one more seed lies: m ± t(0.975, n − 1) · s · √(1 + 1/n).

    Wider than :func:`summarise`'s, which is of the mean over all seeds.

    Args:
        values: one finite score per seed, at least one.

    Returns:
        (low, high) in the metric's unit; None for one seed.
    """
    found = summarise(values)
    if found.ci95 is None:
        return None
    half = (found.ci95[1] - found.ci95[0]) / 2 * math.sqrt(found.n + 1)
    return found.mean - half, found.mean + half


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


def item_interval(scores: Sequence[float] | np.ndarray) -> tuple[float, float] | None:
    """95 % interval of the mean over test items, by resampling the items.

    The quantiles of a plain bootstrap give too short an interval for few items; they are taken further out, at
    Φ(±√(n/(n−1)) · t(0.975, n−1)), which mends just that (the expanded percentile interval of T. Hesterberg, "What
    Teachers Should Know About the Bootstrap", 2015). The same resamples are used for every call with as many items.

    Args:
        scores: one finite score per item, shape (n,), in the metric's unit.

    Returns:
        (low, high) in the metric's unit; None for fewer than FEWEST_ITEMS items.
    """
    import numpy as np

    values = np.asarray(scores, dtype=np.float64)
    if len(values) < FEWEST_ITEMS:
        return None
    low, high = item_intervals(values[:, None])
    return float(low[0]), float(high[0])


def item_intervals(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """:func:`item_interval` of every column at once.

    Args:
        scores: (n items, k columns), finite.

    Returns:
        Lower and upper ends, (k,) each.

    Raises:
        ValueError: fewer than FEWEST_ITEMS items.
    """
    import numpy as np

    n = len(scores)
    if n < FEWEST_ITEMS:
        raise ValueError(f"an interval over items needs at least {FEWEST_ITEMS} of them, got {n}")
    reach = math.sqrt(n / (n - 1)) * t975(n - 1)
    centre = scores.mean(axis=0)  # (k,)
    if n > MOST_RESAMPLED:
        half = reach * scores.std(axis=0) / math.sqrt(n)
        return centre - half, centre + half
    level = NormalDist().cdf(-reach)
    means = _resampled_counts(n) @ (scores - centre) / n  # (RESAMPLES, n) @ (n, k), about 0: constant scores stay exact
    low, high = np.quantile(means, [level, 1 - level], axis=0)
    return centre + low, centre + high


@cache
def _resampled_counts(n: int) -> np.ndarray:
    """How often each of n items is in each resample, (RESAMPLES, n); the same in every process."""
    import numpy as np

    draws = np.random.default_rng(n).integers(0, n, size=(RESAMPLES, n))
    draws += n * np.arange(RESAMPLES)[:, None]
    return np.bincount(draws.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n).astype(np.float64)


class Pooled(NamedTuple):
    """What :func:`pooled_tests` found of k rows."""

    effects: np.ndarray  # (k,) differences of two are the rows' differences, freed of the seeds they happen to have
    p: np.ndarray  # (k, k) two-sided, symmetric, 1 on the diagonal and where two rows do not differ
    degrees: int  # of freedom of the residuals


def pooled_tests(rows: Sequence[Mapping[int, float]]) -> Pooled | None:
    """t tests of all pairs of rows, from one additive model: score = row + seed + noise of one variance.

    The contrasts are those of least squares, their variances of its covariance, the degrees of freedom those of the
    residuals: observations − rows − seeds + 1. Where common seeds do not link all rows, or nothing is left for the
    residuals, the seeds are left out of the model (observations − rows): their spread is then part of the noise.

    Args:
        rows: per row seed -> score, finite, in the metric's unit; at least one each.

    Returns:
        None for fewer than two rows, and where every row has one seed.
    """
    if len(rows) < 2 or max(map(len, rows)) < 2:
        return None
    import numpy as np

    place = {seed: i for i, seed in enumerate(sorted(set().union(*rows)))}
    there = np.zeros((len(rows), len(place)))  # (k, seeds) 1 where the row has the seed
    scores = np.zeros_like(there)
    for i, row in enumerate(rows):
        at = [place[seed] for seed in row]
        there[i, at], scores[i, at] = 1.0, list(row.values())
    largest = np.abs(scores).max()
    scores -= scores.sum() / there.sum() * there
    scale = np.abs(scores).max() or 1.0
    scores /= scale
    counts = there.sum(axis=1)  # (k,)
    degrees = int(there.sum()) - len(rows) - len(place) + 1
    if degrees > 0 and _linked(there):
        of_seed = there.sum(axis=0)  # (seeds,)
        # The normal equations without the seeds. Only differences of rows are asked for, and 1 / k in each place makes
        # the matrix regular and leaves them as they are.
        reduced = np.diag(counts) - there / of_seed @ there.T  # (k, k)
        inverse = np.linalg.inv(reduced + 1 / len(rows))
        effects = inverse @ (scores.sum(axis=1) - there / of_seed @ scores.sum(axis=0))
        seeds = (scores.sum(axis=0) - effects @ there) / of_seed
        own = np.diag(inverse)
        widths = own[:, None] + own - 2 * inverse  # (k, k) variances of the differences, in units of the noise's
    else:
        degrees = int(there.sum()) - len(rows)
        effects, seeds = scores.sum(axis=1) / counts, np.zeros(len(place))
        widths = 1 / counts[:, None] + 1 / counts
    residuals = (scores - effects[:, None] - seeds) * there
    noise = math.sqrt((residuals**2).sum() / degrees)
    rounding = 64 * np.finfo(np.float64).eps * max(1.0, largest / scale)  # less is no difference, and no noise
    upper = np.triu_indices(len(rows), 1)
    differences = np.abs(effects[upper[0]] - effects[upper[1]])
    differences[differences <= rounding] = 0.0
    # tan θ = t / √degrees
    theta = np.arctan2(differences, (noise if noise > rounding else 0.0) * np.sqrt(widths[upper] * degrees))
    p = np.ones((len(rows), len(rows)))
    p[upper] = np.clip(1.0 - _within(theta, np.sin(theta), np.cos(theta), degrees), 0.0, 1.0)
    p.T[upper] = p[upper]
    return Pooled(effects * scale, p, degrees)


def _linked(there: np.ndarray) -> bool:
    """Whether common seeds link all rows (k, seeds), be it through others: only then all differences are known."""
    rows = there[:1]
    while True:
        more = there[(there @ rows.any(axis=0)) > 0]  # every row that has a seed of one of them
        if len(more) == len(rows):
            return len(rows) == len(there)
        rows = more


def welch(difference: float, deviation_a: float, n_a: int, deviation_b: float, n_b: int) -> float:
    """Two-sided p value of Welch's t test: two groups of scores have one mean, whatever their spreads.

    Args:
        difference: of the means, in the metric's unit.
        deviation_a, deviation_b: standard deviations (divisor n − 1), at least 0.
        n_a, n_b: scores of each group, at least 2.

    Returns:
        p in 0 … 1; where neither group spreads, 1.0 for no difference and 0.0 for any.
    """
    from scipy.special import stdtr  # of a fractional number of degrees of freedom

    a, b = deviation_a**2 / n_a, deviation_b**2 / n_b
    if difference == 0:
        return 1.0
    largest = max(a, b)
    if largest == 0:
        return 0.0
    shares = a / largest, b / largest  # squares of tiny spreads would vanish
    degrees = sum(shares) ** 2 / (shares[0] ** 2 / (n_a - 1) + shares[1] ** 2 / (n_b - 1))
    return float(2 * stdtr(degrees, -abs(difference) / math.sqrt(a + b)))


def sign_flip(differences: Sequence[float] | np.ndarray) -> float:
    """Two-sided p value of the sign-flip test: the differences are spread evenly about 0.

    Args:
        differences: one per common item (or seed), shape (n,), finite.

    Returns:
        p in 0 … 1, as :func:`sign_flips`.
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    return float(sign_flips(np.stack([values, np.zeros_like(values)], axis=1))[0, 1])


def flips_of(items: int, pairs: int) -> int:
    """How many sign flips test ``pairs`` pairs over so many items: all 2^n, or a random part of them."""
    return 2**items if items <= _EXACT else min(_MOST_FLIPS, max(FLIPS, _FLIPS_A_PAIR * pairs))


def enough_items(items: int, pairs: int) -> bool:
    """Whether any of ``pairs`` differences, however large, can be significant after the correction for their number.

    Two of all 2^n flips are at least as extreme as any difference; of random ones the observed one is.
    """
    least = 2 / 2**items if items <= _EXACT else 1 / (flips_of(items, pairs) + 1)
    return least * pairs <= LEVEL


def sign_flips(scores: np.ndarray, pairs: int = 1) -> np.ndarray:
    """p values of the sign-flip test for all pairs of columns.

    All 2^n flips are tried where that is few, else :func:`flips_of` random ones, the same in every process; the
    observed one is then counted among them, so that the p value is never too small (Phipson and Smyth 2010).

    Args:
        scores: (n common items, k rows of a table), finite.
        pairs: that are tested together, and for whose number the p values will be corrected.

    Returns:
        (k, k), symmetric, 1 on the diagonal and where two columns are equal.
    """
    import numpy as np

    n, k = scores.shape
    centred = scores - scores.mean(axis=1, keepdims=True)  # what all rows share cancels in every difference
    scale = np.abs(centred).max(initial=0.0) or 1.0
    centred = centred / scale
    total = centred.sum(axis=0)  # (k,)
    signs = _signs(n, flips_of(n, pairs))
    # A flipped sum of differences is the difference of two flipped sums: one product serves all pairs.
    flipped = np.concatenate([part @ centred for part in signs])  # (flips, k)
    p = np.ones((k, k))
    for i in range(k - 1):
        least = np.abs(total[i] - total[i + 1 :]) - 1e-9 * n  # equal sums may differ by rounding
        extreme = np.count_nonzero(np.abs(flipped[:, i, None] - flipped[:, i + 1 :]) >= least, axis=0)
        p[i, i + 1 :] = extreme / len(flipped) if n <= _EXACT else (extreme + 1) / (len(flipped) + 1)
        p[i + 1 :, i] = p[i, i + 1 :]
    return p


def _signs(n: int, count: int) -> Iterator[np.ndarray]:
    """Signs (rows, n) of ±1 in pieces: all 2^n, or ``count`` random rows."""
    import numpy as np

    if n <= _EXACT:
        yield np.array(list(product((-1.0, 1.0), repeat=n)))
        return
    draw = np.random.default_rng(n)
    left = count
    while left:
        rows = min(left, max(1, _CHUNK // n))
        yield draw.integers(0, 2, size=(rows, n), dtype=np.int8) * 2.0 - 1.0
        left -= rows


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's step-down rule (1979), in the order given, at most 1."""
    corrected = [1.0] * len(p_values)
    running = 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, p_values[i] * (len(p_values) - place)))
        corrected[i] = running
    return corrected


def significant_ranks(scores: Sequence[float | None], better: Sequence[set[int]]) -> list[int | None]:
    """One more than the number of rows that are significantly better; None where there is no score.

    Args:
        scores: per row, None where it does not compete.
        better: per row the indices of the rows that are significantly better than it.
    """
    return [None if score is None else 1 + len(better[i]) for i, score in enumerate(scores)]


@cache
def t975(degrees: int) -> float:
    """Quantile 0.975 of Student's t for whole degrees of freedom.

    Computed here because importing scipy.special would take longer than all the rest of a table. P(|T| ≤ t) grows with
    t, so halving finds 0.95.
    """
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        found = _within(middle, math.sin(middle), math.cos(middle), degrees)
        low, high = (middle, high) if found < 0.95 else (low, middle)
    return math.sqrt(degrees) * math.tan(middle)


def _within(theta: Number, sine: Number, cosine: Number, degrees: int) -> Number:
    """P(|T| ≤ t) with θ = atan(t / √degrees): a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    odd = degrees % 2
    total, term = 0.0 * cosine, cosine if odd else 0.0 * cosine + 1.0  # numbers or arrays
    square = cosine**2
    for k in range(2 + odd, degrees + 1, 2):
        total = total + term
        term = term * ((k - 1) / k * square)
    return (theta + sine * total) * 2 / math.pi if odd else sine * total
