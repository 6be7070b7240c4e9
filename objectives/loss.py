"""Losses L: prediction, target and mask -> a scalar.

``region`` names where the loss looks: ``masked`` tokens, ``all`` tokens, or the whole ``picture`` (labels). The value
at a token is the mean over its channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from objectives.recipe import ObjectiveError
from objectives.registry import LOSSES

_REGIONS = ("masked", "all")


class _TokenLoss:
    def __init__(self, region: str = "masked") -> None:
        if region not in _REGIONS:
            raise ObjectiveError(f"objective.loss.region: {region!r} is not one of {', '.join(_REGIONS)}")
        self.region = region

    def per_token(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, L, C) twice -> (B, L)."""
        raise NotImplementedError

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        if not target.is_floating_point():
            raise ObjectiveError("objective.loss: labels need CrossEntropy; this loss takes continuous targets")
        value = self.per_token(prediction.float(), target.float())
        if self.region == "all":
            return value.mean()
        if mask is None:
            raise ObjectiveError("objective.loss.region=masked, but the corruption masks nothing; use region=all")
        return (value * mask).sum() / mask.sum()


@LOSSES.register_module()
class NoLoss:
    """For objectives that do not train."""


@LOSSES.register_module()
class MSE(_TokenLoss):
    """Squared difference (MAE)."""

    def per_token(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).square().mean(-1)


@LOSSES.register_module()
class L1(_TokenLoss):
    """Absolute difference (SimMIM)."""

    def per_token(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (prediction - target).abs().mean(-1)


@LOSSES.register_module()
class SmoothL1(_TokenLoss):
    """Quadratic below ``beta``, linear above (MaskDistill, data2vec)."""

    def __init__(self, region: str = "masked", beta: float = 1.0) -> None:
        super().__init__(region)
        self.beta = beta

    def per_token(self, prediction: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(prediction, target, beta=self.beta, reduction="none").mean(-1)


@LOSSES.register_module()
class Cosine(_TokenLoss):
    """2 - 2 cos (EVA, MILAN)."""

    def per_token(self, prediction: Tensor, target: Tensor) -> Tensor:
        return 2 - 2 * F.cosine_similarity(prediction, target, dim=-1)


@LOSSES.register_module()
class CrossEntropy:
    """Cross-entropy of class labels (B,)."""

    def __init__(self, region: str = "picture", label_smoothing: float = 0.0) -> None:
        if region != "picture":
            raise ObjectiveError(f"objective.loss.region: CrossEntropy of labels looks at the picture, not {region!r}")
        self.label_smoothing = label_smoothing

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        if target.is_floating_point():
            raise ObjectiveError("objective.loss.type=CrossEntropy needs class labels, but the target is continuous")
        return F.cross_entropy(prediction.float(), target.to(torch.long), label_smoothing=self.label_smoothing)
