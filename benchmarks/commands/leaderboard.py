"""``bench leaderboard``: the table of a suite from records."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.errors import RequestError, unknown
from benchmarks.options import TABLE_FORMATS, TableFormat, names

if TYPE_CHECKING:
    from leaderboard.records import InvalidRecord, Record
    from leaderboard.table import Comparison, Table


def leaderboard(
    more: Annotated[list[Path] | None, typer.Argument(metavar="[RUNS]...", help="Further folders of records.")] = None,
    runs: Annotated[list[Path] | None, typer.Option(help="Folder of records; may be repeated: --runs A B C.")] = None,
    suite: Annotated[str, typer.Option(help="Suite to show; with --format html also `all`.")] = "embedded",
    output_format: TableFormat = "terminal",
    output: Annotated[
        Path | None, typer.Option(help="File to write instead of stdout, in --format or what its ending tells.")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="Only rows of these objectives, separated by commas: ranks among them alone.")
    ] = "",
    budget: Annotated[str, typer.Option(help="Only rows of these pre-training budgets, separated by commas.")] = "",
    protocol: Annotated[
        str, typer.Option(help="Only cells of these protocols, separated by commas: ranks among them alone.")
    ] = "",
    published: Annotated[bool, typer.Option("--published", help="Add published numbers on the same data.")] = False,
    analyses: Annotated[
        bool, typer.Option("--analyses", help="Print analyses beside the scores instead, with correlations (markdown).")
    ] = False,
    pairs: Annotated[
        bool,
        typer.Option("--pairs", help="Print the tested pairs of rows instead (markdown); all of a column are tested "
                     "together, whichever are shown."),
    ] = False,
) -> None:
    """Print the table of a suite from records.

    Which of two objectives is better: bench leaderboard --objective A,B --pairs.
    """
    from benchmarks.suite import declared_settings
    from leaderboard.records import read_records
    from leaderboard.table import build

    folders = [*(runs or []), *(more or [])] or [Path("runs")]
    for folder in folders:
        if not folder.is_dir():
            raise RequestError(f"--runs {folder}: no such folder")
    mend = f"leave out --format {output_format}"
    if output is not None and output_format == "terminal" and (ending := output.suffix[1:].lower()) in TABLE_FORMATS:
        output_format, mend = ending, f"let --output {output} end in .md"
    if (pairs or analyses) and output_format not in ("terminal", "md"):
        raise RequestError(f"--{'pairs' if pairs else 'analyses'} prints markdown: {mend}")
    records, invalid = read_records(folders)
    if not records and not invalid:
        raise RequestError(f"--runs {' '.join(map(str, folders))}: no records there; `bench run` makes some")
    chosen = {what: names(text) for what, text in (("objective", objective), ("budget", budget)) if text}
    for what, text in (("protocol", protocol), ("objective", objective), ("budget", budget)):
        if text:
            kept = _only(records, invalid, what, text)
            if what == "protocol" or not pairs:  # pairs are tested within their whole column, whichever are shown
                records, invalid = kept
    if suite == "all":
        if output_format != "html":
            raise RequestError("--suite all makes one page of all suites: add --format html, or name one suite")
        deliver(_page_of_suites(records, invalid, _analyses(folders, chosen), published), output)
        return
    mine = [record for record in records if record.suite == suite]
    if not mine and records:
        raise unknown("records of suite", suite, {record.suite for record in records})
    table = build(mine, invalid, suite=suite, declared=declared_settings)
    if analyses:
        deliver(_analysed(_analyses(folders, chosen), mine, suite), output)
    elif pairs:
        deliver(_pairs(table, chosen), output)
    elif published:
        _show_published(table, output_format, output, _analyses(folders, chosen))
    elif output_format == "html":
        from leaderboard.page import page

        deliver(page(table, analyses=_analyses(folders, chosen)), output)
    else:
        show(table, output_format, output)


def _only(
    records: Sequence[Record], invalid: Sequence[InvalidRecord], what: str, asked: str
) -> tuple[list[Record], list[InvalidRecord]]:
    """What of the records has one of the values ``asked`` for, of an attribute of its cell.

    Raises:
        RequestError: none is named, or one that no record has.
    """
    wanted, value = names(asked), attrgetter(what)
    known = {value(record.cell) for record in records} | {value(e.cell) for e in invalid if e.cell is not None}
    if not wanted:
        raise RequestError(f"--{what} {asked!r}: name at least one of {', '.join(sorted(known))}")
    for name in wanted:
        if name not in known:
            raise unknown(f"{what} of these records", name, known)
    return ([record for record in records if value(record.cell) in wanted],
            [error for error in invalid if error.cell is None or value(error.cell) in wanted])


def _analyses(folders: Sequence[Path], chosen: Mapping[str, Sequence[str]]) -> list[Record]:
    """The analyses of the chosen objectives and budgets."""
    from leaderboard.analyses import read_analyses

    return [one for one in read_analyses(folders) if all(getattr(one, what) in own for what, own in chosen.items())]


def _pairs(table: Table, chosen: Mapping[str, Sequence[str]]) -> str:
    """The tested pairs of the chosen budgets, between the chosen objectives; of a single one with all others."""
    from leaderboard.render import comparisons

    objectives, budgets = chosen.get("objective", ()), chosen.get("budget", ())
    least = min(2, len(objectives))

    def shown(pair: Comparison) -> bool:
        named = sum(name[0].partition(" (")[0] in objectives for name in (pair.a, pair.b))
        return named >= least and (not budgets or pair.a[2] in budgets)

    return comparisons(table, shown)


def show(table: Table, output_format: str, output: Path | None = None) -> None:
    """Print the table in one of ``options.TABLE_FORMATS``, or write it to a file; there, ``terminal`` is markdown."""
    from leaderboard.render import print_terminal, render

    if output_format == "terminal" and output is None:
        from rich.console import Console

        print_terminal(table, Console(highlight=False, width=None if sys.stdout.isatty() else 200))
    else:
        deliver(render(table, _style(output_format)), output)


def _show_published(table: Table, output_format: str, output: Path | None, analyses: Sequence[Record]) -> None:
    """The table with published numbers beside it."""
    from leaderboard import published
    from leaderboard.page import page
    from leaderboard.render import render

    found = published.beside(table)
    if output_format == "html":
        deliver(page(table, found, analyses=analyses), output)
    elif output_format == "json":
        merged = {**json.loads(render(table, "json")), "published": published.as_json(found)}
        deliver(json.dumps(merged, indent=1) + "\n", output)
    elif output_format == "csv":
        deliver(published.text(table, found, "csv"), output)
    elif output_format == "terminal" and output is None:
        show(table, output_format)
        sys.stdout.write("\n" + published.text(table, found, "terminal"))
    else:
        style = _style(output_format)
        deliver(render(table, style) + "\n" + published.text(table, found, style), output)


def _analysed(analyses: Sequence[Record], records: Sequence[Record], suite: str) -> str:
    """What analyses of the suite's backbones found, beside their scores, as markdown.

    Raises:
        RequestError: there are none.
    """
    from leaderboard.analyses import convention, correlate, correlation_table, studied, summary_table

    mine = [analysis for analysis in analyses if analysis.suite == suite]
    rows = studied(mine)
    if not rows:
        raise RequestError(f"no backbone of suite {suite} was analysed there; first: bench analyze --suite {suite}")
    parts = [summary_table(rows, records, "pipe"), correlation_table(correlate(mine, records, suite), "pipe")]
    return "\n\n".join([*parts, convention(rows[0].records[0])]) + "\n"


def _page_of_suites(
    records: Sequence[Record], invalid: Sequence[InvalidRecord], analyses: Sequence[Record], published: bool
) -> str:
    from benchmarks.suite import declared_settings
    from leaderboard.page import page
    from leaderboard.published import beside
    from leaderboard.table import build

    suites = sorted({r.suite for r in records} | {e.cell.suite for e in invalid if e.cell is not None})
    tables = [build(records, invalid, suite=name, declared=declared_settings) for name in suites]
    found = [pair for table in tables for pair in beside(table)] if published else None
    return page(tables or build([], invalid), found, analyses=analyses)


def _style(output_format: str) -> str:
    return "md" if output_format == "terminal" else output_format


def deliver(text: str, output: Path | None) -> None:
    """Write to the file, or to stdout where none is named."""
    if output is None:
        sys.stdout.write(text)
        return
    from leaderboard.render import write_text

    write_text(output, text)
