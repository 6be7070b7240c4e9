"""mmpretrain's own training steps, to be timed beside ours: its classes, settings and optimiser as its configs ship
them, at the backbone, decoder, masks and tokenizer that the suite gives ours.

What differs between the two is then how the same work is done. A ViT of the suite has a table of positions, so BEiT v2
gets one here too, in place of relative biases and layer scale, which it keeps where the suite's backbone is a BEiT;
mmpretrain's SimMIM knows Swin only, and takes the ViT of its MaskFeat, whose tokens are handed on as the feature map
that SimMIM's decoder reads.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from timm.models.beit import Beit
from torch import Tensor, nn

from benchmarks.plan import Pretraining
from objectives.backbone import create_backbone, family_of

CONFIGS = {  # below mmpretrain/.mim/configs
    "mae": "mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py",
    "simmim": "simmim/simmim_swin-base-w6_8xb256-amp-coslr-100e_in1k-192px.py",
    "maskfeat": "maskfeat/maskfeat_vit-base-p16_8xb256-amp-coslr-300e_in1k.py",
    "beitv2": "beitv2/beitv2_beit-base-p16_8xb256-amp-coslr-300e_in1k.py",
}


class NoPeer(Exception):
    """mmpretrain has no such step, or not at these sizes; the message is the reason in one line."""


class Sizes:
    """Of the suite's backbone, as mmpretrain wants them.

    Raises:
        NoPeer: a family that mmpretrain's pre-training models do not have.
    """

    def __init__(self, pretraining: Pretraining) -> None:
        suite = pretraining.suite
        net = create_backbone(suite.model, suite.kwargs)
        family = family_of(net)
        self.side, self.drop_path = suite.input_size, pretraining.optimiser.drop_path
        self.swin = type(net).__name__ == "SwinTransformer"
        beit = isinstance(net, Beit) and pretraining.recipe.name == "beitv2"
        if family != "vit" and not self.swin and not beit:
            raise NoPeer(f"mmpretrain pre-trains ViTs with a table of positions, Swin and, for beitv2, BEiT, not "
                         f"{suite.model}")
        self.positions = _beit_positions(net) if beit else _TABLE
        self.patch = net.patch_embed.patch_size[0]
        self.grid = self.side // self.patch
        if self.swin:
            self.width, self.heads = net.embed_dim, [stage.blocks[0].attn.num_heads for stage in net.layers]
            self.depths = [len(stage.blocks) for stage in net.layers]
            self.window = net.layers[0].blocks[0].window_size[0]
            self.stride = self.patch * 2 ** (len(self.depths) - 1)
        else:
            self.width, self.depth, self.heads = net.embed_dim, len(net.blocks), net.blocks[0].attn.num_heads
            self.stride = self.patch

    @property
    def vit(self) -> dict[str, Any]:
        """``arch`` of mmpretrain's ViTs, and the sizes that go with it.

        Raises:
            NoPeer: the suite's backbone is a Swin.
        """
        if self.swin:
            raise NoPeer("mmpretrain has this objective on ViTs only")
        return {"arch": arch(self.width, self.depth, self.heads), "img_size": self.side, "patch_size": self.patch}


_TABLE = {"use_abs_pos_emb": True, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": False,
          "layer_scale_init_value": 0.0}


def _beit_positions(net: Beit) -> dict[str, Any]:
    """A BEiT's positions and layer scale, as mmpretrain's is told of them.

    Raises:
        NoPeer: a table of relative positions in each block, or no norm after the last one.
    """
    if net.blocks[0].attn.relative_position_bias_table is not None:
        raise NoPeer("the blocks of mmpretrain's BEiT v2 share their relative positions; set "
                     "suite.kwargs.use_rel_pos_bias=False suite.kwargs.use_shared_rel_pos_bias=True")
    if isinstance(net.norm, nn.Identity):
        raise NoPeer("mmpretrain's BEiT v2 has a norm after the last block; set suite.kwargs.use_fc_norm=False")
    return {**_TABLE, "use_abs_pos_emb": net.pos_embed is not None,
            "use_shared_rel_pos_bias": net.rel_pos_bias is not None,
            "layer_scale_init_value": net.blocks[0].init_values or 0.0}


def arch(width: int, depth: int, heads: int) -> dict[str, int]:
    """A ViT's sizes; ``depth`` is what BEiTV2Neck calls ``num_layers``."""
    return {"embed_dims": width, "num_layers": depth, "depth": depth, "num_heads": heads,
            "feedforward_channels": 4 * width}


