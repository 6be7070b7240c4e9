"""Pre-training: a recipe, a backbone, pictures and a budget -> a backbone folder.

mmengine's Runner drives it; a small hook adds progress, a checkpoint that resumes bit-equal, and the end of a
training that diverges or is told to stop.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import barrier, get_world_size, is_distributed, is_main_process, master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from objectives import checkpoint, parallel, processes
from objectives.arithmetic import Arithmetic, hasten, optimiser_wrapper
from objectives.backbone import FORMAT
from objectives.files import spent, whole
from objectives.health import collapse, feature_health, untaught
from objectives.interruption import Deferred
from objectives.machine import available_memory
from objectives.objective import Objective, resize
from objectives.pictures.loader import chosen, loader
from objectives.pictures.memory import Pictures
from objectives.pictures.source import Source
from objectives.pictures.stream import Stream
from objectives.recipe import Crop, ObjectiveError, Optimiser, scaled_lr, weight_decay_at
from objectives.teacher import Progress
from objectives.tokenizer import SEED
from objectives.waiting import Waiting

CHECKPOINT_EVERY = 100  # steps between checkpoints, or more where they would take more of the time than
CHECKPOINT_SHARE = 0.02  # this: on a quick GPU a large network's 100 steps take as long as some ten checkpoints
LOSS_EVERY = 10  # steps between looks at the loss: reading it waits for the device
DIVERGED = "diverged.safetensors"
COUNTED = 4096  # pictures, at most, over which a tokenizer's use of its codes is counted
TEACHER_BATCH = 64  # fixed, so that cached targets do not depend on who asks for them


@dataclass(frozen=True)
class PretrainJob:
    """All that decides a backbone."""

    objective: str
    slots: Mapping[str, Mapping[str, Any]]
    optimiser: Optimiser
    crop: Crop
    trains: bool
    model: str
    kwargs: Mapping[str, Any]
    input_size: int
    images_seen: int
    batch_size: int
    fixed_crop: bool
    decoder: Mapping[str, int] | None
    suite: str
    seed: int
    device: str
    folder: Path  # receives backbone.safetensors, backbone.json, log.jsonl
    cache: Path | None = None  # folder for tokenizers and teacher targets shared between seeds
    about: Mapping[str, Any] = field(default_factory=dict)  # more facts for backbone.json
    sharded: bool = False  # of several processes, each keeps a part of the weights and of the optimiser's state
    arithmetic: Arithmetic | None = None  # None: what the device takes unless told otherwise
    progress: Progress = lambda stage, done, total: None

    @property
    def steps(self) -> int:
        """Optimiser steps: images seen / batch, rounded up."""
        return math.ceil(self.images_seen / self.batch_size)

    @property
    def computing(self) -> Arithmetic:
        """What the training step is computed with."""
        return self.arithmetic or Arithmetic.of(self.device)

    @property
    def cut(self) -> Crop | None:
        """The random crop; None where crops are fixed."""
        return None if self.fixed_crop else self.crop


SHORT_WARMUP = 100  # steps that are warm-up enough where a training is too short for its paper's share


class _Runner(Runner):
    """mmengine's, without its initialisation of weights, which would send each process's own part to the others.

    The model stays on the device that it lies on, where mmengine takes the first GPU of the machine.
    """

    def _init_model_weights(self) -> None:
        pass

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        return super().wrap_model(model_wrapper_cfg, model) if self.distributed else model


class _Steps(Hook):
    """Seeds each step, reports progress, writes ``log.jsonl`` and a resumable checkpoint, stops when it has to."""

    priority = "VERY_LOW"

    def __init__(
        self, job: PretrainJob, objective: Objective, pictures: Source, signals: Deferred, started: float
    ) -> None:
        self.job, self.objective, self.pictures, self.signals = job, objective, pictures, signals
        self.log = job.folder / "log.jsonl"
        self.started = started  # as if the training had never been interrupted
        self.rows: list[dict[str, float]] = []
        self.lr = 0.0  # of the step being made
        self.loss = math.nan  # the last one that was looked at
        self.saved = time.monotonic(), 0.0  # when the last checkpoint was there, and the seconds that it took
        self.recent: deque[tuple[int, Tensor, float, Tensor]] = deque(maxlen=LOSS_EVERY)  # step, loss, lr, pictures

    def before_train(self, runner: Runner) -> None:
        parallel.clip_whole(runner.model, runner.optim_wrapper)
        with processes.first():  # it removes what is damaged
            state = checkpoint.newest(self.job.folder)
        if state is None:
            return
        parallel.load_state(runner.model, runner.optim_wrapper, state)
        for scheduler, saved in zip(runner.param_schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        runner.train_loop._iter = state["step"]
        self.rows = state["rows"]
        self.started -= state["seconds"]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.objective.begin_step(self.job.seed, runner.iter)
        self.lr = runner.optim_wrapper.get_lr()["lr"][0]
        if self.job.optimiser.weight_decay_end is not None:  # the first group is the one with decay
            decay = weight_decay_at(self.job.optimiser, runner.iter, self.job.steps)
            runner.optim_wrapper.optimizer.param_groups[0]["weight_decay"] = decay

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        step = runner.iter + 1
        self.objective.after_step(step)
        self.recent.append((step, outputs["loss"].detach(), self.lr, data_batch["index"]))
        if step % LOSS_EVERY == 0 or step == self.job.steps:
            self._check_losses()
            loss = self.loss
            row = {"step": step, "images": step * self.job.batch_size, "loss": round(loss, 6),
                   "lr": self.lr}
            self.rows.append(row)
            self.job.progress(f"pretrain loss {loss:.4f}", step, self.job.steps)
        stop = processes.anywhere(self.signals.asked) and step < self.job.steps
        if stop or (step % CHECKPOINT_EVERY == 0 and step < self.job.steps and not processes.anywhere(not self._due())):
            self._check_losses()
            self._save(runner, step)
        if stop:
            raise KeyboardInterrupt

    def _check_losses(self) -> None:
        """Stop at the first loss that is not finite; its pictures are kept for inspection."""
        if not self.recent:
            return
        losses = processes.mean(torch.stack([value for _, value, _, _ in self.recent])).tolist()
        for (step, _, lr, index), loss in zip(self.recent, losses, strict=True):
            if math.isfinite(loss):
                continue
            path, index = self.job.folder / DIVERGED, processes.gather(index)
            images = self.pictures.squares(index, self.job.input_size).contiguous()
            batch = {"images": images, "labels": self.pictures.labels[index], "index": index}
            with whole(path) as temporary:
                save_file(batch, temporary)
            raise ObjectiveError(
                f"{self.job.objective}: the loss is {loss} at step {step} of {self.job.steps}, learning rate {lr:.3g}; "
                f"lower optimiser.lr or set optimiser.clip (the batch is kept in {path})"
            )
        self.loss = losses[-1]
        self.recent.clear()

    def _due(self) -> bool:
        """Whether the time since the last checkpoint has earned another one; of several processes all must say so."""
        since, took = self.saved
        return time.monotonic() - since >= took / CHECKPOINT_SHARE

    def _save(self, runner: Runner, step: int) -> None:
        started = time.monotonic()
        state = {
            **parallel.state(runner.model, runner.optim_wrapper),
            "schedulers": [s.state_dict() for s in runner.param_schedulers], "step": step, "rows": self.rows,
            "seconds": time.time() - self.started,
        }
        if is_main_process():
            checkpoint.save(self.job.folder, step, state)
        self.saved = time.monotonic(), time.monotonic() - started

    @master_only
    def after_train(self, runner: Runner) -> None:
        self.log.write_text("".join(json.dumps(row) + "\n" for row in self.rows))


def build(job: PretrainJob, pictures: Source) -> Objective:
    """The job's objective around a freshly initialised backbone; weights depend on the seed alone."""
    torch.manual_seed(job.seed)
    objective = Objective(
        job.slots, job.model, job.kwargs, job.input_size, job.crop, job.fixed_crop, job.optimiser.drop_path,
        len(pictures.classes), job.decoder,
    )
    objective.cropped = pictures.cropped
    objective.attach(job.steps)
    return objective


