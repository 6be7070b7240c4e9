"""What surrounds the training steps of a run: reading, hooks, log, checkpoints, building and writing the backbone."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import speed
from benchmarks.environment import environment
from benchmarks.plan import Pretraining
from benchmarks.progress import Reporter
from benchmarks.tidy import close_runs
from objectives.arithmetic import Arithmetic
from objectives.objective import Objective
from objectives.pictures.memory import Pictures
from objectives.pretrain import PretrainJob, pretrain

PICTURES = 2048  # at most, that lie in memory; the run goes through them again and again


@dataclass
class Clock:
    """Seconds within training steps, and how many there were."""

    seconds: float = 0.0
    steps: int = 0


@contextmanager
def timed_steps(device: torch.device) -> Iterator[Clock]:
    """Inside, the clock runs while an objective is at its training step."""
    clock, step = Clock(), Objective.train_step

    def timed(self: Objective, *arguments: Any, **more: Any) -> Any:
        speed.wait(device)
        started = time.perf_counter()
        found = step(self, *arguments, **more)
        speed.wait(device)
        clock.seconds += time.perf_counter() - started
        clock.steps += 1
        return found

    Objective.train_step = timed  # type: ignore[method-assign]
    try:
        yield clock
    finally:
        Objective.train_step = step  # type: ignore[method-assign]


def whole(pretraining: Pretraining, how: Arithmetic, device: torch.device) -> tuple[float, Clock]:
    """Seconds of a whole pre-training on random pictures in memory, and of its steps."""
    suite = pretraining.suite
    count = min(PICTURES, pretraining.images_seen)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, suite.input_size, suite.input_size), dtype=torch.uint8,
                           generator=generator)
    classes = tuple(str(number) for number in range(speed.CLASSES))
    pictures = Pictures(images, torch.arange(count) % speed.CLASSES, classes, "random")
    with tempfile.TemporaryDirectory() as scratch:
        job = PretrainJob(
            objective=pretraining.recipe.name, slots=pretraining.slots, optimiser=pretraining.optimiser,
            crop=pretraining.crop, trains=True, model=suite.model, kwargs=suite.kwargs, input_size=suite.input_size,
            images_seen=pretraining.images_seen, batch_size=suite.batch_size, fixed_crop=suite.fixed_crop,
            decoder=suite.decoder, suite=suite.name, seed=0, device=str(device), folder=Path(scratch), arithmetic=how,
        )
        with timed_steps(device) as clock:
            started = time.perf_counter()
            pretrain(job, pictures)
            seconds = time.perf_counter() - started
    close_runs()
    return seconds, clock


def bare(pretraining: Pretraining, how: Arithmetic, device: torch.device, steps: int) -> float:
    """Seconds of as many steps and nothing else."""
    contestant = speed.ours(pretraining, pretraining.suite.batch_size, how, device)
    contestant.step()
    speed.wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        contestant.step()
    speed.wait(device)
    return time.perf_counter() - started


def record(
    pretraining: Pretraining, device: torch.device, how: Arithmetic, turns: int, reporter: Reporter
) -> dict[str, Any]:
    """Whole runs and bare steps in turns (A B A B …).

    ``overhead`` is what of a run's seconds lies outside of its steps, 0 to 1, median over the turns; ``beyond_bare`` by
    how much a run takes longer than as many bare steps, which a clock that wanders between the two can falsify.
    """
    whole(pretraining, how, device)  # imports, allocator and threads are warm now, as after a run's first cell
    rows = []
    for turn in range(turns):
        seconds, clock = whole(pretraining, how, device)
        rows.append({
            "seconds": round(seconds, 3), "in_steps": round(clock.seconds, 3), "steps": clock.steps,
            "overhead": round(1 - clock.seconds / seconds, 5),
            "bare": round(bare(pretraining, how, device, clock.steps), 3),
        })
        reporter.report("runs", turn + 1, turns)
    suite = pretraining.suite
    return {
        "format": 1, "kind": "overhead", "objective": pretraining.label, "suite": suite.name, "model": suite.model,
        "kwargs": dict(suite.kwargs), "input_size": suite.input_size, "batch": suite.batch_size,
        "images_seen": pretraining.images_seen, "threads": torch.get_num_threads(),
        "overhead": statistics.median(row["overhead"] for row in rows),
        "beyond_bare": round(statistics.median(row["seconds"] / row["bare"] - 1 for row in rows), 5),
        "rows": rows, "environment": environment(str(device)),
    }