class TokensAsMap(nn.Module):
    """A ViT of mmpretrain with the interface of its SimMIM's Swin: pictures and masks -> (feature map,)."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def init_weights(self) -> None:
        self.vit.init_weights()

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor]:
        """(B, 3, S, S) and (B, h, w) -> ((B, D, h, w),)."""
        tokens = self.vit(images, mask.flatten(1))[:, 1:]
        return (tokens.transpose(1, 2).unflatten(2, mask.shape[1:]).contiguous(),)


def _mae(model: ConfigDict, sizes: Sizes, pretraining: Pretraining) -> None:
    vit = sizes.vit
    head = pretraining.slots["head"]
    decoder = {**{name: head.get(name, known) for name, known in (("width", 512), ("depth", 8), ("heads", 16))},
               **(pretraining.suite.decoder or {})}
    model.backbone.update(vit, mask_ratio=pretraining.slots["corruption"].get("ratio", 0.75))
    model.neck.update(
        num_patches=sizes.grid**2, patch_size=sizes.patch, embed_dim=sizes.width, decoder_embed_dim=decoder["width"],
        decoder_depth=decoder["depth"], decoder_num_heads=decoder["heads"],
    )
    model.head.patch_size = sizes.patch


def _simmim(model: ConfigDict, sizes: Sizes, pretraining: Pretraining) -> None:
    if sizes.swin:
        if sizes.patch != 4:
            raise NoPeer(f"mmpretrain's SimMIM has Swin with patches of 4 px, not {sizes.patch}")
        model.backbone.update(
            arch={"embed_dims": sizes.width, "depths": sizes.depths, "num_heads": sizes.heads}, img_size=sizes.side,
            stage_cfgs={"block_cfgs": {"window_size": sizes.window}}, drop_path_rate=sizes.drop_path,
        )
        width = sizes.width * 2 ** (len(sizes.depths) - 1)
    else:
        from mmpretrain.registry import MODELS

        vit = MODELS.build({"type": "MaskFeatViT", "drop_path_rate": sizes.drop_path, **sizes.vit,
                            "_scope_": "mmpretrain"})
        model.backbone, width = TokensAsMap(vit), sizes.width
    model.neck.update(in_channels=width, encoder_stride=sizes.stride)
    model.head.patch_size = sizes.patch


def _maskfeat(model: ConfigDict, sizes: Sizes, pretraining: Pretraining) -> None:
    vit = sizes.vit
    cell = pretraining.slots["teacher"].get("cell") or sizes.patch // 2
    if sizes.grid != 14 or not cell or sizes.patch % cell:
        raise NoPeer(f"mmpretrain's HOG is made for 14 x 14 patches; this suite has {sizes.grid} x {sizes.grid} "
                     f"of {sizes.patch} px")
    bins = pretraining.slots["teacher"].get("bins", 9)
    model.backbone.update(vit, drop_path_rate=sizes.drop_path)
    model.neck.update(in_channels=sizes.width, out_channels=3 * bins * (sizes.patch // cell) ** 2)
    model.target_generator.update(nbins=bins, pool=cell, gaussian_window=sizes.patch)


def _beitv2(model: ConfigDict, sizes: Sizes, pretraining: Pretraining) -> None:
    vit = sizes.vit
    if sizes.depth < 2:
        raise NoPeer("BEiT v2 needs a block before the last one")
    teacher, student = pretraining.slots["teacher"], pretraining.slots["student"]
    codes, early = teacher.get("codes", 512), student.get("early", 0.75)
    early = min(sizes.depth - 1, round(early * sizes.depth))
    model.backbone.update(
        vit, out_indices=[early - 1, sizes.depth - 1], drop_path_rate=sizes.drop_path, **sizes.positions
    )
    model.neck.update(
        num_layers=student.get("blocks", 2), early_layers=early, backbone_arch=vit["arch"],
        layer_scale_init_value=sizes.positions["layer_scale_init_value"],
    )
    model.head.update(embed_dims=sizes.width, num_embed=codes)
    width, depth = teacher.get("width", 96), teacher.get("encoder_depth", 2)  # of the tokenizer that ours takes
    tokenizer = model.target_generator
    tokenizer.encoder_config.update(
        {**vit, "arch": arch(width, depth, max(1, width // 32))}, layer_scale_init_value=0.0
    )
    tokenizer.update(num_embed=codes, embed_dims=teacher.get("code_width", 32), quantize_kmeans_init=False,
                     init_cfg=None)  # weights from the network decide no speed


_MADE: dict[str, Callable[[ConfigDict, Sizes, Pretraining], None]] = {
    "mae": _mae, "simmim": _simmim, "maskfeat": _maskfeat, "beitv2": _beitv2,
}


def shipped(name: str) -> Config:
    """The config that mmpretrain ships for an objective, read without its hub, which would install packages."""
    return Config.fromfile(Path(find_spec("mmpretrain").origin).parent / ".mim" / "configs" / CONFIGS[name])


def configured(pretraining: Pretraining) -> tuple[Config, Callable[[], np.ndarray] | None]:
    """The model's config at the suite's sizes, and what draws the mask of a picture.

    Raises:
        NoPeer: mmpretrain has no such model, or not at these sizes.
    """
    name = pretraining.recipe.name
    if name not in CONFIGS:
        raise NoPeer(f"mmpretrain has no step to compare it with (it has {', '.join(CONFIGS)})")
    sizes, config = Sizes(pretraining), shipped(name)
    _MADE[name](config.model, sizes, pretraining)
    return config, _masks(config, sizes, pretraining)


def build(pretraining: Pretraining) -> tuple[nn.Module, Config, Callable[[], np.ndarray] | None]:
    """The model with fresh weights, the config that it comes from, and what draws the mask of a picture.

    Raises:
        NoPeer: as :func:`configured`.
    """
    config, draw = configured(pretraining)
    from mmpretrain.registry import MODELS

    model = MODELS.build({**config.model, "data_preprocessor": config.data_preprocessor, "_scope_": "mmpretrain"})
    model.init_weights()
    return model, config, draw


def _masks(
    config: Config, sizes: Sizes, pretraining: Pretraining
) -> Callable[[], np.ndarray] | None:
    """The mask generator of the shipped pipeline at the suite's grid; None where the model draws its own (MAE)."""
    from mmpretrain.registry import TRANSFORMS

    found = [dict(step) for step in config.train_pipeline if "MaskGenerator" in step["type"]]
    if not found:
        return None
    (step,) = found
    if step["type"] == "SimMIMMaskGenerator":
        unit = sizes.stride if sizes.swin else 2 * sizes.patch
        if sizes.side % unit:
            raise NoPeer(f"mmpretrain's SimMIM hides units of {unit} px, which do not tile {sizes.side} px")
        step |= {"input_size": sizes.side, "mask_patch_size": unit, "model_patch_size": sizes.patch}
    else:
        if sizes.grid < 4:
            raise NoPeer(f"mmpretrain's block-wise masks need at least 4 x 4 patches; here are {sizes.grid} x "
                         f"{sizes.grid}")
        share = sizes.grid**2 / 196  # its numbers are those of 14 x 14 patches
        step |= {key: max(1, round(step[key] * share)) for key in step if key.endswith("num_patches")}
        step |= {"input_size": sizes.grid, "num_masking_patches": round(step["num_masking_patches"] * share)}
    generator = TRANSFORMS.build({**step, "_scope_": "mmpretrain"})
    return lambda: generator.transform({})["mask"]
