"""What pre-training needs of a timm backbone: patches, places and blocks one by one, for every family it takes.

Families: ``vit`` (VisionTransformer: a table of positions), ``rope`` (Eva: rotary, with or without a table),
``relative`` (Beit, VisionTransformerRelPos: a bias in the attention) and ``swin`` (Swin and Swin V2). The network
itself stays as timm made it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.beit import Attention as BeitAttention
from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import Block, VisionTransformer
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from torch import Tensor, nn

from objectives.patches import at
from objectives.recipe import ObjectiveError
from objectives.registry import Geometry

FAMILIES: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("vit", (VisionTransformer,)), ("rope", (Eva,)), ("relative", (Beit, VisionTransformerRelPos)),
    ("swin", (SwinTransformer, SwinTransformerV2)),
)


FORMAT = 1  # of backbone.json


def foreign(model: object, kwargs: Mapping[str, Any]) -> str | None:
    """What of timm's model name and arguments leads to weights or settings elsewhere, on the disk or the network."""
    names = [key for key in kwargs if key == "checkpoint_path" or key.startswith(("pretrained", "cache_"))]
    return names[0] if names else str(model) if ":" in str(model) else None


def create_backbone(model: str, kwargs: Mapping[str, Any], drop_path: float = 0.0) -> nn.Module:
    """A freshly initialised timm model without classifier.

    Raises:
        ObjectiveError: timm knows no such model, or it does not take these arguments.
    """
    if leads := foreign(model, kwargs):
        raise ObjectiveError(
            f"backbone {model!r} with {dict(kwargs)}: {leads} names weights or settings from elsewhere; pre-training "
            "starts from timm's own initialisation"
        )
    try:
        net = timm.create_model(model, pretrained=False, **{**kwargs, "num_classes": 0, "drop_path_rate": drop_path})
    except Exception as error:  # timm raises many kinds here; each means that this request cannot be built
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ObjectiveError(f"backbone {model!r} with {dict(kwargs)}: {reason}") from error
    if not len(getattr(net, "blocks", [...])):
        raise ObjectiveError(f"backbone {model!r} with {dict(kwargs)}: depth must be at least 1")
    return net


def family_of(net: nn.Module) -> str:
    """The name of the network's family.

    Raises:
        ObjectiveError: it belongs to none.
    """
    for name, classes in FAMILIES:
        if isinstance(net, classes):
            return name
    raise ObjectiveError(
        f"backbone {type(net).__name__}: pre-training takes timm's ViTs (absolute, rotary or relative positions), Swin "
        "and Swin V2"
    )


def geometry_of(net: nn.Module, input_size: int, **context: Any) -> Geometry:
    """The token geometry of a backbone at ``input_size`` pixels.

    Raises:
        ObjectiveError: the size is no multiple of the stride.
    """
    hierarchical = family_of(net) == "swin"  # first: it refuses what has no patches
    patch = net.patch_embed.patch_size[0]
    stride = patch * 2 ** (len(net.layers) - 1) if hierarchical else patch
    if input_size % stride:
        raise ObjectiveError(f"input size {input_size} is not a multiple of the backbone's stride {stride}")
    return Geometry(input_size, stride, hierarchical, net.num_features, **context)


def prefix_of(net: nn.Module) -> int:
    """Class token and registers: how many tokens come before those of the patches."""
    return getattr(net, "num_prefix_tokens", 0)


def has_class_token(net: nn.Module) -> bool:
    """Whether the first token stands for the picture."""
    return getattr(net, "cls_token", None) is not None


@dataclass(frozen=True)
class Places:
    """What the blocks must know of the tokens' places, beyond what was added to the tokens.

    Attributes:
        rope: rotary embedding (L, R) or (B, 1, V, R); one for each block, (depth, heads, L, R) or (depth, B, heads, V,
            R), where ``mixed``.
        bias: relative bias that all blocks share (1, heads, P + L, P + L).
    """

    rope: Tensor | None = None
    mixed: bool = False
    bias: Tensor | None = None


def place(net: nn.Module, patches: Tensor) -> tuple[Tensor, Places]:
    """Patch embeddings (B, L, D) -> tokens (B, P + L, D), class token and registers first, with their places."""
    family = family_of(net)
    if family == "relative":
        if has_class_token(net):
            patches = torch.cat([net.cls_token.expand(len(patches), -1, -1), patches], 1)
        if getattr(net, "pos_embed", None) is not None:
            patches = net.pos_drop(patches + net.pos_embed)
        if isinstance(net, Beit):
            return patches, Places(bias=net.rel_pos_bias() if net.rel_pos_bias is not None else None)
        shared = net.shared_rel_pos
        return patches, Places(bias=shared.get_bias() if shared is not None else None)
    if family == "rope":
        tokens, rope = net._pos_embed(patches)
        return net.norm_pre(tokens), Places(rope, mixed=getattr(net, "rope_mixed", False))
    return net.norm_pre(net._pos_embed(patches)), Places()


def check_visible(net: nn.Module) -> None:
    """Whether patches can be left out.

    Raises:
        ObjectiveError: the family compares all places with one another.
    """
    if family_of(net) in ("relative", "swin"):
        raise ObjectiveError(
            f"a student of visible tokens only (MAE) cannot be a {type(net).__name__}: windows and relative biases "
            "need every patch; choose a ViT with absolute or rotary positions, or "
            "objective.student.type=MaskTokenStudent with objective.head.type=LinearHead"
        )


