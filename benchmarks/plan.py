"""Planning: from a request to cells, each with the fingerprint of all that decides its number. Light (no torch)."""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import suite as suite_registry
from benchmarks.errors import RequestError, unknown
from benchmarks.sizes import windowed_input
from benchmarks.suite import Suite, check_size
from downstream.task import TASKS, TaskInfo
from objectives import recipe as recipe_registry
from objectives.files import contents
from objectives.recipe import SLOTS, Crop, ObjectiveError, Optimiser, Recipe

MAX_SEED = 2**32 - 1  # NumPy's generator takes no larger one
SIZED_BY_SUITE = ("LightDecoder", "PromptingDecoder")  # heads as wide and deep as suite.decoder says


@dataclass(frozen=True)
class Request:
    """What the user asked for, as typed."""

    objectives: Sequence[str]
    tasks: Sequence[str]
    suite: str = "embedded"
    protocols: Sequence[str] = ()
    budget: str = "default"
    seeds: Sequence[int] = (0,)
    options: Sequence[str] = ()


@dataclass(frozen=True)
class Pretraining:
    """One backbone to train (or to initialise): resolved settings and the folder's name."""

    recipe: Recipe
    suite: Suite
    budget: str
    variant: dict[str, Any]
    slots: dict[str, dict[str, Any]]
    optimiser: Optimiser
    crop: Crop
    seed: int
    fetched = False  # no field: whether the weights come from elsewhere and are there already, never to be trained

    @property
    def effort(self) -> str:
        """What the backbone takes, for the plan that is shown."""
        return f"{self.images_seen:,} pictures" if self.recipe.trains else "no pre-training"

    @property
    def family(self) -> str:
        """The objective whose recipes the tasks take."""
        return self.recipe.name

    @property
    def images_seen(self) -> int:
        return self.suite.budgets[self.budget] if self.recipe.trains else 0

    @property
    def folder(self) -> Path:
        """``<suite>/<objective>[@hash]/seed<k>``, relative to the runs folder."""
        differs = {**self.variant, **({"budget": self.budget} if self.budget != "default" else {})}
        name = self.recipe.name + (f"@{digest(differs)[:8]}" if differs else "")
        return Path(self.suite.name) / name / f"seed{self.seed}"

    @property
    def label(self) -> str:
        return " ".join([self.recipe.name, *(f"{k}={v}" for k, v in self.variant.items())])

    def config(self) -> dict[str, Any]:
        """Everything that decides the backbone but the data and the seed."""
        suite = self.suite
        return {
            "objective": self.recipe.name, "version": self.recipe.version, "slots": self.slots,
            "optimiser": self.optimiser.config(), "crop": asdict(self.crop), "trains": self.recipe.trains,
            "model": suite.model, "kwargs": dict(suite.kwargs), "input_size": suite.input_size,
            "batch_size": suite.batch_size, "images_seen": self.images_seen, "fixed_crop": suite.fixed_crop,
            "decoder": suite.decoder,
        }

    def fingerprint(self, data_fingerprint: str) -> str:
        """Of the backbone: its settings, seed, pictures and, where a path names weights, what is in them."""
        files = contents(self.slots["teacher"])
        return digest([self.config(), self.seed, data_fingerprint, *([files] if files else [])])


@dataclass(frozen=True)
class Cell:
    """One number to get: a backbone, a task, a protocol."""

    pretraining: Pretraining
    task: TaskInfo
    protocol: str

    @property
    def folder(self) -> Path:
        return self.pretraining.folder / f"{self.task.name}.{self.protocol}"

    @property
    def name(self) -> str:
        return f"{self.pretraining.label} {self.task.name}.{self.protocol} seed {self.pretraining.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        made = self.pretraining
        return made.suite.settings_of(self.task.name, self.protocol, made.family, made.budget)

    def config(self) -> dict[str, Any]:
        return {"pretraining": self.pretraining.config(), "task": self.task.name, "version": self.task.version,
                "protocol": self.protocol, "settings": self.settings,
                "data": dict(self.pretraining.suite.data[self.task.name])}

    def fingerprint(self, backbone: str, data_fingerprint: str) -> str:
        """Of the cell: its settings, seed, backbone weights and task data."""
        config = {k: v for k, v in self.config().items() if k not in ("pretraining", "data")}
        return digest([config, self.pretraining.seed, backbone, data_fingerprint])


