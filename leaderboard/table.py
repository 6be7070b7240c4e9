"""One model of the leaderboard: which rows, columns and ranks there are, and how every number is worded.

All formats show the strings made here, so no two of them can disagree; only JSON gives means and intervals unrounded.

* A **column** is a task under a protocol, with the main metric of the highest task version found. Numbers of a lower
  version, or made under other conditions than the column's (``comparable``), are shown with a mark and a note and never
  ranked; a record with another main metric counts as invalid.
* A **row** is an objective with what differs from the suite's recipe, a backbone and a budget. Rows of one **budget**
  stand together and only they are compared, ranked and tested with each other: longer pre-training is no better
  objective.
* A **cell** is the mean over the seeds that have a number under one and the same conditions; seeds that failed or were
  made otherwise are named in a note. Beside it stand the interval over seeds and, where the metric is the mean of
  recorded per-item scores, the sampling interval over items.
* **Ranks** tie where no test separates two rows (``statistics``: a row's rank is one more than the number of rows that
  are significantly better). The rows of a column are tested together, over their seeds; where every row has one seed,
  over the test items; and where there are none in common, nothing can be tested and the means as shown (rounded)
  decide. With equal seeds ranks never contradict the means; with different ones the means freed of their seeds decide,
  not those shown. The **place** always compares the means as shown: best in bold, second underlined. The mean
  rank is taken over the columns where the row is ranked; rows of equal mean rank stand in the order of their mean
  place. A row that lacks a column in which two or more others compete says so ("2 of 5") and stands below the complete
  ones: leaving out a hard task must not help.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from .comparable import Conditions, Declared, conditions, departures, prevailing, recipe, shared
from .cost import RowCost, row_cost
from .records import WARNINGS, InvalidRecord, Record, no_collection
from .records import Cell as CellKey
from .statistics import (
    CORRECTION,
    ITEM_METHOD,
    LEVEL,
    METHOD,
    PAIR_METHODS,
    Summary,
    competition_ranks,
    enough_items,
    holm,
    item_interval,
    mean_ranks,
    pooled_tests,
    sign_flips,
    significant_ranks,
    summarise,
)

if TYPE_CHECKING:
    import numpy as np

TASK_ORDER = ("classification", "segmentation", "pose", "depth", "tracking")
PROTOCOL_ORDER = ("frozen", "finetune", "knn", "attentive")
BUDGET_ORDER = ("default", "long")
ELSEWHERE = "elsewhere"  # budget of weights from elsewhere: last
LEFT_HEADS = ("mean rank", "objective", "backbone", "budget")
RIGHT_HEADS = ("seeds", "pre-training", "compute", "FLOPs", "device")
_SHARED_HEADS = ("backbone", "seeds", "device")
UNRANKED = "†"  # marks a number that is kept out of its column's ranks

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
    rank: int | None = None  # among the comparable ones, 1 is best; tied where no test separates two rows
    notes: tuple[int, ...] = ()  # numbers of Table.notes, from 1
    unranked: str = ""  # why a number is not comparable, in words; empty where it is
    place: int | None = None  # by the means as shown, 1 is best; equal ones share it
    items95: tuple[float, float] | None = None  # sampling interval over test items, in the metric's unit
    items_text: tuple[str, str] | None = None  # its ends, rounded
    records: tuple[Record, ...] = ()  # whose mean it is: one a seed, of one version, under the same conditions

    @property
    def n(self) -> int:
        """Seeds that have a number."""
        return self.summary.n if self.summary else 0

    @property
    def marks(self) -> tuple[str, ...]:
        """What stands raised behind the number: UNRANKED and the numbers of its notes."""
        return (*([UNRANKED] if self.unranked else []), *map(str, self.notes))

    @property
    def seeds_text(self) -> str:
        """Mean and half width over seeds, or the status."""
        if self.status != "ok":
            return _NOTHING if self.status == "missing" else self.status
        return self.mean_text + (f" ± {self.half_text}" if self.half_text else "")

    @property
    def text(self) -> str:
        """The same with the interval over items behind it."""
        return self.seeds_text + (f" [{', '.join(self.items_text)}]" if self.items_text else "")


class Comparison(NamedTuple):
    """Two rows of a column, tested."""

    column: str
    a: tuple[str, str, str]  # objective, backbone, budget
    b: tuple[str, str, str]
    difference: float  # a less b, in the metric's unit; with different seeds freed of what those differ by
    over: str  # "seeds" or "items"
    n: int  # degrees of freedom, of the column's rows together, or number of common items
    p: float
    corrected: float  # p after Holm's rule over the column's pairs

    @property
    def significant(self) -> bool:
        return self.corrected <= LEVEL

    @property
    def basis(self) -> str:
        """What was tested over, in words."""
        return f"{self.n} items" if self.over == "items" else f"seeds, {self.n} degrees of freedom"


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
    mean_place: float | None = None
    runs: tuple[Record, ...] = ()  # the row's records, whatever their status

    def under(self, heads: Iterable[str]) -> list[str]:
        """Texts under some of LEFT_HEADS and RIGHT_HEADS."""
        texts = dict(zip((*LEFT_HEADS, *RIGHT_HEADS), self.left + self.right, strict=True))
        return [texts[head] for head in heads]

    @property
    def left(self) -> tuple[str, ...]:
        """Texts under LEFT_HEADS."""
        return self.rank_text, self.objective, self.backbone, self.budget_text

    @property
    def right(self) -> tuple[str, ...]:
        """Texts under RIGHT_HEADS."""
        seconds = self.cost.pretrain_seconds
        return (
            self.seeds_text,
            _NOTHING if seconds is None else f"{seconds:,.0f} s",
            self.cost.compute_text,
            self.cost.flops_text,
            self.cost.device or _NOTHING,
        )

    @property
    def sort_values(self) -> dict[str, float | None]:
        """Numbers behind some of the texts, to sort by: head -> number."""
        hours = [h for h in (self.cost.cpu_hours, self.cost.gpu_hours) if h is not None]
        return {
            "mean rank": self.mean_rank, "pre-training": self.cost.pretrain_seconds,
            "compute": sum(hours) if hours else None, "FLOPs": self.cost.flops,
        }

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
class Group:
    """The rows of one budget: those that are compared with each other."""

    budget: str
    rows: tuple[Row, ...]

    @property
    def heading(self) -> str:
        """Budget and pictures seen, for example ``Budget long (64,000 images)``."""
        if self.budget == ELSEWHERE:
            return "Weights from elsewhere, each with a budget of its own"
        seen = sorted({row.cost.pretrain_images or 0 for row in self.rows} - {0})
        span = f"{seen[0]:,}" if len(seen) == 1 else f"{seen[0]:,} to {seen[-1]:,}" if seen else ""
        return f"Budget {self.budget} ({span} images)" if span else f"Budget {self.budget}"

    @cached_property
    def common(self) -> dict[str, str]:
        """What all rows share and needs no column of its own: head -> text. The budget stands in the heading."""
        texts = {head: {row.under([head])[0] for row in self.rows} for head in _SHARED_HEADS}
        found = {head: own.pop() for head, own in texts.items() if len(own) == 1}
        return found | ({} if self.budget == ELSEWHERE else {"budget": ""})

    @cached_property
    def left_heads(self) -> tuple[str, ...]:
        return tuple(head for head in LEFT_HEADS if head not in self.common)

    @cached_property
    def right_heads(self) -> tuple[str, ...]:
        return tuple(head for head in RIGHT_HEADS if head not in self.common)

    @property
    def title(self) -> str:
        """The heading and what all rows share, one line."""
        words = {"seeds": "{} seed" if self.common.get("seeds") == "1" else "{} seeds", "device": "{}"}
        shared_texts = ", ".join(
            words.get(head, f"{head} {{}}").format(text) for head, text in self.common.items() if text
        )
        return f"{self.heading}. All rows: {shared_texts}." if shared_texts else f"{self.heading}."


@dataclass(frozen=True)
class Table:
    suite: str | None  # None only when there are no records at all
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]  # numbered from 1: what failed, was skipped, is invalid or of a lower version; one line each
    comparisons: tuple[Comparison, ...] = ()

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """The rows by budget, in their order."""
        return tuple(Group(budget, tuple(rows)) for budget, rows in groupby(self.rows, key=lambda row: row.budget))

    @property
    def legend(self) -> str:
        """How to read the table, one line."""
        items = f"; {ITEM_METHOD}" if any(c.items95 for row in self.rows for c in row.cells.values()) else ""
        budgets = " Rows are compared within one budget only." if len(self.groups) > 1 else ""
        marked = any(c.unranked for row in self.rows for c in row.cells.values())
        mark = f" {UNRANKED}: not comparable with its column and kept out of the ranks, see the note." if marked else ""
        return (
            f"Suite {self.suite or _NOTHING}. Cells: {METHOD}{items}. Best in bold, second underlined; "
            f"↑ higher is better, ↓ lower is better.{self._ranking} Mean rank: over the columns in which a "
            f"row is ranked.{budgets}{mark} Compute: core-hours or GPU-hours of all seeds, pre-training and tasks; "
            f"FLOPs: of one pre-training, forward and backward; device: the whole machine, one core of which may have "
            f"done the work.{self._sizes}"
        )

    @property
    def _sizes(self) -> str:
        """What differs from the networks that timm gives the backbones' names to, as far as records say it."""
        told: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            records = next((cell.records for cell in row.cells.values() if cell.records), ())
            made = records[0].config.get("pretraining") if records else None
            kwargs = made.get("kwargs") if isinstance(made, dict) else None
            own = any("kwargs" in str(option) for option in records[0].variant) if records else False  # its label says
            if isinstance(kwargs, dict) and kwargs and not own:
                told.setdefault(row.backbone, kwargs)
        words = (f"{name} with {', '.join(f'{key} {value}' for key, value in sorted(kwargs.items()))}"
                 for name, kwargs in told.items())
        return f" Backbone: {'; '.join(words)}." if told else ""

    @property
    def pair_method(self) -> str:
        """How pairs of rows were tested, as far as any were."""
        over = {pair.over for pair in self.comparisons}
        return "; ".join([*(words for name, words in PAIR_METHODS.items() if name in over), CORRECTION])

    @property
    def _ranking(self) -> str:
        """What decides the ranks, a sentence or two."""
        tested = Counter((pair.column, pair.a[2]) for pair in self.comparisons)
        pairs = {
            (column.id, group.budget): math.comb(sum(row.cells[column.id].rank is not None for row in group.rows), 2)
            for group in self.groups for column in self.columns
        }
        told = f" A rank is 1 + the number of rows significantly better ({self.pair_method})." if tested else ""
        if all(tested[place] == count for place, count in pairs.items()):
            return told
        nothing = "with one seed, and no common test items or too few, nothing can be tested"
        return f"{told} The numbers as shown decide the other ranks: {nothing}." if tested else (
            f" The numbers as shown decide the ranks: {nothing}."
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


@no_collection()
def build(
    records: Iterable[Record],
    invalid: Iterable[InvalidRecord] = (),
    suite: str | None = None,
    declared: Declared | None = None,
) -> Table:
    """The table of one suite.

    Args:
        records: each cell once, as from ``read_records``.
        invalid: what could not be read; listed in the notes, and shown in its cell where it is known.
        suite: records of others are left out. May be None when all records are of one suite.
        declared: the suite's head settings for a record's row, where somebody knows them (``comparable``).

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

    rows: list[tuple[_RowKey, Row]] = []
    drafts: dict[_RowKey, dict[str, _Draft]] = {}
    comparisons: list[Comparison] = []
    for budget in sorted({key.budget for key in sources}, key=_budget_place):
        own = {row: by_column for row, by_column in sources.items() if row.budget == budget}
        group: dict[_RowKey, dict[str, _Draft]] = {row: {} for row in own}
        for column in columns:
            found = {at: _counted(own[at].get(column.id), column, declared) for at in own}
            common = shared(
                [(said, record.finished) for record, said in pairs if record.task_version == column.version]
                for pairs in found.values()
            )
            for at in own:
                group[at][column.id] = _draft(own[at].get(column.id), found[at], column, _label(at), common)
        for at, row in group.items():
            for name, seeds in _other_weights(row).items():
                row[name].notes.append(_clean(f"{_label(at)}, {name}, {_seeds(seeds)}: scored on other weights than "
                                              "the row's other columns: the backbone was trained again"))
        ranked, tested = _ranked(group, columns, own)
        ranked.sort(key=lambda pair: _place(pair[1]))
        rows += ranked
        comparisons += tested
        drafts |= group

    notes: list[str] = []
    finished = [_numbered(row, [drafts[of][column.id].notes for column in columns], notes) for of, row in rows]
    notes += [_clean(f"invalid: {error}") for error in invalid if error.cell is None]
    notes += _baselines(records, columns)
    return Table(suite, columns, tuple(finished), tuple(notes), tuple(comparisons))


def _only_suite(records: list[Record], invalid: list[InvalidRecord]) -> str | None:
    suites = sorted({record.suite for record in records} | {e.cell.suite for e in invalid if e.cell is not None})
    if len(suites) > 1:
        raise TableError(f"records of several suites ({', '.join(suites)}): name one")
    return suites[0] if suites else None


def _budget_place(budget: str) -> tuple[bool, int, str]:
    return budget == ELSEWHERE, *_index(budget, BUDGET_ORDER)


def _row_key(cell: CellKey) -> _RowKey:
    return _RowKey(cell.objective, cell.variant, cell.backbone, cell.budget)


def _column_id(cell: CellKey) -> str:
    return f"{cell.task}.{cell.protocol}"


def _baselines(records: Iterable[Record], columns: Sequence[Column]) -> list[str]:
    """A line for each number that is had without learning, where records of a column's version say it."""
    lines = []
    for column in columns:
        values: dict[str, set[str]] = defaultdict(set)
        for record in records:
            if record.baselines and _column(record) == column:
                for name, value in record.baselines.get(column.metric, {}).items():
                    values[name].add(f"{value:.{_DECIMALS.get(column.unit, 3)}f}")
        lines += [
            _clean(f"{column.id}: {name} scores {column.metric} {' or '.join(sorted(found))} {column.unit}".rstrip())
            for name, found in values.items()
        ]
    return lines


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


def _column_place(column: Column) -> tuple[int, str, str, int, str]:
    task = column.task.partition("_")[0]  # pose_crowdpose stands beside pose
    return *_index(task, TASK_ORDER), column.task, *_index(column.protocol, PROTOCOL_ORDER)


def _index(name: str, order: Sequence[str]) -> tuple[int, str]:
    return (order.index(name) if name in order else len(order), name)


# --- cells and rows ---------------------------------------------------------------------------------------------------


class _Draft(NamedTuple):
    """A cell, not yet ranked, its notes, and what it is compared by."""

    cell: Cell
    notes: list[str]
    seeds: dict[int, float] = {}  # noqa: RUF012 - never changed; seed -> score, of the version shown
    items: np.ndarray | None = None  # (items,) scores, mean over the seeds
    data: str | None = None  # fingerprint of the test items


def _counted(
    source: _Source | None, column: Column, declared: Declared | None
) -> list[tuple[Record, Conditions]]:
    """The records of a cell that have a number, of the highest version among them, with their conditions."""
    good = [r for r in source.records if r.status == "ok" and _fits(r, column)] if source else []
    version = max((record.task_version for record in good), default=0)
    return [(record, conditions(record, declared)) for record in good if record.task_version == version]


def _draft(
    source: _Source | None, counted: list[tuple[Record, Conditions]], column: Column, label: str, common: Conditions
) -> _Draft:
    if source is None:
        return _Draft(Cell("missing"), [])
    where = f"{label}, {column.id}"
    reasons: dict[tuple[str, str], list[int]] = defaultdict(list)
    for record in source.records:
        if record.status != "ok":
            reasons[record.status, record.reason or ""].append(record.seed)
        elif not _fits(record, column):
            own = _column(record).measure
            reasons["invalid", f"its main metric is {own}, the column's is {column.measure}"].append(record.seed)
    for error in source.invalid:
        reasons["invalid", str(error)].append(error.cell.seed if error.cell else 0)
    good, unranked, left_out = _alike(counted, common)
    for record, reason in left_out:
        reasons["left out of the mean", reason].append(record.seed)
    notes = [
        _clean(f"{where}, {_seeds(seeds)}: {status}: {reason}")
        for (status, reason), seeds in sorted(reasons.items())
    ]
    if not good:
        found = {status for status, _ in reasons}
        return _Draft(Cell(next(status for status in ("invalid", "failed", "skipped") if status in found)), notes)
    notes += _warnings(good, label)
    seeds = {record.seed: record.main_metric[1]["value"] for record in good if record.main_metric}
    summary = summarise([record.main_metric[1]["value"] for record in good if record.main_metric])
    version = good[0].task_version
    if version < column.version:
        notes.append(_clean(f"{where}: task version {version}, not ranked beside version {column.version}"))
        unranked = f"task version {version}, the column's {column.version}"
    elif unranked:
        notes.append(_clean(f"{where}: not ranked: {unranked}"))
    decimals = _DECIMALS.get(column.unit, 3)
    half = "" if summary.ci95 is None else f"{(summary.ci95[1] - summary.ci95[0]) / 2:.{decimals}f}"
    items = _items(good, column)
    interval = None if items is None else item_interval(items)
    cell = Cell(
        "ok", summary, f"{summary.mean:.{decimals}f}", half, not unranked, items95=interval,
        items_text=interval and (f"{interval[0]:.{decimals}f}", f"{interval[1]:.{decimals}f}"), unranked=unranked,
        records=tuple(good),
    )
    return _Draft(cell, notes, seeds, items, good[0].fingerprints["data"])


def _alike(
    counted: list[tuple[Record, Conditions]], common: Conditions
) -> tuple[list[Record], str, list[tuple[Record, str]]]:
    """The records that make the cell's number, why it is not comparable (empty where it is), and those left out.

    Seeds under the column's conditions count, else the largest set of seeds that agree with each other; of those the
    seeds of the newest version of the objective, else of the recipe that most have.
    """
    if not counted:
        return [], "", []
    told = [(record, "; ".join(departures(found, common))) for record, found in counted]
    sizes = Counter(reason for _, reason in told)
    chosen = "" if "" in sizes else max(sizes, key=lambda reason: (sizes[reason], reason))
    others = [(record, reason or "the column's conditions") for record, reason in told if reason != chosen]
    alike = [record for record, reason in told if reason == chosen]
    own, kept = prevailing(alike), []
    for record in alike:
        if other := "; ".join(departures(recipe(record), own, "the cell's")):
            others.append((record, other))
        else:
            kept.append(record)
    return kept, chosen, others


def _other_weights(row: Mapping[str, _Draft]) -> dict[str, list[int]]:
    """Column -> the seeds whose score there is of other weights than in most of the row's columns."""
    of_seed: dict[int, dict[str, str]] = defaultdict(dict)
    for name, draft in row.items():
        for record in draft.cell.records:
            if weights := record.fingerprints.get("backbone"):
                of_seed[record.seed][name] = weights
    found = defaultdict(list)
    for seed, weights_of in sorted(of_seed.items()):
        counts = Counter(weights_of.values())
        usual = max(counts, key=lambda weights: (counts[weights], weights))
        for name, weights in weights_of.items():
            if weights != usual:
                found[name].append(seed)
    return found


def _seeds(seeds: Iterable[int]) -> str:
    listed = sorted(seeds)
    return f"seed{'s' * (len(listed) > 1)} {', '.join(map(str, listed))}"


def _items(records: Sequence[Record], column: Column) -> np.ndarray | None:
    """Scores of the test items, (items,), mean over the seeds; None unless the column's metric is their mean.

    All records must have scores of the same items: equal fingerprints of the data, equal number.
    """
    lists = [(record.items or {}).get(column.metric) for record in records]
    data = {record.fingerprints["data"] for record in records}
    if len(data) != 1 or None in data or not all(lists) or len({len(scores or ()) for scores in lists}) != 1:
        return None
    import numpy as np

    scores = np.array(lists, dtype=np.float64)  # (seeds, items)
    values = np.array([record.main_metric[1]["value"] for record in records if record.main_metric])
    if not np.allclose(scores.mean(axis=1), values, rtol=1e-6, atol=1e-6):
        return None
    return scores.mean(axis=0)


def _fits(record: Record, column: Column) -> bool:
    if record.main_metric is None:
        return not column.metric
    name, metric = record.main_metric
    mine = (name, metric["unit"], metric["higher_is_better"])
    return mine == (column.metric, column.unit, column.higher_is_better)


def _ranked(
    drafts: Mapping[_RowKey, Mapping[str, _Draft]],
    columns: Sequence[Column],
    sources: Mapping[_RowKey, Mapping[str, _Source]],
) -> tuple[list[tuple[_RowKey, Row]], list[Comparison]]:
    keys = list(drafts)
    names = [(_label(key), key.backbone, key.budget) for key in keys]
    ranks, places, comparisons = {}, {}, []
    for column in columns:
        own = [drafts[key][column.id] for key in keys]
        scores = [float(draft.cell.mean_text) if draft.cell.comparable else None for draft in own]
        places[column.id] = competition_ranks(scores, column.higher_is_better)
        tested, better = _compared(own, scores, column, names)
        ranks[column.id] = significant_ranks(scores, better)
        comparisons += tested
    contested = [name for name, found in ranks.items() if sum(rank is not None for rank in found) > 1]
    rows = []
    means = zip(keys, names, mean_ranks(ranks), mean_ranks(places), strict=True)
    for i, (key, (label, backbone, budget), mean_rank, mean_place) in enumerate(means):
        cells_of_row = {
            name: replace(drafts[key][name].cell, rank=ranks[name][i], place=places[name][i]) for name in ranks
        }
        lacking = sum(ranks[name][i] is None for name in contested)
        runs = tuple(record for column in columns for record in sources[key].get(column.id, _Source([], [])).records)
        row = Row(
            label, backbone, budget, cells_of_row, mean_rank, lacking, len(contested),
            row_cost([r for source in sources[key].values() for r in source.records]), mean_place, runs,
        )  # fmt: skip
        rows.append((key, row))
    return rows, comparisons


def _compared(
    drafts: Sequence[_Draft], scores: Sequence[float | None], column: Column, names: Sequence[tuple[str, str, str]]
) -> tuple[list[Comparison], list[set[int]]]:
    """The tests of a column, and per row the rows that beat it: significantly, or as shown where nothing is tested."""
    competing = [i for i, score in enumerate(scores) if score is not None]
    better: list[set[int]] = [set() for _ in drafts]
    found = _seed_tests(drafts, competing)
    if found is None:  # every row has one seed
        found = _item_tests(drafts, competing)
        for i, j in combinations(competing, 2):
            if (i, j) not in found and scores[i] != scores[j]:
                first = (scores[i] > scores[j]) == column.higher_is_better
                better[j if first else i].add(i if first else j)
    tested = []
    corrected = holm([p for *_, p in found.values()])
    for ((i, j), (difference, over, n, p)), after in zip(found.items(), corrected, strict=True):
        tested.append(Comparison(column.id, names[i], names[j], difference, over, n, p, after))
        if after <= LEVEL and difference:
            first = (difference > 0) == column.higher_is_better
            better[j if first else i].add(i if first else j)
    return tested, better


_Tests = dict[tuple[int, int], tuple[float, str, int, float]]  # i < j -> difference, over, n, p


def _seed_tests(drafts: Sequence[_Draft], competing: Sequence[int]) -> _Tests | None:
    """The tests of all pairs over seeds; None where every row has one."""
    pooled = pooled_tests([drafts[i].seeds for i in competing])
    if pooled is None:
        return None
    effects, p = pooled.effects.tolist(), pooled.p.tolist()
    return {
        (i, j): (effects[a] - effects[b], "seeds", pooled.degrees, p[a][b])
        for (a, i), (b, j) in combinations(enumerate(competing), 2)
    }


def _item_tests(drafts: Sequence[_Draft], competing: Sequence[int]) -> _Tests:
    """The tests over items of the pairs scored on the same ones, where those are enough to find any difference."""
    groups: dict[tuple[str | None, int], list[int]] = defaultdict(list)
    for i in competing:
        items = drafts[i].items
        if items is not None:
            groups[drafts[i].data, len(items)].append(i)
    found: _Tests = {}
    tested = sorted((n, members) for (_, n), members in groups.items() if len(members) > 1)
    while tested:  # pairs over too few items are not tested, and do not count among those that are
        pairs = sum(math.comb(len(members), 2) for _, members in tested)
        if enough_items(tested[0][0], pairs):
            break
        tested.pop(0)
    for n, members in tested:
        import numpy as np

        scores = np.stack([drafts[i].items for i in members], axis=1)  # (items, rows)
        p, means = sign_flips(scores, pairs), scores.mean(axis=0)
        for a, i in enumerate(members):
            for b in range(a + 1, len(members)):
                found[i, members[b]] = (float(means[a] - means[b]), "items", n, float(p[a, b]))
    return found


def _place(row: Row) -> tuple[Any, ...]:
    by_name = (row.objective, row.backbone, row.budget)
    if row.mean_rank is None:
        return 2, 0.0, 0.0, *by_name
    return bool(row.missing_ranks), row.mean_rank, row.mean_place or 0.0, *by_name


def _numbered(row: Row, notes_of_cells: Sequence[list[str]], notes: list[str]) -> Row:
    """The row with its notes appended to ``notes`` and their numbers in its cells; what several say is noted once."""
    cells, numbers = {}, {}
    for (name, cell), own in zip(row.cells.items(), notes_of_cells, strict=True):
        for note in own:
            if note not in numbers:
                notes.append(note)
                numbers[note] = len(notes)
        cells[name] = replace(cell, notes=tuple(numbers[note] for note in own))
    return replace(row, cells=cells)


def _warnings(records: Sequence[Record], label: str) -> list[str]:
    """A note for each reason why backbones behind the records are not what they should be; the number stands."""
    seeds: dict[tuple[str, str], set[int]] = defaultdict(set)
    for record in records:
        for key, what in WARNINGS.items():
            if reason := (record.details or {}).get(key):
                seeds[what, str(reason)].add(record.seed)
    return [
        _clean(f"{label}, {_seeds(own)}: {what}: {reason}")
        for (what, reason), own in sorted(seeds.items())
    ]


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
