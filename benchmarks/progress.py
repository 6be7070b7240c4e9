"""Live progress on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY = 5.0  # seconds


class Reporter:
    """Shows what is being worked on and how far it is. A context manager; ``report`` is a Progress callback."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.live = sys.stderr.isatty()
        self.cell = ""
        self.last: dict[str, float] = {}  # when a line of this cell was written
        self.rows: dict[str, TaskID] = {}
        self.bar: Progress | None = None

    def __enter__(self) -> Reporter:
        if self.live:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), console=self.console, transient=True,
            )
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def begin(self, cell: str) -> None:
        """Name the cell that following reports belong to; the one before is finished."""
        self.finish(self.cell)
        self.cell = cell

    def report(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` units of ``stage``."""
        self.show(self.cell, stage, done, total)

    def show(self, cell: str, stage: str, done: int, total: int) -> None:
        """The same for any cell: several may be under way."""
        text = f"{cell}: {stage}"
        if self.bar is not None:
            if cell not in self.rows:
                self.rows[cell] = self.bar.add_task(text, total=total)
            self.bar.update(self.rows[cell], description=text, completed=done, total=total)
            return
        now = time.monotonic()
        if now - self.last.setdefault(cell, now) >= LINE_EVERY:
            self.last[cell] = now
            self.say(f"  {text} {done}/{total}")

    def finish(self, cell: str) -> None:
        """Nothing more will come of this cell."""
        self.last.pop(cell, None)
        row = self.rows.pop(cell, None)
        if self.bar is not None and row is not None:
            self.bar.remove_task(row)

    def say(self, line: str) -> None:
        """A line of text that stays."""
        self.console.print(line, markup=False, soft_wrap=True)


class Silent(Reporter):
    """Of a process that has nobody to tell."""

    def show(self, cell: str, stage: str, done: int, total: int) -> None:
        pass

    def say(self, line: str) -> None:
        pass


class Kept(Silent):
    """Keeps the lines that are said, for another process to say them."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)
