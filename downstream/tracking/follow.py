"""Tracking at test time: all videos side by side, one batch per time step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from downstream.tracking.crops import Window, cut, window_around
from downstream.tracking.frames import FrameStore
from downstream.tracking.metrics import Track
from downstream.tracking.model import SingleObjectTracker
from downstream.tracking.pairs import PairStyle, make_sample, to_tensor
from downstream.tracking.videos import Video


def keep_inside(box: np.ndarray, size: tuple[int, int], smallest: float) -> np.ndarray | None:
    """The part of ``box`` (x, y, w, h) inside a picture of (width, height); None where nothing of it is inside.

    A part narrower than ``smallest`` pixels is widened about its centre, so that the next window does not collapse.
    """
    limit = np.asarray(size, float)
    start, end = np.clip(box[:2], 0, limit), np.clip(box[:2] + box[2:], 0, limit)
    extent = end - start
    if not np.isfinite(extent).all() or (extent <= 0).any():
        return None
    wider = np.minimum(np.maximum(extent, smallest), limit)
    start = np.clip(start - (wider - extent) / 2, 0, limit - wider)
    return np.concatenate([start, wider])


@torch.no_grad()
def follow(
    model: SingleObjectTracker,
    videos: Sequence[Video],
    style: PairStyle,
    frames: FrameStore,
    batch_size: int = 32,
    smallest: float = 10.0,
    size_rate: float = 1.0,
    report: Callable[[int], None] = lambda frames: None,
) -> list[Track]:
    """One pass over each video from its first box, no restart; ``batch_size`` videos at a time.

    The search window of a frame surrounds the box of the frame before (its own size included), and stays where it was
    when the prediction leaves the picture. ``size_rate`` is the share of the predicted size in the new one (1 in
    SwinTrack, less in SiamFC): a size that is a little too large makes the next window too large, and so on until the
    target is lost. ``report`` is called with the number of frames tracked so far.
    """
    model.eval()
    order = sorted(range(len(videos)), key=lambda index: -len(videos[index].frames))  # equal lengths together
    tracks: dict[int, Track] = {}
    done = 0
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        boxes = {index: [videos[index].boxes[0].astype(float)] for index in chunk}
        sizes, templates, samples = {}, [], {}
        for index in chunk:
            first = frames(videos[index].frames[0])
            sizes[index] = (first.shape[1], first.shape[0])
            window = window_around(videos[index].boxes[0], style.template_factor, style.template_size)
            templates.append(to_tensor(cut(first, window)))
            samples[index] = window.to_crop(videos[index].boxes[0])
        prepared = model.data_preprocessor({"inputs": {"template": torch.stack(templates)}})
        features = dict(zip(chunk, model.extract_feat(prepared["inputs"]["template"]), strict=True))
        for step in range(1, max(len(videos[index].frames) for index in chunk)):
            active = [index for index in chunk if step < len(videos[index].frames)]
            windows, crops = [], []
            for index in active:
                windows.append(window_around(boxes[index][-1], style.search_factor, style.search_size))
                crops.append(to_tensor(cut(frames(videos[index].frames[step]), windows[-1])))
            found = model.test_step(
                {
                    "inputs": {
                        "template_features": torch.stack([features[index] for index in active]),
                        "search": torch.stack(crops),
                    },
                    "data_samples": [make_sample(samples[index]) for index in active],
                }
            )
            corners = torch.cat([sample.pred_instances.bboxes for sample in found]).double().cpu().numpy()
            for index, window, own in zip(active, windows, corners, strict=True):
                box = picture_box(own, window)
                kept = keep_inside(damped(box, boxes[index][-1], size_rate), sizes[index], smallest)
                boxes[index].append(boxes[index][-1] if kept is None else kept)
            done += len(active)
            report(done)
        for index in chunk:
            video = videos[index]
            tracks[index] = Track(video.name, np.stack(boxes[index]), video.boxes, video.visible, sizes[index])
    return [tracks[index] for index in range(len(videos))]


def picture_box(corners: np.ndarray, window: Window) -> np.ndarray:
    """x1, y1, x2, y2 in the crop -> x, y, w, h in the picture."""
    return window.to_picture(np.concatenate([corners[:2], corners[2:] - corners[:2]]))


def damped(box: np.ndarray, before: np.ndarray, rate: float) -> np.ndarray:
    """``box`` (x, y, w, h) with its centre kept and its size between that of ``before`` (rate 0) and its own (rate 1).

    Sizes are mixed as logarithms, so that growing and shrinking are alike.
    """
    size = np.maximum(before[2:], 1e-6) ** (1 - rate) * np.maximum(box[2:], 1e-6) ** rate
    return np.concatenate([box[:2] + (box[2:] - size) / 2, size])
