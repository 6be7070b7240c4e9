"""Attention by products is attention: torch's own, to rounding."""

import pytest
import torch
from torch.nn import functional as F

from objectives import products
from objectives.products import AttentionByProducts, Products


def drawn(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


def both(ours, theirs, inputs):
    """Answers and gradients of two functions of the same inputs."""
    found = []
    for function in (ours, theirs):
        answer = function(*inputs)
        found.append((answer, torch.autograd.grad((answer * answer.detach().cos()).sum(), inputs)))
    return found


@pytest.mark.parametrize("pictures_at_a_time", [1, 2, 8])
@pytest.mark.parametrize("biases", [0, 1, 5])
@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_answers_and_gradients_are_those_of_torch(pictures_at_a_time, biases, kept, monkeypatch):
    monkeypatch.setattr(products, "KEPT", kept)
    monkeypatch.setattr(products, "CACHED", pictures_at_a_time * 8 * 2 * 7 * 9)
    inputs = [drawn(5, 2, 7, 4), drawn(5, 2, 9, 4), drawn(5, 2, 9, 3)] + [drawn(biases, 2, 7, 9)] * (biases > 0)

    def ours(query, key, value, bias=None):
        return Products.apply(query, key, value, bias, 0.3)

    def theirs(query, key, value, bias=None):
        return F.scaled_dot_product_attention(query, key, value, bias, scale=0.3)

    (answer, gradients), (wanted, expected) = both(ours, theirs, inputs)
    torch.testing.assert_close(answer, wanted)
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("mask", [None, (6, 6), (2, 6, 6), (1, 1, 6, 6), (3, 1, 6, 6), (3, 2, 1, 6)])
def test_within_the_mode_attention_is_computed_so_in_bfloat16(mask):
    inputs = [drawn(3, 2, 6, 4, dtype=torch.float32) for _ in range(3)] + ([drawn(*mask)] if mask else [])

    def ours(*inputs):
        with torch.autocast("cpu"), AttentionByProducts():
            answer = F.scaled_dot_product_attention(*inputs)
        assert answer.dtype == torch.bfloat16
        return answer.float()

    def theirs(query, key, value, mask=None):
        return F.scaled_dot_product_attention(query, key, value, None if mask is None else mask.float())

    (answer, gradients), (wanted, expected) = both(ours, theirs, inputs)
    torch.testing.assert_close(answer, wanted, atol=0.02, rtol=0.02)
    torch.testing.assert_close(gradients, expected, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("other", [
    {"attn_mask": torch.tensor([[True, False], [True, True]])}, {"is_causal": True}, {"dropout_p": 0.5},
])
def test_what_it_does_not_know_is_left_to_torch(other):
    inputs = [drawn(3, 2, 2, 4, dtype=torch.float32) for _ in range(3)]
    torch.manual_seed(0)
    with torch.autocast("cpu"):
        wanted = F.scaled_dot_product_attention(*inputs, **other)
    torch.manual_seed(0)
    with torch.autocast("cpu"), AttentionByProducts():
        assert torch.equal(F.scaled_dot_product_attention(*inputs, **other), wanted)


def test_a_network_that_leaves_autocast_keeps_its_digits():
    inputs = [drawn(3, 2, 2, 4, dtype=torch.float32) for _ in range(3)]
    wanted = F.scaled_dot_product_attention(*inputs)
    with torch.autocast("cpu"), AttentionByProducts(), torch.autocast("cpu", enabled=False):
        assert torch.equal(F.scaled_dot_product_attention(*inputs), wanted)


@pytest.mark.parametrize(("limit", "count"), [(10**9, 4), (10, 3)])
def test_large_weights_are_not_kept(limit, count, monkeypatch):
    monkeypatch.setattr(products, "KEPT", limit)
    inputs = [drawn(3, 2, 6, 4, dtype=torch.bfloat16) for _ in range(3)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.shape) or x, lambda x: x):
        Products.apply(*inputs, None, 0.5)
    assert len(saved) == count
    assert ((3, 2, 6, 6) in saved) is (limit > 10)


def test_nothing_is_kept_where_no_gradient_is_asked_for():
    inputs = [drawn(3, 2, 6, 4, dtype=torch.bfloat16) for _ in range(3)]
    with torch.no_grad(), torch.autocast("cpu"), AttentionByProducts():
        answer = F.scaled_dot_product_attention(*inputs)
    assert answer.grad_fn is None
    torch.testing.assert_close(answer, F.scaled_dot_product_attention(*inputs).detach(), atol=0.02, rtol=0.02)
