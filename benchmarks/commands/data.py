"""``bench data``: a suite's data, rendered or looked for."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from benchmarks.errors import EXIT_FAILED, RequestError
from benchmarks.options import DataRoot, Runs, Suite, TextFormat, check_writable

app = typer.Typer(help="Build or check a suite's data.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def prepare(suite: Suite = "embedded", runs: Runs = Path("runs"), data_root: DataRoot = None) -> None:
    """Render a suite's scenes, or list its real data sets.

    Of a suite with real pictures: what has to lie below --data-root, and where to get it.
    """
    from benchmarks import suite as suites
    from benchmarks.data import data_root as find_data
    from benchmarks.data import roots
    from benchmarks.progress import Reporter

    chosen = suites.get(suite)
    if not chosen.rendered:
        from tabulate import tabulate

        sections = {"pre-training": chosen.pictures, **chosen.data}
        rows = [(name, "\n".join(map(str, roots(section))), chosen.sources.get(name, ""))
                for name, section in sections.items()]
        heads = ("data of", "below --data-root", "where to get it")
        print(tabulate(rows, headers=heads, tablefmt="simple", maxcolwidths=[None, None, 80]))
        return
    check_writable(runs)
    with Reporter() as reporter:
        reporter.begin("data")
        print(find_data(chosen, data_root, runs, reporter.report))


@app.command()
def verify(
    suite: Suite = "embedded", runs: Runs = Path("runs"), data_root: DataRoot = None,
    output_format: TextFormat = "text",
) -> None:
    """Say of each data set whether it is found, what is missing and where to get it."""
    from tabulate import tabulate

    from benchmarks import suite as suites
    from benchmarks.data import scenes_folder
    from benchmarks.verify import verify as look

    chosen = suites.get(suite)
    root = data_root or (scenes_folder(chosen, runs) if chosen.rendered else None)
    if root is None:
        raise RequestError(f"suite {suite!r} reads real pictures: name their folder by --data-root DIR; `bench data "
                           f"prepare --suite {suite}` lists what belongs there")
    found = look(chosen, root)
    rows = [{"name": f.name, "found": not f.missing, "complete": f.complete, "files": f.files, "path": str(f.path),
             "missing": [*f.missing, *f.lacking], "source": f.source} for f in found]
    if output_format == "json":
        print(json.dumps(rows, indent=1))
    else:
        words = {True: "yes", False: "no"}
        shown = [{**row, "found": words[row["found"]], "complete": words[row["complete"]],
                  "missing": "\n".join(row["missing"])} for row in rows]
        print(tabulate(shown, headers="keys", tablefmt="simple"))
    if not all(f.complete for f in found):
        raise typer.Exit(EXIT_FAILED)
