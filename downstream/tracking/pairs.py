"""Training pairs: a template crop and a search crop of one video, drawn from a seed and an index only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor
from torch.utils.data import Dataset

from downstream.tracking.crops import cut, jittered, window_around
from downstream.tracking.frames import FrameStore
from downstream.tracking.videos import Video


@dataclass(frozen=True)
class PairStyle:
    """How pairs are drawn and cut: as in SwinTrack where no other value stands in brackets."""

    template_size: int = 112  # pixels
    search_size: int = 224
    template_factor: float = 2.0  # side of the window in target sizes
    search_factor: float = 4.0
    max_gap: int = 100  # frames between template and search frame
    scale_jitter: float = 0.25  # of the search window, standard deviation of the log scale
    shift_jitter: float = 3.0  # of the search window, see crops.jittered
    brightness: float = 0.4  # both crops times 1 ± this, each its own
    grey: float = 0.05  # share of pairs without colour
    flip: float = 0.5  # share of pairs mirrored
    recolour: float = 0.5  # share of pairs whose red, green and blue change places: new objects from few videos [0]


def draw_frames(video: Video, max_gap: int, rng: np.random.Generator) -> tuple[int, int]:
    """Frame numbers (template, search), at most ``max_gap`` apart, both with a seen target.

    The two differ unless there is no other frame in reach.
    """
    usable = video.usable
    template = int(rng.choice(usable))
    near = usable[(np.abs(usable - template) <= max_gap) & (usable != template)]
    return template, int(rng.choice(near)) if len(near) else template


def to_tensor(crop: np.ndarray) -> Tensor:
    """(S, S, 3) uint8 -> (3, S, S) uint8."""
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))


def make_sample(template_box: np.ndarray, target: np.ndarray | None = None) -> DetDataSample:
    """A data sample of a pair; boxes are x, y, w, h in pixels of their crop.

    ``metainfo["template_box"]`` says where the target is in the template crop, ``gt_instances.bboxes`` (1, 4) as
    x1, y1, x2, y2 where it is in the search crop (training only).
    """
    sample = DetDataSample(metainfo={"template_box": tuple(float(value) for value in template_box)})
    if target is not None:
        corners = np.concatenate([target[:2], target[:2] + target[2:]])[None]
        sample.gt_instances = InstanceData(bboxes=torch.from_numpy(corners).float(), labels=torch.zeros(1).long())
    return sample


class PairDataset(Dataset):
    """``length`` pairs; pair i depends on the seed and on i alone, whatever was asked before.

    Data sets take turns at random with equal shares (as SwinTrack mixes its four), then a video, then two frames.
    Items are ``{"inputs": {"template": (3, T, T), "search": (3, S, S)} uint8 RGB, "data_samples": DetDataSample}``.

    Args:
        groups: videos per data set.
        length: number of pairs.
        seed: of the draw.
        style: sizes and jitter.
        frames: where decoded frames come from.
    """

    def __init__(
        self, groups: Sequence[Sequence[Video]], length: int, seed: int, style: PairStyle, frames: FrameStore
    ) -> None:
        self.groups = groups
        self.length, self.seed, self.style, self.frames = length, seed, style, frames

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng, style = np.random.default_rng((self.seed, index)), self.style
        group = self.groups[rng.integers(len(self.groups))]
        video = group[rng.integers(len(group))]
        first, second = draw_frames(video, style.max_gap, rng)

        template = window_around(video.boxes[first], style.template_factor, style.template_size)
        search = window_around(video.boxes[second], style.search_factor, style.search_size)
        search = jittered(search, video.boxes[second], style.scale_jitter, style.shift_jitter, rng)
        crops = [
            self.coloured(cut(self.frames(video.frames[number]), window), rng)
            for number, window in ((first, template), (second, search))
        ]
        boxes = [template.to_crop(video.boxes[first]), search.to_crop(video.boxes[second])]
        if rng.random() < style.grey:
            crops = [crop.mean(2, keepdims=True).astype(np.uint8).repeat(3, 2) for crop in crops]
        if rng.random() < style.recolour:
            order = rng.permutation(3)
            crops = [crop[..., order] for crop in crops]
        if rng.random() < style.flip:
            crops = [crop[:, ::-1] for crop in crops]
            for crop, box in zip(crops, boxes, strict=True):
                box[0] = crop.shape[1] - box[0] - box[2]
        return {
            "inputs": {"template": to_tensor(crops[0]), "search": to_tensor(crops[1])},
            "data_samples": make_sample(*boxes),
        }

    def coloured(self, crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The crop, brighter or darker."""
        return cv2.convertScaleAbs(crop, alpha=1 + self.style.brightness * rng.uniform(-1, 1))


class FeatureDataset(Dataset):
    """The same pairs after the backbone: ``{"inputs": {"template_features", "search_features"}, "data_samples"}``.

    Args:
        features: (N, D, t, t) and (N, D, s, s).
        samples: their N data samples.
    """

    def __init__(self, features: tuple[Tensor, Tensor], samples: list[DetDataSample]) -> None:
        self.features, self.samples = features, samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        template, search = self.features
        inputs = {"template_features": template[index], "search_features": search[index]}
        return {"inputs": inputs, "data_samples": self.samples[index]}
