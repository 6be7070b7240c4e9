"""A contact sheet of a suite's data: what the tasks are scored on, labels and all.

Pictures and labels are read by the data sets that the tasks themselves build, so that a wrong label, or one read
wrongly, is a wrong label on the sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageDraw

from benchmarks.suite import Suite, absolute
from benchmarks.visualize import colour_of
from downstream.task import TASKS, MissingData, module_of

if TYPE_CHECKING:
    from downstream.tracking.videos import Video

COLUMNS, STRIPS = 6, 3  # pictures a row, videos
SIDE, GAP, HEAD = 200, 8, 22  # pixels: longest side of a panel, between panels, of a line of text
INK, PAPER, BOX = (30, 30, 30), (255, 255, 255), (0, 255, 0)
LEFT, RIGHT, MIDDLE = (255, 120, 0), (0, 150, 255), (240, 240, 240)
IGNORED = (0, 0, 0)


@dataclass(frozen=True)
class Block:
    """A heading and rows of panels below it."""

    heading: str
    rows: Sequence[Sequence[Image.Image]]


def data_sheet(suite: Suite, root: Path, missing: Callable[[str], None]) -> Image.Image:
    """One picture of every task's test data, a block each.

    Args:
        suite: whose data.
        root: folder that its relative paths start from.
        missing: called with a line for each task whose data are not there; the others are drawn.

    Raises:
        MissingData: nothing is there.
        TaskError: annotations cannot be used, or a file is damaged.
    """
    blocks = []
    for name, section in suite.data.items():
        try:
            blocks.append(DRAWN[TASKS[name].module](name, absolute(section, root)))
        except MissingData as error:
            missing(f"left out: {error}")
    if not blocks:
        raise MissingData(f"suite {suite.name}: nothing of its data is under {root}; see `bench data verify`")
    return _page(blocks)


def _page(blocks: Sequence[Block]) -> Image.Image:
    width = GAP + max(sum(panel.width + GAP for panel in row) for block in blocks for row in block.rows)
    heights = [HEAD + sum(max(panel.height for panel in row) + GAP for row in block.rows) for block in blocks]
    sheet = Image.new("RGB", (width, sum(heights) + GAP), PAPER)
    draw, top = ImageDraw.Draw(sheet), GAP
    for block in blocks:
        draw.text((GAP, top), block.heading, INK, font_size=13)
        top += HEAD
        for row in block.rows:
            left = GAP
            for panel in row:
                sheet.paste(panel, (left, top))
                left += panel.width + GAP
            top += max(panel.height for panel in row) + GAP
    return sheet


# --- a block of each kind ---------------------------------------------------------------------------------------------


def _classes(name: str, section: dict[str, Any]) -> Block:
    task, pipeline = module_of(name), [{"type": "mmengine.ReadPicture"}]
    names = task.classes_of(section)
    items, chosen = _items(name, "mmpretrain", task.dataset_of(section, "val", names, pipeline))
    panels = [_titled(_fitted(item["img"]), names[int(item["gt_label"])]) for item in chosen]
    return Block(f"{name}: {len(items):,} test pictures of {len(names)} classes", [panels])


def _regions(name: str, section: dict[str, Any]) -> Block:
    task = module_of(name)
    names = task.classes_of(section)
    items, chosen = _items(name, "mmseg", task.dataset_of(section, "val", names, []))
    rows = [[_fitted(item["img"]) for item in chosen], [_regions_of(item["gt_seg_map"], names) for item in chosen]]
    return Block(f"{name}: {len(items):,} test pictures, {len(names)} classes; black is not scored", rows)


def _people(name: str, section: dict[str, Any]) -> Block:
    task = module_of(name)
    task.layout_of(section)
    items, chosen = _items(name, "mmpose", task.dataset_of(section, "val", []))
    panels = [_skeleton(item, items.metainfo, task.PADDING) for item in chosen]
    return Block(f"{name}: {len(items):,} test people; filled: seen, hollow: hidden; orange: their left", [panels])


def _distances(name: str, section: dict[str, Any]) -> Block:
    items, chosen = _items(name, "mmseg", module_of(name).dataset_of(section, "test_list", []))
    far = max(float(item["gt_depth_map"].max()) for item in chosen)
    rows = [[_fitted(item["img"]) for item in chosen], [_distance(item["gt_depth_map"], far) for item in chosen]]
    return Block(f"{name}: {len(items):,} test pictures; metres, red is near, black is not scored", rows)


def _videos(name: str, section: dict[str, Any]) -> Block:
    module_of(name)
    from downstream.tracking.videos import read_videos

    videos = [video for group in read_videos(section, "test") for video in group]
    rows = [_strip(videos[index]) for index in _evenly(len(videos), STRIPS)]
    return Block(f"{name}: {len(videos):,} test videos", rows)


def _items(task: str, scope: str, config: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """The data set, and a few of its items from its whole length."""
    from downstream import engine

    with engine.quiet(scope):
        items = engine.opened(config, task, "test")
        # drawn, not every so-and-so-many'th: sets that go through their classes in turn would show one class
        chosen = np.random.default_rng(0).choice(len(items), min(COLUMNS, len(items)), replace=False)
        return items, [items[int(index)] for index in sorted(chosen)]


DRAWN: dict[str, Callable[[str, dict[str, Any]], Block]] = {  # by the task's module
    "downstream.classification": _classes, "downstream.segmentation": _regions, "downstream.pose": _people,
    "downstream.depth": _distances, "downstream.tracking": _videos,
}


def _evenly(count: int, most: int = COLUMNS) -> list[int]:
    """At most ``most`` indices, evenly from the first to the last of ``count``."""
    return sorted({int(at) for at in np.linspace(0, count - 1, min(most, count))})


# --- panels -----------------------------------------------------------------------------------------------------------


def _size(height: int, width: int) -> tuple[int, int]:
    scale = SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _fitted(picture: np.ndarray) -> Image.Image:
    """uint8 (H, W, 3) as a panel; small pictures are enlarged without smoothing, so that their pixels can be seen."""
    size = _size(*picture.shape[:2])
    return Image.fromarray(picture).resize(size, Image.NEAREST if size[0] > picture.shape[1] else Image.LANCZOS)


def _write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, anchor: str = "mm") -> None:
    draw.text(at, text, PAPER, anchor=anchor, stroke_width=2, stroke_fill=INK, font_size=11)


def _titled(panel: Image.Image, title: str) -> Image.Image:
    _write(ImageDraw.Draw(panel), (4, 4), title, "la")
    return panel


def _regions_of(labels: np.ndarray, names: Sequence[str]) -> Image.Image:
    """(H, W) labels in colours, each class named where its region is widest."""
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(names)] = [[round(255 * part) for part in colour_of(label)] for label in range(len(names))]
    size = _size(*labels.shape)
    shown = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    panel = Image.fromarray(palette[shown])
    for label in np.unique(shown[shown < len(names)]):
        inner = cv2.distanceTransform(np.pad((shown == label).astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        row, column = np.unravel_index(inner.argmax(), inner.shape)
        if inner.max() >= 4:  # pixels: room for a name
            _write(ImageDraw.Draw(panel), (int(column), int(row)), names[label])
    return panel


def _skeleton(item: Mapping[str, Any], about: Mapping[str, Any], padding: float) -> Image.Image:
    """A person in the box, ``padding`` times as large: joints filled where seen and hollow where hidden."""
    x0, y0, x1, y1 = np.asarray(item["bbox"], float).reshape(-1)[:4]
    centre, half = ((x0 + x1) / 2, (y0 + y1) / 2), padding * max(x1 - x0, y1 - y0) / 2
    left, top = max(0, int(centre[0] - half)), max(0, int(centre[1] - half))
    cut = item["img"][top : int(centre[1] + half) + 1, left : int(centre[0] + half) + 1]
    panel = _fitted(np.ascontiguousarray(cut))
    scale = panel.width / cut.shape[1]
    draw = ImageDraw.Draw(panel)
    joints = (np.asarray(item["keypoints"], float).reshape(-1, 2) - (left, top) + 0.5) * scale
    labelled = np.asarray(item["keypoints_visible"]).reshape(-1) > 0
    seen = _flags(item) == 2
    names = [about["keypoint_id2name"][index] for index in range(len(joints))]
    colours = [LEFT if "left" in name else RIGHT if "right" in name else MIDDLE for name in names]
    for a, b in about["skeleton_links"]:
        if labelled[a] and labelled[b]:
            draw.line([*joints[a], *joints[b]], colours[a] if colours[a] == colours[b] else MIDDLE, 2)
    for (x, y), there, filled, colour in zip(joints, labelled, seen, colours, strict=True):
        if there:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], colour if filled else None, colour)
    corners = (np.array([x0, y0, x1, y1]) - (left, top, left, top)) * scale
    draw.rectangle([float(v) for v in corners], None, BOX)
    return panel


def _flags(item: Mapping[str, Any]) -> np.ndarray:
    """COCO's flags of the joints: 2 seen, 1 hidden, 0 not labelled; mmpose itself keeps whether there is a label."""
    return np.asarray(item["raw_ann_info"]["keypoints"], float).reshape(-1, 3)[:, 2]


