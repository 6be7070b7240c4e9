"""What analyses found, beside the scores: reads ``analysis.json`` and correlates its summary with the tasks.

``bench analyze`` writes one such file beside each ``backbone.json``. An analysis and the records of the same backbone
know each other by the sha256 of its weights, so that a backbone trained anew never borrows numbers from the old one.
"""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from .records import Record, RecordError

SCHEMA = 1
FILE_NAME = "analysis.json"
FEWEST = 3  # objectives for a correlation
_EXACT = 8  # objectives up to which every permutation is tried: 8! = 40,320
_DRAWS = 10_000


@dataclass(frozen=True)
class Analysis:
    """One backbone's summary: name -> number, None where it does not apply (attention of a convolutional network)."""

    path: Path
    label: str
    suite: str
    objective: str
    weights: str  # sha256 of backbone.safetensors, in hexadecimal
    conventions: str  # in words; numbers of different conventions must not be compared
    summary: dict[str, float | None]


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ between a number of the analyses and a column's score, over ``objectives``.

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


def read_analysis(path: Path) -> Analysis:
    """One analysis.

    Raises:
        RecordError: the file cannot be read or is no analysis of a known schema.
    """
    try:
        found: Any = json.loads(path.read_text())
        if found["schema"] > SCHEMA:
            raise ValueError(f"schema {found['schema']} is newer than {SCHEMA}, the newest known here")
        summary = {
            str(name): None if value is None else _finite(name, value) for name, value in found["summary"].items()
        }
        text = {key: found[key] for key in ("label", "suite", "objective", "weights")}
        if not all(isinstance(value, str) for value in text.values()):
            raise ValueError("label, suite, objective and weights must be text")
        return Analysis(path=path, **text, conventions=str(found["settings"]["name"]), summary=summary)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is no analysis ({type(error).__name__}: {error}); write it anew: bench analyze "
                          "--overwrite always") from error


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, not a number")
    return float(value)


def read_analyses(roots: Sequence[Path]) -> list[Analysis]:
    """Every analysis below the folders, in the order of their paths; of equal weights and conventions the first.

    Raises:
        RecordError: one of them is damaged.
    """
    found: dict[tuple[str, str], Analysis] = {}
    for root in roots:
        for path in sorted(root.rglob(FILE_NAME)):
            analysis = read_analysis(path)
            found.setdefault((analysis.weights, analysis.conventions), analysis)
    return list(found.values())


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


def correlate(analyses: Iterable[Analysis], records: Iterable[Record], suite: str) -> list[Correlation]:
    """Every number of the summaries against every column (task.protocol, highest task version), over objectives.

    An objective's values are means over its seeds. Only plain objectives count (no options, default budget), so that
    one objective is one point; pairs with fewer than 3 such points are left out.

    Raises:
        RecordError: the analyses follow different conventions.
    """
    analyses = list(analyses)
    if len(names := {analysis.conventions for analysis in analyses}) > 1:
        raise RecordError(f"analyses of different conventions cannot be compared: {' | '.join(sorted(names))}")
    by_weights = {analysis.weights: analysis for analysis in analyses}
    mine = [
        record for record in records
        if record.suite == suite and record.status == "ok" and not record.variant and record.budget == "default"
        and record.main_metric and record.fingerprints.get("backbone") in by_weights
    ]
    newest: dict[str, int] = defaultdict(int)
    for record in mine:
        column = f"{record.task}.{record.protocol}"
        newest[column] = max(newest[column], record.task_version)
    numbers: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    scores: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in mine:
        column = f"{record.task}.{record.protocol}"
        if record.task_version != newest[column] or record.main_metric is None:
            continue
        metric = record.main_metric[1]
        for name, value in by_weights[str(record.fingerprints["backbone"])].summary.items():
            if value is not None:
                numbers[name, column][record.objective].append(value)
                sign = 1 if metric["higher_is_better"] else -1
                scores[name, column][record.objective].append(sign * metric["value"])
    found = []
    for (name, column), points in sorted(numbers.items()):
        objectives = tuple(sorted(points))
        if len(objectives) < FEWEST:
            continue
        x = [_mean(points[o]) for o in objectives]
        y = [_mean(scores[name, column][o]) for o in objectives]
        found.append(Correlation(name, column, spearman(x, y), permutation_p(x, y), objectives))
    return found


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
