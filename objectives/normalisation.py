"""Normalisations N of a target (B, L, C)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from objectives.registry import NORMALISATIONS


@NORMALISATIONS.register_module()
class NoNorm:
    """The target as it is."""

    def __call__(self, target: Tensor) -> Tensor:
        return target


@NORMALISATIONS.register_module()
class PatchNorm:
    """Mean 0, variance 1 over all values of a patch; unbiased variance, eps inside the root (MAE, norm_pix_loss)."""

    def __init__(self, eps: float = 1e-6) -> None:
        self.eps = eps

    def __call__(self, target: Tensor) -> Tensor:
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        return (target - mean) / (var + self.eps).sqrt()


@NORMALISATIONS.register_module()
class LayerNorm:
    """LayerNorm over the channels without affine (MaskDistill)."""

    def __init__(self, eps: float = 1e-6) -> None:
        self.eps = eps

    def __call__(self, target: Tensor) -> Tensor:
        return F.layer_norm(target, target.shape[-1:], eps=self.eps)


@NORMALISATIONS.register_module()
class L2Norm:
    """Unit length over the channels (EVA, MILAN)."""

    def __call__(self, target: Tensor) -> Tensor:
        return F.normalize(target, dim=-1)
