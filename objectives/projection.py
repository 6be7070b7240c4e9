"""Heads that project one vector per crop: (N, D) -> (N, C). For contrastive and self-distilling objectives.

Sizes are the papers'. Where a suite with a small backbone sets ``geometry.decoder``, hidden layers have at most 4·D
channels, and DINO's last layer at most 16·D prototypes: of the papers' heads, one matrix alone would outweigh such a
backbone (our choice; neither paper has backbones as small).
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.recipe import ObjectiveError
from objectives.registry import HEADS, Geometry


def hidden_width(paper: int, geometry: Geometry) -> int:
    """The paper's width, or ``min(paper, 4·D)`` for the small backbones of suites that set ``geometry.decoder``."""
    return min(paper, 4 * geometry.width) if geometry.decoder else paper


def _needs_vectors(vectors: Tensor, head: str) -> None:
    if vectors.ndim != 2:
        raise ObjectiveError(
            f"objective.head.type={head} projects one vector per crop: objective.student.type=PooledStudent"
        )


class _BatchNorm(nn.BatchNorm1d):
    """By the batch at hand, always: the momentum network of MoCo v3 too runs in training mode. No running values."""

    def __init__(self, width: int, affine: bool = True) -> None:
        super().__init__(width, affine=affine, track_running_stats=False)


def batch_norm_mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers without bias, BN and ReLU between, BN without affine at the end (``moco-v3: moco/builder.py``)."""
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        last = index == len(widths) - 2
        layers += [nn.Linear(inputs, outputs, bias=False), _BatchNorm(outputs, affine=not last)]
        if not last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


@HEADS.register_module()
class ProjectionMLP(nn.Module):
    """MoCo v3's projection (three layers) and predictor (two): (2B, D) -> (2B, C), each view normalised for itself.

    The moving average follows the projection, not the predictor.

    Args:
        hidden, out: widths (4096 and 256 in the paper's code); see :func:`hidden_width`.

    Raises:
        ObjectiveError: in the call, for tokens instead of vectors, or for fewer than two pictures (batch norm).
    """

    def __init__(self, geometry: Geometry, out_width: int, hidden: int = 4096, out: int = 256) -> None:
        super().__init__()
        hidden = hidden_width(hidden, geometry)
        self.projection = _Views(batch_norm_mlp([geometry.width, hidden, hidden, out]))
        self.predictor = _Views(batch_norm_mlp([out, hidden, out]))

    def averaged(self) -> nn.Module:
        """The part that a momentum teacher copies."""
        return self.projection

    def forward(self, vectors: Tensor, mask: Tensor | None) -> Tensor:
        _needs_vectors(vectors, "ProjectionMLP")
        return self.predictor(self.projection(vectors))


class _Views(nn.Module):
    """A network applied to the first half of a batch and to the second: batch norm sees one view at a time."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, vectors: Tensor) -> Tensor:
        if len(vectors) < 4 or len(vectors) % 2:
            raise ObjectiveError(
                f"objective.head.type=ProjectionMLP: {len(vectors)} vectors are not two views of two pictures or more; "
                "raise suite.batch_size, or take objective.corruption.type=TwoViews"
            )
        return torch.cat([self.network(view) for view in vectors.chunk(2)])


@HEADS.register_module()
class DINOHead(nn.Module):
    """Three layers with GELU to a bottleneck of unit length, then its cosine with each prototype: (N, D) -> (N, K).

    As ``facebookresearch/dino: vision_transformer.py`` with ``norm_last_layer``: weight norm whose length stays 1.

    Args:
        prototypes: K, 65,536 in the paper; ``min(prototypes, 16·D)`` where ``geometry.decoder`` is set.
        hidden, bottleneck: 2048 and 256 in the paper's code; see :func:`hidden_width`.
        freeze: share of the training, from its start, in which the prototypes stand still (1 of 100 epochs).

    Raises:
        ObjectiveError: in the call, for tokens instead of vectors.
    """

    def __init__(
        self, geometry: Geometry, out_width: int, prototypes: int = 65536, hidden: int = 2048, bottleneck: int = 256,
        freeze: float = 0.01,
    ) -> None:
        super().__init__()
        hidden = hidden_width(hidden, geometry)
        self.prototypes = min(prototypes, 16 * geometry.width) if geometry.decoder else prototypes
        self.mlp = nn.Sequential(
            nn.Linear(geometry.width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.directions = nn.Parameter(nn.Linear(bottleneck, self.prototypes, bias=False).weight.detach().clone())
        self.freeze, self.frozen = freeze, False

    def averaged(self) -> nn.Module:
        """The part that a momentum teacher copies: all of it."""
        return self

    def begin_step(self, step: int, steps: int) -> None:
        """Before optimiser step ``step`` (counted from 0) of ``steps``."""
        self.frozen = step < self.freeze * steps

    def forward(self, vectors: Tensor, mask: Tensor | None = None) -> Tensor:
        _needs_vectors(vectors, "DINOHead")
        directions = self.directions.detach() if self.frozen else self.directions  # no gradient, hence no step either
        return F.linear(F.normalize(self.mlp(vectors), dim=-1), F.normalize(directions, dim=-1))
