import itertools
import math
import random

import pytest
from scipy import stats

from leaderboard.statistics import Summary, _t975, competition_ranks, intervals_overlap, mean_ranks, summarise


@pytest.mark.parametrize("values", [[61.2, 60.4, 62.9], [1.0, 2.0], [0.31, 0.3, 0.35, 0.29, 0.33], [5.0, 5.0, 5.0]])
def test_interval_agrees_with_scipy(values):
    summary = summarise(values)
    assert summary.mean == pytest.approx(stats.tmean(values), rel=1e-12)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=summary.mean, scale=stats.sem(values) or 1e-300)
    assert summary.ci95 == pytest.approx((low, high), rel=1e-9)


def test_interval_of_fixed_numbers():
    # t(0.975, 2) = 4.302653, s = 1, so 2 ± 4.302653 / √3
    summary = summarise([1.0, 2.0, 3.0])
    assert summary == Summary(2.0, pytest.approx((2 - 2.4841377, 2 + 2.4841377), abs=1e-6), 3)


def test_every_quantile_agrees_with_scipy():
    for degrees in (*range(1, 60), 99, 100, 999):
        assert _t975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-11)


def test_one_seed_has_no_interval():
    assert summarise([3.5]) == Summary(3.5, None, 1)


def test_the_order_of_seeds_does_not_matter():
    found = {summarise(list(values)) for values in itertools.permutations([0.1, 0.2, 0.3, 1e9])}
    assert len(found) == 1


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
def test_no_summary_of_nothing(values):
    with pytest.raises(ValueError, match="finite"):
        summarise(values)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_intervals_cover_at_the_nominal_rate(n):
    draw = random.Random(n)
    hits = 0
    for _ in range(4000):
        interval = summarise([draw.gauss(70, 2) for _ in range(n)]).ci95
        assert interval is not None
        hits += interval[0] <= 70 <= interval[1]
    assert 0.935 <= hits / 4000 <= 0.965  # four standard errors to either side


def test_overlap():
    a, b, c = Summary(1, (0, 2), 3), Summary(3, (2, 4), 3), Summary(9, (8, 10), 3)
    assert intervals_overlap(a, b)
    assert not intervals_overlap(a, c)
    assert not intervals_overlap(c, a)
    assert intervals_overlap(c, Summary(1, None, 1))


def test_competition_ranks():
    assert competition_ranks([3, 5, None, 5, 1], higher_is_better=True) == [3, 1, None, 1, 4]
    assert competition_ranks([3, 5, None, 5, 1], higher_is_better=False) == [2, 3, None, 3, 1]
    assert competition_ranks([], True) == []


def test_mean_ranks():
    assert mean_ranks({"a": [1, 2, None], "b": [2, 1, None], "c": [None, 3, None]}) == [1.5, 2.0, None]
    assert mean_ranks({}) == []
