"""SIGTERM and SIGINT outside of training steps: the first one stops the work in good order, the second one at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import connection, parent_process
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


@contextmanager
def ignored_by_children() -> Iterator[None]:
    """Processes that are begun within ignore both signals: whoever began them is told as well, and ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_with_parent() -> None:
    """In a process of multiprocessing: end when the one that began it has ended, however it did."""
    parent = parent_process()
    assert parent is not None

    def leave() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
