"""Names of a plain ViT's weights in other libraries, as pairs of (timm's, theirs); read in both directions.

``{}`` stands for a block's number; a name that ends in a full stop stands for all that begin with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Pairs = Sequence[tuple[str, str]]

# mmpretrain.models.backbones.VisionTransformer; cls_token and pos_embed are called alike
MMPRETRAIN: Pairs = (
    ("cls_token", "cls_token"), ("pos_embed", "pos_embed"),
    ("patch_embed.proj.", "patch_embed.projection."), ("norm_pre.", "pre_norm."), ("norm.", "ln1."),
    ("blocks.{}.norm1.", "layers.{}.ln1."), ("blocks.{}.norm2.", "layers.{}.ln2."),
    ("blocks.{}.attn.qkv.", "layers.{}.attn.qkv."), ("blocks.{}.attn.proj.", "layers.{}.attn.proj."),
    ("blocks.{}.mlp.fc1.", "layers.{}.ffn.layers.0.0."), ("blocks.{}.mlp.fc2.", "layers.{}.ffn.layers.1."),
    ("blocks.{}.ls1.gamma", "layers.{}.attn.gamma1.weight"), ("blocks.{}.ls2.gamma", "layers.{}.ffn.gamma2.weight"),
)

# transformers.ViTModel; q, k and v are layers of their own there: see split_qkv
TRANSFORMERS: Pairs = (
    ("cls_token", "embeddings.cls_token"), ("pos_embed", "embeddings.position_embeddings"),
    ("patch_embed.proj.", "embeddings.patch_embeddings.projection."), ("norm.", "layernorm."),
    ("blocks.{}.norm1.", "encoder.layer.{}.layernorm_before."),
    ("blocks.{}.norm2.", "encoder.layer.{}.layernorm_after."),
    ("blocks.{}.attn.query.", "encoder.layer.{}.attention.attention.query."),
    ("blocks.{}.attn.key.", "encoder.layer.{}.attention.attention.key."),
    ("blocks.{}.attn.value.", "encoder.layer.{}.attention.attention.value."),
    ("blocks.{}.attn.proj.", "encoder.layer.{}.attention.output.dense."),
    ("blocks.{}.mlp.fc1.", "encoder.layer.{}.intermediate.dense."),
    ("blocks.{}.mlp.fc2.", "encoder.layer.{}.output.dense."),
)


def to_theirs(state: dict[str, Tensor], pairs: Pairs) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict under their names, and the keys that have none there."""
    return _renamed(state, pairs)


def to_timm(state: dict[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
    """A state dict under timm's names; keys without one stay as they are."""
    renamed, left = _renamed(state, [(theirs, ours) for ours, theirs in pairs])
    return {**renamed, **{key: state[key] for key in left}}


def _renamed(state: dict[str, Tensor], pairs: Iterable[tuple[str, str]]) -> tuple[dict[str, Tensor], list[str]]:
    rules = [(_pattern(old), new) for old, new in pairs]
    found: dict[str, Tensor] = {}
    left = []
    for key, value in state.items():
        for pattern, new in rules:
            if match := pattern.match(key):
                found[new.format(*match.groups()[:-1]) + match.groups()[-1]] = value
                break
        else:
            left.append(key)
    return found, left


def _pattern(name: str) -> re.Pattern[str]:
    """Groups: the block's number where there is one, and what follows the name."""
    rest = "(.+)" if name.endswith(".") else "()"
    return re.compile(re.escape(name).replace(r"\{\}", r"(\d+)") + rest + "$")


_QKV = re.compile(r"(.*\.attn\.)qkv\.(weight|bias)$")
_QUERY = re.compile(r"(.*\.attn\.)query\.(weight|bias)$")


def split_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``attn.qkv`` (3D, …) -> ``attn.query``, ``attn.key``, ``attn.value`` (D, …) each."""
    parts: dict[str, Tensor] = {}
    for key, value in state.items():
        if match := _QKV.match(key):
            parts |= {f"{match[1]}{name}.{match[2]}": part
                      for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True)}
        else:
            parts[key] = value
    return parts


def join_qkv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`split_qkv`; a query without key or value stays as it is."""
    joined = dict(state)
    for key in state:
        if match := _QUERY.match(key):
            names = [f"{match[1]}{name}.{match[2]}" for name in ("query", "key", "value")]
            if all(name in joined for name in names):
                joined[f"{match[1]}qkv.{match[2]}"] = torch.cat([joined.pop(name) for name in names])
    return joined
