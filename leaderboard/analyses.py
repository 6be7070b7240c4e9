"""What analyses found, beside the scores: reads ``analysis.json``, joins seeds, correlates with the tasks.

``bench analyze`` writes such records below ``seed<k>/``, of the schema of ``result.json`` and with ``details``: what
was found layer by layer. They describe a backbone and are never ranked. Three kinds, by their protocol:

* ``backbone.analysis``: attention and features of every layer; the summary stands in the metrics.
* ``<task>.layers``: the task's frozen score from each layer.
* ``<task>.cut``: the task's fine-tuned score with the last layers dropped.

An analysis and the records of the same backbone know each other by the sha256 of its weights, so that a backbone
trained anew never borrows numbers from the old one.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from .details import EVEN_NUMBERS, HEAD_NUMBERS, LAYERS, NUMBERS, PROTOCOL, problem
from .records import ANALYSIS, Record, RecordError, read_records
from .statistics import Summary, summarise
from .table import _label, _row_key

BASELINES = ("supervised", "random_init")  # shown after the others, the supervised one first
FEWEST = 3  # objectives for a correlation
_EXACT = 8  # objectives up to which every permutation is tried: 8! = 40,320
_DRAWS = 10_000
HEADINGS = {
    "attention_distance_last": "distance, last (px)", "attention_distance_mean": "distance, mean (px)",
    "attention_distance_relative": "distance, of uniform", "attention_distance_relative_last3": "of uniform, last 3",
    "attention_entropy_last": "entropy, last", "head_kl_last3": "head KL, last 3",
    "effective_rank_last": "rank, last", "variance_within_last": "variance within, last",
    "high_frequency_share_last": "high freq., last",
}


@dataclass(frozen=True)
class Between:
    """CKA of a row's layers with those (columns) of ``objective``'s backbone of the same seed; mean over seeds."""

    objective: str
    cka: Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Studied:
    """A row of the table, analysed: its seeds joined.

    Attributes:
        name: objective with what differs from its recipe; ``budget`` and ``backbone`` as in the table.
        summary: number -> mean and 95 % interval over seeds; what does not apply is not there.
        layers: of each layer what ``downstream.analysis`` gives, with the heads of all seeds one after another and the
            means over seeds of everything else; ``heads`` is None without attention.
        cka: mean over seeds of the layers' CKA.
        note: what does not apply, or "".
        records: one a seed, by seed.
        between: CKA with another backbone; None where the records have none, or not of one and the same.
    """

    name: str
    objective: str
    budget: str
    backbone: str
    summary: Mapping[str, Summary]
    layers: Sequence[Mapping[str, Any]]
    cka: Sequence[Sequence[float | None]]
    note: str
    records: tuple[Record, ...]
    between: Between | None = None


@dataclass(frozen=True)
class Curve:
    """A row's score on a task by layer: from that layer frozen, or fine-tuned after the layers behind it were cut off.

    Attributes:
        layers: their names; ``scores``: mean and 95 % interval over seeds for each.
        metric, unit, higher_is_better: of the task's main metric.
    """

    name: str
    objective: str
    budget: str
    task: str
    layers: tuple[str, ...]
    scores: tuple[Summary, ...]
    metric: str
    unit: str
    higher_is_better: bool


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ between a number of the analyses and a column's score, over ``objectives`` of one ``budget``.

    Attributes:
        rho: -1 to 1; above 0 where more of ``number`` goes with a better score, also where lower scores are better
            (depth's RMSE is turned round). None where one side does not vary.
        p: share of permutations of the scores whose |ρ| is at least as large: all of them up to 8 objectives, else
            10,000 drawn with a fixed seed. Many numbers against many tasks give small values by chance alone.
    """

    number: str
    column: str
    rho: float | None
    p: float | None
    objectives: tuple[str, ...]
    budget: str = "default"


