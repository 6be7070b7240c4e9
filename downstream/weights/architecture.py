"""The network that a state dict belongs to, from the shapes of its tensors: timm's model name and arguments.

Only the number of heads of a plain ViT leaves no trace in the shapes; it comes from the published sizes of that width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from downstream.backbone import WeightsError
from downstream.weights.read import State

# Heads of the published plain ViTs by width (Ti, S, B, L, H, g of scaling ViTs, g of DINOv2, G).
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1536: 24, 1664: 16}
_VITS = {
    192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224", 768: "vit_base_patch16_224",
    1024: "vit_large_patch16_224", 1280: "vit_huge_patch14_224",
}
BUFFERS = re.compile(r".*(relative_position_index|relative_coords_table|attn_mask)$")
"""Official files keep these beside the weights; timm computes them."""
_SCALE = 1e-5  # initial layer scale; any number, for the file brings its own


def deduce(state: State, heads: int | None = None, known: Mapping[int, int] | None = None) -> tuple[str, dict]:
    """timm's model name and arguments for a state dict under timm's keys, Swin's buffers included.

    Args:
        heads: number of heads of a plain ViT, where it is none of the published sizes.
        known: heads of a width that take precedence over :data:`HEADS`.

    Raises:
        WeightsError: a weight that every backbone has is missing, or something cannot be seen from the shapes.
    """
    proj = _weight(state, "patch_embed.proj.weight")
    if proj.ndim != 4 or proj.shape[1] != 3 or proj.shape[2] != proj.shape[3]:
        shape = tuple(proj.shape)
        raise WeightsError(f"patch_embed.proj.weight has shape {shape}; square patches of RGB are (D, 3, P, P)")
    if any(key.startswith("layers.0.blocks.") for key in state):
        return _swin(state)
    if any(key.endswith(("attn.q_bias", "gamma_1", "relative_position_bias_table")) for key in state):
        return _beit(state, heads, known or {})
    return _vit(state, heads, known or {})


def _vit(state: State, heads: int | None, known: Mapping[int, int]) -> tuple[str, dict]:
    proj = state["patch_embed.proj.weight"]
    width, patch = proj.shape[0], proj.shape[2]
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    prefix = ("cls_token" in state) + registers
    first = "blocks.0."
    fc1, fc2 = _weight(state, f"{first}mlp.fc1.weight"), _weight(state, f"{first}mlp.fc2.weight")
    gated = fc1.shape[0] == 2 * fc2.shape[1]  # SwiGLU: both halves in one layer
    kwargs: dict[str, Any] = {
        "patch_size": patch, "embed_dim": width, "depth": _count(state, r"blocks\.(\d+)\."),
        "num_heads": _heads(width, heads, known), "mlp_ratio": _ratio(fc1.shape[0], width),
        "qkv_bias": f"{first}attn.qkv.bias" in state, "class_token": "cls_token" in state, "reg_tokens": registers,
        "init_values": _SCALE if f"{first}ls1.gamma" in state else None, "pre_norm": "norm_pre.weight" in state,
        "qk_norm": f"{first}attn.q_norm.weight" in state,
        # a network fine-tuned on the mean of its tokens has its norm behind that mean: none is left in the backbone
        "global_pool": "token" if "cls_token" in state else "avg", "fc_norm": "fc_norm.weight" in state,
        **_positions(state, prefix, patch),
    }
    return ("vit_giant_patch14_dinov2" if gated else _VITS.get(width, "vit_tiny_patch16_224")), kwargs


def _positions(state: State, prefix: int, patch: int) -> dict[str, Any]:
    if "pos_embed" not in state:
        return {"pos_embed": "none", "no_embed_class": False}
    rows = state["pos_embed"].shape[1]
    for extra in (prefix, 0):
        side = math.isqrt(max(0, rows - extra))
        if side and side * side == rows - extra:
            return {"img_size": side * patch, "no_embed_class": bool(prefix) and extra == 0}
    raise WeightsError(f"pos_embed has {rows} rows, no square of patches with or without {prefix} tokens before them")


def _beit(state: State, heads: int | None, known: Mapping[int, int]) -> tuple[str, dict]:
    proj = state["patch_embed.proj.weight"]
    width, patch = proj.shape[0], proj.shape[2]
    hidden = _weight(state, "blocks.0.mlp.fc1.weight").shape[0]
    own, shared = "blocks.0.attn.relative_position_bias_table", "rel_pos_bias.relative_position_bias_table"
    table = state.get(own, state.get(shared))
    if table is not None:
        side = _window(table.shape[0] - 3, own if own in state else shared)  # three rows for the class token
        size, count = {"img_size": side * patch}, table.shape[1]
    else:
        size, count = _positions(state, 1, patch), _heads(width, heads, known)
        size.pop("no_embed_class")
        size.pop("pos_embed", None)
    return "beit_base_patch16_224", {
        "patch_size": patch, "embed_dim": width, "depth": _count(state, r"blocks\.(\d+)\."), "num_heads": count,
        "mlp_ratio": _ratio(hidden, width), "qkv_bias": "blocks.0.attn.q_bias" in state,
        "init_values": _SCALE if "blocks.0.gamma_1" in state else None, "use_abs_pos_emb": "pos_embed" in state,
        "use_rel_pos_bias": own in state, "use_shared_rel_pos_bias": shared in state,
        "use_fc_norm": "fc_norm.weight" in state, **size,
    }


def _swin(state: State) -> tuple[str, dict]:
    proj = state["patch_embed.proj.weight"]
    width, patch = proj.shape[0], proj.shape[2]
    second = "layers.0.blocks.0.attn.logit_scale" in state
    stages = _count(state, r"layers\.(\d+)\.")
    depths, heads, windows, pretrained = [], [], [], []
    for stage in range(stages):
        depths.append(_count(state, rf"layers\.{stage}\.blocks\.(\d+)\."))
        attention = f"layers.{stage}.blocks.0.attn."
        if second:
            heads.append(_weight(state, f"{attention}logit_scale").shape[0])
            coords, index = state.get(f"{attention}relative_coords_table"), state.get(
                f"{attention}relative_position_index")
            if coords is None and index is None:
                raise WeightsError("Swin V2's windows leave no trace in its weights, and the file lacks "
                                   f"{attention}relative_coords_table; name the network by timm:NAME=FILE")
            windows.append((coords.shape[1] + 1) // 2 if coords is not None else math.isqrt(index.shape[0]))
            pretrained.append(windows[-1] if coords is None else _pretrained(
                coords, windows[-1], f"{attention}relative_coords_table"))
        else:
            table = _weight(state, f"{attention}relative_position_bias_table")
            heads.append(table.shape[1])
            windows.append(_window(table.shape[0], f"{attention}relative_position_bias_table"))
    hidden = _weight(state, "layers.0.blocks.0.mlp.fc1.weight").shape[0]
    bias = "layers.0.blocks.0.attn.q_bias" if second else "layers.0.blocks.0.attn.qkv.bias"
    return ("swinv2_tiny_window8_256" if second else "swin_tiny_patch4_window7_224"), {
        "patch_size": patch, "embed_dim": width, "depths": depths, "num_heads": heads,
        "window_size": [[side, side] for side in windows], "mlp_ratio": _ratio(hidden, width),
        "qkv_bias": bias in state, "img_size": _swin_size(state, patch, windows),
        **({"pretrained_window_sizes": pretrained} if second and pretrained != windows else {}),
    }


def _pretrained(coords: Tensor, window: int, key: str) -> int:
    """Side of the window that Swin V2's coordinates (1, 2w - 1, 2w - 1, 2) of a window w are relative to.

    Fine-tuned at a larger window, coordinates stay in units of the pre-training's, p: the largest is
    log2(1 + 8 (w - 1) / (p - 1)) / 3 (microsoft/Swin-Transformer: models/swin_transformer_v2.py).
    """
    if window == 1:
        return 1  # a single coordinate, 0
    steps = 2.0 ** (3 * float(coords.max())) - 1
    side = round(1 + 8 * (window - 1) / steps) if 0 < steps < math.inf else 0
    if side < 2 or abs(8 * (window - 1) / (side - 1) - steps) > 0.01 * steps:
        raise WeightsError(f"{key} holds no coordinates of a window of {window}; download the file again")
    return side


def _swin_size(state: State, patch: int, windows: list[int]) -> int:
    """Side of the pre-training pictures: the mask of shifted windows counts the windows of a map.

    Without it: every published Swin ends with a map of a single window (6 at 192 px, 7 at 224, 12 at 384).
    """
    mask = state.get("layers.0.blocks.1.attn_mask")
    if mask is not None:
        return math.isqrt(mask.shape[0]) * windows[0] * patch
    return windows[-1] * patch * 2 ** (len(windows) - 1)


# --- shapes -----------------------------------------------------------------------------------------------------------


def _weight(state: State, key: str):
    if key not in state:
        raise WeightsError(f"{key} missing: every backbone of this kind has it")
    return state[key]


def _count(state: State, pattern: str) -> int:
    numbers = {int(match[1]) for key in state if (match := re.match(pattern, key))}
    if numbers != set(range(len(numbers))):
        lacking = pattern.replace("\\", "").replace("(d+)", str(min(set(range(max(numbers) + 1)) - numbers)))
        raise WeightsError(f"{lacking}* missing: later ones are there")
    return len(numbers)


def _window(rows: int, key: str) -> int:
    """Side w of a window from the (2w - 1)² rows of its table."""
    side = math.isqrt(max(0, rows))
    if side * side != rows or side % 2 == 0:
        raise WeightsError(f"{key} has {rows} rows for patches, no square of an odd number")
    return (side + 1) // 2


def _ratio(hidden: int, width: int) -> float:
    """A ratio from which timm's ``int(width * ratio)`` gets ``hidden`` again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _heads(width: int, heads: int | None, known: Mapping[int, int]) -> int:
    found = heads or known.get(width) or HEADS.get(width)
    if found is None:
        raise WeightsError(f"a ViT of width {width} is none of the published sizes, and its weights do not show how "
                           "many heads it has; say so by --heads N")
    if width % found:
        raise WeightsError(f"--heads {found}: does not divide the width {width}")
    return found
