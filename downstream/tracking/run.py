"""One cell of the tracking task: read, train, follow, score."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from mmdet.registry import MODELS

from downstream import limits
from downstream.backbone import MEAN, STD
from downstream.task import FROZEN_FINETUNE, Job, Outcome, TaskError
from downstream.tracking.evaluator import OnePassEvaluation
from downstream.tracking.follow import follow
from downstream.tracking.frames import FrameStore
from downstream.tracking.metrics import score_tracks, unmoved
from downstream.tracking.model import SingleObjectTracker
from downstream.tracking.pairs import FeatureDataset, PairDataset, PairStyle
from downstream.tracking.train import extract, optimise
from downstream.tracking.videos import read_videos

LOG_EVERY = 10  # steps between two rows of log.jsonl


NUMBERS = {
    limits.COUNT: (
        "template_size", "search_size", "width", "heads", "epochs", "pairs_per_epoch", "batch_size", "max_gap",
        "train_limit", "test_limit", "test_batch"),
    limits.FROM_0_WHOLE: ("layers", "num_workers"),
    limits.FROM_0: ("lr", "backbone_lr", "weight_decay", "scale_jitter", "shift_jitter", "frames_mb", "features_mb"),
    limits.POSITIVE: ("template_factor", "search_factor", "clip", "smallest"),
    limits.SHARE: ("drop_at", "recolour", "window_weight", "size_rate"),
    limits.BELOW_1: ("warmup",),
}


@dataclass(frozen=True)
class Settings:
    """What a suite may set, with defaults for small pictures on two cores; in brackets the values of SwinTrack-B."""

    template_size: int = 48  # pixels [112]
    search_size: int = 96  # pixels [224]; twice the template keeps the target at one size in both
    template_factor: float = 2.0  # side of the window in target sizes [2]
    search_factor: float = 4.0  # [4]
    width: int = 64  # of the fusion [512]
    layers: int = 1  # of its encoder [8]; 0: search tokens ask the tokens of both crops once, in the decoder
    heads: int = 4  # [8]
    epochs: int = 12  # [300]
    pairs_per_epoch: int = 1536  # [131072]; frozen with a cache: the same pairs in every epoch
    batch_size: int = 16  # [64 per process]
    lr: float = 2e-3  # [5e-4]
    backbone_lr: float = 0.1  # finetune: times lr [.1]
    weight_decay: float = 1e-4  # [1e-4]
    clip: float = 1.0  # norm of the gradient [.1]
    warmup: float = 0.05  # share of the steps [.01]
    drop_at: float = 0.7  # share of the steps after which lr is a tenth [.7]
    max_gap: int = 100  # frames between template and search [100]
    scale_jitter: float = 0.15  # of the search window [.25]
    shift_jitter: float = 1.5  # [3]
    recolour: float = 0.5  # share of pairs with the colour channels in another order [0]
    window_weight: float = 0.45  # of the Hann window at test time [.49]
    smallest: float = 6.0  # pixels: narrower predictions are widened [10]
    size_rate: float = 0.05  # share of the predicted size in the tracked one [1]
    strict_success: bool = False  # success curve with > (got10k toolkit) instead of >= (SwinTrack)
    out_index: int = -1  # stage or block of the backbone whose map is used [2, the third stage of Swin]
    train_limit: int | None = None  # videos of each data set
    test_limit: int | None = None
    test_batch: int = 32  # videos followed side by side
    frames_mb: int = 2048  # decoded frames kept in memory, by each process
    num_workers: int = 0  # processes that cut the training crops
    amp: bool = False  # train in bfloat16 where the device is a GPU
    features_mb: int = 2048  # frozen: larger features are computed anew at each step, with new pairs in each epoch

    def __post_init__(self) -> None:
        limits.check_numbers("tracking settings", vars(self), NUMBERS, optional=("train_limit", "test_limit"))
        if self.width % self.heads:
            raise TaskError(f"tracking settings: width {self.width} is not a multiple of heads {self.heads}")
        if self.pairs_per_epoch < self.batch_size:
            raise TaskError(
                f"tracking settings: pairs_per_epoch {self.pairs_per_epoch} is less than one batch of {self.batch_size}"
            )

    @property
    def steps(self) -> int:
        return self.epochs * (self.pairs_per_epoch // self.batch_size)

    def pair_style(self) -> PairStyle:
        common = {field.name for field in fields(PairStyle)} & {field.name for field in fields(self)}
        return PairStyle(**{name: getattr(self, name) for name in common})


def read_settings(given: dict[str, Any]) -> Settings:
    """Settings from the suite's section.

    Raises:
        TaskError: a name that is not a setting; the message gives the nearest one.
    """
    limits.check_names("tracking", given, [field.name for field in fields(Settings)])
    return Settings(**given)


def build_tracker(job: Job, settings: Settings) -> SingleObjectTracker:
    """The tracker on ``job.device``, initialised from ``job.seed``; the backbone is frozen under ``frozen``."""
    torch.manual_seed(job.seed)
    model = MODELS.build(
        {
            "type": "SingleObjectTracker",
            "backbone": {
                "type": "mmengine.TimmBackbone",
                "folder": str(job.backbone),
                "out_indices": (settings.out_index,),
                "frozen": job.protocol == "frozen",
                "input_size": settings.search_size,
            },
            "data_preprocessor": {"type": "PairPreprocessor", "mean": MEAN, "std": STD},
            **{
                name: getattr(settings, name)
                for name in ("template_size", "search_size", "search_factor", "width", "layers", "heads")
            },
            "window_weight": settings.window_weight,
        }
    )
    model.init_weights()
    return model.to(job.device)


def train(job: Job, settings: Settings, model: SingleObjectTracker, frames: FrameStore) -> list[float]:
    """Trains in place; returns the losses. A frozen backbone sees each crop once where its features fit in memory."""
    groups = read_videos(job.data, "train", settings.train_limit)
    style = settings.pair_style()
    cached = job.protocol == "frozen" and model.feature_bytes * settings.pairs_per_epoch <= settings.features_mb * 2**20
    epochs = 1 if cached else settings.epochs
    pairs = PairDataset(groups, epochs * settings.pairs_per_epoch, job.seed, style, frames)
    dataset: FeatureDataset | PairDataset = pairs
    if cached:
        dataset = extract(model, pairs, settings.batch_size, partial(job.progress, "features"), settings.num_workers)
    losses = optimise(
        model, dataset, settings.steps, settings.batch_size, job.seed,
        lr=settings.lr, backbone_lr=settings.backbone_lr, weight_decay=settings.weight_decay, clip=settings.clip,
        warmup=settings.warmup, drop_at=settings.drop_at, work_dir=job.work_dir, report=partial(job.progress, "train"),
        num_workers=0 if cached else settings.num_workers, amp=settings.amp,
    )
    rows = [{"step": step, "loss": round(loss, 6)} for step, loss in enumerate(losses, 1) if step % LOG_EVERY == 0]
    (job.work_dir / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.rmtree(job.work_dir / "mmengine", ignore_errors=True)
    return losses


def evaluate(job: Job) -> Outcome:
    """See :func:`downstream.tracking.evaluate`. ``train_images`` counts both crops of a pair."""
    if job.protocol not in FROZEN_FINETUNE:
        raise TaskError(f"tracking: protocol {job.protocol!r} does not apply; one of {', '.join(FROZEN_FINETUNE)}")
    settings = read_settings(job.settings)
    frames = FrameStore(settings.frames_mb)
    videos = [video for group in read_videos(job.data, "test", settings.test_limit) for video in group]
    model = build_tracker(job, settings)
    train(job, settings, model, frames)

    total = sum(len(video.frames) - 1 for video in videos)
    tracks = follow(
        model, videos, settings.pair_style(), frames, settings.test_batch, settings.smallest,
        settings.size_rate, lambda done: job.progress("track", done, total),
    )
    metric = OnePassEvaluation(settings.strict_success)
    metric.process({}, [{"track": track} for track in tracks])
    means = metric.evaluate(len(tracks))
    if any(math.isnan(value) for value in means.values()):
        raise TaskError("tracking data: no test frame after the first shows its target; check the flags of visibility")
    still = [unmoved(track) for track in tracks]
    names = {"SUC": "SUC", "P": "P", "NP": "NP@.20", "NP_mean": "NP mean", "AO": "AO", "SR50": "SR50", "SR75": "SR75"}
    return Outcome(
        {label: means[name] for name, label in names.items()},
        2 * settings.steps * settings.batch_size,
        {names[name]: scores for name, scores in metric.scores.items.items()},
        baselines={"SUC": {"a box that never moves": score_tracks(still, settings.strict_success).means["SUC"]}},
    )
