"""The text of docs/scaling.md: what a step costs against batch, picture size and depth, as measured; what a board costs
against seeds and tasks, from the committed records; and what suite ``paper`` will cost, by arithmetic.

``docs/make.py`` writes it.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import suite as suites
from benchmarks.plan import resolve
from benchmarks.reproduce_paper import DEVICE, PEAK, SHARE
from downstream.task import TASKS
from leaderboard.cost import arithmetic_key, cores, gflops_per_picture
from leaderboard.records import Record
from objectives.recipe import recipes

DEVICES = 8
WIDTH, DEPTH, PATCH = 768, 12, 16  # ViT-B/16
# UNVERIFIED: people with keypoints in the training sets, each a picture of its own
PEOPLE = {"pose": 149_813, "pose_crowdpose": 43_400}


@dataclass(frozen=True)
class Bill:
    """What training something will take: pictures, 10^9 operations a picture."""

    name: str
    pictures: int
    gflops: float
    shared: bool = True  # among the processes of a launcher

    def hours(self, devices: int = 1) -> float:
        return self.pictures * self.gflops * 1e9 / (SHARE * PEAK) / (devices if self.shared else 1) / 3600


def vit_gflops(height: int, width: int) -> float:
    """Of ViT-B/16 on a picture, forward: linear layers, attention and patch embedding, two to a multiply-add."""
    patches = (height // PATCH) * (width // PATCH)
    tokens = patches + 1
    block = 12 * tokens * WIDTH**2 + 2 * tokens**2 * WIDTH
    return 2 * (DEPTH * block + patches * 3 * PATCH**2 * WIDTH) / 1e9


def pretrainings() -> list[Bill]:
    """Of every objective, at the suite's default budget; those that are not counted yet are left out."""
    suite, known, found = suites.get("paper"), gflops_per_picture(), []
    for name, recipe in sorted(recipes().items()):
        if recipe.trains:
            pretraining = resolve(recipe, suite, "default", ())
            key = arithmetic_key(json.loads(json.dumps(pretraining.config(), default=str)))
            if key in known:
                found.append(Bill(name, pretraining.images_seen, known[key]))
    return found


def fine_tunings() -> list[Bill]:
    """Of every task, the backbone alone: heads, decoders and the scoring are left out."""
    suite, found = suites.get("paper"), []
    for task in suite.settings:
        settings = suite.settings_of(task, "finetune", "mae")
        if task.startswith("tracking"):
            gflops = sum(vit_gflops(side, side) for side in (settings["template_size"], settings["search_size"]))
            pictures = settings["epochs"] * settings["pairs_per_epoch"]
        else:
            size = settings["input_size"]
            gflops = vit_gflops(*(size if isinstance(size, Sequence) else (size, size)))
            expected = suite.expected[task]
            pictures = settings["epochs"] * PEOPLE.get(task, next(iter(expected.values())))
        found.append(Bill(task, pictures, 3 * gflops, TASKS[task].data_parallel))  # backward: two forward passes
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in markdown."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines)


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}" if hours >= 0.1 else f"{hours:.2f}"


def hours(shown: Sequence[str] = ()) -> str:
    """Expected hours a cell of suite ``paper``, as markdown; pre-trainings of the objectives ``shown``, or of all."""
    before, after = [bill for bill in pretrainings() if not shown or bill.name in shown], fine_tunings()
    head = ["suite `paper`, ViT-B/16", "pictures", "GFLOPs a picture", f"hours on one {DEVICE}", f"on {DEVICES}"]
    rows = [
        [f"{kind} `{bill.name}`", f"{bill.pictures:,}", f"{bill.gflops:.1f}", _hours(bill.hours()),
         _hours(bill.hours(DEVICES))]
        for kind, bills in (("pre-training", before), ("fine-tuning", after)) for bill in bills
    ]
    return (
        f"An estimate, not a measurement: no GPU was at hand. Counted operations over {100 * SHARE:.0f} % of an "
        f"{DEVICE}'s {PEAK / 1e12:.0f} TFLOP/s (dense bf16); of the tasks the backbone alone, without heads, reading "
        "and scoring.\n\n" + table(head, rows)
    )


