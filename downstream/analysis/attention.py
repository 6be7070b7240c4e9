"""How far, how broadly and how differently the heads of a layer look: distance, entropy, diversity.

Xie et al. (CVPR 2023) define the three in words; their code is not public, and the code of others differs. What is
open is a field of :class:`Convention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from downstream.analysis.probe import NO_TOKEN, AnalysisError, Layout

_FLOOR = -1e4  # for the logarithm of a masked weight: exp() of it is 0 and, unlike with -inf, 0 times it is 0

KEYS = ("renormalised", "as they are")
UNITS = ("nats", "bits")
PAIRS = ("others", "all", "symmetric")


@dataclass(frozen=True)
class Convention:
    """What the paper leaves open about attention.

    Attributes:
        keys: class tokens, registers and padding are dropped as queries and as keys. "renormalised": the remaining
            weights of a query are scaled to sum to 1 (as naver-ai/cl-vs-mim does for its mutual information);
            "as they are": they are not (liuxingbin/dbot, analysis/analysis.py), so that distances shrink by what
            went to the class token, entropies are partial sums, and the KL is no divergence and may be below 0.
        entropy: "nats" or "bits"; also the unit of the KL.
        kl: the number of head i is the mean over heads j of KL(i ‖ j). "others": over the H - 1 others; "all": over
            all H, itself with its 0 among them, (H - 1) / H of the former; "symmetric": over the others, of
            (KL(i ‖ j) + KL(j ‖ i)) / 2.
    """

    keys: str = "renormalised"
    entropy: str = "nats"
    kl: str = "others"

    def __post_init__(self) -> None:
        for field, known in (("keys", KEYS), ("entropy", UNITS), ("kl", PAIRS)):
            if getattr(self, field) not in known:
                raise AnalysisError(f"{field}: {getattr(self, field)!r} is not one of {', '.join(known)}")

    @property
    def name(self) -> str:
        """The convention in words, to be printed beside its numbers."""
        return f"keys {self.keys}, {self.entropy}, KL to {'all' if self.kl == 'all' else 'the other'} heads" + (
            ", both ways" if self.kl == "symmetric" else ""
        )


def patch_attention(log_attention: Tensor, layout: Layout, convention: Convention) -> tuple[Tensor, Tensor, Tensor]:
    """The attention among patches alone.

    Args:
        log_attention: (B × W, H, N, N), natural logarithms.

    Returns:
        (B × W, H, M, M) logarithms without what is no patch in any window (floored, never -inf); (M, M) distances in
        pixels; (B × W, M) 1 where the query is a patch, 0 where a window has padding there.
    """
    device = log_attention.device
    real = (layout.tokens != NO_TOKEN).to(device)  # (W, N)
    used = real.any(0).nonzero()[:, 0]
    log = log_attention
    if len(used) < real.shape[1]:
        first, last = int(used[0]), int(used[-1]) + 1
        behind = last - first == len(used)  # class tokens and registers stand before the patches: a view will do
        log = log[..., first:last, first:last] if behind else log[..., used, :][..., used]
    real = real[:, used]
    repeated = real.repeat(log.shape[0] // len(real), 1)
    log = log.clamp(min=_FLOOR)
    if not real.all():
        log = log.masked_fill(~repeated[:, None, None], _FLOOR)
    if convention.keys == "renormalised":
        log = log - log.logsumexp(-1, keepdim=True)
    return log, layout.distances.to(device)[used][:, used], repeated.float()


def head_sums(log_attention: Tensor, layout: Layout, convention: Convention) -> dict[str, Tensor]:
    """Sums over pictures, windows and queries, for each of H heads: divide by "queries" to get means.

    Args:
        log_attention: (B × W, H, N, N), natural logarithms of attention weights.

    Returns:
        float64 (H,): "distance" Σ_k A[q, k] · dist(q, k) in pixels; "entropy" -Σ_k A[q, k] ln A[q, k]; "kl", the mean
        over pairs of heads of Σ_k A_i[q, k] (ln A_i[q, k] - ln A_j[q, k]), NaN with one head (both in the
        convention's unit); and "queries" (1,), their number.
    """
    log, distances, queries = patch_attention(log_attention, layout, convention)
    attention = log.exp()
    if not bool(queries.all()):
        attention = attention * queries[:, None, :, None]  # queries of padding weigh nothing in all that follows
    distance = (attention * distances).sum((0, 2, 3), dtype=torch.float64)
    # For all pairs of heads at once, Σ A_i ln A_i - Σ A_i ln A_j over queries and keys. The heads' mean logarithm is
    # taken off first: it cancels, and what stays is small where heads are alike, so that float32 keeps its digits.
    middle = log.mean(1, keepdim=True)
    apart = (log - middle).flatten(2)
    cross = torch.bmm(attention.flatten(2), apart.transpose(1, 2)).sum(0, dtype=torch.float64)
    kl = cross.diagonal()[:, None] - cross  # (H, H), 0 on the diagonal
    shared = torch.bmm(attention.flatten(2), middle.flatten(2).transpose(1, 2)).sum((0, 2), dtype=torch.float64)
    negative, heads = cross.diagonal() + shared, log.shape[1]  # Σ A_i ln A_i: the entropy with a minus sign
    if convention.kl == "symmetric":
        kl = (kl + kl.T) / 2
    pairs = heads if convention.kl == "all" else heads - 1
    unit = 1.0 if convention.entropy == "nats" else 1 / math.log(2)
    return {
        "distance": distance, "entropy": -negative * unit,
        "kl": (kl.sum(1) / pairs if pairs else torch.full_like(negative, math.nan)) * unit,
        "queries": queries.sum().double()[None],
    }


def uniform_distance(layout: Layout) -> float:
    """The averaged attention distance of attention spread evenly over the patches of a window, in pixels.

    The mask of a shifted window is not counted: its attention cannot spread so far.
    """
    return _over_queries(layout, lambda distances: distances.mean(1))


def uniform_entropy(layout: Layout, convention: Convention) -> float:
    """The entropy of such attention, in the convention's unit: ln N for N patches."""
    unit = 1.0 if convention.entropy == "nats" else 1 / math.log(2)
    return unit * _over_queries(layout, lambda distances: torch.full((len(distances),), math.log(len(distances))))


def _over_queries(layout: Layout, of: Callable[[Tensor], Tensor]) -> float:
    values = [of(layout.distances[real][:, real]) for real in layout.tokens != NO_TOKEN]
    return float(torch.cat(values).double().mean())
