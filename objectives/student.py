"""Students S: a timm backbone that turns corrupted pictures and a mask into tokens (B, L, D).

The backbone itself stays an untouched timm model; what only pre-training needs (mask token) lives around it.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from objectives.backbone import (
    Places,
    check_visible,
    each_block,
    family_of,
    features,
    has_class_token,
    narrowed,
    narrows,
    place,
    prefix_of,
    visible_of,
    whole,
)
from objectives.patches import places_of
from objectives.recipe import ObjectiveError
from objectives.registry import STUDENTS, Geometry


def sincos_positions(grid: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine positions (grid², width): half of the channels for x, half for y (MAE, base 10,000)."""
    if width % 4:
        raise ObjectiveError(f"sine-cosine positions need a width divisible by 4, not {width}")
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    axis = torch.arange(grid, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    parts = [f(p.flatten()[:, None] * omega) for p in (x, y) for f in (torch.sin, torch.cos)]
    return torch.cat(parts, dim=1).float()


def sinusoid_positions(count: int, width: int) -> Tensor:
    """Fixed positions (count, width) in reading order, sines in even and cosines in odd channels (1706.03762)."""
    if width % 2:
        raise ObjectiveError(f"sinusoid positions need an even width, not {width}")
    omega = 10000.0 ** -(2 * torch.arange(width // 2, dtype=torch.float64) / width)
    phase = torch.arange(count, dtype=torch.float64)[:, None] * omega
    return torch.stack([phase.sin(), phase.cos()], -1).flatten(1).float()


def fixed_positions(kind: str, grid: int, width: int) -> Tensor:
    """The table (grid², width) named "sincos2d" or "sincos1d"."""
    if kind == "sincos2d":
        return sincos_positions(grid, width)
    if kind == "sincos1d":
        return sinusoid_positions(grid**2, width)
    raise ObjectiveError(f"position: {kind!r} is neither 'sincos2d' nor 'sincos1d'")


class _Student(nn.Module):
    def __init__(self, backbone: nn.Module, geometry: Geometry, position: str = "learned") -> None:
        super().__init__()
        self.backbone, self.geometry, self.family = backbone, geometry, family_of(backbone)
        if position != "learned":
            fixed_positions(position, 1, 4)  # a name that is none is refused even where there is no table
            self._fix_positions(position)

    def _fix_positions(self, position: str) -> None:
        table = getattr(self.backbone, "pos_embed", None)
        if table is None or self.family == "swin":
            return  # rotary and relative positions stay what they are
        fixed = torch.zeros_like(table)
        if table.shape[1] < self.geometry.grid**2:
            raise ObjectiveError(
                f"the backbone's table has {table.shape[1]} positions, pictures of {self.geometry.input_size} px have "
                f"{self.geometry.grid**2} patches; set suite.kwargs.img_size={self.geometry.input_size}"
            )
        positions = fixed_positions(position, self.geometry.grid, table.shape[2])
        fixed[0, table.shape[1] - self.geometry.grid**2 :] = positions
        table.data.copy_(fixed)
        table.requires_grad_(False)


@STUDENTS.register_module()
class MaskTokenStudent(_Student):
    """All tokens go in; a learned token stands in for each masked patch, before positions are added (BEiT, SimMIM).

    Works on ViT and Swin. Without a mask it is the plain backbone.
    """

    def __init__(self, backbone: nn.Module, geometry: Geometry, position: str = "learned") -> None:
        super().__init__(backbone, geometry, position)
        width = backbone.embed_dim
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(width), std=0.02))

    @property
    def narrows(self) -> bool:
        """Whether ``only`` can be asked for."""
        return narrows(self.backbone)

    def forward(self, images: Tensor, mask: Tensor | None, only: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) and (B, L) -> (B, L, D), or the tokens at the places ``only`` (B, V) -> (B, V, D)."""
        return whole(self.backbone, self._embed(images, mask), only)

    def _embed(self, images: Tensor, mask: Tensor | None) -> Tensor:
        x = self.backbone.patch_embed(images)  # ViT (B, L, D); Swin (B, h, w, D)
        return x if mask is None else torch.where(self._at_patches(mask, x), self.mask_token.to(x.dtype), x)

    def _at_patches(self, mask: Tensor, x: Tensor) -> Tensor:
        if self.family != "swin":
            return mask[..., None]
        grid = self.geometry.grid
        repeat = x.shape[1] // grid  # a token of the last stage covers repeat² patches
        square = mask.view(-1, grid, grid).repeat_interleave(repeat, 1).repeat_interleave(repeat, 2)
        return square[..., None]


@STUDENTS.register_module()
class TwoPathStudent(MaskTokenStudent):
    """BEiT v2's student: a second path makes the class token carry what the picture shows.

    The final class token and the patch tokens of an earlier block go through a few blocks of their own; the backbone's
    last norm is shared by both paths, and so is the bias of relative positions that all blocks of a BEiT have
    (``microsoft/unilm: beit2/modeling_pretrain.py``, facts only). ViT with a class token only.

    Args:
        early: how far into the backbone the patch tokens are taken, as a share of its blocks: 9 of 12 in the paper
            (21 of 24 for ViT-L), here the nearest whole block before the last.
        blocks: of the second path (2).
        drop_path: of the second path.
    """

    def __init__(
        self, backbone: nn.Module, geometry: Geometry, position: str = "learned", early: float = 0.75, blocks: int = 2,
        drop_path: float = 0.0,
    ) -> None:
        name = "objective.student.type=TwoPathStudent"
        if family_of(backbone) == "swin" or not has_class_token(backbone):
            raise ObjectiveError(f"{name} predicts from the class token too, and this backbone has none; choose a ViT")
        super().__init__(backbone, geometry, position)
        depth = len(backbone.blocks)
        self.early = min(depth - 1, round(early * depth))
        if self.early < 1:
            raise ObjectiveError(f"{name}: early={early} of {depth} blocks leaves no block before the last")
        first, kind = backbone.blocks[0], Block
        settings = {"qkv_bias": True, "norm_layer": partial(nn.LayerNorm, eps=getattr(backbone.norm, "eps", 1e-6))}
        if relative := isinstance(first, BeitBlock):  # the tokens do not carry their positions, the attention does
            kind, settings["qkv_bias"] = BeitBlock, first.attn.q_bias is not None
            settings |= {"init_values": first.init_values, "window_size": first.attn.window_size}
        self.second = nn.ModuleList([
            kind(geometry.width, first.attn.num_heads, drop_path=drop_path, **settings) for _ in range(blocks)
        ])
        for layer in self.second.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        if relative:  # scaled by their depth, as those of the backbone are
            for number, block in enumerate(self.second, self.early + 1):
                for layer in (block.attn.proj, block.mlp.fc2):
                    layer.weight.data.div_(math.sqrt(2 * number))

    @property
    def narrows(self) -> bool:
        return super().narrows and len(self.second) > 0

    def forward(self, images: Tensor, mask: Tensor | None, only: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) and (B, L) -> (B, 2 L, D): the backbone's patch tokens, then those of the second path.

        With ``only`` as in :class:`MaskTokenStudent`: (B, 2 V, D).
        """
        net, prefix = self.backbone, prefix_of(self.backbone)
        asked = None if only is None else nn.functional.pad(prefix + only, (1, 0))  # the class token has place 0
        tokens, places = place(net, self._embed(images, mask))
        after = list(each_block(net, tokens, places, asked))
        early, final = after[self.early - 1], after[-1]
        second = torch.cat([final[:, :1], early[:, prefix:]], 1)
        shared = {"shared_rel_pos_bias": places.bias} if isinstance(net, Beit) else {}
        for block in self.second if only is None else self.second[:-1]:
            second = block(second, **shared)
        if only is None:
            return net.norm(torch.cat([final[:, prefix:], second[:, 1:]], 1))
        second = narrowed(self.second[-1], second, 1 + only, places)
        return net.norm(torch.cat([final[:, 1:], second], 1))


@STUDENTS.register_module()
class VisibleStudent(_Student):
    """Only visible patches (and class token, registers) go in (MAE). Absolute or rotary positions only.

    Every picture of a batch must hide the same number of patches.
    """

    takes = ("visible",)

    def __init__(self, backbone: nn.Module, geometry: Geometry, position: str = "learned") -> None:
        super().__init__(backbone, geometry, position)
        check_visible(backbone)

    def forward(self, images: Tensor, mask: Tensor | None, visible: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) and (B, L) -> class token and registers, then the visible tokens in the order of their places.

        (B, prefix + L - hidden, D): MAE's decoder reads the class token too. ``visible`` as in
        :class:`~objectives.corruption.Seen`; None: found from ``mask``.
        """
        tokens, places = place(self.backbone, self.backbone.patch_embed(images))
        if mask is not None:
            visible = places_of(mask)[0] if visible is None else visible
            tokens, places = visible_of(self.backbone, tokens, places, visible)
        return features(self.backbone, tokens, places)


@STUDENTS.register_module()
class PooledStudent(_Student):
    """One vector per picture or crop: the class token where the ViT has one, else (Swin too) the mean of the tokens.

    A ViT takes crops of any whole number of patches: its position table is resampled for them, as timm does with
    ``dynamic_img_size``, while the backbone itself stays as it was made.

    Args:
        position: as of the other students.
        freeze_patch_embed: leave the patch embedding at its random start (MoCo v3), drawn as there: uniform within
            sqrt(6 / (3 · patch² + D)), bias 0 (``facebookresearch/moco-v3``, facts only).

    Raises:
        ObjectiveError: in the call, for a mask, or for crops of another size where the backbone has no position table.
    """

    def __init__(
        self, backbone: nn.Module, geometry: Geometry, position: str = "learned", freeze_patch_embed: bool = False
    ) -> None:
        super().__init__(backbone, geometry, position)
        if freeze_patch_embed:
            patches = backbone.patch_embed
            bound = math.sqrt(6 / (patches.proj.weight[0].numel() + patches.proj.out_channels))
            nn.init.uniform_(patches.proj.weight, -bound, bound)
            if patches.proj.bias is not None:
                nn.init.zeros_(patches.proj.bias)
            patches.requires_grad_(False)

    def forward(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """(N, 3, s, s) -> (N, D); ``mask`` must be None."""
        if mask is not None:
            raise ObjectiveError(
                "objective.student.type=PooledStudent sees whole crops; choose a corruption without a mask"
            )
        net, same = self.backbone, images.shape[-1] == self.geometry.input_size
        if not same and self.family != "vit":
            raise ObjectiveError(
                f"this backbone's positions are made for {self.geometry.input_size} pixels and take no crops of "
                f"{images.shape[-1]}; choose a ViT with a table of positions, or objective.corruption.local=0"
            )
        if self.family == "swin":
            return whole(net, net.patch_embed(images)).mean(1)
        tokens, places = place(net, net.patch_embed(images)) if same else (net.norm_pre(self._embed(images)), Places())
        x = features(net, tokens, places)
        return x[:, 0] if has_class_token(net) else x[:, prefix_of(net) :].mean(1)

    def _embed(self, images: Tensor) -> Tensor:
        """Tokens with positions of a picture that is not of the backbone's own size."""
        net, grid = self.backbone, self.backbone.patch_embed.grid_size
        x = net.patch_embed.proj(images)
        size = list(x.shape[-2:])
        x = net.patch_embed.norm(x.flatten(2).transpose(1, 2))
        first = [token.expand(len(x), -1, -1) for token in (net.cls_token, net.reg_token) if token is not None]
        if net.pos_embed is None:
            return net.pos_drop(torch.cat([*first, x], 1))
        prefix = 0 if net.no_embed_class else net.num_prefix_tokens
        table = resample_abs_pos_embed(net.pos_embed, size, old_size=list(grid), num_prefix_tokens=prefix)
        x = torch.cat([*first, x + table], 1) if net.no_embed_class else torch.cat([*first, x], 1) + table
        return net.pos_drop(x)
