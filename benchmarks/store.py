"""``--store URL``: a copy of the runs folder in an object store, where machines that share no folder meet.

Whatever fsspec opens will do (``s3://bucket/runs`` with the package s3fs, ``gs://``, ``file:///mount/runs``). A piece
of work begins with what the store has of its folders and ends by sending its own. Checkpoints stay on their machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from benchmarks.errors import RequestError
from objectives.files import whole

LAST = ("backbone.json", "result.json")  # whoever sees one of these finds the rest
TAKEN = (*LAST, "backbone.safetensors", "objective.safetensors", "log.jsonl", "reading.jsonl", "traceback.txt")
THREADS = 16  # folders looked into at a time


@contextmanager
def _opened(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL, and the path in it.

    Raises:
        RequestError: for whatever goes wrong within the block as well.
    """
    try:
        from fsspec.core import url_to_fs

        yield url_to_fs(url)
    except Exception as error:  # each file system has errors of its own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RequestError(f"--store {_public(url)}: {reason}; finished cells are kept in the runs folder") from error


def _public(url: str) -> str:
    """Without what a user may have written before the host: names and passwords."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def check(url: str) -> None:
    """Write and remove a file there.

    Raises:
        RequestError: it cannot be written, or fsspec does not know the URL.
    """
    if "://" not in url:
        raise RequestError(f"--store {url}: a URL, such as s3://bucket/runs; a folder is named by --runs")
    with _opened(url) as (files, base):
        files.makedirs(base, exist_ok=True)
        files.pipe_file(f"{base}/.write-test", b"x")
        files.rm_file(f"{base}/.write-test")


def fetch(url: str, runs: Path, folders: Iterable[Path]) -> None:
    """Bring what the store has newer of these folders, relative to ``runs``; names that are not a run's are left there.

    Raises:
        RequestError: the store does not answer.
    """
    with _opened(url) as (files, base), ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(lambda folder: _fetch(files, base, runs, folder), folders))


def _fetch(files: Any, base: str, runs: Path, folder: Path) -> None:
    try:
        found = files.ls(f"{base}/{folder.as_posix()}", detail=False, refresh=True)
    except FileNotFoundError:
        return
    there = {PurePosixPath(path).name: path for path in found}
    for name in sorted(there.keys() & set(TAKEN), key=lambda name: (name in LAST, name)):
        here = runs / folder / name
        if here.is_file() and files.modified(there[name]).timestamp() <= here.stat().st_mtime:
            continue
        here.parent.mkdir(parents=True, exist_ok=True)
        with whole(here) as temporary:
            files.get_file(there[name], str(temporary))


def send(url: str, runs: Path, folder: Path) -> None:
    """Send a folder's files, relative to ``runs``; those that say that it is complete come last.

    Raises:
        RequestError: the store does not take them.
    """
    with _opened(url) as (files, base):
        place = f"{base}/{folder.as_posix()}"
        files.makedirs(place, exist_ok=True)
        for name in sorted(TAKEN, key=lambda name: (name in LAST, name)):
            if (runs / folder / name).is_file():
                files.put_file(str(runs / folder / name), f"{place}/{name}")
                os.utime(runs / folder / name)  # as new as its copy
