"""``bench bundle`` and ``bench verify``: a row's evidence in one file, and its check elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.errors import EXIT_FAILED, RequestError
from benchmarks.options import COMMITTED, Runs


def bundle(
    row: Annotated[str, typer.Argument(
        help="suite/objective[/seed0[/task.protocol]], looked for in --runs, then among the committed records; "
             "or a folder of records."
    )],
    output: Annotated[Path, typer.Argument(help="Zip file to write.")],
    runs: Runs = Path("runs"),
) -> None:
    """Pack a row's evidence into one zip file.

    Records, logs and commands, for a reviewer.
    """
    from leaderboard import bundle as bundles
    from leaderboard.records import InvalidRecord

    try:
        folder = bundles.row_folder(row, [runs, COMMITTED])
        count = bundles.bundle(folder, output)
    except (bundles.BundleError, InvalidRecord) as error:
        raise RequestError(str(error)) from error
    print(f"{output}: {count} records of {folder}")


def verify(bundle: Annotated[Path, typer.Argument(help="Zip file that `bench bundle` wrote.")]) -> None:
    """Check a bundle without running anything.

    Fingerprints, invariants, recomputed aggregates; exit 1 when something does not hold.
    """
    from leaderboard import bundle as bundles

    try:
        found = bundles.verify(bundle)
    except bundles.BundleError as error:
        raise RequestError(str(error)) from error
    for holds, line in found:
        print(f"{'ok  ' if holds else 'BAD '} {line}")
    if not all(holds for holds, _ in found):
        raise typer.Exit(EXIT_FAILED)
