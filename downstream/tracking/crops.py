"""Square crops around a box, and the way back: the geometry of Siamese trackers.

Pixel coordinates are continuous: pixel i covers [i, i + 1), so a picture of width W spans [0, W]. Annotations that
count pixels from 1 (LaSOT, OTB) are taken as they are: predictions live in the same frame, the metrics see no shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Window:
    """A square window on a picture: ``crop = (picture - centre) * scale + size / 2``, per axis."""

    centre: tuple[float, float]  # in the picture, pixels
    scale: tuple[float, float]  # crop pixels per picture pixel, x and y (they differ under jitter only)
    size: int  # side of the crop, pixels

    def to_crop(self, box: np.ndarray) -> np.ndarray:
        """(4,) x, y, w, h in the picture -> the same box in the crop."""
        scale = np.asarray(self.scale)
        return np.concatenate([(box[:2] - self.centre) * scale + self.size / 2, box[2:] * scale])

    def to_picture(self, box: np.ndarray) -> np.ndarray:
        """(4,) x, y, w, h in the crop -> the same box in the picture."""
        scale = np.asarray(self.scale)
        return np.concatenate([(box[:2] - self.size / 2) / scale + self.centre, box[2:] / scale])


def window_around(box: np.ndarray, area_factor: float, size: int) -> Window:
    """The window of SwinTrack: context ``(factor - 1) (w + h) / 2`` on both sides, then the square of that area.

    For a square box of side s it spans ``factor * s`` pixels of the picture.
    """
    width, height = float(box[2]), float(box[3])
    context = (area_factor - 1) * (width + height) / 2
    scale = size / np.sqrt((width + context) * (height + context))
    return Window((float(box[0]) + width / 2, float(box[1]) + height / 2), (scale, scale), size)


def jittered(
    window: Window, box: np.ndarray, scale_jitter: float, shift_jitter: float, rng: np.random.Generator
) -> Window:
    """``window`` with its scale and centre moved at random, as SwinTrack moves search windows.

    Scales are divided by ``exp(N(0, scale_jitter))`` per axis; the centre moves by at most ``shift_jitter / 4`` times
    the box's width + height, less where needed to keep the box's centre inside the window.
    """
    scale = np.asarray(window.scale) / np.exp(rng.normal(size=2) * scale_jitter)
    reach = (np.asarray(box[2:]) * scale).sum() / 2 * shift_jitter
    shift = (rng.random(2) - 0.5) * min(reach, window.size * 0.96)  # crop pixels
    centre = np.asarray(window.centre) + shift / scale
    return Window((float(centre[0]), float(centre[1])), (float(scale[0]), float(scale[1])), window.size)


def cut(picture: np.ndarray, window: Window) -> np.ndarray:
    """The window's pixels, (size, size, 3) uint8; what lies outside the picture gets the picture's mean colour.

    Bilinear between pixel centres. A window shown at less than half its size is averaged down by a whole number first,
    because bilinear sampling alone would skip pixels.
    """
    colour = tuple(float(value) for value in cv2.mean(picture)[:3])
    centre, scale = np.asarray(window.centre), np.asarray(window.scale)
    origin, ratio = np.zeros(2), np.ones(2)
    factor = int(1 / scale.max())
    if factor >= 2:
        limit = np.array([picture.shape[1], picture.shape[0]])
        reach = window.size / 2 / scale + factor
        start = np.clip(np.floor(centre - reach), 0, limit - 1).astype(int)
        end = np.clip(np.ceil(centre + reach), start + 1, limit).astype(int)
        part = picture[start[1] : end[1], start[0] : end[0]]
        smaller = np.maximum(np.ceil((end - start) / factor), 1).astype(int)
        picture = cv2.resize(part, (int(smaller[0]), int(smaller[1])), interpolation=cv2.INTER_AREA)
        origin, ratio = start, (end - start) / smaller  # picture pixels per averaged pixel
    step = 1 / (scale * ratio)
    # crop pixel j has its centre at j + 1/2, picture pixel i at i + 1/2: both halves enter the offset
    offset = (centre - origin) / ratio + (0.5 - window.size / 2) * step - 0.5
    matrix = np.array([[step[0], 0, offset[0]], [0, step[1], offset[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (window.size, window.size)
    return cv2.warpAffine(picture, matrix, size, flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=colour)
