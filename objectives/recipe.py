"""A recipe: an objective written down as plain data, light enough to list a hundred of them in milliseconds.

Every file in ``objectives/zoo`` holds one ``recipe``. Third parties add theirs through the entry-point group
``bench.objectives`` (each entry names a :class:`Recipe`).
"""

from __future__ import annotations

import difflib
import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any

SLOTS = ("corruption", "student", "teacher", "normalisation", "head", "loss")


class ObjectiveError(RuntimeError):
    """An objective cannot be built or trained as asked; the message is one line naming the thing and the mend."""


def _need(key: str, value: Any, wanted: str, holds: Callable[[Any], bool], many: int | None = None) -> None:
    """Raises ObjectiveError unless ``value`` is a number, or ``many`` of them, for which ``holds`` is true."""
    numbers = [value] if many is None else list(value) if isinstance(value, (tuple, list)) else []
    right = len(numbers) == (many or 1) and all(type(v) in (int, float) and holds(v) for v in numbers)
    if not right:
        raise ObjectiveError(f"{key}={value}: {wanted}")


def _counts(value: float) -> bool:
    return isinstance(value, int) and value >= 1


@dataclass(frozen=True)
class Optimiser:
    """AdamW and its schedule as the paper has them; :func:`scaled_lr` carries them over to a suite's size.

    Attributes:
        lr: peak learning rate *at* ``batch``, that is, after the paper's own linear rule.
        batch: the paper's batch, in images.
        width: width of the paper's backbone, in channels, or the least and the greatest of several at the same rate.
        betas, weight_decay: of AdamW; no decay on biases, norms and other 1-D parameters.
        weight_decay_end: what the weight decay becomes by the last step, along a cosine (DINO); None: it stays.
        warmup: share of the schedule spent warming up linearly. A short one gets 5 % at least (100 steps are enough),
            so that shares below that differ in long ones only; 0: none.
        min_lr: final learning rate, as a share of ``lr``.
        clip: largest gradient norm, or None.
        drop_path: stochastic depth of the student while pre-training.
        eps: of AdamW (EVA's authors: 1e-6).
    """

    lr: float
    batch: int
    width: int | tuple[int, int] = 768
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    warmup: float = 0.05
    min_lr: float = 0.0
    clip: float | None = None
    drop_path: float = 0.0
    weight_decay_end: float | None = None
    eps: float = 1e-8

    def __post_init__(self) -> None:
        _need("optimiser.lr", self.lr, "a number from 0 on", lambda v: 0 <= v < math.inf)
        wanted = "a whole number, at least 1"
        _need("optimiser.batch", self.batch, wanted, _counts)
        if isinstance(self.width, (tuple, list)):
            _need("optimiser.width", self.width, "two whole numbers, at least 1, the smaller first", _counts, many=2)
            if self.width[0] > self.width[1]:
                raise ObjectiveError(f"optimiser.width={self.width}: the smaller number first")
        else:
            _need("optimiser.width", self.width, wanted, _counts)
        _need("optimiser.betas", self.betas, "two numbers from 0 to below 1", lambda v: 0 <= v < 1, many=2)
        _need("optimiser.drop_path", self.drop_path, "a number from 0 to below 1", lambda v: 0 <= v < 1)
        _need("optimiser.warmup", self.warmup, "a share from 0 to below 1", lambda v: 0 <= v < 1)
        _need("optimiser.min_lr", self.min_lr, "a share from 0 to 1", lambda v: 0 <= v <= 1)
        _need("optimiser.weight_decay", self.weight_decay, "a number from 0 on", lambda v: 0 <= v < math.inf)
        end = 0.0 if self.weight_decay_end is None else self.weight_decay_end
        _need("optimiser.weight_decay_end", end, "a number from 0 on", lambda v: 0 <= v < math.inf)
        _need("optimiser.eps", self.eps, "a number above 0", lambda v: 0 < v < math.inf)
        if self.clip is not None:
            _need("optimiser.clip", self.clip, "a number above 0, or None", lambda v: 0 < v < math.inf)

    def config(self) -> dict[str, Any]:
        """As plain data, for digests: without what is not used, so that digests outlive new fields."""
        unused = {"weight_decay_end": None, "eps": 1e-8}
        return {k: v for k, v in asdict(self).items() if k not in unused or v != unused[k]}


