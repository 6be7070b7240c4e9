"""A suite: the data, backbone and budgets that are the same for every objective. Light (no torch)."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.errors import RequestError, unknown
from benchmarks.sizes import kind_of

if TYPE_CHECKING:
    from leaderboard.records import Record


@dataclass(frozen=True)
class Override:
    """Settings that some objectives or backbones have of their own, as their papers do.

    Attributes:
        settings: per task and protocol, over the suite's.
        objectives: their names; empty: all.
        backbones: beginnings of timm's names; empty: all.
        kinds: families with sizes as :func:`benchmarks.sizes.kind_of` names them (``vit-large``); empty: all.
        budgets: names of pre-training budgets; empty: all.
    """

    settings: Mapping[str, Mapping[str, Mapping[str, Any]]]
    objectives: Sequence[str] = ()
    backbones: Sequence[str] = ()
    kinds: Sequence[str] = ()
    budgets: Sequence[str] = ()

    def applies(
        self, objective: str, model: str, kwargs: Mapping[str, Any] | None = None, budget: str = "default"
    ) -> bool:
        """Whether it is meant for a backbone of timm's name ``model`` that ``objective`` trained for ``budget``."""
        return (not self.objectives or objective in self.objectives) and (
            not self.backbones or model.startswith(tuple(self.backbones))) and (
            not self.kinds or kind_of(model, kwargs or {}) in self.kinds) and (
            not self.budgets or budget in self.budgets)


@dataclass(frozen=True)
class Suite:
    """What every row of a table has in common.

    Attributes:
        model, kwargs: the backbone as timm names it.
        input_size: side of the pre-training picture, in pixels.
        batch_size: pictures a step.
        budgets: pictures seen in pre-training, repetitions counted, by the budget's name; must hold "default".
        fixed_crop: pictures are only flipped, never cropped (rendered pictures are drawn at random already).
        decoder: size of light decoders, in proportion to the backbone; None: the paper's.
        pictures: the pre-training pictures, an image folder: {"root", "train"} relative to the data root.
        data: per task the data section of :class:`downstream.task.Job`; paths relative to the data root.
        settings: per task and protocol the settings of :class:`downstream.task.Job`.
        scenes: arguments of :class:`benchmarks.scenes.SceneSpec` where the data are rendered on first use; None: they
            lie under ``--data-root``.
        sources: where to get each data set that is not rendered.
        overrides: settings of some objectives or backbones; later ones win.
        expected: per data section and part, how many pictures, lines or videos the whole set has.
        own_size: a Swin asked for as ``suite.model`` is pre-trained at the picture size that its name ends with, for
            which its windows are meant, unless ``suite.input_size`` says otherwise.
        gpu_memory: bytes of a GPU, at most, that a process at work on this backbone takes, so that several may share
            one; None: each has its own.
    """

    name: str
    summary: str
    model: str
    kwargs: Mapping[str, Any]
    input_size: int
    batch_size: int
    budgets: Mapping[str, int]
    fixed_crop: bool
    decoder: Mapping[str, int] | None
    pictures: Mapping[str, Any]
    data: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Mapping[str, Mapping[str, Any]]]
    scenes: Mapping[str, int] | None = None
    default_protocol: str = "frozen"
    sources: Mapping[str, str] = field(default_factory=dict)
    overrides: Sequence[Override] = ()
    expected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    own_size: bool = False
    gpu_memory: int | None = None

    def settings_of(self, task: str, protocol: str, objective: str, budget: str = "default") -> dict[str, Any]:
        """The settings of a task and protocol for a backbone that ``objective`` trained for ``budget``.

        ``objective`` may name the budget itself: ``beitv2@1600ep``.
        """
        objective, _, named = objective.partition("@")
        budget = named or budget
        found = dict(self.settings[task][protocol])
        for override in self.overrides:
            if override.applies(objective, self.model, self.kwargs, budget):
                found |= override.settings.get(task, {}).get(protocol, {})
        return found

    @property
    def rendered(self) -> bool:
        """Whether the suite draws its own pictures."""
        return self.scenes is not None


def check_size(suite: Suite) -> None:
    """Whether the suite knows recipes for its backbone.

    Raises:
        RequestError: recipes depend on the size of the backbone, which its name and arguments do not tell.
    """
    if kind_of(suite.model, suite.kwargs) is None and any(override.kinds for override in suite.overrides):
        raise RequestError(f"suite {suite.name}: recipes depend on the size of a ViT, BEiT or Swin, which the name "
                           f"{suite.model!r} does not tell; give its width by --cfg-options suite.kwargs.embed_dim=N, "
                           "or name another network")


def absolute(section: Mapping[str, Any], data_root: Path) -> dict[str, Any]:
    """A data section with each ``root`` made absolute, those of sections within it too; other paths start there."""

    def made(key: str, value: Any) -> Any:
        if key == "root":
            return str((data_root / value).resolve())
        if isinstance(value, Mapping):
            return absolute(value, data_root)
        return [made("", part) for part in value] if isinstance(value, (list, tuple)) else value

    return {key: made(key, value) for key, value in section.items()}


@cache
def suites() -> dict[str, Suite]:
    """All suites by name: the files of ``benchmarks/suites`` and the entry points ``bench.suites``."""
    package = importlib.import_module("benchmarks.suites")
    names = [module.name for module in pkgutil.iter_modules(package.__path__)]
    found = [importlib.import_module(f"benchmarks.suites.{name}").suite for name in names]
    found += [point.load() for point in entry_points(group="bench.suites")]
    return {suite.name: suite for suite in found}


def get(name: str) -> Suite:
    """The suite of that name.

    Raises:
        RequestError: there is none.
    """
    if name not in suites():
        raise unknown("suite", name, suites())
    return suites()[name]


def declared_settings(record: Record) -> dict[str, Any] | None:
    """The settings that the suite of a record gives its row's task today; None where there is no such suite or task."""
    suite = suites().get(record.suite)
    if suite is None or record.protocol not in suite.settings.get(record.task, {}):
        return None
    made = record.config.get("pretraining")
    made = made if isinstance(made, Mapping) else {}
    kwargs = made.get("kwargs")
    suite = replace(suite, model=record.backbone, kwargs=kwargs if isinstance(kwargs, Mapping) else {})
    return suite.settings_of(record.task, record.protocol, made.get("recipe") or record.objective, record.budget)
