"""What wants a GPU, in at most eight minutes: ``make gpu-check``.

    python tests/gpu.py [--output benchmarks/speed/gpu.json] [--runs gpu-runs] [--parts peers,job]

The GPU tests, training steps of MAE and MaskDistill, plain and compiled, of mmpretrain's MAE, SimMIM, MaskFeat and
BEiT v2, and of every objective, at ViT-B/16 and 224 px in bf16, and the main job. Each part has its share of the time;
one that fails or does not end in time is named, what it had measured is kept, and the others go on. ``--parts board``
runs the whole board of suite ``embedded``, three seeds, in at most twenty minutes; called again, it goes on.
Exit codes: 0 all went well, 1 some part failed, 2 there is no GPU here. ``--device cpu --tiny`` tries all of it at a
size that a processor does in a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
COMPILED = "mae,maskdistill"  # mmpretrain has the first of them only
PEERS = "simmim,maskfeat,beitv2"
TINY = [  # 14 x 14 patches, which mmpretrain's MaskFeat needs
    "suite.input_size=112", "suite.kwargs.img_size=112", "suite.kwargs.patch_size=8", "suite.kwargs.depth=2",
    "suite.kwargs.embed_dim=32", "suite.kwargs.num_heads=2", "suite.decoder={'width': 32, 'depth': 1, 'heads': 2}",
]
TINY_JOB = [
    "suite.scenes={'pictures_train': 20, 'pictures_val': 10, 'videos_train': 1, 'videos_test': 1, 'frames_train': 4, "
    "'frames_test': 4}",
    "suite.images_seen=80", "suite.batch_size=8", "suite.kwargs.depth=1", "suite.kwargs.embed_dim=32",
    "suite.kwargs.num_heads=2", "task.classification.epochs=1",
]


class Part(NamedTuple):
    """A command, the seconds it may take, the record it writes (None: none), and whether it is run unless named."""

    name: str
    words: list[str]
    seconds: int
    record: Path | None = None
    usual: bool = True


def options(settings: list[str]) -> list[str]:
    return [word for setting in settings for word in ("--cfg-options", setting)]


def parts(device: str, tiny: bool, runs: Path, scratch: Path) -> list[Part]:
    """All of them; the seconds of the usual ones add up to eight minutes."""
    bench = [sys.executable, "-m", "benchmarks.cli"]

    def speed(name: str, objectives: str, batch: int, seconds: int, *more: str) -> Part:
        record = scratch / f"{name}.json"
        size = [2, "fp32", 1, 1] if tiny else [batch, "bf16", 5, 3]
        flags = zip(("--batch", "--precision", "--steps", "--turns"), map(str, size), strict=True)
        words = [*bench, "speed", "--suite", "paper", "--objective", objectives, "--device", device,
                 *(word for flag in flags for word in flag), "--output", str(record), *more,
                 *options(TINY if tiny else [])]
        return Part(name, words, seconds, record)

    tasks = "classification" if tiny else "all"
    job = [*bench, "run", "--objective", "maskdistill", "--tasks", tasks, "--device", device, "--runs", str(runs),
           "--overwrite", "always", *options(TINY_JOB if tiny else [])]
    board = [*bench, "run", "--objective", "mae,random_init" if tiny else "all", "--tasks", tasks, "--seeds",
             "2" if tiny else "3", "--device", device, "--runs", str(runs.with_name(runs.name + "-board")),
             *options(TINY_JOB if tiny else [])]
    return [  # what matters most comes first: a machine may be lent for less than all of it
        Part("tests", [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py"], 50),
        speed("compiled", COMPILED, 256, 120, "--how", "plain,compiled", "--peer", "mmpretrain"),
        speed("peers", PEERS, 256, 80, "--peer", "mmpretrain"),
        Part("job", job, 110),
        speed("objectives", "all", 32, 120),
        Part("board", board, 1200, usual=False),
    ]


def carry_out(part: Part) -> str | None:
    """Run a part; what went wrong with it, None where nothing did."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    try:
        process = subprocess.Popen(part.words, cwd=ROOT, env=environment)
        process.wait(part.seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # `bench run` keeps what is finished
        try:
            process.wait(70)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return f"not done after {part.seconds} s"
    return f"exit code {process.returncode}" if process.returncode else None


def main() -> int:
    parser = argparse.ArgumentParser(description="The checks that want a GPU.")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "speed" / "gpu.json")
    # a folder of its own: beneath runs/ the board would find two results for one cell
    parser.add_argument("--runs", type=Path, default=ROOT / "gpu-runs")
    parser.add_argument("--parts", default="", help="only these: tests, compiled, peers, job, objectives, board")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a processor, without limits of time")
    wanted = parser.parse_args()
    import torch

    if wanted.device.startswith("cuda") and not torch.cuda.is_available():
        print("gpu-check: no CUDA device here; run it on a machine with a GPU and its driver", file=sys.stderr)
        return 2
    failed: dict[str, str] = {}
    records: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for part in parts(wanted.device, wanted.tiny, wanted.runs.resolve(), Path(scratch)):
            if part.name not in wanted.parts.split(",") and (wanted.parts or not part.usual):
                continue
            started = time.monotonic()
            problem = carry_out(part._replace(seconds=3600) if wanted.tiny else part)
            seconds[part.name] = round(time.monotonic() - started, 1)
            print(f"gpu-check: {part.name}: {seconds[part.name]:.0f} of {part.seconds} s", file=sys.stderr)
            if problem is not None:
                failed[part.name] = problem
            if part.record is not None and part.record.is_file():
                records[part.name] = json.loads(part.record.read_text())
            wanted.output.parent.mkdir(parents=True, exist_ok=True)
            whole = {"format": 1, "kind": "gpu", "failed": failed, "seconds": seconds, "parts": records}
            wanted.output.write_text(json.dumps(whole, indent=1) + "\n")  # after each part: the next may be the last
    print(f"gpu-check: records in {wanted.output}", file=sys.stderr)
    for name, problem in failed.items():
        print(f"gpu-check: {name} failed: {problem}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