class _Views:
    """See ``objectives.teacher.Views``: the job's pictures, augmented as pre-training does."""

    def __init__(self, objective: Objective, job: PretrainJob, pictures: Source) -> None:
        self.objective, self.job, self.pictures = objective, job, pictures
        self.key = json.dumps([pictures.fingerprint, objective.view, job.fixed_crop, asdict(job.crop)], default=str)

    @torch.no_grad()
    def draw(self, step: int, count: int) -> Tensor:
        generator = self.objective.generator.manual_seed(step)  # seeded anew by every step of pre-training
        chosen = torch.randint(len(self.pictures), (count,), generator=generator)
        # a tokenizer is the same for every seed of an objective: what it sees must not be the first one's
        images = self.pictures.crops(chosen.tolist(), [step] * count, self.objective.view, self.job.cut, SEED)
        return self.objective.augment(images)[0]

    @torch.no_grad()
    def whole(self, batch: int) -> Iterator[Tensor]:
        count = len(self.pictures)
        chosen = torch.arange(count) if count <= COUNTED else torch.linspace(0, count - 1, COUNTED).long()
        for part in chosen.split(batch):
            images = self.pictures.squares(part, self.objective.view).contiguous()
            x = (images.float() / 255 - self.objective.mean) / self.objective.std
            yield resize(x, self.objective.view)


