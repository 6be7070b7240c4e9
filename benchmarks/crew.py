"""Worker processes: independent backbones and cells side by side, the cores divided among them.

A task keeps one core busy and hardly a second one (pictures are decoded, boxes matched, metrics counted), so that two
processes of one thread get through twice the cells. How many threads a piece of work gets follows from the request
and the machine only, never from what is left to do: sums in another order are other bits.
"""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from benchmarks import signals
from benchmarks.environment import available_memory, cores
from benchmarks.errors import RequestError
from benchmarks.execute import Execution, Threads, Work
from benchmarks.plan import Cell
from benchmarks.progress import Reporter
from benchmarks.scheduling import Executor, WorkerLost
from leaderboard.records import Record
from objectives.recipe import ObjectiveError

MEMORY = 3 * 2**30  # bytes of a worker on the embedded suite, with room to spare
REPORT_EVERY = 0.2  # seconds between two reports of a worker
LEAVE_WITHIN = 60.0  # seconds that an interrupted worker has for its last step and checkpoint


def resolve_jobs(jobs: int | None, device: str, gpu_memory: int | None = None) -> int:
    """How many processes: as asked; else one a core as far as memory goes, on a GPU that of the device, too.

    Args:
        gpu_memory: bytes of the GPU that a process takes; None: all of it, however much that is. A small network keeps
            a GPU as little busy as its processor can launch kernels; several processes fill it.
    """
    if jobs is not None:
        return jobs
    rooms = [cores(), available_memory() // MEMORY]
    if device.startswith("cuda"):
        rooms.append(free_gpu_memory(device) // gpu_memory if gpu_memory else 1)
    return max(1, min(rooms))


def shared_gpu_memory(cells: Sequence[Cell]) -> int | None:
    """What a process at work on one of the cells takes of a GPU; None where a suite does not know or is changed."""
    own = {cell.pretraining.suite.gpu_memory for cell in cells}
    changed = any(option.startswith("suite.") for cell in cells for option in cell.pretraining.variant)
    return None if changed or None in own else max(own, default=None)


def free_gpu_memory(device: str) -> int:
    """Bytes, as a process of its own sees them: asking makes a context on the GPU, which stays as long as it does."""
    with ProcessPoolExecutor(1, get_context("spawn")) as other:
        return other.submit(_free_gpu_memory, device).result()


def _free_gpu_memory(device: str) -> int:
    import torch

    return torch.cuda.mem_get_info(torch.device(device))[0]


def divide(cells: Sequence[Cell], jobs: int, of: int | None = None) -> Threads:
    """Threads of a pre-training and of a cell: all cores for the only backbone of a request, else a share.

    Args:
        of: how many cores there are to share; None: this machine's.
    """
    trained = {cell.pretraining.folder for cell in cells if cell.pretraining.recipe.trains}

    def share(pieces: int) -> int:
        return max(1, (of or cores()) // max(1, min(jobs, pieces)))

    return Threads(pretraining=share(len(trained)), task=share(len(cells)))


@dataclass(frozen=True)
class _Done:
    """A worker's answer: what came of a piece of work, or of a check."""

    result: Any


@dataclass(frozen=True)
class _Progress:
    """A worker's progress bar."""

    cell: str
    stage: str
    done: int
    total: int

    def show(self, reporter: Reporter) -> None:
        reporter.show(self.cell, self.stage, self.done, self.total)


@dataclass(frozen=True)
class _Line:
    """A line that a worker says."""

    text: str

    def show(self, reporter: Reporter) -> None:
        reporter.say(self.text)


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
            self.pipe.send(_Progress(self.cell, stage, done, total))

    def say(self, line: str) -> None:
        self.pipe.send(_Line(line))


def _serve(pipe: Connection, execution: Execution) -> None:
    """A worker's life: take a piece of work, or cells to check, and send back what came of it."""
    os.setpgrp()  # Ctrl-C reaches the command only, which then ends its workers
    signals.leave_at_once()  # but for a piece of work, there is nothing to put in order
    warnings.filterwarnings("ignore")  # as the command itself does
    signals.leave_with_parent()  # no orphan goes on computing when the command was killed
    execution.reporter = Relay(pipe)  # type: ignore[assignment]
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):  # the command has left, or was told to
        while True:
            asked = pipe.recv()
            if isinstance(asked, Work):
                with signals.installed():
                    answer = execution.attempt(asked)
            else:
                answer = _check(execution, asked)
            pipe.send(_Done(answer))


def _check(execution: Execution, cells: Sequence[Cell]) -> Exception | None:
    try:
        execution.check(cells)
    except (RequestError, ObjectiveError) as error:
        return error
    return None


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    piece: Work | None = None


@dataclass
class Crew(Executor):
    """Runs cells in ``jobs`` processes; with one job, or one cell, in this process. A context manager.

    ``requested`` are all cells of the request, finished ones too: they decide the threads.
    """

    execution: Execution
    jobs: int
    requested: Sequence[Cell]
    _workers: list[_Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.execution.threads, self.execution.workers = divide(self.requested, self.jobs), self.jobs

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            if kind is not None:
                worker.process.terminate()  # a training saves its step first
            worker.pipe.close()
        for worker in self._workers:
            worker.process.join(LEAVE_WITHIN)
            if worker.process.is_alive():
                worker.process.kill()
        self._workers.clear()

    def check(self, cells: Sequence[Cell]) -> None:
        """See :meth:`Execution.check`; in the workers, so that this process stays small, each a part of the rows.

        Where there are fewer rows than workers some check the same one: what they import for it they need for its
        cells, and cores are idle now.
        """
        if self._alone(cells):
            self.execution.check(cells)
            return
        of_row: dict[str, list[Cell]] = {}
        for cell in cells:
            of_row.setdefault(cell.pretraining.label, []).append(cell)
        rows, jobs = list(of_row.values()), min(self.jobs, len(cells))
        parts = [rows[len(rows) * i // jobs : len(rows) * (i + 1) // jobs] for i in range(jobs)]
        asked = [(self._start(), [cell for row in part or rows[:1] for cell in row]) for part in parts]
        for worker, part in asked:
            self._send(worker, part)
        for worker, _ in asked:
            while (answer := self._listen(worker)) is None:
                pass
            if isinstance(answer.result, WorkerLost):
                raise RequestError(f"{answer.result}; nothing was begun yet") from answer.result
            if answer.result is not None:
                raise answer.result

    def run(self, cells: Sequence[Cell]) -> list[Record]:
        """See :meth:`Execution.run`."""
        return self.execution.run(cells) if self._alone(cells) else super().run(cells)

    def busy(self) -> bool:
        return any(worker.piece for worker in self._workers)

    def takes(self, piece: Work) -> bool:
        """Where a worker and cores are free; at least one piece is always under way."""
        under_way = [worker.piece.threads for worker in self._workers if worker.piece]
        return not under_way or (len(under_way) < self.jobs and sum(under_way) + piece.threads <= cores())

    def begin(self, piece: Work) -> None:
        for idle in [worker for worker in self._workers if worker.piece is None]:
            if not idle.process.is_alive():  # killed while it had nothing to do: nothing is lost
                idle.pipe.close()
                self._workers.remove(idle)
        worker = next((w for w in self._workers if w.piece is None), None) or self._start()
        worker.piece = piece
        self._send(worker, piece)

    def answers(self) -> Iterator[tuple[Work, Any]]:
        busy = {worker.pipe: worker for worker in self._workers if worker.piece}
        for pipe in connection.wait(list(busy)):
            worker = busy[pipe]  # type: ignore[index]
            answer = self._listen(worker)
            if answer is not None:
                piece, worker.piece = worker.piece, None
                assert piece is not None
                yield piece, answer.result

    def _alone(self, cells: Sequence[Cell]) -> bool:
        return min(self.jobs, len(cells)) <= 1

    @staticmethod
    def _send(worker: _Worker, what: Any) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # it has just died: :meth:`_listen` will notice
            worker.pipe.send(what)

    def _listen(self, worker: _Worker) -> _Done | None:
        """Hear one message of a worker: show it, or give what came of its work, :class:`WorkerLost` if it died."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):  # it died, in the middle of a message perhaps
            worker.process.join()
            worker.pipe.close()
            self._workers.remove(worker)
            code = worker.process.exitcode
            why = f"killed by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"
            return _Done(WorkerLost(f"the worker process was {why}; out of memory? run with --jobs 1"))
        if isinstance(message, _Done):
            return message
        message.show(self.execution.reporter)
        return None

    def _start(self) -> _Worker:
        context = get_context("spawn")  # a forked child of a threaded process may hang
        ours, theirs = context.Pipe()
        bare = replace(self.execution, reporter=None, _pictures={})  # type: ignore[arg-type]
        process = context.Process(target=_serve, args=(theirs, bare))
        with signals.ignored_by_children([signal.SIGINT]):  # until it has a group of its own
            process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        return self._workers[-1]