def read_analyses(roots: Sequence[Path]) -> list[Record]:
    """Every analysis below the folders, in the order of their paths.

    Raises:
        RecordError: one of them is damaged or not what an analysis holds, or two contradict each other.
    """
    found, invalid = read_records(roots, ANALYSIS)
    broken = [str(error) for error in invalid]
    broken += [f"{record.path}: {reason}" for record in found if (reason := problem(record))]
    if broken:
        raise RecordError(f"{broken[0]}; write it anew: bench analyze --overwrite always")
    return [record for record in found if record.status == "ok"]


def summary_of(record: Record) -> dict[str, float | None]:
    """The numbers of :data:`HEADINGS`; None where one does not apply."""
    return {name: record.metrics[name]["value"] if name in record.metrics else None for name in HEADINGS}


def studied(records: Iterable[Record]) -> list[Studied]:
    """The analysed rows, baselines last.

    Raises:
        RecordError: the analyses follow different conventions, or seeds of a row are of different networks.
    """
    found = []
    mine = [record for record in records if record.protocol == PROTOCOL]
    _one_convention(mine)
    for (name, budget, backbone), seeds in _rows(mine).items():
        details = [record.details or {} for record in seeds]
        _alike(seeds, [[(layer["name"], layer["heads"] is None) for layer in d["layers"]] for d in details], "layers")
        layers = [_joined(parts) for parts in zip(*(d["layers"] for d in details), strict=True)]
        numbers = {
            key: [r.metrics[key]["value"] for r in seeds] for key in HEADINGS if all(key in r.metrics for r in seeds)
        }
        found.append(Studied(
            name, seeds[0].objective, budget, backbone, {key: summarise(values) for key, values in numbers.items()},
            layers, _mean_of([d["cka"] for d in details]), details[0]["note"], tuple(seeds),
            _between([d["between"] for d in details if d.get("between")]),
        ))  # fmt: skip
    return found


def curves(records: Iterable[Record], protocol: str = LAYERS) -> dict[str, list[Curve]]:
    """Task -> the rows' curves, baselines last; only the newest version of a task, and layers that all seeds have.

    Raises:
        RecordError: seeds of a row have different main metrics.
    """
    found: dict[str, list[Curve]] = defaultdict(list)
    mine = [record for record in records if record.protocol == protocol]
    for task in sorted({record.task for record in mine}):
        newest = max(record.task_version for record in mine if record.task == task)
        own = [record for record in mine if (record.task, record.task_version) == (task, newest)]
        for (name, budget, _), seeds in _rows(own).items():
            main = seeds[0].main_metric
            _alike(seeds, [record.main_metric and record.main_metric[0] for record in seeds], "main metric")
            layers = [{layer["name"]: layer["metrics"] for layer in (r.details or {})["layers"]} for r in seeds]
            common = [name for name in layers[0] if all(name in of_seed for of_seed in layers)]
            if main is None or not common:
                continue
            metric, facts = main
            scores = [summarise([of_seed[name][metric] for of_seed in layers]) for name in common]
            found[task].append(Curve(
                name, seeds[0].objective, budget, task, tuple(common), tuple(scores), metric, facts["unit"],
                facts["higher_is_better"],
            ))  # fmt: skip
    return dict(found)


def _alike(seeds: Sequence[Record], found: Sequence[Any], what: str) -> None:
    """Refuse seeds of one row that differ in ``found``, one a seed."""
    for record, own in zip(seeds, found, strict=True):
        if own != found[0]:
            raise RecordError(f"{record.path}: not the {what} of {seeds[0].path}, another seed of the same row; "
                              "write it anew: bench analyze --overwrite always")


def _rows(records: Iterable[Record]) -> dict[tuple[str, str, str], list[Record]]:
    """(name, budget, backbone) -> its records by seed; baselines last."""
    rows: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    place = {name: i for i, name in enumerate(BASELINES, 1)}
    for record in sorted(records, key=lambda r: (place.get(r.objective, 0), r.objective, r.budget, r.seed)):
        rows[_label(_row_key(record.cell)), record.budget, record.backbone].append(record)
    return rows


