"""``bench list``: what there is to run and to compare with."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from benchmarks.options import TextFormat


class Listing(StrEnum):
    """What ``bench list`` lists."""

    objectives = "objectives"
    tasks = "tasks"
    suites = "suites"
    tables = "tables"


WRAPPED = 36  # characters of a column, where several are long


def list_(
    what: Annotated[Listing, typer.Argument(help="What to list.")], output_format: TextFormat = "text"
) -> None:
    """List objectives, tasks, suites, paper tables."""
    from tabulate import tabulate

    as_json = output_format == "json"
    rows = ROWS[what](as_json)
    wide = WRAPPED if what is Listing.suites else None
    text = json.dumps(rows, indent=1) if as_json else tabulate(
        rows, headers="keys", tablefmt="simple", maxcolwidths=wide)
    sys.stdout.write(text + "\n")


def _objectives(as_json: bool) -> list[dict[str, Any]]:
    """JSON has the parts of each slot with their arguments, text their names."""
    from objectives.recipe import SLOTS, Recipe, recipes

    def slots(recipe: Recipe) -> dict[str, Any]:
        if as_json:
            return {slot: dict(getattr(recipe, slot)) for slot in SLOTS}
        return {"slots": " · ".join(str(getattr(recipe, slot)["type"]) for slot in SLOTS)}

    ordered = sorted(recipes().values(), key=lambda recipe: recipe.name)
    return [{"name": r.name, "paper": r.paper, "summary": r.summary, **slots(r)} for r in ordered]


def _tasks(as_json: bool) -> list[dict[str, Any]]:
    from downstream.task import TASKS

    return [
        {"name": t.name, "metric": f"{t.metrics[0].name} {'↑' if t.metrics[0].higher_is_better else '↓'}",
         "protocols": ", ".join(t.protocols), "version": t.version, "summary": t.summary}
        for t in TASKS.values()
    ]


def _suites(as_json: bool) -> list[dict[str, Any]]:
    from benchmarks.suite import suites

    return [
        {"name": s.name, "backbone": s.model,
         "budgets": ", ".join(f"{k} {v:,}" for k, v in s.budgets.items()) + " images",
         "protocol": s.default_protocol, "data": "rendered" if s.rendered else "--data-root",
         "tasks": ", ".join(s.data), "summary": s.summary}
        for s in suites().values()
    ]


def _tables(as_json: bool) -> list[dict[str, Any]]:
    from leaderboard.published import tables

    return [
        {"name": t.id, "arxiv": t.arxiv, "numbers": len(t.numbers), "unverified": t.unverified,
         "summary": f"{t.title}: {', '.join(sorted({n.dataset for n in t.numbers}))}"}
        for t in tables()
    ]


ROWS: dict[Listing, Callable[[bool], list[dict[str, Any]]]] = {
    Listing.objectives: _objectives, Listing.tasks: _tasks, Listing.suites: _suites, Listing.tables: _tables,
}
