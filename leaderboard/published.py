"""Numbers that others published, and ours beside them; they never enter a rank.

``leaderboard/published/`` holds one JSON file a paper (made by ``docs/published.py``)::

    {"schema": 1, "paper": title, "arxiv": id or null, "missing": what could not be looked up, or null,
     "tables": {name: [number, …]}}

A *number* has ``method`` (the name of our objective where there is one), ``arxiv`` of the method, ``backbone``,
``teacher``, ``pretrain_data``, ``pretrain_epochs``, ``task``, ``dataset``, ``metric``, ``value``, ``protocol``,
``source`` (where it was seen), ``verified`` (whether it was seen there), ``secondary`` (the source is neither the paper
nor its repository) and ``note``.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from .records import Record
from .statistics import Summary, summarise
from .table import Column, Row, Table

FOLDER = Path(__file__).parent / "published"
SCHEMA = 1

# Half width of the band in which ours counts as agreeing: our own choice, about what two runs of one recipe differ by
# in the papers' ablations. In points of a percentage, else a share of the published value. The spread of our seeds does
# not widen it, or the less is known of a row the better it would agree.
TOLERANCE_POINTS = 0.5
TOLERANCE_SHARE = 0.02

# What the task data of suite ``paper`` are called in the papers. Other suites have other data: nothing to compare.
DATA_SETS = {
    ("paper", "classification"): "ImageNet-1K", ("paper", "segmentation"): "ADE20K", ("paper", "pose"): "COCO val2017",
    ("paper", "depth"): "NYUv2", ("paper", "tracking"): "LaSOT",
}  # fmt: skip
PRETRAINED_ON = "ImageNet-1K"  # pre-training data of suite ``paper``
PICTURES = {PRETRAINED_ON: 1_281_167, "ImageNet-22K": 14_197_122, "ImageNet-21K": 14_197_122}  # of the train parts
ABOUT = 0.02  # pictures seen that differ by less are the same: whole batches round them
OUR_METRICS = {"RMSE": "rmse", "knn": "top1"}  # published name -> ours; the others are the same
_FRACTIONS = frozenset({"d1", "d2", "d3"})  # published as a share of 1, by us in %
_UNIT = {"top1": "%", "mIoU": "%", "AP": "%", "AR": "%", "SUC": "%"}


class PublishedError(ValueError):
    """The published numbers cannot be read, or a name is not among them; one line."""


@dataclass(frozen=True)
class Number:
    """One published number; see the module's docstring for the fields."""

    paper: str  # slug: the file's name
    title: str
    table: str
    method: str
    arxiv: str | None
    backbone: str
    task: str
    dataset: str
    metric: str
    value: float
    protocol: str
    source: str
    verified: bool
    pretrain_data: str | None = None
    pretrain_epochs: int | None = None
    teacher: str | None = None
    secondary: bool = False
    note: str | None = None

    @property
    def mark(self) -> str:
        """What a reader must know of its standing: empty, or ``UNVERIFIED``, ``secondary``."""
        return "UNVERIFIED" if not self.verified else "secondary" if self.secondary else ""

    @property
    def seen(self) -> int | None:
        """Pictures of the pre-training, repetitions counted; None where the source does not say."""
        pictures = PICTURES.get(self.pretrain_data or "")
        return pictures * self.pretrain_epochs if pictures and self.pretrain_epochs else None

    @property
    def family(self) -> str | None:
        """The protocol in our words; None where there is no counterpart."""
        protocol = self.protocol.lower()
        if protocol.startswith("knn") or self.metric == "knn":
            return "knn"
        if protocol.startswith("linear"):
            return "frozen"
        return "finetune" if protocol.startswith(("finetune", "upernet")) else None


class PaperTable(NamedTuple):
    """One table of a paper."""

    paper: str
    title: str
    arxiv: str | None
    name: str
    numbers: tuple[Number, ...]
    missing: str | None

    @property
    def id(self) -> str:
        """``PAPER:TABLE``, as ``bench reproduce`` takes it."""
        return f"{self.paper}:{self.name}"

    @property
    def unverified(self) -> int:
        return sum(not number.verified for number in self.numbers)