def _joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One layer of several seeds."""
    first = parts[0]
    heads = None
    if first["heads"]:
        heads = {key: [v for part in parts for v in part["heads"][key]] for key in HEAD_NUMBERS}
        heads |= {key: first["heads"][key] for key in EVEN_NUMBERS}
    means = {key: _mean_or_none([part[key] for part in parts]) for key in NUMBERS}
    return {**{key: first[key] for key in ("name", "stride", "width", "grid")}, "heads": heads, **means}


def _mean_of(matrices: Sequence[Sequence[Sequence[float | None]]]) -> list[list[float | None]]:
    return [[_mean_or_none(values) for values in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def _between(parts: Sequence[Mapping[str, Any]]) -> Between | None:
    """Of the seeds that have it."""
    if len({(part["objective"], len(part["cka"][0])) for part in parts}) != 1:
        return None
    return Between(parts[0]["objective"], _mean_of([part["cka"] for part in parts]))


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None


def _one_convention(analyses: Iterable[Record]) -> None:
    if len(names := {str(convention(analysis)) for analysis in analyses}) > 1:
        raise RecordError(f"analyses of different conventions cannot be compared: {' | '.join(sorted(names))}")


def convention(analysis: Record) -> str:
    """In words; numbers of different conventions must not be compared."""
    settings = analysis.config.get("settings")
    return str(settings.get("name")) if isinstance(settings, dict) else ""


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation, -1 to 1, equal values sharing their mean rank; None where one side is constant.

    Raises:
        ValueError: not as many values on both sides, or fewer than 2.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"a correlation needs two lists of one length, at least 2, got {len(x)} and {len(y)}")
    return _pearson(_ranks(x), _ranks(y))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [order.index(value) + (order.count(value) + 1) / 2 for value in values]


def _pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    a, b = [v - mean_x for v in x], [v - mean_y for v in y]
    scale = math.sqrt(math.fsum(v * v for v in a) * math.fsum(v * v for v in b))
    if scale == 0:
        return None
    return max(-1.0, min(1.0, math.fsum(u * v for u, v in zip(a, b, strict=True)) / scale))


def permutation_p(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Two-sided p of Spearman's ρ against permutations of ``y``, in (0, 1]; None where ρ is."""
    ranks_x, ranks_y = _ranks(x), _ranks(y)
    rho = _pearson(ranks_x, ranks_y)
    if rho is None:
        return None
    if len(x) <= _EXACT:
        orders: Iterable[Sequence[float]] = permutations(ranks_y)
    else:
        draw = random.Random(0)
        orders = [ranks_y, *(draw.sample(ranks_y, len(ranks_y)) for _ in range(_DRAWS))]
    hits = [abs(_pearson(ranks_x, order) or 0.0) >= abs(rho) - 1e-12 for order in orders]
    return sum(hits) / len(hits)


