"""``bench eval`` and ``bench export``: weights from elsewhere as rows of the table, and backbones for elsewhere."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import plan as planning
from benchmarks import suite as suites
from benchmarks.errors import RequestError, unknown
from benchmarks.plan import Cell, Pretraining, Request, digest
from benchmarks.suite import Suite, check_size
from objectives.recipe import recipes

if TYPE_CHECKING:
    from downstream.weights.convert import Converted

BUDGET = "elsewhere"  # the budget that rows of such weights show: none of a suite's
EXPORTS = ("timm", "openmmlab", "huggingface")  # downstream.weights.export.TARGETS, without loading torch
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")  # no @, which marks variants of what a suite trained


@dataclass(frozen=True)
class Foreign(Pretraining):
    """A backbone that no suite trained: as :class:`Pretraining` to those who score it, with nothing to train."""

    weights: dict[str, Any] = field(default_factory=dict)  # source as asked for, options, and what was found there
    pictures: int | None = None  # seen in pre-training, where that is known
    recipes: str = ""  # objective[@budget] whose recipes the tasks take; none: those that the suite has for all
    fetched = True

    @property
    def images_seen(self) -> int | None:
        return self.pictures

    @property
    def effort(self) -> str:
        taken = f", recipes of {self.recipes}" if self.recipes and self.suite.overrides else ""
        return f"weights of {self.weights['backbone']}{taken}"

    @property
    def family(self) -> str:
        return self.recipes

    @property
    def folder(self) -> Path:
        name = self.recipe.name + (f"@{digest(self.variant)[:8]}" if self.variant else "")
        return Path(self.suite.name) / name / f"seed{self.seed}"

    def config(self) -> dict[str, Any]:
        return {"objective": self.recipe.name, "recipe": self.recipes, "weights": self.weights,
                "model": self.suite.model, "kwargs": dict(self.suite.kwargs), "images_seen": self.pictures}

    def fingerprint(self, data_fingerprint: str) -> str:
        """Of the weights alone: no data of the suite took part in them."""
        return digest([self.config(), self.seed])


@dataclass(frozen=True)
class Wanted:
    """Which backbone, as typed; see ``bench eval --help``."""

    backbone: str
    name: str = ""
    layout: str = ""
    heads: int | None = None
    patch_size: int | None = None
    recipe: str = ""

    def options(self) -> dict[str, Any]:
        """What was given beside the defaults, in the words of the command line."""
        given = {"backbone": self.backbone, "layout": self.layout, "heads": self.heads, "patch-size": self.patch_size,
                 "recipe": self.recipe}
        return {key: value for key, value in given.items() if value}


def fetch(wanted: Wanted) -> Converted:
    """The network that the source holds, with every weight in its place.

    Raises:
        RequestError: not there, not readable, or a weight of it or of the backbone without its partner.
    """
    from downstream.backbone import WeightsError
    from downstream.weights.convert import convert

    for option, value in (("--heads", wanted.heads), ("--patch-size", wanted.patch_size)):
        if value is not None and value < 1:
            raise RequestError(f"{option} {value}: at least 1")
    try:
        return convert(wanted.backbone, wanted.layout or None, wanted.heads, wanted.patch_size)
    except WeightsError as error:
        raise RequestError(" ".join(str(error).split())) from error


def plan(wanted: Wanted, converted: Converted, request: Request, runs: Path) -> list[Cell]:
    """The cells that score the backbone; ``request.objectives`` and ``budget`` are not looked at.

    Raises:
        RequestError: as ``benchmarks.plan.plan``; an option of pre-training; a name that stands for something else.
    """
    for option in request.options:
        if not option.startswith(("task.", "suite.scenes=")):
            raise RequestError(f"--cfg-options {option}: nothing is pre-trained here; use task.<task>.<key>=value")
    weights = {**wanted.options(), **converted.source}
    weights["name"] = name = _row_name(wanted, converted)
    family = recipe_of(wanted, converted, suites.get(request.suite))
    cells = planning.plan(replace(request, objectives=["random_init"], budget="default"))
    made: dict[int, Foreign] = {}
    for cell in cells:
        base = cell.pretraining
        made[base.seed] = Foreign(
            recipe=replace(base.recipe, name=name, trains=False),
            suite=replace(base.suite, model=converted.model, kwargs=converted.kwargs), budget=BUDGET,
            variant=base.variant, slots=base.slots, optimiser=base.optimiser, crop=base.crop, seed=base.seed,
            weights=weights, pictures=converted.about.get("images_seen"), recipes=family,
        )
        check_size(made[base.seed].suite)
    for row in (name, f"{name}@*"):  # with options of the tasks, too
        for other in (runs / request.suite).glob(f"{row}/seed*/pretrain/backbone.json"):
            _same_weights(other, name, weights, family)
    return [replace(cell, pretraining=made[cell.pretraining.seed]) for cell in cells]


def recipe_of(wanted: Wanted, converted: Converted, suite: Suite) -> str:
    """The objective whose recipes the tasks take: ``--recipe``, else what the source tells; empty where it does not.

    With ``@`` and a budget of the suite behind it (``beitv2@1600ep``), where recipes depend on that.

    A suite's folder says it itself, an official file by its layout, timm's weights by tag (``.mae``) or name.

    Raises:
        RequestError: ``--recipe`` names no objective, or no budget of the suite.
    """
    if wanted.recipe:
        name, marked, budget = wanted.recipe.partition("@")
        if name not in recipes():
            raise unknown("objective of --recipe", name, recipes())
        if marked and budget not in suite.budgets:
            raise unknown(f"budget of suite {suite.name} in --recipe", budget, suite.budgets)
        return wanted.recipe
    model, _, tag = str(converted.source.get("timm", "")).partition(".")
    told = [converted.about.get("recipe"), converted.about.get("objective"), converted.source.get("layout"),
            *tag.split("_"), model.partition("_")[0]]
    return next((name for name in told if name in recipes()), "")


def _same_weights(path: Path, name: str, weights: dict[str, Any], family: str) -> None:
    """Refuse a name under which other weights, or these by other recipes, have been scored."""
    from downstream.backbone import WeightsError, read_about

    try:
        about = read_about(path.parent)
    except WeightsError:
        return
    source = about.get("source")
    keys = ("sha256", "timm", "patch-size", "heads", "layout")
    if not isinstance(source, dict) or any(source.get(key) != weights.get(key) for key in keys):
        raise RequestError(f"{name!r} is the name of other weights in {path.parent}; give these a name by --name")
    if about.get("recipe", family) != family:
        raise RequestError(f"{name!r} has been scored by the recipes of {about['recipe'] or 'the suite'!r} in "
                           f"{path.parent}; give the row of {family or 'the suite'!r} a name by --name")


def _row_name(wanted: Wanted, converted: Converted) -> str:
    """``--name``, else timm's name, the suite's objective with the weights' hash, or the file's stem."""
    if wanted.name:
        if not _NAME.fullmatch(wanted.name) or len(wanted.name) > 100:
            raise RequestError(f"--name {wanted.name!r}: letters, digits and _ . + -, at most 100")
        if wanted.name in recipes():
            raise RequestError(f"--name {wanted.name}: an objective of this suite is called so; take another")
        return wanted.name
    source, short = converted.source, str(converted.source.get("sha256", ""))[:8]
    if "timm" in source:
        return "timm-" + source["timm"] + (f"-{_clean(Path(source['file']).stem)}" if "file" in source else "")
    if source["layout"] == "folder":
        return f"{_clean(str(converted.about.get('objective', 'backbone')))}-{short}"
    stem = _clean(Path(source["file"]).stem)
    return f"{stem}-{short}" if stem in recipes() else stem


def _clean(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-.")[:80] or "weights"


def install(converted: Converted, cells: Sequence[Cell], runs: Path) -> None:
    """Write the backbone folders that the cells read, one a seed; equal weights share their bytes where they can."""
    from objectives.backbone import FORMAT
    from objectives.pretrain import save_about, save_backbone

    first: Path | None = None
    for foreign in {cell.pretraining.seed: cell.pretraining for cell in cells}.values():
        folder = runs / foreign.folder / "pretrain"
        folder.mkdir(parents=True, exist_ok=True)
        about = {
            **converted.about, "format": FORMAT, "model": converted.model,
            "kwargs": {**converted.kwargs, "num_classes": 0}, "objective": foreign.recipe.name,
            "suite": foreign.suite.name, "seed": foreign.seed, "images_seen": foreign.pictures,
            "input_size": converted.input_size, "seconds": converted.about.get("seconds"), "source": foreign.weights,
            "fingerprint": foreign.fingerprint(""), "recipe": foreign.recipes,
        }
        if first is None:
            save_backbone(converted.network, about, folder)
            first = folder
        else:
            _share(first / "backbone.safetensors", folder / "backbone.safetensors")
            save_about(about, folder)


def _share(old: Path, new: Path) -> None:
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:  # another file system, or one without links
        shutil.copyfile(old, new)


def export(run: str, to: str, output: Path, runs: Path) -> str:
    """Write a backbone in another library's form; returns the snippet that uses it.

    Args:
        run: a backbone folder, or a row of ``runs``: ``suite/objective[/seed0]``.

    Raises:
        RequestError: no such backbone or target, or the target has no class for its family.
    """
    if to not in EXPORTS:
        raise unknown("value of --to", to, EXPORTS)
    folder = _backbone_folder(run, runs)
    from downstream.backbone import WeightsError
    from downstream.weights.export import export as write

    try:
        return write(folder, to, output)
    except WeightsError as error:
        raise RequestError(" ".join(str(error).split())) from error


def _backbone_folder(run: str, runs: Path) -> Path:
    for start in (Path(run), runs / run):
        for folder in (start, start / "pretrain", start / "seed0" / "pretrain"):
            if (folder / "backbone.json").is_file():
                return folder
    raise RequestError(f"--run {run}: no backbone.json there, nor in {runs / run}; name a backbone folder, or a row as "
                       "suite/objective/seed0")
