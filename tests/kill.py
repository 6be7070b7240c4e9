"""The kill test: a tiny ``bench run --jobs 2``, killed with SIGKILL at random moments and begun again until done.

    python tests/kill.py --kills 50

A kill hits the command with all that it started, or a single worker of it. The table and every record must equal those
of an undisturbed run bit by bit, but for times and the environment; no record may be lost or doubled, no traceback
shown, and no lock, temporary file or checkpoint left. ``make kill-test`` runs it at length, the test suite with three.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import commands

from leaderboard.records import read_records, same_result

OPTIONS = (commands.scenes(40, 2), "suite.images_seen=2400")  # 300 steps: two checkpoints a backbone
POLL = 0.02  # seconds
MORE = "--jobs", "2"


class Command(Protocol):
    """A command that runs, its stdout and stderr in files."""

    pid: int

    def wait(self, seconds: float | None) -> int | None:
        """Its exit code; None where it still runs after so many seconds."""


class Started:
    """The command as a user starts it."""

    def __init__(self, words: list[str], out: Path, err: Path) -> None:
        with open(out, "w") as stdout, open(err, "w") as stderr:
            words = commands.command(words)
            self.process = subprocess.Popen(words, stdout=stdout, stderr=stderr, start_new_session=True)
        self.pid = self.process.pid

    def wait(self, seconds: float | None) -> int | None:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None


Start = Callable[[list[str], Path, Path], Command]


@dataclass
class Tally:
    """What was done to the runs, and what was found."""

    whole: int = 0  # kills of a command with all of its workers
    single: int = 0  # kills of a worker
    restarts: int = 0
    seconds: float = 0.0
    found: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.whole + self.single

    def __str__(self) -> str:
        verdict = "records identical, none lost, none double, no stale lock" if not self.found else "NOT as undisturbed"
        return (f"{self.kills} kills ({self.whole} of the command, {self.single} of a worker), {self.restarts} "
                f"restarts, {self.seconds:.0f} s: {verdict}")


def table(text: str) -> list[dict]:
    """The rows of a table without their cost, which the clock decides."""
    return [{key: value for key, value in row.items() if key != "cost"} for row in json.loads(text)["rows"]]


def shoot(command: Command, whole: bool, draw: random.Random) -> bool:
    """Kill the command with its workers, or one of them as soon as there is one; False where it ended before."""
    if whole:
        for process in commands.tree(command.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return command.wait(None) == -signal.SIGKILL
    while command.wait(POLL) is None:
        if at_work := commands.workers(command.pid):
            with suppress(ProcessLookupError):
                os.kill(draw.choice(at_work), signal.SIGKILL)
                return True
    return False


def disturbed(words: list[str], kills: int, span: float, draw: random.Random, start: Start, tally: Tally) -> str:
    """Run to the end with at most ``kills`` more kills, each within ``span`` seconds after the last event: stdout."""
    out, err = (Path(words[words.index("--runs") + 1]).with_suffix(name) for name in (".out", ".err"))
    left = kills
    while True:
        command, wounded = start(words, out, err), False
        while (code := command.wait(draw.uniform(0, span) if left else None)) is None:
            whole = tally.whole <= tally.single  # in turn, so that a few kills try both
            if shoot(command, whole, draw):
                tally.whole, tally.single, left = tally.whole + whole, tally.single + (not whole), left - 1
                wounded = wounded or not whole
        if code == 0:
            return out.read_text()
        if code != -signal.SIGKILL:
            said = err.read_text()
            if "Traceback" in said:
                tally.found.append(f"a traceback after {tally.kills} kills:\n{said.strip()}")
            if not wounded or code not in (1, 2):
                raise SystemExit(f"{tally}\nexit {code}\n{said}")
        tally.restarts += 1


def left_behind(runs: Path) -> list[Path]:
    """What no finished run may leave: locks, temporary files, checkpoints."""
    return [path for path in runs.rglob("*")
            if path.name.endswith((".lock", ".tmp", ".partial")) or path.name.startswith("checkpoint-")]


def trial(
    folder: Path, kills: int, seed: int, objectives: str, tasks: str, options: tuple[str, ...] = OPTIONS,
    start: Start = Started,
) -> Tally:
    """Undisturbed and disturbed runs, compared."""
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    calm, draw, tally, started = folder / "calm", random.Random(seed), Tally(), time.monotonic()
    out, err = folder / "calm.out", folder / "calm.err"
    if start(commands.arguments(calm, objectives, tasks, *MORE, options=options), out, err).wait(None):
        raise SystemExit(f"the undisturbed run failed:\n{err.read_text()}")
    span = time.monotonic() - started
    for number in range(10 * kills):
        if tally.kills >= kills:
            break
        wild = folder / f"wild{number}"  # a run that came through before all kills were made: another one
        words = commands.arguments(wild, objectives, tasks, *MORE, options=options)
        got = disturbed(words, kills - tally.kills, span / 2, draw, start, tally)
        tally.found += [] if table(got) == table(out.read_text()) else ["the tables differ"]
        tally.found += compared(calm, wild)
    tally.seconds = time.monotonic() - started
    return tally


def compared(calm: Path, wild: Path) -> list[str]:
    """What the disturbed run's folder holds otherwise than the undisturbed one's."""
    (theirs, bad), (ours, worse) = read_records([calm]), read_records([wild])
    found = [f"invalid record: {error}" for error in (*bad, *worse)]
    files = {root: {path.relative_to(root) for path in root.rglob("result.json")} for root in (calm, wild)}
    found += [f"lost or doubled: {path}" for path in files[calm] ^ files[wild]]
    by_cell = {record.cell: record for record in ours}
    found += [f"differs: {record.command}" for record in theirs
              if record.cell not in by_cell or not same_result(record, by_cell[record.cell])]
    for name in ("backbone.safetensors", "log.jsonl"):
        for path in calm.rglob(name):
            other = wild / path.relative_to(calm)
            if not other.is_file() or other.read_bytes() != path.read_bytes():
                found.append(f"differs: {path.relative_to(calm)}")
    return found + [f"left behind: {path}" for path in left_behind(wild)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--objectives", default="mae,maskdistill")
    parser.add_argument("--tasks", default="classification,depth")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tally = trial(Path(folder), given.kills, given.seed, given.objectives, given.tasks)
    for line in tally.found:
        print(line)
    print(tally)
    raise SystemExit(bool(tally.found))


if __name__ == "__main__":
    main()
