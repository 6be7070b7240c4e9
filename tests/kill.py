"""The kill test: ``bench run`` on a tiny budget, killed with SIGKILL at random moments and begun again until done.

    python tests/kill.py --kills 50

The table and every record must equal those of an undisturbed run bit by bit, but for times and the environment; no
record may be lost or doubled, and no lock, temporary file or checkpoint may be left. ``make kill-test`` runs it at
length, the test suite with three kills.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from leaderboard.records import read_records, same_result

OPTIONS = [
    "suite.scenes={'pictures_train': 40, 'pictures_val': 20, 'videos_train': 2, 'videos_test': 1, 'frames_train': 4, "
    "'frames_test': 4}",
    "suite.images_seen=2400", "suite.batch_size=8", "suite.kwargs.depth=1", "suite.kwargs.embed_dim=32",
    "suite.kwargs.num_heads=2", "suite.decoder={'width': 32, 'depth': 1, 'heads': 2}",
    *[f"task.{task}.epochs=1" for task in ("classification", "segmentation", "pose", "depth")],
]
TASKS = "classification,segmentation,pose,depth"


def command(runs: Path, objectives: str, tasks: str) -> list[str]:
    flags = [flag for option in OPTIONS for flag in ("--cfg-options", option)]
    return [sys.executable, "-m", "benchmarks.cli", "run", "--objective", objectives, "--tasks", tasks, "--runs",
            str(runs), "--device", "cpu", "--format", "json", *flags]


def table(text: str) -> list[dict]:
    """The rows of a table without their cost, which the clock decides."""
    return [{key: value for key, value in row.items() if key != "cost"} for row in json.loads(text)["rows"]]


def disturbed(words: list[str], kills: int, span: float, draw: random.Random) -> tuple[str, int]:
    """Run to the end with at most ``kills`` kills within ``span`` seconds after each start: (stdout, kills made)."""
    done = 0
    while True:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            out, err = process.communicate(timeout=draw.uniform(0, span) if done < kills else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            done += 1
            continue
        if process.returncode:
            raise SystemExit(f"after {done} kills: exit {process.returncode}\n{err}")
        return out, done


def left_behind(runs: Path) -> list[Path]:
    """What no finished run may leave: locks, temporary files, checkpoints."""
    return [path for path in runs.rglob("*")
            if path.name.endswith((".lock", ".tmp", ".partial")) or path.name.startswith("checkpoint-")]


def differences(folder: Path, kills: int, seed: int, objectives: str, tasks: str) -> tuple[list[str], int]:
    """(what differs between an undisturbed and a disturbed run, kills made)."""
    os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    calm, draw = folder / "calm", random.Random(seed)
    started = time.monotonic()
    wanted = subprocess.run(command(calm, objectives, tasks), capture_output=True, text=True, check=False)
    if wanted.returncode:
        raise SystemExit(f"the undisturbed run failed:\n{wanted.stderr}")
    span, done, found = time.monotonic() - started, 0, []
    for number in range(10 * kills):
        if done >= kills:
            break
        wild = folder / f"wild{number}"  # a run that came through before all kills were made: another one
        got, made = disturbed(command(wild, objectives, tasks), kills - done, span / 2, draw)
        done += made
        found += [] if table(got) == table(wanted.stdout) else ["the tables differ"]
        found += compared(calm, wild)
    return found, done


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
    parser.add_argument("--objectives", default="mae,maskdistill,random_init")
    parser.add_argument("--tasks", default=TASKS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found, done = differences(Path(folder), given.kills, given.seed, given.objectives, given.tasks)
    for line in found:
        print(line)
    print(f"{done} kills: " + ("records and table equal the undisturbed run's" if not found else "NOT equal"))
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