def digest(value: Any) -> str:
    """sha256 of the canonical JSON of ``value``, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def plan(request: Request) -> list[Cell]:
    """The cells of a request, ordered so that each backbone is trained once and then scored on all its tasks.

    Raises:
        RequestError: an unknown name, option or value; nothing has been touched then.
    """
    suite = suite_registry.get(request.suite)
    for option, given in (("--objective", request.objectives), ("--tasks", request.tasks)):
        if not given:
            raise RequestError(f"{option}: name at least one, or `all`; see `bench list`")
    if request.budget not in suite.budgets:
        raise unknown(f"budget of suite {suite.name}", request.budget, suite.budgets)
    names = sorted(recipe_registry.recipes()) if list(request.objectives) == ["all"] else list(request.objectives)
    columns = _columns(suite, request.tasks, request.protocols)
    if not request.seeds or min(request.seeds) < 0 or max(request.seeds) > MAX_SEED:
        raise RequestError(f"--seeds: {list(request.seeds)} must be whole numbers from 0 to {MAX_SEED}, at least one")
    cells = []
    for name in dict.fromkeys(names):
        try:
            recipe = recipe_registry.get(name)
        except ObjectiveError as error:
            raise RequestError(str(error)) from error
        pretraining = resolve(recipe, suite, request.budget, request.options)
        check_size(pretraining.suite)
        for seed in request.seeds:
            seeded = replace(pretraining, seed=seed)
            cells += [Cell(seeded, TASKS[task], protocol) for task, protocol in columns]
    return cells


def _columns(suite: Suite, wanted: Sequence[str], protocols: Sequence[str]) -> list[tuple[str, str]]:
    """Task and protocol of each column. Where ``all`` tasks are asked for, those that lack a protocol go without.

    Raises:
        RequestError: an unknown name, or a named task without data or without the protocol.
    """
    every = list(wanted) == ["all"]
    tasks = [task for task in TASKS if task in suite.data] if every else list(dict.fromkeys(wanted))
    for task in tasks:
        if task not in TASKS:
            raise unknown("task", task, TASKS)
        if task not in suite.data:
            raise RequestError(f"suite {suite.name!r} has no data for task {task!r}; it has {', '.join(suite.data)}")
    known = list(dict.fromkeys(p for task in tasks for p in TASKS[task].protocols if p in suite.settings[task]))
    chosen = known if list(protocols) == ["all"] else list(dict.fromkeys(protocols)) or [suite.default_protocol]
    columns = []
    for protocol in chosen if every else []:
        if protocol not in known:
            raise unknown(f"protocol of suite {suite.name}", protocol, known)
    for task in tasks:
        for protocol in chosen:
            if protocol in suite.settings[task]:
                columns.append((task, protocol))
            elif not every and list(protocols) != ["all"]:
                raise unknown(f"protocol of task {task} in suite {suite.name}", protocol, suite.settings[task])
    return columns


def _check_effect(variant: Mapping[str, Any], suite: Suite, slots: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a variant that would train as the recipe does: its row would say that something differs.

    Raises:
        RequestError: an option that the suite overrules.
    """
    for key in variant:
        room, _, rest = key.partition(".")
        if room == "crop" and rest != "flip" and suite.fixed_crop:
            raise RequestError(f"--cfg-options {key}: suite {suite.name} does not crop its pictures, so that this "
                               "changes nothing; leave it out, or add suite.fixed_crop=False")
        if (room == "objective" and rest.removeprefix("head.") in (suite.decoder or {})
                and slots["head"]["type"] in SIZED_BY_SUITE):
            raise RequestError(f"--cfg-options {key}: suite {suite.name} gives decoders its own size, so that this "
                               f"changes nothing; set suite.decoder, now {dict(suite.decoder or {})}, instead")


