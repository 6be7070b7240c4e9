import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from leaderboard import figures
from leaderboard.page import page
from leaderboard.published import beside
from leaderboard.records import read_records, write_record
from leaderboard.table import build

EVIL = "<script>alert(1)</script>\"' onload=x"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


@pytest.fixture
def runs(tmp_path, make_record):
    for number, objective in enumerate(("mae", "simmim", EVIL)):
        for seed in range(2):
            values = {"classification": 40.0 + 9 * number + seed, "depth": 1 / (1 + number) + 0.01 * seed}
            for task, value in values.items():
                folder = tmp_path / "embedded" / f"o{number}" / f"seed{seed}" / f"{task}.frozen"
                cost = {**make_record().cost, "seconds": 10.0 + number}
                variant = {"objective.loss.type": EVIL} if objective == EVIL else {}
                write_record(folder, make_record(
                    value, objective=objective, task=task, seed=seed, cost=cost, variant=variant,
                    items={"top1": [value] * 20} if task == "classification" else None,
                ))  # fmt: skip
                entries = [{"step": step, "loss": 2 / step} for step in range(1, 30)]
                (folder / "log.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n{half a li")
    return tmp_path


@pytest.fixture
def text(runs):
    return page(build(*read_records([runs])))


def test_names_are_text(text):
    found = Page(text)
    assert len(found.of("script")) == 1
    assert EVIL in found.text
    assert not any(name.startswith("on") for _, attrs in found.tags for name in attrs)
    assert not re.search(r"https?://|@import|url\(", text)


def test_the_policy_allows_just_the_pages_own_script(text):
    script = re.search(r"<script>(.*)</script>\n</body>", text, re.DOTALL)[1]
    policy = next(attrs["content"] for attrs in Page(text).of("meta") if "http-equiv" in attrs)
    assert "default-src 'none'" in policy
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy


def test_the_script_parses(text, tmp_path):
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node to parse the script with")
    path = tmp_path / "page.js"
    path.write_text(re.search(r"<script>(.*)</script>\n</body>", text, re.DOTALL)[1])
    done = subprocess.run([node, "--check", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_control_has_a_name_and_a_target(text):
    found = Page(text)
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {f"filter-{name}" for name in ("suite", "budget", "task", "protocol", "name")} <= set(ids)
    targets = [attrs["aria-controls"] for attrs in found.of("button") if "aria-controls" in attrs]
    assert len(targets) == 3
    assert set(targets) <= set(ids)
    assert all(attrs["aria-label"] for attrs in found.of("svg"))
    assert "tr.main > th" in text  # the style sheet is not escaped
    assert found.of("meta")[2]["content"] == "width=device-width, initial-scale=1"


def test_each_row_opens_its_runs(text):
    found = Page(text)
    assert "classification.frozen, seed 1: ok" in found.text
    assert "bench run --suite embedded --objective mae --tasks depth --protocol frozen" in found.text
    assert "bench reproduce embedded/o0/seed1/depth.frozen" in found.text
    assert "settings of classification.frozen seed 0, classification.frozen seed 1, depth.frozen seed 0" in found.text
    assert '"torch": "2.11"' in found.text
    assert sum(attrs["aria-label"] == "loss by step" for attrs in found.of("svg")) == 12


def test_figures(runs):
    table = build(*read_records([runs]))
    column = table.columns[0]
    drawn = figures.bars(table.rows, column)
    assert drawn.count('class="seeds"') == 3
    assert drawn.count('class="items"') == 3
    front = {point.row.objective: point.front for point in figures.points(table.rows, column)}
    assert list(front.values()) == [True, True, True]  # dearer and better
    depth = figures.points(table.rows, table.columns[1])
    assert [point.front for point in depth] == [True, True, True]
    records, _ = read_records([runs])
    cheap = [replace(r, cost={**r.cost, "seconds": 1.0}) if r.objective == "simmim" else r for r in records]
    marked = {point.row.objective: point.front for point in figures.points(build(cheap).rows, column)}
    assert marked["simmim"]
    assert not marked["mae"]
    for svg in (drawn, figures.pareto(table.rows, column)):
        Page(svg)
        assert "nan" not in svg
        assert svg.count("<svg") == svg.count("</svg>") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[1]\n[2]\n", b'{"step": 1, "loss": NaN}\n' * 3, b"\xff\xfe\n" * 9,
                                     b'{"loss": 1e999}\n' * 3, b'{"loss": "x"}\n' * 3, b"[" * 99_999])  # fmt: skip
