"""Students S: a timm backbone that turns corrupted pictures and a mask into tokens (B, L, D).

The backbone itself stays an untouched timm model; what only pre-training needs (mask token) lives around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from objectives.recipe import ObjectiveError
from objectives.registry import STUDENTS, Geometry

_VIT, _SWIN = "vit", "swin"


def create_backbone(model: str, kwargs: Mapping[str, Any], drop_path: float = 0.0) -> nn.Module:
    """A freshly initialised timm model without classifier.

    Raises:
        ObjectiveError: timm knows no such model, or it does not take these arguments.
    """
    try:
        return timm.create_model(model, pretrained=False, **{**kwargs, "num_classes": 0, "drop_path_rate": drop_path})
    except Exception as error:  # timm raises many kinds here; each means that this request cannot be built
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ObjectiveError(f"backbone {model!r} with {dict(kwargs)}: {reason}") from error


def _family(backbone: nn.Module) -> str:
    if hasattr(backbone, "_pos_embed") and hasattr(backbone, "blocks"):
        return _VIT
    if hasattr(backbone, "layers") and hasattr(backbone, "patch_embed"):
        return _SWIN
    raise ObjectiveError(f"backbone {type(backbone).__name__}: pre-training takes timm ViTs, Swin and Swin V2")


def geometry_of(backbone: nn.Module, input_size: int, **context: Any) -> Geometry:
    """The token geometry of a timm ViT or Swin at ``input_size`` pixels."""
    patch = backbone.patch_embed.patch_size[0]
    hierarchical = _family(backbone) == _SWIN
    stride = patch * 2 ** (len(backbone.layers) - 1) if hierarchical else patch
    if input_size % stride:
        raise ObjectiveError(f"input size {input_size} is not a multiple of the backbone's stride {stride}")
    return Geometry(input_size, stride, hierarchical, backbone.num_features, **context)


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
        self.backbone, self.geometry, self.family = backbone, geometry, _family(backbone)
        if position != "learned" and self.family == _VIT:  # a Swin keeps its relative positions
            self._fix_positions(position)

    def _fix_positions(self, position: str) -> None:
        table = getattr(self.backbone, "pos_embed", None)
        if table is None:
            raise ObjectiveError(f"objective.student.position={position}: this backbone has no absolute position table")
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

    def forward(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """(B, 3, H, W) and (B, L) -> (B, L, D)."""
        x = self._embed(images, mask)
        if self.family == _SWIN:
            x = self.backbone.norm(self.backbone.layers(x))
            return x.flatten(1, 2)
        x = self.backbone.norm_pre(self.backbone._pos_embed(x))
        x = self.backbone.norm(self.backbone.blocks(x))
        return x[:, self.backbone.num_prefix_tokens :]

    def _embed(self, images: Tensor, mask: Tensor | None) -> Tensor:
        x = self.backbone.patch_embed(images)  # ViT (B, L, D); Swin (B, h, w, D)
        return x if mask is None else torch.where(self._at_patches(mask, x), self.mask_token.to(x.dtype), x)

    def _at_patches(self, mask: Tensor, x: Tensor) -> Tensor:
        if self.family == _VIT:
            return mask[..., None]
        grid = self.geometry.grid
        repeat = x.shape[1] // grid  # a token of the last stage covers repeat² patches
        square = mask.view(-1, grid, grid).repeat_interleave(repeat, 1).repeat_interleave(repeat, 2)
        return square[..., None]


@STUDENTS.register_module()
class TwoPathStudent(MaskTokenStudent):
    """BEiT v2's student: a second path makes the class token carry what the picture shows.

    The final class token and the patch tokens of an earlier block go through a few blocks of their own; the backbone's
    last norm is shared by both paths (``microsoft/unilm: beit2/modeling_pretrain.py``, facts only). ViT with a class
    token only.

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
        if _family(backbone) == _SWIN or getattr(backbone, "cls_token", None) is None:
            raise ObjectiveError(f"{name} predicts from the class token too, and this backbone has none; choose a ViT")
        super().__init__(backbone, geometry, position)
        depth = len(backbone.blocks)
        self.early = min(depth - 1, round(early * depth))
        if self.early < 1:
            raise ObjectiveError(f"{name}: early={early} of {depth} blocks leaves no block before the last")
        heads, eps = backbone.blocks[0].attn.num_heads, getattr(backbone.norm, "eps", 1e-6)
        self.second = nn.Sequential(*[
            Block(geometry.width, heads, qkv_bias=True, drop_path=drop_path, norm_layer=partial(nn.LayerNorm, eps=eps))
            for _ in range(blocks)
        ])
        for layer in self.second.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """(B, 3, H, W) and (B, L) -> (B, 2 L, D): the backbone's patch tokens, then those of the second path."""
        net = self.backbone
        x = net.norm_pre(net._pos_embed(self._embed(images, mask)))
        early = net.blocks[: self.early](x)
        final = net.blocks[self.early :](early)
        patches = net.num_prefix_tokens
        second = self.second(torch.cat([final[:, :1], early[:, patches:]], 1))
        return net.norm(torch.cat([final[:, patches:], second[:, 1:]], 1))


@STUDENTS.register_module()
class VisibleStudent(_Student):
    """Only visible patches (and class token, registers) go in (MAE). ViT only: windows need every patch.

    Every picture of a batch must hide the same number of patches.
    """

    def __init__(self, backbone: nn.Module, geometry: Geometry, position: str = "learned") -> None:
        if _family(backbone) == _SWIN:
            raise ObjectiveError(
                "a student of visible tokens only (MAE) cannot be a Swin: its windows need every patch; "
                "choose a ViT, or objective.student.type=MaskTokenStudent with objective.head.type=LinearHead"
            )
        super().__init__(backbone, geometry, position)

    def forward(self, images: Tensor, mask: Tensor | None) -> Tensor:
        """(B, 3, H, W) and (B, L) -> class token and registers, then the visible tokens in the order of their places.

        (B, prefix + L - hidden, D): MAE's decoder reads the class token too.
        """
        x = self.backbone._pos_embed(self.backbone.patch_embed(images))
        if mask is not None:
            prefix = self.backbone.num_prefix_tokens
            head, patches = x[:, :prefix], x[:, prefix:]
            patches = patches[~mask].view(len(x), -1, x.shape[2])
            x = torch.cat([head, patches], dim=1)
        return self.backbone.norm(self.backbone.blocks(self.backbone.norm_pre(x)))


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
        ObjectiveError: in the call, for a mask, or for crops of another size where the backbone is a Swin.
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
        net = self.backbone
        if self.family == _SWIN:
            if images.shape[-1] != self.geometry.input_size:
                raise ObjectiveError(
                    f"a Swin made for {self.geometry.input_size} pixels takes no crops of {images.shape[-1]}; "
                    "set objective.corruption.local=0"
                )
            return net.norm(net.layers(net.patch_embed(images))).mean((1, 2))
        same = images.shape[-1] == self.geometry.input_size
        x = net._pos_embed(net.patch_embed(images)) if same else self._embed(images)
        x = net.norm(net.blocks(net.norm_pre(x)))
        return x[:, 0] if net.cls_token is not None else x[:, net.num_prefix_tokens :].mean(1)

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
