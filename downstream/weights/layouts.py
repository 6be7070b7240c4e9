"""Official checkpoint layouts: how to tell them apart by their keys, and how their keys become timm's.

A layout is a few rules. Whatever they do not name stays under its own key, and a key that the network lacks is refused
later: nothing is dropped but what a rule says is no part of the backbone.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)

from downstream.backbone import WeightsError
from downstream.weights import names
from downstream.weights.read import State

Pixels = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation, R, G, B on 0…1, that the pictures of the pre-training were normalised by."""
IMAGENET: Pixels = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
HALF: Pixels = (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD)


@dataclass(frozen=True)
class Layout:
    """The rules of one family of files.

    Attributes:
        source: the repository that writes it, and the file with the names.
        signs: regular expressions, each of which some key matches; together they tell the layout from those below it.
        inside: prefix of the backbone's keys, removed; other keys are no part of it. Ignored where no key has it.
        other: keys (after that) that are no part of the backbone: heads, decoders, mask tokens.
        rename: (regular expression, replacement), applied in order.
        adapt: what renaming cannot do, applied last.
        pixels: normalisation of the pictures in its pre-training.
        heads: heads of a width where they are not those of :data:`downstream.weights.architecture.HEADS`.
    """

    name: str
    source: str
    signs: tuple[str, ...]
    inside: str = ""
    other: str = r"head\."
    rename: tuple[tuple[str, str], ...] = ()
    adapt: Callable[[State], State] = lambda state: state
    pixels: Pixels = IMAGENET
    heads: Mapping[int, int] = field(default_factory=dict)


def _registers(state: State) -> State:
    """DINOv2 with registers: timm adds no position to class token and registers, so the class token takes its own."""
    if "reg_token" in state and "pos_embed" in state and "cls_token" in state:
        table = state["pos_embed"]
        state = {**state, "cls_token": state["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}
    return state


def _merging(state: State) -> State:
    """Swin: the official stage ends with its patch merging, timm's begins with that of the stage before."""
    if not any(key.startswith("layers.0.downsample.") for key in state):
        return state
    return {re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", key): value
            for key, value in state.items()}


_BEIT = r"^blocks\.0\.(gamma_1|attn\.q_bias|attn\.relative_position_bias_table)$"
_NO_BEIT_BACKBONE = r"(mask_token$|lm_head\.|head\.|cls_pt_)"

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "moco_v3", "facebookresearch/moco-v3: moco/builder.py, vits.py", (r"^(base|momentum)_encoder\.",),
            inside="base_encoder.", heads={384: 12},  # its ViT-S has twelve heads
        ),
        Layout(
            "simmim", "microsoft/SimMIM: models/simmim.py (ViT and Swin); microsoft/Swin-Transformer (Swin V2)",
            (r"^encoder\.patch_embed\.",), inside="encoder.", other=r"(mask_token$|head\.)",
            rename=((r"\.rpe_mlp\.", ".cpb_mlp."),), adapt=_merging,  # named so by SwinTransformer/MIM-Depth-Estimation
        ),
        Layout(
            "transformers", "huggingface/transformers: ViTModel", (r"(^|\.)embeddings\.patch_embeddings\.",),
            inside="vit.", other=r"(pooler\.|classifier\.|embeddings\.mask_token$)",
            adapt=lambda state: names.join_qkv(names.to_timm(state, names.TRANSFORMERS)),
        ),
        Layout(
            "mmpretrain", "open-mmlab/mmpretrain: models/backbones/vision_transformer.py",
            (r"^(backbone\.)?layers\.0\.ln1\.",), inside="backbone.",
            adapt=lambda state: names.to_timm(state, names.MMPRETRAIN),
        ),
        Layout(
            "swin", "microsoft/Swin-Transformer, and timm's own Swin", (r"^layers\.0\.blocks\.0\.attn\.",),
            other=r"(mask_token$|head\.)", rename=((r"\.rpe_mlp\.", ".cpb_mlp."),), adapt=_merging,
        ),
        Layout(
            "beitv2", "microsoft/unilm: beit2/modeling_pretrain.py", (_BEIT, r"^cls_pt_layers\."),
            other=_NO_BEIT_BACKBONE,
        ),
        Layout(
            "beit", "microsoft/unilm: beit/modeling_pretrain.py", (_BEIT, r"^(lm_head\.|mask_token$)"),
            other=_NO_BEIT_BACKBONE, pixels=HALF,
        ),
        Layout(
            "dinov2", "facebookresearch/dinov2: dinov2/models/vision_transformer.py",
            (r"(^|\.)blocks\.0\..*ls1\.gamma$",
             r"((^|\.)(mask_token|register_tokens)$|^backbone\.blocks\.\d+\.\d+\.|\.mlp\.w12\.)"),
            inside="backbone.", other=r"(mask_token$|head\.|dino_head\.|ibot_head\.)",
            rename=((r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."), (r"\.mlp\.w12\.", ".mlp.fc1."),
                    (r"\.mlp\.w3\.", ".mlp.fc2."), (r"^register_tokens$", "reg_token")),
            adapt=_registers,
        ),
        Layout(
            "dino", "facebookresearch/dino: main_dino.py, vision_transformer.py",
            (r"^backbone\.blocks\.0\.attn\.qkv\.weight$", r"^head\.(mlp|last_layer)"), inside="backbone.",
        ),
        Layout(
            "mae", "facebookresearch/mae: models_mae.py",
            (r"^blocks\.0\.attn\.qkv\.weight$", r"^(decoder_|mask_token$)"),
            other=r"(decoder_|mask_token$|head\.)",
        ),
        Layout(
            "timm", "huggingface/pytorch-image-models; encoders of MAE and DINO saved alone have the same keys",
            (r"^(backbone\.)?blocks\.0\.attn\.qkv\.weight$",), inside="backbone.", other=r"(head|attn_pool)\.",
        ),
    )
}


