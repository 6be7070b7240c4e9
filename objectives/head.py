"""Heads H: the student's tokens -> a prediction shaped like the target.

One that ``narrows`` predicts each token from itself alone, so that it can be given some of them.
"""

from __future__ import annotations

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from objectives.patches import at, places_of, put
from objectives.recipe import ObjectiveError
from objectives.registry import HEADS, Geometry
from objectives.student import fixed_positions


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.trunc_normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer


def _xavier(module: nn.Module) -> None:
    """Xavier weights, zero biases (facebookresearch/mae)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


@HEADS.register_module()
class NoHead(nn.Module):
    """For objectives that do not train."""

    def __init__(self, geometry: Geometry, out_width: int) -> None:
        super().__init__()


def _count(mask: Tensor | None, geometry: Geometry) -> int:
    """How many tokens of a picture are to be predicted: of a narrowed prediction fewer than the picture has."""
    return geometry.grid**2 if mask is None else mask.shape[1]


def _needs_all_tokens(tokens: Tensor, mask: Tensor | None, geometry: Geometry, head: str) -> None:
    if tokens.shape[1] != _count(mask, geometry):
        raise ObjectiveError(
            f"objective.head.type={head} predicts a target per token, but the student gives visible tokens only; "
            "use LightDecoder, or objective.student.type=MaskTokenStudent"
        )


@HEADS.register_module()
class LinearHead(nn.Module):
    """One linear layer on every token: (B, L, D) -> (B, L, C).

    With ``paths`` above 1, on the tokens of as many paths, one after the other: (B, paths·L, D) -> (B, paths·L, C).
    """

    narrows = True

    def __init__(self, geometry: Geometry, out_width: int, paths: int = 1) -> None:
        super().__init__()
        self.geometry, self.paths = geometry, paths
        self.predict = _linear(geometry.width, out_width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        if self.paths == 1:
            _needs_all_tokens(tokens, mask, self.geometry, "LinearHead")
        elif tokens.shape[1] != (needed := self.paths * _count(mask, self.geometry)):
            raise ObjectiveError(
                f"objective.head.paths={self.paths} needs {needed} tokens, but the student gives {tokens.shape[1]}; "
                "use objective.student.type=TwoPathStudent, or paths=1"
            )
        return self.predict(tokens)


@HEADS.register_module()
class PixelShuffleHead(nn.Module):
    """SimMIM's head, a 1x1 convolution to stride²·3 channels and a pixel shuffle, given back as patches.

    A 1x1 convolution is a linear layer on tokens; the shuffle only reorders, from (channel, row, column) to the
    target's (row, column, channel).
    """

    narrows = True

    def __init__(self, geometry: Geometry, out_width: int) -> None:
        super().__init__()
        self.geometry, self.patch = geometry, geometry.stride
        if out_width != self.patch**2 * 3:
            raise ObjectiveError("objective.head.type=PixelShuffleHead predicts pixels; this teacher needs LinearHead")
        self.predict = _linear(geometry.width, out_width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        _needs_all_tokens(tokens, mask, self.geometry, "PixelShuffleHead")
        x = self.predict(tokens)
        return x.unflatten(-1, (3, self.patch, self.patch)).permute(0, 1, 3, 4, 2).flatten(2)


@HEADS.register_module()
class LightDecoder(nn.Module):
    """MAE's decoder: visible tokens in their places, a mask token elsewhere, positions, a few blocks, linear.

    Class token and registers, where the student gives them, go through the blocks too (at position zero). Beyond
    Masking's has neither them nor a bias in its first layer; the last norm's eps is 1e-5 (MAE's 1e-6).

    Args:
        width, depth, heads: of the paper's decoder; the suite's ``decoder`` replaces them for small backbones.
        position: "sincos2d", or "sincos1d" over the tokens in reading order (Beyond Masking).
    """

    takes = ("visible",)

    def __init__(
        self, geometry: Geometry, out_width: int, width: int = 512, depth: int = 8, heads: int = 16,
        position: str = "sincos2d",
    ) -> None:
        super().__init__()
        size = {"width": width, "depth": depth, "heads": heads, **(geometry.decoder or {})}
        width, heads = size["width"], size["heads"]
        self.embed = _linear(geometry.width, width)
        self.mask_token = nn.Parameter(nn.init.normal_(torch.zeros(width), std=0.02))
        self.register_buffer("positions", fixed_positions(position, geometry.grid, width), persistent=False)
        self.blocks = nn.Sequential(*[Block(width, heads, qkv_bias=True) for _ in range(size["depth"])])
        self.norm = nn.LayerNorm(width)
        self.predict = _linear(width, out_width)
        _xavier(self.blocks)
        self.dropped: bool | None = None  # whether the student leaves hidden tokens out; None: their number tells

    def forward(self, tokens: Tensor, mask: Tensor | None, visible: Tensor | None = None) -> Tensor:
        """Prefix and visible tokens (B, P + V, D) and mask (B, L), or all tokens (B, P + L, D) -> (B, L, C).

        ``visible`` as in :class:`~objectives.corruption.Seen`; None: found from ``mask``.
        """
        x = self.embed(tokens)
        count = len(self.positions)
        dropped = tokens.shape[1] < count if self.dropped is None else self.dropped
        if mask is None or not dropped:
            seen = count
        else:
            visible = places_of(mask)[0] if visible is None else visible
            seen = visible.shape[1]
        prefix, x = x[:, : x.shape[1] - seen], x[:, x.shape[1] - seen :]
        if seen < count:
            x = put(x, visible, self.mask_token.to(x.dtype).expand(*mask.shape, -1))
        x = self.blocks(torch.cat([prefix, x + self.positions], dim=1))
        return self.predict(self.norm(x[:, prefix.shape[1] :]))


class _PromptBlock(nn.Module):
    """A block whose queries are the hidden tokens; keys and values come from visible and hidden ones."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: Tensor, visible: Tensor) -> Tensor:
        """(B, M, W), (B, 1 + V, W) -> (B, M, W)."""
        asked = self.norm1(hidden)

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        keys_and_values = self.key_value(torch.cat([visible, asked], 1)).chunk(2, -1)
        query, key, value = map(split, (self.query(asked), *keys_and_values))
        answer = nn.functional.scaled_dot_product_attention(query, key, value)
        hidden = hidden + self.project(answer.transpose(1, 2).flatten(2))
        return hidden + self.mlp(self.norm2(hidden))


@HEADS.register_module()
class PromptingDecoder(nn.Module):
    """MILAN's decoder (2208.06049): only mask tokens are updated, the student's tokens stay as it made them.

    (B, 1 + V, D) -> (B, 1 + L, C), class token first. A register is none: :class:`~objectives.objective.Objective`
    refuses backbones that have other tokens than a class token before those of the patches.

    Args:
        width, depth, heads: of the paper's decoder; the suite's ``decoder`` replaces them for small backbones.
    """

    needs_class_token = True
    takes = ("visible", "hidden")

    def __init__(self, geometry: Geometry, out_width: int, width: int = 512, depth: int = 8, heads: int = 16) -> None:
        super().__init__()
        size = {"width": width, "depth": depth, "heads": heads, **(geometry.decoder or {})}
        width = size["width"]
        self.embed = _linear(geometry.width, width)
        self.mask_token = nn.Parameter(nn.init.normal_(torch.zeros(width), std=0.02))
        self.register_buffer("positions", fixed_positions("sincos2d", geometry.grid, width), persistent=False)
        self.blocks = nn.ModuleList(_PromptBlock(width, size["heads"]) for _ in range(size["depth"]))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.predict = _linear(width, out_width)
        _xavier(self.blocks)

    def forward(
        self, tokens: Tensor, mask: Tensor | None, visible: Tensor | None = None, hidden: Tensor | None = None
    ) -> Tensor:
        """Class token and visible tokens, mask (B, L); ``visible``, ``hidden`` as in ``Seen``, else from ``mask``."""
        if mask is None:
            raise ObjectiveError("objective.head.type=PromptingDecoder needs a corruption that masks")
        x = self.embed(tokens)
        if visible is None or hidden is None:
            visible, hidden = places_of(mask)
        if x.shape[1] != visible.shape[1] + 1:
            raise ObjectiveError(
                "objective.head.type=PromptingDecoder needs objective.student.type=VisibleStudent"
            )
        places = self.positions.expand(len(x), -1, -1)
        seen = torch.cat([x[:, :1], x[:, 1:] + at(places, visible)], 1)
        guessed = self.mask_token + at(places, hidden)
        for block in self.blocks:
            guessed = block(guessed, seen)
        order, tokens = torch.cat([visible, hidden], 1), torch.cat([seen[:, 1:], guessed], 1)
        full = put(tokens, order, torch.empty_like(tokens))
        return self.predict(self.norm(torch.cat([seen[:, :1], full], 1)))


@HEADS.register_module()
class ClassifierHead(nn.Module):
    """Mean of the tokens, one linear layer: (B, L, D) -> (B, classes)."""

    def __init__(self, geometry: Geometry, out_width: int) -> None:
        super().__init__()
        self.predict = _linear(geometry.width, out_width)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        return self.predict(tokens.mean(1))
