"""Files that appear whole or not at all, and what is in files that a recipe names."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

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


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal; read once, however many ask, as long as the file is the same.

    Raises:
        OSError: it cannot be read.
    """
    real = path.resolve()
    found = real.stat()
    return _read(real, found.st_ino, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=4096)
def _read(path: Path, *_: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content(path: Path) -> str:
    """sha256 of a file; of a backbone's folder that of its weights, with what makes a network of them.

    Empty where there is neither: whoever needs it will say so.
    """
    try:
        if path.is_dir():
            about = json.loads((path / "backbone.json").read_text())
            weights = content(path / "backbone.safetensors")
            return hashlib.sha256(json.dumps([weights, about["model"], about["kwargs"]]).encode()).hexdigest()
        return sha256_of(path)
    except (OSError, ValueError, KeyError):
        return ""


def contents(slot: Mapping[str, Any]) -> dict[str, str]:
    """The files and folders of weights that a slot names, key by key with their :func:`content`; others are left out.

    For fingerprints: a path stays the same when another backbone is trained there.
    """
    named = {key: str(slot[key]) for key in ("source", "source_weights", "weights") if slot.get(key) is not None}
    found = {key: content(Path(path)) for key, path in named.items() if not path.startswith("timm:")}
    return {key: value for key, value in found.items() if value}


def spent(path: Path, name: str) -> dict[str, float]:
    """``{name: seconds}`` that a cached safetensors file says it took to make; empty where it does not say."""
    with safe_open(path, "pt") as file:
        seconds = (file.metadata() or {}).get("seconds")
    return {} if seconds is None else {name: float(seconds)}
