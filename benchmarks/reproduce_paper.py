"""``bench reproduce PAPER[:TABLE]``: what a published table takes here, its runs, and theirs beside ours.

A published number is a training (objective, backbone, data, epochs) and a score (task, data set, protocol). Where this
suite has all of them the cell is planned with the paper's backbone and pictures; where it has not, the line says what
is missing and nothing is put in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.errors import RequestError
from benchmarks.plan import Cell, Request, plan
from benchmarks.suite import Suite, absolute
from downstream.task import TASKS
from leaderboard.cost import relative_arithmetic
from leaderboard.published import (
    DATA_SETS,
    OUR_METRICS,
    PRETRAINED_ON,
    Number,
    PaperTable,
    backbone_name,
    data_set,
    in_our_unit,
    tolerance,
)
from leaderboard.records import Record
from objectives import recipe as recipe_registry

Say = Callable[[str], None]
# Multiply-adds of one forward pass at 224 px (SwinV2: 256 px), in 10^9: timm's table of models and the papers' own.
_GMACS = {
    "vit-s16": 4.6, "vit-b16": 17.6, "vit-l16": 61.6, "vit-h14": 167.4, "swin-t": 4.5, "swin-s": 8.7, "swin-b": 15.5,
    "swin-l": 34.5, "swinv2-t": 6.0, "swinv2-s": 11.6, "swinv2-b": 20.3, "swinv2-l": 47.5,
}  # fmt: skip
_TRAIN_FACTOR = 3  # a supervised step costs about three forward passes: one forward, two backward
DEVICE = "H200"
PEAK = 989e12  # operations a second, dense bf16: NVIDIA's data sheet of the H100 and H200 SXM
SHARE = 0.4  # of the peak that a training step is assumed to reach, for a rough idea of hours only


@dataclass(frozen=True)
class Target:
    """The numbers of one training and one scoring, and the cell that makes them here (None: ``obstacle`` says why)."""

    numbers: tuple[Number, ...]
    cell: Cell | None
    command: str
    obstacle: str


def targets(tables: Sequence[PaperTable], suite: Suite) -> list[tuple[PaperTable, list[Target]]]:
    """Each table's numbers by what is run for them."""
    return [(table, [_target(group, suite) for group in _groups(table)]) for table in tables]


def _groups(table: PaperTable) -> list[tuple[Number, ...]]:
    groups: dict[tuple[Any, ...], list[Number]] = {}
    for number in table.numbers:
        key = (number.method, number.backbone, number.pretrain_data, number.pretrain_epochs, number.task,
               number.dataset, number.protocol, number.teacher, number.note)
        groups.setdefault(key, []).append(number)
    return [tuple(group) for group in groups.values()]


def _target(group: tuple[Number, ...], suite: Suite) -> Target:
    first = group[0]
    if reason := _unknown(first, suite):
        return Target(group, None, "", reason)
    options = network_options(first.method, first.backbone, suite)
    if head := re.search(r"(simple|classic) head", first.protocol):
        options.append(f"task.{first.task}.head={head[1]}")
    budget = "default"
    if suite.name == "paper" and (wanted := first.seen):
        budget = next((name for name, seen in suite.budgets.items() if seen == wanted), "default")
        if suite.budgets[budget] != wanted:
            options.append(f"suite.images_seen={wanted}")
    request = Request([first.method], [first.task], suite.name, [str(first.family)], budget, (0,), options)
    words = ["bench run --suite", suite.name, "--objective", first.method, "--tasks", first.task, "--protocol",
             str(first.family), *(["--budget", budget] if budget != "default" else [])]  # fmt: skip
    words += [f"--cfg-options {option}" for option in options]
    try:
        (cell,) = plan(request)
    except RequestError as error:
        return Target(group, None, " ".join(words), str(error))
    return Target(group, cell, " ".join(words), "")


