"""Attention in bfloat16 on a CPU, as products of matrices on a few pictures at a time.

torch's fused kernel multiplies short sequences slowly there, above all on the way back: it takes a third of MAE's step
(197 tokens). The products that it stands for are quick, as long as the weights of attention that they leave behind for
each other stay in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

CACHED = 2 << 20  # bytes of attention weights at a time; 1 to 4 MiB are equally fast, all at once a third slower
KEPT = 64 << 20  # bytes of a layer's weights that are kept for the way back; at a batch of 16 ViT-B has 15 MB


class AttentionByProducts(TorchFunctionMode):
    """Within it, and within autocast, ``scaled_dot_product_attention`` is computed in bfloat16 by :class:`Products`.

    Calls that those do not know (dropout, causal or boolean masks) go to torch's own kernel, and so do those of
    networks that leave autocast because they need all their digits.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and torch.is_autocast_enabled("cpu"):
            return _attention(*args, **kwargs)
        return func(*args, **kwargs)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:
    added = attn_mask is None or attn_mask.is_floating_point()
    if query.dim() != 4 or not added or dropout_p or is_causal or enable_gqa:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    if attn_mask is not None:
        pictures = attn_mask.shape[0] if attn_mask.dim() == 4 else 1
        attn_mask = attn_mask.bfloat16().broadcast_to(pictures, query.shape[1], query.shape[2], key.shape[2])
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return Products.apply(query.bfloat16(), key.bfloat16(), value.bfloat16(), attn_mask, scale)


class Products(torch.autograd.Function):
    """``softmax(scale · q kᵀ + bias) v`` of q (B, H, N, D), k (B, H, M, D), v (B, H, M, E), bias (B or 1, H, N, M).

    All in the precision of q, sums in fp32 inside the kernels. For the way back it keeps q, k, v and, where they take
    no more than :data:`KEPT`, the weights, which are computed again otherwise.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
            shape, item = (*query.shape[:3], key.shape[2]), query.element_size()
            kept = any(ctx.needs_input_grad) and item * math.prod(shape) <= KEPT
            weights = query.new_empty(shape) if kept else None
            answer = query.new_empty(*shape[:3], value.shape[-1])
            for part in _parts(shape, item):
                made = _weights(query[part], key[part], _of(bias, part), scale, _of(weights, part))
                torch.bmm(made, _flat(value[part]), out=_flat(answer[part]))
        ctx.save_for_backward(query, key, value, bias, weights)
        ctx.scale = scale
        return answer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, weights = ctx.saved_tensors
        gradient = gradients[0].contiguous()
        shape = (*query.shape[:3], key.shape[2])
        of_query, of_key, of_value = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        of_bias = None
        if ctx.needs_input_grad[3]:
            of_bias = torch.zeros(bias.shape, dtype=torch.promote_types(bias.dtype, torch.float32))
        for part in _parts(shape, query.element_size()):
            if weights is None:
                made = _weights(query[part], key[part], _of(bias, part), ctx.scale)
            else:
                made = _flat(weights[part])
            asked = _flat(gradient[part])
            torch.bmm(made.mT, asked, out=_flat(of_value[part]))
            of_made = torch.bmm(asked, _flat(value[part]).mT)
            of_scores = torch._softmax_backward_data(of_made, made, -1, made.dtype)
            _times(ctx.scale, of_scores, _flat(key[part]), _flat(of_query[part]))
            _times(ctx.scale, of_scores.mT, _flat(query[part]), _flat(of_key[part]))
            if of_bias is not None:
                pictures = of_scores.view(-1, *shape[1:])
                for mine, picture in zip(_of(of_bias, part).expand_as(pictures), pictures, strict=True):
                    mine += picture  # one by one: torch's sum over pictures takes four times as long
        return of_query, of_key, of_value, None if of_bias is None else of_bias.to(query.dtype), None


def _weights(
    query: Tensor, key: Tensor, bias: Tensor | None, scale: float, out: Tensor | None = None
) -> Tensor:
    """Softmax of q (b, H, N, D), scaled, on k (b, H, M, D) -> (b · H, N, M)."""
    scores = query.new_empty(*query.shape[:3], key.shape[2])
    if bias is not None:
        scores.copy_(bias)
    _times(scale, _flat(query), _flat(key).mT, _flat(scores), more=bias is not None)
    return torch.softmax(_flat(scores), -1, out=_flat(scores if out is None else out))


def _times(scale: float, one: Tensor, other: Tensor, out: Tensor, more: bool = False) -> None:
    """Write the scaled product of (n, N, D) and (n, D, M) into ``out`` (n, N, M), or add it to that."""
    torch.baddbmm(out, one, other, beta=int(more), alpha=scale, out=out)


def _of(tensor: Tensor | None, part: slice) -> Tensor | None:
    """What belongs to the pictures ``part``: rows of theirs, or the one that all share."""
    return tensor if tensor is None or len(tensor) == 1 else tensor[part]


def _parts(shape: Sequence[int], item: int) -> Iterator[slice]:
    """The pictures of weights of ``shape`` (B, H, N, M), as many at a time as fit into :data:`CACHED`."""
    count = max(1, CACHED // (item * shape[1] * shape[2] * shape[3]))
    return (slice(start, start + count) for start in range(0, shape[0], count))


def _flat(x: Tensor) -> Tensor:
    """(B, H, N, D) -> (B · H, N, D), the same memory."""
    return x.view(-1, *x.shape[2:])
