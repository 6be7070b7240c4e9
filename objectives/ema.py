"""Teachers that are a moving average of the student."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.recipe import ObjectiveError
from objectives.registry import TEACHERS, Geometry
from objectives.teacher import Teacher


@torch.no_grad()
def average_into(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """``teacher = momentum · teacher + (1 - momentum) · student`` for every weight; buffers are copied."""
    for mine, its in zip(teacher.parameters(), student.parameters(), strict=True):
        mine.lerp_(its.detach().to(mine.dtype), 1 - momentum)
    for mine, its in zip(teacher.buffers(), student.buffers(), strict=True):
        mine.copy_(its)


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights take no gradient."""
    return copy.deepcopy(module).eval().requires_grad_(False)


@TEACHERS.register_module()
class LayerAverage(Teacher):
    """data2vec's teacher (2202.03555): the mean of the last blocks' outputs of the student's moving average.

    Each block's output is layer-normalised without affine first; the picture is seen whole.

    Args:
        share: of the blocks, the last, that are averaged (6 of 12 in the paper).
        momentum: of the average over the paper's schedule of ``paper_steps`` steps. Carried to a shorter schedule so
            that the average reaches back over the same share of it, but at least .9.
    """

    def __init__(
        self, geometry: Geometry, share: float = 0.5, momentum: float = 0.9998, paper_steps: int = 500_000
    ) -> None:
        super().__init__()
        if geometry.hierarchical:
            raise ObjectiveError(
                "objective.teacher.type=LayerAverage averages blocks of one width; a Swin has several, choose a ViT"
            )
        self.width, self.share, self.momentum, self.paper_steps = geometry.width, share, momentum, paper_steps
        self.network: nn.Module | None = None

    def attach(self, student: nn.Module, head: nn.Module, steps: int) -> None:
        self.network = frozen_copy(student.backbone)
        self.step_momentum = min(self.momentum, max(0.9, 1 - (1 - self.momentum) * self.paper_steps / max(1, steps)))

    def update(self, student: nn.Module, head: nn.Module, step: int) -> None:
        average_into(self.network, student.backbone, self.step_momentum)

    def train(self, mode: bool = True) -> LayerAverage:
        return super().train(False)  # no drop path in the teacher

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        net = self.network
        x = net.norm_pre(net._pos_embed(net.patch_embed(images)))
        first = len(net.blocks) - max(1, round(self.share * len(net.blocks)))
        total = 0.0
        for index, block in enumerate(net.blocks):
            x = block(x)
            if index >= first:
                total = total + F.layer_norm(x[:, net.num_prefix_tokens :], x.shape[-1:])
        return total / (len(net.blocks) - first)
