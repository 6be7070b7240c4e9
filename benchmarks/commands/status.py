"""``bench status``: how far the requests on a runs folder are, from any terminal."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.errors import RequestError
from benchmarks.options import Runs, TextFormat

if TYPE_CHECKING:
    from benchmarks.notes import State

SHOWN = 40  # cells of a kind; the rest is counted


def status(runs: Runs = Path("runs"), output_format: TextFormat = "text") -> None:
    """Show how far the requests on a folder are.

    Those that are being carried out on the runs folder, or the last one.
    """
    from benchmarks.notes import states

    if not runs.is_dir():
        raise RequestError(f"--runs {runs}: no such folder")
    found = states(runs)
    if output_format == "json":
        print(json.dumps([asdict(state) for state in found], indent=1))
        return
    if not found:
        print(f"no request on {runs} yet")
    for state in found:
        print("\n".join(lines(state)))


def lines(state: State) -> list[str]:
    """A request as text."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(state.started))
    counts = f"{state.finished} of {state.total} cells have a number, {len(state.failed)} failed or were skipped"
    now = "running" if state.alive else "ended"
    found = [state.command, f"  since {when}, {now}: {counts}, {state.waiting} waiting"]
    for name, note in list(state.under_way.items())[:SHOWN]:
        how_far = f": {note.stage} {note.done}/{note.total}" if note else ""
        found.append(f"  {name}{how_far}")
    for name, reason in list(state.failed.items())[:SHOWN]:
        found.append(f"  {name}: {reason}")
    hidden = sum(max(0, len(part) - SHOWN) for part in (state.under_way, state.failed))
    return [*found, *([f"  and {hidden} more"] if hidden else [])]
