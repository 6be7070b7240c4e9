"""An execution whose pieces take no time and no torch, for tests of executors; importable by their workers."""

import os
import signal
from pathlib import Path

from benchmarks.execute import Execution, PretrainingFailed


class Light(Execution):
    """A backbone of simmim cannot be trained; who scores pose dies, the first time."""

    def check(self, cells):
        pass

    def attempt(self, piece):
        self.reporter.say(f"at {piece.name}")
        if piece.method == "pretrain":
            (pretraining,) = piece.arguments
            if pretraining.recipe.name == "simmim":
                return PretrainingFailed("pre-training failed: no pictures")
            return Path(f"backbone of {pretraining.recipe.name}")
        cell, backbone = piece.arguments
        died = self.runs / f"died-{cell.pretraining.recipe.name}"
        if cell.task.name == "pose" and not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return f"{cell.task.name} on {backbone}"
