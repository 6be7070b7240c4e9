"""``bench compare``: what changed between two tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.errors import RequestError
from benchmarks.options import choice

FORMATS = ("terminal", "md", "json")


def compare(
    a: Annotated[Path, typer.Argument(help="Folder of runs or records, or a table of `bench leaderboard --format "
                                           "json`: before.")],
    b: Annotated[Path, typer.Argument(help="The same: after.")],
    suite: Annotated[str, typer.Option(help="Suite of the folders' records; needed where they hold several.")] = "",
    output_format: Annotated[
        str, typer.Option("--format", help="terminal, md or json.", callback=choice("--format", FORMATS))
    ] = "terminal",
    output: Annotated[Path | None, typer.Option(help="File to write instead of stdout.")] = None,
) -> None:
    """Print what changed between two tables.

    Rows, numbers, significance, from table A to table B. Two objectives of one table: bench leaderboard --pairs.
    """
    from benchmarks.commands.leaderboard import deliver
    from benchmarks.suite import declared_settings
    from leaderboard import compare as comparison
    from leaderboard.table import TableError

    try:
        before, after = (comparison.read_side(path, suite or None, declared_settings) for path in (a, b))
        found = comparison.compare(before, after)
    except TableError as error:
        raise RequestError(f"{error}; --suite NAME" if "several" in str(error) else str(error)) from error
    if output_format == "json":
        text = json.dumps(comparison.as_json(found), indent=1) + "\n"
    else:
        text = comparison.text(found, "github" if output_format == "md" else "simple")
    deliver(text, output)
