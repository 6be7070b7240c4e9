"""Videos with one box per frame, read from the native layouts of LaSOT, GOT-10k, OTB, TrackingNet and COCO."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from mmdet.registry import DATASETS

from downstream.common import inside, read_text
from downstream.task import MissingData, TaskError
from downstream.tracking.metrics import has_area


@dataclass(frozen=True)
class Video:
    """One sequence: frame files in order, (T, 4) boxes x, y, w, h in pixels, and (T,) whether the target is seen."""

    name: str
    frames: tuple[str, ...]
    boxes: np.ndarray
    visible: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """Indices of the frames that have a seen target with an area."""
        return np.flatnonzero(self.visible & has_area(self.boxes))


def read_boxes(path: Path) -> np.ndarray:
    """(T, 4) float64 from lines of four numbers split by commas, tabs or spaces."""
    rows = [re.split(r"[,\s]+", line.strip()) for line in _read_text(path).splitlines() if line.strip()]
    try:
        boxes = np.array([[float(value) for value in row] for row in rows])
    except ValueError as error:
        raise TaskError(f"{path}: {error}; each line must hold x,y,w,h") from None
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise TaskError(f"{path}: lines of four numbers x,y,w,h expected; copy the annotation again")
    return boxes


def read_flags(path: Path, count: int) -> np.ndarray:
    """(count,) int: numbers on one comma line or one a line; zeros when the file is not there (it is optional)."""
    if not path.is_file():
        return np.zeros(count, int)
    try:
        values = [int(value) for value in re.split(r"[,\s]+", _read_text(path).strip()) if value]
    except ValueError as error:
        raise TaskError(f"{path}: {error}; whole numbers expected, copy the annotation again") from None
    if len(values) != count:
        raise TaskError(f"{path}: {len(values)} flags for {count} boxes; copy the annotation again")
    return np.array(values)


def make_video(name: str, folder: Path, frames: list[str], boxes: np.ndarray, visible: np.ndarray, file: Path) -> Video:
    """A checked video; ``file`` is the annotation that errors name."""
    if not frames:
        raise MissingData(f"{folder}: no frames; unpack the video {name} there")
    if len(frames) != len(boxes):
        raise TaskError(f"{file}: {len(boxes)} boxes for {len(frames)} frames in {folder}; one of them is incomplete")
    wrong = np.flatnonzero(~np.isfinite(boxes).all(1) & visible)
    if len(wrong):
        raise TaskError(f"{file}: line {wrong[0] + 1} is not a number; correct it or mark the frame as not visible")
    if not has_area(boxes[:1])[0]:
        raise TaskError(f"{file}: the first box has no area, nothing to track; correct line 1 or leave out {name}")
    video = Video(name, tuple(f"{folder}/{frame}" for frame in frames), np.nan_to_num(boxes, nan=0.0), visible)
    if not len(video.usable):
        raise TaskError(f"{file}: the target is flagged as not visible in every frame; correct the flags")
    return video


class VideoSet(ABC):
    """A part (train or test) of a data set; a subclass per layout knows its names and files.

    Args:
        root: folder of the data set.
        part: which part, in the layout's own words: a list file or a sub-folder.
    """

    def __init__(self, root: str | Path, part: str = "") -> None:
        self.root, self.part = Path(root), part
        if not self.root.is_dir():
            raise MissingData(f"{self.root}: folder not found; put the data set there or correct root in the suite")

    @abstractmethod
    def names(self) -> list[str]:
        """Names of the part's videos, in order."""

    @abstractmethod
    def video(self, name: str) -> Video:
        """Reads one video's annotation and lists its frames."""

    def videos(self, limit: int | None = None) -> Sequence[Video]:
        """The first ``limit`` videos (all when none is given)."""
        names = self.names()[:limit]
        if not names:
            raise MissingData(f"{self.root / self.part}: no videos listed; check root and the list")
        for name in names:
            inside(self.root, name, self.root / self.part)
        return [self.video(name) for name in names]


@DATASETS.register_module()
class LaSOTVideos(VideoSet):
    """``<class>/<class>-<k>/img/%08d.jpg``; ``part`` is a list of names (training_set.txt, testing_set.txt).

    A target that is fully occluded or out of view counts as not visible.
    """

    def names(self) -> list[str]:
        return _read_text(self.root / self.part).split()

    def video(self, name: str) -> Video:
        folder = self.root / name.rsplit("-", 1)[0] / name
        boxes = read_boxes(folder / "groundtruth.txt")
        hidden = read_flags(folder / "full_occlusion.txt", len(boxes)) | read_flags(
            folder / "out_of_view.txt", len(boxes)
        )
        return make_video(
            name, folder / "img", list_frames(folder / "img"), boxes, hidden == 0, folder / "groundtruth.txt"
        )


