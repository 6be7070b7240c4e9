"""Speed of a grid of heads: all learning rates and layers in one pass beside one head, on the same cached features.

Both are the frozen protocol of classification at the suite's settings, on features that are there already. The one
head is trained on the part that the grid is trained on and chooses nothing; the grid trains a linear layer for each
pair of a learning rate and a layer and then chooses by the held-out part. They take turns (A B A B …). The backbone is
as initialised: its weights change no time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import MODELS

from benchmarks.environment import environment
from benchmarks.progress import Reporter
from benchmarks.suite import Suite
from downstream import classification, engine, features, frozen
from downstream.backbone import FORMAT, build
from downstream.features import CachedFeatures
from downstream.task import Job
from objectives.pretrain import save_backbone

RATES = tuple(0.1 * 2**i for i in range(8))  # as suite `paper`
LAYERS = (-2, -1)


@dataclass(frozen=True)
class HeadSpeed:
    """What was measured of one contestant.

    Attributes:
        seconds: of a turn, median; ``spread`` is half the distance of the extremes, same unit.
        ratio: seconds over those of one head.
        core_seconds: time of this process's cores in a turn (median), hardly changed by what else the machine does;
            ``core_ratio``: over that of one head.
    """

    name: str
    heads: int
    seconds: float
    spread: float
    ratio: float
    core_seconds: float
    core_ratio: float


def measure(
    suite: Suite, section: dict[str, Any], folder: Path, device: str, epochs: int, turns: int, reporter: Reporter
) -> dict[str, Any]:
    """Time both in turns; what is kept of it.

    Args:
        section: data of classification, paths absolute.
        folder: an empty one, for the backbone and temporary files.
        epochs: of a turn.
    """
    (folder / "pretrain").mkdir()
    torch.manual_seed(0)
    about = {"format": FORMAT, "model": suite.model, "kwargs": dict(suite.kwargs)}
    save_backbone(build(suite.model, suite.kwargs, suite.name), about, folder / "pretrain")
    settings = {**suite.settings_of("classification", "frozen", "random_init"), "layers": None, "epochs": epochs}
    job = Job(folder / "pretrain", "classification", "frozen", section, settings, 0, device, folder)
    grid_job = replace(job, settings={**settings, "lr": RATES, "layers": LAYERS})
    with engine.quiet("mmpretrain"):
        grid, whole, grid_chosen = _prepared(grid_job, reporter)
        one, _, chosen = _prepared(replace(job, settings={**settings, "lr": RATES[len(RATES) // 2]}))
        part = whole.part(frozen.parts(len(whole))[0]).levels([len(LAYERS) - 1])
        contestants: dict[str, tuple[int, Callable[[], Any]]] = {
            "one head": (1, lambda: frozen.heads_on(one, part, job, chosen)),
            f"{len(RATES)} learning rates x {len(LAYERS)} layers": (
                len(RATES) * len(LAYERS), lambda: frozen.heads_on(grid, whole, grid_job, grid_chosen)),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        for turn in range(turns + 1):  # the first one warms up
            for number, (name, (_, train)) in enumerate(contestants.items()):
                reporter.report(name, turn * 2 + number + 1, 2 * turns + 2)
                started, before = time.perf_counter(), time.process_time()
                train()
                if turn:
                    times[name].append((time.perf_counter() - started, time.process_time() - before))
    rows = _rows({name: heads for name, (heads, _) in contestants.items()}, times)
    return {
        "format": 1, "kind": "heads", "suite": suite.name, "model": suite.model, "pictures": len(whole),
        "features": [list(level.shape[1:]) for level in whole.maps], "batch": chosen["batch_size"], "epochs": epochs,
        "turns": turns, "rows": [asdict(row) for row in rows],
        "environment": {**environment(device), "threads": torch.get_num_threads()},
    }


def _prepared(job: Job, reporter: Reporter | None = None) -> tuple[BaseModel, CachedFeatures, dict[str, Any]]:
    """The protocol's model, which takes features; they themselves, where somebody waits for them; its settings."""
    chosen = engine.settings(job, **classification.DEFAULTS)
    recipe = classification.recipe(job, chosen, classification.classes_of(job.data))
    model = MODELS.build(ConfigDict(recipe.model))
    model.init_weights()
    model.to(job.device)
    whole = CachedFeatures([], [])
    if reporter is not None:
        data = engine.dataset(recipe.train, job, chosen["train_limit"], "train")
        job = replace(job, progress=reporter.report)
        whole = features.cache(model, data, job, chosen["num_workers"], chosen["cache_mb"])
    features.stand_in(model, job)
    return model, whole, chosen


def _rows(heads: dict[str, int], times: dict[str, Sequence[tuple[float, float]]]) -> list[HeadSpeed]:
    """Rows from the (wall, core) seconds of each contestant's turns; the first one is what the others are held to."""
    rows: list[HeadSpeed] = []
    for name, turns in times.items():
        wall, cores = ([turn[i] for turn in turns] for i in (0, 1))
        seconds, busy = statistics.median(wall), statistics.median(cores)
        first = rows[0] if rows else None
        rows.append(HeadSpeed(
            name, heads[name], round(seconds, 4), round((max(wall) - min(wall)) / 2, 4),
            round(seconds / first.seconds, 2) if first else 1.0, round(busy, 4),
            round(busy / first.core_seconds, 2) if first else 1.0,
        ))
    return rows
