"""The engine of every task but tracking: train what the protocol says, then the real test loop.

``frozen`` and ``attentive``: with ``cache`` the backbone sees each training picture once and neck and head are trained
on its maps, without it runs at every step; of a small grid of learning rates (and layers) the head with the lowest loss
on a part cut from *train* is kept (:mod:`downstream.frozen`). ``knn``: nothing is trained
(:mod:`downstream.neighbours`). ``finetune``: everything is trained on the pictures, with a learning rate that falls
with depth. Training is driven by mmengine's Runner (:mod:`downstream.optimise`) and scored by the framework's own
metric on the raw test pictures.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import math
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.dist import get_world_size, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS, DefaultScope
from mmengine.runner import set_random_seed
from torch.utils.data import Dataset, Subset

from downstream import frozen, limits, neighbours, processes
from downstream.optimise import OPTIMISERS, SCHEDULES, PlacedRunner, layer_groups, optimise, places
from downstream.task import Job, MissingData, TaskError
from downstream.watch import Watch

TEST_BATCH = 32


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


@dataclass(frozen=True)
class Result:
    """What :func:`run` found: the metric's numbers, pictures seen in training, chosen values, the metric itself."""

    numbers: dict[str, float]
    seen: int
    chosen: dict[str, Any]
    metric: BaseMetric


COMMON = {
    "epochs": 20, "batch_size": 64, "lr": 1e-3, "weight_decay": 0.0, "warmup": 0.05, "layer_decay": 0.65,
    "merging_layers": True,  # of a Swin under layer_decay, see downstream.optimise.layer_groups
    "head_rate": 1.0,  # finetune: learning rate of neck and head, in units of lr
    "drop_path_rate": 0.1, "out_indices": (-1,), "train_limit": None, "test_limit": None, "num_workers": 0,
    "test_batch": TEST_BATCH,
    # optimiser and schedule, see downstream.optimise; accumulate: batches a step
    "optimizer": "AdamW", "betas": (0.9, 0.999), "clip": 5.0, "schedule": "cosine", "min_lr": 0.0, "drops": (),
    "accumulate": 1, "amp": False,
    # frozen, attentive: keep the features, up to cache_mb MiB in memory, else on the disk of the runs folder
    "cache": True, "cache_mb": 8192,
    "layers": None,  # frozen: blocks or stages with a head each, trained together with all of lr in one pass
    "attention_width": None, "attention_depth": 1, "attention_heads": 4,  # attentive; None: as wide as the features
    "k": (10, 20, 50), "temperature": 0.07, "memory": None, "standardise": True,  # knn; DINO: k 20, .07, False
}

NUMBERS = {  # of all tasks
    limits.COUNT: (
        "epochs", "batch_size", "train_limit", "test_limit", "test_batch", "accumulate", "attention_width",
        "attention_depth", "attention_heads", "k", "memory", "input_size", "upsample", "channels", "auxiliary",
        "deconv"),
    limits.FROM_0_WHOLE: ("num_workers", "patch_padding"),
    limits.FROM_0: ("lr", "weight_decay", "head_rate", "cache_mb", "mixup", "cutmix"),
    limits.POSITIVE: ("clip", "temperature", "sigma", "loss_weight"),
    limits.SHARE: ("layer_decay", "min_lr", "erase", "cut_depth"),
    limits.BELOW_1: ("warmup", "drop_path_rate", "betas", "label_smoothing"),
}
SEVERAL = ("lr", "betas", "k", "temperature", "input_size", "deconv")
OPTIONAL = ("train_limit", "test_limit", "clip", "attention_width", "memory")


def settings(job: Job, **defaults: Any) -> dict[str, Any]:
    """The job's settings over the task's defaults over :data:`COMMON`.

    Raises:
        TaskError: a setting that the task does not know, or a number out of range.
    """
    known = {**COMMON, **defaults}
    limits.check_names(job.task, job.settings, known)
    chosen = {**known, **job.settings}
    limits.check_numbers(job.task, chosen, NUMBERS, SEVERAL, OPTIONAL)
    one_of(job, chosen, "optimizer", OPTIMISERS)
    one_of(job, chosen, "schedule", SCHEDULES)
    return chosen


