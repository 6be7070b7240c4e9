"""The soak: 200 cells at a tiny budget in one process tree, whose memory and open files must stay flat.

    python tests/soak.py --cells 200

The command runs with two workers; all of its processes are counted. ``make soak`` runs it at length (with one worker
some eight minutes of one core), the test suite with a few cells.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import commands

OPTIONS = (commands.scenes(20, 1), "suite.images_seen=80")
TASKS = "classification,segmentation,pose,depth"
GROWTH = 0.05  # of the resident memory, from the second quarter to the last: an allocator's ups and downs
FILES = 2  # more open files than that are a leak
EVERY = 0.5  # seconds between samples


class Sample(NamedTuple):
    """Of a process tree when ``cells`` were finished: bytes resident, open files."""

    cells: int
    memory: int
    files: int


def sample(pid: int, cells: int) -> Sample:
    """What the tree of ``pid`` holds now."""
    memory = files = 0
    for process in commands.tree(pid):
        try:
            memory += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            files += len(os.listdir(f"/proc/{process}/fd"))
        except OSError:
            continue
    return Sample(cells, memory, files)


def finished(runs: Path) -> int:
    """How many cells have a result; looked for where no folder goes away meanwhile, as those of locks do."""
    return len(list(runs.glob("embedded/*/seed*/*/result.json")))


def watch(process: subprocess.Popen, runs: Path) -> list[Sample]:
    """Samples of a command until it ends."""
    samples = []
    while process.poll() is None:
        samples.append(sample(process.pid, finished(runs)))
        time.sleep(EVERY)
    return samples


def verdict(samples: list[Sample], total: int, growth: float = GROWTH) -> tuple[bool, str]:
    """Whether memory and open files were flat from the second quarter of ``total`` cells to the last, in words."""
    early = [s for s in samples if total / 4 <= s.cells < total / 2]
    late = [s for s in samples if 3 * total / 4 <= s.cells < total]
    if not early or not late:
        return False, "too few samples"
    memory = [statistics.median(s.memory for s in part) for part in (early, late)]
    files = [statistics.median(s.files for s in part) for part in (early, late)]
    flat = memory[1] <= (1 + growth) * memory[0] and files[1] <= files[0] + FILES
    words = (f"memory {memory[0] / 2**20:.0f} -> {memory[1] / 2**20:.0f} MiB, open files {files[0]:.0f} -> "
             f"{files[1]:.0f} (medians of the second and the last quarter of {total} cells)")
    return flat, f"{words}: {'flat' if flat else 'NOT flat'}"


def command(runs: Path, cells: int, jobs: int) -> list[str]:
    seeds = str(-(-cells // len(TASKS.split(","))))
    more = ("--seeds", seeds, "--jobs", str(jobs))
    return commands.command(commands.arguments(runs, "mae", TASKS, *more, options=OPTIONS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=200, help="rounded up to whole seeds of four tasks")
    parser.add_argument("--jobs", type=int, default=2, help="workers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        runs, errors = Path(folder) / "runs", Path(folder) / "errors"
        with open(errors, "w") as file:
            process = subprocess.Popen(command(runs, given.cells, given.jobs), stdout=subprocess.DEVNULL, stderr=file)
            samples = watch(process, runs)
        if process.returncode:
            raise SystemExit(f"exit {process.returncode}\n{errors.read_text()}")
        flat, words = verdict(samples, finished(runs))
    print(f"{given.jobs} workers, {time.monotonic() - started:.0f} s: {words}")
    raise SystemExit(not flat)


if __name__ == "__main__":
    main()
