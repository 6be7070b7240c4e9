"""Parts that several tasks share: reading pictures, the norm in front of every head, a linear dense head."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.model import BaseModule
from mmengine.registry import MODELS, TRANSFORMS
from PIL import Image
from torch import Tensor, nn

from downstream.backbone import MEAN, STD
from downstream.task import MissingData, TaskError


def read_picture(path: str | Path, mode: str = "RGB") -> np.ndarray:
    """A picture as uint8 (H, W, 3) in R, G, B, or with ``mode="labels"`` as it is stored (H, W).

    Pillow decodes because it notices truncated files; OpenCV fills the rest with grey and says nothing.

    Raises:
        TaskError: the file is missing, truncated or no picture; the message names it.
    """
    try:
        data = Path(path).read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            return np.asarray(picture.convert("RGB") if mode == "RGB" else picture)
    except FileNotFoundError as error:
        raise TaskError(f"{path} is missing, though the annotations name it; complete the data set") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise TaskError(f"{path} cannot be read as a picture ({error}); replace the file") from error


@TRANSFORMS.register_module()
class ReadPicture(BaseTransform):
    """``img_path`` -> ``img`` (H, W, 3) R, G, B uint8, ``img_shape``, ``ori_shape``; errors name the file."""

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        picture = read_picture(results["img_path"])
        results["img"] = np.ascontiguousarray(picture)
        results["img_shape"] = results["ori_shape"] = picture.shape[:2]
        return results


@TRANSFORMS.register_module()
class AreaResize(BaseTransform):
    """The picture to (height, width), averaging where it shrinks, cubic where it grows; annotations stay.

    Dense tasks compare with annotations at their own resolution: predictions are resized to them, not they to us.
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        self.height, self.width = pair(size)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        picture = results["img"]
        shrinks = picture.shape[0] >= self.height and picture.shape[1] >= self.width
        method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        results["img"] = cv2.resize(picture, (self.width, self.height), interpolation=method)
        results["img_shape"] = (self.height, self.width)
        return results


@TRANSFORMS.register_module()
class ResizePicture(BaseTransform):
    """The picture, ratio kept, to at most ``scale`` (long side, short side), bilinear; annotations stay."""

    def __init__(self, scale: tuple[int, int]) -> None:
        self.long, self.short = max(scale), min(scale)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        height, width = results["img"].shape[:2]
        factor = min(self.long / max(height, width), self.short / min(height, width))
        size = (round(width * factor), round(height * factor))
        results["img"] = cv2.resize(results["img"], size, interpolation=cv2.INTER_LINEAR)
        results["img_shape"] = size[::-1]
        return results


@TRANSFORMS.register_module()
class NearestAnnotation(BaseTransform):
    """A map of labels or depths to (height, width) by nearest neighbour: for training, where batches need one size."""

    def __init__(self, key: str, size: int | tuple[int, int]) -> None:
        self.key, (self.height, self.width) = key, pair(size)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        results[self.key] = cv2.resize(
            results[self.key], (self.width, self.height), interpolation=cv2.INTER_NEAREST_EXACT
        )
        return results


@TRANSFORMS.register_module()
class FlipDense(BaseTransform):
    """Picture and dense annotation mirrored with probability one half."""

    def __init__(self, key: str) -> None:
        self.key = key

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        if np.random.rand() < 0.5:
            for key in ("img", self.key):
                results[key] = np.ascontiguousarray(results[key][:, ::-1])
        return results


def pair(size: int | tuple[int, int] | list[int]) -> tuple[int, int]:
    """A side as (height, width)."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


@MODELS.register_module()
class FeatureNorm(BaseModule):
    """Batch norm without affine on each map, joined along the channels: what every head reads.

    Backbones differ in the scale of their features by orders of magnitude; without this, one learning rate would
    favour some of them (MAE's linear probe has the same norm: evaluation recipe of facebookresearch/mae).

    Args:
        channels: of the backbone's maps.
        pool: average over the picture first, (B, D); for classification. Vectors (class tokens) are taken as they are.
        kind: "batchnorm"; or what recipes of fine-tuning have instead, "layernorm" (with affine; ``pool`` only: MAE's
            and BEiT's fc_norm) and "none".
    """

    def __init__(self, channels: tuple[int, ...], pool: bool = False, kind: str = "batchnorm") -> None:
        super().__init__()
        batch = nn.BatchNorm1d if pool else nn.BatchNorm2d
        make: dict[str, Callable[[int], nn.Module]] = {
            "batchnorm": lambda width: batch(width, affine=False, eps=1e-6),
            "layernorm": lambda width: nn.LayerNorm(width, eps=1e-6), "none": lambda width: nn.Identity(),
        }
        self.norms = nn.ModuleList(make[kind](width) for width in channels)
        self.pool = pool

    def fixed(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What it does without being trained, and what features are kept after: the means over the picture."""
        return tuple(x.mean((2, 3)) if self.pool and x.ndim == 4 else x for x in maps)

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor]:
        """Maps (B, Dᵢ, H, W) -> one map (B, ΣD, H, W), or one vector (B, ΣD) with ``pool``."""
        maps = self.fixed(maps)
        size = maps[0].shape[2:]
        maps = tuple(x if x.shape[2:] == size else nn.functional.interpolate(x, size) for x in maps)
        return (torch.cat([norm(x) for norm, x in zip(self.norms, maps, strict=True)], dim=1),)


def preprocessor(kind: str, **more: Any) -> dict[str, Any]:
    """An OpenMMLab data preprocessor for pictures that :class:`ReadPicture` read."""
    return {"type": kind, **{"mean": MEAN, "std": STD, **more}}


def read_text(path: Path) -> str:
    """The text of a list or table of a data set.

    Raises:
        TaskError: it is no UTF-8 text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is not UTF-8 text (byte {error.start}); copy it again") from error


def inside(folder: Path, name: str, origin: str | Path) -> Path:
    """``folder / name`` for a name that stands in an annotation file, ``origin``.

    Raises:
        TaskError: the name leads out of the folder. A data set may come from anybody.
    """
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise TaskError(f"{origin} names {name!r}, which leads out of {folder}; such a data set is not read")
    return folder / name


def need(path: Path, what: str) -> Path:
    """``path``, or MissingData naming it."""
    if not path.exists():
        raise MissingData(f"{what}: no {path}; see `bench data verify`")
    return path
