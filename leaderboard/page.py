"""The leaderboard as one HTML file: nothing to load, light or dark as the reader's system is, every name escaped.

Without scripts the page shows everything. The one script it holds sorts by any heading, hides suites, budgets, tasks
and protocols, and folds the runs of each row away; the page's own security policy allows that script by its hash and
nothing else, so a name from a record could not run even if escaping failed.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from . import figures
from .learned import section
from .page_parts import SCRIPT, STYLE, TEMPLATE
from .published import ALONE_HEADS, HEADS, Beside, alone, legend, lines
from .records import Record
from .table import Group, Row, Table

PICTURE = "views"  # stem of the sheet of pictures that may lie beside a backbone's description
_MOST_PICTURE_BYTES = 400 * 1024
_PICTURES = {".webp": (b"RIFF", "image/webp"), ".png": (b"\x89PNG\r\n\x1a\n", "image/png"),
             ".jpg": (b"\xff\xd8\xff", "image/jpeg")}  # fmt: skip


class _Block(NamedTuple):
    """One budget of a suite."""

    group: Group
    rows: list[tuple[Row, dict[str, Any], str]]  # row, its runs, its id on the page
    figures: list[tuple[Any, str, str]]
    width: int  # columns


class _Part(NamedTuple):
    """One suite, or some protocols of it."""

    heading: str
    table: Table
    blocks: list[_Block]
    learned: str  # HTML


def page(
    table: Table | Sequence[Table], published: list[Beside] | None = None, analyses: Sequence[Record] = ()
) -> str:
    """The whole file, as text.

    Args:
        table: one suite's table, or those of several suites in the order they are to be shown.
        published: published numbers to show beside ours; None leaves that part out, an empty list says there are none.
        analyses: what is known of the backbones beside their scores, as from ``read_analyses``.
    """
    from jinja2 import Environment, StrictUndefined

    tables = [table] if isinstance(table, Table) else list(table)
    columns = [column for one in tables for column in one.columns]
    groups = [group for one in tables for group in one.groups]
    filters = [
        ("suite", _once(one.suite for one in tables if one.suite)), ("budget", _once(group.budget for group in groups)),
        ("task", _once(column.task for column in columns)), ("protocol", _once(column.protocol for column in columns)),
    ]  # fmt: skip
    rows = sum(len(one.rows) for one in tables)
    runs = sum(len(row.runs) for one in tables for row in one.rows)
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(TEMPLATE)
    return template.render(
        parts=[_part(number, one, tables, analyses) for number, one in enumerate(tables, 1)], filters=filters,
        title=", ".join(_once(one.suite for one in tables if one.suite)) or "no records",
        counts=f"{rows:,} row{'s' * (rows != 1)}, {runs:,} record{'s' * (runs != 1)}.",
        classes={1: " best", 2: " second"}, style=STYLE, script=SCRIPT, cost_of_a_seed=figures.COST_OF_A_SEED,
        script_hash=base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode(),
        published=None if published is None else lines(published), published_heads=HEADS,
        published_legend="" if published is None else legend(tables, published),
        alone=[] if published is None else alone(tables, published), alone_heads=ALONE_HEADS,
    )  # fmt: skip


def _once(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _part(number: int, table: Table, tables: Sequence[Table], analyses: Sequence[Record]) -> _Part:
    mine = [one for one in tables if one.suite == table.suite]
    protocols = f": {', '.join(_once(column.protocol for column in table.columns))}" if len(mine) > 1 else ""
    blocks = []
    for place, group in enumerate(table.groups or (Group("", ()),), 1):
        drawn = [(c, figures.bars(group.rows, c), figures.pareto(group.rows, c)) for c in table.columns]
        rows = [(row, _runs(row), f"row-{number}-{place}-{i}") for i, row in enumerate(group.rows, 1)]
        width = len(group.left_heads) + len(table.columns) + len(group.right_heads)
        blocks.append(_Block(group, rows, [part for part in drawn if part[1]], width))
    runs = [run for one in mine for row in one.rows for run in row.runs]
    learned = section(analyses, runs, table.suite) if analyses and table is mine[0] else ""
    return _Part(f"Suite {table.suite or '–'}{protocols}", table, blocks, learned)


def _runs(row: Row) -> dict[str, Any]:
    """A row's runs, and the texts that several of them share, each once."""
    texts: dict[tuple[str, str], list[str]] = {}
    seeds: dict[int, Path] = {}  # seed -> folder of its pre-training
    cells = []
    for run in sorted(row.runs, key=lambda run: (run.task, run.protocol, run.seed)):
        name = f"{run.task}.{run.protocol} seed {run.seed}"
        texts.setdefault(("settings", _json(run.config)), []).append(name)
        texts.setdefault(("environment", _json(run.environment)), []).append(name)
        curve = ""
        if run.path is not None:
            curve = figures.curve(run.path.with_name("log.jsonl"))
            seeds.setdefault(run.seed, run.path.parent.parent / "pretrain")
        cells.append({
            "task": run.task, "protocol": run.protocol, "seed": run.seed, "status": run.status,
            "reason": run.reason, "numbers": _numbers(run), "cost": _cost(run), "command": run.command,
            "again": _again(run), "curve": curve,
        })  # fmt: skip
    shared = []
    for (kind, text), names in texts.items():
        shared.append((f"{kind} of {', '.join(names[:6])}{' …' if len(names) > 6 else ''}", text))
    curves = ((seed, figures.curve(folder / "log.jsonl")) for seed, folder in sorted(seeds.items()))
    pictures = (_picture(folder) for _, folder in sorted(seeds.items()))
    return {
        "cells": cells, "texts": shared, "pretraining": [pair for pair in curves if pair[1]],
        "pictures": [picture for picture in pictures if picture][:1],
    }  # fmt: skip


def _picture(folder: Path) -> str:
    """The sheet of pictures in a folder of pre-training as a data URL; empty where there is none, or no such file."""
    for suffix, (magic, kind) in _PICTURES.items():
        try:
            with open(folder / f"{PICTURE}{suffix}", "rb") as file:
                data = file.read(_MOST_PICTURE_BYTES + 1)
        except OSError:
            continue
        if data.startswith(magic) and len(data) <= _MOST_PICTURE_BYTES:
            return f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return ""


def _numbers(run: Record) -> str:
    return ", ".join(
        f"{name} {metric['value']:.4g} {metric['unit']}".rstrip() for name, metric in run.metrics.items()
    )


def _cost(run: Record) -> str:
    cost = run.cost
    facts = [("pictures of pre-training", cost["pretrain_images"]), ("s of pre-training", cost["pretrain_seconds"]),
             ("pictures of training", cost["train_images"]), ("s of training and scoring", cost["seconds"])]
    told = ", ".join(f"{value:,.0f} {unit}" for unit, value in facts if value is not None)
    return f"{told or 'cost unknown'} on {cost['device']}; {_minute(run.started)} to {_minute(run.finished)}"


def _minute(moment: str) -> str:
    return moment[:16].replace("T", " ")


def _again(run: Record) -> str:
    if run.path is None or len(run.path.parts) < 5:
        return ""
    return f"bench reproduce {'/'.join(run.path.parts[-5:-1])}"


def _json(value: Any) -> str:
    try:
        return json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)
    except (RecursionError, ValueError, TypeError):
        return "nested too deeply to show"
