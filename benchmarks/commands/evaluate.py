"""``bench eval`` and ``bench export``: backbones from elsewhere, and ours for elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.commands.run import Means, carry_out
from benchmarks.options import (
    CfgOptions,
    DataRoot,
    Device,
    DryRun,
    Executor,
    Jobs,
    Launcher,
    Overwrite,
    Protocol,
    Runs,
    Seed,
    Seeds,
    Suite,
    TableFormat,
    Tasks,
    check_writable,
    chosen_seeds,
    names,
)


def eval_(
    backbone: Annotated[
        str, typer.Option(help="timm:NAME[.TAG], timm:NAME=FILE, a backbone folder, or an official checkpoint (MAE, "
                          "SimMIM, BEiT, BEiT v2, MoCo v3, DINO, DINOv2, Swin, mmpretrain, transformers, timm).")
    ],
    tasks: Tasks = "all",
    suite: Suite = "embedded",
    protocol: Protocol = "",
    name: Annotated[str, typer.Option(help="The row's name; default: timm's, or the file's stem.")] = "",
    layout: Annotated[str, typer.Option(help="The file's layout where its keys do not tell it.")] = "",
    heads: Annotated[int | None, typer.Option(help="Heads of a plain ViT of no published width.")] = None,
    patch_size: Annotated[int | None, typer.Option(help="Resample the patch embedding to this patch.")] = None,
    recipe: Annotated[
        str, typer.Option(help="Objective whose recipes the tasks take, with @BUDGET where they depend on the length "
                          "of the pre-training (beitv2@1600ep); default: what the file's layout or tag tells.")
    ] = "",
    seeds: Seeds = None,
    seed: Seed = None,
    runs: Runs = Path("runs"),
    data_root: DataRoot = None,
    device: Device = "auto",
    jobs: Jobs = None,
    executor: Executor = "local",
    launcher: Launcher = "none",
    cfg_options: CfgOptions = None,
    overwrite: Overwrite = "only-missing",
    dry_run: DryRun = False,
    output_format: TableFormat = "terminal",
) -> None:
    """Score a backbone from elsewhere on the tasks.

    It becomes a row of the same table.

    The seed is that of the tasks' heads; where none is given, the one that the backbone was trained with, or 0.
    """
    from benchmarks import evaluate
    from benchmarks.plan import Request

    with Means(device, jobs, executor, launcher).joined() as means:
        wanted = evaluate.Wanted(backbone, name, layout, heads, patch_size, recipe)
        chosen = chosen_seeds(seeds, seed)
        converted = evaluate.fetch(wanted)
        if seeds is None and seed is None:
            chosen = (converted.about.get("seed", 0),)
        request = Request((), names(tasks), suite, names(protocol), "default", chosen, cfg_options or [])
        cells = evaluate.plan(wanted, converted, request, runs)
        if not dry_run:
            check_writable(runs)
            evaluate.install(converted, cells, runs)
        carry_out(cells, runs, data_root, means, overwrite, dry_run, output_format)


def export(
    output: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write.")],
    run: Annotated[str, typer.Option(help="Backbone folder, or a row of --runs: suite/objective[/seed0].")],
    to: Annotated[str, typer.Option(help="timm, openmmlab or huggingface.")],
    runs: Runs = Path("runs"),
) -> None:
    """Write a backbone for another library.

    Prints the snippet that uses it.
    """
    from benchmarks.evaluate import export as write

    sys.stdout.write(write(run, to, output, runs))
