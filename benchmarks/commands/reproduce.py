"""``bench reproduce``: a record's cell run again, or what a published table would take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.errors import EXIT_FAILED
from benchmarks.options import COMMITTED, DataRoot, Device, DryRun, Runs


def reproduce(
    what: Annotated[str, typer.Argument(help="A record (result.json, or suite/objective/seed0/task.protocol), or "
                                             "PAPER[:TABLE] of `bench list tables`.")],
    output: Annotated[Path, typer.Option(help="Folder for the new runs; never the old ones'.")] = Path("reproduced"),
    runs: Runs = Path("runs"),
    data_root: DataRoot = None,
    device: Device = "auto",
    suite: Annotated[str, typer.Option(help="Suite that a paper's tables are run on.")] = "paper",
    dry_run: DryRun = False,
) -> None:
    """Run a record's cell again from the record alone and compare; or show what a published table would take."""
    from benchmarks import reproduce as again
    from leaderboard.published import find

    tables = find(what)
    if tables:
        for line in again.paper_lines(tables, suite, data_root):
            print(line)
        if not dry_run and (reason := again.cannot_run(suite)):
            print(f"bench: {reason}", file=sys.stderr)
            raise typer.Exit(EXIT_FAILED)
        return
    verdicts = again.reproduce(what, output, runs, COMMITTED, data_root, device, dry_run, print)
    if "differs" in verdicts or "failed" in verdicts:
        raise typer.Exit(EXIT_FAILED)
