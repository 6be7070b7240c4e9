"""The engine of every task but tracking: features once, heads on the cached features, then the real test loop.

``frozen``: the backbone sees each training picture once; neck and head are trained on the cached maps for each learning
rate of a small grid, the one with the lowest loss on a part cut from *train* is kept. ``finetune``: everything is
trained on the pictures, with a learning rate that falls with depth. Both are driven by mmengine's Runner and scored by
the framework's own metric on the raw test pictures.
"""

from __future__ import annotations

import copy
import difflib
import importlib
import io
import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS, DefaultScope
from mmengine.runner import Runner, set_random_seed
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from downstream.task import Job, MissingData, TaskError

EXTRACT_BATCH, TEST_BATCH = 64, 32
VALIDATION_SHARE = 10  # every tenth training picture chooses the learning rate


@dataclass(frozen=True)
class Recipe:
    """A task in OpenMMLab's terms.

    Attributes:
        scope: the framework that owns the model (mmpretrain, mmseg, mmpose).
        model: its model; the backbone is a ``TimmBackbone``.
        train: training data set with a deterministic pipeline, for features of a frozen backbone.
        train_augmented: the same with the augmentation of fine-tuning.
        test, metric: test data set and its metric.
    """

    scope: str
    model: dict[str, Any]
    train: dict[str, Any]
    train_augmented: dict[str, Any]
    test: dict[str, Any]
    metric: dict[str, Any]


COMMON = {
    "epochs": 20, "batch_size": 64, "lr": 1e-3, "weight_decay": 0.0, "warmup": 0.05, "layer_decay": 0.65,
    "drop_path_rate": 0.1, "out_indices": (-1,), "train_limit": None, "test_limit": None, "num_workers": 0,
}


def settings(job: Job, **defaults: Any) -> dict[str, Any]:
    """The job's settings over the task's defaults over :data:`COMMON`.

    Raises:
        TaskError: a setting that the task does not know, or a number out of range.
    """
    known = {**COMMON, **defaults}
    for name in job.settings:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
            raise TaskError(f"{job.task}: no setting {name!r}; {hint}")
    chosen = {**known, **job.settings}
    for name in ("epochs", "batch_size"):
        if not isinstance(chosen[name], int) or chosen[name] < 1:
            raise TaskError(f"{job.task}: {name} must be a whole number of at least 1, not {chosen[name]!r}")
    return chosen


def backbone(job: Job, chosen: dict[str, Any]) -> dict[str, Any]:
    """The model's backbone, frozen or not as the protocol says."""
    frozen = job.protocol == "frozen"
    return {
        "type": "mmengine.TimmBackbone", "folder": str(job.backbone), "out_indices": chosen["out_indices"],
        "frozen": frozen, "input_size": chosen["input_size"],
        "drop_path_rate": 0.0 if frozen else chosen["drop_path_rate"],
    }


def channels(job: Job, chosen: dict[str, Any]) -> tuple[int, ...]:
    """Channels of the maps that the backbone will give."""
    return MODELS.build(backbone(job, chosen)).channels


def stride(job: Job, chosen: dict[str, Any]) -> int:
    """Pixels of the input a cell of the last map stands for."""
    return MODELS.build(backbone(job, chosen)).stride


def run(job: Job, recipe: Recipe, chosen: dict[str, Any]) -> tuple[dict[str, float], int, BaseMetric]:
    """Train and score; returns the metric's numbers, the pictures seen in training and the metric itself.

    Raises:
        TaskError: a damaged file, a loss that is not finite, a size that does not fit.
    """
    with quiet(recipe.scope):
        set_random_seed(job.seed)
        model = MODELS.build(ConfigDict(recipe.model))
        model.init_weights()  # now: the Runner would do it after the start of every learning rate has been noted
        model.to(job.device)
        test = _dataset(recipe.test, job, chosen["test_limit"], "test")
        if job.protocol == "frozen":
            data = _dataset(recipe.train, job, chosen["train_limit"], "train")
            seen = _train_frozen(model, data, job, chosen)
        else:
            data = _dataset(recipe.train_augmented, job, chosen["train_limit"], "train")
            seen = _train_all(model, data, job, chosen)
        return (*_test(model, test, recipe, job, chosen, seen),)


