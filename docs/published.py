"""Makes ``leaderboard/published/`` from a list of published results: ``python docs/published.py SOURCE.yaml``.

The source is YAML with ``entries``, one mapping a number (``paper``, ``arxiv``, ``table``, ``objective``, ``backbone``,
``pretrain_data``, ``pretrain_epochs``, ``task``, ``dataset``, ``metric``, ``value``, ``protocol``, ``source``,
``verified``), and ``missing``, what could not be looked up. One JSON file a paper comes out, one line a number.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent.parent / "leaderboard" / "published"
# (letters by which the source refers to papers, and how it was searched, say nothing to a reader)
WORDS = (
    (re.compile(r" \(third-party reproduction of U\)"), " (third-party reproduction)"),
    (re.compile(r" \(third-party run of the D code\)"), " (third party)"),
    (re.compile(r" \(unofficial, base of the B code\)"), " (unofficial)"),
    (re.compile(r"GitHub text id \d+ \(\w+\), table of ExPLoRe"), "comparison table in the repository of ExPLoRe"),
    (re.compile(r"recollection of the paper is (.*), UNVERIFIED"), r"the paper may give \1"),
)
METHODS = {"zoomed_in+mask": "zoomed_in_mask"}  # source's name -> name of our objective
KEPT = ("backbone", "teacher", "pretrain_data", "pretrain_epochs", "task", "dataset", "metric", "value", "protocol",
        "source", "verified", "secondary", "note")


def slug(text: str) -> str:
    """Lower-case letters, digits and dashes: a file name and a word on the command line."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def files(source: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """File name -> content, from the parsed source."""
    missing = {str(entry["paper"]): f"{entry['what']} ({entry['why']})" for entry in source.get("missing", ())}
    made: dict[str, dict[str, Any]] = {}
    for entry in source["entries"]:
        entry = {key: _worded(value) for key, value in entry.items()}
        paper = slug(entry["paper"].split(" (")[0])
        own = made.setdefault(paper, {
            "schema": 1, "paper": entry["paper"], "arxiv": entry["arxiv"], "missing": None, "tables": {},
        })
        if own["arxiv"] != entry["arxiv"]:  # a model zoo: of several papers
            own["arxiv"] = None
        table = slug(entry["table"] or entry["task"])
        number = {"method": METHODS.get(entry["objective"], entry["objective"]), "arxiv": entry["arxiv"]}
        number |= {key: entry[key] for key in KEPT if entry.get(key) is not None}
        own["tables"].setdefault(table, []).append(number)
    for own in made.values():
        own["missing"] = missing.get(own["arxiv"] or "")
    return made


def _worded(value: Any) -> Any:
    if isinstance(value, str):
        for pattern, words in WORDS:
            value = pattern.sub(words, value)
    return value


def text(content: dict[str, Any]) -> str:
    """JSON with a line for every number."""
    lines = [f' {json.dumps(key)}: {json.dumps(content[key], ensure_ascii=False)},'
             for key in ("schema", "paper", "arxiv", "missing")]
    tables = []
    for name, numbers in content["tables"].items():
        rows = ",\n".join("   " + json.dumps(number, ensure_ascii=False) for number in numbers)
        tables.append(f"  {json.dumps(name)}: [\n{rows}\n  ]")
    return "{\n" + "\n".join(lines) + '\n "tables": {\n' + ",\n".join(tables) + "\n }\n}\n"


def main() -> int:
    """Write the files anew."""
    if len(sys.argv) != 2:
        print("usage: python docs/published.py SOURCE.yaml", file=sys.stderr)
        return 2
    made = files(yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8")))
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for name, content in made.items():
        (FOLDER / f"{name}.json").write_text(text(content), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
