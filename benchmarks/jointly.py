"""Execution by all processes of a launcher: pre-training and fine-tuning together, all other cells dealt out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.environment import cores
from benchmarks.errors import RequestError
from benchmarks.execute import Execution, Threads, Work
from benchmarks.launch import Team
from benchmarks.plan import Cell, Pretraining
from benchmarks.progress import Silent
from leaderboard.records import Record

if TYPE_CHECKING:
    from downstream.task import Job, Outcome


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
            Threads(share, share), team.world, sharded, execution.fast, execution.compiled, team=team,
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
    """Each process takes the next piece that none has, for itself, until all are taken; the records of those taken."""
    team.part()
    waiting: deque[Work] = deque()
    records: dict[Path, Record] = {}
    while (number := team.next()) < len(pieces):
        execution.settle(pieces[number], execution.attempt(pieces[number]), waiting, records)
    while waiting:  # cells that another command was at work on
        piece = waiting.popleft()
        execution.settle(piece, execution.attempt(piece), waiting, records)
    team.finish()
    return records