def test_damaged_logs_draw_nothing(tmp_path, content):
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    assert figures.curve(path) == ""
    assert figures.curve(tmp_path / "missing") == ""


def test_several_suites_and_published_numbers(make_record):
    common = dict(suite="paper", backbone="vit_base_patch16_224", protocol="finetune")
    paper = build([make_record(83.0, objective="mae", **common)])
    text = page([build([make_record(50.0)]), paper], beside(paper))
    found = Page(text)
    assert [attrs["data-suite"] for attrs in found.of("section") if "data-suite" in attrs] == ["embedded", "paper"]
    assert "UNVERIFIED" in found.text
    assert "never enter a rank" in found.text
    assert "no records" in Page(page(build([]))).text
    # nothing on the same data: the objectives' published numbers stand apart, with their standing
    apart = Page(page([build([make_record(50.0)]), build([make_record(50.0, suite="mini")])], []))
    assert "none is on the same data, metric and protocol as a row of suite embedded or mini" in apart.text
    assert "published numbers of these objectives on other data" in apart.text
    assert "UNVERIFIED" in apart.text
    assert "maskdistill" not in apart.text  # an objective without a row
    assert "on other data" not in Page(page(build([make_record(50.0)]))).text


def test_protocols_of_a_suite_may_be_parts_of_their_own(make_record):
    tables = [build([make_record(50.0, protocol=protocol)]) for protocol in ("frozen", "finetune")]
    text = page([*tables, build([make_record(50.0, suite="mini")])])
    headings = ["Suite embedded: frozen", "Suite embedded: finetune", "Suite mini"]
    assert re.findall("<h2>(.*?)</h2>", text)[:3] == headings
    assert "<title>Leaderboard: embedded, mini<" in text


def test_a_row_shows_the_pictures_beside_its_backbone(runs):
    folder = runs / "embedded" / "o0" / "seed0" / "pretrain"
    folder.mkdir()
    (folder / "views.webp").write_bytes(b"RIFF0000WEBPVP8 ")
    other = runs / "embedded" / "o1" / "seed0" / "pretrain"
    other.mkdir()
    (other / "views.png").write_bytes(b"<svg onload=alert(1)>")  # no picture, whatever its name says
    found = Page(page(build(*read_records([runs]))))
    assert [attrs["src"][:23] for attrs in found.of("img")] == ["data:image/webp;base64,"]
    assert "img-src data:" in next(attrs["content"] for attrs in found.of("meta") if "http-equiv" in attrs)


def test_a_file_of_figures_is_whole(runs):
    table = build(*read_records([runs]))
    parts = [("a <b>", figures.bars(table.rows, table.columns[0])), ("none", ""),
             ("c", figures.pareto(table.rows, table.columns[1]))]  # fmt: skip
    svg = figures.sheet("all & everything", parts)
    root = ElementTree.fromstring(svg)  # well-formed
    assert len(list(root.iter("{http://www.w3.org/2000/svg}svg"))) == 3
    assert "a &lt;b&gt;" in svg
    assert figures.sheet("x", [("none", "")]) == ""


# --- in a real browser ------------------------------------------------------------------------------------------------

