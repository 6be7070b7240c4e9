"""Who works on what: two ``bench run`` on one runs folder share the work instead of doing it twice.

A lock is the system's own on an open file (flock), so that it ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

FOLDER = ".locks"  # below the runs folder


class Busy(Exception):
    """Another process holds the lock."""


def _path(runs: Path, work: Path) -> Path:
    return runs / FOLDER / ("--".join(work.parts) + ".lock")


def beside(runs: Path, work: Path) -> Path:
    """A file beside the lock on ``work``, for notes of who holds it; it goes with the lock."""
    return _path(runs, work).with_suffix(".progress")


def is_held(runs: Path, work: Path) -> bool:
    """Whether a process holds the lock on ``work``, on any machine that the file system locks for.

    A process that asks for the lock in the same instant may find it taken; it then comes back later.
    """
    try:
        with open(_path(runs, work), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def held(runs: Path, work: Path, wait: bool) -> Iterator[None]:
    """Hold the lock on ``work``, a folder relative to ``runs``.

    Args:
        wait: until it is free; else raise.

    Raises:
        Busy: another process holds it.
    """
    path = _path(runs, work)
    lock = FileLock(path, timeout=-1 if wait else 0)
    while not lock.is_locked:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(poll_interval=0.2)
        except FileNotFoundError:
            continue  # another process was the last one just now, and took the folder along
        except Timeout as error:
            raise Busy from error
    try:
        yield
    finally:
        with suppress(OSError):
            beside(runs, work).unlink()
        with suppress(OSError):
            path.unlink()  # while it is held: who waits for it notices and makes a new one
        lock.release()
        with suppress(OSError):
            path.parent.rmdir()  # the last one takes the folder along


def clear(runs: Path, folder: Path) -> None:
    """Take away the locks that dead processes left on works in ``folder``, which nobody will ask for again."""
    start = "--".join(folder.parts) + "--"
    for path in (runs / FOLDER).glob(f"{start}*.lock"):
        with suppress(Busy), held(runs, folder / path.name.removeprefix(start).removesuffix(".lock"), wait=False):
            pass
