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

from benchmarks.errors import unknown

if TYPE_CHECKING:
    from leaderboard.records import Record


@dataclass(frozen=True)
class Override:
    """Settings that some objectives or backbones have of their own, as their papers do.

    Attributes:
        settings: per task and protocol, over the suite's.
        objectives: their names; empty: all.
        backbones: beginnings of timm's names; empty: all.
    """

    settings: Mapping[str, Mapping[str, Mapping[str, Any]]]
    objectives: Sequence[str] = ()
    backbones: Sequence[str] = ()

    def applies(self, objective: str, model: str) -> bool:
        """Whether it is meant for a backbone of timm's name ``model`` trained by ``objective``."""
        return (not self.objectives or objective in self.objectives) and (
            not self.backbones or model.startswith(tuple(self.backbones)))


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

    def settings_of(self, task: str, protocol: str, objective: str) -> dict[str, Any]:
        """The settings of a task and protocol for a backbone that ``objective`` trained."""
        found = dict(self.settings[task][protocol])
        for override in self.overrides:
            if override.applies(objective, self.model):
                found |= override.settings.get(task, {}).get(protocol, {})
        return found

    @property
    def rendered(self) -> bool:
        """Whether the suite draws its own pictures."""
        return self.scenes is not None


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
    model = record.backbone
    return replace(suite, model=model).settings_of(record.task, record.protocol, record.objective)
