"""The table as text: markdown, CSV, JSON, LaTeX, HTML, or on a terminal.

Every name comes from a record and is data: whatever it holds is shown as text in all formats.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .records import RecordError
from .statistics import LEVEL, PAIR_METHOD
from .table import LEFT_HEADS, RIGHT_HEADS, Cell, Row, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

SCHEMA = 1  # of the JSON


def render(table: Table, format: str) -> str:
    """The table in one of FORMATS, ending in a line break.

    Raises:
        ValueError: no such format.
    """
    if format not in _RENDERERS:
        raise ValueError(f"no format {format!r}; there are {', '.join(_RENDERERS)}")
    return _RENDERERS[format](table).rstrip("\n") + "\n"


def write_text(path: Path, text: str) -> None:
    """Write the file whole or not at all; missing folders are made.

    Raises:
        RecordError: it cannot be written; one line with the path.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a pipe or a device is written to, never replaced
            path.write_text(text, encoding="utf-8")
            return
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise RecordError(f"cannot write {path}: {error.strerror or error}; choose another file") from error


# --- markdown ---------------------------------------------------------------------------------------------------------


def _markdown(table: Table) -> str:
    from tabulate import tabulate

    heads = [*LEFT_HEADS, *(" · ".join(map(_md, column.heading)) for column in table.columns), *RIGHT_HEADS]
    rows = [
        [*map(_md, row.left), *(_md_cell(cell) for cell in row.cells.values()), *map(_md, row.right)]
        for row in table.rows
    ]
    body = tabulate(rows, heads, tablefmt="github", disable_numparse=True)
    notes = "\n".join(f"{number}. {_md(note)}" for number, note in enumerate(table.notes, 1))
    return "\n\n".join(filter(None, (body, _md(table.legend), notes)))


def _md_cell(cell: Cell) -> str:
    text = _md(cell.text)
    text = {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(cell.place or 0, text)
    return text + (f" <sup>{', '.join(map(str, cell.notes))}</sup>" if cell.notes else "")


def _md(text: str) -> str:
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]~|$])", r"\\\1", text)
    # Underscores inside a word (vit_tiny) mean nothing to markdown and stay as they are.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def comparisons(table: Table) -> str:
    """Every tested pair as markdown, the surest difference of each column first."""
    from tabulate import tabulate

    direction = {column.id: column for column in table.columns}
    rows = []
    for pair in sorted(table.comparisons, key=lambda pair: (list(direction).index(pair.column), pair.corrected)):
        names = [" ".join(filter(None, name if _ambiguous(table) else name[:1])) for name in (pair.a, pair.b)]
        better = (pair.difference > 0) == direction[pair.column].higher_is_better
        rows.append([
            pair.column, *map(_md, names), f"{pair.difference:+.3f}", f"{pair.n} {pair.over}", f"{pair.p:.2g}",
            f"{pair.corrected:.2g}", (f"{'first' if better else 'second'} is better" if pair.significant else "tie"),
        ])
    heads = ["task", "first", "second", "difference", "over", "p", "p corrected", "finding"]
    body = tabulate(rows, heads, tablefmt="github", disable_numparse=True)
    return f"{body}\n\nDifference: first less second, in the metric's unit. {_md(PAIR_METHOD)}; level {LEVEL}.\n"


def _ambiguous(table: Table) -> bool:
    """Whether objectives alone do not tell the rows apart."""
    return len({row.objective for row in table.rows}) < len(table.rows)


# --- CSV and JSON -----------------------------------------------------------------------------------------------------


def _csv(table: Table) -> str:
    heads = ["mean_rank", "objective", "backbone", "budget"]
    heads += ["pretrain_images", "pretrain_seconds", "device_hours", "device"]
    for column in table.columns:
        name = f"{column.id}.{column.metric}" if column.metric else column.id
        heads += [name, f"{name}.half_ci95", f"{name}.items_low", f"{name}.items_high"]
        heads += [f"{name}.n", f"{name}.status", f"{name}.rank"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_csv_text, heads))
    for row in table.rows:
        cost = row.cost
        line: list[Any] = [
            "" if row.mean_rank is None else f"{row.mean_rank:.2f}",
            *map(_csv_text, (row.objective, row.backbone, row.budget)),
            cost.pretrain_images,
            "" if cost.pretrain_seconds is None else f"{cost.pretrain_seconds:.0f}",
            "" if cost.device_hours is None else f"{cost.device_hours:.2f}",
            _csv_text(cost.device),
        ]
        for cell in row.cells.values():
            line += [cell.mean_text, cell.half_text, *(cell.items_text or ("", "")), cell.n, cell.status, cell.rank]
        writer.writerow(line)
    return file.getvalue()


def _csv_text(text: str) -> str:
    # A spreadsheet would run a name that begins like a formula; the apostrophe makes it text.
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def _json(table: Table) -> str:
    document = {
        "schema": SCHEMA,
        "suite": table.suite,
        "columns": [
            {
                "id": column.id,
                "task": column.task,
                "metric": column.metric,
                "higher_is_better": column.higher_is_better,
                "protocol": column.protocol,
            }
            for column in table.columns
        ],
        "rows": [_json_row(row) for row in table.rows],
    }
    return json.dumps(document, indent=1, allow_nan=False)


