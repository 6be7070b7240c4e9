"""The hook of every Runner here: progress, losses, and a stop with a reason when one is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from mmengine.dist import all_reduce
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from downstream.task import TaskError


class Watch(Hook):
    """Looks at the loss of every ``every``-th step and of the last five.

    Args:
        task: named where a loss is not finite.
        steps: of the training, or batches of the test.
        report: called with the step, from 1, and its loss (None in a test).
        every: steps between two looks; each waits for the device.
    """

    def __init__(self, task: str, steps: int, report: Callable[[int, float | None], None], every: int = 20) -> None:
        self.task, self.steps, self.report, self.every = task, steps, report, every
        self.losses: list[float] = []  # that were looked at, means over the processes

    def mean(self) -> float:
        """Of the last five losses."""
        last = self.losses[-5:]
        return sum(last) / len(last)

    def before_train(self, runner: Runner) -> None:
        if runner.optim_wrapper.clip_grad_kwargs:
            runner.optim_wrapper.clip_func = _clip

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        step = runner.iter + 1
        if step % self.every == 0 or step > self.steps - 5:
            value = outputs["loss"].detach().clone()
            all_reduce(value, "mean")
            loss = value.item()
            if not math.isfinite(loss):
                raise TaskError(f"{self.task}: the loss is {loss} at step {step} of {self.steps}; lower lr")
            self.losses.append(loss)
            self.report(step, loss)

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.report(batch_idx + 1, None)


def _clip(parameters: Sequence[nn.Parameter], **how: Any) -> None:
    """torch's ``clip_grad_norm_``, without the norm: mmengine would read it at every step, for which it waits for a
    GPU, and keep it.
    """
    nn.utils.clip_grad_norm_(parameters, **how)
