"""SIGTERM and SIGINT outside of training steps: the first one stops the work in good order, the second one at once.

In good order is by KeyboardInterrupt, which code of other languages, imported modules' above all, may turn into any
error or swallow; so a process that has nothing to put in order does without.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, parent_process
from types import FrameType

from benchmarks.errors import EXIT_INTERRUPTED

BOTH = (signal.SIGINT, signal.SIGTERM)


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

    for number in BOTH:
        signal.signal(number, stop)


@contextmanager
def installed() -> Iterator[None]:
    """:func:`install` within the block."""
    with _as_before():
        install()
        yield


@contextmanager
def ignored_by_children(numbers: Sequence[signal.Signals] = BOTH) -> Iterator[None]:
    """Processes that are begun within ignore these signals: whoever began them is told as well, and ends them."""
    with _as_before():
        if threading.current_thread() is threading.main_thread():
            for number in numbers:
                signal.signal(number, signal.SIG_IGN)
        yield


@contextmanager
def _as_before() -> Iterator[None]:
    """What the block makes of both signals is undone in the end; threads beside the main one cannot do either."""
    before = {number: signal.getsignal(number) for number in BOTH}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def leave_at_once() -> None:
    """In a process that another one leads: SIGTERM ends it without a word, and Ctrl-C is for the other one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def leave_with_parent() -> None:
    """In a process of multiprocessing: end when the one that began it has ended, however it did."""
    parent = parent_process()
    assert parent is not None

    def leave() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