@DATASETS.register_module()
class GOT10kVideos(VideoSet):
    """``<part>/<name>/%08d.jpg`` beside the annotation; ``part`` is train or val, or a list such as ``train/list.txt``.

    Lists hold names or, as the VOT split does, numbers that count in ``list.txt`` from 0. Visible is a cover above 0.
    """

    def names(self) -> list[str]:
        if not self.part.endswith(".txt"):
            return _read_text(self.root / self.part / "list.txt").split()
        entries = _read_text(self.root / self.part).split()
        if all(entry.isdigit() for entry in entries):
            every = _read_text((self.root / self.part).parent / "list.txt").split()
            numbers = [int(entry) for entry in entries]
            if numbers and max(numbers) >= len(every):
                raise TaskError(f"{self.root / self.part}: counts up to {max(numbers)}, but list.txt beside it has "
                                f"{len(every)} videos; copy both again")
            return [every[number] for number in numbers]
        return entries

    def video(self, name: str) -> Video:
        part = self.root / self.part
        folder = (part.parent if self.part.endswith(".txt") else part) / name
        boxes = read_boxes(folder / "groundtruth.txt")
        visible = read_flags(folder / "absence.label", len(boxes)) == 0
        if (folder / "cover.label").is_file():
            visible &= read_flags(folder / "cover.label", len(boxes)) > 0
        return make_video(name, folder, list_frames(folder), boxes, visible, folder / "groundtruth.txt")


@DATASETS.register_module()
class OTBVideos(VideoSet):
    """``<name>/img/%04d.jpg`` and ``groundtruth_rect.txt``; ``part`` is a list of names, or empty for all.

    Several targets of one video (``groundtruth_rect.1.txt``, ``.2.txt``) are several sequences: ``Jogging.1``, …
    """

    SPANS = {  # noqa: RUF012 — frames that the annotation covers, counted from 1, where there are more pictures
        "David": (300, 770), "Football1": (1, 74), "Freeman3": (1, 460), "Freeman4": (1, 283), "Diving": (1, 215),
    }

    def names(self) -> list[str]:
        if self.part:
            return _read_text(self.root / self.part).split()
        files = sorted(self.root.glob("*/groundtruth_rect*.txt"))
        return [file.parent.name + file.stem.removeprefix("groundtruth_rect") for file in files]

    def video(self, name: str) -> Video:
        title, dot, target = name.partition(".")
        folder = self.root / title
        file = folder / f"groundtruth_rect{dot}{target}.txt"
        boxes, frames = read_boxes(file), list_frames(folder / "img")
        if len(frames) != len(boxes) and title in self.SPANS:
            first, last = self.SPANS[title]
            frames = [frame for frame in frames if first <= int(Path(frame).stem) <= last]
        return make_video(name, folder / "img", frames, boxes, np.ones(len(boxes), bool), file)


@DATASETS.register_module()
class TrackingNetVideos(VideoSet):
    """``<part>/frames/<name>/%d.jpg`` and ``<part>/anno/<name>.txt``; ``part`` is a chunk (TRAIN_0) or empty.

    The boxes of the official TEST part are on its server: there is one line per file, and the part cannot be scored.
    """

    def names(self) -> list[str]:
        return sorted(file.stem for file in (self.root / self.part / "anno").glob("*.txt"))

    def video(self, name: str) -> Video:
        file, folder = self.root / self.part / "anno" / f"{name}.txt", self.root / self.part / "frames" / name
        boxes, frames = read_boxes(file), list_frames(folder)
        if len(boxes) == 1 < len(frames):
            raise TaskError(f"{file}: only the first box is public (TrackingNet TEST); score on another part")
        return make_video(name, folder, frames, boxes, np.ones(len(boxes), bool), file)