def _distance(metres: np.ndarray, far: float) -> Image.Image:
    """Turbo colours, and the metres at nine places."""
    shade = (255 * (1 - (metres / far).clip(0, 1))).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(shade, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    colours[metres == 0] = IGNORED
    width, height = _size(*metres.shape)
    panel = Image.fromarray(colours).resize((width, height), Image.NEAREST)
    for across in (0.1, 0.5, 0.9):
        for down in (0.12, 0.5, 0.9):
            value = metres[int(down * metres.shape[0]), int(across * metres.shape[1])]
            if value > 0:
                _write(ImageDraw.Draw(panel), (across * width, down * height), f"{value:.1f}")
    return panel


def _strip(video: Video) -> list[Image.Image]:
    """Frames from the whole length with the target's box."""
    from downstream.common import read_picture

    panels = []
    for frame in _evenly(len(video.frames)):
        picture = read_picture(video.frames[frame])
        panel = _fitted(picture)
        scale = panel.width / picture.shape[1]
        x, y, w, h = (float(v) * scale for v in video.boxes[frame])
        if w > 0 and h > 0:
            ImageDraw.Draw(panel).rectangle([x, y, x + w, y + h], None, BOX)
        panels.append(_titled(panel, f"{video.name}  {frame + 1}" + ("" if video.visible[frame] else "  hidden")))
    return panels
