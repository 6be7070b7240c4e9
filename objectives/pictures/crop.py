"""Which part of a picture a RandomResizedCrop takes, known before the picture is decoded. Light (no torch)."""

from __future__ import annotations

import math
import struct
from hashlib import blake2b
from typing import NamedTuple

from objectives.recipe import Crop

TRIES = 10  # torchvision.transforms.RandomResizedCrop: then the largest central part of an allowed ratio


class Box(NamedTuple):
    """A part of a picture, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


def draw(width: int, height: int, crop: Crop, seed: int, epoch: int, index: int) -> Box:
    """torchvision's RandomResizedCrop for picture ``index`` in an epoch, drawn from (seed, epoch, index) alone.

    The draws are a hash of these, so that any picture's can be had without those before it, by any process.
    """
    (low, high), (narrow, wide) = crop.scale, crop.ratio
    for tried in range(TRIES):
        digest = blake2b(struct.pack("<4q", seed, epoch, index, tried), digest_size=32).digest()
        of_area, of_ratio, of_left, of_top = (number / 2**64 for number in struct.unpack("<4Q", digest))
        area = width * height * (low + of_area * (high - low))
        ratio = math.exp(math.log(narrow) + of_ratio * (math.log(wide) - math.log(narrow)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(of_left * (width - w + 1)), int(of_top * (height - h + 1))
            return Box(min(left, width - w), min(top, height - h), w, h)  # a draw may round up to 1
    w = min(width, round(height * wide))
    h = min(height, round(width / narrow))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def central(width: int, height: int) -> Box:
    """The largest square in the middle."""
    side = min(width, height)
    return Box((width - side) // 2, (height - side) // 2, side, side)


def smallest_side(width: int, height: int, crop: Crop | None) -> float:
    """The shortest side, in pixels, that a crop of such a picture can have."""
    if crop is None:
        return min(width, height)
    return math.sqrt(width * height * crop.scale[0] * min(crop.ratio[0], 1 / crop.ratio[1]))


def shrunk(box: Box, width: int, height: int, to_width: int, to_height: int) -> Box:
    """The same part of the picture decoded at another size."""
    across, down = to_width / width, to_height / height
    left, top = min(round(box.left * across), to_width - 1), min(round(box.top * down), to_height - 1)
    return Box(left, top, min(max(1, round(box.width * across)), to_width - left),
               min(max(1, round(box.height * down)), to_height - top))
