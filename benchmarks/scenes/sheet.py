"""A contact sheet of the written files: what a loader would see, labels and all.

Nothing here asks the renderer: pictures, masks, joints, depths and boxes are read back from the layouts, so a wrong
label on disk is a wrong label on the sheet.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from benchmarks.scenes import CLASSES
from benchmarks.scenes.writers import COCO_FIRST

ZOOM = 2
GAP = 8
STRIPS, FRAMES = 3, 6
INK, PAPER = (30, 30, 30), (255, 255, 255)
LEFT, RIGHT, MIDDLE = (255, 120, 0), (0, 150, 255), (240, 240, 240)
DEPTH_RANGE = 8.0  # metres at the end of the colour scale
PALETTE = np.array([
    (0, 0, 0), (190, 170, 140), (120, 130, 150), (255, 255, 120), (230, 25, 75), (60, 180, 75), (0, 130, 200),
    (245, 130, 48), (145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212), (0, 128, 128),
    (170, 110, 40),
], np.uint8)


def _grow(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture.repeat(ZOOM, 0).repeat(ZOOM, 1))


def _read(path: Path, flag: int = cv2.IMREAD_COLOR) -> np.ndarray:
    values = cv2.imread(str(path), flag)
    if values is None:
        raise FileNotFoundError(path)
    return cv2.cvtColor(values, cv2.COLOR_BGR2RGB) if flag == cv2.IMREAD_COLOR else values


def _names(root: Path) -> list[str]:
    """Label names, 0 first."""
    lines = (root / "ade" / "objectInfo.txt").read_text().splitlines()[1:]
    return ["void", *(line.split("\t")[1] for line in lines)]


def _mask(root: Path, index: int) -> Image.Image:
    """The label map in colours, each region named where it is widest."""
    labels = _read(root / "ade" / "annotations" / "validation" / f"{index:05d}.png", cv2.IMREAD_UNCHANGED)
    image = _grow(PALETTE[labels])
    draw = ImageDraw.Draw(image)
    for label in np.unique(labels):
        inner = cv2.distanceTransform(np.pad((labels == label).astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
        row, column = np.unravel_index(inner.argmax(), inner.shape)
        at = (int(column) * ZOOM, int(row) * ZOOM)
        draw.text(at, _names(root)[label], INK, anchor="mm", stroke_width=1, stroke_fill=PAPER, font_size=11)
    return image


def _skeleton(picture: np.ndarray, person: dict | None, category: dict) -> Image.Image:
    """Joints filled where seen and hollow where hidden; orange on the figure's left, blue on its right."""
    image = _grow(picture)
    draw = ImageDraw.Draw(image)
    if person is None:
        draw.text((4, 4), "no figure", PAPER, stroke_width=1, stroke_fill=INK)
        return image
    joints = np.array(person["keypoints"], float).reshape(-1, 3)
    centre = [(float(x) + 0.5) * ZOOM for x in joints[:, 0]], [(float(y) + 0.5) * ZOOM for y in joints[:, 1]]
    colours = [
        LEFT if name.startswith("left") else RIGHT if name.startswith("right") else MIDDLE
        for name in category["keypoints"]
    ]
    for a, b in ((a - 1, b - 1) for a, b in category["skeleton"]):
        if joints[a, 2] > 0 and joints[b, 2] > 0:
            colour = colours[a] if colours[a] == colours[b] else MIDDLE
            draw.line([centre[0][a], centre[1][a], centre[0][b], centre[1][b]], colour, 1)
    for x, y, flag, colour in zip(*centre, joints[:, 2], colours, strict=True):
        if flag:
            draw.ellipse([x - 2.5, y - 2.5, x + 2.5, y + 2.5], colour if flag == 2 else None, colour)
    x, y, w, h = (value * ZOOM for value in person["bbox"])
    draw.rectangle([x, y, x + w - 1, y + h - 1], None, (0, 255, 0))
    return image


