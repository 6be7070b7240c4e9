"""``bench data verify``: which data sets of a suite are found and whole, what is missing, and where to get it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.data import files_below, roots
from benchmarks.suite import Suite, absolute
from objectives.pictures.source import SUFFIXES

SHOWN = 3  # incomplete videos that are named


@dataclass(frozen=True)
class Found:
    """What :func:`verify` says of one data section.

    Attributes:
        missing: folders, lists and annotations that are not there.
        lacking: what is there, but not whole.
        files: files below the section's folders.
        source: where to get it.
    """

    name: str
    path: Path
    missing: tuple[str, ...]
    lacking: tuple[str, ...]
    files: int
    source: str

    @property
    def complete(self) -> bool:
        return not self.missing and not self.lacking


def verify(suite: Suite, root: Path) -> list[Found]:
    """Look for the parts that each section of a suite names, and count them where the suite knows the whole set.

    Pictures are counted, not opened; annotations of videos are read by the classes that the task reads them with, and
    every file that a depth list or a COCO annotation names is looked for.
    """
    sections = {"pre-training": suite.pictures, **suite.data}
    return [_verify(name, absolute(part, root), suite.sources.get(name, ""), suite.expected.get(name, {}))
            for name, part in sections.items()]


def _verify(name: str, section: Mapping[str, Any], source: str, expected: Mapping[str, int]) -> Found:
    folders = roots(section)
    if not section.get("in_memory", True):
        return _streamed(name, section, source, expected)
    files = sum(1 for folder in folders if folder.is_dir() for _ in files_below(folder, folder))
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    lacking = []
    for key, path in _parts(section):
        if not path.exists():
            missing.append(str(path))
        elif key in expected and (count := _count(path)) < expected[key]:
            lacking.append(f"{path}: {count:,} of {expected[key]:,}")
    if expected:  # a suite that knows its sets: look at each video and each file that a list names, too
        lacking += [*_videos(section), *_listed(section)]
    return Found(name, folders[0], tuple(dict.fromkeys(missing)), tuple(lacking), files, source)


def _streamed(name: str, section: Mapping[str, Any], source: str, expected: Mapping[str, int]) -> Found:
    """Pictures in class folders, tar shards or parquet; those in shards and parquet are not counted."""
    from objectives.pictures.finding import layout

    root, part = Path(section["root"]), section["train"]
    kind, found = layout(root, part)
    lacking, files = [], len(found)
    if kind == "folders":
        files = _count(found[0])
        if files < expected.get("train", 0):
            lacking = [f"{found[0]}: {files:,} of {expected['train']:,}"]
    missing = () if kind else (str(root / part if root.is_dir() else root),)
    return Found(name, root, missing, tuple(lacking), files, source)


def _parts(section: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Key and path of what a section names, those of sections within it too."""
    for value in section.values():
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, Mapping):
                yield from _parts(part)
    if "root" not in section:
        return
    root, layout = Path(section["root"]), section.get("layout")
    several = section.get("part") if isinstance(section.get("part"), (list, tuple)) else ()
    for key, value in [*section.items(), *(("part", part) for part in several)]:
        if not isinstance(value, str) or not value:
            continue
        if key in ("train", "val") and layout == "camvid":
            yield key, root / value
            yield key, root / f"{value}annot"
        elif key in ("train", "val") and layout in (None, "ade") and (root / "images").is_dir():
            yield key, root / "images" / value
            yield key, root / "annotations" / value
        elif key in ("train", "val", "test", "part") or key.endswith(("_list", "_annotations", "_images", "_boxes")):
            yield key, root / value


def _count(path: Path) -> int:
    """Lines of a list, pictures below a folder."""
    if path.is_file():
        return sum(1 for line in path.read_bytes().splitlines() if line.strip())
    return sum(1 for name, _ in files_below(path, path) if name.lower().endswith(SUFFIXES))


def _listed(section: Mapping[str, Any]) -> list[str]:
    """Files that depth lists or COCO annotations name and that are not there: a line for each list."""
    found = []
    for key, path in _parts(section):
        if not path.is_file():
            continue  # named as missing already
        if key.endswith("_list"):
            found += _absent(path, _depth_files(Path(section["root"]), path))
        elif (images := section.get(key.removesuffix("_annotations") + "_images")) and key.endswith("_annotations"):
            found += _absent(path, _coco_files(Path(section["root"]) / images, path))
    return found


def _absent(listing: Path, files: Iterable[tuple[str, bool]]) -> list[str]:
    """One line where a list names files that are not there, or cannot be read."""
    from downstream.task import TaskError

    total, gone = 0, []
    try:
        for name, there in files:
            total += 1
            gone += [] if there else [name]
    except TaskError as error:
        return [str(error)]
    return [f"{listing}: {len(gone):,} of its {total:,} files are not there; the first is {gone[0]}"] if gone else []


def _depth_files(root: Path, listing: Path) -> Iterator[tuple[str, bool]]:
    """Each picture and depth map of a list, and whether it is there."""
    from downstream import depth_lists
    from downstream.task import MissingData

    bases = depth_lists.folders(root)
    for number, *names in depth_lists.named(listing):
        for name in names:
            try:
                depth_lists.find(name, bases, listing, number)
            except MissingData:
                yield name, False
            else:
                yield name, True


def _coco_files(images: Path, listing: Path) -> Iterator[tuple[str, bool]]:
    """Each picture of COCO annotations, and whether it is there."""
    from downstream.task import TaskError

    try:
        names = [image["file_name"] for image in json.loads(listing.read_text())["images"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(f"{listing} is not COCO JSON ({type(error).__name__}: {error}); copy it again") from error
    there = {entry.name for entry in os.scandir(images)} if images.is_dir() else set()
    for name in names:  # one look at the folder: a call for each of COCO's 118,287 pictures is slow on a network disk
        yield name, name in there or ("/" in name and (images / name).is_file())


def _videos(section: Mapping[str, Any]) -> list[str]:
    """What is incomplete in the videos of a tracking section."""
    found = []
    for key in ("train", "test"):
        parts = section.get(key)
        for part in parts if isinstance(parts, (list, tuple)) else []:
            found += _part_of_videos(part)
    return found


def _part_of_videos(part: Mapping[str, Any]) -> list[str]:
    from downstream.task import TaskError
    from downstream.tracking.videos import LAYOUTS

    if not Path(part["root"]).is_dir():
        return []  # named as missing already
    try:
        parts = part.get("part", "")
        sets = [LAYOUTS[part["layout"]](part["root"], name)
                for name in (parts if isinstance(parts, (list, tuple)) else [parts])]
        listed = [(videos, videos.names()) for videos in sets]
    except TaskError as error:
        return [str(error)]
    names = [(videos, name) for videos, found in listed for name in found]
    broken = [f"{videos.root / videos.part}: no videos listed; unpack its annotations there"
              for videos, found in listed if not found]
    for videos, name in names:
        try:
            videos.video(name)
        except TaskError as error:
            broken.append(str(error))
    more = [f"{part['root']}: {len(broken) - SHOWN} more videos of {len(names)}"] if len(broken) > SHOWN else []
    if len(names) < part.get("videos", 0):
        more.append(f"{part['root']} {part.get('part', '')}: {len(names):,} of {part['videos']:,} videos")
    return [*broken[:SHOWN], *more]
