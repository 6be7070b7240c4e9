"""One model of the leaderboard: which rows, columns and ranks there are, and how every number is worded.

All formats show the strings made here, so no two of them can disagree; only JSON gives means and intervals unrounded.

* A **column** is a task under a protocol, with the main metric of the highest task version found. Numbers of a lower
  version are shown with a note and never ranked; a record with another main metric counts as invalid.
* A **row** is an objective with what differs from the suite's recipe, a backbone and a budget.
* A **cell** is the mean over the seeds that have a number; seeds that failed are named in a note.
* **Ranks** compare the means as shown (rounded), so that whoever reads the table can recompute them. The mean rank is
  taken over the columns where the row is ranked. A row that lacks a column in which two or more others compete says so
  ("2 of 5") and stands below the complete ones: leaving out a hard task must not help.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .records import Cell as CellKey
from .records import InvalidRecord, Record
from .statistics import METHOD, Summary, competition_ranks, mean_ranks, summarise

TASK_ORDER = ("classification", "segmentation", "pose", "depth", "tracking")
PROTOCOL_ORDER = ("frozen", "finetune", "knn", "attentive")
LEFT_HEADS = ("mean rank", "objective", "backbone", "budget")
RIGHT_HEADS = ("seeds", "pre-training", "device time", "device")

_DECIMALS = {"%": 2}  # by unit; everything else (metres, ratios) has three
_NOTHING = "–"
_LONGEST_LABEL = 120  # characters


class TableError(ValueError):
    """The table asked for cannot be made; one line."""


@dataclass(frozen=True)
class Column:
    """A task under a protocol. ``version`` is the highest found, the only one that is ranked."""

    task: str
    protocol: str
    metric: str
    unit: str
    higher_is_better: bool
    version: int

    @property
    def id(self) -> str:
        return f"{self.task}.{self.protocol}"

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"

    @property
    def heading(self) -> tuple[str, str, str]:
        """Three short lines: task, protocol and version, metric with unit and direction."""
        return self.task, f"{self.protocol} v{self.version}", self.measure

    @property
    def measure(self) -> str:
        """Metric, unit, direction; a dash where no record has a number."""
        if not self.metric:
            return _NOTHING
        return f"{self.metric} ({self.unit}) {self.arrow}" if self.unit else f"{self.metric} {self.arrow}"


@dataclass(frozen=True)
class Cell:
    """A row under a column. ``status`` is ok, failed, skipped, invalid or missing; ``summary`` is there when ok."""

    status: str
    summary: Summary | None = None
    mean_text: str = ""
    half_text: str = ""  # half width of the interval; empty for one seed
    comparable: bool = False  # has a number, and of the column's task version
    rank: int | None = None  # among the comparable ones, 1 is best
    notes: tuple[int, ...] = ()  # numbers of Table.notes, from 1

    @property
    def n(self) -> int:
        """Seeds that have a number."""
        return self.summary.n if self.summary else 0

    @property
    def text(self) -> str:
        if self.status != "ok":
            return _NOTHING if self.status == "missing" else self.status
        return f"{self.mean_text} ± {self.half_text}" if self.half_text else self.mean_text


@dataclass(frozen=True)
class RowCost:
    """What all records of a row cost together; None where no record says."""

    pretrain_images: int | None  # of one pre-training (the longest, should they differ)
    pretrain_seconds: float | None  # of one pre-training, mean over seeds
    device_hours: float | None  # pre-training of all seeds, and training and scoring of all their tasks
    device: str
    flops: float | None  # largest of the records
    peak_memory_bytes: int | None  # largest of the records


@dataclass(frozen=True)
class Row:
    objective: str  # with what differs from the recipe in brackets
    backbone: str
    budget: str
    cells: Mapping[str, Cell]  # column id -> cell, in the order of the columns
    mean_rank: float | None
    missing_ranks: int  # contested columns in which the row has no rank
    contested: int  # columns in which at least two rows are ranked
    cost: RowCost

    @property
    def left(self) -> tuple[str, ...]:
        """Texts under LEFT_HEADS."""
        return self.rank_text, self.objective, self.backbone, self.budget_text

    @property
    def right(self) -> tuple[str, ...]:
        """Texts under RIGHT_HEADS."""
        seconds, hours = self.cost.pretrain_seconds, self.cost.device_hours
        return (
            self.seeds_text,
            _NOTHING if seconds is None else f"{seconds:,.0f} s",
            _NOTHING if hours is None else f"{hours:.2f} h",
            self.cost.device or _NOTHING,
        )

    @property
    def rank_text(self) -> str:
        if self.mean_rank is None:
            return _NOTHING
        share = f" ({self.contested - self.missing_ranks} of {self.contested})" if self.missing_ranks else ""
        return f"{self.mean_rank:.2f}{share}"

    @property
    def budget_text(self) -> str:
        images = self.cost.pretrain_images
        return self.budget if images is None else f"{self.budget} ({images:,} images)"

    @property
    def seeds_text(self) -> str:
        counts = [cell.n for cell in self.cells.values() if cell.n] or [0]
        return str(min(counts)) if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}"


@dataclass(frozen=True)
class Table:
    suite: str | None  # None only when there are no records at all
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]  # numbered from 1: what failed, was skipped, is invalid or of a lower version; one line each

    @property
    def legend(self) -> str:
        """How to read the table, one line."""
        return (
            f"Suite {self.suite or _NOTHING}. Cells: {METHOD}. Best in bold, second underlined; "
            "↑ higher is better, ↓ lower is better. Mean rank: over the columns in which a row is ranked."
        )


class _RowKey(NamedTuple):
    objective: str
    variant: str  # canonical JSON
    backbone: str
    budget: str


class _Source(NamedTuple):
    """What a cell is made of."""

    records: list[Record]
    invalid: list[InvalidRecord]


def build(
    records: Iterable[Record],
    invalid: Iterable[InvalidRecord] = (),
    suite: str | None = None,
    rows_order: Sequence[str] | None = None,
) -> Table:
    """The table of one suite.

    Args:
        records: each cell once, as from ``read_records``.
        invalid: what could not be read; listed in the notes, and shown in its cell where it is known.
        suite: records of others are left out. May be None when all records are of one suite.
        rows_order: names of objectives, to sort the rows by instead of the mean rank; others follow.

    Raises:
        TableError: ``suite`` is None and there are records of several.
    """
    records, invalid = list(records), list(invalid)
    suite = suite or _only_suite(records, invalid)
    records = [record for record in records if record.suite == suite]
    invalid = [error for error in invalid if error.cell is None or error.cell.suite == suite]
    columns = _columns(records, invalid)
    sources: dict[_RowKey, dict[str, _Source]] = defaultdict(lambda: defaultdict(lambda: _Source([], [])))
    for record in records:
        key = record.cell
        sources[_row_key(key)][_column_id(key)].records.append(record)
    for error in invalid:
        if error.cell is not None:
            sources[_row_key(error.cell)][_column_id(error.cell)].invalid.append(error)

    drafts = {
        key: {column.id: _draft(by_column.get(column.id), column, _label(key)) for column in columns}
        for key, by_column in sources.items()
    }
    rows = _ranked(drafts, columns, {key: _cost(by_column.values()) for key, by_column in sources.items()})
    rows.sort(key=lambda pair: _place(pair[1], rows_order, pair[0].objective))

    notes: list[str] = []
    finished = [_numbered(row, [drafts[key][column.id][1] for column in columns], notes) for key, row in rows]
    notes += [_clean(f"invalid: {error}") for error in invalid if error.cell is None]
    return Table(suite, columns, tuple(finished), tuple(notes))


def _only_suite(records: list[Record], invalid: list[InvalidRecord]) -> str | None:
    suites = sorted({record.suite for record in records} | {e.cell.suite for e in invalid if e.cell is not None})
    if len(suites) > 1:
        raise TableError(f"records of several suites ({', '.join(suites)}): name one")
    return suites[0] if suites else None


def _row_key(cell: CellKey) -> _RowKey:
    return _RowKey(cell.objective, cell.variant, cell.backbone, cell.budget)


def _column_id(cell: CellKey) -> str:
    return f"{cell.task}.{cell.protocol}"


# --- columns ----------------------------------------------------------------------------------------------------------


def _columns(records: list[Record], invalid: list[InvalidRecord]) -> tuple[Column, ...]:
    """Columns in canonical order. A task without any number has a column too, so that its failures are seen."""
    with_number: dict[str, Counter[Column]] = defaultdict(Counter)
    without: dict[str, Column] = {}
    for record in records:
        column = _column(record)
        if record.status == "ok":
            with_number[column.id][column] += 1
        without[column.id] = Column(record.task, record.protocol, "", "", True, record.task_version)
    for cell in (error.cell for error in invalid if error.cell is not None):
        without.setdefault(_column_id(cell), Column(cell.task, cell.protocol, "", "", True, cell.task_version))
    # The highest version that has a number; among its records the metric that most of them have.
    best = {
        name: max(counts, key=lambda column: (column.version, counts[column], column.metric, column.unit))
        for name, counts in with_number.items()
    }
    return tuple(sorted((without | best).values(), key=_column_place))


def _column(record: Record) -> Column:
    """The column that the record alone would make."""
    if record.main_metric is None:
        return Column(record.task, record.protocol, "", "", True, record.task_version)
    name, metric = record.main_metric
    return Column(record.task, record.protocol, name, metric["unit"], metric["higher_is_better"], record.task_version)


def _column_place(column: Column) -> tuple[int, str, int, str]:
    return *_index(column.task, TASK_ORDER), *_index(column.protocol, PROTOCOL_ORDER)


def _index(name: str, order: Sequence[str]) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


# --- cells and rows ---------------------------------------------------------------------------------------------------


def _draft(source: _Source | None, column: Column, label: str) -> tuple[Cell, list[str]]:
    """The cell, not yet ranked, and its notes."""
    if source is None:
        return Cell("missing"), []
    where = f"{label}, {column.id}"
    good = [record for record in source.records if record.status == "ok" and _fits(record, column)]
    version = max((record.task_version for record in good), default=column.version)
    good = [record for record in good if record.task_version == version]
    reasons: dict[tuple[str, str], list[int]] = defaultdict(list)
    for record in source.records:
        if record.status != "ok":
            reasons[record.status, record.reason or ""].append(record.seed)
        elif not _fits(record, column):
            own = _column(record).measure
            reasons["invalid", f"its main metric is {own}, the column's is {column.measure}"].append(record.seed)
    for error in source.invalid:
        reasons["invalid", str(error)].append(error.cell.seed if error.cell else 0)
    notes = [
        _clean(f"{where}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}: {status}: {reason}")
        for (status, reason), seeds in sorted(reasons.items())
    ]
    if not good:
        found = {status for status, _ in reasons}
        return Cell(next(status for status in ("invalid", "failed", "skipped") if status in found)), notes
    summary = summarise([record.main_metric[1]["value"] for record in good if record.main_metric])
    if version < column.version:
        notes.append(_clean(f"{where}: task version {version}, not ranked beside version {column.version}"))
    decimals = _DECIMALS.get(column.unit, 3)
    half = "" if summary.ci95 is None else f"{(summary.ci95[1] - summary.ci95[0]) / 2:.{decimals}f}"
    return Cell("ok", summary, f"{summary.mean:.{decimals}f}", half, version == column.version), notes


def _fits(record: Record, column: Column) -> bool:
    return replace(_column(record), version=column.version) == column


def _ranked(
    drafts: Mapping[_RowKey, Mapping[str, tuple[Cell, list[str]]]],
    columns: Sequence[Column],
    costs: Mapping[_RowKey, RowCost],
) -> list[tuple[_RowKey, Row]]:
    keys = list(drafts)
    ranks = {}
    for column in columns:
        cells = [drafts[key][column.id][0] for key in keys]
        scores = [float(cell.mean_text) if cell.comparable else None for cell in cells]
        ranks[column.id] = competition_ranks(scores, column.higher_is_better)
    contested = [name for name, found in ranks.items() if sum(rank is not None for rank in found) > 1]
    rows = []
    for i, (key, mean_rank) in enumerate(zip(keys, mean_ranks(ranks), strict=True)):
        cells_of_row = {name: replace(drafts[key][name][0], rank=found[i]) for name, found in ranks.items()}
        lacking = sum(ranks[name][i] is None for name in contested)
        row = Row(
            _label(key), key.backbone, key.budget, cells_of_row, mean_rank, lacking, len(contested), costs[key]
        )
        rows.append((key, row))
    return rows


def _place(row: Row, rows_order: Sequence[str] | None, objective: str) -> tuple[Any, ...]:
    by_name = (row.objective, row.backbone, row.budget)
    if rows_order is not None:
        return *_index(objective, rows_order), *by_name
    if row.mean_rank is None:
        return 2, 0.0, *by_name
    return bool(row.missing_ranks), row.mean_rank, *by_name


def _numbered(row: Row, notes_of_cells: Sequence[list[str]], notes: list[str]) -> Row:
    """The row with its notes appended to ``notes`` and their numbers in its cells."""
    cells = {}
    for (name, cell), own in zip(row.cells.items(), notes_of_cells, strict=True):
        cells[name] = replace(cell, notes=tuple(range(len(notes) + 1, len(notes) + len(own) + 1)))
        notes += own
    return replace(row, cells=cells)


def _cost(sources: Iterable[_Source]) -> RowCost:
    records = [record for source in sources for record in source.records]
    # Every task's record repeats what the pre-training of its seed cost: that is counted once a seed.
    pretraining: dict[int, float] = {}
    for record in records:
        if (seconds := record.cost["pretrain_seconds"]) is not None:
            pretraining[record.seed] = max(seconds, pretraining.get(record.seed, 0.0))
    spent = [*pretraining.values(), *(r.cost["seconds"] for r in records if r.cost["seconds"] is not None)]
    return RowCost(
        pretrain_images=max((i for r in records if (i := r.cost["pretrain_images"]) is not None), default=None),
        pretrain_seconds=sum(pretraining.values()) / len(pretraining) if pretraining else None,
        device_hours=sum(spent) / 3600 if spent else None,
        device=", ".join(sorted({r.cost["device"] for r in records})),
        flops=max((f for r in records if (f := r.cost["flops"]) is not None), default=None),
        peak_memory_bytes=max((m for r in records if (m := r.cost["peak_memory_bytes"]) is not None), default=None),
    )


def _label(key: _RowKey) -> str:
    if key.variant == "{}":
        return key.objective
    options = json.loads(key.variant)
    values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}
    text = ", ".join(f"{name}={value}" for name, value in values.items())
    label = _clean(f"{key.objective} ({text})")
    if len(label) > _LONGEST_LABEL:  # two long ones must still differ
        label = f"{label[:_LONGEST_LABEL]}… #{hashlib.sha256(key.variant.encode()).hexdigest()[:8]})"
    return label


def _clean(text: str) -> str:
    """One line that any stream can print: no control characters, no half characters from odd file names."""
    line = " ".join(text.encode("utf-8", "backslashreplace").decode("utf-8").split())
    line = "".join(char if char.isprintable() else "�" for char in line)
    return line if len(line) <= 400 else line[:399] + "…"
