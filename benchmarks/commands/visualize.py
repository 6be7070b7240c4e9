"""``bench visualize``: contact sheets of a suite's data, or of an objective at work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import Budget, DataRoot, Runs, Suite, check_writable, names


def visualize(
    suite: Suite = "embedded",
    objective: Annotated[str, typer.Option(help="Show what these objectives' students see and predict.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the backbone and of the draws.")] = 0,
    runs: Runs = Path("runs"),
    data_root: DataRoot = None,
    budget: Budget = "default",
    output: Annotated[Path, typer.Option(help="PNG file, or folder for several objectives.")] = Path("visualize"),
    beside: Annotated[
        bool, typer.Option("--beside", help="Put each sheet beside its backbone, for the leaderboard's page.")
    ] = False,
) -> None:
    """Write contact sheets: the suite's pictures with their ground truth, or an objective at work."""
    from benchmarks import suite as suites
    from benchmarks import visualize as sheets
    from benchmarks.data import data_root as find_data
    from benchmarks.progress import Reporter

    chosen = suites.get(suite)
    check_writable(runs)
    with Reporter() as reporter:
        reporter.begin("data")
        root = find_data(chosen, data_root, runs, reporter.report)
        if objective and beside:
            paths = sheets.beside(names(objective), chosen, root, runs, seed, budget, reporter)
        elif objective:
            paths = sheets.objectives(names(objective), chosen, root, runs, seed, budget, output, reporter)
        else:
            paths = [sheets.data(chosen, root, output)]
    for path in paths:
        print(path)