# What a reader does, by keyboard and mouse; the findings go to the page's title, which --dump-dom shows.
READER = """
const found = {}, press = (key) => document.activeElement.dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
const shown = (table) => [...table.tBodies].filter((body) => !body.hidden);
const names = (table) => shown(table).map((body) => body.dataset.name.split(" ")[0]);
const set = (name, value) => { const it = field(name); it.value = value; it.dispatchEvent(new Event("input")); };
const table = document.querySelector("table"), heads = [...table.querySelectorAll("thead button")];
const head = (text) => heads.find((button) => button.textContent.startsWith(text));
found.folded = all("tr.runs").every((row) => row.hidden);
found.start = names(table);
head("classification").click();
found.best = [names(table), head("classification").closest("th").ariaSort];
head("classification").click();
found.worst = [names(table), head("classification").closest("th").ariaSort];
head("depth").click();
found.depth = [names(table), head("depth").closest("th").ariaSort];
const first = document.querySelector("tr.main > th button");
first.focus(); press("ArrowDown");
found.down = document.activeElement.textContent.trim();
document.activeElement.click();
found.opened = all("tr.runs").filter((row) => !row.hidden).length;
found.expanded = document.activeElement.ariaExpanded;
press("Escape");
found.closed = all("tr.runs").every((row) => row.hidden);
press("End");
found.end = document.activeElement === rows().at(-1);
press("/");
found.search = document.activeElement.id;
set("name", "mae");
found.named = [names(table), document.getElementById("shown").textContent];
set("name", "");
set("task", "depth");
found.columns = heads.filter((button) => button.offsetParent).map((button) => button.innerText.split("\\n")[0].trim());
set("task", ""); set("budget", "long");
found.long = document.getElementById("shown").textContent;
document.getElementById("reset").click();
found.reset = document.getElementById("shown").textContent;
const ground = () => getComputedStyle(document.body).backgroundColor;
const light = ground();
document.getElementById("theme").click();
found.theme = light !== ground();
found.wide = document.documentElement.scrollWidth <= innerWidth;
document.title = JSON.stringify(found);
"""


