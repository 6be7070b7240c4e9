"""Teachers that are a moving average of the student."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.backbone import each_block, place, prefix_of
from objectives.corruption import Seen
from objectives.processes import gather, mean, mixes, share
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


def checked_momentum(momentum: float) -> float:
    """The momentum of an average.

    Raises:
        ObjectiveError: it lies outside 0 to 1.
    """
    if not 0 <= momentum <= 1:
        raise ObjectiveError(f"objective.teacher.momentum: {momentum} must lie between 0 and 1")
    return momentum


def frozen_copy(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights take no gradient."""
    return copy.deepcopy(module).eval().requires_grad_(False)


@TEACHERS.register_module()
class LayerAverage(Teacher):
    """data2vec's teacher (2202.03555): the mean of the last blocks' outputs of the student's moving average.

    Each block's output is layer-normalised without affine first; the picture is seen whole.

    Args:
        share: of the blocks, the last, that are averaged (6 of 12 in the paper).
        momentum: at every step, on schedules of any length, as for :class:`MomentumTeacher` (.9998 in the paper). Over
            375 steps the average hardly leaves the weights it began with; with .9, which reaches back over the same
            share of them as of the paper's schedule, depth was worse all the same (frozen, RMSE 1.28 for 1.18 m).

    Raises:
        ObjectiveError: a momentum or a share outside 0 to 1, or a backbone whose blocks differ in width.
    """

    def __init__(self, geometry: Geometry, share: float = 0.5, momentum: float = 0.9998) -> None:
        super().__init__()
        if geometry.hierarchical:
            raise ObjectiveError(
                "objective.teacher.type=LayerAverage averages blocks of one width; a Swin has several, choose a ViT"
            )
        if not 0 < share <= 1:
            raise ObjectiveError(f"objective.teacher.share: {share} must be a share of the blocks, above 0 and up to 1")
        self.width, self.share, self.momentum = geometry.width, share, checked_momentum(momentum)
        self.network: nn.Module | None = None

    def attach(self, student: nn.Module, head: nn.Module, steps: int) -> None:
        self.network = frozen_copy(student.backbone)

    def update(self, student: nn.Module, head: nn.Module, step: int) -> None:
        average_into(self.network, student.backbone, self.momentum)

    def train(self, mode: bool = True) -> LayerAverage:
        return super().train(False)  # no drop path in the teacher

    @torch.no_grad()
    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        net = self.network
        first = len(net.blocks) - max(1, round(self.share * len(net.blocks)))
        total = 0.0
        for index, tokens in enumerate(each_block(net, *place(net, net.patch_embed(images)))):
            if index >= first:
                total = total + F.layer_norm(tokens[:, prefix_of(net) :].float(), tokens.shape[-1:])
        return total / (len(net.blocks) - first)


@TEACHERS.register_module()
class MomentumTeacher(Teacher):
    """A moving average of student and head that looks at the student's own two crops (MoCo v3, 2104.02057).

    Of the head it follows what ``head.averaged()`` names: without MoCo's predictor. No drop path in the average.

    Args:
        momentum: at the first step (.99 in MoCo v3, .996 in DINO); half a cosine takes it to 1 by the last. It is the
            same on schedules of any length: DINO from .9, so that the average reaches back over the same share of 375
            steps as of the paper's, put nearly all weight on a few prototypes by step 190 and took it back (loss 6.4,
            2.1, 7.9).

    Raises:
        ObjectiveError: a momentum outside 0 to 1, or, before training, a head that cannot be averaged.
    """

    sees = "seen"
    width = 0  # the head's own choice

    def __init__(self, geometry: Geometry, momentum: float = 0.99) -> None:
        super().__init__()
        self.momentum, self.steps = checked_momentum(momentum), 1
        self.student: nn.Module | None = None
        self.head: nn.Module | None = None

    def attach(self, student: nn.Module, head: nn.Module, steps: int) -> None:
        if not hasattr(head, "averaged"):
            raise ObjectiveError(
                f"objective.teacher.type={type(self).__name__} averages the head too, which {type(head).__name__} is "
                "not made for; use ProjectionMLP or DINOHead"
            )
        self.student, self.head, self.steps = frozen_copy(student), frozen_copy(head.averaged()), steps

    def momentum_at(self, step: int) -> float:
        """Momentum of the average after optimiser step ``step`` (counted from 1): 1 at the last."""
        return 1 - (1 - self.momentum) * (1 + math.cos(math.pi * min(1.0, step / self.steps))) / 2

    def update(self, student: nn.Module, head: nn.Module, step: int) -> None:
        momentum = self.momentum_at(step)
        average_into(self.student, student, momentum)
        average_into(self.head, head.averaged(), momentum)

    def train(self, mode: bool = True) -> MomentumTeacher:
        super().train(mode)
        for part in self.children():
            part.eval()
        return self

    @torch.no_grad()
    def of_views(self, seen: Seen) -> Tensor:
        return self._project(self.student(seen.images, None))

    def _project(self, vectors: Tensor) -> Tensor:
        return share(self.head(gather(vectors))) if mixes(self.head) else self.head(vectors)


@TEACHERS.register_module()
class CentredTeacher(MomentumTeacher):
    """DINO's teacher (2104.14294): the average's logits less their running mean, divided by a low temperature.

    The centre moves once per optimiser step, by the mean over the two large crops of the step's batch, and only in
    training; :class:`~objectives.normalisation.Softmax` makes probabilities of what comes out.

    Args:
        momentum: as of :class:`MomentumTeacher`.
        centre_momentum: of the running mean (.9).
        temperature: at the start (.04); greater than 0.
        temperature_end, temperature_warmup: reached linearly over that share of the training (.07 over 30 epochs in
            the paper's longer runs); None: the temperature stays.
    """

    def __init__(
        self, geometry: Geometry, momentum: float = 0.996, centre_momentum: float = 0.9, temperature: float = 0.04,
        temperature_end: float | None = None, temperature_warmup: float = 0.3,
    ) -> None:
        super().__init__(geometry, momentum)
        ends = (temperature, temperature if temperature_end is None else temperature_end)
        if min(ends) <= 0:
            raise ObjectiveError(f"objective.teacher.temperature: {min(ends)} must be above 0")
        self.centre_momentum, self.ends, self.warmup = centre_momentum, ends, temperature_warmup
        self.pending: Tensor | None = None  # mean logits of the step at work
        self.register_buffer("centre", torch.zeros(0))
        self.register_buffer("temperature", torch.tensor(ends[0]))

    def attach(self, student: nn.Module, head: nn.Module, steps: int) -> None:
        super().attach(student, head, steps)
        self.centre = torch.zeros(head.prototypes, device=self.centre.device)
        self.pending = None
        self.temperature.fill_(self.temperature_at(0))

    def temperature_at(self, step: int) -> float:
        """Temperature of step ``step``, counted from 0."""
        share = min(1.0, step / max(1.0, self.warmup * self.steps))
        return self.ends[0] + (self.ends[1] - self.ends[0]) * share

    def update(self, student: nn.Module, head: nn.Module, step: int) -> None:
        super().update(student, head, step)
        if self.pending is not None:
            self.centre.lerp_(self.pending, 1 - self.centre_momentum)
            self.pending = None
        self.temperature.fill_(self.temperature_at(step))

    def _project(self, vectors: Tensor) -> Tensor:
        logits = self.head(vectors).float()
        if self.training:
            self.pending = mean(logits.mean(0))
        return (logits - self.centre) / self.temperature
