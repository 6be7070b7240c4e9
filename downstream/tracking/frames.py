"""Decoded frames, kept in memory while they fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from downstream.common import need, read_picture


def read_frame(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB.

    Raises:
        MissingData: the file is not there.
        TaskError: the file is not a whole picture.
    """
    return read_picture(need(Path(path), "tracking"))


class FrameStore:
    """Reads frames and keeps them as uint8 until ``limit_mb`` MiB are filled; later ones are decoded each time."""

    def __init__(self, limit_mb: float = 2048) -> None:
        self.room = int(limit_mb * 2**20)
        self.kept: dict[str, np.ndarray] = {}

    def __call__(self, path: str) -> np.ndarray:
        frame = self.kept.get(path)
        if frame is None:
            frame = read_frame(path)
            if frame.nbytes <= self.room:
                self.room -= frame.nbytes
                self.kept[path] = frame
        return frame
