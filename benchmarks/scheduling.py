"""The order of work, whoever does it: backbones first, then their cells; what fails costs its own cells only."""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks import notes
from benchmarks.errors import RequestError
from benchmarks.execute import Execution, Work
from benchmarks.plan import Cell
from benchmarks.progress import Kept
from leaderboard.records import Record

RETRIES = 3  # of a piece of work whose worker died; it goes on from its last checkpoint
LOOK_EVERY = 1.0  # seconds between looks at what other machines do
AGAIN_AFTER = 300.0  # seconds until a piece that the cluster refused is offered again, unless another one ends before
SEEN_WITHIN = 30.0  # seconds in which a file must be seen on another machine: network file systems cache folders


class WorkerLost(RuntimeError):
    """A worker ended in the middle of its work."""


class Refused(RuntimeError):
    """The cluster does not take a piece of work now; the message is its reason in one line."""


class Executor(ABC):
    """Runs the cells of a request; a context manager. Pieces of work are begun as they become ready."""

    execution: Execution

    def check(self, cells: Sequence[Cell]) -> None:
        """See :meth:`Execution.check`."""
        self.execution.check(cells)

    def run(self, cells: Sequence[Cell]) -> list[Record]:
        """See :meth:`Execution.run`."""
        waiting, records = self.execution.queue(cells), {}
        while waiting or self.busy():
            while waiting and self.takes(waiting[0]):
                self.begin(waiting.popleft())
            for piece, result in self.answers():
                self.execution.reporter.finish(piece.name)
                self.execution.settle(piece, result, waiting, records)
        return [records[cell.folder] for cell in cells]

    @abstractmethod
    def busy(self) -> bool:
        """Whether a piece of work is under way."""

    @abstractmethod
    def takes(self, piece: Work) -> bool:
        """Whether ``piece`` can begin now; the only one always can."""

    @abstractmethod
    def begin(self, piece: Work) -> None:
        """Begin it."""

    @abstractmethod
    def answers(self) -> Iterable[tuple[Work, Any]]:
        """What came of pieces of work, as of :meth:`Execution.attempt`; waits a while for the first one."""


class Remote(Executor):
    """Workers on machines that share the runs folder. Their progress is read from there.

    Args:
        at_most: pieces under way; None: as many as are ready, the cluster queues them itself.
    """

    def __init__(self, execution: Execution, at_most: int | None) -> None:
        self.execution, self.at_most = execution, at_most
        execution.workers = at_most or 1  # with no limit nothing waits, so that there is no order
        self.under_way: dict[Any, Work] = {}  # by the handle that the cluster gives
        self.lost: Counter[str] = Counter()  # how often the worker of a piece died
        self.put_off: list[Work] = []  # what the cluster refused
        self.again_at = 0.0  # when it is offered again
        self.mark = execution.runs / f".shared-{secrets.token_hex(4)}"  # what workers must find

    def __enter__(self) -> Remote:
        self.mark.touch()
        self.bare = replace(
            self.execution, runs=self.execution.runs.resolve(), root=self.execution.root.resolve(), reporter=None,
            _pictures={},
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.cancel()
        with suppress(OSError):
            self.mark.unlink()

    retries = 0  # of a piece whose worker died, where the cluster does not try again itself

    @abstractmethod
    def submit(self, piece: Work) -> Any:
        """Hand ``piece`` to the cluster; a handle.

        Raises:
            Refused: the cluster does not take it now.
        """

    @abstractmethod
    def done(self) -> list[Any]:
        """Handles of what is finished; waits up to :data:`LOOK_EVERY` seconds for the first one."""

    @abstractmethod
    def result(self, handle: Any) -> tuple[Any, list[str]]:
        """What :func:`work` returned.

        Raises:
            WorkerLost: nothing will come of it.
        """

    @abstractmethod
    def cancel(self) -> None:
        """End what is under way; a training saves its step first."""

    def busy(self) -> bool:
        return bool(self.under_way or self.put_off)

    def takes(self, piece: Work) -> bool:
        return not self.put_off and (self.at_most is None or len(self.under_way) < self.at_most)

    def begin(self, piece: Work) -> None:
        try:
            handle = self.submit(piece)
        except Refused as error:
            if not self.under_way:
                raise RequestError(f"--executor: the cluster refuses {piece.name}: {error}; finished cells are kept: "
                                   "mend that, then the same command goes on") from error
            self.execution.reporter.say(f"{piece.name}: refused by the cluster, to be offered again: {error}")
            self.put_off.append(piece)
            self.again_at = time.monotonic() + AGAIN_AFTER
        else:
            self.under_way[handle] = piece

    def answers(self) -> Iterable[tuple[Work, Any]]:
        done = self.done()
        if not done:
            self._show()
        for handle in done:
            piece = self.under_way.pop(handle)
            try:
                result, lines = self.result(handle)
            except WorkerLost as error:
                self.lost[piece.name] += 1
                if self.lost[piece.name] <= self.retries:
                    self.execution.reporter.say(f"{piece.name}: its worker died; another one goes on")
                    self.begin(piece)
                    continue
                result, lines = error, []
            for line in lines:
                self.execution.reporter.say(line)
            yield piece, result
        if self.put_off and (done or time.monotonic() >= self.again_at):
            pieces, self.put_off = self.put_off, []
            for piece in pieces:
                self.begin(piece)

    def _show(self) -> None:
        for piece in self.under_way.values():
            if (note := notes.progress(self.execution.runs, piece.place)) is not None:
                self.execution.reporter.show(piece.name, note.stage, note.done, note.total)


def work(execution: Execution, piece: Work, mark: Path) -> tuple[Any, list[str]]:
    """In a worker: do a piece of work; what came of it, and the lines that were said."""
    until = time.monotonic() + SEEN_WITHIN
    while not mark.exists() and not execution.store:
        if time.monotonic() > until:
            import platform

            return RequestError(
                f"--runs {execution.runs}: machine {platform.node()} does not see this folder; name one that all share"
            ), []
        time.sleep(0.5)
    reporter = Kept()
    return replace(execution, reporter=reporter).attempt(piece), reporter.lines
