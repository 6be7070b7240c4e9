"""Normalisations N of a target (B, L, C). Those of pixels can be undone, to show a prediction as a picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from objectives.patches import patchify, unpatchify
from objectives.registry import NORMALISATIONS


@NORMALISATIONS.register_module()
class NoNorm:
    """The target as it is."""

    def __call__(self, target: Tensor) -> Tensor:
        return target

    def undo(self, prediction: Tensor, raw: Tensor) -> Tensor:
        """A normalised prediction in the scale of the raw target, both (B, L, C)."""
        return prediction


@NORMALISATIONS.register_module()
class PatchNorm:
    """Mean 0, variance 1 over all values of a patch; unbiased variance, eps inside the root (MAE, norm_pix_loss)."""

    def __init__(self, eps: float = 1e-6) -> None:
        self.eps = eps

    def __call__(self, target: Tensor) -> Tensor:
        mean, var = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        return (target - mean) / (var + self.eps).sqrt()

    def undo(self, prediction: Tensor, raw: Tensor) -> Tensor:
        """A normalised prediction in the scale of the raw target, both (B, L, C)."""
        return prediction * (raw.var(-1, keepdim=True) + self.eps).sqrt() + raw.mean(-1, keepdim=True)


@NORMALISATIONS.register_module()
class LayerNorm:
    """LayerNorm over the channels without affine (MaskDistill)."""

    def __init__(self, eps: float = 1e-6) -> None:
        self.eps = eps

    def __call__(self, target: Tensor) -> Tensor:
        return F.layer_norm(target, target.shape[-1:], eps=self.eps)


@NORMALISATIONS.register_module()
class Softmax:
    """Probabilities over the channels (DINO; centre and temperature are the teacher's)."""

    def __call__(self, target: Tensor) -> Tensor:
        return target.float().softmax(-1)


@NORMALISATIONS.register_module()
class L2Norm:
    """Unit length over the channels (EVA, MILAN)."""

    def __call__(self, target: Tensor) -> Tensor:
        return F.normalize(target, dim=-1)


@NORMALISATIONS.register_module()
class PatchChannelNorm:
    """Mean 0, deviation 1 over the pixels of a patch, each colour for itself (Beyond Masking).

    Unbiased deviation, eps added to it (``sunsmarterjie/beyond_masking: engine_for_pretraining.py``).
    """

    def __init__(self, eps: float = 1e-6) -> None:
        self.eps = eps

    def __call__(self, target: Tensor) -> Tensor:
        colours = target.unflatten(-1, (-1, 3))
        mean, std = colours.mean(-2, keepdim=True), colours.std(-2, keepdim=True)
        return ((colours - mean) / (std + self.eps)).flatten(-2)

    def undo(self, prediction: Tensor, raw: Tensor) -> Tensor:
        """A normalised prediction in the scale of the raw target, both (B, L, C)."""
        colours = raw.unflatten(-1, (-1, 3))
        mean, std = colours.mean(-2, keepdim=True), colours.std(-2, keepdim=True)
        return (prediction.unflatten(-1, (-1, 3)) * (std + self.eps) + mean).flatten(-2)


@NORMALISATIONS.register_module()
class WindowNorm:
    """Each pixel minus the mean, over the deviation, of a window around it, each colour for itself (SimMIM v2).

    47 pixels of 192 (``microsoft/Swin-Transformer: models/simmim.py``); at other sizes the nearest odd number of the
    same share. Pixels beyond the picture are not counted; unbiased variance, eps inside the root.
    """

    def __init__(self, share: float = 47 / 192, eps: float = 1e-6) -> None:
        self.share, self.eps = share, eps

    def window(self, size: int) -> int:
        """Side of the window for pictures of ``size`` pixels: odd, at least 3."""
        return max(3, 2 * round((self.share * size - 1) / 2) + 1)

    def __call__(self, target: Tensor) -> Tensor:
        patch, images, mean, std = self._statistics(target)
        return patchify((images - mean) / std, patch)

    def undo(self, prediction: Tensor, raw: Tensor) -> Tensor:
        """A normalised prediction in the scale of the raw target, both (B, L, C)."""
        patch, _, mean, std = self._statistics(raw)
        return patchify(unpatchify(prediction, patch) * std + mean, patch)

    def _statistics(self, target: Tensor) -> tuple[int, Tensor, Tensor, Tensor]:
        """Patch, and pictures (B, 3, S, S) with each pixel's mean and deviation."""
        patch = round((target.shape[-1] / 3) ** 0.5)
        images = unpatchify(target, patch)
        window = self.window(images.shape[-1])

        def total(x: Tensor) -> Tensor:
            """Sums over the windows: of columns, then of rows of those, which is 2 x 47 additions for 47 x 47."""
            for side in ((window, 1), (1, window)):
                x = F.avg_pool2d(x, side, stride=1, padding=tuple(n // 2 for n in side), divisor_override=1)
            return x

        count = total(torch.ones_like(images[:1, :1]))
        mean = total(images) / count
        # second moment about the picture's own mean: about zero, rounding would swamp small variances
        centre = images.mean((2, 3), keepdim=True)
        square = total((images - centre).square()) / count - (mean - centre).square()
        variance = square.clamp(min=0) * count / (count - 1)
        return patch, images, mean, (variance + self.eps).sqrt()


@NORMALISATIONS.register_module()
class CellNorm:
    """Unit length over the ``bins`` orientations of each colour and cell of :class:`~objectives.teacher.HOG`."""

    def __init__(self, bins: int = 9) -> None:
        self.bins = bins

    def __call__(self, target: Tensor) -> Tensor:
        histograms = target.unflatten(-1, (3, self.bins, -1))
        return F.normalize(histograms, dim=-2).flatten(-3)
