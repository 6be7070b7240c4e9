"""Features of a frozen backbone: computed once, kept as maps, given to heads as if the backbone had just run."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from downstream.task import Job

EXTRACT_BATCH = 64
LARGE = 4096  # bytes of a tensor that is worth a place on the disk
SHARE = 0.25  # of a GPU's free memory that features may take: other processes may be at work on it, too

Maps = tuple[Tensor, ...]


class CachedFeatures(Dataset):
    """Maps of a frozen backbone, one tensor (N, D, H, W) a level, with the framework's data samples.

    Args:
        maps: of all pictures.
        samples: of all pictures.
        rows: which of them it holds, in order; None: all.
    """

    def __init__(self, maps: Sequence[Tensor], samples: list[Any], rows: Tensor | None = None) -> None:
        self.maps, self.samples = tuple(maps), samples
        self.rows = torch.arange(len(samples)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:  # torch fetches a whole batch by this name
        rows = self.rows[torch.as_tensor(indices)]
        inputs = tuple(m[rows.to(m.device, non_blocking=True)] for m in self.maps)
        return {"inputs": inputs, "data_samples": [self.samples[i] for i in rows.tolist()]}

    def part(self, indices: Sequence[int]) -> CachedFeatures:
        """A part of it; nothing is copied."""
        return CachedFeatures(self.maps, self.samples, self.rows[torch.as_tensor(list(indices))])

    def levels(self, chosen: Sequence[int]) -> CachedFeatures:
        """The same pictures with some of the maps."""
        return CachedFeatures([self.maps[i] for i in chosen], self.samples, self.rows)


class SamplesOnDisk:
    """Moves the large tensors of data samples (label maps, heat maps) to a file without a name, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `finish`)
        self.places: list[tuple[BaseDataElement, str, Tensor, int]] = []

    def take(self, sample: BaseDataElement) -> None:
        """Write its tensors; they are gone until :meth:`finish`."""
        for part, name, value in _tensors(sample):
            if value.nbytes >= LARGE:
                self.places.append((part, name, value.new_empty(()).expand(value.shape), self.file.tell()))
                self.file.write(value.contiguous().numpy().tobytes() + bytes(-value.nbytes % 64))
                part.pop(name)

    def finish(self) -> None:
        """Give every sample its tensors again, as views of the file."""
        if not self.places:
            return
        self.file.flush()
        buffer = mmap.mmap(self.file.fileno(), 0)  # alive as long as one of the tensors
        for part, name, like, place in self.places:
            flat = torch.frombuffer(buffer, dtype=like.dtype, count=like.numel(), offset=place)
            setattr(part, name, flat.view(like.shape))
        self.places.clear()
        self.file.close()


def _tensors(sample: BaseDataElement) -> Iterator[tuple[BaseDataElement, str, Tensor]]:
    """Each tensor of a data sample with the part of it that holds it."""
    for name, value in list(sample.items()):
        if isinstance(value, BaseDataElement):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield sample, name, value


class Pass(nn.Module):
    """Stands in for the backbone while heads are trained: what comes in are maps already."""

    def forward(self, maps: Maps) -> Maps:
        return maps


class PassPreprocessor(BaseDataPreprocessor):
    """Stands in for the model's preprocessor: maps and their samples are moved to the device, unless they lie there."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        return data if lie_on(self.device, data["inputs"]) else self.cast_data(data)


def lie_on(device: torch.device, tensors: Iterable[Tensor]) -> bool:
    """Whether all are there already. mmengine would copy each of their samples nonetheless, which costs more than a
    step of a small head.
    """
    return all(tensor.device.type == device.type for tensor in tensors)


def stand_in(model: BaseModel, job: Job) -> tuple[nn.Module, nn.Module]:
    """Let ``model`` take features in the place of pictures; returns its own backbone and preprocessor."""
    real = model.backbone, model.data_preprocessor
    model.backbone, model.data_preprocessor = Pass(), PassPreprocessor().to(job.device)
    return real


@torch.no_grad()
def each_batch(model: BaseModel, data: Dataset, job: Job, workers: int) -> Iterator[tuple[Maps, list]]:
    """Maps and samples of all of ``data`` in order, a batch at a time, on the model's device."""
    model.eval()
    loader = DataLoader(data, EXTRACT_BATCH, num_workers=workers, collate_fn=pseudo_collate)
    for number, batch in enumerate(loader, 1):
        batch = model.data_preprocessor(batch, True)
        yield tuple(x.float() for x in model.backbone(batch["inputs"])), batch["data_samples"]
        job.progress("features", min(number * EXTRACT_BATCH, len(data)), len(data))


def cache(model: BaseModel, data: Dataset, job: Job, workers: int, limit_mb: float) -> CachedFeatures:
    """The backbone once over all of ``data``.

    What a neck does without being trained (its method ``fixed``: the mean over the picture) is done here, once.

    Args:
        limit_mb: MiB of features and samples that are kept in memory, on a GPU in its own as far as :data:`SHARE` of
            what is free there goes; more lie in files below the job's folder, which have no name and go with the
            process, however it ends.

    Raises:
        OSError: the disk has no room for them.
    """
    fixed: Callable[[Maps], Maps] = getattr(getattr(model, "neck", None), "fixed", lambda maps: maps)
    kept: list[Tensor] = []
    samples: list[Any] = []
    disk: SamplesOnDisk | None = None
    place, done = torch.device("cpu"), 0
    for batch, found in each_batch(model, data, job, workers):
        batch = fixed(batch)
        if not done:
            each = sum(x[0].nbytes for x in batch) + sum(value.nbytes for *_, value in _tensors(found[0]))
            disk = SamplesOnDisk(job.work_dir) if each * len(data) > limit_mb * 2**20 else None
            place = batch[0].device if not disk and each * len(data) < _free(batch[0].device) else place
            kept = [_room((len(data), *x.shape[1:]), job.work_dir if disk else None, place) for x in batch]
        for all_of_it, part in zip(kept, batch, strict=True):
            all_of_it[done : done + len(found)] = part
        if place.type != batch[0].device.type:
            found = [sample.to(place) for sample in found]
        for sample in found if disk else ():
            disk.take(sample)
        samples += found
        done += len(found)
    if disk:
        disk.finish()
    return CachedFeatures(kept, samples)


def _free(device: torch.device) -> float:
    """Bytes that features may take on a device; a processor's memory is bounded by the settings alone."""
    return SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else float("inf")


def _room(shape: tuple[int, ...], folder: Path | None, device: torch.device) -> Tensor:
    """Float32 in a device's memory, or in a file of ``folder`` without a name."""
    if folder is None:
        return torch.empty(shape, device=device)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)) * 4)  # a full disk: an error here, no crash later
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))  # type: ignore[call-overload]