@pytest.fixture
def browser(tmp_path):
    """``browser(url, *options)``: what headless Chromium prints."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here (Debian: apt install chromium)")
    options = ["--headless", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}"]
    if os.geteuid() == 0:
        options.append("--no-sandbox")

    def run(url, *more):
        done = subprocess.run([CHROMIUM, *options, *more, url], capture_output=True, text=True, timeout=120, check=True)
        return done.stdout

    return run


@pytest.fixture
def two_budgets(runs, make_record):
    """The page of the runs and of one row of another budget, as a file."""
    write_record(runs / "longer", make_record(70.0, objective="mae", budget="long"))
    path = runs / "page.html"
    path.write_text(page(build(*read_records([runs]))), encoding="utf-8")
    return path


def test_the_script_runs_under_the_pages_own_policy(browser, two_budgets):
    found = Page(browser(two_budgets.as_uri(), "--dump-dom"))
    assert all("hidden" in attrs for attrs in found.of("tr") if attrs.get("class") == "runs")  # the script ran
    assert "hidden" not in next(attrs for attrs in found.of("div") if attrs.get("class") == "tools")
    assert "4 of 4 rows" in found.text


def test_a_link_opens_its_row(browser, two_budgets):
    found = Page(browser(f"{two_budgets.as_uri()}#row-1-1-2", "--dump-dom"))
    open_rows = [attrs["id"] for attrs in found.of("tr") if attrs.get("class") == "runs" and "hidden" not in attrs]
    assert open_rows == ["runs-row-1-1-2"]


@pytest.mark.parametrize("width", [390, 1280])
def test_a_reader_sorts_filters_and_walks_by_keyboard(browser, two_budgets, width):
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", two_budgets.read_text(encoding="utf-8"))
    two_budgets.write_text(text.replace("</body>", f"<script>{{{READER}}}</script></body>"), encoding="utf-8")
    dumped = browser(two_budgets.as_uri(), "--dump-dom", f"--window-size={width},900")
    found = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dumped, re.DOTALL)[1]))
    evil = EVIL.split(" ")[0]
    assert found["folded"]
    assert found["best"] == [[evil, "simmim", "mae"], "descending"]  # top-1: the highest first
    assert found["worst"] == [["mae", "simmim", evil], "ascending"]
    assert found["depth"] == [[evil, "simmim", "mae"], "ascending"]  # an error: the lowest first
    assert found["down"] == "simmim"
    assert (found["opened"], found["expanded"], found["closed"], found["end"]) == (1, "true", True, True)
    assert found["search"] == "filter-name"
    assert found["named"] == [["mae"], "2 of 4 rows"]
    assert "depth" in found["columns"]
    assert "classification" not in found["columns"]
    assert (found["long"], found["reset"]) == ("1 of 4 rows", "4 of 4 rows")
    assert found["theme"]
    assert found["wide"]  # only the tables scroll sideways, never the page


def test_screenshots_at_desktop_and_phone_width(browser, two_budgets, tmp_path):
    for width in (390, 1280):
        shot = tmp_path / f"{width}.png"
        browser(two_budgets.as_uri(), f"--screenshot={shot}", f"--window-size={width},900")
        assert shot.stat().st_size > 5000


def test_what_the_backbones_learned_stands_in_the_page(runs, make_record, make_analysis):
    table = build(*read_records([runs]))
    assert "What the backbones learned" not in page(table)
    analyses = [make_analysis(name, seed, distance=5.0 + seed) for name in ("mae", EVIL) for seed in range(2)]
    analyses.append(make_analysis("conv", distance=None))
    layers = [{"name": str(n), "metrics": {"top1": 40.0 + n}, "chosen": {}} for n in (1, 2, 3)]
    analyses.append(make_record(43.0, protocol="layers", details={"layers": layers}))
    text = page(table, analyses=analyses)
    found = Page(text)
    assert "What the backbones learned" in found.text
    assert "conv: no attention" in found.text
    assert "11.00 ± 12.71" in found.text  # 10 and 12 px, two seeds
    assert "classification, frozen, from each layer" in found.text
    labels = [attrs.get("aria-label", "") for attrs in found.of("svg")]
    assert any(label.startswith("attention distance (px) by layer") for label in labels)
    dots = [attrs for attrs in found.of("circle") if attrs.get("class") == "bar"]
    of_heads = 3 * 2 * 2 * 2 * 2  # numbers, rows with attention, seeds, layers, heads
    assert len(dots) == of_heads + 4 * 5 * 2  # rank, two variances, amplitude; analyses, layers
    for start in ("effective rank", "variance within pictures", "variance of the tokens", "log amplitude"):
        assert any(label.startswith(start) for label in labels)
    assert not any(label.startswith("high frequencies") for label in labels)  # no record has them
    assert "CKA between backbones" not in labels
    with_other = [
        replace(a, details={**a.details, "between": {"objective": "mae", "backbone": "x", "cka": [[0.2, 0.3]] * 2}})
        if a.objective == "conv" else a for a in analyses
    ]  # fmt: skip
    other = Page(page(table, analyses=with_other))
    assert [attrs["aria-label"] for attrs in other.of("svg")].count("CKA between backbones") == 1
    assert "conv · mae, layers 1 and 2: 0.30" in other.text
    assert any(attrs.get("fill") == "#fee838" for attrs in found.of("rect"))  # CKA 1
    assert "<script>alert" not in text


def test_the_colours_of_heat_maps_are_cividis():
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    from leaderboard.learned import CIVIDIS, cividis

    for i, colour in enumerate(CIVIDIS):
        assert colour == to_hex(colormaps["cividis"](i / 8))
        assert cividis(i / 8) == colour
    assert cividis(-1) == CIVIDIS[0]
    assert cividis(None) == "#808080"
