"""Renders and writes everything that a spec asks for, several batches side by side."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks import signals
from benchmarks.scenes import CLASSES, VERSION, Progress, SceneError, SceneSpec, layout, raycast, video
from benchmarks.scenes.writers import Noted, Writer
from objectives.machine import available_memory, keep_freed_memory

PIXELS = 12 * 128**2  # rendered at once: enough to hide a call's cost, few enough to stay in the cache
MEMORY = 3 * 2**30 // 2  # bytes of a process that renders, with room to spare
FEW = 600  # pictures and frames: they take one process as long as another one takes to begin
LEAST_SEEN = {"main": 0.6, "figure": 0.5}  # of the unoccluded pixels
LEAST_MAIN = 0.03  # of the picture's pixels


def fill(folder: Path, spec: SceneSpec, progress: Progress) -> str:
    """Fill a folder and return the fingerprint; in as many processes as torch would use threads, one thread each.

    Batches side by side rather than torch's own threads inside a batch: those wait for each other at every operation,
    which costs far more than it gains as soon as another process wants a core. Processes rather than threads, because
    half of the work is Python's: composing scenes, placing calls.

    Raises:
        OSError: something cannot be written.
        SceneError: a process was killed.
    """
    writer = Writer(folder, spec.size)
    threads = torch.get_num_threads()
    pool = _pool(min(threads, available_memory() // MEMORY), spec)
    try:
        for split, number, count in (
            ("train", layout.TRAIN, spec.pictures_train), ("val", layout.VAL, spec.pictures_val)
        ):
            writer.folders(split, count)
            batches = _batches(count, spec.size)
            with signals.ignored_by_children():
                work = [pool.submit(_pictures, folder, spec, split, number, batch) for batch in batches]
            _watch(work, f"{split} pictures", count, progress, writer.noted)
        for split, number, count in (
            ("training", layout.VIDEO_TRAIN, spec.videos_train), ("testing", layout.VIDEO_TEST, spec.videos_test)
        ):
            with signals.ignored_by_children():
                work = [pool.submit(_video, folder, spec, split, number, index) for index in range(count)]
            _watch(work, f"{split} videos", count, progress, writer.noted)
        labels = writer.close()
    except BrokenProcessPool as error:
        raise SceneError("a process that renders scenes ended; if nothing above says why, it was killed (out of "
                         "memory?): the same command renders them anew") from error
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    return hashlib.sha256(json.dumps([asdict(spec), VERSION, labels], sort_keys=True).encode()).hexdigest()


def _batches(count: int, size: int) -> list[range]:
    """Which of ``count`` pictures of ``size`` pixels are rendered together."""
    step = max(1, PIXELS // size**2)
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def _pool(count: int, spec: SceneSpec) -> Executor:
    """What renders: processes where there is enough to do for their start to pay, else a thread of this one."""
    pictures = spec.pictures_train + spec.pictures_val
    frames = spec.videos_train * spec.frames_train + spec.videos_test * spec.frames_test
    if count <= 1 or pictures + frames < FEW:
        return ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
    return ProcessPoolExecutor(count, get_context("spawn"), initializer=_begin)


def _begin() -> None:
    """Of a process that renders: it ignores interruptions from its start, and goes with the one that began it."""
    signals.leave_with_parent()
    keep_freed_memory()  # or a quarter of the time goes into getting the same memory again
    torch.set_num_threads(1)


def _watch(
    work: Sequence[Future[tuple[int, Noted]]], stage: str, total: int, progress: Progress, noted: Noted
) -> None:
    done = 0
    for future in as_completed(work):
        count, its = future.result()
        noted.add(its)
        done += count
        progress(stage, done, total)


def _pictures(
    folder: Path, spec: SceneSpec, split: str, number: int, indices: Sequence[int]
) -> tuple[int, Noted]:
    """Render and write some pictures; those that came out badly are drawn again."""
    writer, attempts = Writer(folder, spec.size), dict.fromkeys(indices, 0)
    while attempts:
        stills = [layout.still(spec.seed, number, index, attempt, spec.size) for index, attempt in attempts.items()]
        out = raycast.render([still.scene for still in stills], spec.size)
        for place, still in enumerate(stills):
            if acceptable(out.group[place], out.silhouettes[place]) or still.attempt > layout.FALLBACK:
                writer.picture(
                    split, still, out.picture[place], out.label[place], out.depth[place], out.group[place],
                    out.silhouettes[place],
                )
                del attempts[still.index]
            else:
                attempts[still.index] += 1
    return len(indices), writer.noted


def acceptable(group: np.ndarray, silhouettes: np.ndarray) -> bool:
    """Whether the main object, and the figure where there is one, are seen well enough.

    ``group`` (H, W) of what is seen and ``silhouettes`` (2, H, W) of main object and figure, as in ``Rendered``.
    """
    main, figure = silhouettes.sum((1, 2))
    if main < LEAST_MAIN * group.size or (group == raycast.MAIN).sum() < LEAST_SEEN["main"] * main:
        return False
    return bool((group == raycast.FIGURE).sum() >= LEAST_SEEN["figure"] * figure)


def _video(folder: Path, spec: SceneSpec, split: str, number: int, index: int) -> tuple[int, Noted]:
    writer = Writer(folder, spec.size)
    frames = spec.frames_train if split == "training" else spec.frames_test
    clip = video.video(spec.seed, number, index, frames, spec.video_size)
    batches = [
        raycast.render([clip.scenes[frame] for frame in batch], spec.video_size)
        for batch in _batches(frames, spec.video_size)
    ]
    # The numbers of a class run on from the training videos to the test videos.
    before = 0 if split == "training" else len(range(clip.shape, spec.videos_train, len(CLASSES)))
    writer.video(
        split, index, clip.shape, 1 + before + index // len(CLASSES),
        np.concatenate([batch.picture for batch in batches]), np.concatenate([batch.group for batch in batches]),
        np.concatenate([batch.silhouettes[:, raycast.MAIN - 1] for batch in batches]),
    )
    return 1, writer.noted