@DATASETS.register_module()
class CocoObjects(VideoSet):
    """COCO's objects, each a video of one frame: template and search crop of a pair are cut from the same picture.

    ``part`` is the annotation file (``annotations/instances_train2017.json``); the pictures lie in the folder that its
    name ends with. Crowds and boxes without an area are left out. Only for training.
    """

    @cached_property
    def _objects(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Pictures, the number of each object's picture (N,), boxes (N, 4) x, y, w, h."""
        path = self.root / self.part
        try:
            content = json.loads(_read_text(path))
            pictures = [(entry["id"], entry["file_name"]) for entry in content["images"]]
            number = {key: index for index, (key, _) in enumerate(pictures)}
            found = [(number[entry["image_id"]], *entry["bbox"]) for entry in content["annotations"]
                     if not entry.get("iscrowd") and min(entry["bbox"][2:]) > 0]
            table = np.array(found, float).reshape(len(found), 5)
        except (ValueError, KeyError, TypeError) as error:
            raise TaskError(f"{path} is not COCO JSON with boxes ({type(error).__name__}: {error}); copy it") from error
        folder = self.root / path.stem.rpartition("_")[2]
        files = [str(inside(folder, name, path)) for _, name in pictures]
        if files and not Path(files[0]).is_file():
            raise MissingData(f"{path} names {pictures[0][1]}, which is not in {folder}; unpack the pictures there")
        return files, table[:, 0].astype(int), table[:, 1:]

    def names(self) -> list[str]:
        return [str(index) for index in range(len(self._objects[1]))]

    def video(self, name: str) -> Video:
        files, number, boxes = self._objects
        index = int(name)
        return Video(name, (files[number[index]],), boxes[index : index + 1], np.ones(1, bool))

    def videos(self, limit: int | None = None) -> Sequence[Video]:
        """All of them, each made when it is asked for: COCO has 860,000."""
        names = self.names()[:limit]
        if not names:
            raise MissingData(f"{self.root / self.part}: no boxes listed; check root and the file")
        return _Lazy(self, names)


class _Lazy(Sequence[Video]):
    """Videos that are made when they are asked for."""

    def __init__(self, source: VideoSet, names: list[str]) -> None:
        self.source, self.names = source, names

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Video: ...
    @overload
    def __getitem__(self, index: slice) -> list[Video]: ...
    def __getitem__(self, index: int | slice) -> Video | list[Video]:
        if isinstance(index, slice):
            return [self.source.video(name) for name in self.names[index]]
        return self.source.video(self.names[index])


LAYOUTS: dict[str, type[VideoSet]] = {
    "lasot": LaSOTVideos, "got10k": GOT10kVideos, "otb": OTBVideos, "trackingnet": TrackingNetVideos,
    "coco": CocoObjects,
}


def list_frames(folder: Path) -> list[str]:
    """Names of the pictures of a folder, by number (TrackingNet does not pad its numbers)."""
    if not folder.is_dir():
        raise MissingData(f"{folder}: folder not found; unpack the video there")
    names = [file.name for file in folder.iterdir() if file.suffix.lower() in (".jpg", ".jpeg", ".png")]
    try:
        return sorted(names, key=lambda name: int(Path(name).stem))
    except ValueError:
        raise TaskError(f"{folder}: frames must be named by number (00000001.jpg); move other pictures away") from None


def read_videos(data: dict[str, Any], part: str, limit: int | None = None) -> list[Sequence[Video]]:
    """The videos of ``part`` ("train" or "test"), one list per data set.

    Args:
        data: ``{"layout": "lasot", "root": folder, "train": "training_set.txt", "test": "testing_set.txt"}``. A part
            may also be a section of its own, ``{"layout": …, "root": …, "part": …}``, or a list of such sections; the
            parts of a section that lists several are one data set.
        part: which of them.
        limit: at most so many videos of each data set.
    """
    if part not in data:
        raise TaskError(f"tracking data: no {part!r} given; name its list in the suite's data section")
    sections = data[part] if isinstance(data[part], list) else [data[part]]
    groups = []
    for entry in sections:
        section = entry if isinstance(entry, dict) else {**data, "part": entry}
        layout = section.get("layout", "lasot")
        if layout not in LAYOUTS:
            raise TaskError(f"tracking data: unknown layout {layout!r}; one of {', '.join(LAYOUTS)}")
        if "root" not in section:
            raise TaskError(f"tracking data: no root given for {part!r}; name the folder of the data set")
        parts = section.get("part", "")
        found = [LAYOUTS[layout](section["root"], name).videos(limit)
                 for name in (parts if isinstance(parts, (list, tuple)) else [parts])]
        groups.append(found[0] if len(found) == 1 else [video for videos in found for video in videos][:limit])
    return groups


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise MissingData(f"{path}: file not found; put the data set there or correct the suite's data section")
    return read_text(path)
