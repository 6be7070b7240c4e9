"""Writes the generated parts of README.md, docs/results.md and docs/data.md, and docs/leaderboard.html,
docs/dark-secrets.md, docs/scaling.md, docs/speed.md and docs/figures, from committed records: ``python docs/make.py``;
``--help`` says what else it can do.

A part stands between ``<!-- NAME: … -->`` and ``<!-- /NAME -->``; a test fails when it no longer agrees.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

import scaling
import speed

from benchmarks import suite as suites
from benchmarks.suite import declared_settings
from leaderboard import claims, figures
from leaderboard.analyses import read_analyses
from leaderboard.cost import ARITHMETIC, arithmetic_key
from leaderboard.page import PICTURE, page
from leaderboard.published import beside
from leaderboard.records import ANALYSIS, InvalidRecord, Record, read_records
from leaderboard.render import md, render
from leaderboard.table import PROTOCOL_ORDER, Cell, Table, build
from objectives.recipe import recipes

ROOT = Path(__file__).parent.parent
COUNTED = {"paper": 2}  # pictures of the step that is counted, where the suite's are too many for a small machine
PARTS = {"board": ("embedded", "frozen"), "mini": ("mini", "frozen"), "paper": ("paper", "finetune")}
"""Name of a part -> suite, and the protocol that its table ranks."""
SUITES = tuple(suite for suite, _ in PARTS.values())

NETWORKS = {"efficientnet-lite0": "EfficientNet-Lite0, ImageNet labels"}  # source of a frozen teacher -> in words
LEARNS_FROM = {  # type of the teacher -> in words
    "NoTeacher": "–", "Pixels": "pixels", "ViewPixels": "pixels", "HOG": "gradients of pixels", "Labels": "labels",
    "DiscreteVAE": "a tokenizer of the same pictures", "VQKD": "a tokenizer of {network}",
    "FrozenNetwork": "{network}", "LayerAverage": "its moving average", "MomentumTeacher": "its moving average",
    "CentredTeacher": "its moving average",
}
FILES = ("train", "val", "part", "train_list", "test_list", "train_images", "val_images", "train_annotations",
         "val_annotations", "val_boxes")  # keys of a data section that name files or folders in its root
WITH_PARTS = (ROOT / "README.md", ROOT / "docs" / "results.md", ROOT / "docs" / "data.md")
PAGE = ROOT / "docs" / "leaderboard.html"
SECRETS = ROOT / "docs" / "dark-secrets.md"
SCALING = ROOT / "docs" / "scaling.md"
SPEED = ROOT / "docs" / "speed.md"
SPEEDS = ROOT / "benchmarks" / "speed"
CURVES = SPEEDS / "scaling-cpu.json"
RECORDS = ROOT / "leaderboard" / "records"
FIGURES = ROOT / "docs" / "figures"
KEPT = ("result.json", "log.jsonl", "backbone.json", ANALYSIS, f"{PICTURE}.webp")


def collect(runs: Path) -> None:
    """Copy records, logs and descriptions of backbones from ``runs``."""
    for suite in SUITES:
        for path in sorted((runs / suite).rglob("*")):
            scored = any(path.parent.parent.glob("*/result.json"))  # a backbone that no task has scored proves nothing
            if path.name in KEPT and scored:
                target = RECORDS / path.relative_to(runs)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


@cache
def read(suite: str) -> tuple[list[Record], list[InvalidRecord]]:
    """A suite's committed records."""
    folder = RECORDS / suite
    return read_records([folder]) if folder.is_dir() else ([], [])


@cache
def built(suite: str, *protocols: str) -> Table | None:
    """The table of a suite's committed records under some protocols; None where there are none."""
    records, invalid = read(suite)
    kept = [record for record in records if record.protocol in protocols]
    invalid = [error for error in invalid if error.cell is None or error.cell.protocol in protocols]
    return build(kept, invalid, suite=suite, declared=declared_settings) if kept else None


def table(suite: str, protocol: str) -> str:
    """A suite's committed records as markdown, with its figures; empty where there are none."""
    made = built(suite, protocol)
    if made is None:
        return ""
    links = [f"![{title}](figures/{name})" for name, (title, _) in drawings(suite, protocol).items()]
    return "\n\n".join([render(made, "md").strip(), *links])


def summary(suite: str, protocol: str, budget: str) -> str:
    """A budget's rows with what a first look needs: mean rank, scores and their intervals over seeds, as markdown."""
    made = built(suite, protocol)
    group = next((group for group in made.groups if group.budget == budget), None) if made else None
    if made is None or group is None:
        return ""
    heads = ["objective", "seeds", "mean rank", *(f"{column.task} · {column.measure}" for column in made.columns)]
    rows = [[f"`{row.objective}`", row.seeds_text, row.rank_text,
             *(md(row.cells[column.id].seeds_text) for column in made.columns)] for row in group.rows]
    return scaling.table(heads, rows) + (
        f"\n\nSuite {suite}, {group.heading[0].lower()}{group.heading[1:]}, protocol {protocol}; ±: half the 95 % "
        "interval over seeds; a rank is one more than the number of rows that are significantly better.")


