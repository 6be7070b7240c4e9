"""Training by mmengine's Runner: parameter groups with layer-wise decay, optimisers and schedules of the recipes."""

from __future__ import annotations

import time
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.model.utils import revert_sync_batchnorm
from mmengine.optim import _ParamScheduler
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from downstream import processes
from downstream.features import CachedFeatures
from downstream.task import Job
from downstream.watch import Watch

OPTIMISERS = ("AdamW", "SGD", "LARS")
SCHEDULES = ("cosine", "poly", "steps", "rise_fall")
# of mmengine's default ones; runtime_info would ask the device for each loss at every step, and keep them all
NO_HOOKS = dict.fromkeys(("logger", "timer", "checkpoint", "sampler_seed", "runtime_info"))
_LAST = ("norm.", "fc_norm.", "rel_pos_bias.", "shared_rel_pos.")  # of a backbone: what learns as fast as the head
_TABLES = ("pos_embed", "cls_token", "reg_token", "relative_position_bias_table")


def layer_groups(
    model: nn.Module, lr: float, weight_decay: float, decay: float, merging_layers: bool = True, head_rate: float = 1.0
) -> list[dict[str, Any]]:
    """Parameter groups with layer-wise learning-rate decay.

    Layer i of N gets ``decay^(N + 1 - i)``: patch embedding, class token and positions are layer 0, the rest outside
    the blocks (final norm, neck, head) gets 1 (facebookresearch/mae: util/lr_decay.py). A Swin stage's merging counts
    as a layer of its own (SwinTransformer/MIM-Depth-Estimation) or, without ``merging_layers``, belongs to the last
    block of the stage before (microsoft/SimMIM: optimizer.py). A relative bias that all blocks share gets 1, too
    (unilm: beit/optim_factory.py). Neck and head learn at ``head_rate`` times ``lr``. One-dimensional parameters,
    tokens, tables of positions, and what timm exempts are not decayed in weight.
    """
    net = model.backbone.net
    names: list[tuple[str, ...]] = []  # prefixes of the layers, in order
    if hasattr(net, "blocks"):
        names = [(f"blocks.{i}.",) for i in range(len(net.blocks))]
    else:
        for s, stage in enumerate(net.layers):
            if s and merging_layers:
                names.append((f"layers.{s}.downsample.",))
            elif s:
                names[-1] = (*names[-1], f"layers.{s}.downsample.")
            names += [(f"layers.{s}.blocks.{b}.",) for b in range(len(stage.blocks))]
    count, exempt = len(names), getattr(net, "no_weight_decay", set)()
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = name.removeprefix("backbone.net.")
        layer = count + 1 if head_rate == 1 else count + 2
        if inner != name:
            found = [i for i, prefix in enumerate(names) if inner.startswith(prefix)]
            layer = found[0] + 1 if found else (count + 1 if inner.startswith(_LAST) else 0)
        bare = parameter.ndim <= 1 or inner.endswith(_TABLES) or (inner != name and inner in exempt)
        share = head_rate if layer > count + 1 else decay ** (count + 1 - layer)
        group = groups.setdefault(
            (layer, bare), {"params": [], "lr": lr * share, "weight_decay": 0.0 if bare else weight_decay})
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


@PARAM_SCHEDULERS.register_module()
class RiseFallLR(LRSchedulerMixin, _ParamScheduler):
    """From ``start`` times the learning rate up to it in the first half, and back, both as a power of the time.

    The schedule of SwinTransformer/MIM-Depth-Estimation (train.py): power .9, 3e-5 -> 5e-4 -> 3e-5.
    """

    def __init__(self, optimizer: Any, end: int, start: float, power: float = 0.9, **kwargs: Any) -> None:
        self.half, self.start, self.power = end / 2, start, power
        super().__init__(optimizer, end=end, **kwargs)

    def _get_value(self) -> list[float]:
        time_ = self.last_step / self.half
        share = min(1.0, time_) ** self.power - max(0.0, time_ - 1) ** self.power
        return [value * (self.start + (1 - self.start) * max(0.0, share)) for value in self.base_values]


def schedule(chosen: dict[str, Any], steps: int) -> list[dict[str, Any]]:
    """mmengine's schedulers for ``steps`` optimiser calls: a linear warm-up, then what ``schedule`` names.

    ``cosine`` falls to ``min_lr`` times the learning rate, ``poly`` (power 1) to 0, ``steps`` to a tenth at each of
    the shares in ``drops``, ``rise_fall`` is :class:`RiseFallLR` from ``min_lr`` and has no warm-up.
    """
    warmup = max(2, round(chosen["warmup"] * steps)) if steps >= 4 and chosen["warmup"] else 0
    kind, rest = chosen["schedule"], max(1, steps - warmup)
    if kind == "rise_fall":
        return [{"type": "RiseFallLR", "by_epoch": False, "end": steps, "start": chosen["min_lr"]}]
    main: dict[str, Any] = {"by_epoch": False, "begin": warmup, "end": steps}
    if kind == "cosine":
        main |= {"type": "CosineAnnealingLR", "T_max": rest, "eta_min_ratio": chosen["min_lr"]}
    elif kind == "poly":
        main |= {"type": "PolyLR", "power": 1.0}
    else:
        main |= {"type": "MultiStepLR", "milestones": [round(share * steps) - warmup for share in chosen["drops"]]}
    if not warmup:
        return [main]
    return [{"type": "LinearLR", "start_factor": 1e-3, "by_epoch": False, "begin": 0, "end": warmup}, main]


