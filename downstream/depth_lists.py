"""List files of depth data sets, and where the pictures lie that their lines name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from downstream import common
from downstream.task import MissingData, TaskError

FOLDERS = (
    "", "sync", "official_splits/test",  # NYUv2 as BTS and GLPDepth lay it out; the same one folder up
    "nyu_depth_v2", "nyu_depth_v2/sync", "nyu_depth_v2/official_splits/test",
    # KITTI as GLPDepth lays it out, and as it is unpacked
    "raw", "raw_data", "input", "gt_depth", "data_depth_annotated", "data_depth_annotated/train",
    "data_depth_annotated/val",
)
"""Folders of a data root that the paths of a list may start from (BTS: one for training and one for test pictures)."""


def named(listing: Path) -> Iterator[tuple[int, str, str]]:
    """Line number, picture and depth map of each line; those whose depth is "None" are left out (KITTI has some).

    Raises:
        TaskError: a line without two paths, or no text.
    """
    for number, line in enumerate(common.read_text(listing).splitlines(), 1):
        if not line.strip():
            continue
        paths = line.split()[:2]
        if len(paths) < 2:
            raise TaskError(f"{listing} line {number}: a picture and a depth map are needed, not {line!r}")
        if paths[1] != "None":
            yield number, paths[0], paths[1]


def folders(root: Path) -> list[Path]:
    """Those of :data:`FOLDERS` that are there."""
    return [folder for folder in (root / name for name in FOLDERS) if folder.is_dir()]


def find(name: str, bases: list[Path], listing: Path, number: int) -> Path:
    """The file that a line names, below the first of ``bases`` that has it.

    Raises:
        MissingData: none has it.
        TaskError: the name leads out of them.
    """
    for base in bases:
        path = common.inside(base, name.lstrip("/"), f"{listing} line {number}")
        if path.is_file():
            return path
    raise MissingData(f"{listing} line {number} names {name}, which is not under {bases[0] if bases else 'the root'}; "
                      "complete the data set")
