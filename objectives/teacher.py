"""Teachers T: the clean picture -> a target per token (B, L, C). Teachers never receive a gradient.

Here those without weights; networks stand in frozen.py, moving averages of the student in ema.py, tokenizers, whose
target is an id per token (B, L), in tokenizer.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from objectives.corruption import Seen
from objectives.degrade import margin_of
from objectives.patches import area_resize, patchify
from objectives.precision import exact
from objectives.recipe import ObjectiveError
from objectives.registry import TEACHERS, Geometry

Progress = Callable[[str, int, int], None]


class Views(Protocol):
    """The pictures as a teacher sees them, for teachers that are trained before pre-training begins.

    Attributes:
        key: names all that decides the views.
    """

    key: str

    def draw(self, step: int, count: int) -> Tensor:  # pragma: no cover - interface
        """Augmented, ImageNet-normalised views (count, 3, V, V); the same for the same step."""

    def whole(self, batch: int) -> Iterator[Tensor]:  # pragma: no cover - interface
        """Pictures, neither cropped nor flipped, (at most ``batch``, 3, V, V) at a time."""


class Teacher(nn.Module):
    """Base class.

    Attributes:
        width: C, channels of the target; of ids, how many there are.
        cacheable: the target depends on the picture alone, so a fixed crop needs it only once.
        discrete: the target is an id per token, int64 (B, L).
        sees: "clean", the view before the corruption; or "seen", the crops that the student gets (:meth:`of_views`).
        unit: pixels of the target lie in [0, 1], not ImageNet-normalised.
        seconds: that :meth:`prepare` took for each thing that seeds share, whichever of them made it.
    """

    cacheable = False
    discrete = False
    sees = "clean"
    unit = False
    seconds: Mapping[str, float] = MappingProxyType({})
    width: int

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # pragma: no cover - interface
        """Normalised views (B, 3, V, V) and class labels (B,) -> target (B, L, C).

        Called within the training's autocast, so that a moving average of the student is as fast as the student; all
        other targets are computed in :func:`~objectives.precision.exact`.
        """
        raise ObjectiveError(f"{type(self).__name__} gives no target")

    def of_views(self, seen: Seen) -> Tensor:
        """What the student sees, with images (2B, 3, S, S) -> a target for each of these (2B, C)."""
        raise ObjectiveError(f"{type(self).__name__} looks at the clean picture, not at the student's crops")

    def rehearse(self) -> None:
        """Called instead of :meth:`prepare` where an objective is only tried out: shapes matter, values do not."""

    def attention(self, target: Tensor) -> Tensor:
        """The raw target (B, T, C) -> how much the teacher attends to each token (B, L), at least 0."""
        raise ObjectiveError(f"objective.teacher.type={type(self).__name__} has no attention; use FrozenNetwork")

    def to_predict(self, target: Tensor) -> Tensor:
        """The raw target -> what of it is to be predicted: all, but for what a teacher carries along."""
        return target

    def prepare(self, views: Views, device: str, cache: Path | None, progress: Progress) -> None:
        """Called once before pre-training: a tokenizer is trained here, or read from the folder ``cache``."""

    def recall(self, views: Views, trained_on: str, cache: Path, progress: Progress) -> None:
        """Called instead of :meth:`prepare` to look at a trained objective, on the processor: nothing is trained.

        Args:
            trained_on: the kind of device that the pre-training ran on.

        Raises:
            ObjectiveError: a tokenizer is not in ``cache``.
        """
        self.prepare(views, "cpu", cache, progress)

    def about(self) -> dict[str, Any]:
        """Facts for ``backbone.json``."""
        return {}

    def fingerprint(self) -> str:
        """Names the weights of a teacher that its settings do not decide alone; else empty."""
        return ""

    def attach(self, student: nn.Module, head: nn.Module, steps: int) -> None:
        """Called once before a training of ``steps`` steps; moving averages start here from the student."""

    def update(self, student: nn.Module, head: nn.Module, step: int) -> None:
        """Called after optimiser step ``step`` (counted from 1)."""


@TEACHERS.register_module()
class NoTeacher(Teacher):
    """For objectives that do not train."""

    width = 0

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()


class Unit(nn.Module):
    """ImageNet-normalised pictures -> pixels in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.std + self.mean


