"""``bench analyze``: what backbones learned, and where in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.errors import RequestError
from benchmarks.options import DataRoot, Device, Overwrite, Runs, Seed, Suite, Tasks, TextFormat, names


def analyze(
    runs: Runs = Path("runs"),
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="Backbone folder, or what `bench eval` takes; may be repeated. Default: all of the suite in "
                     "--runs."),
    ] = None,
    suite: Suite = "embedded",
    objective: Annotated[
        str, typer.Option(help="Only these objectives of --runs, separated by commas; or folders, as mae@9982b404.")
    ] = "",
    seed: Seed = None,
    images: Annotated[int, typer.Option(help="Number of pictures.")] = 256,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of pictures to analyse instead of the suite's held-out ones.")
    ] = None,
    data_root: DataRoot = None,
    transfer: Annotated[
        bool, typer.Option("--transfer", help="Score --tasks from every layer, frozen, instead of analysing.")
    ] = False,
    drop: Annotated[
        str, typer.Option(help="Fine-tune --tasks without the last blocks instead: numbers of blocks, as 0,1,2,3.")
    ] = "",
    tasks: Tasks = "classification,segmentation,depth",
    figures: Annotated[Path | None, typer.Option(help="Folder for figures (PNG and SVG).")] = None,
    sheets: Annotated[
        Path | None, typer.Option(help="Folder for sheets of attention maps and features as colours (PNG).")
    ] = None,
    records: Annotated[
        list[Path] | None, typer.Option(help="Folder of task records to correlate with; may be repeated.")
    ] = None,
    keys: Annotated[str, typer.Option(help="Attention without class tokens: renormalised, or as they are.")] = (
        "renormalised"
    ),
    entropy: Annotated[str, typer.Option(help="nats or bits.")] = "nats",
    kl: Annotated[str, typer.Option(help="KL of a head to others, all (itself too), or symmetric.")] = "others",
    cka: Annotated[str, typer.Option(help="minibatch, or exact for few pictures.")] = "minibatch",
    cka_features: Annotated[str, typer.Option(help="tokens (all, flattened) or mean.")] = "tokens",
    device: Device = "auto",
    overwrite: Overwrite = "only-missing",
    output_format: TextFormat = "text",
) -> None:
    """Measure what backbones learned.

    Attention distance, entropy, head diversity, CKA, rank, frequencies.

    With --transfer: where in the network each task finds what it needs. With --drop: what the last blocks are worth.
    """
    from benchmarks import analyze as analyses
    from benchmarks import studies
    from benchmarks import suite as suites
    from benchmarks.data import data_root as find_data
    from benchmarks.progress import Reporter

    chosen = suites.get(suite)
    settings = analyses.settings_of(keys, entropy, kl, cka, cka_features)
    if backbone:
        folders = [studies.fetched(source, suite, runs) for source in backbone]
    else:
        folders = studies.find_backbones(runs, suite, names(objective), seed)
    if transfer or drop:
        _transfer(
            chosen, folders, names(tasks), _numbers(drop) if drop else None, runs, data_root, device, overwrite,
            figures, output_format,
        )
        return
    with Reporter() as reporter:
        if pictures is None:
            reporter.begin("data")
            seen = analyses.suite_pictures(chosen, find_data(chosen, data_root, runs, reporter.report), images)
        else:
            seen = analyses.choose_pictures(pictures, images, pictures.resolve().name)
        found = analyses.relate(analyses.analyze(folders, seen, settings, device, overwrite, reporter))
    written = []
    if figures is not None:
        from benchmarks.analysis_figures import draw

        written += draw(found, figures)
    if sheets is not None:
        from benchmarks.analysis_sheets import write

        written += write(folders, seen, sheets)
    related = None
    if records:
        from leaderboard.analyses import correlate
        from leaderboard.records import read_records

        related = correlate(found, read_records(records)[0], suite)
    if output_format == "json":
        made = None if related is None else [vars(c) for c in related]
        print(json.dumps({"backbones": [analyses.brief(a) for a in found], "correlations": made,
                          "files": [str(path) for path in written]}, indent=1))
        return
    print(analyses.table(found))
    if related is not None:
        from leaderboard.analyses import correlation_table

        print(f"\n{correlation_table(related)}")
    for path in written:
        print(path)


def _transfer(
    suite, folders: list[Path], tasks: list[str], dropped: list[int] | None, runs: Path, data_root: Path | None,
    device: str, overwrite: str, figures: Path | None, output_format: str,
) -> None:
    from benchmarks import transfer
    from benchmarks.data import data_root as find_data
    from benchmarks.progress import Reporter
    from leaderboard.details import CUT, LAYERS

    kind = LAYERS if dropped is None else CUT
    chosen = transfer.chosen_tasks(suite, tasks, kind)
    with Reporter() as reporter:
        reporter.begin("data")
        root = find_data(suite, data_root, runs, reporter.report)
        found, failed = transfer.score(
            folders, suite, root, chosen, kind, device, overwrite, reporter, dropped or ()
        )
    written = []
    if figures is not None and found:
        from benchmarks.analysis_figures import draw_curves

        written = draw_curves(found, kind, figures)
    if output_format == "json":
        rows = [
            {"objective": r.objective, "variant": r.variant, "budget": r.budget, "seed": r.seed, "task": r.task,
             "metric": r.main_metric[0] if r.main_metric else None, "layers": (r.details or {})["layers"]}
            for r in found
        ]
        print(json.dumps({"rows": rows, "failed": failed, "files": [str(path) for path in written]}, indent=1))
    else:
        print(transfer.table(found, kind))
        for line in (*failed, *written):
            print(line)
    if failed:
        raise typer.Exit(1)


def _numbers(text: str) -> list[int]:
    """ "0, 2" -> [0, 2]."""
    try:
        found = sorted({int(word) for word in names(text)})
    except ValueError as error:
        raise RequestError(f"--drop {text!r}: whole numbers of blocks, separated by commas, as 0,1,2") from error
    if not found or found[0] < 0:
        raise RequestError(f"--drop {text!r}: numbers from 0 on")
    return found
