"""``bench reproduce``: a record's cell, or a published table's cells, run here and compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.errors import EXIT_FAILED, RequestError
from benchmarks.options import COMMITTED, DataRoot, Device, DryRun, Runs

if TYPE_CHECKING:
    from leaderboard.published import PaperTable


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
    """Run a record or a published table again.

    Its cells are run here and compared; --dry-run says what it takes.
    """
    from benchmarks import reproduce as again
    from leaderboard.published import find

    tables = find(what)
    if tables:
        words = _paper(tables, suite, output, runs, data_root, device, dry_run)
    else:
        words = again.reproduce(what, output, runs, COMMITTED, data_root, device, dry_run, print)
    if "differs" in words or "failed" in words:
        raise typer.Exit(EXIT_FAILED)


def _paper(
    tables: list[PaperTable], suite: str, output: Path, runs: Path, data_root: Path | None, device: str, dry_run: bool
) -> list[str]:
    """Say what the tables take, run their cells, say theirs and ours; a word a number."""
    from benchmarks import reproduce_paper as papers
    from benchmarks import suite as suites
    from benchmarks.commands.run import Means, computed
    from leaderboard.records import read_records

    chosen = suites.get(suite)
    for line in papers.lines(tables, chosen, data_root):
        print(line, flush=True)
    found = [target for _, own in papers.targets(tables, chosen) for target in own]
    cells = list({cell.folder: cell for target in found if (cell := target.cell) is not None}.values())
    if dry_run:
        return []
    if not cells:
        raise RequestError(f"{tables[0].paper}: nothing of it can be run on suite {suite}; the reasons stand above")
    if output.resolve() in (runs.resolve(), COMMITTED.resolve()):
        raise RequestError(f"--output {output}: holds other records; name another folder")
    computed(cells, output, data_root, Means(device, jobs=None), "only-missing")
    folders = [output / cell.folder for cell in cells if (output / cell.folder).is_dir()]
    return papers.verdicts(found, read_records(folders)[0], print)
