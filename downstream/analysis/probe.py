"""Reads the attention and the features of every block while a timm network runs, and changes nothing of its result.

The network computes with its own code, fused attention included. A torch function mode, active only while the probe
runs, watches the two calls that make attention in timm: ``scaled_dot_product_attention``, whose logits are computed
once more beside it, and ``softmax`` over a square (…, N, N), whose input is the logits (Swin V2, and any model whose
fused attention is switched off). What leaves a block is handed over at once and then forgotten, so that memory does
not grow with the number of pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from downstream.backbone import build, load_strict, read_about
from downstream.task import TaskError

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
NO_TOKEN = -1  # in Layout.tokens: class token, register or padding


class AnalysisError(TaskError):
    """The network or the settings do not suit an analysis; one line."""


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the N tokens of an attention map lie in the picture.

    Attributes:
        tokens: (W, N) for the W windows of a picture (one for global attention): each token's index in the feature
            map, in reading order; ``NO_TOKEN`` for class tokens, registers and padding.
        places: (N, 2) row and column within the window, in steps; of no meaning where there is no token.
        grid: height and width of the feature map, in tokens.
        stride: pixels of the picture from one token to the next.
    """

    tokens: Tensor
    places: Tensor
    grid: tuple[int, int]
    stride: float

    @cached_property
    def distances(self) -> Tensor:
        """(N, N) Euclidean distances between token centres within the window, in pixels; 0 to oneself."""
        return torch.cdist(self.places, self.places, compute_mode="donot_use_mm_for_euclid_dist") * self.stride

    @classmethod
    def whole(cls, grid: tuple[int, int], stride: float, prefix: int = 0) -> Layout:
        """One window over all: ``prefix`` class tokens and registers, then the grid in reading order."""
        count = grid[0] * grid[1]
        tokens = torch.cat([torch.full((prefix,), NO_TOKEN), torch.arange(count)])
        places = torch.cat([torch.zeros(prefix, 2), _places(*grid)])
        return cls(tokens[None], places, grid, stride)

    @classmethod
    def windows(
        cls, grid: tuple[int, int], stride: float, window: tuple[int, int], shift: tuple[int, int] = (0, 0)
    ) -> Layout:
        """Windows of a Swin: rolled by ``shift``, padded to whole windows, cut; windows in reading order.

        A shifted window may join opposite edges of the picture. Its mask lets no attention through between them, so
        positions within the window give true distances wherever there is attention.
        """
        (h, w), (high, wide) = grid, window
        index = torch.arange(h * w).view(h, w).roll((-shift[0], -shift[1]), (0, 1))
        index = F.pad(index, (0, -w % wide, 0, -h % high), value=NO_TOKEN)
        cut = index.view(index.shape[0] // high, high, index.shape[1] // wide, wide).transpose(1, 2)
        return cls(cut.reshape(-1, high * wide), _places(high, wide), grid, stride)


def _places(height: int, width: int) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([rows, columns], -1).reshape(-1, 2).float()


OnAttention = Callable[[int, Tensor, Layout], None]
OnFeatures = Callable[[int, Tensor, float], None]


def load_network(folder: Path) -> tuple[nn.Module, dict[str, Any], int]:
    """(network, ``backbone.json``, picture side in pixels) of a backbone folder; any timm model, without classifier.

    The network is in evaluation mode and takes no gradient.

    Raises:
        WeightsError: the folder cannot be read, timm does not know the model, or the weights do not fit.
    """
    about = read_about(folder)
    net = build(about["model"], about["kwargs"], str(folder))
    load_strict(net, folder)
    size = about.get("input_size") or about["kwargs"].get("img_size") or net.pretrained_cfg["input_size"][-1]
    return net.eval().requires_grad_(False), about, int(size if isinstance(size, int) else size[0])


def blocks_of(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The blocks of a timm network in order, each with its name: "3", or "2.3" for the third block of stage two.

    Raises:
        AnalysisError: it has neither blocks (ViT, EVA, BEiT, …) nor stages of blocks (Swin, Swin V2, ConvNeXt, …).
    """
    if isinstance(getattr(net, "blocks", None), nn.Sequential | nn.ModuleList):
        return [(str(i), block) for i, block in enumerate(net.blocks, 1)]
    stages = getattr(net, "layers", None) or getattr(net, "stages", None) or ()
    found = [
        (f"{s}.{b}", block)
        for s, stage in enumerate(stages, 1) for b, block in enumerate(getattr(stage, "blocks", ()), 1)
    ]
    if not found:
        raise AnalysisError(f"{type(net).__name__}: analyses take timm networks with blocks or stages of blocks")
    return found


class Probe:
    """A context within which calling it runs ``net`` and hands over what every block does.

    Args:
        net: a timm network (see :func:`blocks_of`), in evaluation mode.
        on_attention: called as (layer, log_attention, layout) once a block with attention: layer from 0 on,
            log_attention (B × W, H, N, N) float32 natural logarithms of attention weights, query by key, where W
            windows of a picture stand next to each other; -inf or very low where masked.
        on_features: called as (layer, map, stride) with each block's output (B, D, h, w) float32, without class
            tokens and registers; stride in pixels.

    Raises:
        AnalysisError: the network is of no known form.
    """

    def __init__(
        self, net: nn.Module, on_attention: OnAttention | None = None, on_features: OnFeatures | None = None
    ) -> None:
        self.net, self.on_attention, self.on_features = net, on_attention, on_features
        named = blocks_of(net)
        self.names = [name for name, _ in named]
        self.blocks = [block for _, block in named]
        self._handles: list[Any] = []
        self._logits: list[Tensor] | None = None  # of the block that is running
        self._side = (0, 0)
        self._layouts: dict[Any, Layout] = {}

    def __enter__(self) -> Probe:
        for i, block in enumerate(self.blocks):
            self._handles += [
                block.register_forward_pre_hook(partial(self._begin, i)),
                block.register_forward_hook(partial(self._end, i)),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._logits = None

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> what ``net.forward_features`` returns, bit for bit.

        Raises:
            AnalysisError: a feature map does not fit the picture.
        """
        self._side = (int(images.shape[-2]), int(images.shape[-1]))
        if self.on_attention is None:
            return self.net.forward_features(images)
        with _Watch(self._see):
            return self.net.forward_features(images)

    def _begin(self, layer: int, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._logits = []

    def _see(self, logits: Tensor) -> None:
        if self._logits is not None:
            self._logits.append(logits.float())

    def _end(self, layer: int, block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        seen, self._logits = self._logits or [], None
        features = output[0] if isinstance(output, tuple) else output
        grid, prefix = self._grid(features)
        stride = self._side[0] / grid[0]
        if self.on_attention is not None and seen:
            layout = self._layout(block, grid, stride, prefix)
            seen = [logits for logits in seen if logits.shape[-1] == layout.tokens.shape[1]]
            if seen:  # parallel attentions of one block are heads of one layer
                joined = seen[0] if len(seen) == 1 else torch.cat(seen, 1)
                self.on_attention(layer, joined.log_softmax(-1), layout)
        if self.on_features is not None:
            if features.ndim == 3:
                square = features[:, prefix:].transpose(1, 2).unflatten(2, grid)
            else:
                square = features.permute(0, 3, 1, 2) if self._channels_last else features
            self.on_features(layer, square.float(), stride)

    @property
    def _channels_last(self) -> bool:
        return str(getattr(self.net, "output_fmt", "NCHW")) in ("NHWC", "Format.NHWC")

    def _grid(self, features: Tensor) -> tuple[tuple[int, int], int]:
        """Grid (h, w) of a block's tokens, and how many class tokens and registers stand before them."""
        if features.ndim == 4:
            h, w = features.shape[1:3] if self._channels_last else features.shape[2:4]
            return (int(h), int(w)), 0
        patch = self.net.patch_embed.patch_size
        grid = self._side[0] // patch[0], self._side[1] // patch[1]
        prefix = features.shape[1] - grid[0] * grid[1]
        if features.ndim != 3 or prefix != getattr(self.net, "num_prefix_tokens", prefix) or prefix < 0:
            raise AnalysisError(f"a block of {type(self.net).__name__} gives tokens {tuple(features.shape)}, "
                                f"which do not lie on a grid of {grid[0]} × {grid[1]}")
        return grid, prefix

    def _layout(self, block: nn.Module, grid: tuple[int, int], stride: float, prefix: int) -> Layout:
        window, shift = _two(getattr(block, "window_size", 0)), _two(getattr(block, "shift_size", 0))
        key = (grid, stride, prefix, window, shift)
        if key not in self._layouts:
            windowed = bool(window[0]) and not prefix
            self._layouts[key] = (
                Layout.windows(grid, stride, window, shift) if windowed else Layout.whole(grid, stride, prefix)
            )
        return self._layouts[key]


def _two(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) or value is None else (int(value[0]), int(value[1]))


class _Watch(TorchFunctionMode):
    """Runs every torch function as it is and shows ``see`` the logits (B, H, N, N) of those that make attention."""

    def __init__(self, see: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _SOFTMAX:  # before the call, which may overwrite its input
            logits = args[0] if args else kwargs["input"]
            dim = args[1] if len(args) > 1 else kwargs.get("dim")
            if logits.ndim == 4 and logits.shape[-1] == logits.shape[-2] and dim in (-1, 3):
                self.see(logits)
        elif func is F.scaled_dot_product_attention:
            self.see(_logits(*args, **kwargs))
        return func(*args, **kwargs)


def _logits(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:
    """What the softmax of ``scaled_dot_product_attention`` sees: (B, H, N, N) float32."""
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    logits = query.float() @ key.float().transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        logits = logits.masked_fill(logits.new_ones(logits.shape[-2:]).triu(1).bool(), float("-inf"))
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, float("-inf")) if attn_mask.dtype == torch.bool else logits + attn_mask
    return logits
