"""Live progress on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY = 5.0  # seconds


class Reporter:
    """Shows which cell is being worked on and how far it is. A context manager; ``report`` is a Progress callback."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live = sys.stderr.isatty()
        self.cell = ""
        self.last = 0.0
        self.stage = ""
        self.bar: Progress | None = None
        self.row: int | None = None

    def __enter__(self) -> Reporter:
        if self.live:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), console=self.console, transient=True,
            )
            self.bar.start()
            self.row = self.bar.add_task("", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, cell: str) -> None:
        """Name the cell that following reports belong to."""
        self.cell, self.last, self.stage = cell, time.monotonic(), ""

    def report(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of ``stage``."""
        text = f"{self.cell}: {stage}"
        if self.bar is not None and self.row is not None:
            self.bar.update(self.row, description=text, completed=done, total=total)
            return
        now = time.monotonic()
        if now - self.last >= LINE_EVERY:
            self.last = now
            self.say(f"  {text} {done}/{total}")

    def say(self, line: str) -> None:
        """A line of text that stays."""
        self.console.print(line, markup=False, soft_wrap=True)
