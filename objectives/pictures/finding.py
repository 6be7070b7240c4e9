"""Which of the known layouts pre-training pictures lie in. Light (no torch)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from objectives.pictures.folder import FolderStore
from objectives.pictures.parquet import ParquetStore
from objectives.pictures.shards import ShardStore
from objectives.pictures.source import PictureError, Store


def files(root: Path, part: str, ending: str) -> list[Path]:
    """Files of a part in numbered pieces: ``<root>/<part>/*.tar``, or ``*<part>*.tar`` in ``root`` or ``root/data``."""
    inside = sorted((root / part).glob(f"*{ending}"))
    beside = (sorted(folder.glob(f"*{part}*{ending}")) for folder in (root, root / "data"))
    return inside or next(filter(None, beside), [])


def layout(root: Path, part: str) -> tuple[str, list[Path]]:
    """("shards" | "parquet" | "folders", its files or the folder); ("", []) where there is nothing."""
    for name, ending in (("shards", ".tar"), ("parquet", ".parquet")):
        if found := files(root, part, ending):
            return name, found
    folder = root / part
    return ("folders", [folder]) if folder.is_dir() and any(_folders(folder)) else ("", [])


def _folders(folder: Path) -> Iterator[Path]:
    return (entry for entry in folder.iterdir() if entry.is_dir())


def open_store(root: Path, part: str, cache: Path, fingerprint: str) -> Store:
    """The pictures of a part (``train``), in whichever layout they lie.

    Args:
        cache: folder for indices and unpacked files.
        fingerprint: names the files' contents.

    Raises:
        PictureError: there are none, or a file is damaged.
    """
    name, found = layout(root, part)
    if name == "shards":
        return ShardStore(found, cache, fingerprint)
    if name == "parquet":
        return ParquetStore(found, cache, fingerprint)
    if name == "folders":
        return FolderStore(found[0])
    raise PictureError(
        f"pre-training pictures: neither class folders, nor .tar shards, nor .parquet files in {root / part}"
    )