@TEACHERS.register_module()
class Pixels(Teacher):
    """The pixels of each patch, C = patch·patch·3: ImageNet-normalised, or with ``unit`` in [0, 1] (Beyond Masking)."""

    def __init__(self, geometry: Geometry, unit: bool = False) -> None:
        super().__init__()
        self.patch = geometry.stride
        self.width = self.patch**2 * 3
        self.unit = unit
        self.to_unit = Unit()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return patchify(self.to_unit(images) if self.unit else images, self.patch)


@TEACHERS.register_module()
class ViewPixels(Teacher):
    """Pixels in [0, 1] of a view that is larger or smaller than the student's picture (zoom-in, zoom-out).

    The view is brought to the student's size by area averaging, (B, L, C); with ``centre``, the middle of the view,
    which the student sees, comes before it: (B, 2 L, C).
    """

    unit = True

    def __init__(self, geometry: Geometry, centre: bool = False) -> None:
        super().__init__()
        self.geometry, self.centre, self.width = geometry, centre, geometry.stride**2 * 3
        self.to_unit = Unit()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        size, patch = self.geometry.input_size, self.geometry.stride
        images = self.to_unit(images)
        with exact(images.device):  # the resizing is a product of matrices
            tokens = patchify(area_resize(images, size), patch)
        if self.centre:
            m = margin_of(self.geometry)
            tokens = torch.cat([patchify(images[..., m:-m, m:-m], patch), tokens], 1)
        return tokens


@TEACHERS.register_module()
class HOG(Teacher):
    """Histograms of oriented gradients, not yet normalised (MaskFeat, 2112.09133 section 3).

    Sobel gradients of each colour channel with reflect padding; their length is added to one of ``bins`` unsigned
    orientations, summed over cells. No Gaussian window, as in the official code (mmpretrain has one by default).
    C = 3 channels · bins · cells of a patch, ordered channel, bin, row, column; :class:`CellNorm` normalises them.

    Args:
        cell: side of a cell in pixels; None: half a patch (8 of 16, as in the paper).
    """

    def __init__(self, geometry: Geometry, bins: int = 9, cell: int | None = None) -> None:
        super().__init__()
        self.patch = geometry.stride
        self.bins, self.cell = bins, cell or max(1, self.patch // 2)
        if self.patch % self.cell:
            raise ObjectiveError(f"objective.teacher.cell: {cell} pixels do not tile a patch of {self.patch}")
        self.width = 3 * bins * (self.patch // self.cell) ** 2
        sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]])
        self.register_buffer("sobel", torch.stack([sobel, sobel.T])[:, None].repeat(3, 1, 1, 1), persistent=False)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        with exact(images.device):
            return self._histograms(images)

    def _histograms(self, images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        gradient = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), self.sobel, groups=channels)
        x, y = gradient.view(count, channels, 2, height, width).unbind(2)
        length = torch.hypot(x, y)
        bin_index = (torch.atan2(x, y) / math.pi * self.bins).floor().long() % self.bins
        histogram = images.new_zeros(count, channels, self.bins, height, width)
        histogram.scatter_(2, bin_index[:, :, None], length[:, :, None])
        cells = F.avg_pool2d(histogram.flatten(1, 2), self.cell) * self.cell**2  # (B, 3 bins, h, w)
        side = self.patch // self.cell
        return F.unfold(cells, side, stride=side).transpose(1, 2)  # channel, row, column within a patch


@TEACHERS.register_module()
class Labels(Teacher):
    """The class label of the picture (B,)."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        if geometry.num_classes < 2:
            raise ObjectiveError("supervised training needs labelled pictures of at least two classes")
        self.width = geometry.num_classes

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return labels