def _unknown(number: Number, suite: Suite) -> str:
    """What this version or suite lacks for a number, in words; empty where it has all."""
    if number.method not in recipe_registry.recipes():
        return f"no objective {number.method!r} here"
    if number.task not in TASKS:
        return f"no task {number.task!r} here"
    if number.family not in TASKS[number.task].protocols:
        return f"no protocol like {number.protocol!r} here"
    if number.task not in suite.data or number.family not in suite.settings[number.task]:
        return f"suite {suite.name} has no {number.task}.{number.family}"
    if re.search(r"2[12]k", number.note or "", re.IGNORECASE):
        return "its weights have seen the labels of ImageNet-22K as well, a stage that no recipe here has"
    if "@" in number.backbone and number.backbone.rpartition("@")[2] != str(suite.input_size):
        return f"{number.backbone} is scored at another size than the suite's {suite.input_size} px"
    if suite.name == "paper":
        if (ours := DATA_SETS.get((suite.name, number.task))) != number.dataset:
            return f"suite {suite.name} scores {number.task} on {ours}, not on {number.dataset}"
        if number.pretrain_data not in (None, PRETRAINED_ON):
            return f"suite {suite.name} pre-trains on {PRETRAINED_ON}, not on {number.pretrain_data}"
    return ""


def lines(tables: Sequence[PaperTable], suite: Suite, data_root: Path | None) -> list[str]:
    """What reproducing published tables would run, what it costs, and which data are missing; one line each.

    Args:
        tables: of ``leaderboard.published``.
        suite: to run on.
        data_root: folder of the suite's data; None where there is none.
    """
    told = []
    parts: dict[str, Mapping[str, Any]] = {}
    for table, found in targets(tables, suite):
        told.append(f"{table.id}: {table.title}" + (f" (arXiv {table.arxiv})" if table.arxiv else ""))
        if table.missing:
            told.append(f"  not looked up: {table.missing}")
        for target in found:
            first = target.numbers[0]
            told.append(f"  {_heading(target.numbers)}")
            if target.cell is None:
                told.append(f"    cannot run: {target.obstacle}")
                continue
            parts |= {"pre-training": suite.pictures, first.task: suite.data[first.task]}
            told += [f"    would run: {target.command}", f"    costs: {_cost(first)}"]
    told += [f"data: {line}" for name, part in parts.items() for line in _data_lines(name, part, suite, data_root)]
    return told


def _heading(group: Sequence[Number]) -> str:
    first = group[0]
    values = ", ".join(f"{n.metric} {n.value:g}{f' {n.mark}' if n.mark else ''}" for n in group)
    epochs = "epochs not stated" if first.pretrain_epochs is None else f"{first.pretrain_epochs} epochs"
    return (f"{first.method} {first.backbone}, {first.pretrain_data or 'data not stated'}, {epochs} -> "
            f"{first.task} on {first.dataset} ({first.protocol}): {values}")


def timm_name(backbone: str) -> str:
    """timm's name of the network, as far as the paper's name tells it."""
    name = backbone_name(backbone)
    sizes = {"t": "tiny", "s": "small", "b": "base", "l": "large", "h": "huge", "g": "giant"}
    kind, _, rest = name.partition("-")
    size = sizes.get(rest[:1], rest[:1])
    if kind == "vit":
        return f"vit_{size}_patch{rest[1:] or '16'}_224"
    if kind == "beit":
        return f"beit_{size}_patch{rest[1:] or '16'}_224"
    if kind == "swin":
        return f"swin_{size}_patch4_window7_224"
    return f"swinv2_{size}_window16_256" if kind == "swinv2" else name


# SimMIM pre-trains a Swin at 192 px in windows of 6 tokens (L: 12), a Swin V2 in windows of 12
# (microsoft/SimMIM and microsoft/Swin-Transformer: configs/simmim); timm has names for two of those networks
_SIMMIM, _SIMMIM_SIZE = ("simmim", "simmim_v2"), 192
_SIMMIM_NAMED = {f"swinv2_{size}_window16_256": f"swinv2_{size}_window12_192" for size in ("base", "large")}


