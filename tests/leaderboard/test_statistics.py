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
    _within,
    competition_ranks,
    enough_items,
    flips_of,
    holm,
    item_interval,
    item_intervals,
    mean_ranks,
    pooled_tests,
    prediction_interval,
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


@pytest.mark.parametrize("n", [2, 3, 5])
def test_prediction_intervals_hold_one_more_run_at_the_nominal_rate(n):
    draw = random.Random(n)
    hits = 0
    for _ in range(5000):
        low, high = prediction_interval([draw.gauss(70, 2) for _ in range(n)])
        hits += low <= draw.gauss(70, 2) <= high
    assert 0.93 <= hits / 5000 <= 0.97
    values = [61.2, 60.4, 62.9]
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=np.std(values, ddof=1) * math.sqrt(1 + 1 / 3))
    assert prediction_interval(values) == pytest.approx(expected, rel=1e-9)
    assert prediction_interval([3.0]) is None


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


def by_least_squares(rows):
    """p of every pair, and the degrees of freedom, from the whole design matrix."""
    seeds = sorted(set().union(*rows))
    lines = [(i, seeds.index(seed), value) for i, row in enumerate(rows) for seed, value in row.items()]
    design = np.zeros((len(lines), len(rows) + len(seeds)))
    for at, (i, seed, _) in enumerate(lines):
        design[at, [i, len(rows) + seed]] = 1
    scores = np.array([value for *_, value in lines])
    found, _, rank, _ = np.linalg.lstsq(design, scores)
    degrees = len(lines) - rank
    variance = ((scores - design @ found) ** 2).sum() / degrees
    covariance = np.linalg.pinv(design.T @ design)
    p = np.ones((len(rows), len(rows)))
    for i, j in itertools.permutations(range(len(rows)), 2):
        contrast = np.zeros(len(found))
        contrast[i], contrast[j] = 1, -1
        width = math.sqrt(variance * contrast @ covariance @ contrast)
        p[i, j] = 2 * stats.t.sf(abs(contrast @ found) / width, degrees)
    return p, degrees


@pytest.mark.parametrize("seeds", [
    ["012"] * 4, ["01", "01"], ["012", "012", "0", "123"], ["01234", "45", "05", "3", "0", "2345"],
])  # fmt: skip
def test_pooled_tests_agree_with_least_squares(seeds):
    draw = np.random.default_rng(len(seeds))
    of_seed = draw.normal(0, 3, 6)
    rows = [{int(s): 40 + i + of_seed[int(s)] + draw.normal() for s in own} for i, own in enumerate(seeds)]
    found = pooled_tests(rows)
    p, degrees = by_least_squares(rows)
    assert found.degrees == degrees
    assert found.p == pytest.approx(p, rel=1e-9, abs=1e-12)
    assert np.array_equal(found.p, found.p.T)


def test_pooled_tests_of_balanced_rows_are_the_two_way_analysis():
    scores = np.array([[61.0, 62.5, 60.1], [58.0, 60.2, 57.7], [50.5, 52.0, 51.9], [61.2, 62.0, 60.0]])  # rows, seeds
    found = pooled_tests([dict(enumerate(row)) for row in scores.tolist()])
    assert found.degrees == 3 * 2
    residuals = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
    width = math.sqrt((residuals**2).sum() / 6 * 2 / 3)
    t = (scores[0].mean() - scores[1].mean()) / width
    assert found.p[0, 1] == pytest.approx(2 * stats.t.sf(t, 6), rel=1e-9)
    assert found.effects[0] - found.effects[1] == pytest.approx(scores[0].mean() - scores[1].mean(), rel=1e-12)
    # two rows: Student's paired test
    pair = pooled_tests([dict(enumerate(row)) for row in scores[:2].tolist()])
    assert pair.p[0, 1] == pytest.approx(stats.ttest_rel(scores[0], scores[1]).pvalue, rel=1e-9)


