"""Corruptions C: what is taken from the picture before the student sees it.

A corruption maps a batch of pictures (B, 3, H, W) to ``(pictures, mask)``: the pictures that the student sees and a
token mask (B, L), True where hidden, or None where nothing is masked. Draws come from the generator that is passed
in, on the CPU, so that a seed means the same masks on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from objectives.recipe import ObjectiveError
from objectives.registry import CORRUPTIONS, Geometry


@CORRUPTIONS.register_module()
class Clean:
    """Nothing is taken."""

    def __init__(self, geometry: Geometry) -> None:
        pass

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        return images, None


ROUNDINGS = {
    "keep_floor": lambda n, r: n - int(n * (1 - r)),  # MAE: the kept part is rounded down
    "ceil": lambda n, r: math.ceil(n * r),  # SimMIM
    "round": lambda n, r: round(n * r),  # MaskFeat
    "floor": lambda n, r: int(n * r),  # BEiT family: int(.4 x 196) = 78
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
class RandomMask:
    """Hides a fixed number of square units, drawn uniformly and anew for each picture.

    Args:
        ratio: share of the units that is hidden.
        unit: side of a unit, in patches. A hierarchical student's token (32 px) is a unit already.
        rounding: a key of :data:`ROUNDINGS`.
    """

    def __init__(self, geometry: Geometry, ratio: float, unit: int = 1, rounding: str = "keep_floor") -> None:
        self.unit = 1 if geometry.hierarchical else unit
        if geometry.grid % self.unit:
            raise ObjectiveError(f"objective.corruption.unit: {unit} patches do not tile a grid of {geometry.grid}")
        self.side = geometry.grid // self.unit
        self.hidden = masked_count(self.side**2, ratio, rounding)

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        noise = torch.rand(len(images), self.side**2, generator=generator)
        mask = torch.zeros_like(noise, dtype=torch.bool)
        mask.scatter_(1, noise.argsort(dim=1)[:, : self.hidden], True)
        mask = mask.view(-1, self.side, self.side)
        mask = mask.repeat_interleave(self.unit, 1).repeat_interleave(self.unit, 2).flatten(1)  # (B, L)
        return images, mask.to(images.device)


@CORRUPTIONS.register_module()
class BlockMask:
    """Hides rectangles until the budget is met exactly (BEiT v2, ``unilm:beit2/masking_generator.py``, facts only).

    Rectangles of at least ``min_block`` of the area (16 of 196 patches in BEiT) and aspect .3 to 1/.3 are drawn until
    none fits any more; single patches then fill up or give back, so that every picture hides the same number.
    """

    def __init__(
        self, geometry: Geometry, ratio: float, rounding: str = "floor", min_block: float = 16 / 196,
        aspect: tuple[float, float] = (0.3, 1 / 0.3),
    ) -> None:
        self.grid = geometry.grid
        self.hidden = masked_count(self.grid**2, ratio, rounding)
        self.min_block = max(1, round(min_block * self.grid**2))
        self.log_aspect = (math.log(aspect[0]), math.log(aspect[1]))

    def _one(self, generator: torch.Generator) -> Tensor:
        grid, mask = self.grid, torch.zeros(self.grid, self.grid, dtype=torch.bool)
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
            block = mask[top : top + height, left : left + width]
            if 0 < int((~block).sum()) <= room:
                block.fill_(True)
                count = int(mask.sum())
        flat = mask.flatten()
        if count < self.hidden:
            free = torch.nonzero(~flat).squeeze(1)
            flat[free[torch.randperm(len(free), generator=generator)[: self.hidden - count]]] = True
        return flat

    def __call__(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mask = torch.stack([self._one(generator) for _ in range(len(images))])
        return images, mask.to(images.device)
