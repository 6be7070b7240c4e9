"""What changed from one table to another: rows, columns, numbers, and whether a number's change is significant.

A side is a folder of records or the JSON of a table (``bench leaderboard --format json``). Numbers are compared only
where they were made under the same conditions (``comparable``: test data, settings of the head, what the pre-training
was given). Where both sides have the records, a number is tested over its seeds, then and now being the two rows of
``statistics.pooled_tests`` (with the same seeds that is Student's paired t; other rows' spread is not asked, as a
change may touch only some rows), or with one seed by sign flips over the test items. A table in JSON holds means and
intervals only, from which Welch's test follows, and does not say under which conditions. The p values of all changed
numbers are corrected together (Holm).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .comparable import Conditions, Declared, conditions, departures
from .records import Record, RecordError, read_records
from .render import SCHEMA, json_document
from .statistics import LEVEL, holm, pooled_tests, sign_flip, welch
from .table import Table, TableError, build

RowName = tuple[str, str, str]  # objective, backbone, budget
_MOST_BYTES = 64 * 2**20
_MOST_SEEDS = 100_000
_LARGEST = 1e30  # as of records: squares and sums stay finite
METHOD = (
    "t tests over the seeds (paired where they are the same), or with one seed sign flips over the test items; from "
    "tables without their records Welch's t, and nothing is known of the conditions they were made under. Holm over "
    f"all changed numbers; level {LEVEL}."
)


class Number(NamedTuple):
    """One cell of one side."""

    mean: float | None
    ci95: tuple[float, float] | None
    n: int
    status: str
    rank: int | None  # within the budget
    unranked: str  # why it is not comparable with its column; empty where it is
    version: int | None  # of the task
    records: tuple[Record, ...] = ()  # whose mean it is; empty where the side is a table without records


@dataclass(frozen=True)
class Side:
    """A table as far as it is compared."""

    name: str
    suite: str | None
    columns: dict[str, tuple[str, bool]]  # id -> metric, whether higher is better
    rows: dict[RowName, dict[str, Number]]
    ranks: dict[RowName, float | None]  # mean ranks


class Change(NamedTuple):
    """A number that is not the same on both sides."""

    row: RowName
    column: str
    a: Number
    b: Number
    p: float | None  # None where nothing can be tested: one seed without common items, or no number on a side
    over: str  # what the test is over, in words; empty without one
    corrected: float | None = None
    better: bool | None = None  # whether b is the better one; None where they cannot be compared
    unlike: str = ""  # why they cannot be, in words

    @property
    def difference(self) -> float | None:
        """b less a, in the metric's unit."""
        return None if self.a.mean is None or self.b.mean is None else self.b.mean - self.a.mean

    @property
    def finding(self) -> str:
        """The change in words."""
        if self.difference is None:
            return f"{self.a.status} then, {self.b.status} now"
        if self.unlike:
            return f"not comparable: {self.unlike}"
        if self.difference == 0:
            return "same mean"
        word = "better" if self.better else "worse"
        if self.corrected is None:
            return f"{word}, not tested"
        return f"significantly {word}" if self.corrected <= LEVEL else f"{word}, not significantly"


@dataclass(frozen=True)
class Difference:
    """Everything that changed from ``a`` to ``b``."""

    a: Side
    b: Side
    added: tuple[RowName, ...]
    removed: tuple[RowName, ...]
    columns_added: tuple[str, ...]
    columns_removed: tuple[str, ...]
    changes: tuple[Change, ...]
    ranks: tuple[tuple[RowName, str, str, str], ...]  # row, "mean rank" or column, rank then, rank now
    same: int  # numbers that are equal on both sides

    @property
    def empty(self) -> bool:
        """Whether nothing changed."""
        return not (self.added or self.removed or self.columns_added or self.columns_removed or self.changes
                    or self.ranks)  # fmt: skip


def read_side(path: Path, suite: str | None = None, declared: Declared | None = None) -> Side:
    """A folder of records, or a JSON table.

    Args:
        suite: of the folder's records; may be None where they are of one suite.
        declared: as for ``table.build``.

    Raises:
        RecordError: no such file or folder, or not a table; one line.
        TableError: records of several suites and none named.
    """
    if path.is_dir():
        records, invalid = read_records([path])
        if not records and not invalid:
            raise RecordError(f"{path}: no records below it")
        return side_of(build(records, invalid, suite=suite, declared=declared), str(path))
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        return _from_json(json.loads(path.read_text(encoding="utf-8")), str(path))
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror or error}; name a folder of records or a JSON table") from error
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = " ".join(str(error).split())[:100]
        raise RecordError(
            f"{path}: no table ({type(error).__name__}: {reason}); make one: bench leaderboard --format json"
        ) from error


def side_of(table: Table, name: str) -> Side:
    """A table whose records are at hand."""
    side = _from_json(json_document(table), name)
    for row in table.rows:
        numbers = side.rows[row.objective, row.backbone, row.budget]
        for name, cell in row.cells.items():
            version = cell.records[0].task_version if cell.records else None
            numbers[name] = numbers[name]._replace(records=cell.records, version=version)
    return side


