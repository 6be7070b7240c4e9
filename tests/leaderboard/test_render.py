import csv
import io
import json
import re
import shutil
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from leaderboard.records import InvalidRecord, read_records, write_record
from leaderboard.render import FORMATS, print_terminal, render
from leaderboard.table import build

EVIL = "<script>alert('x')</script> | a_b* [red] \\input{x} $1% & #"


@pytest.fixture
def table(make_record):
    records = []
    for objective, base in (("mae", 50.0), ("maskdistill", 61.25), (EVIL, 55.5), ("=cmd", 20.0)):
        for task in ("classification", "depth"):
            for seed in range(3):
                value = base + 0.7 * seed if task == "classification" else 30 / base + 0.01 * seed
                records.append(make_record(value, objective=objective, task=task, seed=seed))
    records.append(make_record(None, objective="mae", task="pose", reason="<b>out</b> of | memory"))
    return build(records, [InvalidRecord(Path("bad/result.json"), "not <JSON>")])


def terminal(table, width=400, **options) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    print_terminal(table, console)
    return console.file.getvalue()


class Cells(HTMLParser):
    """Texts of the table's cells row by row, and all tags met."""

    def __init__(self):
        super().__init__()
        self.rows, self.tags, self.inside = [], set(), False

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        self.inside = tag in ("td", "th") or (self.inside and tag != "div")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def test_the_fixed_table_in_markdown(table):
    text = render(table, "md")
    assert "classification · frozen v1 · top1 (%) ↑" in text
    assert "depth · frozen v1 · rmse (m) ↓" in text
    line = next(line for line in text.splitlines() if "maskdistill" in line)
    assert "**61.95 ± 1.74**" in line
    second = next(line for line in text.splitlines() if "script" in line)
    assert "<u>56.20 ± 1.74</u>" in second
    assert "<script" not in text
    assert "failed <sup>1</sup>" in text
    assert r"1. mae, pose.frozen, seed 0: failed: &lt;b&gt;out&lt;/b&gt; of \| memory" in text
    assert "2. invalid: bad/result.json: not &lt;JSON&gt;" in text
    assert "Student t" in text


def test_markdown_renders_names_as_they_are(table):
    reader = Cells()
    reader.feed(MarkdownIt("commonmark").enable("table").render(render(table, "md")))
    assert "script" not in reader.tags
    assert EVIL in [row[1] for row in reader.rows]
    assert {len(row) for row in reader.rows} == {8}


def test_html_is_one_safe_file(table):
    text = render(table, "html")
    reader = Cells()
    reader.feed(text)
    assert not {"link", "img", "b", "iframe", "object"} & reader.tags
    assert text.count("<script") == 1  # the page's own; EVIL's is text
    assert not re.search(r"https?://|@import|url\(", text)
    rows = [row for row in reader.rows if len(row) > 1]  # the others hold the runs
    assert EVIL in [row[1] for row in rows]
    assert "prefers-color-scheme: dark" in text
    assert {len(row) for row in rows} == {8}
    assert len(reader.rows) - len(rows) == len(table.rows)


def test_json_has_the_agreed_schema(table):
    document = json.loads(render(table, "json"))
    assert list(document) == ["schema", "suite", "columns", "rows", "notes"]
    assert (document["schema"], document["suite"]) == (1, "embedded")
    assert document["columns"][0] == {
        "id": "classification.frozen", "task": "classification", "metric": "top1", "higher_is_better": True,
        "protocol": "frozen", "version": 1,
    }  # fmt: skip
    first = document["rows"][0]
    assert list(first) == ["objective", "backbone", "budget", "cells", "rank", "cost"]
    assert (first["objective"], first["rank"], first["budget"]) == ("maskdistill", 1.0, "default")
    cell = first["cells"]["classification.frozen"]
    assert list(cell) == ["mean", "ci95", "n", "status", "rank"]
    assert cell["rank"] == 1
    assert cell["mean"] == pytest.approx(61.95)
    assert cell["ci95"] == pytest.approx([60.2111, 63.6889], abs=1e-4)
    failed = next(row for row in document["rows"] if row["objective"] == "mae")["cells"]["pose.frozen"]
    assert failed == {"mean": None, "ci95": None, "n": 0, "status": "failed", "rank": None}
    assert first["cells"]["pose.frozen"]["status"] == "missing"
    assert first["cost"]["pretrain_images"] == 100_000


def test_csv_can_be_read_back(table):
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert rows[0]["objective"] == "maskdistill"
    assert EVIL in [row["objective"] for row in rows]
    assert "'=cmd" in [row["objective"] for row in rows]
    assert rows[0]["depth.frozen.rmse"] == "0.500"
    assert rows[0]["depth.frozen.rmse.n"] == "3"