def sets() -> str:
    """What suite ``paper`` looks for below ``--data-root``, as markdown."""
    suite = suites.get("paper")
    used: dict[tuple[str, str], list[str]] = {}
    for task, section in {"pre-training": suite.pictures, **suite.data}.items():
        parts = [section] if "root" in section else [part for parts in section.values() for part in parts]
        for part in parts:
            listed = [value for key, value in part.items() if key in FILES for value in _several(value) if value]
            used.setdefault((part["root"], ", ".join(f"`{name}`" for name in dict.fromkeys(listed))), []).append(task)
    rows = [[f"`{root}/`", names or "–", ", ".join(dict.fromkeys(tasks))] for (root, names), tasks in used.items()]
    sources = [[task, suite.sources[task]] for task in suite.sources]
    return "\n\n".join([scaling.table(["folder below --data-root", "it must hold", "for"], rows),
                         scaling.table(["set of", "where to get it"], sources)])


def _several(value: Any) -> list[str]:
    return list(value) if isinstance(value, list | tuple) else [value]


def by_protocol(suite: str) -> str:
    """Rows scored under several protocols, on the seeds that all of a row's tasks there have, as markdown; no ranks."""
    of_row: dict[tuple[str, str, str], dict[tuple[str, str], set[int]]] = {}
    records = [record for record in read(suite)[0] if not record.variant]
    for record in records:
        if record.status == "ok":
            row = of_row.setdefault((record.objective, record.backbone, record.budget), {})
            row.setdefault((record.protocol, record.task), set()).add(record.seed)
    seeds = {row: set.intersection(*found.values()) for row, found in of_row.items() if len({p for p, _ in found}) > 1}
    kept = [record for record in records
            if record.seed in seeds.get((record.objective, record.backbone, record.budget), ())]
    made = build(kept, suite=suite, declared=declared_settings)
    parts = []
    for group in made.groups:
        heads: dict[str, str] = {}
        for column in made.columns:
            heads.setdefault(column.task, f"{column.task} · {column.measure}")
        rows = [["protocol", "objective", *heads.values()], ["---"] * (2 + len(heads))]
        for protocol in PROTOCOL_ORDER:
            for row in group.rows:
                cells = [row.cells.get(f"{task}.{protocol}") for task in heads]
                if any(cell and cell.n for cell in cells):
                    rows.append([protocol, row.objective, *(_marked(cell) if cell else "–" for cell in cells)])
        many = sorted({str(seed) for row, found in seeds.items() if row[2] == group.budget for seed in found})
        parts += [f"**Suite {suite}, {group.heading[0].lower()}{group.heading[1:]}, seed {', '.join(many)}.**",
                  "\n".join("| " + " | ".join(row) + " |" for row in rows)]
    notes = "\n".join(f"{number}. {md(note)}" for number, note in enumerate(made.notes, 1))
    return "\n\n".join([*parts, notes] if notes else parts)


def _marked(cell: Cell) -> str:
    return md(cell.seeds_text) + (f" <sup>{', '.join(cell.marks)}</sup>" if cell.marks else "")


def drawings(suite: str, protocol: str) -> dict[str, tuple[str, str]]:
    """Figures of a suite: file name -> title, SVG. For each budget scores with intervals, and cost against score."""
    found = {}
    made = built(suite, protocol)
    for group in made.groups if made else ():
        kinds = {
            "scores": ("scores with 95 % intervals (thick: seeds, thin: test items)", figures.bars),
            "cost": ("score against cost (filled: the Pareto front)", figures.pareto),
        }
        for kind, (words, draw) in kinds.items():
            title = f"Suite {suite}, {group.heading[0].lower()}{group.heading[1:]}: {words}"
            parts = [(" · ".join(column.heading), draw(group.rows, column)) for column in made.columns]
            if svg := figures.sheet(title, parts):
                found[f"{suite}-{group.budget}-{kind}.svg"] = (title, svg)
    return found