def _from_json(document: Any, name: str) -> Side:
    if document["schema"] != SCHEMA:
        raise ValueError(f"schema {document['schema']!r}, known is {SCHEMA}")
    columns = {c["id"]: (str(c["metric"]), bool(c["higher_is_better"])) for c in document["columns"]}
    versions = {c["id"]: c.get("version") for c in document["columns"]}
    rows: dict[RowName, dict[str, Number]] = {}
    ranks = {}
    for row in document["rows"]:
        key = (str(row["objective"]), str(row["backbone"]), str(row["budget"]))
        rows[key] = {column: _number(row["cells"][column], versions[column]) for column in columns}
        ranks[key] = _finite(row["rank"])
    return Side(name, document["suite"], columns, rows, ranks)


def _number(cell: dict[str, Any], version: int | None) -> Number:
    ends = None
    if (interval := cell["ci95"]) is not None:
        low, high = map(_finite, interval)
        if low is None or high is None or low > high:
            raise ValueError("an interval without ends")
        ends = (low, high)
    rank = cell.get("rank")
    return Number(
        _finite(cell["mean"]), ends, _count(cell["n"]), str(cell["status"]), None if rank is None else _count(rank),
        str(cell.get("unranked", "")), version,
    )  # fmt: skip


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= _MOST_SEEDS:
        raise ValueError(f"{str(value)[:20]!r} is no number of seeds or rank")
    return value