@dataclass(frozen=True)
class Crop:
    """What the augmentation of a suite that allows crops does: RandomResizedCrop(scale, ratio) and a flip.

    Pictures in memory are cropped on the training device by bilinear sampling without averaging where it shrinks, those
    read from files by torchvision's bilinear filter with it; MAE and Beyond Masking crop by a bicubic filter.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True

    def __post_init__(self) -> None:
        _need("crop.scale", self.scale, "two shares above 0 and up to 1, the smaller first", lambda v: 0 < v <= 1, 2)
        _need("crop.ratio", self.ratio, "two numbers above 0, the smaller first", lambda v: 0 < v < math.inf, 2)
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ObjectiveError(f"crop.{name}={getattr(self, name)}: the smaller number first")
        if not isinstance(self.flip, bool):
            raise ObjectiveError(f"crop.flip={self.flip!r}: True or False")


@dataclass(frozen=True)
class Recipe:
    """An objective: a corruption, five slots, an optimiser. A slot is ``{"type": class name, **arguments}``."""

    name: str
    summary: str
    paper: str  # arXiv number, or "-"
    corruption: Mapping[str, Any]
    student: Mapping[str, Any]
    teacher: Mapping[str, Any]
    normalisation: Mapping[str, Any]
    head: Mapping[str, Any]
    loss: Mapping[str, Any]
    optimiser: Optimiser
    crop: Crop = field(default_factory=Crop)
    trains: bool = True  # False: the backbone is left as initialised
    version: int = 1  # raised when the same settings would train another backbone

    def slots(self) -> dict[str, dict[str, Any]]:
        """The six parts as plain nested dictionaries, in the order of :data:`SLOTS`."""
        return {slot: dict(getattr(self, slot)) for slot in SLOTS}


def scaled_lr(optimiser: Optimiser, batch: int, width: int) -> float:
    """Peak learning rate for another batch and another width; one rule for every objective.

    ``lr × sqrt(batch / paper's batch) × (paper's width / width)``: the square-root rule of Adam for the batch
    (Malladi et al., 2205.10287) and the 1/width rule of the maximal-update parametrisation for the width
    (Yang et al., 2203.03466, table 8). At the paper's own size it gives the paper's value. Where the paper has one rate
    for several widths, the nearest of them counts.
    """
    low, high = (optimiser.width, optimiser.width) if isinstance(optimiser.width, int) else optimiser.width
    return optimiser.lr * (batch / optimiser.batch) ** 0.5 * (min(max(width, low), high) / width)


def weight_decay_at(optimiser: Optimiser, step: int, steps: int) -> float:
    """Weight decay of step ``step`` (counted from 0) of ``steps``: half a cosine from start to end (DINO)."""
    start, end = optimiser.weight_decay, optimiser.weight_decay_end
    return start if end is None else end + (start - end) * (1 + math.cos(math.pi * step / max(1, steps))) / 2


@cache
def recipes() -> dict[str, Recipe]:
    """All registered recipes by name: the files of ``objectives/zoo`` and the entry points ``bench.objectives``."""
    from objectives import zoo

    found = [importlib.import_module(f"objectives.zoo.{m.name}").recipe for m in pkgutil.iter_modules(zoo.__path__)]
    found += [point.load() for point in entry_points(group="bench.objectives")]
    return {recipe.name: recipe for recipe in found}


def get(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ObjectiveError: there is none; the message offers the nearest names.
    """
    known = recipes()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
        raise ObjectiveError(f"no objective {name!r}; {hint}")
    return known[name]
