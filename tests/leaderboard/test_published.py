import csv
import importlib.util
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from leaderboard.published import (
    TOLERANCE_POINTS,
    PublishedError,
    as_json,
    backbone_name,
    beside,
    data_set,
    find,
    legend,
    lines,
    tables,
    text,
)
from leaderboard.records import write_record
from leaderboard.table import build

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ours(make_record):
    """A table as suite ``paper`` would give it, and the plain one of rendered scenes."""
    common = dict(suite="paper", backbone="vit_base_patch16_224", protocol="finetune")
    records = [make_record(83.5 + 0.1 * seed, objective="mae", seed=seed, **common) for seed in range(2)]
    records.append(make_record(80.0, objective="beit", **common))
    return build(records)


def test_every_committed_number_has_its_fields():
    numbers = [number for table in tables() for number in table.numbers]
    assert len(numbers) == 377
    assert sum(not number.verified for number in numbers) == 19
    for number in numbers:
        assert number.source
        assert number.protocol
        assert isinstance(number.value, float)
        assert number.mark == "UNVERIFIED" or number.verified
    assert len({table.id for table in tables()}) == len(tables())


def test_find_by_name_and_arxiv_number():
    assert {table.paper for table in find("mae")} == {"mae"}
    assert {table.paper for table in find("2203.14313")} == {"beyond-masking"}
    assert [table.id for table in find("beyond-masking:efficiency-figure")] == ["beyond-masking:efficiency-figure"]
    assert find("mae:nothing") == find("nobody") == []


@pytest.mark.parametrize("content", ["{", "[]", '{"schema": 2}', '{"schema": 1, "paper": "x", "tables": {"a": [3]}}'])
def test_a_broken_file_is_one_line_with_its_name(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(PublishedError, match=r"x\.json: not a file of published numbers") as caught:
        tables(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("ViT-B/16", "vit_base_patch16_224", True), ("vit-base-p16", "ViT-B/16", True),
        ("ViT-L/16", "vit_base_patch16_224", False), ("ViT-H/14", "vit_huge_patch14_224", True),
        ("SwinV2-B w16", "swinv2_base_window16_256", True), ("Swin-B", "swinv2_base_window16_256", False),
        ("ViT-S/8", "vit_small_patch16_224", False), ("resnet50", "resnet50", True),
    ],
)  # fmt: skip
def test_names_of_backbones(a, b, same):
    assert (backbone_name(a) == backbone_name(b)) is same


def test_ours_beside_theirs(ours):
    found = beside(ours)
    assert {pair.number.method for pair in found} == {"mae", "beit"}
    assert {pair.number.dataset for pair in found} == {"ImageNet-1K"}
    mae = next(p for p in found if (p.number.paper, p.number.backbone, p.number.value) == ("mae", "ViT-B/16", 83.6))
    assert mae.ours == pytest.approx(83.55)
    assert mae.difference == pytest.approx(-0.05)
    assert mae.within
    assert mae.same_backbone
    assert mae.tolerance == TOLERANCE_POINTS
    assert mae.summary.ci95 == pytest.approx((83.55 - 0.6353, 83.55 + 0.6353), abs=1e-3)  # 12.7 · 0.0707 / √2
    assert "83.550 ± 0.635" in text(ours, found, "md")
    beit = next(pair for pair in found if pair.number.method == "beit" and pair.number.paper == "beit")
    assert not beit.within
    assert beit.tolerance == TOLERANCE_POINTS
    assert all(pair.number.family == "finetune" for pair in found)


def test_ours_is_the_number_of_the_cell(make_record):
    """Records of an older task version, and those left out of the mean, count for nothing; nor does a wide spread
    make a number agree."""
    common = dict(suite="paper", backbone="vit_base_patch16_224", protocol="finetune", objective="mae")
    records = [make_record(80.0 + 2 * seed, seed=seed, task_version=2, **common) for seed in range(2)]
    records += [make_record(99.0, seed=seed, **common) for seed in range(2)]
    table = build(records)
    key = ("mae", "ViT-B/16", 83.6)
    mae = next(p for p in beside(table) if (p.number.paper, p.number.backbone, p.number.value) == key)
    assert mae.summary == table.rows[0].cells["classification.finetune"].summary
    assert (mae.ours, mae.summary.n) == (81.0, 2)
    assert mae.summary.ci95[1] > 83.6
    assert not mae.within


def test_published_numbers_change_no_rank(ours, make_record):
    before = [(row.objective, row.mean_rank) for row in ours.rows]
    beside(ours)
    assert [(row.objective, row.mean_rank) for row in ours.rows] == before == [("mae", 1.0), ("beit", 2.0)]


