"""``bench reproduce``: a record's cell again, from the record alone (a published table: ``reproduce_paper``).

The plan is built from the record's ``config`` and not from the recipes and suites of today, so that a change of a
default in between does not change what is run; where today's code would plan something else, that is said.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import suite as suite_registry
from benchmarks.errors import RequestError, unknown
from benchmarks.plan import Cell, Pretraining
from downstream.task import TASKS
from leaderboard.bundle import BundleError, records_of, row_folder
from leaderboard.published import fixed_tolerance
from leaderboard.records import InvalidRecord, Record, RecordError, read_records
from leaderboard.statistics import item_interval, prediction_interval
from objectives import recipe as recipe_registry
from objectives.recipe import Crop, ObjectiveError, Optimiser

Say = Callable[[str], None]
IDENTICAL, WITHIN, DIFFERS, FAILED = "identical", "within the interval", "differs", "failed"

# --- a record again ---------------------------------------------------------------------------------------------------


def cell_of(record: Record) -> Cell:
    """The cell that made ``record``, from its configuration.

    Raises:
        RequestError: the objective, suite or task is not known here, or the configuration is not one of ours.
    """
    suite = suite_registry.get(record.suite)
    if record.task not in TASKS:
        raise unknown("task", record.task, TASKS)
    if record.weights is not None:
        raise RequestError(f"{record.objective}: its weights came from elsewhere, so there is nothing to train again; "
                           f"score them again by `{record.command}`")
    try:
        recipe = recipe_registry.get(record.objective)
    except ObjectiveError as error:
        raise RequestError(str(error)) from error
    try:
        config = record.config
        made, data = config["pretraining"], dict(config["data"])
        task_settings = {**suite.settings.get(record.task, {}), record.protocol: dict(config["settings"])}
        scenes = record.variant.get("suite.scenes")
        suite = replace(
            suite, model=made["model"], kwargs=dict(made["kwargs"]), input_size=made["input_size"],
            batch_size=made["batch_size"], budgets={**suite.budgets, record.budget: made["images_seen"]},
            fixed_crop=made["fixed_crop"], decoder=made["decoder"],
            settings={**suite.settings, record.task: task_settings}, overrides=(),
            data={**suite.data, record.task: data}, **({"scenes": scenes} if scenes else {}),
        )
        pretraining = Pretraining(
            recipe=replace(recipe, trains=made["trains"]), suite=suite, budget=record.budget,
            variant=dict(record.variant), slots={slot: dict(part) for slot, part in made["slots"].items()},
            optimiser=Optimiser(**_tuples(made["optimiser"])), crop=Crop(**_tuples(made["crop"])), seed=record.seed,
        )
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, ObjectiveError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        where = record.path or "record"
        raise RequestError(f"{where}: its configuration cannot be planned again ({reason})") from error
    for name, value in data.items():
        if isinstance(value, str) and (Path(value).is_absolute() or ".." in Path(value).parts):
            raise RequestError(f"{record.path or 'record'}: its data.{name}={value!r} leads out of the data folder")
    return Cell(pretraining, TASKS[record.task], record.protocol)


def _tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What two environment blocks of records disagree in; one line each, empty where they agree."""
    found = []
    for key in ("python", "system", "git_commit", "dirty"):
        if theirs.get(key) != ours.get(key):
            found.append(f"{key}: {_short(theirs.get(key))} then, {_short(ours.get(key))} now")
    for key in ("packages", "hardware"):
        then, now = (block.get(key) if isinstance(block.get(key), Mapping) else {} for block in (theirs, ours))
        for name in sorted({*then, *now}):
            if then.get(name) != now.get(name):
                found.append(f"{name}: {_short(then.get(name))} then, {_short(now.get(name))} now")
    return found


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def changed_settings(record: Record, cell: Cell) -> list[str]:
    """What today's plan of the cell says that the record does not (versions of task and objective, settings)."""
    return [f"{place}: {_short(then)} then, {_short(now)} now"
            for place, then, now in _changes(record.config, json.loads(json.dumps(cell.config(), default=str)))]