# --- data -------------------------------------------------------------------------------------------------------------


def _dataset(config: dict[str, Any], job: Job, limit: int | None, part: str) -> Dataset:
    try:
        data = DATASETS.build(config)
        data.full_init()
    except (MissingData, TaskError):
        raise
    except FileNotFoundError as error:
        raise MissingData(f"{job.task}: {error.filename or error} is missing; see `bench data verify`") from error
    except (ValueError, KeyError, AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise TaskError(f"{job.task}: the {part} annotations cannot be read: {reason}") from error
    if not len(data):
        raise MissingData(f"{job.task}: the {part} set under {job.data['root']} is empty")
    if limit is not None and limit < len(data):
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:limit].sort().values
        data = data.get_subset(chosen.tolist()) if hasattr(data, "get_subset") else Subset(data, chosen.tolist())
    return data


class CachedFeatures(Dataset):
    """Maps of a frozen backbone, one tensor (N, D, H, W) a level, with the framework's data samples."""

    def __init__(self, maps: Sequence[Tensor], samples: Sequence[Any]) -> None:
        self.maps, self.samples = tuple(maps), list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:  # torch fetches a whole batch by this name
        index = torch.as_tensor(indices)
        return {"inputs": tuple(m[index] for m in self.maps), "data_samples": [self.samples[i] for i in indices]}

    def part(self, indices: Sequence[int]) -> CachedFeatures:
        """A part of it."""
        index = torch.as_tensor(list(indices))
        return CachedFeatures([m[index] for m in self.maps], [self.samples[i] for i in indices])


@torch.no_grad()
def _features(model: BaseModel, data: Dataset, job: Job, workers: int) -> CachedFeatures:
    """The backbone once over all of ``data``."""
    model.eval()
    loader = DataLoader(data, EXTRACT_BATCH, num_workers=workers, collate_fn=pseudo_collate)
    maps: list[list[Tensor]] = []
    samples: list[Any] = []
    for number, batch in enumerate(loader, 1):
        batch = model.data_preprocessor(batch, True)
        maps.append([x.float().cpu() for x in model.backbone(batch["inputs"])])
        samples += [sample.to("cpu") for sample in batch["data_samples"]]
        job.progress("features", min(number * EXTRACT_BATCH, len(data)), len(data))
    return CachedFeatures([torch.cat(level) for level in zip(*maps, strict=True)], samples)


# --- frozen -----------------------------------------------------------------------------------------------------------


class _Pass(nn.Module):
    """Stands in for the backbone while heads are trained: what comes in are maps already."""

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return maps


class _PassPreprocessor(BaseDataPreprocessor):
    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        return self.cast_data(data)

    def cast_data(self, data: Any) -> Any:
        if isinstance(data, BaseDataElement):
            return data.to(self.device)
        return super().cast_data(data)


