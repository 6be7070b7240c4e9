"""Checkpoints of a training: whole or absent, named by step and hash, the last two kept."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any, BinaryIO

import torch

from objectives.files import whole

KEPT = 2  # the last one, and the one before in case that one is damaged
_DIGITS = 16  # of the sha256 in the name


class _Hashing:
    """A file that knows the sha256 of what was written to it (torch writes in order)."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.sha256 = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(folder: Path, step: int, state: dict[str, Any]) -> Path:
    """Write ``checkpoint-<step>-<hash>.pt`` and remove all but the last :data:`KEPT`.

    Raises:
        OSError: naming the file that cannot be written.
    """
    unnamed = folder / f"checkpoint-{step:08d}.tmp"  # the hash that its name holds is known when it is written
    with whole(unnamed) as temporary, open(temporary, "wb") as file:
        hashing = _Hashing(file)
        torch.save(state, hashing)
    path = folder / f"checkpoint-{step:08d}-{hashing.sha256.hexdigest()[:_DIGITS]}.pt"
    unnamed.replace(path)
    for old in found(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def found(folder: Path) -> list[Path]:
    """The folder's checkpoints, oldest first."""
    return sorted(folder.glob("checkpoint-*-*.pt"))


def newest(folder: Path) -> dict[str, Any] | None:
    """The state of the last checkpoint whose hash fits, on the CPU; a damaged one is said so in one line on stderr.

    A damaged one is removed; one that cannot be read now, from a disk that fails or into memory that is full, stays.

    Raises:
        OSError, MemoryError: naming the file that cannot be read.
    """
    for path in reversed(found(folder)):
        try:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest()[:_DIGITS] != path.stem.rsplit("-", 1)[1]:
                    raise ValueError("its hash does not fit")
                file.seek(0)
                return torch.load(file, map_location="cpu", weights_only=True)
        except OSError as error:
            error.filename = error.filename or str(path)
            raise
        except Exception as error:  # whatever is wrong with the file: it costs its steps, not the run
            if isinstance(error, MemoryError) or "allocat" in str(error):  # torch's own allocator: a RuntimeError
                raise MemoryError(f"no memory to read checkpoint {path}") from error
            older = [p for p in found(folder) if p < path]
            reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
            then = f"going on from {older[-1].name}" if older else "starting again"
            print(f"checkpoint {path} is damaged ({reason}); {then}", file=sys.stderr)
            path.unlink(missing_ok=True)
    return None


def clear(folder: Path) -> None:
    """Remove all checkpoints."""
    for path in found(folder):
        path.unlink(missing_ok=True)