@cache
def tables(folder: Path = FOLDER) -> tuple[PaperTable, ...]:
    """All tables, by paper and name.

    Raises:
        PublishedError: a file does not have the layout above.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                raise ValueError(f"schema {content['schema']}, known is {SCHEMA}")
            title = content["paper"]
            for name, numbers in sorted(content["tables"].items()):
                own = tuple(Number(path.stem, title, name, **number) for number in numbers)
                found.append(PaperTable(path.stem, title, content["arxiv"], name, own, content["missing"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise PublishedError(f"{path}: not a file of published numbers ({' '.join(str(error).split())})") from error
    return tuple(found)


def find(name: str, folder: Path = FOLDER) -> list[PaperTable]:
    """The tables that ``PAPER`` or ``PAPER:TABLE`` names; PAPER is the name listed, or the arXiv number.

    Returns:
        At least one table, or none where there is no such paper or table.
    """
    paper, _, table = name.partition(":")
    own = [t for t in tables(folder) if paper.lower() in (t.paper, (t.arxiv or "").lower(), t.title.lower())]
    return [t for t in own if not table or t.name == table.lower()]


# --- ours beside theirs -----------------------------------------------------------------------------------------------


class Beside(NamedTuple):
    """A published number and ours on the same data under the same metric. Values in our unit."""

    number: Number
    row: Row
    column: Column
    published: float
    summary: Summary  # of our seeds: those of the cell
    tolerance: float  # half width of the band, at least 0
    band: str  # where the band comes from
    same_backbone: bool

    @property
    def ours(self) -> float:
        return self.summary.mean

    @property
    def difference(self) -> float:
        """Ours less theirs."""
        return self.ours - self.published

    @property
    def seen_otherwise(self) -> bool:
        """Whether both say how many pictures their backbones saw, and it is not the same."""
        ours, theirs = self.row.cost.pretrain_images, self.number.seen
        return bool(ours and theirs) and abs(ours / theirs - 1) > ABOUT

    @property
    def within(self) -> bool:
        return abs(self.difference) <= self.tolerance


def data_set(record: Record) -> str | None:
    """The papers' name of a record's test data; None where they are nobody else's.

    The suite's data section may name it (``name``), else DATA_SETS knows it by suite and task.
    """
    section = record.config.get("data")
    name = section.get("name") if isinstance(section, dict) else None
    return name if isinstance(name, str) else DATA_SETS.get((record.suite, record.task))


def backbone_name(name: str) -> str:
    """timm's and the papers' names of one network in one form: ``vit-b16``, ``swinv2-b``."""
    tokens = re.findall(r"[a-z0-9]+", name.lower().replace("v2_", "v2 "))
    sizes = {"tiny": "t", "small": "s", "base": "b", "large": "l", "huge": "h", "giant": "g"}
    if len(tokens) < 2 or tokens[0] not in ("vit", "beit", "beitv2", "deit", "swin", "swinv2"):
        return "".join(tokens)
    kind, size = tokens[0], sizes.get(tokens[1], tokens[1])
    patch = ""
    if not kind.startswith("swin") and len(tokens) > 2 and (found := re.fullmatch(r"(?:patch|p)?(\d+)", tokens[2])):
        patch = found[1]
    return f"{kind}-{size}{patch}"


def beside(table: Table, folder: Path = FOLDER) -> list[Beside]:
    """Published numbers of the table's objectives on the same data, metric and protocol as ours, in a fixed order.

    Raises:
        PublishedError: as :func:`tables`.
    """
    numbers: dict[tuple[str, str, str, str | None], list[Number]] = {}
    for number in (n for t in tables(folder) for n in t.numbers):
        key = (number.method, number.dataset, OUR_METRICS.get(number.metric, number.metric), number.family)
        numbers.setdefault(key, []).append(number)
    found = []
    for row in table.rows:
        for column in table.columns:
            runs = row.cells[column.id].records
            names = {data_set(run) for run in runs if run.task_version == column.version}
            if len(names) != 1 or None in names:
                continue
            data = names.pop()
            for metric in sorted({name for run in runs for name in run.metrics}):
                for number in numbers.get((runs[0].objective, data or "", metric, column.protocol), ()):
                    found.append(_beside(number, row, column, runs, metric))
    return found


def _beside(number: Number, row: Row, column: Column, runs: Sequence[Record], metric: str) -> Beside:
    values = [run.metrics[metric] for run in runs if metric in run.metrics]
    unit = values[0]["unit"]
    published = in_our_unit(number, unit)
    band, width = tolerance(published, unit)
    same = backbone_name(number.backbone) == backbone_name(row.backbone)
    summary = summarise([value["value"] for value in values])
    return Beside(number, row, column, published, summary, width, band, same)


def in_our_unit(number: Number, unit: str) -> float:
    """The published value in ``unit``: some papers give shares of 1 where we give %."""
    fraction = unit == "%" and (number.metric in _FRACTIONS or (number.metric in _UNIT and number.value <= 1))
    return number.value * 100 if fraction else number.value


def tolerance(published: float, unit: str) -> tuple[str, float]:
    """Where the band comes from and its half width."""
    if unit == "%":
        return f"{TOLERANCE_POINTS:g} points", TOLERANCE_POINTS
    return f"{TOLERANCE_SHARE:.0%} of it", TOLERANCE_SHARE * abs(published)


def fixed_tolerance(value: float, unit: str) -> float:
    """Half width of the band, in the unit of ``value``; at least 0."""
    return tolerance(value, unit)[1]


HEADS = ("paper", "method", "backbone", "protocol", "data set", "metric", "published", "ours", "difference",
         "tolerance", "verdict", "standing")  # fmt: skip


def lines(pairs: Iterable[Beside]) -> list[tuple[str, ...]]:
    """The comparison as texts under HEADS."""
    made: list[tuple[str, ...]] = []
    for pair in pairs:
        number = pair.number
        verdict = "within" if pair.within else "outside"
        if not pair.same_backbone:
            verdict += f", ours is {pair.row.backbone}"
        if pair.seen_otherwise:
            verdict += f", ours saw {pair.row.cost.pretrain_images:,} pictures in pre-training, theirs {number.seen:,}"
        ends = pair.summary.ci95
        half = "" if ends is None else f" ± {(ends[1] - ends[0]) / 2:.3f}"
        made.append((
            f"{number.paper}:{number.table}", number.method, number.backbone, number.protocol, number.dataset,
            number.metric, f"{pair.published:.3f}".rstrip("0").rstrip("."), f"{pair.ours:.3f}{half}",
            f"{pair.difference:+.3f}", f"± {pair.tolerance:.3f} ({pair.band})", verdict, number.mark or "verified",
        ))  # fmt: skip
    return made


def legend(tables: Table | Sequence[Table], pairs: list[Beside]) -> str:
    """What the comparison means, or why there is none; one line."""
    if not pairs:
        suites = " or ".join(one.suite or "–" for one in ([tables] if isinstance(tables, Table) else tables))
        return (
            f"Published numbers: none is on the same data, metric and protocol as a row of suite {suites}; "
            "all of them: bench list tables."
        )
    return (
        "Published numbers stand beside ours and never enter a rank. Ours ± half width of the 95 % interval over "
        "seeds. Difference: ours less theirs; the tolerance is a fixed one, whatever our seeds spread. UNVERIFIED: not "
        "seen in the source named. secondary: the source is neither the paper nor its repository."
    )


ALONE_HEADS = ("paper", "method", "backbone", "pre-trained on", "epochs", "data set", "protocol", "metric", "published",
               "standing", "source")  # fmt: skip


def alone(ours: Iterable[Table], pairs: Iterable[Beside], folder: Path = FOLDER) -> list[tuple[str, ...]]:
    """Published numbers of our tables' objectives that nothing of ours stands beside, as texts under ALONE_HEADS.

    Raises:
        PublishedError: as :func:`tables`.
    """
    objectives = {run.objective for one in ours for row in one.rows for run in row.runs}
    compared = {id(pair.number) for pair in pairs}
    return [
        (f"{number.paper}:{number.table}", number.method, number.backbone, number.pretrain_data or "–",
         "–" if number.pretrain_epochs is None else str(number.pretrain_epochs), number.dataset, number.protocol,
         number.metric, f"{number.value:g}", number.mark or "verified", number.source)
        for paper_table in tables(folder) for number in paper_table.numbers
        if number.method in objectives and id(number) not in compared
    ]  # fmt: skip


def text(table: Table, pairs: list[Beside], format: str) -> str:
    """The comparison in ``terminal``, ``md``, ``csv`` or ``tex``, ending in a line break.

    Raises:
        ValueError: another format.
    """
    from tabulate import tabulate

    rows, note = lines(pairs), legend(table, pairs)
    if format == "csv":
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([HEADS, *rows])
        return file.getvalue()
    styles = {"terminal": "simple", "md": "github", "tex": "latex_booktabs"}
    if format not in styles:
        raise ValueError(f"no format {format!r} here; there are csv, {', '.join(styles)}")
    if not rows:
        return f"% {note}\n" if format == "tex" else f"{note}\n"
    if format == "md":
        rows = [tuple(cell.replace("|", "\\|").replace("<", "&lt;") for cell in row) for row in rows]
        rows = [(*row[:-1], f"**{row[-1]}**" if row[-1] == "UNVERIFIED" else row[-1]) for row in rows]
    return tabulate(rows, HEADS, tablefmt=styles[format], disable_numparse=True) + f"\n\n{note}\n"


def as_json(pairs: Iterable[Beside]) -> list[dict[str, Any]]:
    """The comparison for programs: an object a pair, values in our unit."""
    return [
        {
            "table": f"{p.number.paper}:{p.number.table}", "method": p.number.method, "backbone": p.number.backbone,
            "protocol": p.number.protocol, "dataset": p.number.dataset, "metric": p.number.metric,
            "source": p.number.source, "verified": p.number.verified, "published": p.published,
            "row": p.row.objective, "column": p.column.id, "our_backbone": p.row.backbone, "ours": p.ours,
            "ours_ci95": None if p.summary.ci95 is None else list(p.summary.ci95), "n": p.summary.n,
            "difference": p.difference, "tolerance": p.tolerance, "within": p.within,
        }
        for p in pairs
    ]  # fmt: skip
