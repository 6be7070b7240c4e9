"""``bench speed``: training steps timed side by side; with ``--data``, the reading of pictures; with ``--heads``, head
grids; with ``--scaling``, the cost against batch, size and depth; with ``--overhead``, what surrounds a run's steps.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from benchmarks.errors import EXIT_FAILED, RequestError, unknown
from benchmarks.options import CfgOptions, DataRoot, Device, Objectives, Runs, Suite, TextFormat, choice, names

if TYPE_CHECKING:
    import torch

    from benchmarks.plan import Pretraining
    from benchmarks.progress import Reporter
    from objectives.arithmetic import Arithmetic

PRECISIONS = ("fp32", "bf16")
PEERS = ("", "mmpretrain")
WAYS = ("plain", "fast", "compiled")
CONVERTED = "this processor has no units for its products and computes them by conversion"
READ_BATCH = 16  # pictures of a batch where reading is timed: what a machine without a GPU takes of 224 px


def listed(option: str, text: str, known: Sequence[str]) -> list[str]:
    """The values of an option that takes several, separated by commas.

    Raises:
        RequestError: none, or one that is not known.
    """
    found = names(text)
    for name in found:
        if name not in known:
            raise unknown(f"value of {option}", name, known)
    if not found:
        raise RequestError(f"{option}: name at least one of {', '.join(known)}")
    return found


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
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Time steps (default: of mae) against batch, picture size and depth.")
    ] = False,
    overhead: Annotated[
        bool, typer.Option("--overhead", help="Time whole pre-trainings (default: of mae) on random pictures, and "
                           "the share that the steps take.")
    ] = False,
    suite: Suite = "embedded",
    batch: Annotated[int | None, typer.Option(help="Pictures a step; default: the suite's.")] = None,
    precision: Annotated[
        str, typer.Option(help="fp32 and bf16 (autocast), one or both, separated by commas; each side has each.")
    ] = "fp32",
    how: Annotated[
        str, typer.Option(help="How ours computes, one or more of: plain (as `bench run`), fast (as with --fast), "
                          "compiled (as with --fast --compile).")
    ] = "plain",
    steps: Annotated[int, typer.Option(help="Steps of a turn.")] = 5,
    turns: Annotated[int, typer.Option(help="Turns of each contestant.")] = 5,
    peer: Annotated[
        str,
        typer.Option(help="`mmpretrain`: its step of the same objective takes turns, too.",
                     callback=choice("--peer", PEERS)),
    ] = "",
    together: Annotated[
        bool,
        typer.Option("--together", help="Objectives take turns, too, and each is compared with the first of them; all "
                     "are in memory at once. Default: one objective after the other."),
    ] = False,
    runs: Runs = Path("runs"),
    data_root: DataRoot = None,
    device: Device = "auto",
    cfg_options: CfgOptions = None,
    output_format: TextFormat = "text",
    output: Annotated[Path | None, typer.Option(help="Keep the record in this JSON file, too.")] = None,
) -> None:
    """Time training steps, also beside mmpretrain's.

    Images/s, memory, arithmetic, share of the device's ceiling; or reading, heads, scaling, overhead.
    """
    for name, value in (("--steps", steps), ("--turns", turns), ("--batch", 1 if batch is None else batch)):
        if value < 1:
            raise RequestError(f"{name} {value}: at least 1")
    precisions, ways = listed("--precision", precision, PRECISIONS), listed("--how", how, WAYS)
    if sum((data is not None, heads, scaling, overhead)) > 1:
        raise RequestError("--data, --heads, --scaling and --overhead measure different things: give one of them")
    if data is not None:
        _speed_of_reading(data, batch or READ_BATCH, workers, suite, steps, turns, device, output_format, output)
        return
    if heads:
        _speed_of_heads(suite, runs, data_root, steps, turns, device, output_format, output)
        return
    if not objective and not scaling and not overhead:
        raise RequestError(
            "bench speed: name objectives by --objective, or a folder of pictures by --data, or --heads, --scaling or "
            "--overhead"
        )

    import torch

    from benchmarks.execute import resolve_device, set_threads
    from benchmarks.progress import Reporter
    from objectives.machine import multiplies_bf16

    plans = _plans(objective or "mae", suite, cfg_options or [])
    count = batch or plans[0].suite.batch_size
    place = torch.device(resolve_device(device))
    set_threads()
    with Reporter() as reporter:
        reporter.begin("speed")
        if place.type == "cpu" and "bf16" in precisions and not multiplies_bf16():
            reporter.say(f"bf16: {CONVERTED}, some 50 times slower than fp32; --precision fp32 leaves those rows out")
        if scaling:
            from benchmarks import speed_scaling

            record = speed_scaling.record(plans[0], _computing(precisions[0], ways[0], place), place, steps, turns,
                                          reporter)
        elif overhead:
            from benchmarks import speed_overhead

            how_computed = _computing(precisions[0], ways[0], place)
            record = speed_overhead.record(plans[0], place, how_computed, turns, reporter)
        else:
            record = _side_by_side(
                [plans] if together else [[plan] for plan in plans], count, precisions, ways, peer, place, steps, turns,
                reporter, output)
    if not _kept(record, output, output_format):
        _print(record)
    if record.get("failed"):
        raise typer.Exit(EXIT_FAILED)


def _plans(objective: str, suite: str, options: list[str]) -> list[Pretraining]:
    from benchmarks import suite as suites
    from benchmarks.plan import resolve
    from objectives.recipe import get, recipes

    wanted = [r.name for r in recipes().values() if r.trains] if objective == "all" else names(objective)
    if not wanted:
        raise RequestError("--objective: name at least one, or `all`; see `bench list objectives`")
    return [resolve(get(name), suites.get(suite), "default", options) for name in wanted]


def _computing(precision: str, way: str, place: torch.device) -> Arithmetic:
    from dataclasses import replace

    from objectives.arithmetic import Arithmetic

    return replace(Arithmetic.of(place, way != "plain", way == "compiled"), precision=precision)


def _side_by_side(
    groups: Sequence[Sequence[Pretraining]], batch: int, precisions: Sequence[str], ways: Sequence[str], peer: str,
    place: torch.device, steps: int, turns: int, reporter: Reporter, output: Path | None,
) -> dict[str, Any]:
    """One group after the other, so that no more than one of them fills the memory; its objectives take turns, each
    beside its peer. After each of them the record so far is kept; one that fails is named in it, and the rest goes on.

    Raises:
        RequestError: none could be timed.
    """
    from benchmarks import speed as timing

    speeds, ratios, tops, failed, record = [], [], {}, {}, {}
    without = _without_peer([plan for group in groups for plan in group], peer) if peer else {}

    def contestants(group: Sequence[Pretraining]) -> Iterator[timing.Contestant]:
        for plan in group:
            for precision, way in product(precisions, ways):
                yield timing.ours(plan, batch, _computing(precision, way, place), place)
            if plan.label in without:
                reporter.say(f"{plan.label}: timed alone: {without[plan.label]}")
            elif peer:
                for precision in precisions:
                    yield timing.peer(plan, batch, precision, place)

    for group in groups:
        try:
            rows, pairs, top = timing.measure(list(contestants(group)), batch, steps, turns, reporter)
        except RequestError:
            raise
        except Exception as error:  # of memory, a compiler, or a kernel that this device does not have
            name = ", ".join(map(timing.label, group))
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            reporter.say(f"{name}: not timed: {failed[name]}")
            rows, pairs, top = [], [], {}
        speeds += rows
        ratios += pairs
        tops |= top
        gc.collect()
        if speeds:
            record = {**timing.record(speeds, ratios, tops, groups[0][0], batch, str(place), steps, turns),
                      **({"failed": failed} if failed else {})}
            _keep(record, output)
    if not record:
        raise RequestError(f"bench speed: nothing could be timed: {'; '.join(failed.values())}")
    return record


def _without_peer(plans: Sequence[Pretraining], peer: str) -> dict[str, str]:
    """Label -> why the peer has no such step; found before anything is measured.

    Raises:
        RequestError: it has none of them.
    """
    from benchmarks.speed_peers import NoPeer, configured
    from benchmarks.tidy import quiet

    found = {}
    for plan in plans:
        try:
            with quiet():
                configured(plan)
        except NoPeer as reason:
            found[plan.label] = str(reason)
    if all(plan.label in found for plan in plans):
        which = f"{plans[0].recipe.name}: {found[plans[0].label]}" if len(plans) == 1 else "any of these objectives"
        raise RequestError(f"--peer {peer}: no step of {which}")
    return found


def _print(record: dict[str, Any]) -> None:
    """The record's tables, and what they were measured with."""
    from tabulate import tabulate

    for name, reason in record.get("failed", {}).items():
        print(f"{name}: not timed: {reason}")

    for part in ("rows", "ratios"):
        if record.get(part):
            print(tabulate(record[part], headers="keys", tablefmt="simple"))
            print()
    ceilings = ", ".join(f"{name} {top:,} GFLOP/s" for name, top in record.get("ceiling_gflops", {}).items())
    device = record["environment"]["hardware"]["device"]
    if "overhead" in record:
        print(f"outside of the steps: {100 * record['overhead']:.2f} % of a run")
    print(f"{record['model']} {record['input_size']} px, batch {record['batch']}, {device}"
          + (f"; ceiling {ceilings}" if ceilings else ""))
    if "bf16" in record.get("ceiling_gflops", {}) and device == "cpu" and not record["processor_multiplies_bf16"]:
        print(f"bf16: {CONVERTED}")


def _kept(record: dict[str, Any], output: Path | None, output_format: str) -> bool:
    """Write the record where it is to be kept; whether it was printed as JSON."""
    _keep(record, output)
    if output_format == "json":
        print(json.dumps(record, indent=1))
    return output_format == "json"


def _keep(record: dict[str, Any], output: Path | None) -> None:
    """Write the record where it is to be kept."""
    if output is not None:
        from leaderboard.render import write_text

        write_text(output, json.dumps(record, indent=1) + "\n")


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
