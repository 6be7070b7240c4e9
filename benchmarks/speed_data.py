"""Speed of reading pictures: the pre-training loader beside torchvision's, on the same files and crops.

Both end with the same thing: random crops, flipped and normalised, a float batch on the device. torchvision's is the
pipeline of its reference training (Pillow decodes, RandomResizedCrop, flip, ToTensor and Normalize a picture at a time,
DataLoader); ours decodes as ``objectives.pictures`` does and flips and normalises the batch on the device, which is
timed, too. They take turns (A B A B …), with as many worker processes each.
"""

from __future__ import annotations

import io
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as F

from benchmarks.environment import environment
from benchmarks.errors import RequestError
from benchmarks.progress import Reporter
from objectives.pictures.augment import finish
from objectives.pictures.crop import draw
from objectives.pictures.finding import open_store
from objectives.pictures.loader import Order, Reading, loader
from objectives.pictures.source import PictureError, Store
from objectives.pictures.stream import Stream
from objectives.recipe import Crop

CROP = Crop()
PREFETCH = 2  # batches that a worker has ready: torch's own default


@dataclass(frozen=True)
class ReadingSpeed:
    """What was measured of one loader.

    Attributes:
        images_per_second: median over the turns; ``spread`` is half the distance of the extremes, same unit.
        ratio: images per second over those of torchvision's.
        core_ms_per_image: time of processor cores, of this process and the workers (median; None where the system does
            not tell); unlike the rates it is hardly changed by what else the machine does.
        core_ratio: torchvision's core time over this one's.
    """

    name: str
    images_per_second: float
    spread: float
    ratio: float
    core_ms_per_image: float | None
    core_ratio: float | None


class _Torchvision(Dataset):
    """Pictures by (epoch, index), the crops being those that our loader draws."""

    def __init__(self, store: Store, size: int, seed: int) -> None:
        self.store, self.size, self.seed = store, size, seed

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = place
        with Image.open(io.BytesIO(self.store.read(index))) as file:
            picture = file.convert("RGB")
        box = draw(*picture.size, CROP, self.seed, epoch, index)
        picture = F.resized_crop(picture, box.top, box.left, box.height, box.width, [self.size, self.size])
        if torch.rand(1) < 0.5:
            picture = F.hflip(picture)
        return F.normalize(F.to_tensor(picture), IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), index


def torchvisions(store: Store, reading: Reading, device: torch.device) -> Iterator[Tensor]:
    """Normalised batches (B, 3, S, S) on the device as torchvision's reference training makes them."""
    batches = DataLoader(
        _Torchvision(store, reading.size, reading.seed), reading.batch, sampler=Order(store.blocks, reading.seed),
        num_workers=reading.workers, prefetch_factor=reading.prefetch, pin_memory=device.type == "cuda",
    )
    for images, _ in batches:
        yield images.to(device, non_blocking=True)


def ours(store: Store, reading: Reading, device: torch.device) -> Iterator[Tensor]:
    """The same by our loader."""
    mean, std = (
        torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    for batch in loader(Stream(store, ""), reading, device.type):
        images = batch["images"].to(device, non_blocking=True)
        yield finish(images, (torch.rand(len(images)) < 0.5).to(device), mean, std)


CONTESTANTS: dict[str, Callable[[Store, Reading, torch.device], Iterator[Tensor]]] = {
    "torchvision RandomResizedCrop + DataLoader": torchvisions, "this loader": ours,
}


def found(folder: Path, scratch: Path) -> Store:
    """The pictures of a folder: class folders, or tar or parquet files.

    Raises:
        RequestError: there are none.
    """
    if not folder.is_dir():
        raise RequestError(f"--data {folder}: no such folder")
    try:
        return open_store(folder.resolve().parent, folder.resolve().name, scratch, "timed")
    except PictureError as error:
        raise RequestError(f"--data {folder}: {error}") from error


def measure(
    store: Store, batch: int, size: int, workers: int, device: torch.device, batches: int, turns: int,
    reporter: Reporter | None = None,
) -> list[ReadingSpeed]:
    """Time both loaders in turns.

    A turn is one continuous stretch: its first batches, which the workers start with, are not timed; each turn reads
    other pictures of the order than the one before.

    Args:
        batches: that a turn is timed over.
        workers: processes of each loader; 0: in this process.
    """
    prefetch = PREFETCH if workers else None
    torch.set_num_threads(1)  # the workers have the cores
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    busy: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for turn in range(turns):
        for number, (name, contestant) in enumerate(CONTESTANTS.items()):
            if reporter:
                reporter.report(name, turn * len(CONTESTANTS) + number + 1, turns * len(CONTESTANTS))
            iterator = contestant(store, Reading(batch, size, CROP, turn, workers, prefetch), device)
            for _ in range(max(1, workers * (prefetch or 0))):  # those that were ready before the clock began
                next(iterator)
            started, before = time.perf_counter(), _core_seconds()
            for _ in range(batches):
                next(iterator)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            rates[name].append(batches * batch / (time.perf_counter() - started))
            busy[name].append((_core_seconds() - before) / (batches * batch) * 1e3)
            iterator.close()  # type: ignore[attr-defined]  # its workers end
    base, base_busy = (statistics.median(next(iter(values.values()))) for values in (rates, busy))
    speeds = []
    for name, own in rates.items():
        median, cores = statistics.median(own), statistics.median(busy[name])
        known = cores > 0
        speeds.append(ReadingSpeed(
            name, round(median, 1), round((max(own) - min(own)) / 2, 1), round(median / base, 2),
            round(cores, 2) if known else None, round(base_busy / cores, 2) if known else None,
        ))
    return speeds


def _core_seconds() -> float:
    """Of this process and its children so far (Linux; 0 elsewhere)."""
    seconds = 0.0
    for process in [os.getpid(), *(child.pid for child in active_children())]:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system time
    return seconds


def record(
    speeds: list[ReadingSpeed], store: Store, batch: int, size: int, workers: int, device: str,
    batches: int, turns: int,
) -> dict[str, Any]:
    """What is kept of a measurement."""
    return {
        "format": 1, "kind": "data", "pictures": len(store.labels), "layout": type(store).__name__,
        "bytes_per_picture": round(store.nbytes / len(store.labels)), "input_size": size, "batch": batch,
        "workers": workers, "batches": batches, "turns": turns,
        "rows": [asdict(speed) for speed in speeds], "environment": environment(device),
    }
