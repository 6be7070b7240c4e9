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
from .statistics import LEVEL
from .table import Cell, Comparison, Group, Row, Table

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

    parts = []
    for group in table.groups or (Group("", ()),):
        heads = [*group.left_heads, *(" · ".join(map(md, column.heading)) for column in table.columns)]
        rows = [
            [*map(md, row.under(group.left_heads)), *(_md_cell(cell) for cell in row.cells.values()),
             *map(md, row.under(group.right_heads))]
            for row in group.rows
        ]  # fmt: skip
        parts += [f"**{md(group.title)}**"] if group.rows else []
        parts.append(tabulate(rows, [*heads, *group.right_heads], tablefmt="github", disable_numparse=True))
    notes = "\n".join(f"{number}. {md(note)}" for number, note in enumerate(table.notes, 1))
    return "\n\n".join(filter(None, (*parts, md(table.legend), notes)))


def _md_cell(cell: Cell) -> str:
    text = md(cell.text)
    text = {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(cell.place or 0, text)
    return text + (f" <sup>{', '.join(cell.marks)}</sup>" if cell.marks else "")


def md(text: str) -> str:
    """Any text for markdown, shown as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]~|$])", r"\\\1", text)
    # Underscores inside a word (vit_tiny) mean nothing to markdown and stay as they are.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def comparisons(table: Table, shown: Callable[[Comparison], bool] = lambda pair: True) -> str:
    """The tested pairs as markdown, the surest difference of each column first.

    Args:
        shown: of which pairs; all of a column count for the correction.
    """
    from tabulate import tabulate

    direction = {column.id: column for column in table.columns}
    rows = []
    chosen = filter(shown, table.comparisons)
    for pair in sorted(chosen, key=lambda pair: (list(direction).index(pair.column), pair.corrected)):
        names = [" ".join(filter(None, name if _ambiguous(table) else name[:1])) for name in (pair.a, pair.b)]
        better = (pair.difference > 0) == direction[pair.column].higher_is_better
        rows.append([
            pair.column, *map(md, names), f"{pair.difference:+.3f}", pair.basis, f"{pair.p:.2g}",
            f"{pair.corrected:.2g}", (f"{'first' if better else 'second'} is better" if pair.significant else "tie"),
        ])
    heads = ["task", "first", "second", "difference", "over", "p", "p corrected", "finding"]
    body = tabulate(rows, heads, tablefmt="github", disable_numparse=True)
    return f"{body}\n\nDifference: first less second, in the metric's unit. {md(table.pair_method)}; level {LEVEL}.\n"


def _ambiguous(table: Table) -> bool:
    """Whether objectives alone do not tell the rows apart."""
    return len({row.objective for row in table.rows}) < len(table.rows)


# --- CSV and JSON -----------------------------------------------------------------------------------------------------


def _csv(table: Table) -> str:
    heads = ["mean_rank", "objective", "backbone", "budget"]
    heads += ["pretrain_images", "pretrain_seconds", "device_hours", "cpu_hours", "gpu_hours", "flops", "device"]
    for column in table.columns:
        name = f"{column.id}.{column.metric}" if column.metric else column.id
        heads += [name, f"{name}.half_ci95", f"{name}.items_low", f"{name}.items_high"]
        heads += [f"{name}.n", f"{name}.status", f"{name}.rank", f"{name}.unranked"]
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
            *("" if h is None else f"{h:.2f}" for h in (cost.device_hours, cost.cpu_hours, cost.gpu_hours)),
            "" if cost.flops is None else cost.flops_text,
            _csv_text(cost.device),
        ]
        for cell in row.cells.values():
            line += [cell.mean_text, cell.half_text, *(cell.items_text or ("", "")), cell.n, cell.status, cell.rank]
            line.append(_csv_text(cell.unranked))
        writer.writerow(line)
    return file.getvalue()


def _csv_text(text: str) -> str:
    # A spreadsheet would run a name that begins like a formula; the apostrophe makes it text.
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text


def _json(table: Table) -> str:
    return json.dumps(json_document(table), indent=1, allow_nan=False)


def json_document(table: Table) -> dict[str, Any]:
    """The table as JSON of :data:`SCHEMA`, not yet text."""
    return {
        "schema": SCHEMA,
        "suite": table.suite,
        "columns": [
            {
                "id": column.id,
                "task": column.task,
                "metric": column.metric,
                "higher_is_better": column.higher_is_better,
                "protocol": column.protocol,
                "version": column.version,
            }
            for column in table.columns
        ],
        "rows": [_json_row(row) for row in table.rows],
        "notes": list(table.notes),
    }


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
                "rank": cell.rank,  # within the budget; null where it is not ranked
                **({"items95": list(cell.items95)} if cell.items95 else {}),  # over test items, not seeds
                **({"unranked": cell.unranked} if cell.unranked else {}),  # why it takes no part in the ranks
            }
            for name, cell in row.cells.items()
        },
        "rank": row.mean_rank,
        "cost": {
            "pretrain_images": row.cost.pretrain_images,
            "pretrain_seconds": row.cost.pretrain_seconds,
            "device_hours": row.cost.device_hours,
            "cpu_hours": row.cost.cpu_hours,
            "gpu_hours": row.cost.gpu_hours,
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
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "−": "$-$", "†": r"$\dagger$", "…": r"\ldots{}",
    "√": r"$\surd$", "�": "?",
    "[": "{[}", "]": "{]}", "*": "{*}",  # after the \\ of the row before, these would be its arguments
}  # fmt: skip


def _latex(table: Table) -> str:
    """A ``table`` environment; the document needs the package booktabs (and a Unicode engine for other scripts)."""
    lines = ["% needs \\usepackage{booktabs}", r"\begin{table}", rf"\caption{{{_tex(table.legend)}}}"]
    for group in table.groups or (Group("", ()),):
        stacked = [r"\shortstack{" + r" \\ ".join(map(_tex, column.heading)) + "}" for column in table.columns]
        heads = [*map(_tex, group.left_heads), *stacked, *map(_tex, group.right_heads)]
        layout = "".join("r" if head == "mean rank" else "l" for head in group.left_heads) + "r" * len(table.columns)
        layout += "".join("l" if head == "device" else "r" for head in group.right_heads)
        lines += [rf"\par\medskip {_tex(group.title)}\par\smallskip"] if group.rows else []
        lines.append(r"{\footnotesize\setlength{\tabcolsep}{3pt}")
        lines += [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
        for row in group.rows:
            cells = [*map(_tex, row.under(group.left_heads)), *(_tex_cell(cell) for cell in row.cells.values())]
            lines.append(" & ".join([*cells, *map(_tex, row.under(group.right_heads))]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}}"]
    lines += [rf"\par\footnotesize \textsuperscript{{{i}}} {_tex(note)}" for i, note in enumerate(table.notes, 1)]
    return "\n".join([*lines, r"\end{table}"])


def _tex_cell(cell: Cell) -> str:
    text = _tex(cell.text)
    text = {1: rf"\textbf{{{text}}}", 2: rf"\underline{{{text}}}"}.get(cell.place or 0, text)
    return text + (rf"\textsuperscript{{{', '.join(map(_tex, cell.marks))}}}" if cell.marks else "")


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
    for group in table.groups or (Group("", ()),):
        grid = _wide(table, group)
        grid.width = console.measure(grid, options=console.options.update(width=100_000)).maximum
        if console.is_terminal and grid.width > console.width:
            grid = _tall(table, group)
        if group.rows:
            console.print(Text(group.title, "bold"), crop=False, soft_wrap=not console.is_terminal)
        console.print(grid, crop=False)
    notes = (f"[{number}] {note}" for number, note in enumerate(table.notes, 1))
    for line in (table.legend, *notes):
        console.print(Text(line), crop=False, soft_wrap=not console.is_terminal)


def _wide(table: Table, group: Group) -> RichTable:
    """A line a row."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    lines: list[list[Text]] = [[] for _ in group.rows]

    # Text objects, never strings: rich would read square brackets in a name as markup.
    def add(heading: str, texts: list[Text], left: bool) -> None:
        grid.add_column(Text(heading), justify="left" if left else "right", no_wrap=True)
        for line, text in zip(lines, texts, strict=True):
            line.append(text)

    for head in group.left_heads:
        add(head, [Text(*row.under([head])) for row in group.rows], left=head != "mean rank")
    for column in table.columns:
        add("\n".join(column.heading), [_rich_cell(row.cells[column.id]) for row in group.rows], left=False)
    for head in group.right_heads:
        add(head, [Text(*row.under([head])) for row in group.rows], left=head == "device")
    for line in lines:
        grid.add_row(*line)
    return grid


def _tall(table: Table, group: Group) -> RichTable:
    """A line a cell, for a terminal too narrow for a line a row."""
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    grid.add_column("objective", overflow="fold")
    grid.add_column("task", overflow="fold")
    grid.add_column("score", justify="right", overflow="fold")
    for row in group.rows:
        name = Text(row.objective)  # on the first line of the row only
        for column in table.columns:
            task, protocol, measure = column.heading
            grid.add_row(name, Text(f"{task} {protocol}, {measure}"), _rich_cell(row.cells[column.id]))
            name = Text("")
        heads = [head for head in (*group.left_heads, *group.right_heads) if head != "objective"]
        for head, text in zip(heads, row.under(heads), strict=True):
            grid.add_row("", Text(head, "dim"), Text(text, "dim"), end_section=head == heads[-1])
    return grid


def _rich_cell(cell: Cell) -> Text:
    from rich.text import Text

    text = Text()
    text.append(cell.text, {1: "bold", 2: "underline"}.get(cell.place or 0, ""))
    return text.append(f" [{', '.join(cell.marks)}]", "dim") if cell.marks else text


_RENDERERS: dict[str, Callable[[Table], str]] = {
    "md": _markdown, "html": _html, "csv": _csv, "tex": _latex, "json": _json,
}  # fmt: skip
FORMATS = tuple(_RENDERERS)
