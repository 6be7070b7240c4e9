"""SIGTERM and SIGINT outside of training steps: the first one stops the work in good order, the second one at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from benchmarks.errors import EXIT_INTERRUPTED


def install() -> None:
    """Make both signals a KeyboardInterrupt; while steps are made they wait (``objectives.interruption``)."""
    if threading.current_thread() is not threading.main_thread():
        return
    came = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            os._exit(EXIT_INTERRUPTED)
        came = True
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