def arithmetic() -> str:
    """Operations a picture of every objective on the suites' own backbones, as JSON."""
    import torch

    from benchmarks.plan import resolve
    from benchmarks.speed import ours
    from benchmarks.speed_flops import counted
    from objectives.arithmetic import Arithmetic

    rows: dict[str, str] = {}
    for suite in SUITES:
        for name, recipe in sorted(recipes().items()):
            if not recipe.trains:
                continue
            pretraining = resolve(recipe, suites.get(suite), "default", ())
            batch = COUNTED.get(suite, suites.get(suite).batch_size)
            key = arithmetic_key(json.loads(json.dumps(pretraining.config(), default=str)))
            if key not in rows:  # suites may share their network
                step = ours(pretraining, batch, Arithmetic(), torch.device("cpu")).step
                gflops = counted(step) / batch / 1e9
                rows[key] = json.dumps({"key": key, "objective": name, "gflops": round(gflops, 5)})
    lines = ",\n".join(f"  {row}" for row in rows.values())
    return f'{{"schema": 1, "unit": "10^9 operations a picture, forward and backward", "rows": [\n{lines}\n]}}\n'


def html() -> str:
    """All suites as one page, the protocols that README does not rank in tables of their own."""
    protocols = [(suite, rest) for suite, first in PARTS.values()
                 for rest in ((first,), tuple(name for name in PROTOCOL_ORDER if name != first))]
    made = [made for suite, shown in protocols if (made := built(suite, *shown)) is not None]
    return page(made, [pair for one in made for pair in beside(one)], analyses=read_analyses([RECORDS]))


def secrets() -> str:
    """The claims about masked image modelling held against the records, as markdown."""
    return claims.document(read_records([RECORDS])[0], read_analyses([RECORDS]), list(SUITES))


def objectives() -> str:
    """The registered objectives as markdown."""
    rows = ["| objective | paper | in one line | learns from |", "|---|---|---|---|"]
    for name, recipe in sorted(recipes().items()):
        if not (ROOT / "objectives" / "zoo" / f"{name}.py").is_file():  # of another package that is installed here
            continue
        source = recipe.teacher.get("source", "")
        words = LEARNS_FROM.get(recipe.teacher["type"], recipe.teacher["type"])
        learns_from = words.format(network=NETWORKS.get(source, source))
        paper = f"[{recipe.paper}](https://arxiv.org/abs/{recipe.paper})" if recipe.paper != "-" else "baseline"
        rows.append(f"| [`{name}`](objectives/zoo/{name}.py) | {paper} | {recipe.summary} | {learns_from} |")
    return "\n".join(rows)


def written(text: str) -> str:
    """A document with every part made anew."""
    made_by = {**{name: partial(table, *part) for name, part in PARTS.items()}, "objectives": objectives, "sets": sets,
               "summary": partial(summary, *PARTS["board"], "long"),
               **{f"protocols of {suite}": partial(by_protocol, suite) for suite in ("embedded", "mini")},
               "hours": partial(scaling.hours, ("mae", "simmim", "maskdistill", "dino"))}
    for name, make in made_by.items():
        pattern = re.compile(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not pattern.search(text):
            continue
        made = make()
        text = pattern.sub(lambda found, made=made: found[1] + (made + "\n" if made else "") + found[2], text)
    return text


def main() -> int:
    """Write the documents, or with ``--check`` name those that are out of date."""
    parser = argparse.ArgumentParser(description="Make the documents' tables, pages and figures from the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where something would change")
    parser.add_argument(
        "--collect", type=Path, metavar="RUNS", help="first copy the records, analyses, logs and sheets of pictures of "
        "this folder, never weights, to leaderboard/records")
    parser.add_argument(
        "--backbones", action="store_true", help="also try every objective on every kind of backbone (a minute) and "
        "write docs/backbones.md")
    parser.add_argument(
        "--flops", action="store_true", help="also count the arithmetic of every objective on the suites' backbones "
        "(some minutes) and write leaderboard/arithmetic.json")
    asked = parser.parse_args()
    if asked.collect:
        collect(asked.collect)
    if asked.backbones:
        from objectives import compatibility

        (ROOT / "docs" / "backbones.md").write_text(compatibility.markdown(compatibility.table()))
    if asked.flops:
        ARITHMETIC.write_text(arithmetic(), encoding="utf-8")
    drawn = {FIGURES / n: svg for part in PARTS.values() for n, (_, svg) in drawings(*part).items()}
    documents = {path: written(path.read_text(encoding="utf-8")) for path in WITH_PARTS}
    made = {**documents, PAGE: html(), SECRETS: secrets(),
            SCALING: scaling.page(read_records([RECORDS])[0], CURVES), SPEED: speed.page(SPEEDS), **drawn}
    stale = set(FIGURES.glob("*.svg")) - set(drawn)
    if asked.check:
        differ = [f for f, text in made.items() if not f.is_file() or f.read_text(encoding="utf-8") != text]
        for file in sorted([*differ, *stale]):
            print(f"out of date: {file.relative_to(ROOT)}")
        return int(bool(differ) or bool(stale))
    FIGURES.mkdir(exist_ok=True)
    for file, text in made.items():
        file.write_text(text, encoding="utf-8")
    for file in stale:
        file.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
