"""Necks of the protocol ``attentive``: attention over a frozen backbone's tokens, before the heads of ``frozen``."""

from __future__ import annotations

from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS
from timm.layers import AttentionPoolLatent, build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from downstream.common import FeatureNorm
from downstream.task import TaskError


@MODELS.register_module()
class AttentionPool(BaseModule):
    """One learnt query asks all tokens, then an MLP: the attentive probe of CoCa and V-JEPA (timm's implementation).

    Args:
        channels: of the backbone's maps.
        heads: of the attention; must divide the sum of ``channels``.
    """

    def __init__(self, channels: tuple[int, ...], heads: int) -> None:
        super().__init__()
        width = sum(channels)
        _divides(width, heads)
        self.norm = FeatureNorm(channels)
        self.pool = AttentionPoolLatent(width, num_heads=heads, norm_layer=nn.LayerNorm)

    def init_weights(self) -> None:
        """Keep timm's own initialisation."""

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Maps (B, Dᵢ, H, W) -> one vector (B, ΣD)."""
        (x,) = self.norm(maps)
        return (self.pool(x.flatten(2).transpose(1, 2)),)


@MODELS.register_module()
class AttentionBlocks(BaseModule):
    """Transformer blocks over the tokens of a frozen backbone, with fixed sine positions; a map comes out again.

    Args:
        channels: of the backbone's maps.
        width: of the blocks and of the map that comes out; a multiple of 4 and of ``heads``.
        depth, heads: of the blocks.
    """

    def __init__(self, channels: tuple[int, ...], width: int, depth: int, heads: int) -> None:
        super().__init__()
        _divides(width, heads)
        if width % 4:
            raise TaskError(f"attention_width {width} is not a multiple of 4, as its sine positions need")
        self.norm = FeatureNorm(channels)
        self.project = nn.Linear(sum(channels), width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)), nn.LayerNorm(width))

    def init_weights(self) -> None:
        """Keep torch's and timm's own initialisation."""

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Maps (B, Dᵢ, H, W) -> one map (B, width, H, W)."""
        (x,) = self.norm(maps)
        size = x.shape[2:]
        tokens = self.project(x.flatten(2).transpose(1, 2))
        places = build_sincos2d_pos_embed(list(size), tokens.shape[2], device=tokens.device)
        return (self.blocks(tokens + places).transpose(1, 2).unflatten(2, size),)


def _divides(width: int, heads: int) -> None:
    if width % heads:
        raise TaskError(f"attention_heads {heads} does not divide the width {width}; choose another number")


def pool(chosen: dict[str, Any], channels: tuple[int, ...]) -> dict[str, Any]:
    """The neck of classification."""
    return {"type": "mmengine.AttentionPool", "channels": channels, "heads": chosen["attention_heads"]}


def blocks(chosen: dict[str, Any], channels: tuple[int, ...]) -> tuple[dict[str, Any], int]:
    """The neck of a dense task and the channels of its map."""
    width = chosen["attention_width"] or sum(channels)
    return {
        "type": "mmengine.AttentionBlocks", "channels": channels, "width": width, "depth": chosen["attention_depth"],
        "heads": chosen["attention_heads"],
    }, width
