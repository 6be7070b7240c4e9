"""Pictures, labels and boxes into the layouts of ImageNet, ADE20K, COCO, NYUv2 and LaSOT.

Every picture is written once, into the ImageNet folders; the other layouts hold hard links to it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.scenes import CLASSES, SEGMENTATION_CLASSES, figure, layout, raycast

JPEG_QUALITY = 95
LEAST_JOINTS = 8  # of the figure inside the picture, for a picture to serve pose
FARTHEST = 10.0  # metres; what lies beyond is written as invalid
PER_ROOM = 100  # pictures in one NYU folder
COCO_FIRST = {"train": 1, "val": 500001}  # first picture's number
ADE_NAME = {"train": "training", "val": "validation"}


def _encode(path: Path, picture: np.ndarray, options: Sequence[int] = ()) -> None:
    """Encode and write; unlike ``cv2.imwrite`` a full disk raises."""
    done, data = cv2.imencode(path.suffix.lower().replace("jpeg", "jpg"), picture, list(options))
    if not done:
        raise OSError(errno.EIO, "cannot encode", str(path))
    path.write_bytes(data)


def _jpeg(path: Path, picture: np.ndarray) -> None:
    _encode(path, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))


def _png(path: Path, values: np.ndarray) -> None:
    _encode(path, values, (cv2.IMWRITE_PNG_COMPRESSION, 1))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        shutil.copyfile(source, target)  # a file system without hard links


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """x, y, w, h of a mask's pixels, x and y counted from 0; None where it is empty."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's uncompressed run-length encoding: runs down the columns, the first one of zeros."""
    flat = np.concatenate([[0], mask.T.reshape(-1).astype(np.uint8)])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    edges = np.concatenate([[0], changes, [mask.size]])
    return {"size": list(mask.shape), "counts": np.diff(edges).tolist()}


@dataclass
class Noted:
    """What lists and annotation files have to say of what was written, and its hashes; by split and number."""

    digests: dict[str, str] = field(default_factory=dict)
    people: dict[str, dict[int, tuple[dict, dict]]] = field(default_factory=lambda: {"train": {}, "val": {}})
    lists: dict[str, dict[int, str]] = field(default_factory=lambda: {"train": {}, "val": {}})
    tracks: dict[str, dict[int, str]] = field(default_factory=lambda: {"training": {}, "testing": {}})

    def add(self, other: Noted) -> None:
        """Take over what another process has noted."""
        self.digests |= other.digests
        for mine, its in ((self.people, other.people), (self.lists, other.lists), (self.tracks, other.tracks)):
            for split, entries in its.items():
                mine[split] |= entries  # type: ignore[index]


class Writer:
    """Writes under ``root`` and notes what; ``close`` writes the lists of all that is noted and returns its hash."""

    def __init__(self, root: Path, size: int) -> None:
        self.root, self.size, self.noted = root, size, Noted()

    # -------------------------------------------------------------------------------------------- pictures
    def folders(self, split: str, count: int) -> None:
        """Make a split's folders."""
        for name in CLASSES:
            (self.root / "imagenet" / split / name).mkdir(parents=True)
        for kind in ("images", "annotations"):
            (self.root / "ade" / kind / ADE_NAME[split]).mkdir(parents=True)
        (self.root / "coco" / f"{split}2017").mkdir(parents=True)
        for room in range((count + PER_ROOM - 1) // PER_ROOM):
            self._room(split, room * PER_ROOM).mkdir(parents=True)

    def _room(self, split: str, index: int) -> Path:
        base = self.root / "nyu" / "nyu_depth_v2"
        if split == "val":
            return base / "official_splits" / "test" / f"scenes_test_{index // PER_ROOM:03d}"
        return base / f"scenes_train_{index // PER_ROOM:03d}"

    def picture(
        self, split: str, still: layout.Still, picture: np.ndarray, label: np.ndarray, depth: np.ndarray,
        group: np.ndarray, silhouettes: np.ndarray,
    ) -> None:
        """One still picture (arrays of one item of ``Rendered``) into all layouts."""
        index = still.index
        first = self.root / "imagenet" / split / CLASSES[still.shape] / f"{split}_{index:05d}.JPEG"
        _jpeg(first, picture)

        ade = ADE_NAME[split]
        _link(first, self.root / "ade" / "images" / ade / f"{index:05d}.jpg")
        _png(self.root / "ade" / "annotations" / ade / f"{index:05d}.png", label)

        room = self._room(split, index)
        millimetres = np.where(depth <= FARTHEST, np.rint(depth * 1000), 0).astype(np.uint16)
        names = f"rgb_{index:05d}.jpg", f"sync_depth_{index:05d}.png"
        _link(first, room / names[0])
        _png(room / names[1], millimetres)
        self.noted.lists[split][index] = " ".join(f"/{room.name}/{name}" for name in names)

        facts: list[Any] = [split, index, still.shape]
        if still.figure is not None and still.joints is not None:
            keypoints = self._keypoints(still, depth, group)
            box = tight_box(silhouettes[raycast.FIGURE - 1])
            mask = group == raycast.FIGURE
            if (keypoints[:, 2] > 0).sum() >= LEAST_JOINTS and box is not None and mask.any():
                number = COCO_FIRST[split] + index
                name = f"{number:012d}.jpg"
                _link(first, self.root / "coco" / f"{split}2017" / name)
                self.noted.people[split][index] = (
                    {"license": 1, "file_name": name, "height": self.size, "width": self.size, "id": number},
                    {
                        "segmentation": run_lengths(mask), "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                        "area": int(mask.sum()), "iscrowd": 0, "keypoints": keypoints.reshape(-1).tolist(),
                        "image_id": number, "bbox": list(box), "category_id": 1, "id": number,
                    },
                )
                facts += [keypoints.tolist(), box]
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(label.tobytes())
        digest.update(millimetres.tobytes())
        digest.update(picture.tobytes())
        self.noted.digests[f"{split}/{index:06d}"] = digest.hexdigest()

    def _keypoints(self, still: layout.Still, depth: np.ndarray, group: np.ndarray) -> np.ndarray:
        """COCO's (17, 3): column, row (hundredths of a pixel) and visibility; zeros outside the picture."""
        assert still.figure is not None
        assert still.joints is not None
        projected = still.scene.camera.project(still.joints, self.size)
        flags = figure.visibility(projected, still.figure.height, depth, group)
        keypoints = np.concatenate([np.round(projected[:, :2], 2) + 0.0, flags[:, None]], 1)
        keypoints[flags == 0] = 0
        return keypoints

    # ---------------------------------------------------------------------------------------------- videos
    def video(self, split: str, index: int, shape: int, number: int, pictures: np.ndarray, group: np.ndarray,
              silhouettes: np.ndarray) -> None:
        """One video (arrays over frames) as LaSOT's ``class-number``."""
        name = f"{CLASSES[shape]}-{number}"
        folder = self.root / "lasot" / CLASSES[shape] / name
        (folder / "img").mkdir(parents=True)
        for frame, picture in enumerate(pictures):
            _jpeg(folder / "img" / f"{frame + 1:08d}.jpg", picture)
        boxes = [tight_box(mask) or (0, 0, 0, 0) for mask in silhouettes]
        lines = [f"{x + 1},{y + 1},{w},{h}" if w else "0,0,0,0" for x, y, w, h in boxes]
        away = [int(not mask.any()) for mask in silhouettes]
        hidden = [
            int(not (seen == raycast.MAIN).any() and not gone) for seen, gone in zip(group, away, strict=True)
        ]
        (folder / "groundtruth.txt").write_text("\n".join(lines) + "\n")
        (folder / "full_occlusion.txt").write_text(",".join(map(str, hidden)))
        (folder / "out_of_view.txt").write_text(",".join(map(str, away)))
        self.noted.tracks[split][index] = name
        digest = hashlib.sha256(json.dumps([name, lines, hidden, away]).encode())
        digest.update(pictures.tobytes())
        self.noted.digests[f"video/{split}/{index:06d}"] = digest.hexdigest()

    # ---------------------------------------------------------------------------------------------- the end
    def close(self) -> str:
        """Write the lists and return the hash of all pictures and labels."""
        for split, test in (("train", "train"), ("val", "test")):
            self._coco(split)
            self._text(
                self.root / "nyu" / "filenames" / "nyudepthv2" / f"{test}_list.txt",
                [line for _, line in sorted(self.noted.lists[split].items())],
            )
        names = enumerate(SEGMENTATION_CLASSES, 1)
        self._text(self.root / "ade" / "objectInfo.txt", ["Idx\tName", *(f"{index}\t{name}" for index, name in names)])
        for split, videos in self.noted.tracks.items():
            self._text(self.root / "lasot" / f"{split}_set.txt", [name for _, name in sorted(videos.items())])
        return hashlib.sha256(json.dumps(sorted(self.noted.digests.items())).encode()).hexdigest()

    @staticmethod
    def _text(path: Path, lines: Sequence[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))

    def _coco(self, split: str) -> None:
        people = [entry for _, entry in sorted(self.noted.people[split].items())]
        content = {
            "info": {"description": "Rendered scenes", "version": "1.0"},
            "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
            "images": [image for image, _ in people],
            "annotations": [annotation for _, annotation in people],
            "categories": [{
                "supercategory": "person", "id": 1, "name": "person", "keypoints": list(figure.JOINTS),
                "skeleton": [list(bone) for bone in figure.SKELETON],
            }],
        }
        path = self.root / "coco" / "annotations" / f"person_keypoints_{split}2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
