"""Centred kernel alignment (CKA) of features, with linear kernels.

Kornblith et al., "Similarity of Neural Network Representations Revisited" (ICML 2019), for the exact form; Nguyen,
Raghu & Kornblith, "Do Wide and Deep Networks Learn the Same Things?" (ICLR 2021), section 3, for the minibatch form,
whose HSIC is the unbiased estimator of Song et al. (JMLR 2012). Which one Xie et al. (CVPR 2023) use is not known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from downstream.analysis.probe import AnalysisError

FEWEST = 4  # pictures: the unbiased HSIC divides by n - 3


def gram(features: Tensor) -> Tensor:
    """(n, …) -> (n, n) float64 inner products of the flattened features, centred over the n pictures.

    Centring changes neither form of CKA and keeps a common offset from eating the digits of float32.
    """
    flat = features.flatten(1).float()
    flat = flat - flat.mean(0)
    return (flat @ flat.T).double()


def hsic_unbiased(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741 - the paper's letters
    """Unbiased HSIC of every Gram matrix in ``k`` (A, n, n) with every one in ``l`` (B, n, n): (A, B).

    Raises:
        AnalysisError: n < 4.
    """
    n = k.shape[-1]
    if n < FEWEST:
        raise AnalysisError(f"the unbiased HSIC needs at least {FEWEST} pictures in a batch, not {n}")
    off = 1 - torch.eye(n, dtype=k.dtype, device=k.device)
    k, l = k * off, l * off  # noqa: E741
    rows_k, rows_l = k.sum(-1), l.sum(-1)
    trace = k.flatten(1) @ l.flatten(1).T
    totals = rows_k.sum(-1)[:, None] * rows_l.sum(-1) / ((n - 1) * (n - 2))
    return (trace + totals - 2 / (n - 2) * rows_k @ rows_l.T) / (n * (n - 3))


def hsic_biased(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """HSIC0 = tr(KHLH) / (n - 1)² of every pair of Gram matrices (A, n, n) and (B, n, n): (A, B)."""
    n = k.shape[-1]

    def centred(g: Tensor) -> Tensor:
        return (g - g.mean(-1, keepdim=True) - g.mean(-2, keepdim=True) + g.mean((-2, -1), keepdim=True)).flatten(1)

    return centred(k) @ centred(l).T / (n - 1) ** 2


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Exact linear CKA of (n, …) and (n, …), in [0, 1]; NaN where one of them is constant.

    ‖YᵀX‖² / (‖XᵀX‖ ‖YᵀY‖) with centred columns, through the Gram matrices: for n far below the number of features.
    """
    k, l = gram(x)[None], gram(y)[None]  # noqa: E741
    return float(hsic_biased(k, l) / (hsic_biased(k, k) * hsic_biased(l, l)).sqrt())


class RunningCKA:
    """CKA between A and B lists of features, summed over batches: three numbers a pair, whatever the pictures.

    Args:
        exact: one batch with biased HSIC is exact CKA; else the minibatch estimator, Σ HSIC(K, L) over
            √(Σ HSIC(K, K) · Σ HSIC(L, L)), which may leave [0, 1] by its noise.
    """

    def __init__(self, exact: bool = False) -> None:
        self.hsic = hsic_biased if exact else hsic_unbiased
        self.sums: list[Tensor] | None = None

    def add(self, k: Tensor, l: Tensor) -> None:  # noqa: E741
        """One batch: Gram matrices (A, n, n) and (B, n, n) of the same n pictures."""
        new = [self.hsic(k, l)]
        new += [torch.stack([self.hsic(g[None], g[None])[0, 0] for g in grams]) for grams in (k, l)]
        self.sums = new if self.sums is None else [a + b for a, b in zip(self.sums, new, strict=True)]

    def result(self) -> Tensor:
        """(A, B) float64; NaN where a layer's own HSIC is not above 0.

        Raises:
            AnalysisError: no batch was added.
        """
        if self.sums is None:
            raise AnalysisError(f"CKA needs at least {FEWEST} pictures")
        both, first, second = self.sums
        scale = first[:, None] * second
        return torch.where((first[:, None] > 0) & (second > 0), both / scale.clamp(min=1e-300).sqrt(), torch.nan)
