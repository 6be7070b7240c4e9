"""Grids of heads, a learning rate and a layer each, trained in one pass over the features or the pictures."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from downstream.common import FeatureNorm


@MODELS.register_module()
class EachNormed(BaseModule):
    """Each map by a :class:`FeatureNorm` of its own: a tuple of (B, Dᵢ, H, W), of (B, Dᵢ) with ``pool``."""

    def __init__(self, channels: Sequence[int], pool: bool = False) -> None:
        super().__init__()
        self.norms = nn.ModuleList(FeatureNorm((width,), pool=pool) for width in channels)

    def fixed(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As :meth:`FeatureNorm.fixed`."""
        return self.norms[0].fixed(maps)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(norm((x,))[0] for norm, x in zip(self.norms, maps, strict=True))


class Grid:
    """What a grid of heads tells its trainer: pairs of a layer and a learning rate, of which one is chosen later."""

    layers: tuple[int, ...]
    rates: tuple[float, ...]
    chosen = 0

    @property
    def count(self) -> int:
        return len(self.layers) * len(self.rates)

    def grid(self) -> list[dict[str, Any]]:
        """Layer and learning rate of each head, in the order of the losses."""
        return [{"layer": layer, "lr": lr} for layer, lr in itertools.product(self.layers, self.rates)]

    def choose(self, number: int) -> dict[str, Any]:
        """Let head ``number`` predict from now on; returns its values."""
        self.chosen = number
        return self.grid()[number]


@MODELS.register_module()
class HeadGrid(Grid, BaseModule):
    """Any head of mmseg or mmpose that reads one map, once for each pair of a layer and a learning rate.

    All of a layer start alike. To its model it is the head that was chosen.

    Args:
        heads: a head's configuration for each layer.
        layers: of the maps that come in, in order.
        rates: learning rates.
    """

    def __init__(self, heads: Sequence[dict[str, Any]], layers: Sequence[int], rates: Sequence[float]) -> None:
        super().__init__()
        self.layers, self.rates = tuple(layers), tuple(rates)
        first = [MODELS.build(head) for head in heads]
        self.heads = nn.ModuleList(copy.deepcopy(head) for head in first for _ in rates)

    def __getattr__(self, name: str) -> Any:
        """What a model asks its head for (``num_classes``, ``align_corners``, ``decoder``, …) is that of the chosen."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "heads":
                raise
            return getattr(self.heads[self.chosen], name)

    def init_weights(self) -> None:
        """By each head's own rule, once a layer."""
        for start in range(0, self.count, len(self.rates)):
            self.heads[start].init_weights()
            for i in range(start + 1, start + len(self.rates)):
                self.heads[i].load_state_dict(self.heads[start].state_dict())

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups, one a learning rate."""
        return [
            {"lr": lr, "params": [p for head in self.heads[i :: len(self.rates)] for p in head.parameters()]}
            for i, lr in enumerate(self.rates)
        ]

    def loss(self, feats: tuple[Tensor, ...], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """``loss``: the sum over the heads; in evaluation mode also ``each_loss``, (layers × rates,)."""
        losses = []
        for number, head in enumerate(self.heads):
            found = head.loss(self._map(feats, number), *args, **kwargs)
            losses.append(sum(value.mean() for name, value in found.items() if "loss" in name))
        return summed(torch.stack(losses), self.training)

    def predict(self, feats: Any, *args: Any, **kwargs: Any) -> Any:
        """By the chosen head; mmpose gives a list of two for the flip test."""
        of_chosen = [self._map(f, self.chosen) for f in feats] if isinstance(feats, list) else self._map(
            feats, self.chosen)
        return self.heads[self.chosen].predict(of_chosen, *args, **kwargs)

    def forward(self, feats: tuple[Tensor, ...]) -> Any:
        return self.heads[self.chosen](self._map(feats, self.chosen))

    def _map(self, feats: tuple[Tensor, ...], number: int) -> tuple[Tensor]:
        return (feats[number // len(self.rates)],)


def of_heads(
    head: dict[str, Any], channels: Sequence[int], layers: Sequence[int], rates: Sequence[float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Neck and head of a model whose ``head`` (without its channels) is to be a grid."""
    heads = [{**head, **{name: width for name in ("in_channels", "channels") if name in head}} for width in channels]
    return {"type": "mmengine.EachNormed", "channels": channels}, {
        "type": "mmengine.HeadGrid", "heads": heads, "layers": layers, "rates": rates}


def summed(each: Tensor, training: bool) -> dict[str, Tensor]:
    """The losses of a grid's heads, (layers × rates,), as its model's: each head's gradient is its own."""
    return {"loss": each.sum()} if training else {"loss": each.sum(), "each_loss": each}
