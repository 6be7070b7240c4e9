"""``bench visualize``: contact sheets of a suite's data, of an objective at work, or of what a backbone sees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.errors import RequestError
from benchmarks.options import Budget, DataRoot, Runs, Suite, check_writable, choice, names

WHAT = ("attention", "features")


def visualize(
    what: Annotated[
        str,
        typer.Argument(help="attention: maps of chosen patches; features: principal components as colours. Left out: "
                       "the tasks' test data with their labels, or with --objective an objective at work.",
                       callback=choice("WHAT", ("", *WHAT))),
    ] = "",
    suite: Suite = "embedded",
    objective: Annotated[str, typer.Option(help="Show what these objectives' students see and predict; or all.")] = "",
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="For attention and features: backbone folder, or what `bench eval` takes; may be repeated. "
                     "Default: those of --objective, or all of the suite, in --runs with --seed."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="For attention and features: folder of pictures. Default: the suite's.")
    ] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(help="For attention: where to look from, right,down as shares of the side, as 0.5,0.5; may be "
                     "repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the backbone and of the draws.")] = 0,
    runs: Runs = Path("runs"),
    data_root: DataRoot = None,
    budget: Budget = "default",
    output: Annotated[Path, typer.Option(help="PNG file (all sheets in it), or folder for files.")] = Path("visualize"),
    beside: Annotated[
        bool, typer.Option("--beside", help="Put each sheet beside its backbone, for the leaderboard's page.")
    ] = False,
) -> None:
    """Write contact sheets of data and objectives.

    The tasks' test data with their labels, an objective at work, a backbone's view."""
    from benchmarks import suite as suites
    from benchmarks import visualize as sheets
    from benchmarks.data import data_root as find_data
    from benchmarks.progress import Reporter

    chosen = suites.get(suite)
    if not what and (backbone or pictures or query):
        raise RequestError("--backbone, --pictures and --query belong to `bench visualize attention` or `features`")
    check_writable(runs)
    with Reporter() as reporter:
        if what:
            from benchmarks import analyze, studies
            from benchmarks.analysis_sheets import queries_of, write

            points = queries_of(query or ())
            if backbone:
                folders = [studies.fetched(source, suite, runs) for source in backbone]
            else:
                folders = studies.find_backbones(runs, suite, names(objective if objective != "all" else ""), seed)
            if pictures is None:
                reporter.begin("data")
                root = find_data(chosen, data_root, runs, reporter.report)
                seen = analyze.suite_pictures(chosen, root, analyze.FEWEST)
            else:
                seen = analyze.choose_pictures(pictures, analyze.FEWEST, pictures.resolve().name)
            paths = write(folders, seen, output, (what,), points)
        else:
            at_work = sheets.shown(names(objective), chosen, runs, seed, budget, reporter) if objective else []
            reporter.begin("data")
            root = find_data(chosen, data_root, runs, reporter.report)
            if objective and beside:
                paths = sheets.beside(at_work, root, runs, reporter)
            elif objective:
                paths = sheets.objectives(at_work, root, runs, output, reporter)
            else:
                paths = [sheets.data(chosen, root, output, reporter)]
    for path in paths:
        print(path)