def correlate(analyses: Iterable[Record], records: Iterable[Record], suite: str) -> list[Correlation]:
    """Every number of the summaries against every column (task.protocol, highest task version), over objectives.

    An objective's values are means over its seeds. Only plain objectives count (no options), one budget and backbone
    at a time, so that one objective is one point; fewer than 3 such points are left out.

    Raises:
        RecordError: the analyses follow different conventions.
    """
    analyses = [analysis for analysis in analyses if analysis.protocol == PROTOCOL]
    _one_convention(analyses)
    by_weights = {analysis.fingerprints["backbone"]: analysis for analysis in analyses}
    mine = [
        record for record in records
        if record.suite == suite and record.status == "ok" and not record.variant and record.main_metric
        and record.fingerprints.get("backbone") in by_weights
    ]
    newest: dict[str, int] = defaultdict(int)
    for record in mine:
        newest[_column(record)] = max(newest[_column(record)], record.task_version)
    points: dict[tuple[str, ...], dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for record in mine:
        if record.task_version != newest[_column(record)] or record.main_metric is None:
            continue
        metric = record.main_metric[1]
        score = metric["value"] if metric["higher_is_better"] else -metric["value"]
        for name, value in summary_of(by_weights[record.fingerprints["backbone"]]).items():
            if value is not None:
                points[record.budget, record.backbone, name, _column(record)][record.objective].append((value, score))
    found = []
    for (budget, _, name, column), own in points.items():
        objectives = tuple(sorted(own))
        if len(objectives) < FEWEST:
            continue
        x, y = ([_mean([pair[side] for pair in own[o]]) for o in objectives] for side in (0, 1))
        found.append(Correlation(name, column, spearman(x, y), permutation_p(x, y), objectives, budget))
    order = list(HEADINGS)
    return sorted(found, key=lambda c: (c.budget, order.index(c.number), c.column))


def _column(record: Record) -> str:
    return f"{record.task}.{record.protocol}"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


@dataclass(frozen=True)
class CorrelationTable:
    """The correlations of one budget: ``rows`` are a heading and "ρ (p)" under each of ``columns``."""

    budget: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    objectives: tuple[str, ...]  # most that any of them is over


def by_budget(found: Sequence[Correlation]) -> list[CorrelationTable]:
    """The correlations as tables, worded; above 0 where more of the number goes with a better score."""
    tables = []
    for budget in dict.fromkeys(c.budget for c in found):
        own = [c for c in found if c.budget == budget]
        columns = tuple(dict.fromkeys(c.column for c in own))
        cells = {(c.number, c.column): "–" if c.rho is None else f"{c.rho:+.2f} ({c.p:.2f})" for c in own}
        numbers = [name for name in HEADINGS if any(c.number == name for c in own)]
        rows = tuple((HEADINGS[n], tuple(cells.get((n, column), "–") for column in columns)) for n in numbers)
        tables.append(CorrelationTable(budget, columns, rows, max((c.objectives for c in own), key=len)))
    return tables


def correlation_table(found: Sequence[Correlation], style: str = "simple") -> str:
    """:func:`by_budget` as text, in one of tabulate's formats."""
    from tabulate import tabulate

    if not found:
        return "correlations: fewer than 3 objectives have both an analysis and a score of the same weights"
    parts = []
    for table in by_budget(found):
        head = f"Spearman ρ (p), up to {len(table.objectives)} objectives, budget {table.budget}"
        rows = [[heading, *cells] for heading, cells in table.rows]
        parts.append(tabulate(rows, headers=[head, *table.columns], disable_numparse=True, tablefmt=style))
    return "\n\n".join(parts)


def summary_table(rows: Sequence[Studied], records: Iterable[Record], style: str = "simple") -> str:
    """A row a line: what its analysis found, and beside it the scores of the same weights; ± as in the leaderboard.

    A budget's own records only: an objective that does not train has the same weights in all of them.
    """
    from tabulate import tabulate

    records = [record for record in records if record.status == "ok" and record.main_metric]
    weights = {record.fingerprints["backbone"] for row in rows for record in row.records}
    scored = [record for record in records if record.fingerprints["backbone"] in weights]
    columns = list(dict.fromkeys(_column(record) for record in scored))
    lines = []
    for row in rows:
        mine = {record.fingerprints["backbone"] for record in row.records}
        line = [row.name, row.budget, len(row.records), *(worded(row.summary.get(name)) for name in HEADINGS)]
        for column in columns:
            values = [
                r.main_metric[1]["value"] for r in scored
                if (_column(r), r.budget) == (column, row.budget) and r.main_metric
                and r.fingerprints["backbone"] in mine
            ]
            line.append(worded(summarise(values)) if values else "–")
        lines.append(line)
    heads = ["objective", "budget", "seeds", *HEADINGS.values(), *columns]
    return tabulate(lines, headers=heads, disable_numparse=True, tablefmt=style)


def worded(found: Summary | None, decimals: int = 2) -> str:
    """ "mean ± half width of the 95 % interval"; a dash where there is nothing."""
    if found is None:
        return "–"
    half = "" if found.ci95 is None else f" ± {(found.ci95[1] - found.ci95[0]) / 2:.{decimals}f}"
    return f"{found.mean:.{decimals}f}{half}"
