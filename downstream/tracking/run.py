"""One cell of the tracking task: read, train, follow, score."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from typing import Any

from downstream.task import TaskError


@dataclass(frozen=True)
class Settings:
    """What a suite may set, with defaults for small pictures on two cores; in brackets the values of SwinTrack-B."""

    template_size: int = 48  # pixels [112]
    search_size: int = 96  # pixels [224]; twice the template keeps the target at one size in both
    template_factor: float = 2.0  # side of the window in target sizes [2]
    search_factor: float = 4.0  # [4]
    width: int = 96  # of the fusion [512]
    layers: int = 2  # of its encoder [8]
    heads: int = 4  # [8]
    epochs: int = 3  # [300]
    pairs_per_epoch: int = 1536  # [131072]; frozen with a cache: the same pairs in every epoch
    batch_size: int = 32  # [64 per process]
    lr: float = 1e-3  # [5e-4]
    backbone_lr: float = 0.1  # finetune: times lr [.1]
    weight_decay: float = 1e-4  # [1e-4]
    clip: float = 1.0  # norm of the gradient [.1]
    warmup: float = 0.05  # share of the steps [.01]
    drop_at: float = 0.7  # share of the steps after which lr is a tenth [.7]
    max_gap: int = 100  # frames between template and search [100]
    scale_jitter: float = 0.25  # of the search window [.25]
    shift_jitter: float = 3.0  # [3]
    window_weight: float = 0.49  # of the Hann window at test time [.49]
    smallest: float = 10.0  # pixels: narrower predictions are widened [10]
    strict_success: bool = False  # success curve with > (got10k toolkit) instead of >= (SwinTrack)
    out_index: int = -1  # stage or block of the backbone whose map is used [2, the third stage of Swin]
    train_limit: int | None = None  # videos of each data set
    test_limit: int | None = None
    test_batch: int = 32  # videos followed side by side
    frames_mb: int = 2048  # decoded frames kept in memory
    features_mb: int = 2048  # frozen: larger features are computed anew at each step, with new pairs in each epoch
