"""The linear layer of the dense heads: from a token to the pixels of its patch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle


class PatchLinear(nn.Module):
    """One linear layer from a token to ``upsample × upsample`` outputs of its patch.

    A 1x1 convolution and a pixel shuffle: no token sees its neighbours, so the score is the features', not the head's.
    (A transposed convolution whose kernel equals its stride is the same function, and many times slower on a CPU.)
    """

    def __init__(self, inputs: int, outputs: int, upsample: int) -> None:
        super().__init__()
        self.upsample = upsample
        self.linear = nn.Conv2d(inputs, outputs * upsample**2, 1)
        nn.init.normal_(self.linear.weight, std=0.01)  # mmseg's own for its last layer
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, outputs, upsample·H, upsample·W)."""
        return pixel_shuffle(self.linear(x), self.upsample)


class LinearDenseMixin:
    """Makes a :class:`PatchLinear` the whole of one of mmseg's decode heads."""

    def __init__(self, upsample: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conv_seg = PatchLinear(self.channels, self.out_channels, upsample)

    def init_weights(self) -> None:
        """Keep :class:`PatchLinear`'s own initialisation; mmseg's looks for a plain convolution."""

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """One map (B, D, H, W) -> (B, out, upsample·H, upsample·W)."""
        return self.cls_seg(self._transform_inputs(inputs))
