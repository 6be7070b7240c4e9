"""The soak: 200 cells at a tiny budget in one process tree, whose memory and open files must stay flat.

    python tests/soak.py --cells 200

``make soak`` runs it at length (some eight minutes of one core), the test suite with a few cells.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

OPTIONS = [
    "suite.scenes={'pictures_train': 20, 'pictures_val': 10, 'videos_train': 1, 'videos_test': 1, 'frames_train': 4, "
    "'frames_test': 4}",
    "suite.images_seen=80", "suite.batch_size=8", "suite.kwargs.depth=1", "suite.kwargs.embed_dim=32",
    "suite.kwargs.num_heads=2", "suite.decoder={'width': 32, 'depth': 1, 'heads': 2}",
    *[f"task.{task}.epochs=1" for task in ("classification", "segmentation", "pose", "depth")],
]
TASKS = "classification,segmentation,pose,depth"
GROWTH = 0.05  # of the resident memory, from the second quarter to the last: an allocator's ups and downs
FILES = 2  # more open files than that are a leak
EVERY = 0.5  # seconds between samples


class Sample(NamedTuple):
    """Of a process tree when ``cells`` were finished: bytes resident, open files."""

    cells: int
    memory: int
    files: int


def tree(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:
                continue  # gone by now
    return found


def sample(pid: int, cells: int) -> Sample:
    """What the tree of ``pid`` holds now."""
    memory = files = 0
    for process in tree(pid):
        try:
            memory += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            files += len(os.listdir(f"/proc/{process}/fd"))
        except OSError:
            continue
    return Sample(cells, memory, files)


def watch(process: subprocess.Popen, runs: Path) -> list[Sample]:
    """Samples of a command until it ends."""
    samples = []
    while process.poll() is None:
        samples.append(sample(process.pid, len(list(runs.rglob("result.json")))))
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


def command(runs: Path, cells: int) -> list[str]:
    flags = [flag for option in OPTIONS for flag in ("--cfg-options", option)]
    seeds = str(-(-cells // len(TASKS.split(","))))
    return [sys.executable, "-m", "benchmarks.cli", "run", "--objective", "mae", "--tasks", TASKS, "--seeds", seeds,
            "--runs", str(runs), "--device", "cpu", "--jobs", "1", "--format", "json", *flags]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=200, help="rounded up to whole seeds of four tasks")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs, errors = Path(folder) / "runs", Path(folder) / "errors"
        with open(errors, "w") as file:
            process = subprocess.Popen(command(runs, given.cells), stdout=subprocess.DEVNULL, stderr=file)
            samples = watch(process, runs)
        if process.returncode:
            raise SystemExit(f"exit {process.returncode}\n{errors.read_text()}")
        flat, words = verdict(samples, len(list(runs.rglob("result.json"))))
    print(words)
    raise SystemExit(not flat)


if __name__ == "__main__":
    main()
