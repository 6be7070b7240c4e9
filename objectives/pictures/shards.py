"""Tar shards as webdataset writes them: ``<key>.jpg`` beside ``<key>.cls`` (or ``<key>.json`` with ``label``).

Tar files are read by position: an index of where each picture lies is made once. webdataset's own reader is a stream
whose order depends on the number of workers and that cannot go on where it stopped. Light (no torch).
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from objectives.files import whole
from objectives.pictures.source import SUFFIXES, PictureError

OPEN_FILES = 64  # shards that a process keeps open


class ShardStore:
    """See ``source.Store``.

    Args:
        shards: the tar files, not compressed.
        cache: folder where the index is kept; None to make it anew.
        key: names the shards' contents.

    Raises:
        PictureError: a shard is damaged or compressed, or a picture has no label.
    """

    def __init__(self, shards: Sequence[Path], cache: Path | None = None, key: str = "") -> None:
        self.shards = list(shards)
        path = cache / f"shards-{key[:16]}.npz" if cache else None
        if path is not None and path.is_file():
            with np.load(path, allow_pickle=False) as kept:
                parts = {name: kept[name] for name in kept.files}
        else:
            parts = _index(self.shards)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole(path) as temporary, open(temporary, "wb") as file:
                    np.savez(file, **parts)
        self.labels, self.shard = parts["labels"], parts["shard"]
        self.offset, self.size = parts["offset"], parts["size"]
        self.classes = tuple(str(name) for name in parts["classes"])
        self.blocks = np.bincount(self.shard, minlength=len(self.shards)).tolist()
        self.nbytes = int(self.size.sum())

    def read(self, index: int) -> bytes:
        path, size = self.shards[self.shard[index]], int(self.size[index])
        try:
            data = os.pread(_opened(str(path), os.getpid()).fileno(), size, int(self.offset[index]))
        except OSError as error:
            raise PictureError(f"{path}: {error.strerror}; check the data set") from error
        if len(data) < size:
            raise PictureError(f"{path} is shorter than it was when its index was made; check the data set")
        return data

    def name(self, index: int) -> str:
        return f"picture at byte {int(self.offset[index])} of {self.shards[self.shard[index]]}"


@lru_cache(maxsize=OPEN_FILES)
def _opened(path: str, process: int) -> Any:
    return open(path, "rb", buffering=0)  # closed when the cache drops it


def _index(shards: Sequence[Path]) -> dict[str, np.ndarray]:
    """labels, shard, offset, size of each picture, and the classes' names."""
    rows: list[tuple[int, int, int]] = []
    labels: list[int | str] = []
    for number, path in enumerate(shards):
        for label, offset, size in _pictures(path):
            rows.append((number, offset, size))
            labels.append(label)
    if not rows:
        raise PictureError(f"pre-training pictures: no picture in the shards of {shards[0].parent}")
    names = sorted(set(labels), key=lambda label: (isinstance(label, str), label))
    if all(isinstance(label, int) for label in names):  # numbers stay as they are; some may have no picture
        names = list(range(max(names) + 1))  # type: ignore[type-var, operator]
    places = {name: place for place, name in enumerate(names)}
    table = np.array(rows, dtype=np.int64)
    return {"labels": np.array([places[label] for label in labels], dtype=np.int64), "shard": table[:, 0],
            "offset": table[:, 1], "size": table[:, 2], "classes": np.array([str(name) for name in names])}


def _pictures(path: Path) -> Iterator[tuple[int | str, int, int]]:
    """Label, offset and size of each picture of a shard."""
    waiting: dict[str, list[Any]] = {}  # key -> [label, (offset, size)]
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, name = PurePosixPath(member.name).parent, PurePosixPath(member.name).name
                stem, _, ending = name.partition(".")  # webdataset's rule: the key ends at the first dot
                entry = waiting.setdefault(str(folder / stem), [None, None])
                if f".{ending.lower()}".endswith(SUFFIXES):
                    entry[1] = (member.offset_data, member.size)
                elif ending in ("cls", "json"):
                    label = _label(tar.extractfile(member).read(), ending)  # type: ignore[union-attr]
                    entry[0] = entry[0] if label is None else label
                if None not in entry:
                    yield entry[0], *entry[1]
                    del waiting[str(folder / stem)]
                tar.members = []  # type: ignore[attr-defined]  # it would keep a million of them
    except (tarfile.TarError, OSError, ValueError) as error:
        raise PictureError(f"{path} cannot be read as an uncompressed tar shard ({error}); write it again") from error
    for key, (_, place) in waiting.items():
        if place is not None:  # without a label of its own: class folders put into a tar
            if not PurePosixPath(key).parent.name:
                raise PictureError(f"{path}: {key} has no label; put {key}.cls, or .json with `label`, beside it")
            yield PurePosixPath(key).parent.name, *place


def _label(data: bytes, ending: str) -> int | str | None:
    """None: metadata without a label."""
    if ending == "cls":
        text = data.decode().strip()
    else:
        content = json.loads(data)
        text = content.get("label") if isinstance(content, dict) else None
        if isinstance(text, bool) or not isinstance(text, (int, str)):
            return None
    return int(text) if str(text).isdecimal() else str(text)
