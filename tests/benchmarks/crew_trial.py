"""An execution without work, for tests of the crew; in a module of its own, which worker processes can import."""

import os
import signal
from pathlib import Path

import torch

from benchmarks.errors import RequestError
from benchmarks.execute import Execution, PretrainingFailed
from objectives.recipe import ObjectiveError


class Trial(Execution):
    """Fails and dies where the test wants it."""

    def check(self, cells):
        if any(cell.pretraining.seed == 9 for cell in cells):
            raise RequestError("seed 9 makes no sense")
        if any(cell.pretraining.seed == 7 for cell in cells):
            raise ObjectiveError("seed 7 needs a compiler")
        if any(cell.pretraining.seed == 8 for cell in cells):
            os.kill(os.getpid(), signal.SIGKILL)

    def pretrain(self, pretraining, wait=False):
        if pretraining.recipe.name == "simmim":
            raise PretrainingFailed("pre-training failed: no pictures")
        return Path(f"{pretraining.recipe.name}, {torch.get_num_threads()} threads")

    def score(self, cell, backbone, wait=False):
        self.reporter.begin(cell.name)
        self.reporter.report("test", 1, 1)
        if cell.task.name == "pose":
            os.kill(os.getpid(), signal.SIGKILL)
        return f"{cell.task.name} of {backbone}, {torch.get_num_threads()} threads"