def gridded(job: Job, chosen: dict[str, Any]) -> bool:
    """Whether the head is a grid of ``layers`` and rates; if so, the backbone gives the maps of those layers."""
    if job.protocol != "frozen" or not chosen["layers"]:
        return False
    chosen["out_indices"] = tuple(chosen["layers"])
    return True


def one_of(job: Job, chosen: dict[str, Any], name: str, known: Sequence[str]) -> None:
    """Raises TaskError where the setting ``name`` is none of the ``known`` values."""
    if chosen[name] not in known:
        raise TaskError(f"{job.task}: {name} {chosen[name]!r} is not one of {', '.join(known)}")


def backbone(job: Job, chosen: dict[str, Any]) -> dict[str, Any]:
    """The model's backbone, frozen or not as the protocol says."""
    frozen = job.protocol != "finetune"
    shared = {} if job.maps is None else {"type": "mmengine.LayerBackbone", "maps": job.maps}
    return {
        "type": "mmengine.TimmBackbone", **shared, "folder": str(job.backbone), "out_indices": chosen["out_indices"],
        "frozen": frozen, "input_size": chosen["input_size"],
        "drop_path_rate": 0.0 if frozen else chosen["drop_path_rate"],
    }


def channels(job: Job, chosen: dict[str, Any]) -> tuple[int, ...]:
    """Channels of the maps that the backbone will give."""
    return MODELS.build(backbone(job, chosen)).channels


def hierarchical(job: Job, chosen: dict[str, Any]) -> bool:
    """Whether the backbone has stages of several resolutions (Swin)."""
    return not MODELS.build(backbone(job, chosen)).is_vit


def layer_count(job: Job) -> int:
    """Blocks of a ViT, stages of a Swin: what ``out_indices`` count."""
    backbone = {"type": "mmengine.TimmBackbone", "folder": str(job.backbone)}
    return MODELS.build(backbone).count


def stride(job: Job, chosen: dict[str, Any]) -> int:
    """Pixels of the input a cell of the last map stands for."""
    return MODELS.build(backbone(job, chosen)).stride


def run(job: Job, recipe: Recipe, chosen: dict[str, Any]) -> Result:
    """Train and score.

    Raises:
        TaskError: a damaged file, a loss that is not finite, a size that does not fit.
    """
    with quiet(recipe.scope):
        model = _model(recipe, job)
        test = dataset(recipe.test, job, chosen["test_limit"], "test")
        if job.protocol == "finetune":
            data = dataset(recipe.train_augmented, job, chosen["train_limit"], "train")
            pieces = 1
            while (found := _train_all(model, data, job, chosen, pieces)) is None:
                del model  # before another one takes the memory
                pieces = _halved(job, min(chosen["batch_size"], len(data)), pieces)
                model = _model(recipe, job)
            seen, best = found
        else:
            # augmented pictures have no features to keep
            source = recipe.train if chosen["cache"] or job.protocol == "knn" else recipe.train_augmented
            data = dataset(source, job, chosen["train_limit"], "train")
            train = neighbours.fit if job.protocol == "knn" else frozen.train_heads
            seen, best = train(model, data, job, chosen)
        numbers, metric = _test(model, test, recipe, job, chosen)
        return Result(numbers, seen, best, metric)


def _model(recipe: Recipe, job: Job) -> BaseModel:
    """The recipe's model; what is drawn for it depends on the job's seed alone."""
    set_random_seed(job.seed)
    model = MODELS.build(ConfigDict(recipe.model))
    model.init_weights()  # now: the Runner would do it after the start of every learning rate has been noted
    return model.to(job.device)


# --- data -------------------------------------------------------------------------------------------------------------


