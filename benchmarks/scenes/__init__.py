"""The embedded scenes: rendered pictures with exact ground truth for five tasks, in the tasks' native layouts.

``prepare(root, SceneSpec())`` fills ``root`` (once) with

- ``imagenet/{train,val}/<class>/<split>_%05d.JPEG``: the class is the shape of the main object;
- ``ade/images|annotations/{training,validation}/%05d``: labels 0 = void (sky), 1..14 = ``SEGMENTATION_CLASSES``;
- ``coco/{train,val}2017`` and ``coco/annotations/person_keypoints_{train,val}2017.json``: pictures with a figure;
- ``nyu/nyu_depth_v2`` and ``nyu/filenames/nyudepthv2/{train,test}_list.txt``: depth along the optical axis in
  millimetres, 0 = invalid (sky, or beyond ten metres);
- ``lasot/<class>/<class>-<k>``: videos with the boxes x, y, w, h counted from 1.

Pictures are RGB, ``size`` x ``size``, frames ``video_size`` x ``video_size``. The same spec gives bit-identical files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

VERSION = 3  # raise it when the pictures change; part of the fingerprint

CLASSES: tuple[str, ...] = (
    "arch", "ball", "bottle", "box", "chair", "dumbbell", "lamp", "snowman", "stairs", "table",
)
SEGMENTATION_CLASSES: tuple[str, ...] = ("floor", "wall", "clutter", "person", *CLASSES)
Progress = Callable[[str, int, int], None]


class SceneError(RuntimeError):
    """The scenes could not be written; one line that names the folder."""


@dataclass(frozen=True)
class SceneSpec:
    """What to render; sizes in pixels, frames are per video.

    Trackers see a window of two or four times a target's size, and a target fills a seventh of the frame's side: a
    frame of 256 px gives it the pixels that a crop of 96 px shows.
    """

    seed: int = 0
    size: int = 128
    video_size: int = 256
    pictures_train: int = 3600
    pictures_val: int = 900
    videos_train: int = 48
    videos_test: int = 48
    frames_train: int = 24
    frames_test: int = 48


def prepare(
    root: Path, spec: SceneSpec, progress: Progress = lambda stage, done, total: None
) -> str:
    """Make sure that ``root`` holds exactly these scenes and return their fingerprint (64 hexadecimal digits).

    Returns at once when they are there. Otherwise they are rendered into a folder beside ``root`` that takes its place
    when it is complete, so ``root`` is never half-written; another version there is replaced, and a
    folder that holds anything else is refused.
    ``progress(stage, done, total)`` is called after each batch. Raises ``SceneError``.
    """
    from benchmarks.scenes import store

    return store.prepare(Path(root), spec, progress)


def fingerprint(root: Path, spec: SceneSpec) -> str | None:
    """The fingerprint of the scenes in ``root`` when they are exactly these, else None. Reads one small file."""
    from benchmarks.scenes import store

    return store.recorded(Path(root), spec)
