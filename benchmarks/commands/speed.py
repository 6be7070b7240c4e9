"""``bench speed``: training steps timed side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.errors import RequestError
from benchmarks.options import CfgOptions, Device, Objectives, Suite, TextFormat, choice, names

PRECISIONS = ("fp32", "bf16")
PEERS = ("", "mmpretrain")


def speed(
    objective: Objectives,
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
    device: Device = "auto",
    cfg_options: CfgOptions = None,
    output_format: TextFormat = "text",
    output: Annotated[Path | None, typer.Option(help="Keep the record in this JSON file, too.")] = None,
) -> None:
    """Time training steps side by side: images/s, memory, arithmetic, share of the device's ceiling."""
    for name, value in (("--steps", steps), ("--turns", turns), ("--batch", 1 if batch is None else batch)):
        if value < 1:
            raise RequestError(f"{name} {value}: at least 1")

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
    if output is not None:
        from leaderboard.render import write_text

        write_text(output, json.dumps(kept, indent=1) + "\n")
    if output_format == "json":
        print(json.dumps(kept, indent=1))
        return
    print(tabulate(kept["rows"], headers="keys", tablefmt="simple"))
    print(f"{kept['model']} {kept['input_size']} px, batch {count}, {precision}, {place}; "
          f"ceiling {kept['ceiling_gflops']:,} GFLOP/s")