def measured(record: Mapping[str, Any] | None) -> str:
    """The curves of a record of ``bench speed --scaling``; empty without one."""
    if record is None:
        return ""
    hardware = record["environment"]["hardware"]
    about = (
        f"`{record['objective']}`, {record['model']} {dict(record['kwargs'])}, {record['input_size']} px, batch "
        f"{record['batch']} unless varied; {record['precision']}, {record['threads']} threads of "
        f"{hardware['processor']}, whose matrix product does "
        f"{', '.join(f'{top:,.0f} GFLOP/s in {name}' for name, top in record['ceiling_gflops'].items())}."
    )
    head = ["varied", "value", "ms a picture", "± half quartiles", "GFLOPs a picture", "peak MiB", "share of ceiling"]
    rows = [
        [row["varied"], row["value"], f"{row['ms_per_image']:.2f}", f"{row['spread']:.2f}",
         f"{row['gflops_per_image']:.3f}", f"{row['memory_mb']:.0f}", f"{100 * row['ceiling_share']:.0f} %"]
        for row in record["rows"]
    ]
    return f"{about}\n\n{table(head, rows)}"


def board(records: Sequence[Record]) -> str:
    """What the committed cells cost, and with it any number of objectives, tasks and seeds."""
    spent: dict[tuple[str, str], list[float]] = defaultdict(list)
    paid = set()  # every task's record repeats what the pre-training of its seed cost
    for record in records:
        if record.cost["seconds"] is not None and (used := cores(record, "task")):
            spent[record.suite, f"{record.task}.{record.protocol}"].append(record.cost["seconds"] * used)
        backbone = (record.suite, record.objective, str(record.variant), record.budget, record.seed)
        if record.cost["pretrain_seconds"] and backbone not in paid and (used := cores(record, "pretraining")):
            paid.add(backbone)
            spent[record.suite, f"pre-training, budget {record.budget}"].append(record.cost["pretrain_seconds"] * used)
    rows = [
        [suite, part, len(values), f"{statistics.median(values):.0f}", f"{min(values):.0f}–{max(values):.0f}"]
        for (suite, part), values in sorted(spent.items())
    ]
    return table(["suite", "part", "cells", "core-seconds, median", "range"], rows)


def page(records: Sequence[Record], scaling: Path) -> str:
    """The whole document.

    Args:
        scaling: a record of ``bench speed --scaling``; left out where there is none.
    """
    record = json.loads(scaling.read_text(encoding="utf-8")) if scaling.is_file() else None
    before, after = pretrainings(), fine_tunings()
    together = sum(bill.hours(DEVICES) for bill in after if bill.shared)
    tasks = together + max((bill.hours() for bill in after if not bill.shared), default=0.0)
    parts = [
        "# What it costs\n\nMade by `python docs/make.py`; do not edit.",
        "## A step: batch, picture size, depth\n\n" + measured(record) if record else "",
        "## A board: objectives, tasks, seeds\n\nA board of O objectives, S seeds and T tasks costs O · S · "
        "(pre-training + sum of the T tasks): seeds share nothing but rendered pictures and tokenizers, and a backbone "
        "is trained once for all of its tasks. The committed cells:\n\n" + board(records),
        "## Suite `paper`\n\n" + hours(),
        f"Assumed: {DEVICES} devices divide the pictures of a batch without loss; reading keeps up (`bench speed "
        "--data` measures it); the arithmetic of pre-training is counted by PyTorch's counter, teacher and heads "
        "included (leaderboard/arithmetic.json), that of the tasks by formula; people of COCO and CrowdPose are "
        f"{PEOPLE['pose']:,} and {PEOPLE['pose_crowdpose']:,} (unverified).",
        (f"All {len(before)} objectives, one seed, all tasks fine-tuned, on {DEVICES} {DEVICE}: "
         f"{sum(bill.hours(DEVICES) for bill in before) + len(before) * tasks:,.0f} hours, of which each objective's "
         f"tasks are {tasks:.1f}: a tracker is trained by one device, the trackers side by side." if before else ""),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"
