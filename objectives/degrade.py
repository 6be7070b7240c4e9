"""The degradations of "Beyond Masking" (2203.14313): zoom-in, zoom-out, distortion, blur, decolorisation.

Each may be combined with a mask: ``mask={"type": "RandomMask", "ratio": 0.75}``. All are batched tensor operations
on the pictures' device; sizes that the authors give in pixels of 224 are carried to the suite's size in whole patches.
Constants: ``sunsmarterjie/beyond_masking``, commit 1943773 (facts only; where its code cannot run, see each class).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from objectives.corruption import Corruption, Seen
from objectives.precision import sent
from objectives.processes import draw
from objectives.recipe import ObjectiveError
from objectives.registry import CORRUPTIONS, Geometry, build

MARGIN = 32 / 224  # zoom-in: unseen margin on each side, share of the student's picture
SHRUNK = 160 / 224  # zoom-out: side of the view, share of the student's picture


def margin_of(geometry: Geometry) -> int:
    """Pixels of zoom-in's unseen margin: whole patches, at least one (32 at 224 with patch 16)."""
    return max(1, round(MARGIN * geometry.grid)) * geometry.stride


def shrunk_of(geometry: Geometry) -> int:
    """Side in pixels of zoom-out's view: whole patches, smaller than the picture (160 at 224 with patch 16)."""
    if geometry.grid < 2:
        raise ObjectiveError(f"zoom-out needs at least two tokens a side; this backbone has {geometry.grid}")
    return min(max(1, round(SHRUNK * geometry.grid)), geometry.grid - 1) * geometry.stride