def opened(config: dict[str, Any], task: str, part: str) -> Dataset:
    """The data set of a recipe.

    Raises:
        MissingData, TaskError: a file is missing, or the annotations cannot be read.
    """
    try:
        data = DATASETS.build(config)
        data.full_init()
    except (MissingData, TaskError):
        raise
    except FileNotFoundError as error:
        raise MissingData(f"{task}: {error.filename or error} is missing; see `bench data verify`") from error
    except (ValueError, KeyError, AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise TaskError(f"{task}: the {part} annotations cannot be read: {reason}") from error
    if not len(data):
        raise MissingData(f"{task}: the {part} set under {config['data_root']} is empty")
    return data


def dataset(config: dict[str, Any], job: Job, limit: int | None, part: str) -> Dataset:
    """The data set of a recipe, at most ``limit`` of its items, always the same ones; errors as :func:`opened`."""
    data = opened(config, job.task, part)
    if limit is not None and limit < len(data):
        chosen = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:limit].sort().values
        data = data.get_subset(chosen.tolist()) if hasattr(data, "get_subset") else Subset(data, chosen.tolist())
    return data


# --- fine-tuning and the test -----------------------------------------------------------------------------------------


def _train_all(
    model: BaseModel, data: Dataset, job: Job, chosen: dict[str, Any], pieces: int
) -> tuple[int, dict[str, Any]] | None:
    """Pictures seen and what was chosen; None where the device's memory ran out."""
    lr = chosen["lr"][0] if isinstance(chosen["lr"], (list, tuple)) else chosen["lr"]
    groups = layer_groups(
        model, lr, chosen["weight_decay"], chosen["layer_decay"], chosen["merging_layers"], chosen["head_rate"])
    try:
        loss = optimise(model, data, job, chosen, groups, "finetune", pieces)
    except torch.OutOfMemoryError:
        if get_world_size() > 1:  # the other processes are within the same step
            raise
        return None  # and not handled here: the error holds on to the memory that it could not get
    if is_main_process():
        (job.work_dir / "log.jsonl").write_text(json.dumps({"lr": lr, "train_loss": round(loss, 6)}) + "\n")
    micro = {"micro_batch": min(chosen["batch_size"], len(data)) // pieces} if pieces > 1 else {}
    return len(data) * chosen["epochs"], micro  # nothing else was chosen


def _halved(job: Job, batch: int, pieces: int) -> int:
    """Twice as many pieces of a batch; said in a line.

    Raises:
        TaskError: they cannot be smaller, or not of one size, whose mean is the batch's.
    """
    if batch // pieces == 1:
        raise TaskError(f"{job.task}: out of memory with one picture at a time; lower input_size")
    if batch % (2 * pieces):
        raise TaskError(
            f"{job.task}: out of memory with {batch // pieces} pictures at a time, which do not halve; lower batch_size"
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(
        f"{job.task}: out of memory: begun again with micro-batches of {batch // pieces // 2} of {batch} pictures, "
        "gradients accumulated (batch norm sees the micro-batch)", file=sys.stderr,
    )
    return 2 * pieces


def _test(
    model: BaseModel, test: Dataset, recipe: Recipe, job: Job, chosen: dict[str, Any]
) -> tuple[dict[str, float], BaseMetric]:
    metric = METRICS.build(recipe.metric)
    several = get_world_size() > 1
    items = processes.part(len(test))
    batches = math.ceil(len(items) / chosen["test_batch"])
    watch = Watch(job.task, batches, lambda number, _: job.progress("test", number, batches))
    runner = PlacedRunner(
        model=model, **places(job, "test"),
        test_dataloader={
            "dataset": test, "batch_size": chosen["test_batch"], "num_workers": chosen["num_workers"],
            "sampler": items if several else {"type": "DefaultSampler", "shuffle": False},
            "collate_fn": {"type": "pseudo_collate"},
        },
        test_cfg={}, test_evaluator=processes.WholeSet(metric) if several else [metric], custom_hooks=[watch],
    )
    numbers = runner.test()
    if is_main_process():
        shutil.rmtree(job.work_dir / "mmengine", ignore_errors=True)
    return numbers, metric


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
