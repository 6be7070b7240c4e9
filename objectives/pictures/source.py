"""What pre-training asks of its pictures, and what a stream asks of the place that it reads from. Light (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from objectives.recipe import Crop, ObjectiveError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp")  # of picture files


class PictureError(ObjectiveError):
    """A picture, or the file that it lies in, is missing or damaged; the message is one line naming it and the mend."""

    def __init__(self, message: str) -> None:  # of an error in a worker, torch makes a text that ends with ours
        super().__init__(message.rstrip().splitlines()[-1].removeprefix(f"{__name__}.PictureError: "))


class Source(Protocol):
    """The pre-training pictures.

    Attributes:
        labels: class labels (N,), int64, from 0.
        classes: the classes' names in the labels' order.
        fingerprint: names the pictures and labels.
        cropped: whether :meth:`crops` cuts; else the objective does, on the device.
    """

    @property
    def labels(self) -> Tensor: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def cropped(self) -> bool: ...

    def __len__(self) -> int: ...

    def squares(self, index: Tensor, size: int) -> Tensor:
        """The central squares of pictures (B,), uint8 (B, 3, S, S); S is ``size``, or as they are kept in memory."""

    def crops(self, index: Sequence[int], epochs: Sequence[int], size: int, crop: Crop | None, seed: int) -> Tensor:
        """RandomResizedCrops of pictures, uint8 (B, 3, S, S); each depends on (seed, epoch, picture) alone.

        ``crop=None``: the central squares.
        """


class Store(Protocol):
    """Where encoded pictures lie.

    Attributes:
        labels: (N,), int64.
        classes: the classes' names.
        blocks: lengths of the runs of pictures that lie together in a file and are best read together; their sum is N.
        nbytes: of all encoded pictures, as far as known without reading them.
    """

    labels: np.ndarray
    classes: tuple[str, ...]
    blocks: Sequence[int]
    nbytes: int

    def read(self, index: int) -> bytes | memoryview:
        """A picture's file.

        Raises:
            PictureError: it is not there any more.
        """

    def name(self, index: int) -> str:
        """How a message names a picture."""
