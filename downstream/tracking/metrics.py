"""Measures of one-pass evaluation, in numpy: success, precision, normalised precision, AO and SR.

Boxes are (T, 4) arrays of x, y, w, h in pixels, one row per frame, the first row being the box given to the tracker.
The field has two families of conventions and they differ in the third digit, so every function names the one it takes:

* *SwinTrack* (github LitingLin/SwinTrack): ``IoU >= threshold`` with an IoU of 0 set to -1, so that a lost target does
  not pass the threshold 0; normalised precision is the value at 0.20.
* *got10k toolkit* (github got-10k/toolkit): ``IoU > threshold``; normalised precision is the mean of the curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

OVERLAPS = np.linspace(0, 1, 21)  # thresholds of the success curve, IoU
DISTANCES = np.arange(51)  # thresholds of the precision curve, pixels
SHARES = np.linspace(0, 0.5, 51)  # thresholds of the normalised precision curve, in target widths and heights


@dataclass(frozen=True)
class Track:
    """What a tracker did on one video, beside what was there."""

    name: str
    predicted: np.ndarray  # (T, 4)
    truth: np.ndarray  # (T, 4); rows without area mark frames without a target
    visible: np.ndarray  # (T,) bool
    size: tuple[int, int]  # width, height of the picture


@dataclass(frozen=True)
class Scores:
    """Means in percent by name, and the same per sequence where that is defined (all but AO and SR)."""

    means: dict[str, float]
    items: dict[str, list[float]] = field(default_factory=dict)


def unmoved(track: Track) -> Track:
    """What a box that never moves would have done on the same video: the first box in every frame."""
    return replace(track, predicted=np.repeat(track.predicted[:1], len(track.predicted), axis=0))


def has_area(boxes: np.ndarray) -> np.ndarray:
    """(T, 4) -> (T,) bool: finite, and wider and higher than nothing."""
    return np.isfinite(boxes).all(1) & (boxes[:, 2] > 0) & (boxes[:, 3] > 0)


def overlaps(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union per frame, (T,), between 0 and 1; 0 where either box has no area.

    Areas are taken from the same edges as the intersection: equal boxes give exactly 1, which ``>= 1`` asks for.
    """
    valid = has_area(predicted) & has_area(truth)
    a, b = (np.where(valid[:, None], boxes, 1.0) for boxes in (predicted, truth))
    a_end, b_end = a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]
    common = np.clip(np.minimum(a_end, b_end) - np.maximum(a[:, :2], b[:, :2]), 0, None).prod(1)
    union = (a_end - a[:, :2]).prod(1) + (b_end - b[:, :2]).prod(1) - common
    return np.where(valid, common / union, 0.0)


def centre_errors(predicted: np.ndarray, truth: np.ndarray, normalised: bool = False) -> np.ndarray:
    """Distance of the box centres per frame, (T,): pixels, or shares of the true width and height.

    A predicted box without area is infinitely far (SwinTrack), so that it fails every threshold. Frames whose *true*
    box has no area must be left out by the caller (:func:`counted_frames`).
    """
    valid = has_area(predicted)
    guess = np.where(valid[:, None], predicted, 0.0)
    # brackets keep the error of equal boxes at exactly 0, which "<= 0" asks for
    offset = (guess[:, :2] + guess[:, 2:] / 2) - (truth[:, :2] + truth[:, 2:] / 2)
    if normalised:
        offset = offset / truth[:, 2:]
    return np.where(valid, np.hypot(offset[:, 0], offset[:, 1]), np.inf)


def counted_frames(track: Track) -> np.ndarray:
    """(T,) bool: frames that have a true box and a visible target; the first one counts (SwinTrack, OTB)."""
    return has_area(track.truth) & track.visible