def _finite(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise ValueError(f"{str(value)[:20]!r} is no number between -{_LARGEST:g} and {_LARGEST:g}")
    return float(value)


def compare(a: Side, b: Side) -> Difference:
    """What changed from ``a`` to ``b``; rows are the same where objective (with its options), backbone and budget are.

    Raises:
        TableError: the sides are of different suites.
    """
    if a.suite != b.suite:
        raise TableError(f"{a.name} is of suite {a.suite}, {b.name} of suite {b.suite}: nothing to compare")
    common = [column for column in b.columns if a.columns.get(column) == b.columns[column]]
    changes, same = [], 0
    ranks: list[tuple[RowName, str, str, str]] = []
    for row in (row for row in b.rows if row in a.rows):
        if (text := _rank_text(a.ranks[row])) != (now := _rank_text(b.ranks[row])):
            ranks.append((row, "mean rank", text, now))
        for column in common:
            then, after = a.rows[row][column], b.rows[row][column]
            if then.rank != after.rank:
                ranks.append((row, column, *(_place(number) for number in (then, after))))
            if _alike(then, after):
                same += then.mean is not None
                continue
            changes.append(_change(row, column, then, after, b.columns[column][1]))
    return Difference(
        a, b, tuple(row for row in b.rows if row not in a.rows), tuple(row for row in a.rows if row not in b.rows),
        tuple(c for c in b.columns if c not in common), tuple(c for c in a.columns if c not in common),
        _corrected(changes), tuple(ranks), same,
    )  # fmt: skip


def _alike(a: Number, b: Number) -> bool:
    return (a.mean, a.ci95, a.n, a.status) == (b.mean, b.ci95, b.n, b.status) and not _unlike(a, b)


def _unlike(a: Number, b: Number) -> str:
    """Why two numbers cannot be compared, in words; empty where they can, or one is missing."""
    if a.mean is None or b.mean is None:
        return ""
    if a.version != b.version and None not in (a.version, b.version):
        return f"task version {b.version}, then {a.version}"
    return "; ".join(departures(_conditions(b), _conditions(a), "then"))


def _conditions(number: Number) -> Conditions:
    found: Conditions = {}
    for record in number.records:
        found |= conditions(record)
    return found


def _change(row: RowName, column: str, a: Number, b: Number, higher_is_better: bool) -> Change:
    unlike = _unlike(a, b)
    if a.mean is None or b.mean is None or unlike:
        return Change(row, column, a, b, None, "", unlike=unlike)
    better = None if a.mean == b.mean else (b.mean > a.mean) == higher_is_better
    p, over = _tested(a, b)
    return Change(row, column, a, b, p, over, better=better)


def _tested(a: Number, b: Number) -> tuple[float | None, str]:
    """p value that the two numbers are of one mean, and what it is over."""
    then, now = _by_seed(a.records), _by_seed(b.records)
    if then and now:
        if (pooled := pooled_tests([{s: value for s, (value, _) in side.items()} for side in (then, now)])) is not None:
            same = f"{len(now)} seeds" if then.keys() == now.keys() else f"{len(then)} and {len(now)} seeds"
            return float(pooled.p[0, 1]), same
        (seed, (_, first)), (other, (_, second)) = *then.items(), *now.items()
        if seed == other and first and len(first) == len(second or ()):
            return sign_flip([y - x for x, y in zip(first, second or (), strict=True)]), f"{len(first)} items"
        return None, ""
    spread_a, spread_b = _deviation(a), _deviation(b)
    if spread_a is not None and spread_b is not None and a.mean is not None and b.mean is not None:
        return welch(b.mean - a.mean, spread_a, a.n, spread_b, b.n), f"{a.n} and {b.n} seeds"
    return None, ""


def _by_seed(records: Sequence[Record]) -> dict[int, tuple[float, list[float] | None]]:
    """Seed -> its number and the scores of its items."""
    found = {}
    for record in records:
        if record.main_metric is not None:
            name, metric = record.main_metric
            found[record.seed] = (metric["value"], (record.items or {}).get(name))
    return found


def _deviation(number: Number) -> float | None:
    """Standard deviation over seeds, from the interval; None for one seed."""
    from .statistics import t975

    if number.ci95 is None or number.n < 2:
        return None
    return (number.ci95[1] - number.ci95[0]) / 2 / t975(number.n - 1) * math.sqrt(number.n)


def _corrected(changes: list[Change]) -> tuple[Change, ...]:
    tested = [i for i, change in enumerate(changes) if change.p is not None]
    for i, p in zip(tested, holm([changes[i].p or 0.0 for i in tested]), strict=True):
        changes[i] = changes[i]._replace(corrected=p)
    return tuple(changes)


def _rank_text(rank: float | None) -> str:
    return "–" if rank is None else f"{rank:.2f}"


def _place(number: Number) -> str:
    return f"{number.rank}" if number.rank is not None else "not ranked" if number.mean is not None else "–"


# --- as text ----------------------------------------------------------------------------------------------------------


def text(found: Difference, style: str = "simple") -> str:
    """The differences as text, ``style`` one of tabulate's (``simple`` on a terminal, ``github`` for markdown)."""
    from tabulate import tabulate

    from .render import md

    escape = md if style == "github" else str
    lines = [escape(f"Suite {found.b.suite or '–'}: from {found.a.name} to {found.b.name}.")]
    if found.empty:
        return f"{lines[0]}\n\nNothing changed: {found.same} numbers are the same.\n"
    for word, rows in (("added", found.added), ("removed", found.removed)):
        lines += [f"Row {word}: {escape(_row(row))}" for row in rows]
    for word, names in (("added or changed", found.columns_added), ("removed or changed", found.columns_removed)):
        lines += [f"Column {word}: {escape(name)}" for name in names]
    parts = ["\n".join(f"- {line}" if style == "github" and i else line for i, line in enumerate(lines))]
    if found.changes:
        heads = ["row", "column", "then", "now", "difference", "over", "p corrected", "finding"]
        cells = [[escape(cell) for cell in _line(change)] for change in found.changes]
        parts.append(tabulate(cells, heads, tablefmt=style, disable_numparse=True))
        parts.append(escape(METHOD))
    if found.ranks:
        cells = [[escape(cell) for cell in (_row(row), *rest)] for row, *rest in found.ranks]
        parts.append(tabulate(cells, ["row", "rank in", "then", "now"], tablefmt=style, disable_numparse=True))
    parts.append(f"{found.same} numbers are the same.")
    return "\n\n".join(parts) + "\n"


def _row(name: RowName) -> str:
    objective, backbone, budget = name
    return f"{objective}, {backbone}, budget {budget}"


def _line(change: Change) -> list[str]:
    difference = change.difference
    return [
        _row(change.row), change.column, _shown(change.a), _shown(change.b),
        "–" if difference is None else f"{difference:+.3f}", change.over or "–",
        "–" if change.corrected is None else f"{change.corrected:.2g}", change.finding,
    ]  # fmt: skip


def _shown(number: Number) -> str:
    if number.mean is None:
        return number.status
    half = f" ± {(number.ci95[1] - number.ci95[0]) / 2:.3f}" if number.ci95 else ""
    return f"{number.mean:.3f}{half} (n {number.n}{', not ranked' if number.unranked else ''})"


def as_json(found: Difference) -> dict[str, Any]:
    """The differences for programs."""

    def numbers(number: Number) -> dict[str, Any]:
        return {"mean": number.mean, "ci95": list(number.ci95) if number.ci95 else None, "n": number.n,
                "status": number.status, "rank": number.rank}  # fmt: skip

    return {
        "schema": SCHEMA, "suite": found.b.suite, "a": found.a.name, "b": found.b.name,
        "rows_added": [list(row) for row in found.added], "rows_removed": [list(row) for row in found.removed],
        "columns_added": list(found.columns_added), "columns_removed": list(found.columns_removed),
        "changes": [
            {"row": list(c.row), "column": c.column, "a": numbers(c.a), "b": numbers(c.b), "difference": c.difference,
             "over": c.over, "p": c.p, "p_corrected": c.corrected, "better": c.better, "unlike": c.unlike,
             "finding": c.finding}
            for c in found.changes
        ],
        "ranks": [{"row": list(row), "in": where, "a": then, "b": now} for row, where, then, now in found.ranks],
        "same": found.same,
    }  # fmt: skip