def _depth(path: Path) -> Image.Image:
    """Turbo colours, red is near; black is invalid."""
    metres = _read(path, cv2.IMREAD_UNCHANGED) / 1000.0
    shade = (255 * (1 - (metres / DEPTH_RANGE).clip(0, 1))).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(shade, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    colours[metres == 0] = 0
    image = _grow(colours)
    draw = ImageDraw.Draw(image)
    for across in (0.1, 0.5, 0.9):
        for down in (0.15, 0.5, 0.9):
            row, column = int(down * metres.shape[0]), int(across * metres.shape[1])
            draw.text(
                (column * ZOOM, row * ZOOM), f"{metres[row, column]:.1f}", PAPER, anchor="mm", stroke_width=1,
                stroke_fill=INK, font_size=11,
            )
    return image


def _scale(height: int) -> Image.Image:
    """The metres that the colours stand for."""
    ramp = np.linspace(255, 0, height).astype(np.uint8)[:, None].repeat(14, 1)
    bar = Image.fromarray(cv2.cvtColor(cv2.applyColorMap(ramp, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB))
    image = Image.new("RGB", (50, height), PAPER)
    image.paste(bar, (0, 0))
    draw = ImageDraw.Draw(image)
    for metres in range(0, int(DEPTH_RANGE) + 1, 2):
        draw.text((18, min(metres / DEPTH_RANGE * height, height - 12)), f"{metres} m", INK)
    return image


def _strip(folder: Path) -> list[Image.Image]:
    """A few frames of a video with the target's box."""
    boxes = [[float(v) for v in line.split(",")] for line in (folder / "groundtruth.txt").read_text().split()]
    hidden = [int(v) for v in (folder / "full_occlusion.txt").read_text().split(",")]
    strip = []
    for frame in np.linspace(0, len(boxes) - 1, FRAMES).astype(int):
        image = _grow(_read(folder / "img" / f"{frame + 1:08d}.jpg"))
        draw = ImageDraw.Draw(image)
        x, y, w, h = boxes[frame]
        if w > 0:  # boxes count pixels from 1; the frame lies just outside the box
            corner = ((x - 1) * ZOOM - 1, (y - 1) * ZOOM - 1)
            draw.rectangle([*corner, corner[0] + w * ZOOM + 1, corner[1] + h * ZOOM + 1], None, (0, 255, 0))
        note = f"{folder.name}  frame {frame + 1}" + ("  hidden" if hidden[frame] else "")
        draw.text((4, 3), note, PAPER, stroke_width=1, stroke_fill=INK)
        strip.append(image)
    return strip


def contact_sheet(root: Path, rows: int = 6) -> Image.Image:
    """A picture of ``rows`` validation pictures with all their labels, and of three test videos.

    Per row: picture and class; label map; joints and box of the figure; depth. Raises ``FileNotFoundError`` where the
    folder does not hold the scenes.
    """
    people = json.loads((root / "coco" / "annotations" / "person_keypoints_val2017.json").read_text())
    category = people["categories"][0]
    by_index = {annotation["image_id"] - COCO_FIRST["val"]: annotation for annotation in people["annotations"]}
    classes = {
        int(path.stem.rpartition("_")[2]): path for path in sorted((root / "imagenet" / "val").glob("*/*.JPEG"))
    }
    depths = {
        int(path.stem.rpartition("_")[2]): path
        for path in (root / "nyu" / "nyu_depth_v2" / "official_splits" / "test").glob("*/sync_depth_*.png")
    }
    if not classes:
        raise FileNotFoundError(root / "imagenet" / "val")
    # Steps of seven pass through all ten classes.
    chosen = sorted(classes)[: 7 * rows : 7] if len(classes) >= 7 * rows else sorted(classes)[:rows]
    side = _read(classes[chosen[0]]).shape[0] * ZOOM
    videos = [root / "lasot" / name.rpartition("-")[0] / name
              for name in (root / "lasot" / "testing_set.txt").read_text().split()[:STRIPS]]

    pitch = side + GAP
    width = max(4 * pitch + 60, FRAMES * pitch) + GAP
    head = 24
    sheet = Image.new("RGB", (width, head + (len(chosen) + len(videos)) * pitch + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    titles = ("class", "semantic mask", "joints: filled = seen, orange = its left", "depth (m)")
    for column, title in enumerate(titles):
        draw.text((GAP + column * pitch, 6), title, INK)
    for row, index in enumerate(chosen):
        picture, top = _read(classes[index]), head + row * pitch
        plain = _grow(picture)
        ImageDraw.Draw(plain).text(
            (4, 2), classes[index].parent.name, PAPER, stroke_width=2, stroke_fill=INK, font_size=16
        )
        panels = (
            plain, _mask(root, index), _skeleton(picture, by_index.get(index), category), _depth(depths[index])
        )
        for column, panel in enumerate(panels):
            sheet.paste(panel, (GAP + column * pitch, top))
        sheet.paste(_scale(side), (GAP + 4 * pitch, top))
    _legend(draw, _names(root), (GAP + 4 * pitch + 70, head))
    for row, folder in enumerate(videos):
        for column, frame in enumerate(_strip(folder)):
            sheet.paste(frame, (GAP + column * pitch, head + (len(chosen) + row) * pitch))
    return sheet


def _legend(draw: ImageDraw.ImageDraw, names: list[str], at: tuple[int, int]) -> None:
    for label, name in enumerate(names):
        top = at[1] + 18 * label
        draw.rectangle([at[0], top, at[0] + 12, top + 12], tuple(int(v) for v in PALETTE[label]), INK)
        draw.text((at[0] + 18, top), f"{label} {name}" + ("" if name not in CLASSES else "  (class)"), INK)
