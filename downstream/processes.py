"""Several processes fine-tune a network together and score it: one batch, its statistics, one test set."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.dist import all_gather_object, broadcast_object_list, get_dist_info, get_world_size, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.evaluator.metric import _to_cpu
from mmengine.model import BaseModel, MMDistributedDataParallel
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from downstream.task import Job, TaskError


def divided(job: Job, batch_size: int) -> int:
    """Pictures of a batch in each process.

    Raises:
        TaskError: they do not divide.
    """
    world = get_world_size()
    if batch_size % world:
        raise TaskError(
            f"{job.task}: a batch of {batch_size} does not divide among {world} processes; set "
            f"task.{job.task}.batch_size={-(-batch_size // world) * world}"
        )
    return batch_size // world


def joined(model: BaseModel) -> nn.Module:
    """The model for the process group, its batch norm that of the whole batch; itself in the only process."""
    if get_world_size() == 1:
        return model
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
                setattr(parent, name, BatchNormAcross.of(child))
    return MMDistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)


class BatchNormAcross(_BatchNorm):
    """Batch norm by the statistics of all processes' pictures, as many in each, on any device.

    torch.nn.SyncBatchNorm, which does the same, takes CUDA tensors only.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> BatchNormAcross:
        """The same norm with the same weights."""
        new = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        new.load_state_dict(norm.state_dict())
        return new.to(next(norm.buffers()).device).train(norm.training)

    def _check_input_dim(self, x: Tensor) -> None:
        """Any."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        rest = [i for i in range(x.ndim) if i != 1]
        shape = [-1 if i == 1 else 1 for i in range(x.ndim)]
        world = get_world_size()
        mean = all_reduce(x.float().mean(rest)) / world
        centred = x.float() - mean.view(shape)
        variance = all_reduce(centred.square().mean(rest)) / world
        with torch.no_grad():
            count = world * x.numel() // x.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / max(1, count - 1), self.momentum)
        out = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(x.dtype)


def part(count: int) -> range:
    """This process's items of a test set of ``count``: one after the other, each item in exactly one process."""
    rank, world = get_dist_info()
    return range(rank * count // world, (rank + 1) * count // world)


class WholeSet(Evaluator):
    """The metric of the whole test set from every process's :func:`part`, in the set's order, computed by process 0.

    mmengine's own gathering takes one result an item for granted and drops what exceeds their number.
    """

    def evaluate(self, size: int) -> dict[str, Any]:
        (metric,) = self.metrics
        results = [result for part in all_gather_object(_to_cpu(metric.results)) for result in part]
        metric.results.clear()
        told: list[Any] = [None]
        if is_main_process():
            try:
                prefix = f"{metric.prefix}/" if metric.prefix else ""
                told = [{prefix + name: value for name, value in metric.compute_metrics(results).items()}]
            except Exception as error:  # the others wait: they have to hear of it
                told = [error]
        broadcast_object_list(told)
        if isinstance(told[0], Exception):
            raise told[0]
        return told[0]
