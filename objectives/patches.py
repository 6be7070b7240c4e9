"""Pictures as tokens and back."""

from __future__ import annotations

from torch import Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, L, patch·patch·C), a patch's values ordered row, column, channel (MAE's order)."""
    b, c, h, w = images.shape
    x = images.view(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // patch) * (w // patch), patch * patch * c)


def unpatchify(tokens: Tensor, patch: int, channels: int = 3) -> Tensor:
    """The inverse of :func:`patchify` on a square grid."""
    b, count, _ = tokens.shape
    grid = round(count**0.5)
    x = tokens.view(b, grid, grid, patch, patch, channels)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, channels, grid * patch, grid * patch)