def prepare(objective: Objective, job: PretrainJob, pictures: Source) -> None:
    """Train what the teacher needs before its first target, or read it from the cache: a tokenizer; others nothing.

    Raises:
        ObjectiveError: the tokenizer's weights do not fit, or its codebook collapsed.
    """
    objective.teacher.prepare(_Views(objective, job, pictures), job.device, job.cache, job.progress)


def recall(objective: Objective, job: PretrainJob, pictures: Source, trained_on: str) -> None:
    """Like :func:`prepare`, on the processor and to look at an objective that was trained on a device: reads only.

    Raises:
        ObjectiveError: a tokenizer trained there is not in the cache.
    """
    assert job.cache is not None
    objective.teacher.recall(_Views(objective, job, pictures), trained_on, job.cache, job.progress)


def pretrain(job: PretrainJob, pictures: Source) -> Path:
    """Train the backbone (or only initialise it, for ``random_init``) and write its folder.

    An interrupted training goes on from its last checkpoint, bit-equal to one that was never interrupted. Within a
    process group all of its processes call this together: each takes its share of every batch, process 0 writes.

    ``backbone.json`` says, beside what the backbone is: ``seconds`` of all parts of an interrupted training;
    ``shared_seconds`` of what seeds share, a tokenizer and teacher targets, whichever of them made it; ``features`` and
    ``features_at_start`` (:func:`~objectives.health.health`); ``collapse``, why the features have collapsed, or null;
    ``untaught``, why the loss shows that nothing was learned, where labels tell what guessing scores.

    Raises:
        ObjectiveError: the parts do not fit, the teacher has no weights, its codebook collapsed, the loss is not
            finite (the batch that did it is kept), or one picture is more than the device's memory holds.
        KeyboardInterrupt: SIGINT or SIGTERM came; the step it came in is saved.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    objective = build(job, pictures)
    started = time.time()
    losses: list[dict[str, float]] = []
    facts: dict[str, Any] = {}
    if job.trains:
        if is_main_process():
            facts["features_at_start"] = feature_health(objective.student.backbone, pictures, job.input_size)
        apart = time.time()
        with processes.first():
            if isinstance(pictures, Stream):
                pictures.keep_decoded(
                    objective.view, job.cut, job.images_seen, job.cache, available_memory(), job.progress
                )
            prepare(objective, job, pictures)
            facts["shared_seconds"] = {**objective.teacher.seconds, **_cache_targets(objective, job, pictures)}
        started += time.time() - apart
        objective, losses, started = _train(objective, job, pictures, started)
    if is_main_process():
        _write(objective, job, pictures, losses, {"seconds": round(time.time() - started, 2), **facts})
    barrier()
    return job.folder


def _write(
    objective: Objective, job: PretrainJob, pictures: Source, losses: list[dict[str, float]], facts: dict[str, Any]
) -> None:
    """The backbone's folder."""
    objective.to("cpu")
    backbone = objective.student.backbone
    features = feature_health(backbone, pictures, job.input_size)
    about = {
        "format": FORMAT, "model": job.model, "kwargs": {**job.kwargs, "num_classes": 0},
        "objective": job.objective, "suite": job.suite, "seed": job.seed,
        "images_seen": job.steps * job.batch_size if job.trains else 0, "input_size": job.input_size,
        "data_fingerprint": pictures.fingerprint, "final_loss": losses[-1]["loss"] if losses else None, **facts,
        "features": features, "collapse": collapse(features, facts.get("features_at_start", features)),
        **({"untaught": reason} if (reason := _untaught(objective, pictures, losses)) else {}),
        **({"arithmetic": asdict(job.computing)} if job.trains else {}),
        **(objective.teacher.about() if job.trains else {}), **job.about,
    }
    if job.trains:  # student and head, for pictures of what it predicts; the seam is the backbone alone
        save_weights(objective, job.folder / "objective.safetensors", leave_out="teacher.")
    save_backbone(backbone, about, job.folder)
    checkpoint.clear(job.folder)
    (job.folder / DIVERGED).unlink(missing_ok=True)


