"""Small figures as inline SVG: bars with intervals, cost against score, a log's curve. No library, no colours of its
own: the page's style sheet gives them, so the figures follow light and dark."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from .table import Column, Row

MOST_BARS = 40  # rows of a figure; more are no longer read
_MOST_POINTS = 120  # of a curve: half its width in pixels
_MOST_LOG_BYTES = 4 * 2**20
_LABEL = 30  # characters
COST_OF_A_SEED = "seconds of one seed: pre-training, training and scoring on the task"


class Point(NamedTuple):
    """A row in the cost–score figure."""

    row: Row
    seconds: float  # of one seed: pre-training, training and scoring on this task; above 0
    score: float  # mean, in the metric's unit
    front: bool  # no other row is both cheaper and better


def bars(rows: Sequence[Row], column: Column) -> str:
    """The rows' means in a column, best first, with the interval over seeds (thick) and over test items (thin)."""
    rows = [row for row in rows if row.cells[column.id].comparable]
    rows.sort(key=lambda row: row.cells[column.id].place or 0)
    rows = rows[:MOST_BARS]
    if not rows:
        return ""
    ends = [0.0]
    for row in rows:
        cell = row.cells[column.id]
        assert cell.summary is not None
        ends += [cell.summary.mean, *(cell.summary.ci95 or ()), *(cell.items95 or ())]
    low, high = min(ends), max(ends)
    left, width, step = 190, 260, 22
    scale = width / ((high - low) or 1.0)

    def at(value: float) -> str:
        return f"{left + (value - low) * scale:.1f}"

    height = step * len(rows) + 6
    parts = [_open(left + width + 70, height, f"{column.id}: {column.measure}")]
    for i, row in enumerate(rows):
        cell = row.cells[column.id]
        assert cell.summary is not None
        y, mean = i * step + 4, cell.summary.mean
        x0, x1 = sorted((float(at(0.0)), float(at(mean))))
        parts.append(f'<g><title>{_text(f"{row.objective}: {cell.text}")}</title>')
        parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{_text(_short(row.objective))}</text>')
        parts.append(f'<rect class="bar" x="{x0:.1f}" y="{y}" width="{max(x1 - x0, 0.5):.1f}" height="15"/>')
        if cell.items95:
            parts.append(f'<path class="items" d="M{at(cell.items95[0])} {y + 11}H{at(cell.items95[1])}"/>')
        if cell.summary.ci95:
            parts.append(f'<path class="seeds" d="M{at(cell.summary.ci95[0])} {y + 5}H{at(cell.summary.ci95[1])}"/>')
        parts.append(f'<text x="{left + width + 6}" y="{y + 12}">{_text(cell.mean_text)}</text></g>')
    return "".join([*parts, "</svg>"])


def points(rows: Sequence[Row], column: Column) -> list[Point]:
    """The rows of a column with a cost and a comparable score, cheapest first, the Pareto front marked."""
    found = []
    for row in rows:
        cell = row.cells[column.id]
        runs = [r for r in row.runs if (r.task, r.protocol, r.status) == (column.task, column.protocol, "ok")]
        paid = [(run.cost["pretrain_seconds"], run.cost["seconds"]) for run in runs]
        costs = [(pretraining or 0.0) + task for pretraining, task in paid if task is not None]
        if cell.comparable and cell.summary and costs and (mean := math.fsum(costs) / len(costs)) > 0:
            found.append(Point(row, mean, cell.summary.mean, False))
    sign = 1 if column.higher_is_better else -1
    found.sort(key=lambda point: (point.seconds, -sign * point.score))
    best, marked = -math.inf, []
    for point in found:
        marked.append(point._replace(front=sign * point.score > best))
        best = max(best, sign * point.score)
    return marked