def resolve(recipe: Recipe, suite: Suite, budget: str, options: Sequence[str]) -> Pretraining:
    """Apply ``--cfg-options`` to a recipe and a suite.

    Keys: ``objective.<slot>.<key>``, ``optimiser.<key>``, ``crop.<key>``, ``suite.<key>`` (``suite.model``,
    ``suite.kwargs.depth``, ``suite.images_seen``, …) and ``task.<task>.<key>`` (every protocol of the task). Their
    order does not count, but that of one key given twice the last one is meant.
    """
    if any(option.startswith(("suite.input_size=", "suite.kwargs.img_size=")) for option in options):
        suite = replace(suite, own_size=False)
    slots, variant = recipe.slots(), {}
    optimiser, crop = recipe.optimiser, recipe.crop
    given: dict[str, Any] = {}
    for option in options:
        key, found, raw = option.partition("=")
        if not found:
            raise RequestError(f"--cfg-options {option!r}: write it as key=value")
        given[key] = parse_value(raw)
    for key in sorted(given, key=_turn):
        value = given[key]
        room, _, rest = key.partition(".")
        if room == "objective":
            slot, _, field = rest.partition(".")
            if slot not in SLOTS:
                raise unknown("slot", slot, SLOTS)
            if not field:
                raise RequestError(f"--cfg-options {key}: name a key of the slot, for example {key}.type")
            if field == "type":
                value = _part(slot, value)
                if value != slots[slot].get("type"):
                    slots[slot] = {}  # another part takes other arguments
            if field in slots[slot] and slots[slot][field] == value:
                continue  # what the recipe says already is no variant; so below
            slots[slot][field] = value
        elif room in ("optimiser", "crop", "suite", "task"):
            before = (optimiser, crop, suite)
            if room == "optimiser":
                optimiser = _replaced(optimiser, rest, value, key)
            elif room == "crop":
                crop = _replaced(crop, rest, value, key)
            elif room == "suite":
                suite = _suite_option(suite, rest, value, key, budget)
            else:
                suite = _task_option(suite, rest, value, key)
            if (optimiser, crop, suite) == before:
                continue
        elif room in SLOTS:
            raise RequestError(f"no option {key!r}; did you mean 'objective.{key}'?")
        else:
            raise unknown("option", key, ["objective.", "optimiser.", "crop.", "suite.", "task."])
        variant[key] = value
    _check_effect(variant, suite, slots)
    return Pretraining(recipe, suite, budget, variant, slots, optimiser, crop, seed=0)


def _turn(key: str) -> int:
    """When an option is applied: what replaces a whole part goes before what changes something in it."""
    if key == "suite.model":
        return 0
    if key == "suite.kwargs" or (key.startswith("objective.") and key.endswith(".type")):
        return 1
    return 2 if key == "suite.input_size" else 3  # it sets suite.kwargs.img_size, too


def _part(slot: str, name: Any) -> str:
    from objectives.registry import canonical  # torch and all: seconds that a plan without new parts does without

    try:
        return canonical(slot, "none" if name is None else name)
    except ObjectiveError as error:
        raise RequestError(str(error)) from error


def sweep(request: Request, vary: Sequence[str]) -> list[Cell]:
    """The cells of every combination of the varied options.

    Args:
        request: what stays the same.
        vary: ``key=value,value,…`` with the keys of ``--cfg-options``; a comma within brackets does not divide.

    Raises:
        RequestError: as :func:`plan`, or an option without values.
    """
    axes = []
    for option in vary:
        key, found, values = option.partition("=")
        choices = [value.strip() for value in re.split(r",(?![^\[({]*[\])}])", values) if value.strip()]
        if not found or not choices:
            raise RequestError(f"--vary {option!r}: write it as key=value,value,…")
        axes.append([f"{key}={value}" for value in choices])
    cells: dict[Path, Cell] = {}
    for combination in itertools.product(*axes):
        for cell in plan(replace(request, options=[*request.options, *combination])):
            cells.setdefault(cell.folder, cell)
    return list(cells.values())


