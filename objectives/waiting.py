"""How long the device waits for pictures, and what to change about it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from objectives.pictures.loader import Reading
from objectives.pictures.source import Source
from objectives.pictures.stream import Stream

MUCH = 0.05  # share of the time from which on advice is given


class Waiting(Hook):
    """Measures the share of the training that the device waits for its next batch.

    On a GPU a wait counts where all work handed over is done when the batch arrives; nothing is synchronised for it.
    For streamed pictures each pass over them leaves a row in ``reading.jsonl``: epoch, step, images_per_second, waited
    (share, 0 to 1), advice (or null). Registered last, it starts its clock when the other hooks are done.
    """

    priority = "VERY_LOW"

    def __init__(self, source: Source, reading: Reading, device: str, folder: Path) -> None:
        self.source, self.reading, self.log = source, reading, folder / "reading.jsonl"
        self.cuda = device.startswith("cuda")
        self.event: torch.cuda.Event | None = None
        self.waited = self.spent = 0.0  # seconds, of the whole training
        self.of_epoch = (0.0, 0.0, 0)  # waited, spent, first step of the epoch under way

    def before_train(self, runner: Runner) -> None:
        self.left = time.perf_counter()
        self.of_epoch = (0.0, 0.0, runner.iter)
        if isinstance(self.source, Stream) and runner.iter == 0:
            self.log.unlink(missing_ok=True)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.arrived = time.perf_counter()
        if self.event is None or self.event.query():
            self.waited += self.arrived - self.left

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if self.cuda:
            self.event = torch.cuda.Event()
            self.event.record()
        now = time.perf_counter()
        self.spent += now - self.left
        self.left = now
        step, each = runner.iter + 1, self.reading.batch
        if isinstance(self.source, Stream):
            before, after = (s * each // len(self.source) for s in (step - 1, step))
            if after > before or step == runner.max_iters:
                self._note(before, step)

    def _note(self, epoch: int, step: int) -> None:
        waited, spent, first = self.of_epoch
        share = (self.waited - waited) / max(1e-9, self.spent - spent)
        rate = (step - first) * self.reading.batch / max(1e-9, self.spent - spent)
        row = {"epoch": epoch, "step": step, "images_per_second": round(rate, 1), "waited": round(share, 4),
               "advice": self.advice(share)}
        with open(self.log, "a") as file:
            file.write(json.dumps(row) + "\n")
        self.of_epoch = (self.waited, self.spent, step)

    def advice(self, share: float) -> str | None:
        """What to change where the device waits much; None where it does not, or nothing can be done."""
        if share < MUCH or not isinstance(self.source, Stream):
            return None
        readers = self.reading.workers or self.source.threads
        what = [f"more cores (now {readers} read{'s' if readers == 1 else ''})", "--jobs 1 where several trainings run"]
        if not self.source.decoded:
            what += [self.source.undecoded] if self.source.undecoded else []
            what.append(f"smaller files: a short side beyond {2 * self.reading.size} px gains nothing")
        return "the device waits for pictures; what helps: " + "; ".join(what)

    def about(self) -> dict[str, Any]:
        """For ``backbone.json``: the share waited, and how the pictures were read."""
        share = round(self.waited / max(1e-9, self.spent), 4)
        facts: dict[str, Any] = {"waited": share, "workers": self.reading.workers, "advice": self.advice(share)}
        if isinstance(self.source, Stream):
            facts["decoded_once"] = bool(self.source.decoded)
        return facts
