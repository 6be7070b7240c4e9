"""A suite: the data, backbone and budgets that are the same for every objective. Light (no torch)."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from benchmarks.errors import unknown


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

    @property
    def rendered(self) -> bool:
        """Whether the suite draws its own pictures."""
        return self.scenes is not None


def absolute(section: Mapping[str, Any], data_root: Path) -> dict[str, Any]:
    """A data section with ``root`` made absolute; its other paths are relative to that root."""
    return {key: str((data_root / value).resolve()) if key == "root" else value for key, value in section.items()}


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
