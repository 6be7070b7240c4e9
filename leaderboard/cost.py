"""What a row cost: pictures, time, core-hours and GPU-hours, arithmetic. Only what its records say, and counted FLOPs.

The arithmetic of a step is a property of the network, so it is counted and not measured: ``arithmetic.json`` holds the
floating-point operations a picture of every objective on the suites' own networks (made by ``python docs/make.py
--flops`` with PyTorch's counter: matrix products, convolutions and attention, forward and backward, teacher and heads
included). A record that gives its own ``cost.flops`` is believed instead.

Two things are not in these numbers. A frozen teacher counts for every picture, though where crops are fixed its targets
are computed once and then read (``maskdistill`` and its like: more is shown than was done). A tokenizer's own training
(``beit``, ``beitv2``) counts neither as pictures nor as FLOPs: ``tokenizer`` in ``backbone.json`` has its pictures, and
its seconds are in ``pretrain_seconds`` of every seed that uses it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .records import Record

ARITHMETIC = Path(__file__).parent / "arithmetic.json"
_NOTHING = "–"
MOST_PROCESSES = 10**6  # a stranger's record may say anything
_CORES = re.compile(r"(\d{1,6}) CPU cores?")
_DECIDES_ARITHMETIC = ("objective", "slots", "trains", "model", "kwargs", "input_size", "decoder")


@dataclass(frozen=True)
class RowCost:
    """What all records of a row cost together; None where no record says."""

    pretrain_images: int | None  # of one pre-training (the longest, should they differ)
    pretrain_seconds: float | None  # of one pre-training, mean over seeds
    device_hours: float | None  # pre-training of all seeds, and training and scoring of all their tasks; of each GPU
    device: str
    flops: float | None  # of one pre-training; the largest, should they differ
    peak_memory_bytes: int | None  # largest of the records
    cpu_hours: float | None = None  # hours times cores of what ran on processors; None where nothing did
    gpu_hours: float | None = None  # hours of what ran on other devices; None where nothing did

    @property
    def compute_text(self) -> str:
        parts = [(self.cpu_hours, "CPU-h"), (self.gpu_hours, "GPU-h")]
        return " + ".join(f"{hours:.2f} {unit}" for hours, unit in parts if hours is not None) or _NOTHING

    @property
    def flops_text(self) -> str:
        return _NOTHING if self.flops is None else f"{self.flops:.1e}" if self.flops else "0"


def row_cost(records: Sequence[Record]) -> RowCost:
    """The cost of a row from its records, whatever their status."""
    # Every task's record repeats what the pre-training of its seed cost: that is counted once a seed.
    paid: dict[int, tuple[float, int, int]] = {}  # seconds, cores, processes
    for record in records:
        if (seconds := record.cost["pretrain_seconds"]) is not None:
            own = (seconds, cores(record, "pretraining"), processes(record, "pretraining"))
            paid[record.seed] = max(own, paid.get(record.seed, (0.0, 0, 1)))
    of_seed = {(record.seed, record.cost["flops"], record.cost["pretrain_images"]): record for record in records}
    spent = [*paid.values()]
    spent += [
        (seconds, cores(record, "task"), processes(record, "task"))
        for record in records if (seconds := record.cost["seconds"]) is not None
    ]
    on_cpu = [seconds * count for seconds, count, _ in spent if count]
    on_gpu = [seconds * devices for seconds, count, devices in spent if not count]
    return RowCost(
        pretrain_images=max((i for r in records if (i := r.cost["pretrain_images"]) is not None), default=None),
        pretrain_seconds=sum(seconds for seconds, _, _ in paid.values()) / len(paid) if paid else None,
        device_hours=sum(s * (1 if count else devices) for s, count, devices in spent) / 3600 if spent else None,
        device=_devices({record.cost["device"] for record in records}),
        flops=max((f for r in of_seed.values() if (f := pretraining_flops(r)) is not None), default=None),
        peak_memory_bytes=max((m for r in records if (m := r.cost["peak_memory_bytes"]) is not None), default=None),
        cpu_hours=sum(on_cpu) / 3600 if on_cpu else None,
        gpu_hours=sum(on_gpu) / 3600 if on_gpu else None,
    )


def _devices(names: set[str]) -> str:
    """The devices of a row in words: different numbers of cores as a range, "1-2 CPU cores"."""
    counts = sorted(int(found[1]) for name in names if (found := _CORES.fullmatch(name)))
    words = sorted(name for name in names if not _CORES.fullmatch(name))
    if counts:
        span = str(counts[0]) if counts[0] == counts[-1] else f"{counts[0]}–{counts[-1]}"
        words.append(f"{span} CPU core{'s' * (counts[-1] != 1)}")
    return ", ".join(words)


def cores(record: Record, part: str) -> int:
    """Processor cores that ``part`` ("pretraining", "task") of a record kept busy, in all of its processes together.

    0 where it ran on another device.
    """
    found = _CORES.fullmatch(record.cost["device"])
    if found is None:
        return 0
    threads = record.environment.get("threads")
    used = threads.get(part) if isinstance(threads, dict) else None
    each = min(int(found[1]), used) if type(used) is int and used > 0 else max(1, int(found[1]))
    return each * processes(record, part)


def processes(record: Record, part: str) -> int:
    """Processes of a launcher that did ``part`` of a record together; of a GPU run each has one of its own."""
    told = record.environment.get("processes")
    count = told.get(part) if isinstance(told, dict) else None
    return min(count, MOST_PROCESSES) if type(count) is int and count > 0 else 1


def pretraining_flops(record: Record) -> float | None:
    """Floating-point operations of the record's pre-training; None where unknown."""
    if (told := record.cost["flops"]) is not None:
        return told
    images, made = record.cost["pretrain_images"], record.config.get("pretraining")
    if images is None or not isinstance(made, dict) or record.weights is not None:
        return None
    if not images:
        return 0.0
    each = gflops_per_picture().get(arithmetic_key(made))
    return None if each is None else each * 1e9 * images


def arithmetic_key(pretraining: dict[str, Any]) -> str:
    """The same for all pre-trainings (``config["pretraining"]``) of which a picture takes the same arithmetic."""
    kept = {name: pretraining.get(name) for name in _DECIDES_ARITHMETIC}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


@cache
def gflops_per_picture() -> dict[str, float]:
    """Key of :func:`arithmetic_key` -> 10^9 operations a picture; empty where none were counted."""
    return {row["key"]: float(row["gflops"]) for row in _counted()}


def relative_arithmetic(objective: str) -> float | None:
    """Operations a picture as a multiple of supervised training's (forward and backward of the backbone, once).

    More than 1 with several views, a decoder or a teacher, less where the student sees only part of the picture. On the
    last network that was counted, suite ``paper``'s: beside a small one a teacher and a decoder weigh more. None where
    it was not counted.
    """
    counted = {row["objective"]: float(row["gflops"]) for row in _counted()}
    if objective not in counted or "supervised" not in counted:
        return None
    return counted[objective] / counted["supervised"]


def _counted() -> list[dict[str, Any]]:
    try:
        return json.loads(ARITHMETIC.read_text(encoding="utf-8"))["rows"]
    except FileNotFoundError:
        return []
