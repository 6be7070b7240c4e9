"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place, flushed to the disk, when the block ends well.

    Raises:
        OSError: naming ``path``, whatever library wrote it; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        handle = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))  # its writer tells the system's error only in words
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def spent(path: Path, name: str) -> dict[str, float]:
    """``{name: seconds}`` that a cached safetensors file says it took to make; empty where it does not say."""
    with safe_open(path, "pt") as file:
        seconds = (file.metadata() or {}).get("seconds")
    return {} if seconds is None else {name: float(seconds)}
