"""How long the device waits for pictures, and what to change about it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import get_dist_info, master_only
from mmengine.hooks import Hook
from mmengine.runner import Runner

from objectives.pictures.loader import Reading
from objectives.pictures.source import Source
from objectives.pictures.stream import Stream

MUCH = 0.05  # share of the time from which on advice is given


class Waiting(Hook):
    """Measures the share of the training that the device waits for its next batch.

    On a GPU a wait counts where all work handed over is done when the batch arrives; nothing is synchronised for it.
    Rows of ``reading.jsonl``, one a pass over streamed pictures, one at the end for those in memory: step,
    images_per_second, waited (share, 0 to 1), workers, decoded_once, advice (or null). Registered last, it starts its
    clock when the other hooks are done.
    """

    priority = "VERY_LOW"

    def __init__(self, source: Source, reading: Reading, device: str, folder: Path) -> None:
        self.source, self.reading, self.log = source, reading, folder / "reading.jsonl"
        self.batch = reading.batch * get_dist_info()[1]  # of all processes
        self.cuda = device.startswith("cuda")
        self.event: torch.cuda.Event | None = None
        self.waited = self.spent = 0.0  # seconds since the last row
        self.noted = 0  # step of the last row

    def before_train(self, runner: Runner) -> None:
        self.left, self.noted = time.perf_counter(), runner.iter
        if runner.iter == 0:
            self.log.unlink(missing_ok=True)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        arrived = time.perf_counter()
        if self.event is None or self.event.query():
            self.waited += arrived - self.left

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if self.cuda:
            self.event = torch.cuda.Event()
            self.event.record()
        now = time.perf_counter()
        self.spent += now - self.left
        self.left = now
        step, passed = runner.iter + 1, False
        if isinstance(self.source, Stream):
            before, after = (s * self.batch // len(self.source) for s in (step - 1, step))
            passed = after > before
        if passed or step == runner.max_iters:
            self._note(step)

    @master_only
    def _note(self, step: int) -> None:
        share = self.waited / max(1e-9, self.spent)
        row = {
            "step": step, "images_per_second": round((step - self.noted) * self.batch / self.spent, 1),
            "waited": round(share, 4), "workers": self.reading.workers,
            "decoded_once": isinstance(self.source, Stream) and bool(self.source.decoded), "advice": self.advice(share),
        }
        with open(self.log, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.waited = self.spent = 0.0
        self.noted = step

    def advice(self, share: float) -> str | None:
        """What to change where the device waits much; None where it does not, or the pictures are in memory."""
        if share < MUCH or not isinstance(self.source, Stream):
            return None
        readers = self.reading.workers or self.source.threads
        what = [f"more cores (now {readers} read{'s' if readers == 1 else ''})", "--jobs 1 where several trainings run"]
        if not self.source.decoded:
            what += [self.source.undecoded] if self.source.undecoded else []
            what.append(f"smaller files: a short side beyond {2 * self.reading.size} px gains nothing")
        return "the device waits for pictures; what helps: " + "; ".join(what)