def visible_of(net: nn.Module, tokens: Tensor, places: Places, index: Tensor) -> tuple[Tensor, Places]:
    """Of the patches those at ``index`` (B, V) alone: (B, P + V, D)."""
    prefix = prefix_of(net)
    kept = at(tokens[:, prefix:], index)
    if places.rope is not None:
        rope = places.rope[..., index, :]  # (B, V, R), or (depth, heads, B, V, R)
        places = replace(places, rope=rope.transpose(1, 2) if places.mixed else rope.unsqueeze(1))
    return torch.cat([tokens[:, :prefix], kept], 1), places


def narrows(net: nn.Module) -> bool:
    """Whether the last block can leave tokens out that nobody looks at: :func:`narrowed`."""
    last = net.blocks[-1] if family_of(net) in ("vit", "relative") else None
    if type(last) is BeitBlock:
        return type(last.attn) is BeitAttention
    return type(last) is Block and type(last.attn) is Attention and last.attn.gate is None


def narrowed(block: Block | BeitBlock, tokens: Tensor, only: Tensor, places: Places) -> Tensor:
    """A block's tokens at ``only`` (B, V) -> (B, V, D). They attend to all; the rest of the block sees but them."""
    x = at(tokens, only) + block.drop_path1(_scaled(block, 1, _asked(block.attn, block.norm1(tokens), only, places)))
    return x + block.drop_path2(_scaled(block, 2, block.mlp(block.norm2(x))))


def _scaled(block: Block | BeitBlock, branch: int, x: Tensor) -> Tensor:
    """What a branch, 1 or 2, adds to the tokens: through its layer scale, where it has one."""
    if isinstance(block, Block):
        return getattr(block, f"ls{branch}")(x)
    gamma = getattr(block, f"gamma_{branch}")
    return x if gamma is None else gamma * x


def _asked(attention: Attention | BeitAttention, tokens: Tensor, only: Tensor, places: Places) -> Tensor:
    """timm's attention with the tokens at ``only`` as its queries."""
    relative = isinstance(attention, BeitAttention)
    weight, bias, heads = attention.qkv.weight, attention.qkv.bias, attention.num_heads
    if relative and attention.q_bias is not None:
        bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    width = len(weight) // 3
    asking, answering = (
        F.linear(x, weight[part], None if bias is None else bias[part])
        for x, part in ((at(tokens, only), slice(width)), (tokens, slice(width, None)))
    )
    query = asking.unflatten(-1, (heads, -1)).transpose(1, 2)
    key, value = answering.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    if not relative:
        query, key = attention.q_norm(query), attention.k_norm(key)
    mask = _biases(attention, only, places) if relative else None
    dropout = attention.attn_drop.p if attention.training else 0.0
    x = F.scaled_dot_product_attention(query, key, value, mask, dropout).transpose(1, 2).flatten(2)
    return attention.proj_drop(attention.proj(x if relative else attention.norm(x)))


def _biases(attention: BeitAttention, only: Tensor, places: Places) -> Tensor | None:
    """The block's relative bias and that of all blocks, of the queries at ``only`` (B, V): (B, heads, V, P + L)."""
    own = attention._get_rel_pos_bias() if attention.relative_position_bias_table is not None else None
    found = [bias.view(bias.shape[-3:]) for bias in (own, places.bias) if bias is not None]  # (heads, P + L, P + L)
    if not found:
        return None
    # an index (B, V) would gather as much, but adds number by number on the way back
    return sum(found[1:], found[0]).index_select(1, only.flatten()).unflatten(1, only.shape).transpose(0, 1)


def each_block(net: nn.Module, tokens: Tensor, places: Places, only: Tensor | None = None) -> Iterator[Tensor]:
    """The tokens after each block of a network that is no Swin; after the last one but those at ``only`` (B, V)."""
    family = family_of(net)
    for number, block in enumerate(net.blocks):
        if only is not None and block is net.blocks[-1]:
            yield narrowed(block, tokens, only, places)
            return
        if family == "rope":
            rope = places.rope[number] if places.mixed and places.rope is not None else places.rope
            tokens = block(tokens, rope=rope)
        elif isinstance(net, Beit):
            tokens = block(tokens, shared_rel_pos_bias=places.bias)
        elif family == "relative":
            tokens = block(tokens, shared_rel_pos=places.bias)
        else:
            tokens = block(tokens)
        yield tokens


def features(net: nn.Module, tokens: Tensor, places: Places, only: Tensor | None = None) -> Tensor:
    """All blocks and the last norm: (B, P + L, D), or of those tokens the ones at ``only`` (B, V)."""
    for after in each_block(net, tokens, places, only):
        tokens = after
    return net.norm(tokens)


def whole(net: nn.Module, patches: Tensor, only: Tensor | None = None) -> Tensor:
    """Patch embeddings, ViT (B, L, D) or Swin (B, h, w, D), through the network -> patch tokens (B, L, D).

    With ``only`` (B, V), where the network :func:`narrows`, the patch tokens at those places (B, V, D).
    """
    if family_of(net) == "swin":
        return net.norm(net.layers(patches)).flatten(1, 2)
    if only is not None:
        return features(net, *place(net, patches), prefix_of(net) + only)
    return features(net, *place(net, patches))[:, prefix_of(net) :]
