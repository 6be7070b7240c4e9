"""Losses L: prediction, target and mask -> a scalar.

``region`` names where the loss looks: ``masked`` tokens, ``all`` tokens, or the whole ``picture`` (labels). The value
at a token is the mean over its channels. A loss that ``narrows`` can be asked of some tokens as if there were no
others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch.nn.functional as F
from torch import Tensor

from objectives.degrade import margin_of, reflect_into, shrunk_of
from objectives.patches import area_resize, at, patchify, unpatchify
from objectives.recipe import ObjectiveError
from objectives.registry import LOSSES, Geometry

_REGIONS = ("masked", "all")


class _Regional:
    """A loss of tokens that looks at a region of them."""

    def __init__(self, region: str = "masked", geometry: Geometry | None = None) -> None:
        if region not in _REGIONS:
            raise ObjectiveError(f"objective.loss.region: {region!r} is not one of {', '.join(_REGIONS)}")
        self.region = region


class _TokenLoss(_Regional, ABC):
    narrows = True

    @abstractmethod
    def per_token(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, L, C) twice -> (B, L)."""

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        if not target.is_floating_point():
            raise ObjectiveError("objective.loss: labels need CrossEntropy; this loss takes continuous targets")
        value = self.per_token(prediction.float(), target.float())
        return _where(value, mask, self.region)


def _where(value: Tensor, mask: Tensor | None, region: str) -> Tensor:
    """Mean of a value per token (B, L) over the region."""
    if region == "all":
        return value.mean()
    if mask is None:
        raise ObjectiveError("objective.loss.region=masked, but the corruption masks nothing; use region=all")
    if mask.shape != value.shape:
        raise ObjectiveError(
            f"objective.loss.region=masked: {value.shape[1]} tokens are compared, {mask.shape[1]} are masked or not; "
            "use region=all"
        )
    return (value * mask).sum() / mask.sum()


@LOSSES.register_module()
class NoLoss:
    """For objectives that do not train."""

    region = "all"

    def __init__(self, geometry: Geometry | None = None) -> None:
        pass


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

    def __init__(self, region: str = "masked", beta: float = 1.0, geometry: Geometry | None = None) -> None:
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

    def __init__(
        self, region: str = "picture", label_smoothing: float = 0.0, geometry: Geometry | None = None
    ) -> None:
        if region != "picture":
            raise ObjectiveError(f"objective.loss.region: CrossEntropy of labels looks at the picture, not {region!r}")
        self.region, self.label_smoothing = region, label_smoothing

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        if target.is_floating_point():
            raise ObjectiveError("objective.loss.type=CrossEntropy needs class labels, but the target is continuous")
        return F.cross_entropy(prediction.float(), target.long(), label_smoothing=self.label_smoothing)

    def at_chance(self, labels: Tensor) -> float:
        """The least loss, in nats, of a prediction that is the same for all pictures, given all their labels (N,)."""
        share = labels.bincount().double() / len(labels)
        smooth = (1 - self.label_smoothing) * share + self.label_smoothing / len(share)
        return float(-(smooth * smooth.clamp(min=1e-12).log()).sum())


