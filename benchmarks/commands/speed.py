"""``bench speed``: training steps timed side by side; ``--data``: the reading of pictures; ``--heads``: head grids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.errors import RequestError
from benchmarks.options import CfgOptions, DataRoot, Device, Objectives, Runs, Suite, TextFormat, choice, names

PRECISIONS = ("fp32", "bf16")
PEERS = ("", "mmpretrain")
READ_BATCH = 16  # pictures of a batch where reading is timed: what a machine without a GPU takes of 224 px


def speed(
    objective: Objectives = "",
    data: Annotated[
        Path | None,
        typer.Option(help="Time the reading of the pictures in this folder (class folders, .tar or .parquet files) "
                     "instead of steps, at the suite's picture size, beside torchvision's."),
    ] = None,
    heads: Annotated[
        bool,
        typer.Option("--heads", help="Time a grid of heads (8 learning rates x 2 layers) beside one head on cached "
                     "features of the suite's classification; --steps counts epochs, --turns turns."),
    ] = False,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read; default: one a core.")] = None,
    suite: Suite = "embedded",
    batch: Annotated[int | None, typer.Option(help="Pictures a step; default: the suite's.")] = None,
    precision: Annotated[
        str, typer.Option(help="fp32 or bf16 (autocast).", callback=choice("--precision", PRECISIONS))
    ] = "fp32",
    steps: Annotated[int, typer.Option(help="Steps of a turn.")] = 5,
    turns: Annotated[int, typer.Option(help="Turns of each contestant.")] = 5,
    peer: Annotated[
        str,
        typer.Option(help="`mmpretrain`: its step of the same objective takes turns, too.",
                     callback=choice("--peer", PEERS)),
    ] = "",
    runs: Runs = Path("runs"),
    data_root: DataRoot = None,
    device: Device = "auto",
    cfg_options: CfgOptions = None,
    output_format: TextFormat = "text",
    output: Annotated[Path | None, typer.Option(help="Keep the record in this JSON file, too.")] = None,
) -> None:
    """Time training steps side by side: images/s, memory, arithmetic, share of the device's ceiling."""
    for name, value in (("--steps", steps), ("--turns", turns), ("--batch", 1 if batch is None else batch)):
        if value < 1:
            raise RequestError(f"{name} {value}: at least 1")
    if data is not None:
        _speed_of_reading(data, batch or READ_BATCH, workers, suite, steps, turns, device, output_format, output)
        return
    if heads:
        _speed_of_heads(suite, runs, data_root, steps, turns, device, output_format, output)
        return
    if not objective:
        raise RequestError("bench speed: name objectives by --objective, or a folder of pictures by --data, or --heads")

    import torch
    from tabulate import tabulate

    from benchmarks import speed as timing
    from benchmarks import suite as suites
    from benchmarks.execute import resolve_device, set_threads
    from benchmarks.plan import resolve
    from benchmarks.progress import Reporter
    from objectives.recipe import get, recipes

    chosen = suites.get(suite)
    wanted = [r.name for r in recipes().values() if r.trains] if objective == "all" else names(objective)
    plans = [resolve(get(name), chosen, "default", cfg_options or []) for name in wanted]
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
    if _kept(kept, output, output_format):
        return
    print(tabulate(kept["rows"], headers="keys", tablefmt="simple"))
    print(f"{kept['model']} {kept['input_size']} px, batch {count}, {precision}, {place}; "
          f"ceiling {kept['ceiling_gflops']:,} GFLOP/s")


def _kept(record: dict[str, Any], output: Path | None, output_format: str) -> bool:
    """Write the record where it is to be kept; whether it was printed as JSON."""
    text = json.dumps(record, indent=1)
    if output is not None:
        from leaderboard.render import write_text

        write_text(output, text + "\n")
    if output_format == "json":
        print(text)
    return output_format == "json"


def _speed_of_reading(
    folder: Path, batch: int, workers: int | None, suite: str, batches: int, turns: int, device: str,
    output_format: str, output: Path | None,
) -> None:
    import tempfile

    import torch
    from tabulate import tabulate

    from benchmarks import speed_data as timing
    from benchmarks import suite as suites
    from benchmarks.environment import cores
    from benchmarks.execute import resolve_device
    from benchmarks.progress import Reporter

    size, many = suites.get(suite).input_size, cores() if workers is None else workers
    place = torch.device(resolve_device(device))
    with tempfile.TemporaryDirectory() as scratch, Reporter() as reporter:
        reporter.begin("speed of reading")
        store = timing.found(folder, Path(scratch))
        speeds = timing.measure(store, batch, size, many, place, batches, turns, reporter)
        record = timing.record(speeds, store, batch, size, many, str(place), batches, turns)
    if _kept(record, output, output_format):
        return
    print(tabulate(record["rows"], headers="keys", tablefmt="simple"))
    print(f"{record['pictures']:,} pictures of {record['bytes_per_picture'] / 1024:.0f} KiB to {size} px, "
          f"batch {batch}, {many} workers, {place}")


def _speed_of_heads(
    suite: str, runs: Path, given: Path | None, epochs: int, turns: int, device: str, output_format: str,
    output: Path | None,
) -> None:
    import tempfile

    from tabulate import tabulate

    from benchmarks import data, speed_heads
    from benchmarks import suite as suites
    from benchmarks.execute import resolve_device, set_threads
    from benchmarks.progress import Reporter

    chosen = suites.get(suite)
    set_threads()
    with tempfile.TemporaryDirectory() as scratch, Reporter() as reporter:
        reporter.begin("speed of heads")
        section = data.section(chosen, "classification", data.data_root(chosen, given, runs, reporter.report))
        record = speed_heads.measure(
            chosen, section, Path(scratch), resolve_device(device), epochs, turns, reporter)
    if _kept(record, output, output_format):
        return
    print(tabulate(record["rows"], headers="keys", tablefmt="simple"))
    print(f"{record['pictures']:,} pictures, features {record['features']}, batch {record['batch']}, "
          f"{epochs} epochs a turn")
