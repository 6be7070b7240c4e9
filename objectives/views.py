"""Corruptions that show the student several augmented crops of a picture (MoCo v3, DINO).

All of it works on whole batches, on the pictures' device; what is drawn, is drawn for each picture, on the CPU from
the generator that is passed in. The clean view is twice the side of the student's picture, so that crops keep detail;
suites that hold their pictures in memory hold them at the student's size, of which the view is an enlargement.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

from objectives.corruption import Corruption, Seen
from objectives.precision import sent
from objectives.processes import draw
from objectives.recipe import ObjectiveError
from objectives.registry import CORRUPTIONS, Geometry

JITTER = (0.4, 0.4, 0.2, 0.1)  # brightness, contrast, saturation, hue; both papers' code, after BYOL (2006.07733)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL greys a picture
BLUR = (0.1, 2.0)  # standard deviations of the blur, in pixels of a 224 px crop; both papers' code
REFERENCE = 224  # side of the papers' crops: a blur is as wide in a smaller crop, as a share of it
THRESHOLD = 128 / 255  # solarisation inverts from here on (PIL)


def crop(images: Tensor, box: Tensor, size: int) -> Tensor:
    """(B, 3, V, V) -> the boxes (B, 3, size, size).

    ``box`` (B, 5): width, height, centre x, centre y in the units of ``grid_sample`` (the picture spans -1 to 1), and
    -1 where it is mirrored, else 1. Sampled at twice the size, then averaged 2 x 2.
    """
    width, height, x, y, sign = sent(box, images.device)[:, :, None].unbind(1)
    side = 2 * size
    middles = (2 * torch.arange(side, device=images.device) + 1) / side - 1
    columns, rows = x + width * sign * middles, y + height * middles  # (B, side) each: a crop is not turned
    grid = torch.stack([columns[:, None].expand(-1, side, -1), rows[:, :, None].expand(-1, -1, side)], -1)
    return F.avg_pool2d(F.grid_sample(images, grid, padding_mode="reflection", align_corners=False), 2)


def draw_boxes(
    count: int, scale: Sequence[float], ratio: Sequence[float], flip: float, generator: torch.Generator
) -> Tensor:
    """Boxes (count, 5) for :func:`crop`: area uniform in ``scale``, aspect log-uniform in ``ratio``.

    As torchvision's RandomResizedCrop, but sides longer than the picture are cut to it instead of drawn again.
    """
    draws = draw(lambda number: torch.rand(number, 5, generator=generator), count)
    area = scale[0] + draws[:, 0] * (scale[1] - scale[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = torch.exp(low + draws[:, 1] * (high - low))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    x, y = (2 * draws[:, 2] - 1) * (1 - width), (2 * draws[:, 3] - 1) * (1 - height)
    return torch.stack([width, height, x, y, torch.where(draws[:, 4] < flip, -1.0, 1.0)], 1)


def grey_of(x: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 1] -> luma (B, 1, H, W)."""
    return (x * sent(torch.tensor(LUMA), x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)


def rotate_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 1] with the hue of the HSV hexagon turned by ``turn`` (B, 1, 1), in whole turns."""
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    r, g, b = x.unbind(1)
    safe = chroma.clamp(min=1e-8)  # where there is no chroma, the hue does not matter
    sector = torch.where(value == r, (g - b) / safe, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    sector = sector + 6 * turn
    parts = []
    for first in (5, 3, 1):  # red, green, blue: how far the hue is from the sectors where the channel is full
        k = (first + sector) % 6
        parts.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(parts, 1)


def jitter(x: Tensor, factors: Tensor, order: Sequence[int]) -> Tensor:
    """Brightness, contrast, saturation and hue of pixels (B, 3, H, W) in [0, 1], applied in ``order``.

    ``factors`` (B, 4): three factors (1 changes nothing) and a part of a turn (0 changes nothing).
    """
    factor = sent(factors, x.device).view(-1, 4, 1, 1, 1).unbind(1)
    for kind in order:
        if kind == 0:
            x = x * factor[0]
        elif kind == 1:
            x = torch.lerp(grey_of(x).mean((2, 3), keepdim=True).expand_as(x), x, factor[1])
        elif kind == 2:
            x = torch.lerp(grey_of(x).expand_as(x), x, factor[2])
        else:
            x = rotate_hue(x, factor[3].flatten(1)[:, :, None])
        x = x.clamp(0, 1)
    return x


def blur(x: Tensor, deviation: Tensor, largest: float) -> Tensor:
    """Gaussian blur of (B, 3, H, W), one deviation (B,) in pixels each, 0 for none; edges are repeated.

    The kernel reaches three times the ``largest`` deviation that may come, at least one pixel.
    """
    reach = max(1, math.ceil(3 * largest))
    place = torch.arange(-reach, reach + 1).float()
    kernel = torch.exp(-0.5 * (place / deviation.clamp(min=1e-3)[:, None]).square())
    kernel = sent(kernel / kernel.sum(1, keepdim=True), x.device)[:, :, None, None, None]
    height, width = x.shape[-2:]
    wide = F.pad(x, (reach, reach, reach, reach), mode="replicate")
    rows = sum(kernel[:, k] * wide[..., k : k + height, :] for k in range(len(place)))
    return sum(kernel[:, k] * rows[..., k : k + width] for k in range(len(place)))


@CORRUPTIONS.register_module()
class TwoViews(Corruption):
    """Two crops of a picture, each augmented for itself (MoCo v3, 2104.02057; ``facebookresearch/moco-v3``).

    Crop, flip, colour jitter, grey, blur, solarisation. ``Seen.images`` holds all first views, then all second ones:
    (2B, 3, S, S). The clean view is to be the whole picture, unflipped: the recipe's ``crop`` says so.

    Args:
        scale, ratio: area and aspect of the crops, as shares of the picture (ViTs: .08 to 1).
        flip, jitter, grey: probabilities, each between 0 and 1.
        blur, solarize: probabilities of the first and of the second view.

    Raises:
        ObjectiveError: a range or a probability outside 0 to 1.
    """

    several = True

    def __init__(
        self, geometry: Geometry, scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3), flip: float = 0.5, jitter: float = 0.8, grey: float = 0.2,
        blur: tuple[float, float] = (1.0, 0.1), solarize: tuple[float, float] = (0.0, 0.2),
    ) -> None:
        super().__init__(geometry)
        self.view = 2 * geometry.input_size
        chances = {"flip": [flip], "jitter": [jitter], "grey": [grey], "blur": blur, "solarize": solarize}
        for name, values in {**chances, "scale": scale}.items():
            if not all(0 <= v <= 1 for v in values):
                raise ObjectiveError(f"objective.corruption.{name}: {values} must lie between 0 and 1")
        if not 0 < scale[0] <= scale[1] or not 0 < ratio[0] <= ratio[1]:
            raise ObjectiveError(f"objective.corruption: scale {scale} and ratio {ratio} must be rising and above 0")
        self.scale, self.ratio, self.flip, self.jitter, self.grey = scale, ratio, flip, jitter, grey
        self.blur, self.solarize = blur, solarize

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator, attention: Tensor | None = None) -> Seen:
        return Seen(torch.cat(self._global(images, generator)))

    def _global(self, images: Tensor, generator: torch.Generator) -> list[Tensor]:
        size = self.geometry.input_size
        return [self._one(images, size, self.scale, self.blur[i], self.solarize[i], generator) for i in range(2)]

    def _one(
        self, images: Tensor, size: int, scale: tuple[float, float], blur_p: float, solarize_p: float,
        generator: torch.Generator,
    ) -> Tensor:
        """One augmented crop of each picture: (B, 3, V, V) -> (B, 3, size, size), both ImageNet-normalised."""
        count = len(images)
        x = crop(images, draw_boxes(count, scale, self.ratio, self.flip, generator), size)
        mean, std = (sent(torch.tensor(values), x.device).view(1, 3, 1, 1)
                     for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        x = (x * std + mean).clamp(0, 1)
        # always all of them: an option changes no other draw
        draws = draw(lambda number: torch.rand(number, 9, generator=generator), count)
        order = torch.randperm(4, generator=generator).tolist()
        if self.jitter:
            spread = (2 * draws[:, :4] - 1) * torch.tensor(JITTER) * (draws[:, 4:5] < self.jitter)
            x = jitter(x, spread + torch.tensor([1.0, 1, 1, 0]), order)
        if self.grey:
            x = torch.where(_chosen(draws[:, 5] < self.grey, x), grey_of(x), x)
        if blur_p:
            per_pixel = self.geometry.input_size / REFERENCE
            deviation = (BLUR[0] + draws[:, 6] * (BLUR[1] - BLUR[0])) * per_pixel * (draws[:, 7] < blur_p)
            x = blur(x, deviation, BLUR[1] * per_pixel)
        if solarize_p:
            x = torch.where(_chosen(draws[:, 8] < solarize_p, x) & (x >= THRESHOLD), 1 - x, x)
        return (x - mean) / std


def _chosen(which: Tensor, x: Tensor) -> Tensor:
    return sent(which, x.device).view(-1, 1, 1, 1)


@CORRUPTIONS.register_module()
class MultiCrop(TwoViews):
    """Two large crops and several small ones (DINO, 2104.14294; ``facebookresearch/dino: main_dino.py``).

    ``Seen.local`` holds the small crops, all pictures' first, then all second: (local · B, 3, s, s), where s is
    96/224 of S in whole tokens, at least 2 of them and at most S.

    Args:
        scale: area of the large crops (.4 to 1).
        local, local_scale: number of small crops, and their area (8; .05 to .4). 0 for none.
        blur: probability for the first and second large crop and for the small ones.
        other arguments: as of :class:`TwoViews`.
    """

    def __init__(
        self, geometry: Geometry, scale: tuple[float, float] = (0.4, 1.0), local: int = 8,
        local_scale: tuple[float, float] = (0.05, 0.4), blur: tuple[float, float, float] = (1.0, 0.1, 0.5),
        **more: object,
    ) -> None:
        super().__init__(geometry, scale=scale, blur=blur, **more)
        if local < 0:
            raise ObjectiveError(f"objective.corruption.local: {local} small crops; 0 for none, or more")
        if not 0 < local_scale[0] <= local_scale[1] <= 1:
            raise ObjectiveError(f"objective.corruption.local_scale: {local_scale} must rise and lie in (0, 1]")
        self.local, self.local_scale = local, local_scale
        self.local_size = geometry.stride * min(geometry.grid, max(2, round(geometry.grid * 96 / REFERENCE)))

    @torch.no_grad()
    def __call__(self, images: Tensor, generator: torch.Generator, attention: Tensor | None = None) -> Seen:
        views = torch.cat(self._global(images, generator))
        if not self.local:
            return Seen(views)
        many = images.repeat(self.local, 1, 1, 1)  # crop-major: all pictures' first crop, then all second
        return Seen(views, local=self._one(many, self.local_size, self.local_scale, self.blur[2], 0.0, generator))
