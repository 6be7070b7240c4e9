"""One batch among several processes: each holds every N-th picture of it, as mmengine's InfiniteSampler hands them out.

Nothing but rounding may depend on N. What is drawn at random is drawn for the whole batch, the same in every process,
and each takes its rows; what compares pictures with each other is gathered. Outside of :func:`sharing`, and in the only
process, every function here gives back what it got.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from mmengine.dist import all_gather, all_reduce, all_reduce_params, barrier, get_dist_info
from timm.layers import DropPath
from torch import Tensor, nn
from torch.distributed import ProcessGroup, new_group
from torch.distributed.nn.functional import all_gather as all_gather_with_gradient
from torch.nn.modules.batchnorm import _BatchNorm

T = TypeVar("T", Tensor, None)

BUCKET = 64  # MiB of gradients sent at once: they are copied for it


@dataclass(frozen=True)
class _Place:
    rank: int = 0
    world: int = 1
    count: int = 1  # pictures of a batch in each process
    side: ProcessGroup | None = None  # for words of the processors, which do not wait for the devices


_place = _Place()


@contextmanager
def sharing(count: int) -> Iterator[None]:
    """Within the block, a batch has ``count`` pictures in each of the launcher's processes."""
    global _place
    rank, world = get_dist_info()
    before, _place = _place, _Place(rank, world, count, new_group(backend="gloo") if world > 1 else None)
    try:
        yield
    finally:
        _place = before


@contextmanager
def first() -> Iterator[None]:
    """Process 0 goes through the block before the others, which then find what it cached."""
    rank, _ = get_dist_info()
    if rank:
        barrier()
    try:
        yield
    finally:
        if not rank:
            barrier()


def share(rows: Tensor) -> Tensor:
    """This process's rows of the whole batch's (G·B, …) -> (G·B/N, …); G groups, such as views, in a row."""
    if _place.world == 1:
        return rows
    groups = rows.unflatten(0, (-1, _place.count * _place.world))
    return groups[:, _place.rank :: _place.world].flatten(0, 1)


def draw(make: Callable[[int], Tensor], count: int) -> Tensor:
    """``make(n)`` draws a row for each of n pictures: called for the whole batch, cut to this process's ``count``."""
    whole = make(count * _place.world)
    return share(whole) if count % _place.count == 0 else whole[_place.rank :: _place.world]  # a part of the batch


def gather(rows: T) -> T:
    """The inverse of :func:`share`: the rows of all processes in the order of the whole batch, with their gradients.

    The gradient of a row is the sum over what all processes make of it. None stays None.
    """
    if rows is None or _place.world == 1:
        return rows
    if rows.dtype == torch.bool:  # which gloo does not send
        return gather(rows.byte()).bool()
    parts = all_gather_with_gradient(rows) if rows.requires_grad else all_gather(rows.contiguous())
    groups = [part.unflatten(0, (-1, _place.count)) for part in parts]
    return torch.stack(groups, 2).flatten(0, 2)


def mean(value: Tensor) -> Tensor:
    """Of a tensor over the processes; no gradient passes."""
    if _place.world == 1:
        return value
    value = value.detach().clone()
    all_reduce(value, "mean")
    return value


def weight(count: Tensor) -> Tensor | float:
    """What this process's mean over ``count`` things weighs in the mean of the processes' means."""
    return 1.0 if _place.world == 1 else count / mean(count.float())


def anywhere(flag: bool) -> bool:
    """Whether it is true in any process."""
    if _place.world == 1:
        return flag
    seen = torch.tensor(float(flag))
    all_reduce(seen, "max", _place.side)
    return bool(seen)


def alone() -> bool:
    """Whether this process has the whole batch."""
    return _place.world == 1


def average_gradients(module: nn.Module) -> None:
    """Let each gradient be the mean over the processes; one that no process has stays None."""
    if _place.world == 1:
        return
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    used = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
    all_reduce(used, "max", _place.side)
    taken = [parameter for parameter, anywhere_ in zip(parameters, used.tolist(), strict=True) if anywhere_]
    for parameter in taken:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    all_reduce_params([parameter.grad for parameter in taken], bucket_size_mb=BUCKET, op="mean")


def mixes(*modules: nn.Module) -> bool:
    """Whether what comes out for a picture depends on the whole batch: batch norm."""
    return any(isinstance(part, _BatchNorm) for module in modules for part in module.modules())


class SharedDropPath(DropPath):
    """timm's, with the draws of the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0 or not self.training:
            return x
        keep, rest = 1 - self.drop_prob, (1,) * (x.ndim - 1)
        kept = draw(lambda count: x.new_empty((count, *rest)).bernoulli_(keep), len(x))
        return x * (kept.div_(keep) if keep > 0 and self.scale_by_keep else kept)


def share_drop_path(module: nn.Module) -> None:
    """Let every stochastic depth within ``module`` draw for the whole batch."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is DropPath:
                setattr(parent, name, SharedDropPath(child.drop_prob, child.scale_by_keep))