def _json_row(row: Row) -> dict[str, Any]:
    return {
        "objective": row.objective,
        "backbone": row.backbone,
        "budget": row.budget,
        "cells": {
            name: {
                "mean": cell.summary.mean if cell.summary else None,
                "ci95": list(cell.summary.ci95) if cell.summary and cell.summary.ci95 else None,
                "n": cell.n,
                "status": cell.status,
                **({"items95": list(cell.items95)} if cell.items95 else {}),  # over test items, not seeds
            }
            for name, cell in row.cells.items()
        },
        "rank": row.mean_rank,
        "cost": {
            "pretrain_images": row.cost.pretrain_images,
            "pretrain_seconds": row.cost.pretrain_seconds,
            "device_hours": row.cost.device_hours,
            "device": row.cost.device,
            "flops": row.cost.flops,
            "peak_memory_bytes": row.cost.peak_memory_bytes,
        },
    }


# --- LaTeX ------------------------------------------------------------------------------------------------------------

_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "`": r"\textasciigrave{}", "-": "{-}", "–": "--", "±": r"$\pm$", "×": r"$\times$",
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "−": "$-$", "…": r"\ldots{}", "√": r"$\surd$", "�": "?",
    "[": "{[}", "]": "{]}", "*": "{*}",  # after the \\ of the row before, these would be its arguments
}  # fmt: skip


def _latex(table: Table) -> str:
    """A ``table`` environment; the document needs the package booktabs (and a Unicode engine for other scripts)."""
    stacked = [r"\shortstack{" + r" \\ ".join(map(_tex, column.heading)) + "}" for column in table.columns]
    heads = [*map(_tex, LEFT_HEADS), *stacked, *map(_tex, RIGHT_HEADS)]
    layout = "rlll" + "r" * len(table.columns) + "rrrl"
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        rf"\caption{{{_tex(table.legend)}}}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        cells = [*map(_tex, row.left), *(_tex_cell(cell) for cell in row.cells.values()), *map(_tex, row.right)]
        lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize \textsuperscript{{{i}}} {_tex(note)}" for i, note in enumerate(table.notes, 1)]
    return "\n".join([*lines, r"\end{table}"])


def _tex_cell(cell: Cell) -> str:
    text = _tex(cell.text)
    text = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(cell.place or 0, text)
    return text + (rf"\textsuperscript{{{', '.join(map(str, cell.notes))}}}" if cell.notes else "")


def _tex(text: str) -> str:
    return "".join(_TEX.get(char, char) for char in text)


# --- HTML and terminal ------------------------------------------------------------------------------------------------


def _html(table: Table) -> str:
    from .page import page

    return page(table)


def print_terminal(table: Table, console: Console | None = None) -> None:
    """Print the table on a rich console (standard output by default).

    A terminal too narrow for it gets one line a cell instead of one a row; a file or pipe gets every row whole.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    grid, shared = _wide(table)
    grid.width = console.measure(grid, options=console.options.update(width=100_000)).maximum
    if console.is_terminal and grid.width > console.width:
        grid, shared = _tall(table), ""
    console.print(grid, crop=False)
    notes = (f"[{number}] {note}" for number, note in enumerate(table.notes, 1))
    for line in filter(None, (shared, table.legend, *notes)):
        console.print(Text(line), crop=False, soft_wrap=not console.is_terminal)


def _wide(table: Table) -> tuple[RichTable, str]:
    """A line a row, and what all rows have in common, which needs no column of its own."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    heads = (*LEFT_HEADS, *RIGHT_HEADS)
    common = {}
    for head, texts in zip(heads, zip(*(row.left + row.right for row in table.rows), strict=True), strict=False):
        if head in ("backbone", "budget", "seeds", "device") and len(set(texts)) == 1:
            common[head] = texts[0]
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    lines: list[list[Text]] = [[] for _ in table.rows]

    # Text objects, never strings: rich would read square brackets in a name as markup.
    def add(heading: str, texts: list[Text], left: bool) -> None:
        grid.add_column(Text(heading), justify="left" if left else "right", no_wrap=True)
        for line, text in zip(lines, texts, strict=True):
            line.append(text)

    for i, head in enumerate(LEFT_HEADS):
        if head not in common:
            add(head, [Text(row.left[i]) for row in table.rows], left=i > 0)
    for column in table.columns:
        add("\n".join(column.heading), [_rich_cell(row.cells[column.id]) for row in table.rows], left=False)
    for i, head in enumerate(RIGHT_HEADS):
        if head not in common:
            add(head, [Text(row.right[i]) for row in table.rows], left=head == "device")
    for line in lines:
        grid.add_row(*line)
    shared = ", ".join(f"{head} {text}" for head, text in common.items())
    return grid, f"All rows: {shared}." if shared else ""


def _tall(table: Table) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("objective", overflow="fold")
    grid.add_column("task", overflow="fold")
    grid.add_column("score", justify="right", overflow="fold")
    for row in table.rows:
        name = Text(row.objective)  # on the first line of the row only
        for column in table.columns:
            task, protocol, measure = column.heading
            grid.add_row(name, Text(f"{task} {protocol}, {measure}"), _rich_cell(row.cells[column.id]))
            name = Text("")
        facts = [*zip(LEFT_HEADS, row.left, strict=True), *zip(RIGHT_HEADS, row.right, strict=True)]
        for head, text in facts:
            if head != "objective":
                grid.add_row("", Text(head, "dim"), Text(text, "dim"), end_section=head == RIGHT_HEADS[-1])
    return grid


def _rich_cell(cell: Cell) -> Text:
    from rich.text import Text

    text = Text()
    text.append(cell.text, {1: "bold", 2: "underline"}.get(cell.place or 0, ""))
    return text.append(f" [{', '.join(map(str, cell.notes))}]", "dim") if cell.notes else text


_RENDERERS: dict[str, Callable[[Table], str]] = {
    "md": _markdown, "html": _html, "csv": _csv, "tex": _latex, "json": _json,
}  # fmt: skip
FORMATS = tuple(_RENDERERS)
