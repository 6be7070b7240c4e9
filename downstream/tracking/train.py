"""Training of the tracker: features through the frozen backbone once, or crops through everything at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from mmengine.dataset import default_collate
from mmengine.optim import LinearLR, MultiStepLR, build_optim_wrapper
from torch.utils.data import DataLoader, Dataset

from downstream.task import TaskError
from downstream.tracking.model import SingleObjectTracker
from downstream.tracking.pairs import FeatureDataset, PairDataset

Report = Callable[[int, int], None]
"""Called as ``report(done, total)``."""


def batches(dataset: Dataset, batch_size: int, seed: int) -> Iterator[dict[str, Any]]:
    """Batches without end, shuffled anew in each round; incomplete ones are dropped."""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(dataset, batch_size, True, generator=generator, drop_last=True, collate_fn=default_collate)
    while True:
        yield from loader


@torch.no_grad()
def extract(model: SingleObjectTracker, pairs: PairDataset, batch_size: int, report: Report) -> FeatureDataset:
    """Runs the backbone once over all pairs; features are kept on the CPU in single precision."""
    model.eval()
    features: dict[str, list[torch.Tensor]] = {"template": [], "search": []}
    samples = []
    loader = DataLoader(pairs, batch_size, collate_fn=default_collate)
    for number, batch in enumerate(loader, 1):
        inputs = model.data_preprocessor(batch)["inputs"]
        for part, kept in features.items():
            kept.append(model.extract_feat(inputs[part]).float().cpu())
        samples.extend(batch["data_samples"])
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
    report: Report,
) -> list[float]:
    """AdamW with a linear warm-up and one drop to a tenth (SwinTrack); returns the loss of each step.

    Args:
        backbone_lr: factor on ``lr`` for the backbone's weights.
        clip: largest norm of the gradient.
        warmup, drop_at: shares of ``steps``.
    """
    wrapper = build_optim_wrapper(
        model,
        {
            "type": "OptimWrapper",
            "optimizer": {"type": "AdamW", "lr": lr, "weight_decay": weight_decay},
            "paramwise_cfg": {"custom_keys": {"backbone": {"lr_mult": backbone_lr}}},
            "clip_grad": {"max_norm": clip},
        },
    )
    schedules = [
        LinearLR(wrapper, 0.001, by_epoch=False, begin=0, end=max(1, round(steps * warmup))),
        MultiStepLR(wrapper, [max(1, round(steps * drop_at))], by_epoch=False),
    ]
    losses = []
    model.train()
    for step, batch in zip(range(steps), batches(dataset, batch_size, seed), strict=False):
        loss = float(model.train_step(batch, wrapper)["loss"])
        if not torch.isfinite(torch.tensor(loss)):
            raise TaskError(f"tracking: the loss is {loss} at step {step + 1}; lower lr in the suite's settings")
        losses.append(loss)
        for schedule in schedules:
            schedule.step()
        report(step + 1, steps)
    return losses