def network_options(method: str, backbone: str, suite: Suite) -> list[str]:
    """What has to be set for a suite to pre-train the network of a published number, as its authors did."""
    model = timm_name(backbone)
    own = [] if model == suite.model else [f"suite.model={model}"]
    if suite.name != "paper" or method not in _SIMMIM or not model.startswith("swin"):
        return own
    if model in _SIMMIM_NAMED:
        return [f"suite.model={_SIMMIM_NAMED[model]}"]
    window = 6 if model.startswith("swin_") and "_large_" not in model else 12
    return [f"suite.model={model}", f"suite.input_size={_SIMMIM_SIZE}", f"suite.kwargs.img_size={_SIMMIM_SIZE}",
            f"suite.kwargs.window_size={window}"]


def _cost(number: Number) -> str:
    seen = number.seen
    if seen is None:
        return "unknown: the source does not state data and epochs of the pre-training"
    gmacs = _GMACS.get(backbone_name(number.backbone))
    if gmacs is None:
        return f"{seen:,} pictures of pre-training; arithmetic of {number.backbone} not known here"
    ratio = relative_arithmetic(number.method)
    flops = 2e9 * gmacs * _TRAIN_FACTOR * (ratio or 1.0) * seen
    step = f"{ratio:.2f} times supervised training a picture" if ratio else "as for supervised training"
    return (f"{seen:,} pictures of pre-training, about {flops:.1e} FLOPs ({step}), about "
            f"{flops / (SHARE * PEAK) / 3600:,.0f} hours at {SHARE * PEAK / 1e12:.0f} TFLOP/s")


def _data_lines(name: str, section: Mapping[str, Any], suite: Suite, data_root: Path | None) -> list[str]:
    from benchmarks.data import roots

    if suite.rendered:
        return [f"{name}: rendered on first use"]
    source = f"; get it: {suite.sources[name]}" if name in suite.sources else ""
    if data_root is None:
        folders = ", ".join(dict.fromkeys(str(path) for path in roots(section)))
        return [f"{name}: missing (no --data-root named), wanted there: {folders}{source}"]
    return [
        f"{name}: found at {folder}" if folder.is_dir() else f"{name}: missing, looked at {folder}{source}"
        for folder in dict.fromkeys(roots(absolute(section, data_root)))
    ]


# --- theirs beside ours -----------------------------------------------------------------------------------------------


def verdicts(found: Sequence[Target], records: Sequence[Record], say: Say) -> list[str]:
    """Say of each number that was run how ours compares; returns a word for each: within, differs, failed, none.

    ``none``: there is no verdict, because ours is on other data than theirs.
    """
    by_name = {_key(record): record for record in records}
    words = []
    for target in found:
        if target.cell is None:
            continue
        say(_heading(target.numbers))
        cell = target.cell
        record = by_name.get((cell.pretraining.label, cell.task.name, cell.protocol, cell.pretraining.seed))
        if record is None or record.status != "ok":
            say(f"  {'not run' if record is None else f'{record.status}: {record.reason}'}")
            words.append("failed")
            continue
        words += [_verdict(number, record, say) for number in target.numbers]
    return words


def _key(record: Record) -> tuple[str, str, str, int]:
    label = " ".join([record.objective, *(f"{k}={v}" for k, v in record.variant.items())])
    return label, record.task, record.protocol, record.seed


def _verdict(number: Number, record: Record, say: Say) -> str:
    metric = OUR_METRICS.get(number.metric, number.metric)
    ours = record.metrics.get(metric)
    if ours is None:
        say(f"  {number.metric}: theirs {number.value:g}, ours none (the task gives {', '.join(record.metrics)})")
        return "none"
    theirs = in_our_unit(number, ours["unit"])
    band, half = tolerance(theirs, ours["unit"])
    unit = f" {ours['unit']}" if ours["unit"] else ""
    head = (f"  {metric}: theirs {theirs:.6g}{unit}{f' ({number.mark})' if number.mark else ''}, ours "
            f"{ours['value']:.6g}{unit}")
    if data_set(record) != number.dataset:
        say(f"{head}; no verdict: ours is on the data of suite {record.suite}, theirs on {number.dataset}")
        return "none"
    difference = ours["value"] - theirs
    word = "within" if abs(difference) <= half else "differs"
    say(f"{head}, difference {difference:+.6g}; ± {half:.3g} is the band ({band}): "
        f"{'within the interval' if word == 'within' else word}")
    return word
