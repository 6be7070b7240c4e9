"""Corruptions C: what is taken from the picture before the student sees it. Masks here, degradations in degrade.py.

A corruption maps a batch of clean views (B, 3, V, V) to :class:`Seen`. Draws come from the generator that is passed
in, on the CPU, so that a seed means the same corruption on every device.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from objectives.precision import sent
from objectives.processes import draw, gather, share
from objectives.recipe import ObjectiveError
from objectives.registry import CORRUPTIONS, Geometry


class Seen(NamedTuple):
    """What the student gets to see.

    Attributes:
        images: pictures (B, 3, S, S); of corruptions that show several crops, all first, then all second (2B, 3, S, S).
        mask: (B, L), True where hidden; None where nothing is masked.
        offset: (B, 2) row and column, in pixels, at which a smaller view was pasted (zoom-out); else None.
        local: further small crops (n·B, 3, s, s), all pictures' first, then all second, …; else None.
        visible, hidden: the places of ``mask``, (B, V) and (B, L - V), rising; None where it is, or where the
            corruption does not say how many it hides.
    """

    images: Tensor
    mask: Tensor | None = None
    offset: Tensor | None = None
    local: Tensor | None = None
    visible: Tensor | None = None
    hidden: Tensor | None = None


class Corruption(ABC):
    """Base class.

    Attributes:
        view: side V of the clean view, in pixels: that of the student's picture, unless the corruption zooms.
        attentive: the mask is drawn from the teacher's attention, which the call then gets.
        several: the student sees two crops of each picture, which the teacher has to look at too.
        even: as many patches are hidden in every picture.
        hides: how many tokens are hidden in every picture; None where nothing is, or the number varies.
    """

    attentive = False
    several = False
    even = True
    hides: int | None = None

    def __init__(self, geometry: Geometry) -> None:
        self.geometry, self.view = geometry, geometry.input_size

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator, attention: Tensor | None = None) -> Seen:
        """Normalised views (B, 3, V, V); ``attention`` (B, L) at least 0, for attentive corruptions."""


@CORRUPTIONS.register_module()
class Clean(Corruption):
    """Nothing is taken."""

    def __call__(self, images: Tensor, generator: torch.Generator, attention: Tensor | None = None) -> Seen:
        return Seen(images)


ROUNDINGS = {
    "keep_floor": lambda n, r: n - int(n * (1 - r)),  # MAE: the kept part is rounded down
    "ceil": lambda n, r: math.ceil(n * r),  # SimMIM
    "round": lambda n, r: round(n * r),  # MaskFeat
    # BEiT family: int(.4 x 196) = 78; the margin lets k / n hide k (29 / 100 x 100 is 28.999… in floats)
    "floor": lambda n, r: int(n * r + 1e-9),
}


def masked_count(units: int, ratio: float, rounding: str) -> int:
    """How many of ``units`` are hidden; papers round differently (see :data:`ROUNDINGS`).

    Raises:
        ObjectiveError: the ratio leaves nothing hidden or nothing visible.
    """
    if rounding not in ROUNDINGS:
        raise ObjectiveError(f"objective.corruption.rounding: {rounding!r} is not one of {', '.join(ROUNDINGS)}")
    count = ROUNDINGS[rounding](units, ratio) if 0 < ratio < 1 else 0
    if not 0 < count < units:
        raise ObjectiveError(
            f"objective.corruption.ratio: {ratio} of {units} mask units hides {count}; some must be hidden, some seen"
        )
    return count


@CORRUPTIONS.register_module()
class RandomMask(Corruption):
    """Hides a fixed number of square units, drawn uniformly and anew for each picture.

    Args:
        ratio: share of the units that is hidden.
        unit: side of a unit, in patches. A hierarchical student's token (32 px) is a unit already.
        rounding: a key of :data:`ROUNDINGS`.
    """

    def __init__(self, geometry: Geometry, ratio: float, unit: int = 1, rounding: str = "keep_floor") -> None:
        super().__init__(geometry)
        self.unit = 1 if geometry.hierarchical else unit
        if geometry.grid % self.unit:
            raise ObjectiveError(f"objective.corruption.unit: {unit} patches do not tile a grid of {geometry.grid}")
        self.side = geometry.grid // self.unit
        self.hidden = masked_count(self.side**2, ratio, rounding)
        self.hides = self.hidden * self.unit**2

    def __call__(self, images: Tensor, generator: torch.Generator, attention: Tensor | None = None) -> Seen:
        noise = draw(lambda count: torch.rand(count, self.side**2, generator=generator), len(images))
        mask = torch.zeros_like(noise, dtype=torch.bool)
        mask.scatter_(1, noise.argsort(dim=1)[:, : self.hidden], True)
        mask = mask.view(-1, self.side, self.side)
        mask = mask.repeat_interleave(self.unit, 1).repeat_interleave(self.unit, 2).flatten(1)  # (B, L)
        return Seen(images, sent(mask, images.device))


def cover(rows: list[int], top: int, left: int, height: int, width: int, room: int) -> int:
    """Hide a rectangle of patches, if that hides at least one and at most ``room`` more; returns how many.

    Args:
        rows: of the grid; bit i of a row is set where its i-th patch is hidden. Tensors take four times as long.
    """
    bits = ((1 << width) - 1) << left
    fresh = sum((bits & ~row).bit_count() for row in rows[top : top + height])
    if not 0 < fresh <= room:
        return 0
    for place in range(top, top + height):
        rows[place] |= bits
    return fresh


@CORRUPTIONS.register_module()
class BlockMask(Corruption):
    """Hides rectangles until the budget is met exactly (BEiT v2, ``unilm:beit2/masking_generator.py``, facts only).

    Rectangles of at least ``min_block`` of the area (16 of 196 patches in BEiT) and aspect .3 to 1/.3 are drawn until
    none fits any more; single patches then fill up, so that every picture hides the same number. Once less than
    ``min_block`` is left of the budget, rectangles are as small as that; the authors' keep to areas above what is left,
    which seldom fit, and fill up by single patches more often.

    Args:
        ratio, rounding: as in :class:`RandomMask`.
        exact: False stops instead as soon as ten draws on end give no rectangle that fits, as the generators of BEiT,
            data2vec and MaskFeat do (``unilm:beit/masking_generator.py``, facts only): pictures may then hide fewer
            patches, and each another number. Not for students of visible tokens.
    """

    TRIES = 10  # of the authors' generators, for one rectangle

    def __init__(
        self, geometry: Geometry, ratio: float, rounding: str = "floor", min_block: float = 16 / 196,
        aspect: tuple[float, float] = (0.3, 1 / 0.3), exact: bool = True,
    ) -> None:
        super().__init__(geometry)
        self.even, self._draw = exact, self._one if exact else self._stopped
        self.grid = geometry.grid
        self.hidden = masked_count(self.grid**2, ratio, rounding)
        self.hides = self.hidden if exact else None
        self.min_block = max(1, round(min_block * self.grid**2))
        self.log_aspect = (math.log(aspect[0]), math.log(aspect[1]))

    def _one(self, generator: torch.Generator) -> Tensor:
        grid, rows = self.grid, [0] * self.grid
        draws = torch.rand(64, 4, generator=generator).tolist()  # enough tries; leftovers are filled below
        count = 0
        for area_u, aspect_u, top_u, left_u in draws:
            room = self.hidden - count
            if room <= 0:
                break
            low = min(self.min_block, room)
            area = low + area_u * (room - low)
            ratio = math.exp(self.log_aspect[0] + aspect_u * (self.log_aspect[1] - self.log_aspect[0]))
            height, width = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
            if height > grid or width > grid:
                continue
            top, left = int(top_u * (grid - height + 1)), int(left_u * (grid - width + 1))
            count += cover(rows, top, left, height, width, room)
        flat = self._flat(rows)
        if count < self.hidden:
            free = torch.nonzero(~flat).squeeze(1)
            flat[free[torch.randperm(len(free), generator=generator)[: self.hidden - count]]] = True
        return flat

    def _stopped(self, generator: torch.Generator) -> Tensor:
        """As the authors' generators; only the first rectangle is drawn until one fits, lest nothing be hidden."""
        grid, rows, count = self.grid, [0] * self.grid, 0
        while count < self.hidden:
            room, before = self.hidden - count, count
            for area_u, aspect_u, top_u, left_u in torch.rand(self.TRIES, 4, generator=generator).tolist():
                area = self.min_block + area_u * (room - self.min_block)
                ratio = math.exp(self.log_aspect[0] + aspect_u * (self.log_aspect[1] - self.log_aspect[0]))
                height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
                if height >= grid or width >= grid:
                    continue
                top, left = int(top_u * (grid - height + 1)), int(left_u * (grid - width + 1))
                if fresh := cover(rows, top, left, height, width, room):
                    count += fresh
                    break
            if count == before and count:
                break
        return self._flat(rows)

    def _flat(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor([row >> place & 1 for row in rows for place in range(self.grid)], dtype=torch.bool)

    def __call__(self, images: Tensor, generator: torch.Generator, attention: Tensor | None = None) -> Seen:
        mask = draw(lambda count: torch.stack([self._draw(generator) for _ in range(count)]), len(images))
        return Seen(images, sent(mask, images.device))


@CORRUPTIONS.register_module()
class AttentionMask(Corruption):
    """Keeps a fixed number of patches, drawn without replacement with the teacher's attention as weights (MILAN).

    What the teacher attends to is kept more often. ``ratio`` and ``rounding`` as in :class:`RandomMask`. Drawn on the
    processor, which waits for the teacher's attention.
    """

    attentive = True

    def __init__(self, geometry: Geometry, ratio: float = 0.75, rounding: str = "keep_floor") -> None:
        super().__init__(geometry)
        self.hidden = self.hides = masked_count(geometry.grid**2, ratio, rounding)

    def __call__(self, images: Tensor, generator: torch.Generator, attention: Tensor | None = None) -> Seen:
        if attention is None:
            raise ObjectiveError(
                "objective.corruption.type=AttentionMask needs a teacher that attends: "
                "objective.teacher.type=FrozenNetwork"
            )
        weights = gather(attention.float()).cpu().clamp(min=1e-9)  # no replacement: every patch must be drawable
        kept = torch.multinomial(weights, weights.shape[1] - self.hidden, replacement=False, generator=generator)
        mask = torch.ones_like(weights, dtype=torch.bool).scatter_(1, kept, False)
        return Seen(images, sent(share(mask), images.device))
