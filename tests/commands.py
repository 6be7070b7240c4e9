"""``bench run`` at a tiny budget, for the tests that start it as a command and watch or disturb what it starts."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

OPTIONS = (
    "suite.batch_size=8", "suite.kwargs.depth=1", "suite.kwargs.embed_dim=32", "suite.kwargs.num_heads=2",
    "suite.decoder={'width': 32, 'depth': 1, 'heads': 2}",
    *(f"task.{task}.epochs=1" for task in ("classification", "segmentation", "pose", "depth")),
)


def scenes(pictures: int, videos: int) -> str:
    """The option of a suite with so many training pictures and videos, and half as many for the test."""
    return (f"suite.scenes={{'pictures_train': {pictures}, 'pictures_val': {pictures // 2}, 'videos_train': {videos}, "
            "'videos_test': 1, 'frames_train': 4, 'frames_test': 4}")


def arguments(runs: Path, objectives: str, tasks: str, *more: str, options: tuple[str, ...] = ()) -> list[str]:
    """What stands behind ``bench``; ``options`` are added to :data:`OPTIONS`, ``more`` to the rest."""
    flags = [flag for option in (*OPTIONS, *options) for flag in ("--cfg-options", option)]
    return ["run", "--objective", objectives, "--tasks", tasks, "--runs", str(runs), "--device", "cpu", "--format",
            "json", *more, *flags]


def command(words: list[str]) -> list[str]:
    """``bench`` with these arguments, by this interpreter."""
    return [sys.executable, "-m", "benchmarks.cli", *words]


def tree(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue  # gone by now
    return found


def workers(pid: int) -> list[int]:
    """The processes among a command's that compute: Python's own, without its resource tracker."""
    found = []
    for child in tree(pid)[1:]:
        try:
            same = Path(f"/proc/{child}/exe").readlink() == Path(f"/proc/{pid}/exe").readlink()
            if same and b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(child)
        except OSError:
            continue
    return found


def holder(lock: Path) -> int | None:
    """The process that has a file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == lock.resolve():
                return int(link.parts[2])
        except OSError:
            continue
    return None


def kill_in_training(runs: Path) -> int:
    """SIGKILL whoever trains a backbone below ``runs``, when it has a checkpoint: the step that this one holds."""
    while True:
        for checkpoint in sorted(runs.glob("*/*/seed*/pretrain/checkpoint-*-*.pt")):
            work = checkpoint.parent.relative_to(runs)
            pid = holder(runs / ".locks" / ("--".join(work.parts) + ".lock"))
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                for note in runs.glob(".locks/*--pretrain.progress"):
                    note.unlink()  # its last one, which may be from before the checkpoint
                return int(sorted(checkpoint.parent.glob("checkpoint-*-*.pt"))[-1].name.split("-")[1])
        time.sleep(0.02)


def steps_noted(runs: Path) -> set[int]:
    """How many steps the trainings under way have made, as they note beside their locks."""
    found = set()
    for note in runs.glob(".locks/*--pretrain.progress"):
        try:
            stage, done, _ = json.loads(note.read_text())
        except (OSError, ValueError):
            continue  # being written, or removed
        found |= {done} if stage.startswith("pretrain") else set()
    return found
