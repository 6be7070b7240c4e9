"""Writes the generated parts of README.md, docs/leaderboard.html and docs/dark-secrets.md from committed records:
``python docs/make.py``; ``--check`` only compares.

``--collect RUNS`` first copies records, analyses and logs of a runs folder (never weights) to ``leaderboard/records``.
``--backbones`` also tries every objective on every kind of backbone (a minute) and writes docs/backbones.md.

A part stands between ``<!-- NAME: … -->`` and ``<!-- /NAME -->``; a test fails when it no longer agrees.
"""

from __future__ import annotations

import re
import shutil
import sys
from functools import partial
from pathlib import Path

from leaderboard import claims
from leaderboard.analyses import read_analyses
from leaderboard.page import page
from leaderboard.records import ANALYSIS, read_records
from leaderboard.render import render
from leaderboard.table import Table, build
from objectives.recipe import recipes

ROOT = Path(__file__).parent.parent
PARTS = {"board": "embedded", "mini": "mini"}  # name of the part -> suite


PAGE = ROOT / "docs" / "leaderboard.html"
SECRETS = ROOT / "docs" / "dark-secrets.md"
RECORDS = ROOT / "leaderboard" / "records"
KEPT = ("result.json", "log.jsonl", "backbone.json", ANALYSIS)


def collect(runs: Path) -> None:
    """Copy records, logs and descriptions of backbones from ``runs``."""
    for suite in PARTS.values():
        for path in sorted((runs / suite).rglob("*")):
            scored = any(path.parent.parent.glob("*/result.json"))  # a backbone that no task has scored proves nothing
            if path.name in KEPT and scored:
                target = RECORDS / path.relative_to(runs)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)


def built(suite: str) -> Table | None:
    """The table of a suite's committed records; None where there are none."""
    folder = RECORDS / suite
    if not folder.is_dir():
        return None
    records, invalid = read_records([folder])
    return build(records, invalid, suite=suite)


def table(suite: str) -> str:
    """A suite's committed records as markdown; empty where there are none."""
    made = built(suite)
    return "" if made is None else render(made, "md").strip()


def html() -> str:
    """All suites as one page."""
    made = [made for suite in PARTS.values() if (made := built(suite)) is not None]
    return page(made, analyses=read_analyses([RECORDS]))


def secrets() -> str:
    """The claims about masked image modelling held against the records, as markdown."""
    return claims.document(read_records([RECORDS])[0], read_analyses([RECORDS]), list(PARTS.values()))


def objectives() -> str:
    """The registered objectives as markdown."""
    rows = ["| objective | paper | in one line |", "|---|---|---|"]
    for name, recipe in sorted(recipes().items()):
        paper = f"[{recipe.paper}](https://arxiv.org/abs/{recipe.paper})" if recipe.paper != "-" else "baseline"
        rows.append(f"| [`{name}`](objectives/zoo/{name}.py) | {paper} | {recipe.summary} |")
    return "\n".join(rows)


def written(text: str) -> str:
    """README with every part made anew."""
    made_by = {**{name: partial(table, suite) for name, suite in PARTS.items()}, "objectives": objectives}
    for name, make in made_by.items():
        pattern = re.compile(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        made = make()
        text = pattern.sub(lambda found, made=made: found[1] + (made + "\n" if made else "") + found[2], text)
    return text


def main() -> int:
    """Write, or with ``--check`` say whether the file is up to date."""
    if "--collect" in sys.argv:
        collect(Path(sys.argv[sys.argv.index("--collect") + 1]))
    if "--backbones" in sys.argv:
        from objectives import compatibility

        (ROOT / "docs" / "backbones.md").write_text(compatibility.markdown(compatibility.table()))
    path = ROOT / "README.md"
    old = path.read_text()
    made = {path: written(old), PAGE: html(), SECRETS: secrets()}
    if "--check" in sys.argv:
        return int(any(not file.is_file() or file.read_text(encoding="utf-8") != text for file, text in made.items()))
    for file, text in made.items():
        file.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
