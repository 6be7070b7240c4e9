"""The command ``bench``. Heavy imports happen inside the commands: help and lists answer in under a second."""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import signals
from benchmarks.errors import RequestError, unknown

app = typer.Typer(
    help="Benchmark of image pre-training objectives: one backbone, one budget, five downstream tasks.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
)
data_app = typer.Typer(help="Build or check a suite's data.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

UsageError = typer.BadParameter.__base__  # of a wrong option; typer carries click within itself and does not export it

EXIT_FAILED, EXIT_REQUEST, EXIT_INTERRUPTED = 1, 2, 130

RunsOption = Annotated[Path, typer.Option(help="Folder of backbones and records.")]
SuiteOption = Annotated[str, typer.Option(help="Suite; see `bench list suites`.")]
DataRootOption = Annotated[Path | None, typer.Option(help="Folder of the suite's data (embedded: rendered there).")]
FormatOption = Annotated[str, typer.Option("--format", help="text or json.")]


class Listing(StrEnum):
    """What ``bench list`` lists."""

    objectives = "objectives"
    tasks = "tasks"
    suites = "suites"
    tables = "tables"


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _choice(option: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise unknown(f"value of {option}", value, known)
    return value


@app.command()
def run(
    objective: Annotated[str, typer.Option(help="Objectives, separated by commas, or `all`.")],
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas, or `all`.")] = "all",
    suite: SuiteOption = "embedded",
    protocol: Annotated[str, typer.Option(help="frozen, finetune, or both; default: the suite's.")] = "",
    budget: Annotated[str, typer.Option(help="Pre-training budget of the suite: default, long, …")] = "default",
    seeds: Annotated[int | None, typer.Option(help="Run seeds 0 … N-1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Run just this seed.")] = None,
    runs: RunsOption = Path("runs"),
    data_root: DataRootOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto",
    cfg_options: Annotated[
        list[str] | None,
        typer.Option(help="key=value, may be repeated: objective.loss.type=L1, optimiser.lr=1e-3, "
                     "suite.kwargs.depth=4, task.pose.epochs=5."),
    ] = None,
    overwrite: Annotated[str, typer.Option(help="only-missing, always or never.")] = "only-missing",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    output_format: Annotated[str, typer.Option("--format", help="terminal, md, csv, json, html or tex.")] = "terminal",
) -> None:
    """Train the objectives' backbones, score them on the tasks, print the table."""
    from benchmarks.plan import Request, plan

    wanted = _seeds(seeds, seed)
    request = Request(_names(objective), _names(tasks), suite, _names(protocol), budget, wanted, cfg_options or [])
    _run(plan(request), runs, data_root, device, overwrite, dry_run, output_format)


@app.command()
def sweep(
    objective: Annotated[str, typer.Option(help="Objectives, separated by commas.")],
    vary: Annotated[
        list[str],
        typer.Option(help="key=value,value,…; may be repeated: objective.loss.type=smooth_l1,l1,mse,cosine."),
    ],
    tasks: Annotated[str, typer.Option(help="Tasks, separated by commas, or `all`.")] = "classification",
    suite: SuiteOption = "embedded",
    protocol: Annotated[str, typer.Option(help="frozen, finetune, or both; default: the suite's.")] = "",
    budget: Annotated[str, typer.Option(help="Pre-training budget of the suite: default, long, …")] = "default",
    seeds: Annotated[int | None, typer.Option(help="Run seeds 0 … N-1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Run just this seed.")] = None,
    runs: RunsOption = Path("runs"),
    data_root: DataRootOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto",
    cfg_options: Annotated[list[str] | None, typer.Option(help="key=value for every combination.")] = None,
    overwrite: Annotated[str, typer.Option(help="only-missing, always or never.")] = "only-missing",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    output_format: Annotated[str, typer.Option("--format", help="terminal, md, csv, json, html or tex.")] = "terminal",
) -> None:
    """Run every combination of varied options and print the ablation table."""
    from benchmarks import plan as planning

    wanted = _seeds(seeds, seed)
    request = planning.Request(
        _names(objective), _names(tasks), suite, _names(protocol), budget, wanted, cfg_options or []
    )
    _run(planning.sweep(request, vary), runs, data_root, device, overwrite, dry_run, output_format)


def _seeds(seeds: int | None, seed: int | None) -> tuple[int, ...]:
    """The seeds that ``--seeds N`` or ``--seed K`` asks for."""
    if seeds is not None and seed is not None:
        raise RequestError("--seeds N means seeds 0 to N-1, --seed K just that one: give one of them")
    if seeds is not None and seeds < 1:
        raise RequestError(f"--seeds {seeds}: at least 1")
    if seed is not None and seed < 0:
        raise RequestError(f"--seed {seed}: a whole number from 0 on")
    return tuple(range(seeds)) if seeds is not None else (seed or 0,)


def _run(
    cells: list, runs: Path, data_root: Path | None, device: str, overwrite: str, dry_run: bool, output_format: str
) -> None:
    """Plan, run what is missing and print the table; exit 1 where a cell has no number."""
    from benchmarks.data import data_root as find_data
    from benchmarks.execute import Execution, check_device
    from benchmarks.plan import OVERWRITE
    from benchmarks.progress import Reporter

    _choice("--overwrite", overwrite, OVERWRITE)
    _choice("--format", output_format, FORMATS)
    check_device(device)
    reporter = Reporter()
    if dry_run and cells[0].pretraining.suite.rendered:
        _show_plan(reporter, cells, [], known=False)
        return
    _writable(runs)
    with reporter:
        reporter.begin("data")
        root = find_data(cells[0].pretraining.suite, data_root, runs, reporter.report)
        execution = Execution(runs, root, device, overwrite, reporter)
        todo, done = execution.split(cells)
        _show_plan(reporter, todo, done)
        if dry_run:
            return
        if todo:
            execution.check(todo)
            execution.run(todo)
    failed = _print_table(runs, cells, output_format)
    if failed:
        raise typer.Exit(EXIT_FAILED)


FORMATS = ("terminal", "md", "csv", "json", "html", "tex")


def _show_plan(reporter, todo: list, done: list, known: bool = True) -> None:
    backbones = {cell.pretraining.folder: cell.pretraining for cell in todo}
    for pretraining in backbones.values():
        mine = [cell for cell in todo if cell.pretraining.folder == pretraining.folder]
        images = f"{pretraining.images_seen:,} pictures" if pretraining.recipe.trains else "no pre-training"
        scored = ", ".join(f"{cell.task.name}.{cell.protocol}" for cell in mine)
        reporter.say(f"plan: {pretraining.label} seed {pretraining.seed} ({images}) -> {scored}")
    word = f"{len(todo)} cells to run, {len(done)} finished already" if known else f"{len(todo)} cells"
    reporter.say(f"plan: {len(backbones)} backbones, {word}")


def _print_table(runs: Path, cells: list, output_format: str) -> bool:
    """Print the table of the request's cells; True where one of them has no number."""
    from leaderboard.records import read_records
    from leaderboard.table import build

    folders = [runs / cell.folder for cell in cells]
    records, invalid = read_records(folders)
    table = build(records, invalid, suite=cells[0].pretraining.suite.name)
    _emit(table, output_format, None)
    return bool(invalid) or len(records) < len(cells) or any(r.status != "ok" for r in records)


def _emit(table, output_format: str, output: Path | None) -> None:
    from leaderboard.render import print_terminal, render

    if output_format == "terminal" and output is None:
        from rich.console import Console

        print_terminal(table, Console(highlight=False, width=None if sys.stdout.isatty() else 200))
        return
    text = render(table, "md" if output_format == "terminal" else output_format)
    if output is None:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    from leaderboard.render import write_text

    write_text(output, text)


def _writable(runs: Path) -> None:
    """Fail before any work where the runs folder cannot be written."""
    probe = runs / f".write-test.{os.getpid()}"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise RequestError(f"--runs {runs}: cannot write there ({error.strerror}); name another folder") from error


@app.command()
def speed(
    objective: Annotated[str, typer.Option(help="Objectives, separated by commas, or `all`.")],
    suite: SuiteOption = "embedded",
    batch: Annotated[int | None, typer.Option(help="Pictures a step; default: the suite's.")] = None,
    precision: Annotated[str, typer.Option(help="fp32 or bf16 (autocast).")] = "fp32",
    steps: Annotated[int, typer.Option(help="Steps of a turn.")] = 5,
    turns: Annotated[int, typer.Option(help="Turns of each contestant.")] = 5,
    peer: Annotated[str, typer.Option(help="`mmpretrain`: its step of the same objective takes turns, too.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto",
    cfg_options: Annotated[list[str] | None, typer.Option(help="key=value, as for `bench run`.")] = None,
    output_format: Annotated[str, typer.Option("--format", help="text or json.")] = "text",
    output: Annotated[Path | None, typer.Option(help="Keep the record in this JSON file, too.")] = None,
) -> None:
    """Time training steps side by side: images/s, memory, arithmetic, share of the device's ceiling."""
    import torch
    from tabulate import tabulate

    from benchmarks import speed as timing
    from benchmarks import suite as suites
    from benchmarks.execute import resolve_device, set_threads
    from benchmarks.plan import resolve
    from benchmarks.progress import Reporter
    from objectives.recipe import get, recipes

    _choice("--precision", precision, timing.PRECISIONS)
    _choice("--format", output_format, ("text", "json"))
    if peer:
        _choice("--peer", peer, ("mmpretrain",))
    for name, value in (("--steps", steps), ("--turns", turns), ("--batch", batch or 1)):
        if value < 1:
            raise RequestError(f"{name} {value}: at least 1")
    chosen = suites.get(suite)
    names = [r.name for r in recipes().values() if r.trains] if objective == "all" else _names(objective)
    plans = [resolve(get(name), chosen, "default", cfg_options or []) for name in names]
    count = batch or plans[0].suite.batch_size
    place = torch.device(resolve_device(device))
    set_threads()
    with Reporter() as reporter:
        reporter.begin("speed")
        contestants = []
        for plan in plans:
            contestants.append(timing.ours(plan, count, precision, place))
            if peer:
                contestants.append(timing.peer(plan, count, precision, place))
        speeds, top = timing.measure(contestants, count, steps, turns, reporter)
    kept = timing.record(
        speeds, top, suite, plans[0].suite.model, plans[0].suite.input_size, count, precision, str(place), steps, turns
    )
    if output is not None:
        from leaderboard.render import write_text

        write_text(output, json.dumps(kept, indent=1) + "\n")
    if output_format == "json":
        print(json.dumps(kept, indent=1))
        return
    print(tabulate(kept["rows"], headers="keys", tablefmt="simple"))
    print(f"{kept['model']} {kept['input_size']} px, batch {count}, {precision}, {place}; "
          f"ceiling {kept['ceiling_gflops']:,} GFLOP/s")


@app.command(name="list")
def list_(
    what: Annotated[Listing, typer.Argument(help="What to list.")], output_format: FormatOption = "text"
) -> None:
    """List objectives, tasks, suites, or the papers' tables of published numbers."""
    from tabulate import tabulate

    _choice("--format", output_format, ("text", "json"))
    if what is Listing.objectives:
        from objectives.recipe import SLOTS, recipes

        rows = [
            {"name": r.name, "paper": r.paper, "summary": r.summary,
             **({slot: dict(getattr(r, slot)) for slot in SLOTS} if output_format == "json"
                else {"slots": " · ".join(str(getattr(r, slot)["type"]) for slot in SLOTS)})}
            for r in sorted(recipes().values(), key=lambda r: r.name)
        ]
    elif what is Listing.tasks:
        from downstream.task import TASKS

        rows = [
            {"name": t.name, "metric": f"{t.metrics[0].name} {'↑' if t.metrics[0].higher_is_better else '↓'}",
             "protocols": ", ".join(t.protocols), "version": t.version, "summary": t.summary}
            for t in TASKS.values()
        ]
    elif what is Listing.tables:
        rows = _paper_tables()
    else:
        from benchmarks.suite import suites

        rows = [
            {"name": s.name, "backbone": s.model, "budgets": ", ".join(f"{k} {v:,}" for k, v in s.budgets.items()),
             "summary": s.summary}
            for s in suites().values()
        ]
    sys.stdout.write((json.dumps(rows, indent=1) if output_format == "json"
                      else tabulate(rows, headers="keys", tablefmt="simple")) + "\n")


@app.command()
def leaderboard(
    runs: Annotated[list[Path] | None, typer.Option(help="Folders of records; may be repeated.")] = None,
    suite: Annotated[str, typer.Option(help="Suite to show; with --format html also `all`.")] = "embedded",
    output_format: Annotated[str, typer.Option("--format", help="terminal, md, html, csv, tex or json.")] = "terminal",
    output: Annotated[Path | None, typer.Option(help="File to write instead of stdout.")] = None,
    published: Annotated[bool, typer.Option("--published", help="Add published numbers on the same data.")] = False,
    pairs: Annotated[bool, typer.Option("--pairs", help="Print the tested pairs of rows instead (markdown).")] = False,
) -> None:
    """Print the table of a suite from records."""
    from leaderboard.records import read_records
    from leaderboard.table import build

    _choice("--format", output_format, FORMATS)
    folders = runs or [Path("runs")]
    for folder in folders:
        if not folder.is_dir():
            raise RequestError(f"--runs {folder}: no such folder")
    records, invalid = read_records(folders)
    mine = [record for record in records if record.suite == suite]
    if suite == "all":
        _emit_suites(records, invalid, output_format, output)
        return
    if not mine and records:
        raise unknown("records of suite", suite, {record.suite for record in records})
    table = build(mine, invalid, suite=suite)
    if published or pairs:
        _emit_more(table, output_format, output, pairs)
    else:
        _emit(table, output_format, output)


# --- published numbers, bundles, reproduction -------------------------------------------------------------------------


def _paper_tables() -> list[dict]:
    from leaderboard.published import tables

    return [
        {"name": t.id, "arxiv": t.arxiv, "numbers": len(t.numbers), "unverified": t.unverified,
         "summary": f"{t.title}: {', '.join(sorted({n.dataset for n in t.numbers}))}"}
        for t in tables()
    ]


def _emit_suites(records: list, invalid: list, output_format: str, output: Path | None) -> None:
    """All suites in one page."""
    from leaderboard.page import page
    from leaderboard.render import write_text
    from leaderboard.table import build

    if output_format != "html":
        raise RequestError("--suite all makes one page of all suites: add --format html, or name one suite")
    names = sorted({r.suite for r in records} | {e.cell.suite for e in invalid if e.cell is not None})
    text = page([build(records, invalid, suite=name) for name in names] or build([], invalid))
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(output, text)


def _emit_more(table, output_format: str, output: Path | None, pairs: bool) -> None:
    """The table with published numbers beside it, or its tested pairs."""
    from leaderboard import published
    from leaderboard.page import page
    from leaderboard.render import comparisons, render, write_text

    found = [] if pairs else published.beside(table)
    if pairs:
        text = comparisons(table)
    elif output_format == "html":
        text = page(table, found)
    elif output_format == "json":
        text = json.dumps({**json.loads(render(table, "json")), "published": published.as_json(found)}, indent=1) + "\n"
    elif output_format == "csv":
        text = published.text(table, found, "csv")
    else:
        if output_format == "terminal" and output is None:
            _emit(table, output_format, None)
            sys.stdout.write("\n" + published.text(table, found, "terminal"))
            return
        style = "md" if output_format == "terminal" else output_format
        text = render(table, style) + "\n" + published.text(table, found, style)
    if output is None:
        sys.stdout.write(text)
    else:
        write_text(output, text)


COMMITTED = Path(__file__).parent.parent / "leaderboard" / "records"


@app.command()
def bundle(
    row: Annotated[str, typer.Argument(help="suite/objective[/seed0[/task.protocol]], or a folder of records.")],
    output: Annotated[Path, typer.Argument(help="Zip file to write.")],
    runs: RunsOption = Path("runs"),
) -> None:
    """Pack a row's records, logs and commands into one zip file for a reviewer."""
    from leaderboard import bundle as bundles
    from leaderboard.records import InvalidRecord

    try:
        folder = bundles.row_folder(row, [runs, COMMITTED])
        count = bundles.bundle(folder, output)
    except (bundles.BundleError, InvalidRecord) as error:
        raise RequestError(str(error)) from error
    print(f"{output}: {count} records of {folder}")


@app.command(name="verify")
def verify_bundle(bundle: Annotated[Path, typer.Argument(help="Zip file that `bench bundle` wrote.")]) -> None:
    """Check a bundle: fingerprints, invariants, recomputed aggregates; exit 1 when something does not hold."""
    from leaderboard.bundle import BundleError, verify

    try:
        found = verify(bundle)
    except BundleError as error:
        raise RequestError(str(error)) from error
    for holds, line in found:
        print(f"{'ok  ' if holds else 'BAD '} {line}")
    if not all(holds for holds, _ in found):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def reproduce(
    what: Annotated[str, typer.Argument(help="A record (result.json, or suite/objective/seed0/task.protocol), or "
                                             "PAPER[:TABLE] of `bench list tables`.")],
    output: Annotated[Path, typer.Option(help="Folder for the new runs; never the old ones'.")] = Path("reproduced"),
    runs: RunsOption = Path("runs"),
    data_root: DataRootOption = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto",
    suite: Annotated[str, typer.Option(help="Suite that a paper's tables are run on.")] = "paper",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run and what differs; stop.")] = False,
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


@app.command()
def visualize(
    suite: SuiteOption = "embedded",
    objective: Annotated[str, typer.Option(help="Show what these objectives' students see and predict.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the backbone and of the draws.")] = 0,
    runs: RunsOption = Path("runs"),
    data_root: DataRootOption = None,
    budget: Annotated[str, typer.Option(help="Budget of the backbones shown.")] = "default",
    output: Annotated[Path, typer.Option(help="PNG file, or folder for several objectives.")] = Path("visualize"),
) -> None:
    """Write contact sheets: the suite's pictures with their ground truth, or an objective at work."""
    from benchmarks import suite as suites
    from benchmarks import visualize as sheets
    from benchmarks.data import data_root as find_data
    from benchmarks.progress import Reporter

    chosen = suites.get(suite)
    _writable(runs)
    with Reporter() as reporter:
        reporter.begin("data")
        root = find_data(chosen, data_root, runs, reporter.report)
        if objective:
            paths = sheets.objectives(_names(objective), chosen, root, runs, seed, budget, output, reporter)
        else:
            paths = [sheets.data(chosen, root, output)]
    for path in paths:
        print(path)


@app.command()
def analyze(
    runs: RunsOption = Path("runs"),
    backbone: Annotated[
        list[Path] | None, typer.Option(help="Backbone folder; may be repeated. Default: all of the suite in --runs.")
    ] = None,
    suite: SuiteOption = "embedded",
    objective: Annotated[str, typer.Option(help="Only these objectives of --runs, separated by commas.")] = "",
    images: Annotated[int, typer.Option(help="Number of pictures.")] = 256,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of pictures to analyse instead of the suite's held-out ones.")
    ] = None,
    data_root: DataRootOption = None,
    figures: Annotated[Path | None, typer.Option(help="Folder for figures (PNG and SVG).")] = None,
    sheets: Annotated[
        Path | None, typer.Option(help="Folder for sheets of attention maps and features as colours (PNG).")
    ] = None,
    records: Annotated[
        list[Path] | None, typer.Option(help="Folder of records to correlate with; may be repeated.")
    ] = None,
    keys: Annotated[str, typer.Option(help="Attention without class tokens: renormalised, or as they are.")] = (
        "renormalised"
    ),
    entropy: Annotated[str, typer.Option(help="nats or bits.")] = "nats",
    kl: Annotated[str, typer.Option(help="KL of a head to others, all (itself too), or symmetric.")] = "others",
    cka: Annotated[str, typer.Option(help="minibatch, or exact for few pictures.")] = "minibatch",
    cka_features: Annotated[str, typer.Option(help="tokens (all, flattened) or mean.")] = "tokens",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda[:N].")] = "auto",
    overwrite: Annotated[str, typer.Option(help="only-missing, always or never.")] = "only-missing",
    output_format: FormatOption = "text",
) -> None:
    """Measure what backbones learned: attention distance, entropy, head diversity, CKA, rank, frequencies."""
    from benchmarks import analyze as analyses
    from benchmarks import suite as suites
    from benchmarks.data import data_root as find_data
    from benchmarks.plan import OVERWRITE
    from benchmarks.progress import Reporter

    _choice("--overwrite", overwrite, OVERWRITE)
    _choice("--format", output_format, ("text", "json"))
    chosen = suites.get(suite)
    folders = backbone or analyses.find_backbones(runs, suite, _names(objective))
    with Reporter() as reporter:
        if pictures is None:
            reporter.begin("data")
            seen = analyses.suite_pictures(chosen, find_data(chosen, data_root, runs, reporter.report), images)
        else:
            seen = analyses.choose_pictures(pictures, images, pictures.resolve().name)
        settings = analyses.settings_of(keys, entropy, kl, cka, cka_features)
        found = analyses.analyze(folders, seen, settings, device, overwrite, reporter)
    written = []
    if figures is not None:
        from benchmarks.analysis_figures import draw

        written += draw(found, figures)
    if sheets is not None:
        from benchmarks.analysis_sheets import write

        written += write(folders, seen, sheets)
    related = analyses.correlations(folders, records, suite) if records else None
    if output_format == "json":
        print(json.dumps({"backbones": [analyses.brief(a) for a in found], "correlations": related,
                          "files": [str(path) for path in written]}, indent=1))
        return
    print(analyses.table(found))
    if related is not None:
        print(f"\n{analyses.correlation_table(related)}")
    for path in written:
        print(path)


@data_app.command()
def prepare(
    suite: SuiteOption = "embedded", runs: RunsOption = Path("runs"), data_root: DataRootOption = None
) -> None:
    """Render a suite's scenes (embedded), or say where its real pictures come from."""
    from benchmarks import suite as suites
    from benchmarks.data import data_root as find_data
    from benchmarks.progress import Reporter

    chosen = suites.get(suite)
    if not chosen.rendered:
        lines = "; ".join(f"{name}: {source}" for name, source in chosen.sources.items())
        raise RequestError(f"suite {suite!r} has real pictures, which you have to get yourself: {lines}")
    _writable(runs)
    with Reporter() as reporter:
        reporter.begin("data")
        print(find_data(chosen, data_root, runs, reporter.report))


@data_app.command()
def verify(
    suite: SuiteOption = "embedded", runs: RunsOption = Path("runs"), data_root: DataRootOption = None,
    output_format: FormatOption = "text",
) -> None:
    """Say of each data set whether it is found, what is missing and where to get it."""
    from tabulate import tabulate

    from benchmarks import suite as suites
    from benchmarks.data import scenes_folder
    from benchmarks.data import verify as look

    chosen = suites.get(suite)
    root = data_root or (scenes_folder(chosen, runs) if chosen.rendered else None)
    if root is None:
        raise RequestError(f"suite {suite!r} reads real pictures: name their folder by --data-root DIR")
    found = look(chosen, root)
    rows = [{"name": f.name, "found": not f.missing, "files": f.files, "path": str(f.path),
             "missing": list(f.missing), "source": f.source} for f in found]
    if output_format == "json":
        print(json.dumps(rows, indent=1))
    else:
        words = {True: "yes", False: "no"}
        shown = [{**row, "found": words[row["found"]], "missing": "\n".join(row["missing"])} for row in rows]
        print(tabulate(shown, headers="keys", tablefmt="simple"))
    if any(f.missing for f in found):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def doctor() -> None:
    """Check versions, compiled operators, devices and folders; exit 1 with the mend when something is wrong."""
    from benchmarks.doctor import examine

    findings = examine()
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'BAD '} {finding.name}: {finding.text}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(EXIT_FAILED)


def main() -> None:
    """Entry point: errors become one line on stderr and an exit code."""
    from leaderboard.records import RecordError
    from objectives.recipe import ObjectiveError

    signals.install()
    warnings.filterwarnings("ignore")  # optional parts that OpenMMLab's packages miss are no news to a user
    try:
        code = app(standalone_mode=False)
        raise SystemExit(code if isinstance(code, int) else 0)
    except typer.Exit as stop:
        raise SystemExit(stop.exit_code) from None
    except UsageError as error:
        print(f"bench: {error.format_message()}", file=sys.stderr)
    except (RequestError, RecordError, ObjectiveError) as error:
        print(f"bench: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        where = error.filename or "a file below --runs"
        print(f"bench: {where}: {error.strerror}; free space or name another folder", file=sys.stderr)
    except (KeyboardInterrupt, typer.Abort):  # typer makes the one into the other
        print("bench: interrupted; finished cells are kept, the same command goes on", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    raise SystemExit(EXIT_REQUEST)


if __name__ == "__main__":
    main()
