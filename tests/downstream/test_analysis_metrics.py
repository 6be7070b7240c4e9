"""Metrics of analyses against answers known beforehand."""

import math

import pytest
import torch

from downstream.analysis.attention import KEYS, PAIRS, UNITS, Convention, head_sums, uniform_distance, uniform_entropy
from downstream.analysis.features import RunningMoments, RunningSpectrum
from downstream.analysis.probe import AnalysisError, Layout
from downstream.analysis.similarity import RunningCKA, gram, hsic_biased, hsic_unbiased, linear_cka
from objectives.health import health

PLAIN = Convention()


def means(attention, layout, convention=PLAIN):
    sums = head_sums(attention.log(), layout, convention)
    return {name: (values / sums["queries"]).tolist() for name, values in sums.items()}


def random_attention(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(*shape, generator=generator)).softmax(-1)


# --- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(3, 3), (4, 6)])
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_uniform_attention(grid, prefix):
    count = grid[0] * grid[1]
    layout = Layout.whole(grid, 16.0, prefix)
    attention = torch.full((2, 3, prefix + count, prefix + count), 1 / (prefix + count))
    found = means(attention, layout)
    places = [(i // grid[1], i % grid[1]) for i in range(count)]
    pairwise = sum(16 * math.dist(a, b) for a in places for b in places) / count**2
    assert found["distance"] == pytest.approx([pairwise] * 3, rel=1e-5)
    assert found["entropy"] == pytest.approx([math.log(count)] * 3, rel=1e-5)
    assert found["kl"] == pytest.approx([0] * 3, abs=1e-5)
    assert uniform_distance(layout) == pytest.approx(pairwise, rel=1e-5)
    assert uniform_entropy(layout, PLAIN) == pytest.approx(math.log(count))
    assert uniform_entropy(layout, Convention(entropy="bits")) == pytest.approx(math.log2(count))


def test_identity_attention():
    found = means(torch.eye(9).expand(2, 4, 9, 9), Layout.whole((3, 3), 8.0))
    assert found["distance"] == [0] * 4
    assert found["entropy"] == pytest.approx([0] * 4, abs=1e-6)
    assert found["kl"] == pytest.approx([0] * 4, abs=1e-6)


def test_identical_heads_have_no_diversity_and_different_ones_have():
    one = random_attention(2, 1, 10, 10)
    layout = Layout.whole((3, 3), 8.0, prefix=1)
    for keys in KEYS:
        assert means(one.expand(2, 4, 10, 10), layout, Convention(keys))["kl"] == pytest.approx([0] * 4, abs=1e-5)
    assert min(means(random_attention(2, 4, 10, 10), layout)["kl"]) > 0.1


def reference(attention, distances, keep, keys):
    """Distance, entropy and (H, H) KL by loops over queries, in float64."""
    heads = attention.shape[1]
    kl, rows = torch.zeros(heads, heads, dtype=torch.float64), []
    for picture in attention.double():
        for q in keep:
            row = picture[:, q][:, keep]
            rows.append((row / row.sum(-1, keepdim=True) if keys == "renormalised" else row, distances[q][keep]))
    distance = sum((row * d).sum(-1) for row, d in rows) / len(rows)
    entropy = sum(-(row * row.log()).sum(-1) for row, _ in rows) / len(rows)
    for i in range(heads):
        for j in range(heads):
            kl[i, j] = sum((row[i] * (row[i] / row[j]).log()).sum() for row, _ in rows) / len(rows)
    return distance, entropy, kl


@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("pairs", PAIRS)
def test_every_convention_against_plain_loops(keys, unit, pairs):
    layout = Layout.whole((2, 3), 4.0, prefix=2)
    attention = random_attention(3, 4, 8, 8)
    distance, entropy, kl = reference(attention, layout.distances.double(), torch.arange(2, 8), keys)
    if pairs == "symmetric":
        kl = (kl + kl.T) / 2
    scale = 1 / math.log(2) if unit == "bits" else 1
    found = means(attention, layout, Convention(keys, unit, pairs))
    assert found["distance"] == pytest.approx(distance.tolist(), rel=1e-5)
    assert found["entropy"] == pytest.approx((entropy * scale).tolist(), rel=1e-5)
    assert found["kl"] == pytest.approx((kl.sum(1) * scale / (4 if pairs == "all" else 3)).tolist(), rel=1e-4)


def test_what_the_class_token_draws_shortens_distances_only_as_they_are():
    attention = torch.full((1, 1, 5, 5), 0.1)
    attention[..., 0] = 0.6
    layout = Layout.whole((2, 2), 10.0, prefix=1)
    whole, partial = (means(attention, layout, Convention(keys))["distance"][0] for keys in KEYS)
    assert partial == pytest.approx(0.4 * whole, rel=1e-5)


def test_padding_counts_neither_as_query_nor_as_key():
    """3 × 3 tokens in one padded 4 × 4 window are 3 × 3 tokens."""
    attention = random_attention(2, 2, 9, 9)
    padded = torch.rand(2, 2, 16, 16)
    inside = [i for i in range(16) if i % 4 < 3 and i // 4 < 3]
    for a, i in enumerate(inside):
        padded[:, :, i, inside] = attention[:, :, a] * 0.5
    plain = means(attention, Layout.whole((3, 3), 8.0))
    window = means(padded, Layout.windows((3, 3), 8.0, (4, 4)))
    for name in plain:
        assert window[name] == pytest.approx(plain[name], rel=1e-4)


def test_windows_cap_the_distance():
    layout = Layout.windows((8, 8), 4.0, (4, 4))
    found = means(torch.full((2 * 4, 3, 16, 16), 1 / 16), layout)
    assert found["distance"] == pytest.approx([uniform_distance(Layout.whole((4, 4), 4.0))] * 3, rel=1e-5)
    assert found["entropy"] == pytest.approx([math.log(16)] * 3, rel=1e-5)


def test_masked_weights_of_zero_do_no_harm():
    attention = random_attention(1, 2, 4, 4)
    attention[..., 3] = 0
    attention = attention / attention.sum(-1, keepdim=True)
    assert all(math.isfinite(v) for values in means(attention, Layout.whole((2, 2), 8.0)).values() for v in values)


def test_one_head_has_no_diversity_to_measure():
    assert math.isnan(means(random_attention(1, 1, 4, 4), Layout.whole((2, 2), 8.0))["kl"][0])


def test_conventions_are_named_and_checked():
    assert PLAIN.name == "keys renormalised, nats, KL to the other heads"
    other = Convention("as they are", "bits", "symmetric")
    assert other.name == "keys as they are, bits, KL to the other heads, both ways"
    with pytest.raises(AnalysisError, match="nits"):
        Convention(entropy="nits")


# --- CKA --------------------------------------------------------------------------------------------------------------


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def minibatch(x, y, size):
    running = RunningCKA()
    for a, b in zip(x.split(size), y.split(size), strict=True):
        running.add(gram(a)[None], gram(b)[None])
    return float(running.result())


def test_cka_ignores_rotation_scale_and_offset():
    x = draw(64, 10) * torch.arange(1, 11)
    q = torch.linalg.qr(draw(10, 10, seed=1))[0]
    y = 3 * x @ q + 100
    assert linear_cka(x, y) == pytest.approx(1, abs=1e-5)
    assert minibatch(x, y, 16) == pytest.approx(1, abs=1e-4)


def test_cka_is_the_formula_of_kornblith():
    x, y = draw(20, 6), draw(20, 9, seed=1)
    a, b = (x - x.mean(0)).double(), (y - y.mean(0)).double()
    expected = (b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm())
    assert linear_cka(x, y) == pytest.approx(float(expected), rel=1e-5)


def test_cka_with_independent_noise_tends_to_zero():
    assert abs(minibatch(draw(4096, 20), draw(4096, 30, seed=1), 64)) < 0.02
    exact = [linear_cka(draw(n, 20), draw(n, 30, seed=1)) for n in (64, 512, 4096)]
    assert exact == sorted(exact, reverse=True)
    assert exact[-1] < 0.02


@pytest.mark.parametrize("size", [8, 32, 128])
def test_the_minibatch_estimator_agrees_with_the_exact_one(size):
    x = draw(4096, 12) @ draw(12, 12, seed=2)
    y = x @ draw(12, 16, seed=1) + 3 * draw(4096, 16, seed=3)
    assert minibatch(x, y, size) == pytest.approx(linear_cka(x, y), abs=0.02)


def test_the_unbiased_hsic_is_the_sum_over_distinct_pictures():
    """Song et al. 2012: the mean of K_ij (L_ij + L_qr - 2 L_iq) over i, j, q, r all distinct."""
    from itertools import permutations

    k, l = (gram(draw(6, 3, seed=s)) for s in (0, 1))  # noqa: E741
    terms = [k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in permutations(range(6), 4)]
    assert float(hsic_unbiased(k[None], l[None])) == pytest.approx(float(sum(terms) / len(terms)), rel=1e-9)


def test_the_biased_hsic_is_the_trace():
    k, l = (gram(draw(6, 3, seed=s)) for s in (0, 1))  # noqa: E741
    h = torch.eye(6).double() - 1 / 6
    assert float(hsic_biased(k[None], l[None])) == pytest.approx(float(torch.trace(k @ h @ l @ h)) / 25)


def test_a_common_offset_changes_nothing():
    x = draw(16, 5)
    shifted = (x + 7).double()
    raw = shifted @ shifted.T
    torch.testing.assert_close(
        hsic_unbiased(raw[None], raw[None]), hsic_unbiased(gram(x)[None], gram(x)[None]), rtol=1e-4, atol=0
    )


def test_cka_between_two_networks_is_the_transpose():
    k, l = (torch.stack([gram(draw(16, 5, seed=s)) for s in seeds]) for seeds in ((0, 1, 2), (3, 4)))  # noqa: E741
    forth, back = RunningCKA(), RunningCKA()
    forth.add(k, l)
    back.add(l, k)
    assert forth.result().shape == (3, 2)
    torch.testing.assert_close(forth.result(), back.result().T)


def test_too_few_pictures_and_constant_features():
    with pytest.raises(AnalysisError, match="at least 4"):
        RunningCKA().add(gram(draw(3, 5))[None], gram(draw(3, 5))[None])
    with pytest.raises(AnalysisError, match="at least 4"):
        RunningCKA().result()
    running = RunningCKA()
    running.add(gram(torch.ones(8, 5))[None], gram(draw(8, 5))[None])
    assert running.result().isnan().all()


# --- features ---------------------------------------------------------------------------------------------------------


def moments(maps, size=5):
    running = RunningMoments()
    for batch in maps.split(size):
        running.add(batch)
    return running.result()


def test_moments_in_batches_are_those_of_all_at_once():
    maps = draw(13, 6, 4, 4) * torch.arange(1, 7).view(1, 6, 1, 1) + 50
    found = moments(maps)
    tokens = maps.permute(0, 2, 3, 1).reshape(-1, 6).double()
    assert found["variance"] == pytest.approx(float(tokens.var(0, correction=0).mean()), rel=1e-5)
    values = torch.linalg.svdvals(tokens - tokens.mean(0))
    share = values / values.sum()
    assert found["effective_rank"] == pytest.approx(float((-(share * share.log()).sum()).exp()), rel=1e-5)
    between = maps.mean((2, 3)).double().var(0, correction=0).mean()
    assert found["within"] == pytest.approx(1 - float(between) / found["variance"], rel=1e-4)


def test_moments_of_collapse():
    line = draw(32, 1, 4, 4) * torch.ones(1, 8, 1, 1)
    assert moments(line)["effective_rank"] == pytest.approx(1, abs=1e-4)
    assert moments(torch.ones(8, 8, 4, 4)) == {"variance": 0, "within": 0, "effective_rank": 0}
    assert moments(draw(64, 8, 8, 8))["effective_rank"] == pytest.approx(8, abs=0.01)
    same_everywhere = draw(32, 8, 1, 1).expand(32, 8, 4, 4)
    assert moments(same_everywhere)["within"] == pytest.approx(0, abs=1e-5)
    same_pictures = draw(1, 8, 4, 4).expand(32, 8, 4, 4)
    assert moments(same_pictures)["within"] == pytest.approx(1, abs=1e-5)


def test_rounding_is_no_direction_at_the_width_of_a_vit_b():
    """And pre-training's check for collapse finds the same numbers, by another way."""
    line = draw(32, 1, 4, 4) * draw(1, 768, 1, 1) + 3
    wide = draw(64, 48, 4, 4)
    wide = torch.einsum("bchw,cd->bdhw", wide, draw(48, 768))
    for maps, rank in ((line, 1), (wide, 47)):
        found = moments(maps)["effective_rank"]
        assert found == pytest.approx(health(maps.flatten(2).transpose(1, 2))["effective_rank"], abs=2e-3)
        assert found == pytest.approx(rank, rel=0.05 if rank > 1 else 1e-4)


def spectrum(maps):
    running = RunningSpectrum()
    for batch in maps.split(4):
        running.add(batch)
    return running.result()


def test_frequencies_of_known_patterns():
    x = torch.arange(8)
    wave = torch.cos(2 * math.pi * x / 8).expand(3, 5, 8, 8)
    board = ((x[:, None] + x) % 2 * 2.0 - 1).expand(3, 5, 8, 8)
    assert spectrum(wave + 4)["high_frequency_share"] == pytest.approx(0, abs=1e-6)
    assert spectrum(board + 4)["high_frequency_share"] == pytest.approx(1, abs=1e-6)
    assert spectrum(board + 4)["relative_log_amplitude"] == pytest.approx(math.log(1 / 4), abs=1e-4)
    radius = torch.hypot(torch.fft.fftfreq(8)[:, None], torch.fft.fftfreq(8)[None])
    bins = float((radius >= 0.25).sum()) / 63
    assert spectrum(draw(64, 16, 8, 8))["high_frequency_share"] == pytest.approx(bins, abs=0.01)


def test_a_map_of_one_token_has_no_frequencies():
    assert spectrum(draw(3, 5, 1, 1)) == {"high_frequency_share": None, "relative_log_amplitude": None}
    assert spectrum(torch.ones(3, 5, 4, 4))["high_frequency_share"] == pytest.approx(0, abs=1e-6)