def test_latex_is_escaped_and_balanced(table):
    text = render(table, "tex")
    assert r"\toprule" in text
    assert r"\textbf{61.95 $\pm$ 1.74}" in text
    assert r"\textbackslash{}input\{x\}" in text
    assert r"\$1\% \& \#" in text
    bare = re.sub(r"\\[{}\\$&%#_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    body = bare[bare.index(r"\midrule") : bare.index(r"\bottomrule")].strip().splitlines()[1:]
    assert [line.count("&") for line in body] == [7] * 4


def test_latex_compiles_with_booktabs_alone(table, make_record, tmp_path):
    latex = shutil.which("pdflatex")
    if latex is None:
        pytest.skip("no pdflatex here (Debian: apt install texlive-latex-recommended)")
    rows = ((1.0, "default", 1), (2.0, "long", 2), (3.0, "long", 1))
    budgets = build([make_record(v, objective=f"o{v}", budget=budget, task_version=n) for v, budget, n in rows])
    body = render(table, "tex") + render(budgets, "tex") + render(build([]), "tex")
    lines = [r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}", body, r"\end{document}"]
    (tmp_path / "board.tex").write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run(
        [latex, "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "board.tex"], cwd=tmp_path,
        capture_output=True, text=True, errors="replace", timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "board.pdf").stat().st_size > 1000


def test_terminal(table):
    text = terminal(table)
    assert EVIL in text
    assert "61.95 ± 1.74" in text
    assert "[1] mae, pose.frozen, seed 0: failed: <b>out</b> of | memory" in text
    assert "Budget default (100,000 images). All rows: backbone vit_tiny, 3 seeds, 2 CPU cores." in text


def test_a_narrow_terminal_still_shows_every_number(table):
    text = terminal(table, width=80, force_terminal=True, color_system=None)
    assert max(map(len, text.splitlines())) <= 80
    for row in table.rows:
        assert all(cell.text in text for cell in row.cells.values())


def test_a_pipe_gets_whole_rows(table):
    line = next(line for line in terminal(table, width=20).splitlines() if "maskdistill" in line)
    assert "61.95 ± 1.74" in line
    assert "0.500 ± 0.025" in line


def test_numbers_are_the_same_in_all_formats(table):
    shown = {cell.text for row in table.rows for cell in row.cells.values() if cell.status == "ok"}
    assert len(shown) == 8
    number = re.compile(r"\d+\.\d\d+ ± \d+\.\d\d+")
    assert set(number.findall(render(table, "md"))) == shown
    assert set(number.findall(render(table, "html"))) == shown
    assert set(number.findall(terminal(table))) == shown
    assert set(number.findall(render(table, "tex").replace(r"$\pm$", "±"))) == shown
    in_csv, in_json = set(), set()
    for row in csv.DictReader(io.StringIO(render(table, "csv"))):
        for name in ("classification.frozen.top1", "depth.frozen.rmse"):
            in_csv.add(f"{row[name]} ± {row[name + '.half_ci95']}")
    for row in json.loads(render(table, "json"))["rows"]:
        for name, digits in (("classification.frozen", 2), ("depth.frozen", 3)):
            cell = row["cells"][name]
            half = (cell["ci95"][1] - cell["ci95"][0]) / 2
            in_json.add(f"{cell['mean']:.{digits}f} ± {half:.{digits}f}")
    assert in_csv == in_json == shown


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_table_has_every_format(format):
    assert render(build([]), format).endswith("\n")
    assert "Suite" in terminal(build([]))


def test_an_unknown_format_names_the_known_ones(table):
    with pytest.raises(ValueError, match="md, html, csv, tex, json"):
        render(table, "pdf")


def test_two_thousand_records(tmp_path, make_record):
    tasks = ("classification", "segmentation", "pose", "depth", "tracking")
    for i in range(2000):
        record = make_record(
            1 + i % 97 / 10, objective=f"objective{i // 50}", task=tasks[i % 5], seed=i // 5 % 10,
            config={f"option{k}": k / 7 for k in range(50)},
        )  # fmt: skip
        folder = tmp_path / f"{i:04}"
        folder.mkdir()
        (folder / "result.json").write_bytes(write_record(tmp_path / "one", record).read_bytes())
    (tmp_path / "one" / "result.json").unlink()
    start = time.process_time()
    records, invalid = read_records([tmp_path])
    table = build(records, invalid)
    texts = [render(table, format) for format in FORMATS]
    seconds = time.process_time() - start
    print(f"2,000 records read and rendered in {seconds:.2f} s")
    assert (len(records), len(invalid), len(table.rows)) == (2000, 0, 40)
    assert all("objective39" in text for text in texts)
    assert seconds < 20


def test_importing_loads_nothing_heavy():
    code = """
import sys
import leaderboard, leaderboard.records, leaderboard.render, leaderboard.statistics, leaderboard.table
heavy = ("torch", "torchvision", "timm", "numpy", "scipy", "matplotlib", "rich", "jinja2", "tabulate")
print(sorted(name for name in sys.modules if name in heavy or name.startswith("mm") and name != "mmap"))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_a_table_loads_neither_torch_nor_openmmlab(tmp_path, make_record):
    for seed in range(2):
        write_record(tmp_path / str(seed), make_record(50.0 + seed, seed=seed))
    code = f"""
import sys
from pathlib import Path
from leaderboard.records import read_records
from leaderboard.render import FORMATS, print_terminal, render
from leaderboard.table import build
table = build(*read_records([Path({str(tmp_path)!r})]))
for format in FORMATS:
    render(table, format)
print_terminal(table)
heavy = {{name.split(".")[0] for name in sys.modules}}
print(sorted(heavy & {{"torch", "torchvision", "timm", "mmengine", "mmcv", "mmpretrain", "mmseg", "mmpose", "mmdet"}}))
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip().splitlines()[-1] == "[]"