class Degradation(Corruption):
    """Degrades, then masks where ``mask`` names a mask."""

    def __init__(self, geometry: Geometry, mask: Mapping[str, Any] | None = None) -> None:
        super().__init__(geometry)
        self.masking = build("corruption", mask, geometry=geometry) if mask else None
        if isinstance(self.masking, Degradation) or getattr(self.masking, "attentive", False):
            raise ObjectiveError("objective.corruption.mask: RandomMask or BlockMask")
        self.even = self.masking is None or self.masking.even
        self.hides = self.masking.hides if self.masking else None

    @abstractmethod
    def degrade(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Views (B, 3, V, V) -> what the student sees (B, 3, S, S), and the offset of :class:`Seen`."""

    def __call__(self, images: Tensor, generator: torch.Generator, attention: Tensor | None = None) -> Seen:
        degraded, offset = self.degrade(images, generator)
        mask = self.masking(degraded, generator).mask if self.masking else None
        return Seen(degraded, mask, offset)


@CORRUPTIONS.register_module()
class ZoomIn(Degradation):
    """The student sees the middle of a larger view: 224 of 288 pixels."""

    def __init__(self, geometry: Geometry, mask: Mapping[str, Any] | None = None) -> None:
        super().__init__(geometry, mask)
        self.margin = margin_of(geometry)
        self.view = geometry.input_size + 2 * self.margin

    def degrade(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, None]:
        m = self.margin
        return images[..., m:-m, m:-m].contiguous(), None


def _per_image_or_batch(make: Callable[[int], Tensor], images: Tensor, per_image: bool) -> Tensor:
    """``make(n)`` for each picture, (B, …), or once for all, (1, …)."""
    return draw(make, len(images)) if per_image else make(1)


def reflect_into(images: Tensor, offset: Tensor, size: int) -> Tensor:
    """Paste views (B, 3, V, V) at ``offset`` (B, 2) into canvases (B, 3, size, size), mirrored beyond their edges.

    The edge pixel is repeated (symmetric reflection), as by flipping the neighbouring content.
    """
    count, channels, side, _ = images.shape

    def places(start: Tensor) -> Tensor:
        index = torch.arange(size) - start.cpu()[:, None]
        index = torch.where(index < 0, -1 - index, index)
        return sent(torch.where(index >= side, 2 * side - 1 - index, index), images.device)  # (B, size)

    rows = places(offset[:, 0]).view(count, 1, size, 1).expand(-1, channels, -1, side)
    columns = places(offset[:, 1]).view(count, 1, 1, size).expand(-1, channels, size, -1)
    return images.gather(2, rows).gather(3, columns)


@CORRUPTIONS.register_module()
class ZoomOut(Degradation):
    """A smaller view (160 of 224 pixels) at a random place of the canvas, surrounded by its own mirror image.

    The offset is drawn once a batch, as by the authors; ``per_image`` draws it for each picture.
    """

    def __init__(
        self, geometry: Geometry, mask: Mapping[str, Any] | None = None, per_image: bool = False
    ) -> None:
        super().__init__(geometry, mask)
        self.view, self.per_image = shrunk_of(geometry), per_image
        if geometry.input_size > 2 * self.view:
            raise ObjectiveError("zoom-out: the view is less than half of the picture; its mirror image cannot fill it")

    def degrade(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        size = self.geometry.input_size
        offset = _per_image_or_batch(
            lambda count: torch.randint(0, size - self.view, (count, 2), generator=generator), images, self.per_image
        ).expand(len(images), 2)
        return reflect_into(images, offset, size), offset


@CORRUPTIONS.register_module()
class Distort(Degradation):
    """A fisheye warp: place g of the output shows g + (c - g)·|c - g|·m, centre c and strength m drawn per picture.

    Places run over [-1, 1]; c ~ U(-1, 1)², m ~ U(``strength``); beyond the picture it is 0.
    """

    def __init__(
        self, geometry: Geometry, mask: Mapping[str, Any] | None = None, strength: tuple[float, float] = (0.15, 0.25)
    ) -> None:
        super().__init__(geometry, mask)
        self.low, self.high = strength

    def degrade(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, None]:
        draws = sent(draw(lambda count: torch.rand(count, 3, generator=generator), len(images)), images.device)
        centre = (2 * draws[:, :2] - 1).view(-1, 1, 1, 2)
        strength = (self.low + draws[:, 2] * (self.high - self.low)).view(-1, 1, 1, 1)
        axis = torch.linspace(-1, 1, images.shape[-1], device=images.device)
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        places = torch.stack([x, y], -1)
        towards = centre - places
        grid = places + towards * towards.norm(dim=-1, keepdim=True) * strength
        return F.grid_sample(images, grid.to(images.dtype), align_corners=True, padding_mode="zeros"), None


@CORRUPTIONS.register_module()
class Blur(Degradation):
    """A random convolution, weights ~ N(1 / kernel², ``spread``), drawn per picture.

    ``mixing``: every output channel sees all three, as the authors' picture of it suggests (their code cannot run:
    its arguments are in the wrong order); False convolves each channel for itself. UNVERIFIED which of the two it was.
    """

    def __init__(
        self, geometry: Geometry, mask: Mapping[str, Any] | None = None, kernel: int = 7, spread: float = 0.02,
        mixing: bool = True,
    ) -> None:
        super().__init__(geometry, mask)
        if kernel < 1 or kernel % 2 == 0:
            raise ObjectiveError(f"objective.corruption.kernel: an odd number of pixels, not {kernel}")
        self.kernel, self.spread, self.mixing = kernel, spread, mixing

    def weights(self, count: int, generator: torch.Generator) -> Tensor:
        """(B, 3, 3 or 1, k, k)."""
        shape = (count, 3, 3 if self.mixing else 1, self.kernel, self.kernel)
        return 1 / self.kernel**2 + self.spread * torch.randn(shape, generator=generator)

    def degrade(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, None]:
        count, channels, height, width = images.shape
        weights = sent(draw(lambda number: self.weights(number, generator), count), images.device).to(images.dtype)
        groups = count if self.mixing else count * channels
        flat = images.reshape(1, count * channels, height, width)
        blurred = F.conv2d(flat, weights.flatten(0, 1), padding=self.kernel // 2, groups=groups)
        return blurred.view_as(images), None


@CORRUPTIONS.register_module()
class Decolorize(Degradation):
    """One grey channel aR + bG + cB, each coefficient ~ U(0, ``high``), once a batch (``per_image``: per picture).

    The authors embed the single channel with a patch embedding of one; here it is repeated thrice, the same function
    with shared weights, so that the backbone stays the one that every task fine-tunes.
    """

    def __init__(
        self, geometry: Geometry, mask: Mapping[str, Any] | None = None, high: float = 0.667, per_image: bool = False
    ) -> None:
        super().__init__(geometry, mask)
        self.high, self.per_image = high, per_image

    def degrade(self, images: Tensor, generator: torch.Generator) -> tuple[Tensor, None]:
        draws = _per_image_or_batch(
            lambda count: torch.rand(count, 3, 1, 1, generator=generator), images, self.per_image
        )
        grey = (images * sent(self.high * draws, images.device).to(images.dtype)).sum(1, keepdim=True)
        return grey.expand_as(images).contiguous(), None
