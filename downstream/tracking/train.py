"""Training of the tracker: features through the frozen backbone once, or crops through everything at each step."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import default_collate
from torch.utils.data import DataLoader, Dataset

from downstream.optimise import NO_HOOKS, PlacedRunner
from downstream.tracking.model import SingleObjectTracker
from downstream.tracking.pairs import FeatureDataset, PairDataset
from downstream.watch import Watch

Report = Callable[[int, int], None]
"""Called as ``report(done, total)``."""


@torch.no_grad()
def extract(
    model: SingleObjectTracker, pairs: PairDataset, batch_size: int, report: Report, num_workers: int = 0
) -> FeatureDataset:
    """Runs the backbone once over all pairs; features are kept where it lies, in single precision."""
    model.eval()
    features: dict[str, list[torch.Tensor]] = {"template": [], "search": []}
    samples = []
    loader = DataLoader(pairs, batch_size, collate_fn=default_collate, num_workers=num_workers)
    for number, batch in enumerate(loader, 1):
        batch = model.data_preprocessor(batch)
        for part, kept in features.items():
            kept.append(model.extract_feat(batch["inputs"][part]).float())
        samples += batch["data_samples"]
        report(number, len(loader))
    return FeatureDataset((torch.cat(features["template"]), torch.cat(features["search"])), samples)


def optimise(
    model: SingleObjectTracker,
    dataset: Dataset,
    steps: int,
    batch_size: int,
    seed: int,
    *,
    lr: float,
    backbone_lr: float,
    weight_decay: float,
    clip: float,
    warmup: float,
    drop_at: float,
    work_dir: Path,
    num_workers: int = 0,
    amp: bool = False,
    report: Report = lambda done, total: None,
) -> list[float]:
    """AdamW with a linear warm-up and one drop to a tenth (SwinTrack), by mmengine's Runner; the loss of each step.

    Args:
        backbone_lr: factor on ``lr`` for the backbone's weights.
        clip: largest norm of the gradient.
        warmup, drop_at: shares of ``steps``.
        work_dir: where the Runner puts what it insists on writing.
        num_workers: processes that cut the crops; the pairs are the same with any number.
        amp: bfloat16 where the device is a GPU.
    """
    watch = Watch("tracking", steps, lambda step, loss: report(step, steps), every=1)
    schedule: list[dict[str, Any]] = [
        {"type": "MultiStepLR", "milestones": [max(1, round(steps * drop_at))], "by_epoch": False}
    ]
    if round(steps * warmup) > 1:
        end = round(steps * warmup)
        schedule.append({"type": "LinearLR", "start_factor": 1e-3, "begin": 0, "end": end, "by_epoch": False})
    device = next(model.parameters()).device.type
    wrapper = {"type": "AmpOptimWrapper", "dtype": "bfloat16"} if amp and device == "cuda" else {"type": "OptimWrapper"}
    runner = PlacedRunner(
        model=model,
        work_dir=str(work_dir / "mmengine"),
        experiment_name=f"tracking-{time.time_ns()}",  # mmengine refuses a name it has seen
        randomness={"seed": seed},
        log_level="ERROR",
        default_scope="mmdet",
        default_hooks=NO_HOOKS,
        train_dataloader={
            "dataset": dataset, "batch_size": batch_size, "num_workers": num_workers, "drop_last": True,
            "persistent_workers": num_workers > 0,
            "sampler": {"type": "InfiniteSampler", "shuffle": True, "seed": seed},
            "collate_fn": {"type": "default_collate"},
        },
        train_cfg={"by_epoch": False, "max_iters": steps},
        optim_wrapper={
            **wrapper,
            "optimizer": {"type": "AdamW", "lr": lr, "weight_decay": weight_decay},
            "paramwise_cfg": {"custom_keys": {"backbone": {"lr_mult": backbone_lr}}},
            "clip_grad": {"max_norm": clip},
        },
        param_scheduler=schedule,
        custom_hooks=[watch],
    )
    model.train()
    runner.train()
    return watch.losses