def pareto(rows: Sequence[Row], column: Column) -> str:
    """Cost of one seed (seconds, logarithmic) against the mean, better ones higher; a line joins the front."""
    found = points(rows, column)[:MOST_BARS]
    if len(found) < 2:
        return ""
    xs, ys = [math.log10(point.seconds) for point in found], [point.score for point in found]
    box = _Box(xs, ys, 400, 220, left=56, bottom=34, flipped=not column.higher_is_better)
    front = [(x, y) for x, y, point in zip(xs, ys, found, strict=True) if point.front]
    parts = [_open(560, 262, f"{column.id}: cost against {column.measure}"), box.frame()]
    parts.append(f'<path class="front" d="{box.path(front)}"/>')
    taken = [_around(*box.at(x, y)) for x, y in zip(xs, ys, strict=True)]
    for x, y, point in zip(xs, ys, found, strict=True):
        px, py = box.at(x, y)
        name = point.row.objective
        parts.append(f'<g><title>{_text(f"{name}: {point.score:.4g} for {point.seconds:.0f} s a seed")}</title>')
        parts.append(f'<circle class="{"on" if point.front else "off"}" cx="{px}" cy="{py}" r="4"/>')
        parts.append(_label(_short(name, 18), float(px), float(py), taken) + "</g>")
    parts += box.labels(f"{10 ** min(xs):,.0f} s", f"{10 ** max(xs):,.0f} s", f"{min(ys):.4g}", f"{max(ys):.4g}")
    axis = "seconds of one seed, pre-training and task (logarithmic)"
    parts.append(f'<text x="{56 + 200}" y="258" text-anchor="middle">{axis}</text>')
    return "".join([*parts, "</svg>"])


def _around(px: str, py: str) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of a point's mark."""
    return float(px) - 5, float(py) - 5, float(px) + 5, float(py) + 5


def _label(text: str, px: float, py: float, taken: list[tuple[float, float, float, float]]) -> str:
    """A point's name where it covers no mark and no other name (right, left, above, below); empty where it would."""
    width, tall = 6.2 * len(text), 11
    for anchor, dx, dy in (("start", 7, 4), ("end", -7, 4), ("middle", 0, -8), ("middle", 0, 16)):
        x, y = px + dx, py + dy
        left = x - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
        own = (left, y - tall + 2, left + width, y + 2)
        if left >= 58 and all(own[0] > o[2] or own[2] < o[0] or own[1] > o[3] or own[3] < o[1] for o in taken):
            taken.append(own)
            return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_text(text)}</text>'
    return ""