def success_curve(overlap: np.ndarray, strict: bool = False) -> np.ndarray:
    """Share of frames, (21,), whose IoU passes each of :data:`OVERLAPS`.

    ``strict=False`` is SwinTrack's evaluator (``>=``, IoU 0 set to -1): a perfect tracker gets 1 everywhere.
    ``strict=True`` is the got10k toolkit (``>``): a perfect tracker gets 0 at the last threshold, hence SUC 20/21.
    """
    if strict:
        return (overlap[:, None] > OVERLAPS).mean(0)
    return (np.where(overlap > 0, overlap, -1.0)[:, None] >= OVERLAPS).mean(0)


def precision_curve(errors: np.ndarray) -> np.ndarray:
    """Share of frames, (51,), whose centre error in pixels is at most 0, 1, … 50; P is the value at 20."""
    return (errors[:, None] <= DISTANCES).mean(0)


def normalised_precision_curve(errors: np.ndarray) -> np.ndarray:
    """Share of frames, (51,), whose centre error in target sizes is at most 0, .01, … .50."""
    return (errors[:, None] <= SHARES).mean(0)


def normalised_precision_at(errors: np.ndarray, share: float = 0.20) -> float:
    """Normalised precision as SwinTrack reports it (our NP): the value of the curve at ``share``."""
    return float((errors <= share).mean())


def normalised_precision_mean(errors: np.ndarray) -> float:
    """Normalised precision as the got10k toolkit reports it (our NP_mean): the mean of the curve."""
    return float(normalised_precision_curve(errors).mean())


def sequence_scores(track: Track, strict: bool = False) -> dict[str, float]:
    """SUC, P, NP and NP_mean of one sequence, in percent; NaN when no frame can be counted."""
    counted = counted_frames(track)
    if not counted.any():
        return dict.fromkeys(("SUC", "P", "NP", "NP_mean"), float("nan"))
    predicted, truth = track.predicted[counted], track.truth[counted]
    relative = centre_errors(predicted, truth, normalised=True)
    scores = {
        "SUC": success_curve(overlaps(predicted, truth), strict).mean(),
        "P": precision_curve(centre_errors(predicted, truth))[20],
        "NP": normalised_precision_at(relative),
        "NP_mean": normalised_precision_mean(relative),
    }
    return {name: 100 * float(value) for name, value in scores.items()}


def clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (T, 4) limited to the picture as ``rect_iou(bound=...)`` of the got10k toolkit does.

    Faithful to a fault: the corner is moved into the picture first and the width is then cut at the *far* edge only, so
    a box that hangs out on the left or top is pushed inside instead of being shortened. Published numbers contain it.
    """
    bound = np.asarray(size, float)
    corner = np.clip(boxes[:, :2], 0, bound)
    return np.concatenate([corner, np.clip(boxes[:, 2:], 0, bound - corner)], 1)


def got10k_overlaps(track: Track) -> np.ndarray:
    """IoU of the frames that GOT-10k counts: the first frame and unseen targets left out, boxes clipped."""
    counted = counted_frames(track)
    counted[0] = False
    return overlaps(clip_boxes(track.predicted[counted], track.size), clip_boxes(track.truth[counted], track.size))


def got10k_scores(tracks: Sequence[Track]) -> dict[str, float]:
    """AO, SR50 and SR75 in percent, over the frames of all sequences pooled (longer sequences weigh more)."""
    pooled = np.concatenate([got10k_overlaps(track) for track in tracks])
    if not len(pooled):
        return dict.fromkeys(("AO", "SR50", "SR75"), float("nan"))
    rates = {"AO": pooled.mean(), "SR50": (pooled > 0.5).mean(), "SR75": (pooled > 0.75).mean()}
    return {name: 100 * float(rate) for name, rate in rates.items()}


def score_tracks(tracks: Sequence[Track], strict: bool = False) -> Scores:
    """All measures: SUC, P, NP and NP_mean as means over sequences, AO, SR50 and SR75 over pooled frames."""
    rows = [sequence_scores(track, strict) for track in tracks]
    items = {name: [row[name] for row in rows] for name in rows[0]}
    means = {name: float(np.nanmean(column)) for name, column in items.items()}
    return Scores(means | got10k_scores(tracks), items)
