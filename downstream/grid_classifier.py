"""A grid of linear classifiers: one matrix product for all learning rates of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from downstream.grid import Grid, summed


@MODELS.register_module()
class GridClsHead(Grid, ClsHead):
    """A linear classifier for each pair of a layer and a learning rate; one of them, chosen later, predicts.

    Args:
        num_classes: of the data set.
        channels, layers: of the maps that come in, in order.
        rates: learning rates.
    """

    def __init__(
        self, num_classes: int, channels: Sequence[int], layers: Sequence[int], rates: Sequence[float], **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.layers, self.rates = tuple(layers), tuple(rates)
        start = [nn.Linear(width, num_classes) for width in channels]  # of every rate the same
        self.weights = nn.ModuleList(nn.ParameterList(s.weight.clone().detach() for _ in rates) for s in start)
        self.biases = nn.ModuleList(nn.ParameterList(s.bias.clone().detach() for _ in rates) for s in start)

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups, one a learning rate."""
        return [
            {"lr": lr, "params": [part[i] for part in (*self.weights, *self.biases)]}
            for i, lr in enumerate(self.rates)
        ]

    def loss(self, feats: tuple[Tensor, ...], data_samples: list, **kwargs: Any) -> dict[str, Tensor]:
        """``loss``: the sum over the classifiers; in evaluation mode also ``each_loss``, (layers × rates,)."""
        labels = torch.cat([sample.gt_label for sample in data_samples])
        losses = []
        for x, weights, biases in zip(feats, self.weights, self.biases, strict=True):
            logits = nn.functional.linear(x, torch.cat(list(weights)), torch.cat(list(biases)))  # all rates at once
            repeated = labels.repeat_interleave(len(self.rates))
            each = self.loss_module(logits.view(len(repeated), -1), repeated, reduction_override="none")
            losses.append(each.view(len(x), -1).mean(0))
        return summed(torch.cat(losses), self.training)

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Logits (B, classes) of the chosen classifier."""
        layer, rate = divmod(self.chosen, len(self.rates))
        return nn.functional.linear(feats[layer], self.weights[layer][rate], self.biases[layer][rate])