def test_unverified_numbers_are_marked(ours):
    found = beside(ours)
    assert any(not pair.number.verified for pair in found)
    markdown = text(ours, found, "md")
    assert "**UNVERIFIED**" in markdown
    assert "never enter a rank" in markdown
    for style in ("terminal", "tex"):
        assert "UNVERIFIED" in text(ours, found, style)
    rows = list(csv.DictReader(io.StringIO(text(ours, found, "csv"))))
    assert {row["standing"] for row in rows} <= {"verified", "UNVERIFIED", "secondary"}
    document = as_json(found)
    assert {entry["verified"] for entry in document} == {True, False}
    json.dumps(document, allow_nan=False)


def test_other_data_have_no_published_counterpart(make_record):
    table = build([make_record(50.0, objective="mae")])
    assert beside(table) == []
    assert "none is on the same data" in legend(table, [])
    assert "none is on the same data" in text(table, [], "md")
    assert data_set(make_record(1.0)) is None
    named = replace(make_record(1.0), config={"data": {"name": "NYUv2"}})
    assert data_set(named) == "NYUv2"


def test_fractions_become_percentages(make_record):
    metrics = make_record(0.3, task="depth").metrics
    metrics["d1"] = dict(value=93.0, higher_is_better=True, unit="%", main=False, low=0, high=100)
    record = make_record(0.3, task="depth", suite="paper", objective="simmim", protocol="finetune", metrics=metrics)
    found = {pair.number.metric: pair for pair in beside(build([record]))}
    assert found["d1"].published > 90
    assert found["RMSE"].published < 1
    assert found["RMSE"].tolerance == pytest.approx(0.02 * found["RMSE"].published)


def test_the_maker_keeps_everything(tmp_path):
    spec = importlib.util.spec_from_file_location("published_maker", ROOT / "docs" / "published.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    entry = dict(
        paper="Some Paper (A)", arxiv="1234.5678", table=None, objective="mae", backbone="ViT-B/16",
        pretrain_data="ImageNet-1K", pretrain_epochs=None, task="depth", dataset="NYUv2", protocol="finetune",
        metric="RMSE", value=0.3, source="abstract", verified=False, note="a | <b>", config="dropped",
    )  # fmt: skip
    made = maker.files({"entries": [entry, {**entry, "table": "Table 3"}],
                        "missing": [{"paper": "1234.5678", "what": "the rest", "why": "closed"}]})
    (tmp_path / "some-paper.json").write_text(maker.text(made["some-paper"]))
    found = tables(tmp_path)
    assert [table.id for table in found] == ["some-paper:depth", "some-paper:table-3"]
    number = found[0].numbers[0]
    assert (number.value, number.mark, number.note) == (0.3, "UNVERIFIED", "a | <b>")
    assert found[0].missing == "the rest (closed)"


def bench(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.cli", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
        check=False,
    )  # fmt: skip


def test_the_command(tmp_path, make_record):
    done = bench("list", "tables")
    assert done.returncode == 0, done.stderr
    assert "beyond-masking:efficiency-figure" in done.stdout
    rows = json.loads(bench("list", "tables", "--format", "json").stdout)
    assert {"name", "summary", "arxiv", "numbers", "unverified"} <= set(rows[0])
    for seed in range(2):
        write_record(tmp_path / str(seed), make_record(
            83.0 + seed, suite="paper", backbone="vit_base_patch16_224", protocol="finetune", seed=seed,
        ))  # fmt: skip
    shown = bench("leaderboard", "--runs", tmp_path, "--suite", "paper", "--published", "--format", "json")
    assert shown.returncode == 0, shown.stderr
    assert any(entry["table"] == "mae:classification" for entry in json.loads(shown.stdout)["published"])
    for style in ("terminal", "md", "csv", "tex", "html"):
        target = tmp_path / f"out.{style}"
        done = bench("leaderboard", "--runs", tmp_path, "--suite", "paper", "--published", "--format", style,
                     "--output", target)
        assert done.returncode == 0, done.stderr
        assert target.stat().st_size > 500
    write_record(tmp_path / "other", make_record(50.0))
    target = tmp_path / "all.html"
    done = bench("leaderboard", "--runs", tmp_path, "--suite", "all", "--published", "--format", "html", "--output",
                 target)
    assert done.returncode == 0, done.stderr
    assert "mae:classification" in target.read_text()


def test_other_lengths_of_pre_training_are_told(make_record):
    cost = make_record().cost
    common = dict(suite="paper", backbone="vit_base_patch16_224", protocol="finetune", objective="mae")
    said = {}
    for epochs in (300, 1600):
        record = make_record(83.6, cost={**cost, "pretrain_images": epochs * 1_281_167 + 100}, **common)
        found = [p for p in beside(build([record])) if (p.number.backbone, p.number.value) == ("ViT-B/16", 83.6)]
        said[epochs] = {p.seen_otherwise for p in found if p.number.pretrain_epochs == 1600}
        assert any("theirs 2,049,867,200" in " ".join(line) for line in lines(found)) is (epochs == 300)
    assert said == {300: {True}, 1600: {False}}
