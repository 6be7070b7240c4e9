"""``bench run --executor ray`` measured: two workers against one, and a worker killed in the middle of a training.

    pip install -e '.[ray]'
    python tests/ray_scale.py

The plan of 4 objectives by 5 tasks at a tiny budget is run by a cluster of one core and by one of two (a worker a
core): the second must take at most 0.6 of the time. Then a worker is killed with SIGKILL when its training has a
checkpoint: another one must go on from there, and records and weights must be those of the undisturbed run. ``make
ray-check`` runs it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import commands
import kill

OBJECTIVES = "mae,simmim,maskfeat,random_init"
KILLED = "mae"
MOST = 0.6  # of one worker's time
OPTIONS = (
    commands.scenes(200, 8), "task.tracking.epochs=1", "task.tracking.pairs_per_epoch=64",
)
HEAD = """
import sys, ray
ray.init(num_cpus=int(sys.argv[1]), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def cluster(cores: int) -> Iterator[str]:
    """A Ray cluster of this machine with so many cores; its address."""
    head = subprocess.Popen(
        [sys.executable, "-c", HEAD, str(cores)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0"},
    )
    assert head.stdin is not None
    assert head.stdout is not None
    try:
        if not (address := head.stdout.readline().strip()):
            raise SystemExit("Ray does not start here; is it installed? pip install -e '.[ray]'")
        yield address
    finally:
        head.stdin.close()
        head.wait()


def seconds(cores: int, runs: Path, data: Path, objectives: str, tasks: str, images: int) -> float:
    """Of a request on a cluster of so many cores, from its start to its table."""
    with cluster(cores) as address:
        words = commands.arguments(
            runs, objectives, tasks, "--executor", f"ray:{address}", "--data-root", str(data),
            options=(*OPTIONS, f"suite.images_seen={images}"),
        )
        started = time.monotonic()
        done = subprocess.run(commands.command(words), capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"exit {done.returncode}\n{done.stderr}")
        return time.monotonic() - started


def room(root: Path, data: Path, images: int) -> float:
    """Time of two commands at once over one after the other, without Ray, a core each: what the machine gives."""

    def together(count: int) -> float:
        options = (*OPTIONS, f"suite.images_seen={images}")
        given = [
            commands.arguments(root / f"{count}-{i}", KILLED, "depth", "--data-root", str(data), "--jobs", "1",
                               options=options) for i in range(count)
        ]  # fmt: skip
        started = time.monotonic()
        running = [
            subprocess.Popen(["taskset", "--cpu-list", str(core), *commands.command(words)], stdout=subprocess.DEVNULL)
            for core, words in zip(sorted(os.sched_getaffinity(0)), given, strict=False)
        ]
        if any([process.wait() for process in running]):
            raise SystemExit("a command without Ray failed, too")
        return time.monotonic() - started

    return together(2) / (2 * together(1))


def disturbed(calm: Path, wild: Path, data: Path, images: int) -> tuple[list[str], int]:
    """(what differs after the loss of a worker, the step of the checkpoint that it left)."""
    after: set[int] = set()
    at: list[int] = []

    def harm() -> None:
        at.append(commands.kill_in_training(wild))
        while not list(wild.glob("*/*/seed*/pretrain/backbone.json")):
            after.update(commands.steps_noted(wild))
            time.sleep(0.05)

    threading.Thread(target=harm, daemon=True).start()
    seconds(2, wild, data, KILLED, "depth", images)
    if not at:
        return ["no worker was killed: the training was over too soon; name more --images"], 0
    lost = [f"step {step} was made again, though the checkpoint holds {at[0]}" for step in after if step <= at[0]]
    return lost + kill.compared(calm, wild), at[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=16000, help="of a pre-training, 8 a step")
    given = parser.parse_args()
    here = str(Path(__file__).resolve().parents[1])  # also for workers, which run elsewhere
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]),
                   "RAY_AUTH_MODE": "token"}  # Ray gives its clusters a token; who joins has to show it
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = root / "data"
        data.mkdir()
        calm_time = seconds(2, root / "calm", data, KILLED, "depth", given.images)  # renders the scenes, too
        found, step = disturbed(root / "calm", root / "wild", data, given.images)
        gives = room(root / "room", data, given.images)
        one, two = (seconds(n, root / f"runs{n}", data, OBJECTIVES, "all", given.images) for n in (1, 2))
    for line in found:
        print(line)
    loss = "records identical, only the work since then lost" if not found else "NOT as undisturbed"
    print(f"a worker killed in training, after the checkpoint of step {step} ({calm_time:.0f} s undisturbed): {loss}")
    good = two <= MOST * one
    print(f"20 cells: one worker {one:.0f} s, two workers {two:.0f} s, ratio {two / one:.2f} "
          f"({'at most' if good else 'NOT at most'} {MOST}); of two commands at once, without Ray: {gives:.2f}")
    raise SystemExit(bool(found) or not good)


if __name__ == "__main__":
    main()