def recognised(state: State) -> Layout:
    """The layout that the keys show.

    Raises:
        WeightsError: none, or two that differ in what cannot be seen.
    """

    def shows(*signs: str) -> bool:
        return all(any(re.search(sign, key) for key in state) for sign in signs)

    for layout in LAYOUTS.values():
        if layout.name == "timm" and shows(_BEIT):
            raise WeightsError(
                "the keys are those of beit, beitv2 and timm alike, and BEiT's pictures were normalised otherwise: "
                "say which by --layout"
            )
        if shows(*layout.signs):
            return layout
    some = ", ".join(list(state)[:3])
    raise WeightsError(f"no known layout has keys like {some}; name the network by timm:NAME=FILE, or one of "
                       f"{', '.join(LAYOUTS)} by --layout")


def layout_named(name: str) -> Layout:
    """The layout of that name.

    Raises:
        WeightsError: there is none.
    """
    if name not in LAYOUTS:
        near = difflib.get_close_matches(name, LAYOUTS, n=1, cutoff=0.4)
        raise WeightsError(f"no layout {name!r}; " + (f"did you mean {near[0]!r}?" if near else
                                                      f"known: {', '.join(LAYOUTS)}"))
    return LAYOUTS[name]


def to_timm(state: State, layout: Layout) -> State:
    """The backbone's part of a checkpoint under timm's keys; buffers of Swin (windows, masks) are still in it."""
    if any(key.startswith(layout.inside) for key in state):
        state = {key.removeprefix(layout.inside): value for key, value in state.items()
                 if key.startswith(layout.inside)}
    other = re.compile(layout.other)
    found: State = {}
    for key, value in state.items():
        if other.match(key):
            continue
        for pattern, replacement in layout.rename:
            key = re.sub(pattern, replacement, key)
        found[key] = value
    return layout.adapt(found)
