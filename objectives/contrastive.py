"""Losses between the crops of a batch: prediction and target are one vector per crop, crops of a kind in a row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from objectives.recipe import ObjectiveError
from objectives.registry import LOSSES, Geometry


class _CropLoss:
    region = "picture"
    divisible = False  # a batch's crops are compared with each other

    def __init__(self, temperature: float) -> None:
        if temperature <= 0:
            raise ObjectiveError(f"objective.loss.temperature: {temperature} must be above 0")
        self.temperature = temperature

    def _check(self, prediction: Tensor, target: Tensor) -> None:
        fits = prediction.ndim == target.ndim == 2 and prediction.shape[1] == target.shape[1]
        if not fits or len(target) % 2 or len(prediction) % max(1, len(target) // 2):
            raise ObjectiveError(
                f"objective.loss.type={type(self).__name__} compares crops as vectors, not {tuple(prediction.shape)} "
                f"with {tuple(target.shape)}; it goes with TwoViews or MultiCrop, PooledStudent and a momentum teacher"
            )


@LOSSES.register_module()
class InfoNCE(_CropLoss):
    """MoCo v3's contrast (2104.02057, algorithm 1): which of the batch is the same picture's other view?

    Cross-entropy of cosines / ``temperature`` (.2), times 2 · ``temperature``; first view against the teacher's
    second, plus second against first.
    """

    def __init__(self, temperature: float = 0.2, geometry: Geometry | None = None) -> None:
        super().__init__(temperature)

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """(2B, C) predictions of any length and (2B, C) targets of unit length, view by view -> scalar."""
        self._check(prediction, target)
        with torch.autocast(prediction.device.type, enabled=False):  # cosines in full precision
            queries = F.normalize(prediction.float(), dim=-1).chunk(2)
            keys = target.float().chunk(2)
            right = torch.arange(len(keys[0]), device=target.device)
            parts = [F.cross_entropy(q @ k.T / self.temperature, right)
                     for q, k in zip(queries, keys[::-1], strict=True)]
        return 2 * self.temperature * sum(parts)


@LOSSES.register_module()
class CrossViews(_CropLoss):
    """DINO's cross-entropy (2104.14294, equation 3): each large crop's target against every other crop's prediction.

    The mean over all such pairs; ``temperature`` (.1) is the student's.
    """

    compares = False  # a picture's crops only with each other

    def __init__(self, temperature: float = 0.1, geometry: Geometry | None = None) -> None:
        super().__init__(temperature)

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits ((2 + n) B, K), the large crops' first, and probabilities (2B, K), crop by crop -> scalar."""
        self._check(prediction, target)
        wanted = target.float().unflatten(0, (2, -1))  # (2, B, K)
        log = F.log_softmax(prediction.float() / self.temperature, dim=-1).unflatten(0, (-1, wanted.shape[1]))
        others = log.sum(0) - log[:2]  # of all crops but the target's own
        return -(wanted * others).sum(-1).mean() / (len(log) - 1)
