"""A set decoded once into a memory-mapped file, which the system keeps in memory and all processes share.

The pixels are those that reading the pictures anew would give, so that it decides nothing but speed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock

from objectives.files import whole
from objectives.pictures.decode import decode
from objectives.pictures.source import Store
from objectives.recipe import Crop

SHARE = 0.5  # of the free memory, and of the free disk, that the decoded set may take
PASSES = 3  # the budget has to see each picture as often, or decoding beforehand does not pay
SAMPLED = 64  # pictures whose decoded size is taken for that of all
CHUNK = 256  # pictures decoded at a time


class Decoded:
    """The pictures of a store, decoded for crops of a size.

    Attributes:
        pixels: all of them, one after the other, uint8.
        offsets: where each begins (N + 1,).
        shapes: height and width of each, decoded and of the file (N, 4).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as kept:
            self.shapes = kept["shapes"]
        counts = self.shapes[:, 0] * self.shapes[:, 1] * 3
        self.offsets = np.concatenate([[0], np.cumsum(counts)])
        self.pixels = np.memmap(path, np.uint8, "r", shape=(int(self.offsets[-1]),))

    def picture(self, index: int) -> tuple[np.ndarray, tuple[int, int]]:
        """As :func:`decode.decode`."""
        height, width, whole_height, whole_width = self.shapes[index].tolist()
        flat = self.pixels[self.offsets[index] : self.offsets[index + 1]]
        return flat.reshape(height, width, 3), (whole_width, whole_height)


def needed(store: Store, size: int, crop: Crop | None) -> int:
    """Bytes of the decoded set, judged from :data:`SAMPLED` of its pictures."""
    count = len(store.labels)
    probed = range(0, count, max(1, count // SAMPLED))
    return int(np.mean([decode(store.read(i), size, crop, store.name(i))[0].nbytes for i in probed]) * count)


def room(cache: Path, free_memory: int) -> int:
    """Bytes that a decoded set may take."""
    cache.mkdir(parents=True, exist_ok=True)
    return int(SHARE * min(free_memory, shutil.disk_usage(cache).free))


def place(cache: Path, key: str) -> Path:
    """The decoded set of that name, made or not."""
    return cache / f"decoded-{key[:16]}.bin"


def make(
    store: Store, size: int, crop: Crop | None, cache: Path, key: str, threads: int,
    progress: Callable[[str, int, int], None],
) -> Decoded:
    """The decoded set of that name in the cache folder; decoded by the first process that asks, the others wait.

    Args:
        key: names the pictures and all that decides at what size they are decoded.

    Raises:
        PictureError: a picture is damaged.
    """
    path = place(cache, key)
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            _write(store, size, crop, path, threads, progress)
    return Decoded(path)


def _write(
    store: Store, size: int, crop: Crop | None, path: Path, threads: int, progress: Callable[[str, int, int], None]
) -> None:
    count, shapes = len(store.labels), []

    def one(index: int) -> tuple[np.ndarray, tuple[int, int]]:
        return decode(store.read(index), size, crop, store.name(index))

    with whole(path) as temporary, open(temporary, "wb") as file, ThreadPoolExecutor(threads) as pool:
        for start in range(0, count, CHUNK):
            stop = min(count, start + CHUNK)
            for pixels, (width, height) in pool.map(one, range(start, stop)):
                file.write(np.ascontiguousarray(pixels).data)
                shapes.append((*pixels.shape[:2], height, width))
            progress("decoding pictures", stop, count)
        file.flush()
        os.fsync(file.fileno())
        with whole(path.with_suffix(".npz")) as beside, open(beside, "wb") as table:
            np.savez(table, shapes=np.array(shapes, dtype=np.int64))


def key(fingerprint: str, size: int, crop: Crop | None) -> str:
    """For :func:`make`: the pictures, and what decides their factors."""
    decides = [fingerprint, size, None if crop is None else [crop.scale[0], *crop.ratio]]
    return hashlib.sha256(json.dumps(decides).encode()).hexdigest()
