"""Decoded frames, kept in memory while they fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from downstream.task import MissingData, TaskError


def read_frame(path: str | Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB.

    Pillow and not OpenCV: OpenCV returns a truncated JPEG as a half grey picture without an error.

    Raises:
        MissingData: the file is not there.
        TaskError: the file is not a whole picture.
    """
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except FileNotFoundError:
        raise MissingData(f"{path}: frame not found; unpack the data set again") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise TaskError(f"{path}: not a whole picture ({error}); copy this frame again") from None


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
