"""Heads on a frozen backbone: features once, a grid of heads on them, chosen by a part cut from the training set."""

from __future__ import annotations

import copy
import json
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from downstream import features
from downstream.features import EXTRACT_BATCH, CachedFeatures
from downstream.optimise import optimise
from downstream.task import Job, TaskError

VALIDATION_SHARE = 10  # every tenth training picture chooses


def parts(count: int) -> tuple[list[int], list[int]]:
    """Indices to train on and indices that choose."""
    held = list(range(0, count, VALIDATION_SHARE))
    return [i for i in range(count) if i % VALIDATION_SHARE], held


def train_heads(model: BaseModel, data: Dataset, job: Job, chosen: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Train neck and head of ``model``; the best of the grid on the held-out part stays in it.

    With ``cache`` the backbone sees each picture once and the heads are trained on its maps, in memory up to
    ``cache_mb`` MiB, else on the disk; without, it runs at every step (augmented pictures). A head that holds the
    whole grid (``downstream.grid``) is trained once, any other once for each learning rate.

    Returns:
        Pictures seen in training, and the values that the held-out part chose; none where there is one rate only.
    """
    if not chosen["cache"]:
        return heads_on(model, data, job, chosen)
    whole = features.cache(model, data, job, chosen["num_workers"], chosen["cache_mb"])
    real = features.stand_in(model, job)
    found = heads_on(model, whole, job, chosen)
    model.backbone, model.data_preprocessor = real
    return found


def rates_of(chosen: dict[str, Any]) -> list[float]:
    """The learning rates to choose from."""
    return list(chosen["lr"]) if isinstance(chosen["lr"], (list, tuple)) else [chosen["lr"]]


def heads_on(model: BaseModel, whole: Dataset, job: Job, chosen: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """:func:`train_heads` on what the model is given, pictures or :class:`CachedFeatures`."""
    rates = rates_of(chosen)
    head = model.head if hasattr(model, "head") else model.decode_head
    grid = hasattr(head, "grid")
    part, held = whole, None
    if len(rates) > 1 or grid:
        train, choose = parts(len(whole))
        if not train:
            raise TaskError(f"{job.task}: a tenth of the training set chooses among heads, and nothing is left of "
                            f"{len(whole)} to train on; raise train_limit, or give one lr and no layers")
        part, held = _part(whole, train), _part(whole, choose)
    if grid:
        rows, best = _one_pass(model, head, part, held, job, chosen)
    else:
        rows, best = _one_by_one(model, part, held, rates, job, chosen)
    (job.work_dir / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(part) * chosen["epochs"] * (1 if grid else len(rates)), best


def _one_by_one(
    model: BaseModel, part: Dataset, held: Dataset | None, rates: list[float], job: Job, chosen: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A head for each learning rate, all from the same start."""
    initial = copy.deepcopy(model.state_dict())
    best: tuple[float, float, dict[str, Tensor]] | None = None
    rows = []
    for number, lr in enumerate(rates):
        model.load_state_dict(initial)
        groups = [{"params": [p for p in model.parameters() if p.requires_grad], "lr": lr}]
        loss = optimise(model, part, job, chosen, groups, f"head {number + 1} of {len(rates)}")
        score = sum(_losses(model, held, chosen)) if held is not None else loss
        rows.append({"lr": lr, "train_loss": round(loss, 6)})
        if held is not None:
            rows[-1]["held_out_loss"] = round(score, 6)
        if best is None or score < best[0]:
            best = (score, lr, copy.deepcopy(model.state_dict()))
    assert best is not None
    model.load_state_dict(best[2])
    return rows, {} if held is None else {"lr": best[1]}


def _one_pass(
    model: BaseModel, head: Any, part: Dataset, held: Dataset, job: Job, chosen: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All heads of the grid together: their losses are added, so each one's gradient is its own."""
    # a norm over all heads would tie them to one another; their many small tensors are updated in one call
    alone = {**chosen, "clip": None, "fused": True}
    loss = optimise(model, part, job, alone, head.groups(), f"{head.count} heads")
    scores = _losses(model, held, chosen)
    rows = [
        {**values, "train_loss_of_all": round(loss, 6), "held_out_loss": round(score, 6)}
        for values, score in zip(head.grid(), scores, strict=True)
    ]
    return rows, head.choose(min(range(head.count), key=lambda i: scores[i]))


def _part(data: Dataset, indices: list[int]) -> Dataset:
    return data.part(indices) if isinstance(data, CachedFeatures) else Subset(data, indices)


@torch.no_grad()
def _losses(model: BaseModel, data: Dataset, chosen: dict[str, Any]) -> list[float]:
    """Mean of each loss in evaluation mode, in the order that the head names them."""
    model.eval()
    cached = isinstance(data, CachedFeatures)
    total: list[float] = []
    collate = (lambda batch: batch) if cached else pseudo_collate
    workers = 0 if cached else chosen["num_workers"]
    for batch in DataLoader(data, EXTRACT_BATCH, num_workers=workers, collate_fn=collate):
        batch = model.data_preprocessor(batch, not cached)
        losses = model(**batch, mode="loss")
        grid = next((losses.pop(name) for name in list(losses) if name.endswith("each_loss")), None)  # of a Grid
        each = [model.parse_losses(losses)[0].item()] if grid is None else grid.tolist()
        weight = len(batch["data_samples"]) / len(data)
        total = [a + weight * b for a, b in zip(total or [0.0] * len(each), each, strict=True)]
    return total