def curve(log: Path) -> str:
    """The loss in a ``log.jsonl``, or nothing where there is none to draw. A damaged line is passed over."""
    try:
        with open(log, "rb") as file:
            lines = file.read(_MOST_LOG_BYTES).splitlines()
    except OSError:
        return ""
    xs: list[float] = []
    ys: list[float] = []
    named = ("", "")
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict):
            continue
        y_name = next((name for name in ("loss", "held_out_loss", "train_loss") if _finite(entry.get(name))), None)
        if y_name is None:
            continue
        x_name = next((name for name in ("step", "epoch", "images", "lr") if _finite(entry.get(name))), "line")
        named = (x_name, y_name)
        xs.append(float(entry.get(x_name, number)))
        ys.append(float(entry[y_name]))
    if len(xs) < 2:
        return ""
    stride = max(1, len(xs) // _MOST_POINTS)
    pairs = list(zip(xs, ys, strict=True))
    kept = pairs[::stride] + ([pairs[-1]] if (len(pairs) - 1) % stride else [])
    box = _Box(xs, ys, 240, 90, left=60, bottom=16)
    parts = [_open(320, 120, f"{named[1]} by {named[0]}"), box.frame(), f'<path class="front" d="{box.path(kept)}"/>']
    parts += box.labels(f"{min(xs):g}", f"{max(xs):g} ({named[0]})", f"{min(ys):.3g}", f"{max(ys):.3g}")
    parts.append(f'<text x="{60 + 236}" y="20" text-anchor="end">{_text(named[1].replace("_", " "))}</text>')
    return "".join([*parts, "</svg>"])


def _finite(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30  # type: ignore[arg-type]


class _Box:
    """Maps numbers to pixels: x to the right, y upwards (downwards where it is flipped)."""

    def __init__(
        self, xs: Sequence[float], ys: Sequence[float], width: int, height: int, left: int, bottom: int,
        flipped: bool = False,
    ) -> None:
        self.low, self.high = (min(xs), min(ys)), (max(xs), max(ys))
        self.flipped = flipped  # y downwards
        self.width, self.height, self.left, self.top = width, height, left, 8
        self.bottom = bottom

    def at(self, x: float, y: float) -> tuple[str, str]:
        wide, tall = (self.high[i] - self.low[i] or 1.0 for i in range(2))
        px = self.left + 6 + (x - self.low[0]) / wide * (self.width - 12)
        fallen = (y - self.low[1] if self.flipped else self.high[1] - y) / tall
        py = self.top + 6 + fallen * (self.height - 12)
        return f"{px:.1f}", f"{py:.1f}"

    def path(self, pairs: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(" ".join(self.at(x, y)) for x, y in pairs) if pairs else ""

    def frame(self) -> str:
        return f'<rect class="frame" x="{self.left}" y="{self.top}" width="{self.width}" height="{self.height}"/>'

    def labels(self, x_low: str, x_high: str, y_low: str, y_high: str) -> list[str]:
        floor, right = self.top + self.height, self.left + self.width
        y_low, y_high = (y_high, y_low) if self.flipped else (y_low, y_high)
        return [
            f'<text x="{self.left}" y="{floor + 14}">{_text(x_low)}</text>',
            f'<text x="{right}" y="{floor + 14}" text-anchor="end">{_text(x_high)}</text>',
            f'<text x="{self.left - 4}" y="{floor}" text-anchor="end">{_text(y_low)}</text>',
            f'<text x="{self.left - 4}" y="{self.top + 10}" text-anchor="end">{_text(y_high)}</text>',
        ]


def _open(width: int, height: int, label: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" aria-label="{_text(label)}">'


def _short(text: str, most: int = _LABEL) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _text(text: str) -> str:
    return escape(text, quote=True)


# --- files ------------------------------------------------------------------------------------------------------------

_FILE_STYLE = """\
svg{font:11px system-ui,sans-serif;fill:#1b1f24;color:#1b1f24}.paper{fill:#fff}.bar{fill:#0757a8;opacity:.35}
.seeds{stroke:currentColor;stroke-width:3}.items{stroke:currentColor;stroke-width:1}.frame{fill:none;stroke:#d0d7de}
.front{fill:none;stroke:#0757a8;stroke-width:1.5}.on{fill:#0757a8}.off{fill:none;stroke:currentColor}.head{font-weight:600}
@media (prefers-color-scheme:dark){svg{fill:#e6e9ec;color:#e6e9ec}.paper{fill:#12161b}.bar,.on{fill:#79b8ff}
.front{stroke:#79b8ff}.frame{stroke:#343c46}}"""


def sheet(title: str, drawings: Sequence[tuple[str, str]], columns: int = 2) -> str:
    """Several figures, each under its heading, as one SVG file that follows light and dark; empty without any.

    Args:
        drawings: (heading, SVG of :func:`bars` or :func:`pareto`) each; empty ones are left out.
    """
    drawings = [(heading, drawing) for heading, drawing in drawings if drawing]
    if not drawings:
        return ""
    sizes = [tuple(map(int, re.findall(r'viewBox="0 0 (\d+) (\d+)"', drawing)[0])) for _, drawing in drawings]
    wide = max(width for width, _ in sizes) + 20
    parts, top = [], 34
    for start in range(0, len(drawings), columns):
        line = zip(drawings[start : start + columns], sizes[start : start + columns], strict=True)
        for i, ((heading, drawing), (_, tall)) in enumerate(line):
            parts.append(f'<text class="head" x="{i * wide + 16}" y="{top + 12}">{_text(heading)}</text>')
            parts.append(drawing.replace("<svg ", f'<svg x="{i * wide}" y="{top + 20}" height="{tall}" ', 1))
        top += max(height for _, height in sizes[start : start + columns]) + 40
    width = wide * min(columns, len(drawings))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" role="img" '
        f'aria-label="{_text(title)}"><style>{_FILE_STYLE}</style><rect class="paper" width="{width}" height="{top}"/>'
        f'<text class="head" x="16" y="22" font-size="14">{_text(title)}</text>{"".join(parts)}</svg>\n'
    )
