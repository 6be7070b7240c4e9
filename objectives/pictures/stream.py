"""Pictures read and decoded when they are needed: for sets larger than memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from objectives.pictures import decoded
from objectives.pictures.crop import Box, central, draw, shrunk
from objectives.pictures.decode import decode
from objectives.pictures.decoded import Decoded
from objectives.pictures.source import Store
from objectives.recipe import Crop


class Stream:
    """See ``source.Source``: crops are cut from the whole picture, resized to bytes of the final size.

    The bytes of the final size, not the crop's own, leave the process that decodes: resizing takes a quarter of the
    decoding's time, while crops of every size, padded to the largest, are four times the memory to move.

    Args:
        store: where the pictures lie.
        fingerprint: names them.
        threads: that read side by side in this process; the workers of a loader read alone.
    """

    cropped = True

    def __init__(self, store: Store, fingerprint: str, threads: int = 1) -> None:
        self.store, self.fingerprint, self.threads = store, fingerprint, threads
        self.classes = store.classes
        self.labels = torch.from_numpy(np.ascontiguousarray(store.labels))
        self.decoded: dict[tuple[int, Crop | None], Decoded] = {}
        self.undecoded = ""  # what it would take to keep the set decoded

    def __len__(self) -> int:
        return len(self.labels)

    def keep_decoded(
        self, size: int, crop: Crop | None, seen: int, cache: Path | None, free_memory: int,
        progress: Callable[[str, int, int], None],
    ) -> None:
        """Decode the whole set once, where it fits and pays.

        Args:
            seen: pictures that the training will see.
            cache: folder for it; None for none.
            free_memory: bytes.
        """
        if cache is None or seen < decoded.PASSES * len(self):
            return
        key = decoded.key(self.fingerprint, size, crop)
        if not decoded.place(cache, key).is_file():  # one that is there has taken its room already
            need, room = decoded.needed(self.store, size, crop), decoded.room(cache, free_memory)
            if need > room:
                self.undecoded = (
                    f"room for the decoded set, twice its {need / 2**30:.0f} GiB free in memory and on the disk of "
                    f"{cache}"
                )
                return
        self.decoded[size, crop] = decoded.make(self.store, size, crop, cache, key, self.threads, progress)

    def squares(self, index: Tensor, size: int) -> Tensor:
        """See ``source.Source``."""
        return self.crops(index.tolist(), [0] * len(index), size, None, 0)

    def crops(self, index: Sequence[int], epochs: Sequence[int], size: int, crop: Crop | None, seed: int) -> Tensor:
        """See ``source.Source``."""
        out = np.empty((len(index), size, size, 3), np.uint8)
        kept = self.decoded.get((size, crop))

        def fill(row: int) -> None:
            out[row] = self._crop(index[row], epochs[row], size, crop, seed, kept)

        if self.threads == 1 or torch.utils.data.get_worker_info() is not None:
            for row in range(len(index)):
                fill(row)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(fill, range(len(index))))
        return torch.from_numpy(out).permute(0, 3, 1, 2)

    def _crop(
        self, index: int, epoch: int, size: int, crop: Crop | None, seed: int, kept: Decoded | None
    ) -> np.ndarray:
        if kept is not None:
            pixels, (width, height) = kept.picture(index)
        else:
            pixels, (width, height) = decode(self.store.read(index), size, crop, self.store.name(index))
        box = central(width, height) if crop is None else draw(width, height, crop, seed, epoch, index)
        return cut(pixels, shrunk(box, width, height, pixels.shape[1], pixels.shape[0]), size)


def cut(pixels: np.ndarray, box: Box, size: int) -> np.ndarray:
    """A box of a picture (h, w, 3) as (size, size, 3): bilinear, averaging where it shrinks, as torchvision's."""
    part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    if part.shape[:2] == (size, size):
        return part
    # a copy: torch takes its quick way through bytes only where a picture lies in one piece (and may be written to)
    x = torch.from_numpy(part.copy()).permute(2, 0, 1)[None]
    y = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return y[0].permute(1, 2, 0).numpy()
