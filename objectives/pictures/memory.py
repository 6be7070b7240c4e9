"""Pictures that fit into memory at the suite's size: crops are cut on the device, from the picture shrunk once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from objectives.recipe import Crop


@dataclass(frozen=True)
class Pictures:
    """The pre-training pictures in memory: uint8 (N, 3, S, S), class labels (N,), and a fingerprint of both."""

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    fingerprint: str

    cropped: ClassVar[bool] = False

    def __len__(self) -> int:
        return len(self.images)

    def squares(self, index: Tensor, size: int) -> Tensor:
        """See ``source.Source``; they come as they are kept, whatever the size."""
        return self.images[index]

    def crops(self, index: Sequence[int], epochs: Sequence[int], size: int, crop: Crop | None, seed: int) -> Tensor:
        """See ``source.Source``; left whole."""
        return self.images[torch.as_tensor(index)]
