"""Worker processes: independent backbones and cells side by side, the cores divided among them.

A task keeps one core busy and hardly a second one (pictures are decoded, boxes matched, metrics counted), so that two
processes of one thread get through twice the cells. How many threads a piece of work gets follows from the request
and the machine only, never from what is left to do: sums in another order are other bits.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.environment import available_memory, cores
from benchmarks.execute import Execution, Threads
from benchmarks.plan import Cell, Pretraining
from leaderboard.records import Record

MEMORY = 3 * 2**30  # bytes of a worker on the embedded suite, with room to spare
REPORT_EVERY = 0.2  # seconds between two reports of a worker


def resolve_jobs(jobs: int | None, device: str) -> int:
    """How many processes: as asked; else one on a GPU, on a CPU one a core as far as memory goes."""
    if jobs is not None:
        return jobs
    if device.startswith("cuda"):
        return 1
    return max(1, min(cores(), available_memory() // MEMORY))


def divide(cells: Sequence[Cell], jobs: int) -> Threads:
    """Threads of a pre-training and of a cell: all cores for the only backbone of a request, else a share."""
    trained = {cell.pretraining.folder for cell in cells if cell.pretraining.recipe.trains}

    def share(pieces: int) -> int:
        return max(1, cores() // max(1, min(jobs, pieces)))

    return Threads(pretraining=share(len(trained)), task=share(len(cells)))


class Relay:
    """A worker's reporter: sends what is to be shown to the process that shows it."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.cell, self.last = pipe, "", 0.0

    def begin(self, cell: str) -> None:
        self.cell, self.last = cell, 0.0

    def report(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self.last >= REPORT_EVERY or done == total:
            self.last = now
            self.pipe.send(("show", self.cell, stage, done, total))

    def say(self, line: str) -> None:
        self.pipe.send(("say", line))


def _serve(pipe: Connection, execution: Execution) -> None:
    """A worker's life: take ``(method, arguments, threads)``, send ``("done", result)`` or ``("error", error)``."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    execution.reporter = Relay(pipe)  # type: ignore[assignment]
    while True:
        try:
            method, arguments, threads = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send(("done", execution.work(method, arguments, threads)))
        except KeyboardInterrupt:
            return
        except Exception as error:
            pipe.send(("error", error))


def _leave_with_parent() -> None:
    """No orphan goes on computing when the command was killed."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


@dataclass(frozen=True)
class _Work:
    """A piece of work: a backbone to train, or a cell to score on one."""

    method: str
    arguments: tuple[Any, ...]
    threads: int
    cells: list[Cell]  # that have no number when it fails
    name: str


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    work: _Work | None = None


@dataclass
class Crew:
    """Runs cells in ``jobs`` processes; with one job, or one cell, in this process. A context manager.

    ``requested`` are all cells of the request, finished ones too: they decide the threads.
    """

    execution: Execution
    jobs: int
    requested: Sequence[Cell]
    _workers: list[_Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.execution.threads = divide(self.requested, self.jobs)

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.pipe.close()
        for worker in self._workers:
            if kind is not None:
                worker.process.terminate()
            worker.process.join(10)
            if worker.process.is_alive():
                worker.process.kill()
        self._workers.clear()

    def check(self, cells: Sequence[Cell]) -> None:
        """See :meth:`Execution.check`; in a worker, so that this process stays small."""
        if self._alone(cells):
            self.execution.check(cells)
            return
        worker = self._start()
        worker.pipe.send(("check", (list(cells),), cores()))
        while True:
            kind, *content = self._receive(worker)
            if kind == "done":
                return
            if kind == "error":
                raise content[0]
            self._show(kind, content)

    def run(self, cells: Sequence[Cell]) -> list[Record]:
        """See :meth:`Execution.run`."""
        return self.execution.run(cells) if self._alone(cells) else self._run(cells)

    def _alone(self, cells: Sequence[Cell]) -> bool:
        return min(self.jobs, len(cells)) <= 1

    # --- side by side -------------------------------------------------------------------------------------------------

    def _run(self, cells: Sequence[Cell]) -> list[Record]:
        threads = self.execution.threads
        backbones: dict[Path, list[Cell]] = {}
        for cell in cells:
            backbones.setdefault(cell.pretraining.folder, []).append(cell)
        waiting = deque(
            _Work("pretrain", (own[0].pretraining,), threads.pretraining, own, self._name(own[0].pretraining))
            for own in backbones.values()
        )
        records: list[Record] = []
        while waiting or any(worker.work for worker in self._workers):
            self._hand_out(waiting)
            busy = {worker.pipe: worker for worker in self._workers if worker.work}
            for pipe in connection.wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                kind, *content = self._receive(worker)
                if kind in ("done", "error"):
                    work, worker.work = worker.work, None
                    assert work is not None
                    self.execution.reporter.finish(work.name)
                    records += self._finished(work, kind, content[0], waiting)
                else:
                    self._show(kind, content)
        return records

    @staticmethod
    def _name(pretraining: Pretraining) -> str:
        return f"{pretraining.label} seed {pretraining.seed}"

    def _hand_out(self, waiting: deque[_Work]) -> None:
        """Give idle workers the next pieces that the free cores allow; at least one piece is always under way."""
        while waiting:
            under_way = [worker.work.threads for worker in self._workers if worker.work]
            if under_way and sum(under_way) + waiting[0].threads > cores():
                return
            if len(under_way) >= self.jobs:
                return
            worker = next((w for w in self._workers if w.work is None), None) or self._start()
            worker.work = waiting.popleft()
            worker.pipe.send((worker.work.method, worker.work.arguments, worker.work.threads))

    def _finished(self, work: _Work, kind: str, result: Any, waiting: deque[_Work]) -> list[Record]:
        if kind == "error":
            return self.execution.failed(work.cells, result)
        if work.method == "score":
            return [result]
        task = self.execution.threads.task
        waiting.extendleft(reversed([  # before the next backbone: what is trained is scored
            _Work("score", (cell, result), task, [cell], cell.name) for cell in work.cells
        ]))
        return []

    def _receive(self, worker: _Worker) -> tuple[Any, ...]:
        try:
            return worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            worker.process.join()
            self._workers.remove(worker)
            code = worker.process.exitcode
            why = f"killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
            return "error", RuntimeError(f"the worker process was {why}; out of memory? run with --jobs 1")

    def _show(self, kind: str, content: list[Any]) -> None:
        getattr(self.execution.reporter, kind)(*content)

    def _start(self) -> _Worker:
        context = get_context("spawn")  # a forked child of a threaded process may hang
        ours, theirs = context.Pipe()
        bare = replace(self.execution, reporter=None, _pictures={})  # type: ignore[arg-type]
        process = context.Process(target=_serve, args=(theirs, bare))
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]