def _untaught(objective: Objective, pictures: Source, losses: list[dict[str, float]]) -> str | None:
    at_chance = getattr(objective.loss, "at_chance", None)
    return untaught([row["loss"] for row in losses], at_chance(pictures.labels)) if at_chance and losses else None


def load_objective(objective: Objective, path: Path) -> None:
    """Give a freshly built objective its trained student and head (the teacher brings its own weights)."""
    missing, unexpected = objective.load_state_dict(load_file(path), strict=False)
    missing = [key for key in missing if not key.startswith("teacher.")]
    if missing or unexpected:
        raise ObjectiveError(f"{path} does not fit the objective: {', '.join([*missing, *unexpected][:4])}")
    objective.attach(steps=1)  # a moving average goes on from the trained student


def save_backbone(backbone: nn.Module, about: Mapping[str, Any], folder: Path) -> None:
    """Write ``backbone.safetensors`` and, last, ``backbone.json``: a folder with the latter is complete."""
    save_weights(backbone, folder / "backbone.safetensors")
    save_about(about, folder)


def save_about(about: Mapping[str, Any], folder: Path) -> None:
    """Write ``backbone.json`` whole or not at all."""
    with whole(folder / "backbone.json") as temporary:
        temporary.write_text(json.dumps(about, indent=1, default=str) + "\n")


def save_weights(module: nn.Module, path: Path, leave_out: str | None = None) -> None:
    """Write a module's state as safetensors, whole or not at all; ``leave_out`` is a prefix of keys."""
    state = {k: v.detach().contiguous().clone() for k, v in module.state_dict().items()
             if leave_out is None or not k.startswith(leave_out)}
    with whole(path) as temporary:
        save_file(state, temporary)


