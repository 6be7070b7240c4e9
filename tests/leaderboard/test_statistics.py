import itertools
import math
import random

import numpy as np
import pytest
from scipy import stats

from leaderboard.statistics import (
    FEWEST_ITEMS,
    MOST_RESAMPLED,
    Summary,
    competition_ranks,
    holm,
    intervals_overlap,
    item_interval,
    item_intervals,
    mean_ranks,
    paired_t,
    paired_ts,
    sign_flip,
    sign_flips,
    significant_ranks,
    summarise,
    t975,
    welch,
)


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
        assert t975(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-11)


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
    for _ in range(10_000):
        interval = summarise([draw.gauss(70, 2) for _ in range(n)]).ci95
        assert interval is not None
        hits += interval[0] <= 70 <= interval[1]
    assert 0.93 <= hits / 10_000 <= 0.97


@pytest.mark.parametrize("n", [16, 100])
@pytest.mark.parametrize("law", ["normal", "skewed"])
def test_item_intervals_cover_at_the_nominal_rate(n, law):
    draw = np.random.default_rng(n)
    shape = (n, 10_000)  # items, draws
    scores = draw.normal(70, 20, shape) if law == "normal" else 70 + 5 * draw.gamma(4, 1, shape)
    low, high = item_intervals(scores)
    truth = 70 if law == "normal" else 90
    assert 0.93 <= np.mean((low <= truth) & (truth <= high)) <= 0.97


def test_item_interval_agrees_with_scipys_bootstrap():
    scores = np.random.default_rng(3).gamma(2, 10, 400)
    theirs = stats.bootstrap((scores,), np.mean, method="percentile", n_resamples=20_000, random_state=1)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert item_interval(scores) == pytest.approx(tuple(theirs.confidence_interval), abs=0.05 * width)
    assert item_interval(scores) == item_interval(list(scores))


def test_many_items_take_the_normal_limit():
    draw = np.random.default_rng(0)
    many = draw.normal(50, 10, MOST_RESAMPLED + 1)
    low, high = item_interval(many)
    assert high - low == pytest.approx(2 * 1.96 * 10 / math.sqrt(len(many)), rel=0.03)


def test_item_intervals_at_the_edges():
    assert item_interval([1.0] * (FEWEST_ITEMS - 1)) is None
    assert item_interval([0.1] * FEWEST_ITEMS) == (0.1, 0.1)
    with pytest.raises(ValueError, match="at least"):
        item_intervals(np.ones((2, 3)))


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_paired_t_agrees_with_scipy(n):
    draw = np.random.default_rng(n)
    for shift in (0.0, 0.5, 3.0):
        a, b = draw.normal(shift, 1, n), draw.normal(0, 1, n)
        assert paired_t(list(a - b)) == pytest.approx(stats.ttest_rel(a, b).pvalue, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("n", [2, 3, 4, 9])
def test_welch_agrees_with_scipy(n):
    draw = np.random.default_rng(n)
    a, b = draw.normal(0, 1, n), draw.normal(0.7, 3, n + 2)
    ours = welch(b.mean() - a.mean(), a.std(ddof=1), n, b.std(ddof=1), n + 2)
    assert ours == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-9)
    assert welch(0.0, 1.0, n, 1.0, n) == 1.0
    assert welch(0.1, 0.0, n, 0.0, n) == 0.0
    assert welch(1e-200, 1e-200, 3, 2e-200, 3) == 0.0  # squares vanish
    assert 0 <= welch(1e-100, 1e-100, 3, 2e-100, 3) < 1


@pytest.mark.parametrize("n", [2, 3, 4, 9])
def test_all_paired_t_at_once_are_each_alone(n):
    scores = np.random.default_rng(n).normal(0, 1, (n, 5)) + [0, 0, 1, 5, 0]
    scores[:, 4] = scores[:, 0]
    p = paired_ts(scores)
    for i, j in itertools.combinations(range(5), 2):
        assert p[i, j] == p[j, i] == pytest.approx(paired_t(list(scores[:, i] - scores[:, j])), rel=1e-9, abs=1e-12)


def test_paired_t_at_the_edges():
    assert paired_t([0.0, 0.0]) == 1.0
    assert paired_t([1.0, 1.0, 1.0]) == 0.0
    assert paired_t([1.0, -1.0]) == 1.0
    with pytest.raises(ValueError, match="two"):
        paired_t([1.0])


@pytest.mark.parametrize("n", [5, 12, 200])
def test_sign_flips_agree_with_scipy(n):
    draw = np.random.default_rng(n)
    differences = draw.normal(0.15, 1, n)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=20_000, vectorized=True, rng=draw
    ).pvalue
    ours = sign_flip(differences)
    assert ours == pytest.approx(theirs, abs=1e-12 if n <= 12 else 0.02)
    assert ours == sign_flip(-differences) == sign_flip(list(differences))


def test_all_pairs_at_once_are_each_pair_alone():
    scores = np.random.default_rng(5).normal(0, 1, (40, 4)) + [0, 0, 0.5, 3]
    p = sign_flips(scores)
    for i, j in itertools.combinations(range(4), 2):
        assert p[i, j] == p[j, i] == pytest.approx(sign_flip(scores[:, i] - scores[:, j]), abs=1e-9)
    assert sign_flips(np.ones((20, 2)))[0, 1] == 1.0


def test_sign_flips_reject_at_the_nominal_rate():
    draw = np.random.default_rng(0)
    scores = draw.normal(0, 1, (30, 150)) + draw.normal(0, 5, (30, 1))  # the items' difficulty is shared
    p = sign_flips(scores)[::2, 1::2].diagonal()
    p = np.concatenate([p, sign_flips(draw.permutation(scores, axis=1))[::2, 1::2].diagonal()])
    assert 0.0 < np.mean(p <= 0.05) <= 0.12


def test_holm():
    # Holm's own rule by hand: 0.01·4, 0.013·3 raised to 0.04, 0.03·2, 0.5
    assert holm([0.03, 0.01, 0.5, 0.013]) == pytest.approx([0.06, 0.04, 0.5, 0.04])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_significant_ranks():
    better = [set(), {0}, {0}, {0, 1, 2}, set()]
    assert significant_ranks([9.0, 8.0, 7.9, 1.0, None], better) == [1, 2, 2, 4, None]


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