def optimiser(chosen: dict[str, Any], groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimiser that ``optimizer`` names, on parameter groups that bring their learning rates."""
    groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    decay = chosen["weight_decay"]
    if chosen["optimizer"] == "AdamW":
        return torch.optim.AdamW(groups, weight_decay=decay, betas=tuple(chosen["betas"]), fused=chosen.get("fused"))
    if chosen["optimizer"] == "SGD":
        return torch.optim.SGD(groups, lr=groups[0]["lr"], momentum=0.9, weight_decay=decay)
    from mmpretrain.engine.optimizers import LARS

    # as in MAE's probe, vectors (biases) step by the plain rate, without decay (facebookresearch/mae: util/lars.py)
    groups = [
        {**group, "params": found, **({"lars_exclude": True, "weight_decay": 0.0} if vectors else {})}
        for group in groups for vectors in (False, True)
        if (found := [p for p in group["params"] if (p.ndim <= 1) == vectors])
    ]
    return LARS(groups, lr=groups[0]["lr"], momentum=0.9, weight_decay=decay)


def optimise(
    model: BaseModel, data: Dataset, job: Job, chosen: dict[str, Any], groups: list[dict[str, Any]], stage: str,
    pieces: int = 1,
) -> float:
    """Train ``model`` on ``data`` as the settings say; returns the mean of the last losses.

    Within a process group all processes call this together; ``batch_size`` is that of all of them.

    Args:
        pieces: of which a batch is made, one after the other, as memory does not hold it; they divide it.

    Raises:
        TaskError: the loss is not finite, or the batch does not divide among the processes.
    """
    batch_size = min(chosen["batch_size"], len(data))
    steps = chosen["epochs"] * max(1, len(data) // batch_size) * pieces  # mmengine counts pieces
    share = processes.divided(job, batch_size) // pieces
    watch = Watch(job.task, steps, lambda step, loss: job.progress(f"{stage}, loss {loss:.3f}", step, steps))
    cached = isinstance(data, CachedFeatures)
    wrapper: dict[str, Any] = {"type": "OptimWrapper", "optimizer": optimiser(chosen, groups)}
    if chosen["amp"]:
        device = torch.device(job.device).type
        wrapper |= {"type": "AmpOptimWrapper", "dtype": "bfloat16"} if device == "cuda" else {}
    if chosen["clip"] is not None:
        wrapper["clip_grad"] = {"max_norm": chosen["clip"]}
    if chosen["accumulate"] * pieces > 1:
        wrapper["accumulative_counts"] = chosen["accumulate"] * pieces
    runner = PlacedRunner(
        model=processes.joined(model), **places(job, stage),
        train_dataloader={
            "dataset": data, "batch_size": share, "num_workers": 0 if cached else chosen["num_workers"],
            "sampler": {"type": "InfiniteSampler", "shuffle": True, "seed": job.seed}, "drop_last": True,
            "collate_fn": (lambda batch: batch) if cached else {"type": "pseudo_collate"},
        },
        train_cfg={"by_epoch": False, "max_iters": steps},
        optim_wrapper=wrapper, param_scheduler=schedule(chosen, steps), custom_hooks=[watch],
    )
    model.train()
    runner.train()
    return watch.mean()


class PlacedRunner(Runner):
    """mmengine's; the model stays on the device that it lies on, where mmengine takes the machine's first GPU."""

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        if is_model_wrapper(model):
            return super().wrap_model(model_wrapper_cfg, model)
        return revert_sync_batchnorm(model)  # as mmengine does for one process


def places(job: Job, stage: str) -> dict[str, Any]:
    """What every Runner here gets: its folder, seed, silence; mmengine's names must be new each time."""
    return {
        "work_dir": str(job.work_dir / "mmengine"), "experiment_name": f"{job.task}-{stage}-{time.time_ns()}",
        # each process augments for itself
        "randomness": {"seed": job.seed, "diff_rank_seed": get_world_size() > 1}, "log_level": "ERROR",
        "default_scope": DefaultScope.get_current_instance().scope_name,
        "default_hooks": NO_HOOKS,
    }
