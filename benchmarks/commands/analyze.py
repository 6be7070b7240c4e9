"""``bench analyze``: what backbones learned, measured without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.options import DataRoot, Device, Overwrite, Runs, Suite, TextFormat, names


def analyze(
    runs: Runs = Path("runs"),
    backbone: Annotated[
        list[Path] | None, typer.Option(help="Backbone folder; may be repeated. Default: all of the suite in --runs.")
    ] = None,
    suite: Suite = "embedded",
    objective: Annotated[str, typer.Option(help="Only these objectives of --runs, separated by commas.")] = "",
    images: Annotated[int, typer.Option(help="Number of pictures.")] = 256,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of pictures to analyse instead of the suite's held-out ones.")
    ] = None,
    data_root: DataRoot = None,
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
    device: Device = "auto",
    overwrite: Overwrite = "only-missing",
    output_format: TextFormat = "text",
) -> None:
    """Measure what backbones learned: attention distance, entropy, head diversity, CKA, rank, frequencies."""
    from benchmarks import analyze as analyses
    from benchmarks import suite as suites
    from benchmarks.data import data_root as find_data
    from benchmarks.progress import Reporter

    chosen = suites.get(suite)
    folders = backbone or analyses.find_backbones(runs, suite, names(objective))
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
