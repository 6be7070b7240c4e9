"""``bench run`` and ``bench sweep``: plan, train what is missing, score it, print the table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.errors import EXIT_FAILED, RequestError
from benchmarks.options import (
    Budget,
    CfgOptions,
    Compile,
    DataRoot,
    Device,
    DryRun,
    Executor,
    Fast,
    Jobs,
    Launcher,
    Objectives,
    Overwrite,
    Protocol,
    Runs,
    Seed,
    Seeds,
    Sharded,
    Store,
    Suite,
    TableFormat,
    Tasks,
    check_writable,
    chosen_seeds,
    names,
)

if TYPE_CHECKING:
    from benchmarks import scheduling
    from benchmarks.execute import Execution
    from benchmarks.jointly import Jointly
    from benchmarks.launch import Team
    from benchmarks.plan import Cell
    from benchmarks.progress import Reporter


def run(
    objective: Objectives,
    tasks: Tasks = "all",
    suite: Suite = "embedded",
    protocol: Protocol = "",
    budget: Budget = "default",
    seeds: Seeds = None,
    seed: Seed = None,
    runs: Runs = Path("runs"),
    data_root: DataRoot = None,
    device: Device = "auto",
    jobs: Jobs = None,
    executor: Executor = "local",
    store: Store = "",
    launcher: Launcher = "none",
    sharded: Sharded = False,
    fast: Fast = False,
    compiled: Compile = False,
    cfg_options: CfgOptions = None,
    overwrite: Overwrite = "only-missing",
    dry_run: DryRun = False,
    output_format: TableFormat = "terminal",
) -> None:
    """Pre-train, score on the tasks, print the table.

    Each objective's backbone is trained once a seed and scored on every task; what is finished is kept.
    """
    from benchmarks.plan import Request, plan

    means = Means(device, jobs, executor, launcher, sharded=sharded, store=store, fast=fast, compiled=compiled)
    with means.joined() as means:
        wanted = chosen_seeds(seeds, seed)
        request = Request(names(objective), names(tasks), suite, names(protocol), budget, wanted, cfg_options or [])
        carry_out(plan(request), runs, data_root, means, overwrite, dry_run, output_format)


def sweep(
    objective: Objectives,
    vary: Annotated[
        list[str],
        typer.Option(help="key=value,value,…; may be repeated: objective.loss.type=smooth_l1,l1,mse,cosine."),
    ],
    tasks: Tasks = "classification",
    suite: Suite = "embedded",
    protocol: Protocol = "",
    budget: Budget = "default",
    seeds: Seeds = None,
    seed: Seed = None,
    runs: Runs = Path("runs"),
    data_root: DataRoot = None,
    device: Device = "auto",
    jobs: Jobs = None,
    executor: Executor = "local",
    store: Store = "",
    launcher: Launcher = "none",
    sharded: Sharded = False,
    fast: Fast = False,
    compiled: Compile = False,
    cfg_options: CfgOptions = None,
    overwrite: Overwrite = "only-missing",
    dry_run: DryRun = False,
    output_format: TableFormat = "terminal",
) -> None:
    """Run combinations of options: an ablation table."""
    from benchmarks import plan as planning

    means = Means(device, jobs, executor, launcher, sharded=sharded, store=store, fast=fast, compiled=compiled)
    with means.joined() as means:
        wanted = chosen_seeds(seeds, seed)
        request = planning.Request(
            names(objective), names(tasks), suite, names(protocol), budget, wanted, cfg_options or []
        )
        carry_out(planning.sweep(request, vary), runs, data_root, means, overwrite, dry_run, output_format)


@dataclass(frozen=True)
class Means:
    """What computes: device, and the processes that share the work; see ``benchmarks.options``."""

    device: str
    jobs: int | None
    executor: str = "local"
    launcher: str = "none"
    sharded: bool = False
    store: str = ""
    fast: bool = False
    compiled: bool = False
    team: Team | None = None

    @contextmanager
    def joined(self) -> Iterator[Means]:
        """With the launcher's processes; only the first one goes through the block, the others do what it tells them.

        Raises:
            RequestError: options that make no sense together, or no such launcher here.
        """
        from benchmarks.launch import check_alone, led

        check_alone(self.launcher, self.sharded, self.jobs, self.executor, self.store)
        with led(self.launcher, self.device) as team:
            yield replace(self, team=team)

    def at_work(
        self, execution: Execution, cells: Sequence[Cell]
    ) -> AbstractContextManager[scheduling.Executor | Jointly]:
        """What runs cells of the request ``cells``."""
        from benchmarks.execute import resolve_device

        kind, _, where = self.executor.partition(":")
        if self.team is not None:
            from benchmarks.jointly import Jointly

            return nullcontext(Jointly.of(execution, self.team, self.sharded))
        if kind == "ray":
            from benchmarks.ray_cluster import RayCluster

            return RayCluster(execution, where, self.jobs, cells)
        if kind == "slurm":
            from benchmarks.slurm_jobs import SlurmJobs

            return SlurmJobs(execution, where, self.jobs, cells)
        from benchmarks.crew import Crew, resolve_jobs, shared_gpu_memory

        return Crew(execution, resolve_jobs(self.jobs, resolve_device(self.device), shared_gpu_memory(cells)), cells)


def carry_out(
    cells: Sequence[Cell], runs: Path, data_root: Path | None, means: Means, overwrite: str, dry_run: bool,
    output_format: str,
) -> None:
    """Run what is missing of the cells and print their table; exit 1 where a cell has no number."""
    if computed(cells, runs, data_root, means, overwrite, dry_run) and not _print_table(cells, runs, output_format):
        raise typer.Exit(EXIT_FAILED)


def computed(
    cells: Sequence[Cell], runs: Path, data_root: Path | None, means: Means, overwrite: str, dry_run: bool = False
) -> bool:
    """Show the plan and run what is missing of the cells; False where ``dry_run`` asked for the plan only.

    Cells of other scenes have data of their own: they come one after the other, when all scenes are there.

    Raises:
        RequestError: cells of different scenes and one place for their data, among others.
    """
    from benchmarks.data import data_root as find_data
    from benchmarks.execute import Execution, check_device
    from benchmarks.notes import announced
    from benchmarks.progress import Reporter
    from benchmarks.store import check as check_store
    from benchmarks.store import fetch

    words = shlex.join(["bench", *sys.argv[1:]])
    check_device(means.device, means.executor == "local")
    suite = cells[0].pretraining.suite
    reporter = Reporter()
    if dry_run and (data_root is None or suite.rendered):  # no pictures yet: what is finished cannot be told
        _show_plan(reporter, cells, f"{len(cells)} cells")
        return False
    check_writable(runs)
    if means.store:
        check_store(means.store)
    if len(groups := _by_scenes(cells)) > 1:
        for option, given in (("--data-root", data_root is not None), ("--launcher", means.team is not None)):
            if given:
                raise RequestError(f"{option} with several suite.scenes: their data differ; ask for one at a time")
        with reporter:
            reporter.begin("data")
            for own in groups:
                find_data(own[0].pretraining.suite, None, runs, reporter.report)
        return all([computed(own, runs, None, means, overwrite, dry_run) for own in groups])
    with reporter:
        reporter.begin("data")
        root = find_data(suite, data_root, runs, reporter.report)
        if means.store:
            fetch(means.store, runs, {place for c in cells for place in (c.folder, c.pretraining.folder / "pretrain")})
        execution = Execution(
            runs, root, means.device, overwrite, reporter, store=means.store, fast=means.fast, compiled=means.compiled
        )
        missing, done = execution.split(cells)
        _show_plan(reporter, missing, f"{len(missing)} cells to run, {len(done)} finished already")
        if dry_run:
            return False
        if missing:
            with means.at_work(execution, cells) as crew, announced(runs, missing, len(done), words):
                crew.check(missing)
                crew.run(missing)
    return True


def _by_scenes(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each kind of scenes."""
    from benchmarks.plan import digest

    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(digest(cell.pretraining.suite.scenes), []).append(cell)
    return list(found.values())


def _show_plan(reporter: Reporter, missing: Sequence[Cell], total: str) -> None:
    backbones = {cell.pretraining.folder: cell.pretraining for cell in missing}
    for pretraining in backbones.values():
        mine = [cell for cell in missing if cell.pretraining.folder == pretraining.folder]
        scored = ", ".join(f"{cell.task.name}.{cell.protocol}" for cell in mine)
        reporter.say(f"plan: {pretraining.label} seed {pretraining.seed} ({pretraining.effort}) -> {scored}")
    reporter.say(f"plan: {len(backbones)} backbones, {total}")


def _print_table(cells: Sequence[Cell], runs: Path, output_format: str) -> bool:
    """Print the table of the request's cells; False where one of them has no number."""
    from benchmarks.commands.leaderboard import show
    from benchmarks.suite import declared_settings
    from leaderboard.records import read_records
    from leaderboard.table import build

    records, invalid = read_records([runs / cell.folder for cell in cells])
    suite = cells[0].pretraining.suite.name
    show(build(records, invalid, suite=suite, declared=declared_settings), output_format)
    return not invalid and len(records) == len(cells) and all(record.status == "ok" for record in records)