@LOSSES.register_module()
class TokenCrossEntropy:
    """Cross-entropy of token ids (BEiT); where several paths predict them, the sum of theirs (BEiT v2).

    Prediction (B, k·L, codes), block after block; target ids (B, L) in [0, codes); the mean over the region's tokens
    is taken for each of the k blocks.
    """

    def __init__(self, region: str = "masked", geometry: Geometry | None = None) -> None:
        if region not in _REGIONS:
            raise ObjectiveError(f"objective.loss.region: {region!r} is not one of {', '.join(_REGIONS)}")
        self.region = region

    takes = ("hidden",)
    narrows = True

    def __call__(
        self, prediction: Tensor, target: Tensor, mask: Tensor | None, hidden: Tensor | None = None
    ) -> Tensor:
        if target.is_floating_point() or target.ndim != 2:
            raise ObjectiveError(
                "objective.loss.type=TokenCrossEntropy needs an id per token; choose a tokenizer, "
                "objective.teacher.type=DiscreteVAE or VQKD"
            )
        if prediction.ndim != 3 or prediction.shape[1] % target.shape[1]:
            raise ObjectiveError(
                f"objective.loss.type=TokenCrossEntropy: a prediction of shape {tuple(prediction.shape)} does not go "
                f"with {target.shape[1]} ids a picture; use objective.head.type=LinearHead"
            )
        blocks = prediction.float().unflatten(1, (-1, target.shape[1])).transpose(1, 2)  # (B, L, k, codes)
        ids = target.long()[..., None].expand(blocks.shape[:3])
        if self.region == "masked":
            if mask is None:
                raise ObjectiveError(
                    "objective.loss.region=masked, but the corruption masks nothing; use region=all"
                )
            # without the places (varying numbers of them), the device is waited for
            blocks, ids = (part[mask] if hidden is None else at(part, hidden) for part in (blocks, ids))
        # every block has as many tokens: the sum of k means is k times the mean of all
        return prediction.shape[1] // target.shape[1] * F.cross_entropy(blocks.flatten(0, -2), ids.flatten())


@LOSSES.register_module()
class ZoomedIn(_Regional):
    """Beyond Masking's loss of a picture whose surroundings must be guessed too.

    The prediction stands for the whole view: brought to its size by area averaging, its middle is compared with the
    middle (the first L target tokens), its four borders with those of the target made from the whole view (the last
    L). ``centre_weight`` · middle + (1 - centre_weight) · sum of the borders' four means; ``region`` says which tokens
    of the middle count, the borders always do.
    """

    # a mean over the mask and one over the picture are added up: pictures must hide as many tokens to stand alone
    divisible_where_even = True

    def __init__(self, geometry: Geometry, region: str = "all", centre_weight: float = 0.8) -> None:
        super().__init__(region)
        self.divisible = region == "all"
        self.patch, self.margin = geometry.stride, margin_of(geometry)
        self.view, self.centre_weight = geometry.input_size + 2 * self.margin, centre_weight

    def __call__(self, prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        count, m = prediction.shape[1], self.margin
        if target.shape[1] != 2 * count:
            raise ObjectiveError("objective.loss.type=ZoomedIn goes with objective.teacher={ViewPixels, centre=True}")
        guess = self._view(prediction.float())
        middle = patchify(guess[..., m:-m, m:-m].contiguous(), self.patch)
        centre = _where((middle - target[:, :count].float()).square().mean(-1), mask, self.region)
        wrong = (guess - self._view(target[:, count:].float())).square()
        inner = wrong[..., m:-m, :]
        borders = (wrong[..., :m, :], wrong[..., -m:, :], inner[..., :m], inner[..., -m:])
        edge = sum(border.mean() for border in borders)
        return self.centre_weight * centre + (1 - self.centre_weight) * edge

    def _view(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, C) as a picture of the view's size (B, 3, V, V)."""
        return area_resize(unpatchify(tokens, self.patch), self.view)


@LOSSES.register_module()
class ZoomedOut(_Regional):
    """Squared difference after prediction and target, which stand for the view, are pasted as the student saw it."""

    takes = ("offset",)

    def __init__(self, geometry: Geometry, region: str = "all") -> None:
        super().__init__(region)
        self.geometry, self.view = geometry, shrunk_of(geometry)

    def __call__(
        self, prediction: Tensor, target: Tensor, mask: Tensor | None, offset: Tensor | None = None
    ) -> Tensor:
        if offset is None:
            raise ObjectiveError("objective.loss.type=ZoomedOut goes with objective.corruption.type=ZoomOut")
        difference = self._pasted(prediction.float(), offset) - self._pasted(target.float(), offset)
        return _where(difference.square().mean(-1), mask, self.region)

    def _pasted(self, tokens: Tensor, offset: Tensor) -> Tensor:
        patch, size = self.geometry.stride, self.geometry.input_size
        view = area_resize(unpatchify(tokens, patch), self.view)
        return patchify(reflect_into(view, offset, size), patch)
