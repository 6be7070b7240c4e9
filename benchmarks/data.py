"""Data: where a suite's pictures lie, whether they are whole, and the pre-training pictures in memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import RequestError
from benchmarks.locks import Busy, held
from benchmarks.plan import digest
from benchmarks.suite import Suite, absolute

if TYPE_CHECKING:
    from benchmarks.scenes import SceneSpec
    from objectives.pictures.source import Source

Progress = Callable[[str, int, int], None]


class DataError(RuntimeError):
    """Data are missing or damaged; the message is one line naming the file and the mend."""


class MissingPictures(DataError):
    """The pre-training pictures are not there: what needs them is skipped, not failed."""


def data_root(suite: Suite, given: Path | None, runs: Path, progress: Progress) -> Path:
    """The folder that a suite's relative paths start from; renders the scenes first where they are missing.

    Raises:
        RequestError: no such folder, or a suite of real pictures without ``--data-root``.
    """
    if suite.rendered:
        from benchmarks.scenes import SceneError, SceneSpec
        from benchmarks.scenes import fingerprint as rendered

        try:
            spec = SceneSpec(**suite.scenes)
        except TypeError as error:
            raise RequestError(f"suite.scenes: {error}") from error
        root = given or scenes_folder(suite, runs)
        try:
            if rendered(root, spec) is None:
                _render(root, spec, progress)
        except SceneError as error:
            raise RequestError(str(error)) from error
        return root
    if given is None:
        raise RequestError(f"suite {suite.name!r} reads real pictures: name their folder by --data-root DIR")
    if not given.is_dir():
        raise RequestError(f"--data-root {given}: no such folder")
    return given


def _render(root: Path, spec: SceneSpec, progress: Progress) -> None:
    """Render the scenes, or wait for the process that does already."""
    from benchmarks.scenes import SceneError, prepare

    work = Path(root.name)
    try:
        with ExitStack() as stack:
            try:
                stack.enter_context(held(root.parent, work, wait=False))
            except Busy:
                progress("another process renders the scenes; waiting", 0, 1)
                stack.enter_context(held(root.parent, work, wait=True))
            prepare(root, spec, progress)
    except OSError as error:
        raise SceneError(f"cannot write the scenes to {root}: {(error.strerror or str(error)).lower()}") from error


def scenes_folder(suite: Suite, runs: Path) -> Path:
    """Where a rendered suite's scenes lie: one folder for each size that was asked for."""
    return cache_folder(runs) / ("scenes" + (f"-{digest(suite.scenes)[:8]}" if suite.scenes else ""))


def cache_folder(runs: Path) -> Path:
    """What can be made again (scenes, teacher targets): ``$BENCH_CACHE``, or ``<runs>/cache``."""
    return Path(os.environ.get("BENCH_CACHE") or runs / "cache")


def section(suite: Suite, task: str, root: Path) -> dict[str, Any]:
    """A task's data section with absolute paths."""
    return absolute(suite.data[task], root)


def fingerprint(section: Mapping[str, Any]) -> str:
    """sha256 over a data section's names and the name and size of every file under its root.

    Contents are not read: a data set of a million pictures must not cost minutes at each start. A picture replaced
    by another of equal size goes unnoticed.
    """
    hashed = hashlib.sha256(digest(_rootless(section)).encode())
    for root in roots(section):
        for name, size in files_below(root, root):
            hashed.update(f"{name}\0{size}\0".encode())
    return hashed.hexdigest()


def _rootless(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _rootless(v) for k, v in value.items() if k != "root"}
    return [_rootless(part) for part in value] if isinstance(value, (list, tuple)) else value


def roots(section: Mapping[str, Any]) -> list[Path]:
    """The folders of a data section and of the sections within it, each once."""
    found = [Path(section["root"])] if "root" in section else []
    for value in section.values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            found += roots(part) if isinstance(part, Mapping) else []
    return list(dict.fromkeys(found))


def files_below(folder: Path, root: Path) -> Iterator[tuple[str, int]]:
    """Name (relative to ``root``) and size of every file below ``folder``, in order; a link to nothing is no file."""
    try:
        entries = sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir():
            yield from files_below(Path(entry.path), root)
        else:
            try:
                size = entry.stat().st_size
            except FileNotFoundError:
                continue
            yield os.path.relpath(entry.path, root), size


def read_picture(path: Path):
    """A picture as uint8 RGB (H, W, 3).

    Raises:
        DataError: the file is missing, truncated or no picture.
    """
    import numpy as np
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))  # a truncated file raises here: Pillow's strict default
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; check the data set") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read as a picture ({error}); replace it") from error


def central_square(picture, size: int):
    """(H, W, 3) uint8 -> its central square as (size, size, 3), shrunk by area average or enlarged by cubics."""
    import cv2

    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = picture[top : top + side, left : left + side]
    method = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
    return square if side == size else cv2.resize(square, (size, size), interpolation=method)


def load_pictures(suite: Suite, root: Path, progress: Progress, cache: Path) -> Source:
    """The pre-training pictures: at the suite's size in memory, or a stream where the suite says ``in_memory: False``.

    In memory, a picture is cut to its central square and shrunk by area average, and the classes are the folder names
    in order. A stream reads class folders, tar shards or parquet files, whichever there are; ``cache`` keeps what is
    made of them.

    Raises:
        DataError: the folder is missing or empty, or a picture is damaged.
    """
    part = absolute(suite.pictures, root)
    if not part.get("in_memory", True):
        return _stream(part, cache)
    import numpy as np
    import torch

    from objectives.pictures.folder import class_folders
    from objectives.pictures.memory import Pictures

    folder = Path(part["root"]) / part["train"]
    if not folder.is_dir():
        raise MissingPictures(f"pre-training pictures: no folder {folder}; see `bench data verify`")
    files, labels, classes = class_folders(folder)
    if not files:
        raise DataError(f"pre-training pictures: no picture in the folders of {folder}")
    size = suite.input_size
    images = np.empty((len(files), size, size, 3), dtype=np.uint8)
    for i, name in enumerate(files):
        images[i] = central_square(read_picture(folder / name), size)
        if (i + 1) % 500 == 0 or i + 1 == len(files):
            progress("pictures", i + 1, len(files))
    return Pictures(
        images=torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        labels=torch.from_numpy(labels), classes=classes, fingerprint=fingerprint(part),
    )


def _stream(part: Mapping[str, Any], cache: Path) -> Source:
    import torch

    from objectives.pictures.finding import layout, open_store
    from objectives.pictures.source import PictureError
    from objectives.pictures.stream import Stream

    root = Path(part["root"])
    if not layout(root, part["train"])[0]:
        raise MissingPictures(
            f"pre-training pictures: no folder {root / part['train']} of classes, .tar or .parquet files; "
            "see `bench data verify`"
        )
    named = fingerprint(part)
    try:
        store = open_store(root, part["train"], cache / "pictures", named)
    except PictureError as error:
        raise DataError(str(error)) from error
    return Stream(store, named, torch.get_num_threads())
