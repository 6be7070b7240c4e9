"""Notes in a runs folder of what is under way, for every terminal and machine that sees the folder. Light.

``.requests/<name>.json`` is a request with its cells; it is locked as long as its command runs.
``.locks/<work>.progress`` lies beside the lock of a piece of work and says how far it is.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.locks import beside, clear, held, is_held
from benchmarks.plan import Cell

REQUESTS = ".requests"
KEPT = 20  # requests
NOTED_EVERY = 1.0  # seconds between two notes of a piece of work


@dataclass(frozen=True)
class Note:
    """How far a piece of work is: ``done`` of ``total`` units of ``stage``."""

    stage: str
    done: int
    total: int


def noting(runs: Path, work: Path, report: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """``report``, which also leaves a note on ``work``, a folder relative to ``runs``, at most one a second."""
    path, last = beside(runs, work), 0.0

    def noted(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= NOTED_EVERY:
            last = now
            with suppress(OSError):  # a note is no reason to fail
                path.write_text(json.dumps([stage, done, total]))
        report(stage, done, total)

    return noted


def progress(runs: Path, work: Path) -> Note | None:
    """The last note on a piece of work; None where there is none, or half of one."""
    try:
        stage, done, total = json.loads(beside(runs, work).read_text())
        return Note(str(stage), int(done), int(total))
    except (OSError, ValueError, TypeError):
        return None


def _changed(path: Path) -> int | None:
    """When a file was written, by its own file system's clock; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


@contextmanager
def announced(runs: Path, cells: Sequence[Cell], finished: int, words: str) -> Iterator[None]:
    """Note that ``cells`` are being computed within the block, beside ``finished`` ones of the same request."""
    folder = runs / REQUESTS
    folder.mkdir(exist_ok=True)
    for old in sorted(folder.glob("*.json"))[: -KEPT + 1]:
        with suppress(OSError):
            old.unlink()
    clear(runs, Path(REQUESTS))
    name = f"{time.strftime('%Y%m%dT%H%M%S')}-{platform.node()}-{os.getpid()}"
    rows = [
        {"cell": str(cell.folder), "backbone": str(cell.pretraining.folder / "pretrain"), "name": cell.name,
         "before": _changed(runs / cell.folder / "result.json")}
        for cell in cells
    ]
    text = json.dumps({"command": words, "started": time.time(), "finished": finished, "cells": rows})
    with held(runs, Path(REQUESTS) / name, wait=True):
        (folder / f"{name}.json").write_text(text)
        yield


@dataclass(frozen=True)
class State:
    """A request and how far it is. Cells are named; under way are also backbones in training.

    Attributes:
        alive: its command runs.
        finished: cells with a number, those from before included.
        failed: failed and skipped cells, with the reason.
    """

    command: str
    started: float
    alive: bool
    finished: int
    failed: dict[str, str]
    under_way: dict[str, Note | None]
    waiting: int

    @property
    def total(self) -> int:
        return self.finished + len(self.failed) + self.waiting + len(
            [name for name in self.under_way if not name.startswith(TRAINING)])


TRAINING = "training for "


def states(runs: Path) -> list[State]:
    """The requests whose commands run, oldest first; where none does, the last one."""
    found = [(path, is_held(runs, Path(REQUESTS) / path.stem)) for path in sorted((runs / REQUESTS).glob("*.json"))]
    running = [(path, alive) for path, alive in found if alive] or found[-1:]
    return [state for path, alive in running if (state := _state(runs, path, alive)) is not None]


def _state(runs: Path, path: Path, alive: bool) -> State | None:
    try:
        told = json.loads(path.read_text())
        rows, finished = told["cells"], int(told["finished"])
        failed: dict[str, str] = {}
        under_way: dict[str, Note | None] = {}
        waiting, training = 0, {}
        for row in rows:
            result, work = runs / row["cell"] / "result.json", Path(row["cell"])
            if _changed(result) not in (None, row["before"]):
                status, reason = _outcome(result)
                if status == "ok":
                    finished += 1
                else:
                    failed[row["name"]] = f"{status}: {reason}"
            elif is_held(runs, work):
                under_way[row["name"]] = progress(runs, work)
            else:
                waiting += 1
                training.setdefault(row["backbone"], []).append(row["name"])
        for backbone, names in training.items():
            if is_held(runs, Path(backbone)):
                under_way[f"{TRAINING}{names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")] = (
                    progress(runs, Path(backbone)))
        return State(str(told["command"]), float(told["started"]), alive, finished, failed, under_way, waiting)
    except (OSError, ValueError, KeyError, TypeError):  # being written, or removed
        return None


def _outcome(path: Path) -> tuple[str, str]:
    try:
        record: Any = json.loads(path.read_text())
        return str(record["status"]), str(record.get("reason"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return "invalid", str(error)
