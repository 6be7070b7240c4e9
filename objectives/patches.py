"""Pictures as tokens and back."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from objectives.precision import sent


def places_of(mask: Tensor, hidden: int | None = None) -> tuple[Tensor, Tensor]:
    """Masks (B, L), True where hidden -> places of the V visible tokens (B, V) and of the others (B, L - V), rising.

    Args:
        hidden: how many every picture hides, where it is known: counting them waits for the device.
    """
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    visible = mask.shape[1] - (int(mask[0].sum()) if hidden is None else hidden)
    return order[:, :visible], order[:, visible:]


def at(tokens: Tensor, places: Tensor) -> Tensor:
    """The tokens (B, L, …) at places (B, V) -> (B, V, …)."""
    wide = places.view(*places.shape, *[1] * (tokens.ndim - 2))
    return tokens.gather(1, wide.expand(*places.shape, *tokens.shape[2:]))


def put(tokens: Tensor, places: Tensor, into: Tensor) -> Tensor:
    """``into`` (B, L, D) with tokens (B, V, D) at places (B, V)."""
    return into.scatter(1, places[..., None].expand_as(tokens), tokens)


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


@lru_cache(maxsize=32)
def _area_matrix(source: int, size: int) -> Tensor:
    """(size, source): row i averages the source pixels that the i-th part of the line touches."""
    matrix = torch.zeros(size, source)
    for i in range(size):
        low, high = i * source // size, -(-(i + 1) * source // size)
        matrix[i, low:high] = 1 / (high - low)
    return matrix


def area_resize(images: Tensor, size: int) -> Tensor:
    """(B, C, S, S) -> (B, C, size, size) by averaging areas: torch's ``interpolate(mode="area")`` as two products.

    The products are faster than torch's own on a CPU, above all backwards, and deterministic on a GPU.
    """
    matrix = sent(_area_matrix(images.shape[-1], size), images.device).to(images.dtype)
    return matrix @ images @ matrix.T