def _train_frozen(model: BaseModel, data: Dataset, job: Job, chosen: dict[str, Any]) -> int:
    """Train neck and head on cached maps, for each learning rate; the best on the held-out part stays in ``model``."""
    cached = _features(model, data, job, chosen["num_workers"])
    real = model.backbone, model.data_preprocessor
    model.backbone, model.data_preprocessor = _Pass(), _PassPreprocessor().to(job.device)
    rates = chosen["lr"] if isinstance(chosen["lr"], (list, tuple)) else [chosen["lr"]]
    initial = copy.deepcopy(model.state_dict())
    best: tuple[float, float, dict[str, Tensor]] | None = None
    part, held = cached, None
    if len(rates) > 1:
        held = cached.part(range(0, len(cached), VALIDATION_SHARE))
        part = cached.part([i for i in range(len(cached)) if i % VALIDATION_SHARE])
    rows = []
    for number, lr in enumerate(rates):
        model.load_state_dict(initial)
        stage = f"head {number + 1} of {len(rates)}"
        loss = _optimise(model, part, job, chosen, [{"params": list(model.parameters()), "lr": lr}], stage)
        score = _loss(model, held) if held is not None else loss
        rows.append({"lr": lr, "train_loss": round(loss, 6), "held_out_loss": round(score, 6)})
        if best is None or score < best[0]:
            best = (score, lr, copy.deepcopy(model.state_dict()))
    assert best is not None
    model.load_state_dict(best[2])
    model.backbone, model.data_preprocessor = real
    (job.work_dir / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(part) * chosen["epochs"] * len(rates)


@torch.no_grad()
def _loss(model: BaseModel, data: CachedFeatures) -> float:
    """Mean loss in evaluation mode."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(data), EXTRACT_BATCH):
        indices = list(range(start, min(len(data), start + EXTRACT_BATCH)))
        batch = model.data_preprocessor(data.__getitems__(indices), False)
        losses = model(**batch, mode="loss")
        total += model.parse_losses(losses)[0].item() * len(indices)
        count += len(indices)
    return total / count


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def layer_groups(model: nn.Module, lr: float, weight_decay: float, decay: float) -> list[dict[str, Any]]:
    """Parameter groups with layer-wise learning-rate decay.

    Layer i of N gets ``decay^(N + 1 - i)``: patch embedding, class token and positions are layer 0, the rest outside
    the blocks (final norm, neck, head) gets 1 (facebookresearch/mae: util/lr_decay.py). A Swin stage's merging counts
    as a layer of its own (SwinTransformer/MIM-Depth-Estimation). One-dimensional parameters are not decayed in weight.
    """
    net = model.backbone.net
    names: list[str] = []  # prefixes of the layers, in order
    if hasattr(net, "blocks"):
        names = [f"blocks.{i}." for i in range(len(net.blocks))]
    else:
        for s, stage in enumerate(net.layers):
            if s:
                names.append(f"layers.{s}.downsample.")
            names += [f"layers.{s}.blocks.{b}." for b in range(len(stage.blocks))]
    count = len(names)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inner = name.removeprefix("backbone.net.")
        layer = count + 1
        if inner != name:
            found = [i for i, prefix in enumerate(names) if inner.startswith(prefix)]
            layer = found[0] + 1 if found else (count + 1 if inner.startswith("norm") else 0)
        bare = parameter.ndim <= 1 or inner.endswith(("pos_embed", "cls_token", "reg_token"))
        group = groups.setdefault((layer, bare), {
            "params": [], "lr": lr * decay ** (count + 1 - layer), "weight_decay": 0.0 if bare else weight_decay,
        })
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def _train_all(model: BaseModel, data: Dataset, job: Job, chosen: dict[str, Any]) -> int:
    lr = chosen["lr"][0] if isinstance(chosen["lr"], (list, tuple)) else chosen["lr"]
    groups = layer_groups(model, lr, chosen["weight_decay"], chosen["layer_decay"])
    loss = _optimise(model, data, job, chosen, groups, "finetune")
    (job.work_dir / "log.jsonl").write_text(json.dumps({"lr": lr, "train_loss": round(loss, 6)}) + "\n")
    return len(data) * chosen["epochs"]


# --- the Runner -------------------------------------------------------------------------------------------------------


class _Watch(Hook):
    """Progress, and a stop with a reason when the loss is not finite."""

    def __init__(self, job: Job, stage: str, steps: int) -> None:
        self.job, self.stage, self.steps = job, stage, steps
        self.recent: list[float] = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        step = runner.iter + 1
        if step % 20 == 0 or step > self.steps - 5:
            loss = outputs["loss"].item()
            if not math.isfinite(loss):
                raise TaskError(f"{self.job.task}: the loss is {loss} at step {step} of {self.steps}; lower lr")
            self.recent = [*self.recent[-4:], loss]
            self.job.progress(f"{self.stage}, loss {loss:.3f}", step, self.steps)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.job.progress(self.stage, batch_idx + 1, self.steps)


def _optimise(
    model: BaseModel, data: Dataset, job: Job, chosen: dict[str, Any], groups: list[dict[str, Any]], stage: str
) -> float:
    """AdamW, linear warm-up and cosine to 0, by mmengine's Runner; returns the mean of the last losses."""
    batch_size = min(chosen["batch_size"], len(data))
    steps = chosen["epochs"] * max(1, len(data) // batch_size)
    warmup = max(2, round(chosen["warmup"] * steps)) if steps >= 4 else 0
    schedulers: list[dict[str, Any]] = [
        {"type": "CosineAnnealingLR", "by_epoch": False, "begin": warmup, "end": steps, "T_max": max(1, steps - warmup),
         "eta_min_ratio": 0.0}
    ]
    if warmup:
        schedulers.insert(0, {"type": "LinearLR", "start_factor": 1e-3, "by_epoch": False, "begin": 0, "end": warmup})
    groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    optimiser = torch.optim.AdamW(groups, weight_decay=chosen["weight_decay"])
    watch = _Watch(job, stage, steps)
    cached = isinstance(data, CachedFeatures)
    runner = Runner(
        model=model, **_places(job, stage),
        train_dataloader={
            "dataset": data, "batch_size": batch_size, "num_workers": 0 if cached else chosen["num_workers"],
            "sampler": {"type": "InfiniteSampler", "shuffle": True, "seed": job.seed}, "drop_last": True,
            "collate_fn": (lambda batch: batch) if cached else {"type": "pseudo_collate"},
        },
        train_cfg={"by_epoch": False, "max_iters": steps},
        optim_wrapper={"type": "OptimWrapper", "optimizer": optimiser, "clip_grad": {"max_norm": 5.0}},
        param_scheduler=schedulers, custom_hooks=[watch],
    )
    model.train()
    runner.train()
    return sum(watch.recent) / len(watch.recent)


def _test(
    model: BaseModel, test: Dataset, recipe: Recipe, job: Job, chosen: dict[str, Any], seen: int
) -> tuple[dict[str, float], int, BaseMetric]:
    metric = METRICS.build(recipe.metric)
    watch = _Watch(job, "test", math.ceil(len(test) / TEST_BATCH))
    runner = Runner(
        model=model, **_places(job, "test"),
        test_dataloader={
            "dataset": test, "batch_size": TEST_BATCH, "num_workers": chosen["num_workers"],
            "sampler": {"type": "DefaultSampler", "shuffle": False}, "collate_fn": {"type": "pseudo_collate"},
        },
        test_cfg={}, test_evaluator=[metric], custom_hooks=[watch],
    )
    numbers = runner.test()
    shutil.rmtree(job.work_dir / "mmengine", ignore_errors=True)
    return numbers, seen, metric


def _places(job: Job, stage: str) -> dict[str, Any]:
    """What every Runner here gets: its folder, seed, silence; mmengine's names must be new each time."""
    return {
        "work_dir": str(job.work_dir / "mmengine"), "experiment_name": f"{job.task}-{stage}-{time.time_ns()}",
        "randomness": {"seed": job.seed}, "log_level": "ERROR",
        "default_scope": DefaultScope.get_current_instance().scope_name,
        "default_hooks": {"logger": None, "timer": None, "checkpoint": None, "sampler_seed": None},
    }


@contextmanager
def quiet(scope: str):
    """Make ``scope`` the default and keep the frameworks' chatter away from stdout, which is for results."""
    # an instance of a fresh name: DefaultScope keeps all of them for ever and refuses to rename one
    DefaultScope.get_instance(f"{scope}-{time.time_ns()}", scope_name=scope)
    with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):  # "Could not import OneDL" and the like
        for part in ("models", "datasets", "evaluation"):
            importlib.import_module(f"{scope}.{part}")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):  # xtcocotools prints its tables
            yield
    finally:
        logging.disable(level)
