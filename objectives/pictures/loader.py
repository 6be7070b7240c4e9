"""Batches of pre-training pictures: which picture comes when, read by how many processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from objectives.pictures.memory import Pictures
from objectives.pictures.source import Source
from objectives.recipe import Crop

WINDOW = 16_384  # pictures that are mixed with one another where they lie together in files
PREFETCH = 4  # batches that each process has ready, at most
MOST_WORKERS = 32  # more have not been seen to help any device
HELD = 0.125  # share of the free memory that batches waiting for the device may take


@dataclass(frozen=True)
class Reading:
    """How the batches of a training are read.

    Attributes:
        size: side of the crops; crop: see ``source.Source.crops``.
        workers: processes besides this one; 0 to read in this one.
        prefetch: batches that each of them has ready; None without workers.
    """

    batch: int
    size: int
    crop: Crop | None
    seed: int
    workers: int
    prefetch: int | None


def chosen(
    batch: int, size: int, crop: Crop | None, seed: int, device: str, cores: int, free_memory: int,
    in_memory: bool = False,
) -> Reading:
    """Workers and prefetch for a machine.

    On a GPU one core is the training's and the others read. On a CPU the training has all cores: it reads by
    itself with as many threads, while no step is made, because processes beside it would only slow each other.
    Pictures that lie in memory need no reader anywhere: a batch of them is a copy.

    Args:
        cores: that this process may use.
        free_memory: bytes.
        in_memory: the pictures lie in memory, decoded.
    """
    reads = device.startswith("cuda") and cores > 1 and not in_memory
    workers = min(MOST_WORKERS, max(1, cores - 1)) if reads else 0
    if not workers:
        return Reading(batch, size, crop, seed, 0, None)
    waiting = int(HELD * free_memory) // (workers * batch * 3 * size**2)
    return Reading(batch, size, crop, seed, workers, max(1, min(PREFETCH, waiting)))


class _Batches(Dataset):
    """Whole batches by (epoch, index) pairs; by bare indices where each epoch's pictures are the same."""

    def __init__(self, source: Source, reading: Reading) -> None:
        self.source, self.reading = source, reading

    def __len__(self) -> int:
        return len(self.source)

    def __getitems__(self, places: list[Any]) -> dict[str, Tensor]:  # torch fetches a whole batch by this name
        pairs = [place if isinstance(place, tuple) else (0, place) for place in places]
        epochs, indices = ([pair[k] for pair in pairs] for k in (0, 1))
        r, index = self.reading, torch.tensor(indices)
        images = self.source.crops(indices, epochs, r.size, r.crop, r.seed)
        return {"images": images, "labels": self.source.labels[index], "index": index}


class Order(Sampler):
    """Endless (epoch, index) pairs: in each epoch every picture once, shuffled by (seed, epoch).

    Pictures that lie together in files are mixed in windows of at least :data:`WINDOW`, made of whole files in random
    order, so that reading stays near to sequential. Each process of a distributed training takes its share in turn.
    """

    def __init__(self, blocks: Sequence[int], seed: int) -> None:
        self.blocks, self.count, self.seed = torch.tensor(list(blocks)), sum(blocks), seed
        self.rank, self.world = get_dist_info()
        self.start = 0

    def __len__(self) -> int:
        return self.count

    def skip(self, count: int) -> None:
        """Begin after ``count`` pictures of this process; mmengine calls it where a training is resumed."""
        self.start = count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        place = self.rank + self.start * self.world
        while True:
            epoch, within = divmod(place, self.count)
            for index in self.epoch(epoch)[within :: self.world].tolist():
                yield epoch, index
                place += self.world

    def epoch(self, epoch: int) -> Tensor:
        """The pictures in an epoch's order."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        if len(self.blocks) == 1:
            return torch.randperm(self.count, generator=generator)
        starts = self.blocks.cumsum(0) - self.blocks
        order = torch.randperm(len(self.blocks), generator=generator).tolist()
        windows: list[Tensor] = []
        parts: list[Tensor] = []
        held = 0
        for number, block in enumerate(order):
            parts.append(starts[block] + torch.arange(int(self.blocks[block])))
            held += len(parts[-1])
            if held >= WINDOW or number == len(order) - 1:
                window = torch.cat(parts)
                windows.append(window[torch.randperm(held, generator=generator)])
                parts, held = [], 0
        return torch.cat(windows)


def loader(source: Source, reading: Reading, device: str) -> DataLoader:
    """Endless batches ``{"images": uint8 (B, 3, S, S), "labels": (B,), "index": (B,)}``."""
    if isinstance(source, Pictures):
        sampler: Sampler = InfiniteSampler(source, shuffle=True, seed=reading.seed)
    else:
        sampler = Order(source.store.blocks, reading.seed)  # type: ignore[attr-defined]
    return DataLoader(
        _Batches(source, reading), reading.batch, sampler=sampler, num_workers=reading.workers,
        prefetch_factor=reading.prefetch, collate_fn=_as_is, persistent_workers=False,
        pin_memory=device.startswith("cuda"),
    )


def _as_is(batch: Any) -> Any:
    return batch
