"""SIGINT and SIGTERM while steps are being made: the step ends and is saved first."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType

INTERRUPTED = 130  # exit code: 128 + SIGINT
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Deferred:
    """Within the ``with`` block the first signal only sets ``asked``; a second one leaves the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers, nor get signals
            self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            os._exit(INTERRUPTED)
        self.asked = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
