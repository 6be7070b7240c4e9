"""Features of a frozen backbone: computed once, kept as maps, given to heads as if the backbone had just run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseDataPreprocessor, BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from downstream.task import Job

EXTRACT_BATCH = 64


class CachedFeatures(Dataset):
    """Maps of a frozen backbone, one tensor (N, D, H, W) a level, with the framework's data samples."""

    def __init__(self, maps: Sequence[Tensor], samples: Sequence[Any]) -> None:
        self.maps, self.samples = tuple(maps), list(samples)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, indices: list[int]) -> dict[str, Any]:  # torch fetches a whole batch by this name
        index = torch.as_tensor(indices)
        return {"inputs": tuple(m[index] for m in self.maps), "data_samples": [self.samples[i] for i in indices]}

    def part(self, indices: Sequence[int]) -> CachedFeatures:
        """A part of it."""
        index = torch.as_tensor(list(indices))
        return CachedFeatures([m[index] for m in self.maps], [self.samples[i] for i in indices])


class Pass(nn.Module):
    """Stands in for the backbone while heads are trained: what comes in are maps already."""

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return maps


class PassPreprocessor(BaseDataPreprocessor):
    """Stands in for the model's preprocessor: maps and samples are only moved to the device."""

    def forward(self, data: dict[str, Any], training: bool = False) -> dict[str, Any]:
        return self.cast_data(data)

    def cast_data(self, data: Any) -> Any:
        if isinstance(data, BaseDataElement):  # copied by .to() even where it lies there already
            return data if self.device.type == "cpu" else data.to(self.device)
        return super().cast_data(data)


@torch.no_grad()
def each_batch(model: BaseModel, data: Dataset, job: Job, workers: int) -> Iterator[tuple[tuple[Tensor, ...], list]]:
    """Maps and samples of all of ``data`` in order, a batch at a time, on the model's device."""
    model.eval()
    loader = DataLoader(data, EXTRACT_BATCH, num_workers=workers, collate_fn=pseudo_collate)
    for number, batch in enumerate(loader, 1):
        batch = model.data_preprocessor(batch, True)
        yield tuple(x.float() for x in model.backbone(batch["inputs"])), batch["data_samples"]
        job.progress("features", min(number * EXTRACT_BATCH, len(data)), len(data))


def cache(model: BaseModel, data: Dataset, job: Job, workers: int) -> CachedFeatures:
    """The backbone once over all of ``data``."""
    maps: list[list[Tensor]] = []
    samples: list[Any] = []
    for batch, found in each_batch(model, data, job, workers):
        maps.append([x.cpu() for x in batch])
        samples += [sample.to("cpu") for sample in found]
    return CachedFeatures([torch.cat(level) for level in zip(*maps, strict=True)], samples)