def parameter_groups(objective: Objective, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only: none on biases, norms, tokens, position tables, and what timm exempts.

    That is what a network makes its relative positions of: Swin's and BEiT's tables, Swin V2's small network and scale.
    """
    tables = ("pos_embed", "cls_token", "mask_token", "reg_token", "relative_position_bias_table")
    exempt = {f"student.backbone.{name}" for name in objective.student.backbone.no_weight_decay()}
    decayed, plain = [], []
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            bare = parameter.ndim <= 1 or name.endswith(tables) or name in exempt
            (plain if bare else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def warmup_steps(settings: Optimiser, steps: int) -> int:
    """Steps of a training in which its learning rate rises: see :class:`~objectives.recipe.Optimiser`."""
    if steps < 4 or settings.warmup == 0:
        return 0
    floor = min(SHORT_WARMUP, round(0.05 * steps))
    return min(steps - 1, max(2, floor, round(settings.warmup * steps)))  # LinearLR needs two steps to arrive


def _train(
    objective: Objective, job: PretrainJob, pictures: Source, started: float
) -> tuple[Objective, list[dict[str, float]], float]:
    """The trained objective, whole in process 0, the rows of its log, and when it would have started uninterrupted."""
    settings = job.optimiser
    lr = scaled_lr(settings, job.batch_size, objective.geometry.width)
    groups = parameter_groups(objective, settings.weight_decay)
    device, how = torch.device(job.device), job.computing
    objective.to(device)
    as_usual = hasten(objective, how, job.sharded)
    model, groups = parallel.wrap(objective, groups, job.sharded)
    wrapper = optimiser_wrapper(groups, settings, lr, how)
    warmup = warmup_steps(settings, job.steps)
    schedulers = [
        {"type": "CosineAnnealingLR", "by_epoch": False, "begin": warmup, "end": job.steps,
         "T_max": max(1, job.steps - warmup), "eta_min_ratio": settings.min_lr}
    ]
    if warmup:
        schedulers.insert(0, {"type": "LinearLR", "start_factor": 1e-3, "by_epoch": False, "begin": 0, "end": warmup})
    signals = Deferred()
    steps = _Steps(job, objective, pictures, signals, started)
    scratch = job.folder / "mmengine"
    share = job.batch_size // get_world_size()
    reading = chosen(
        share, objective.view, job.cut, job.seed, job.device, torch.get_num_threads(), available_memory(),
        isinstance(pictures, Pictures),
    )
    runner = _Runner(
        model=model, launcher="pytorch" if is_distributed() else "none", work_dir=str(scratch),
        experiment_name=f"pretrain-{job.folder}-{time.time_ns()}",
        train_dataloader=loader(pictures, reading, job.device),
        train_cfg={"by_epoch": False, "max_iters": job.steps}, optim_wrapper=wrapper, param_scheduler=schedulers,
        # runtime_info would ask the device for the loss at every step, and keep them all
        default_hooks=dict.fromkeys(("logger", "timer", "checkpoint", "sampler_seed", "runtime_info")),
        custom_hooks=[steps, Waiting(pictures, reading, job.device, job.folder)],
        randomness={"seed": job.seed}, log_level="ERROR", default_scope="mmengine",
        env_cfg={"cudnn_benchmark": device.type == "cuda"},
    )
    with signals, processes.sharing(share):
        runner.train()
    as_usual()
    torch.backends.cudnn.benchmark = False  # as env_cfg found it: what this process does next has other shapes
    if is_main_process():
        shutil.rmtree(scratch, ignore_errors=True)
    return parallel.gathered(model, objective, lambda: build(job, pictures)), steps.rows, steps.started


def _cache_targets(objective: Objective, job: PretrainJob, pictures: Source) -> dict[str, float]:
    """Compute a frozen teacher's targets once where crops are fixed and the budget sees pictures again.

    Gives ``{"targets": seconds}`` that it took, now or when the cache was filled; empty where there is nothing to do.
    Stored as float16: the rounding (2^-11; a GPU's teachers compute in bfloat16, 2^-8) is far below what a normalised
    target's loss notices. Ids as int32.
    """
    teacher, flips = objective.teacher, 2 if job.crop.flip else 1
    if not isinstance(pictures, Pictures):
        return {}  # targets of a set larger than memory are larger still
    count = len(pictures)
    if not (teacher.cacheable and job.fixed_crop) or job.images_seen < count * flips:
        return {}
    facts = [pictures.fingerprint, job.slots["teacher"], objective.view, asdict(objective.geometry), flips,
             teacher.fingerprint()]
    if torch.device(job.device).type != "cpu":  # whose teachers compute in another type
        facts.append(torch.device(job.device).type)
    key = json.dumps(facts, sort_keys=True, default=str)
    path = job.cache / f"targets-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors" if job.cache else None
    if path is not None and path.is_file():
        objective.targets = load_file(path)["targets"]
        return spent(path, "targets")
    started = time.time()
    teacher.to(job.device)
    mean, std = objective.mean, objective.std
    parts = []
    for start in range(0, count, TEACHER_BATCH):
        batch = resize((pictures.images[start : start + TEACHER_BATCH].float() / 255 - mean) / std, objective.view)
        views = [batch, batch.flip(-1)][:flips]
        targets = torch.stack([teacher(v.to(job.device), None).cpu() for v in views], dim=1)
        parts.append(targets.half() if targets.is_floating_point() else targets.int())
        job.progress("teacher targets", min(count, start + TEACHER_BATCH), count)
    objective.targets = torch.cat(parts)
    seconds = round(time.time() - started, 2)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as temporary:
            save_file({"targets": objective.targets}, temporary, {"seconds": str(seconds)})
    return {"targets": seconds}