def test_rows_that_no_common_seed_links_are_tested_without_seeds():
    a, b = [60.0, 61.5, 62.0], [57.0, 58.4]
    found = pooled_tests([dict(enumerate(a)), dict(zip((5, 6), b, strict=True))])
    assert found.degrees == 3
    assert found.p[0, 1] == pytest.approx(stats.ttest_ind(a, b).pvalue, rel=1e-9)
    one = pooled_tests([{0: 60.0, 1: 61.0}, {1: 58.0}])  # 3 numbers, 3 unknowns
    assert one.degrees == 1
    assert one.effects[0] - one.effects[1] == pytest.approx(2.5)
    # linked through a third row only
    chain = [{0: 1.0, 1: 2.1}, {1: 3.0, 2: 3.8}, {2: 5.2, 3: 6.0}, {3: 6.9, 0: 4.2}]
    assert pooled_tests(chain).degrees == 8 - 4 - 4 + 1


def test_no_pooled_test_without_a_second_seed():
    assert pooled_tests([{0: 1.0}, {0: 2.0}, {1: 2.0}]) is None
    assert pooled_tests([{0: 1.0, 1: 2.0}]) is None
    assert pooled_tests([]) is None


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e30])
def test_pooled_tests_at_the_edges(scale):
    same = pooled_tests([{0: scale, 1: 2 * scale}] * 3)
    assert np.array_equal(same.p, np.ones((3, 3)))
    exact = pooled_tests([{s: (0.1 * s + i) * scale for s in range(4)} for i in range(3)])  # no noise at all
    assert np.array_equal(exact.p, np.eye(3))
    flat = pooled_tests([{0: 0.0, 1: 0.0}, {0: 0.0, 1: 0.0}])
    assert np.array_equal(flat.p, np.ones((2, 2)))


def test_pooled_tests_err_at_most_at_the_nominal_rate():
    """No difference between six rows: any pair is called significant in about 5 % of the tables, Holm a little less."""
    draw = np.random.default_rng(11)
    wrong = 0
    for _ in range(1000):
        scores = draw.normal(0, 1, (6, 3)) + draw.normal(0, 5, 3)
        p = pooled_tests([dict(enumerate(row)) for row in scores.tolist()]).p[np.triu_indices(6, 1)]
        wrong += min(holm(p.tolist())) <= 0.05
    assert 0.02 <= wrong / 1000 <= 0.06


def test_pooled_tests_find_what_pairs_alone_cannot():
    """Three seeds and a difference of four standard deviations: a paired t on two degrees of freedom seldom finds it
    among fifteen pairs, the pooled one nearly always."""
    draw = np.random.default_rng(12)
    found = 0
    for _ in range(200):
        scores = draw.normal(0, 1, (6, 3)) + np.array([4, 0, 0, 0, 0, 0])[:, None]
        p = pooled_tests([dict(enumerate(row)) for row in scores.tolist()]).p[np.triu_indices(6, 1)]
        found += holm(p.tolist())[0] <= 0.05
    assert found / 200 > 0.7


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 55, 1790])
def test_tails_agree_with_scipy(degrees):
    t = np.array([0.0, 0.01, 0.5, 1.0, 2.5, 6.0])
    theta = np.arctan(t / math.sqrt(degrees))
    inside = _within(theta, np.sin(theta), np.cos(theta), degrees)
    assert 1 - inside == pytest.approx(2 * stats.t.sf(t, degrees), rel=1e-9, abs=1e-13)


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


def test_competition_ranks():
    assert competition_ranks([3, 5, None, 5, 1], higher_is_better=True) == [3, 1, None, 1, 4]
    assert competition_ranks([3, 5, None, 5, 1], higher_is_better=False) == [2, 3, None, 3, 1]
    assert competition_ranks([], True) == []


def test_mean_ranks():
    assert mean_ranks({"a": [1, 2, None], "b": [2, 1, None], "c": [None, 3, None]}) == [1.5, 2.0, None]
    assert mean_ranks({}) == []


def test_a_column_of_any_size_can_show_a_difference():
    assert not enough_items(2, 1)
    assert enough_items(6, 1)
    assert not enough_items(6, 3)
    for rows in (2, 26, 33, 60, 114):
        pairs = rows * (rows - 1) // 2
        assert enough_items(900, pairs)
        assert pairs / (flips_of(900, pairs) + 1) <= 0.05
    assert not enough_items(900, 10**6)


def test_as_many_flips_as_the_pairs_need():
    scores = np.random.default_rng(0).normal(size=(200, 34)) * 0.01 + np.arange(34)
    p = sign_flips(scores, 34 * 33 // 2)
    assert max(holm(p[np.triu_indices(34, 1)].tolist())) <= 0.05
