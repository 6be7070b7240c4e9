"""Floating-point operations of a piece of work, counted while it is done: matrix products, convolutions, attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

_ATTENTION = torch.ops.aten
_FORWARD = (_ATTENTION._scaled_dot_product_flash_attention_for_cpu,)  # torch's counter has no formula for it
_BACKWARD = (
    _ATTENTION._scaled_dot_product_flash_attention_for_cpu_backward,
    _ATTENTION._scaled_dot_product_flash_attention_backward,
    _ATTENTION._scaled_dot_product_efficient_attention_backward,
    _ATTENTION._scaled_dot_product_cudnn_attention_backward,
)


def _forward(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _backward(
    gradient: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Four products: of the gradients of value, weights, query and key, each as large as one of the forward pass.

    Fused kernels compute the weights a second time; torch's formula counts that, but the model did not ask for it.
    """
    return 2 * sdpa_flop_count(query, key, value)


def counted(work: Callable[[], Any]) -> float:
    """Operations of ``work``, two to a multiply-add, forward and backward, of what is computed: the same on every
    device, but fewer where tokens are left out (:meth:`~objectives.objective.Objective.economise`).
    """
    formulas = {**dict.fromkeys(_FORWARD, _forward), **dict.fromkeys(_BACKWARD, _backward)}
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        work()
    return float(counter.get_total_flops())