def parse_value(raw: str) -> Any:
    """A Python literal where it is one (``3``, ``0.1``, ``True``, ``[1, 2]``, ``None``), else the text itself."""
    try:
        return ast.literal_eval(raw)
    except (ValueError, SyntaxError):
        return raw


def _replaced(settings: Any, field: str, value: Any, key: str) -> Any:
    known = settings.__dataclass_fields__
    if field not in known:
        raise unknown("option", key, [f"{key.split('.')[0]}.{name}" for name in known])
    try:
        return replace(settings, **{field: tuple(value) if isinstance(value, list) else value})
    except ObjectiveError as error:
        raise RequestError(f"--cfg-options {error}") from error


_SUITE_OPTIONS = ("model", "input_size", "batch_size", "fixed_crop", "decoder", "scenes")


def _suite_option(suite: Suite, field: str, value: Any, key: str, budget: str) -> Suite:
    if field.startswith("kwargs."):
        return replace(suite, kwargs={**suite.kwargs, field.removeprefix("kwargs."): value})
    if field == "kwargs" and isinstance(value, Mapping):
        return replace(suite, kwargs=value)
    if field == "images_seen":
        if not isinstance(value, int) or value < 1:
            raise RequestError(f"--cfg-options {key}={value}: a whole number of pictures, at least 1")
        return replace(suite, budgets={**suite.budgets, budget: value})
    if field not in _SUITE_OPTIONS:
        raise unknown("option", key, [f"suite.{n}" for n in (*_SUITE_OPTIONS, "images_seen", "kwargs.")])
    if field == "model":  # the suite's arguments are the suite's model's; another one starts from its own
        size = (windowed_input(str(value)) if suite.own_size else None) or suite.input_size
        return replace(suite, model=value, input_size=size, kwargs={"img_size": size})
    if field.endswith("_size") and (not isinstance(value, int) or value < 1):
        raise RequestError(f"--cfg-options {key}={value}: a whole number, at least 1")
    fitting = {"fixed_crop": isinstance(value, bool), "decoder": _decoder(value), "scenes": isinstance(value, Mapping)}
    if not fitting.get(field, True):
        examples = {"fixed_crop": "True", "decoder": "{'width': 96, 'depth': 2, 'heads': 4}", "scenes": "{'size': 128}"}
        raise RequestError(f"--cfg-options {key}={value}: for example {key}=\"{examples[field]}\"")
    if field == "input_size" and "img_size" in suite.kwargs:  # a backbone with a table of positions must know
        suite = replace(suite, kwargs={**suite.kwargs, "img_size": value})
    return replace(suite, **{field: value})


def _decoder(value: Any) -> bool:
    """Whether this is the size of a light decoder."""
    if value is None:
        return True
    names = isinstance(value, Mapping) and set(value) == {"width", "depth", "heads"}
    return names and all(isinstance(v, int) and v >= 1 for v in value.values()) and not value["width"] % value["heads"]


def _task_option(suite: Suite, field: str, value: Any, key: str) -> Suite:
    task, _, setting = field.partition(".")
    if task not in suite.settings:
        raise unknown("task", task, suite.settings)
    if not setting:
        raise RequestError(f"--cfg-options {key}: name a setting, for example {key}.epochs")
    changed = {p: {**settings, setting: value} for p, settings in suite.settings[task].items()}
    overrides = tuple(replace(o, settings=_without(o.settings, task, setting)) for o in suite.overrides)
    return replace(suite, settings={**suite.settings, task: changed}, overrides=overrides)


def _without(settings: Mapping[str, Any], task: str, setting: str) -> dict[str, Any]:
    """An override's settings without one that the user has set."""
    own = {p: {k: v for k, v in values.items() if k != setting} for p, values in settings.get(task, {}).items()}
    return {**settings, **({task: own} if own else {})}
