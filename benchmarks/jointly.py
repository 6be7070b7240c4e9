"""Execution by all processes of a launcher: pre-training and fine-tuning together, all other cells dealt out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch.distributed import DistError

from benchmarks.environment import cores
from benchmarks.errors import RequestError
from benchmarks.execute import Execution, Threads, Work
from benchmarks.launch import Team
from benchmarks.locks import is_held
from benchmarks.plan import Cell, Pretraining
from benchmarks.progress import Silent
from leaderboard.records import Record

if TYPE_CHECKING:
    from downstream.task import Job, Outcome

TAKES = 5.0  # seconds, at most, from taking a piece to holding its lock, and from giving the lock back to saying so
LOOK_EVERY = 0.2  # seconds between looks at pieces that other processes took


def together(cell: Cell) -> bool:
    """Whether all processes score it: what trains everything on pictures. The rest takes one process each."""
    return cell.protocol == "finetune" and cell.task.data_parallel


@dataclass
class Jointly(Execution):
    """Process 0's execution of a launcher's processes."""

    team: Team = None  # type: ignore[assignment]

    @classmethod
    def of(cls, execution: Execution, team: Team, sharded: bool) -> Jointly:
        """The same execution by a team, whose processes share each machine's cores."""
        share = max(1, cores() // team.local_world)
        return cls(
            execution.runs, execution.root, execution.device, execution.overwrite, execution.reporter,
            Threads(share, share), processes=team.world, sharded=sharded, fast=execution.fast,
            compiled=execution.compiled, team=team,
        )

    def check(self, cells: Sequence[Cell]) -> None:
        for pretraining in {cell.pretraining.folder: cell.pretraining for cell in cells}.values():
            suite = pretraining.suite
            to_train = pretraining.recipe.trains and self.backbone(pretraining) is None
            if to_train and suite.batch_size % self.team.world:
                nearest = -(-suite.batch_size // self.team.world) * self.team.world
                raise RequestError(
                    f"suite.batch_size={suite.batch_size} does not divide among {self.team.world} processes; start "
                    f"another number of them, or set --cfg-options suite.batch_size={nearest}"
                )
        super().check(cells)

    def run(self, cells: Sequence[Cell]) -> list[Record]:
        self.team.tell(replace(self._alone(), reporter=None, processes=self.processes, sharded=self.sharded))
        waiting, records, alone = self.queue(cells), {}, []
        while waiting:
            piece = waiting.popleft()
            if piece.method == "score" and not together(piece.cells[0]):
                alone.append(piece)
            else:
                self.settle(piece, self.attempt(piece), waiting, records)
        self.team.tell(("deal", tuple(alone)))
        records |= deal(self.team, self._alone(), alone)
        for cell in cells:
            if cell.folder not in records:  # another process scored it
                records[cell.folder] = self.kept(cell)
        return [records[cell.folder] for cell in cells]

    def _alone(self) -> Execution:
        """The same for a process that works for itself."""
        return Execution(
            self.runs, self.root, self.device, self.overwrite, self.reporter, self.threads, fast=self.fast,
            compiled=self.compiled,
        )

    def make_backbone(self, pretraining: Pretraining, folder: Path) -> None:
        self.team.tell(("make_backbone", (pretraining, folder)))
        self.team.together(lambda: super(Jointly, self).make_backbone(pretraining, folder))

    def evaluate(self, job: Job) -> Outcome:
        self.team.tell(("evaluate", (replace(job, progress=_unheard),)))
        return self.team.together(lambda: super(Jointly, self).evaluate(job))


def follow(team: Team) -> None:
    """What the other processes do: what process 0 tells them, until it has nothing more."""
    bare: Execution | None = team.hear()
    if bare is None:
        return
    execution = replace(bare, reporter=Silent())
    while (told := team.hear()) is not None:
        method, arguments = told
        if method == "deal":
            deal(team, replace(execution, processes=1, sharded=False), arguments)
            return
        try:
            team.together(partial(getattr(execution, method), *arguments))
        except RequestError:
            raise
        except Exception:
            continue  # it failed in all processes alike: process 0 says so


def _unheard(stage: str, done: int, total: int) -> None:
    """The progress of a process that has nobody to tell."""


def deal(team: Team, execution: Execution, pieces: Sequence[Work]) -> dict[Path, Record]:
    """Each process takes the next piece that none has, for itself, until all are taken; the records of those taken.

    Process 0 then looks after what was taken and not finished: a process that ended in the middle of a piece lets go of
    its lock, and the piece is done here.
    """
    team.part()
    records: dict[Path, Record] = {}
    try:
        _take(team, execution, pieces, records)
        if team.rank == 0:
            _look_after(team, execution, pieces, records)
        missing = team.finish()
    except DistError:
        raise SystemExit(1) from None  # process 0 has gone, and said why
    if missing and team.rank == 0:
        gone = ", ".join(map(str, missing))
        line = f"process {gone} of {team.world} did not come to its end; nothing of its work is missing"
        execution.reporter.say(line)
    return records


def _take(team: Team, execution: Execution, pieces: Sequence[Work], records: dict[Path, Record]) -> None:
    busy: list[int] = []  # with cells that another command was at work on
    while (number := team.next()) < len(pieces):
        if not _done(team, execution, pieces, number, records):
            busy.append(number)
    for number in busy:
        _done(team, execution, pieces, number, records, wait=True)


def _look_after(team: Team, execution: Execution, pieces: Sequence[Work], records: dict[Path, Record]) -> None:
    """Wait for the pieces that others took; do those whose locks nobody holds for :data:`TAKES` seconds."""
    free_since: dict[int, float] = {}
    while left := [number for number in range(len(pieces)) if not team.noted(_scored(number))]:
        for number in left:
            if is_held(execution.runs, pieces[number].place):
                free_since.pop(number, None)
            elif time.monotonic() - free_since.setdefault(number, time.monotonic()) > TAKES:
                execution.reporter.say(f"{pieces[number].name}: the process that took it has ended; it is done here")
                _done(team, execution, pieces, number, records, wait=True)
                break  # the others may have been noted meanwhile
        time.sleep(LOOK_EVERY)


def _done(
    team: Team, execution: Execution, pieces: Sequence[Work], number: int, records: dict[Path, Record],
    wait: bool = False,
) -> bool:
    """Do a piece and note that; False where another process is at work on it and this one should not wait."""
    waiting: deque[Work] = deque()
    piece = replace(pieces[number], wait=wait)
    execution.settle(piece, execution.attempt(piece), waiting, records)
    if not waiting:
        team.note(_scored(number))
    return not waiting


def _scored(number: int) -> str:
    return f"scored {number}"