def _changes(then: Any, now: Any, place: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(then, dict) and isinstance(now, dict):
        keys = sorted({*then, *now})
        return [c for key in keys for c in _changes(then.get(key), now.get(key), f"{place}.{key}".lstrip("."))]
    return [] if then == now else [(place or "configuration", then, now)]


@dataclass(frozen=True)
class Verdict:
    """A metric then and now, in its unit. ``low`` and ``high`` bound what counts as the same; ``band`` says why."""

    metric: str
    unit: str
    theirs: float
    ours: float
    low: float
    high: float
    band: str

    @property
    def word(self) -> str:
        if self.theirs == self.ours:
            return IDENTICAL
        return WITHIN if self.low <= self.ours <= self.high else DIFFERS

    @property
    def line(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        return (
            f"{self.metric}: theirs {self.theirs:.6g}{unit}, ours {self.ours:.6g}{unit}, difference "
            f"{self.ours - self.theirs:+.6g}; {self.low:.6g} … {self.high:.6g} is {self.band}: {self.word}"
        )


def verdict(theirs: Record, ours: Record, siblings: Sequence[Record] = ()) -> Verdict:
    """The main metric of a record and of its reproduction.

    The interval is theirs: where the row has several seeds, the prediction interval of one more run
    (``statistics.prediction_interval``; that of their mean would be too narrow for a single run), else the sampling
    interval over their test items, else the fixed band of the published numbers.

    Args:
        theirs, ours: records with status ok and the same main metric.
        siblings: records of the same cell with other seeds (``theirs`` may be among them).

    Raises:
        RequestError: one of the records has no main metric, or they have different ones.
    """
    if theirs.main_metric is None or ours.main_metric is None or theirs.main_metric[0] != ours.main_metric[0]:
        raise RequestError(f"{theirs.path or 'record'}: no main metric that both records have")
    name, metric = theirs.main_metric
    value, unit = metric["value"], metric["unit"]
    by_seed = {r.seed: r.metrics[name]["value"] for r in (*siblings, theirs) if name in r.metrics}
    interval = prediction_interval(list(by_seed.values()))
    band = f"the 95 % prediction interval of one more run, from {len(by_seed)} seeds"
    if interval is not None:  # of many seeds one may lie outside: a repetition of that one is no further off than it is
        interval = min(interval[0], value), max(interval[1], value)
    items = (theirs.items or {}).get(name)
    if interval is None and items and abs(sum(items) / len(items) - value) <= 1e-6 * max(1.0, abs(value)):
        interval, band = item_interval(items), f"the 95 % sampling interval over {len(items)} test items"
    if interval is None:
        half = fixed_tolerance(value, unit)
        interval, band = (value - half, value + half), "a fixed band (one seed, no scores of items)"
    return Verdict(name, unit, value, ours.main_metric[1]["value"], interval[0], interval[1], band)


def reproduce(
    what: str, output: Path, runs: Path, committed: Path, data_root: Path | None, device: str, dry_run: bool, say: Say
) -> list[str]:
    """Run every record that ``what`` names again below ``output`` and say how the numbers compare.

    Args:
        what: path of a ``result.json``, a folder of records, or ``suite/objective/seed0[/task.protocol]``.
        output: folder of the new runs; must not be the old ones'.
        runs, committed: where rows are looked up; rendered data are taken from ``runs``, too.
        data_root: folder of the data of suites that do not render theirs.
        device: as for ``bench run``.
        dry_run: only say what would run and what differs.
        say: takes each line of the report.

    Returns:
        A verdict a record: identical, within the interval, differs, failed; none with ``dry_run``.

    Raises:
        RequestError: no such record or paper, or it cannot be run here.
    """
    try:
        folder = row_folder(what, [runs, committed])
        records = records_of(folder)
    except BundleError as error:
        raise RequestError(f"{error}; papers: bench list tables") from error
    except InvalidRecord as error:
        raise RequestError(str(error)) from error
    if output.resolve() in (runs.resolve(), committed.resolve(), folder.resolve(), *folder.resolve().parents):
        raise RequestError(f"--output {output}: holds the old records; name another folder")
    cells = [(record, cell_of(record)) for record in records if record.status == "ok"]
    if not cells:
        raise RequestError(f"{folder}: no record with a number to compare with")
    verdicts: list[str] = []
    request = secrets.token_hex(8)  # a backbone of this call serves all tasks, an earlier call's serves none
    for record, cell in cells:
        say(f"{cell.name} ({record.path})")
        for line in differences(record.environment, _environment(device)):
            say(f"  environment: {line}")
        for line in changed_settings(record, cell):
            say(f"  settings: {line}")
        if dry_run:
            seconds = sum(record.cost[key] or 0.0 for key in ("pretrain_seconds", "seconds"))
            say(f"  cost then: {record.cost['pretrain_images'] or 0:,} pictures, {seconds:.0f} s on "
                f"{record.cost['device']}")
            say(f"  command: {record.command}")
            continue
        verdicts.append(_again(record, cell, output, runs, data_root, device, request, say))
        say(f"  verdict: {verdicts[-1]}")
    return verdicts


def _environment(device: str) -> dict[str, Any]:
    """What ``environment.environment`` says, without loading torch for a processor's name."""
    from benchmarks.environment import environment

    if device.startswith("cpu"):
        return environment("cpu")
    from benchmarks.execute import resolve_device

    return environment(resolve_device(device))


def _again(
    record: Record, cell: Cell, output: Path, runs: Path, data_root: Path | None, device: str, request: str, say: Say
) -> str:
    from benchmarks.data import data_root as find_data
    from benchmarks.execute import Execution, Threads
    from benchmarks.progress import Reporter

    with Reporter() as reporter:
        reporter.begin("data")
        root = find_data(cell.pretraining.suite, data_root, runs, reporter.report)
        fast, compiled = arithmetic_of(record)
        execution = Execution(
            output, root, device, "always", reporter, Threads.of(record), request=request, fast=fast, compiled=compiled
        )
        now, then = execution.task_fingerprint(cell), record.fingerprints["data"]
        if now != then:
            say(f"  data: fingerprint {_short(then)[:12]} then, {now[:12]} now; the test data are not the same")
        execution.check([cell])
        (ours,) = execution.run([cell])
    for key, word in (("backbone", "weights of the backbone"), ("data", "data")):
        if ours.fingerprints.get(key) == record.fingerprints.get(key):
            say(f"  {word}: the same, bit by bit")
    if ours.status != "ok":
        say(f"  {ours.status}: {ours.reason}")
        return FAILED
    found = verdict(record, ours, _siblings(record))
    say(f"  {found.line}")
    for name in sorted(set(record.metrics) & set(ours.metrics) - {found.metric}):
        a, b = record.metrics[name]["value"], ours.metrics[name]["value"]
        say(f"  {name}: theirs {a:.6g}, ours {b:.6g}, difference {b - a:+.6g}")
    return found.word


def arithmetic_of(record: Record) -> tuple[bool, bool]:
    """Whether fused kernels and a compiler computed a record, as far as it says."""
    said = record.environment.get("arithmetic")
    fused, compiled = (isinstance(said, dict) and said.get(name) is True for name in ("fused", "compiled"))
    return fused, compiled


def _siblings(record: Record) -> list[Record]:
    """The record's cell with all seeds, from the folders beside it."""
    if record.path is None or len(record.path.parts) < 4:
        return []
    part = record.path.parent.name
    folders = [folder for folder in sorted(record.path.parents[2].glob(f"seed*/{part}")) if folder.is_dir()]
    try:
        found, _ = read_records(folders)
    except RecordError:
        return []
    return [r for r in found if r.status == "ok" and r.cell._replace(seed=0) == record.cell._replace(seed=0)]
