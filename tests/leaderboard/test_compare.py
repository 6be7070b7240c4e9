"""What changed between two tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzzing import VALUES
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from leaderboard.compare import as_json, compare, read_side, side_of, text
from leaderboard.records import RecordError, write_record
from leaderboard.render import render
from leaderboard.table import TableError, build

ROOT = Path(__file__).parents[2]
A = {"mae": [60.0, 61.0, 62.0], "simmim": [50.0, 51.5, 52.0], "gone": [1.0, 1.0, 1.0]}
B = {"mae": [70.1, 71.0, 72.2], "simmim": [50.0, 51.5, 52.0], "new": [80.0, 81.0, 82.0]}


def records(make_record, scores):
    return [
        make_record(value, objective=name, seed=seed) for name, values in scores.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip


@pytest.fixture
def sides(make_record):
    return [side_of(build(records(make_record, scores)), name) for name, scores in (("a", A), ("b", B))]


def test_rows_numbers_and_significance(sides):
    found = compare(*sides)
    assert [row[0] for row in found.added] == ["new"]
    assert [row[0] for row in found.removed] == ["gone"]
    (change,) = found.changes
    assert (change.row[0], change.column, change.over) == ("mae", "classification.frozen", "3 seeds")
    assert change.difference == pytest.approx(10.1)
    assert change.p == change.corrected == pytest.approx(stats.ttest_rel(B["mae"], A["mae"]).pvalue)
    assert change.finding == "significantly better"
    assert found.same == 1
    assert {(row[0], where): (then, now) for row, where, then, now in found.ranks} == {
        ("mae", "mean rank"): ("1.00", "2.00"), ("mae", "classification.frozen"): ("1", "2"),
        ("simmim", "mean rank"): ("2.00", "3.00"), ("simmim", "classification.frozen"): ("2", "3"),
    }  # fmt: skip
    shown = text(found)
    for part in ("Row added: new, vit_tiny, budget default", "Row removed: gone", "+10.100", "significantly better",
                 "1 numbers are the same"):  # fmt: skip
        assert part in shown


def test_nothing_changed(sides):
    found = compare(sides[0], sides[0])
    assert found.empty
    assert "Nothing changed: 3 numbers are the same." in text(found)


def test_tables_without_records_are_tested_by_welch(make_record, tmp_path):
    for name, scores in (("a", A), ("b", B)):
        (tmp_path / f"{name}.json").write_text(render(build(records(make_record, scores)), "json"))
    (change,) = compare(read_side(tmp_path / "a.json"), read_side(tmp_path / "b.json")).changes
    expected = stats.ttest_ind(A["mae"], B["mae"], equal_var=False).pvalue
    assert change.p == pytest.approx(expected, rel=1e-6)
    assert change.over == "3 and 3 seeds"


def test_one_seed_is_tested_over_items_or_not_at_all(make_record):
    scores = [float(x) for x in range(30, 70)]

    def side(name, shift, **changes):
        return side_of(build([make_record(49.5 + shift, items={"top1": [x + shift for x in scores]}, **changes)]), name)

    (change,) = compare(side("a", 0.0), side("b", -2.0)).changes
    assert (change.over, change.finding) == ("40 items", "significantly worse")
    bare = [side_of(build([make_record(value)]), "x") for value in (50.0, 51.0)]
    (change,) = compare(*bare).changes
    assert (change.p, change.finding) == (None, "better, not tested")


def test_direction_statuses_and_versions(make_record):
    def side(*found):
        return side_of(build(list(found)), "x")

    (change,) = compare(side(make_record(0.5, task="depth")), side(make_record(0.4, task="depth"))).changes
    assert change.better
    failed = compare(side(make_record(50.0)), side(make_record(50.0), make_record(None, task="pose")))
    assert (failed.changes, failed.columns_added) == ((), ("pose.frozen",))
    good = make_record(40.0, objective="simmim")
    (change,) = compare(side(make_record(50.0), good), side(make_record(None), good)).changes
    assert (change.finding, change.difference) == ("ok then, failed now", None)
    (change,) = compare(side(make_record(50.0)), side(make_record(60.0, task_version=2))).changes
    assert change.finding == "not comparable: task version 2, then 1"


@pytest.mark.parametrize(("changes", "finding"), [
    (dict(fingerprints=dict(cell="c", config="f", data="other", backbone="b")), "test data: other, then d"),
    (dict(config={"settings": {"lr": 0.5}}), "head settings: lr 0.5, then 0.1"),
    (dict(config={"settings": {"lr": 0.1}, "pretraining": {"model": "x", "batch_size": 8}}),
     "pre-training batch_size: 8, then 4"),
])  # fmt: skip
def test_numbers_made_otherwise_are_not_compared(make_record, changes, finding):
    """The same row on other test data was called significantly worse."""
    config = {"settings": {"lr": 0.1}, "pretraining": {"model": "x", "batch_size": 4}}

    def side(scores, **more):
        return side_of(build([make_record(v, seed=s, **{"config": config, **more}) for s, v in enumerate(scores)]), "x")

    found = compare(side([60.0, 61.0, 62.0]), side([50.1, 51.0, 52.2], **changes))
    (change,) = found.changes
    assert change.finding == f"not comparable: {finding}"
    assert (change.p, change.better) == (None, None)
    assert finding in text(found)
    assert as_json(found)["changes"][0]["unlike"] == finding
    alike = compare(side([60.0, 61.0, 62.0]), side([50.1, 51.0, 52.2]))
    assert alike.changes[0].finding == "significantly worse"


def test_only_the_records_of_the_number_are_tested(make_record):
    """A seed that the table leaves out of its mean, here for its other data, is left out of the test as well."""
    old = dict(cell="c", config="f", data="old", backbone="b")
    left = make_record(99.0, seed=7, finished="2024-01-01T00:01:00+00:00", fingerprints=old)
    then = [make_record(60.0 + s, seed=s) for s in range(3)]
    now = [make_record(70.1 + 1.1 * s, seed=s) for s in range(3)]
    plain = compare(side_of(build(then), "a"), side_of(build(now), "b"))
    mixed = compare(side_of(build([*then, left]), "a"), side_of(build([*now, left]), "b"))
    assert mixed.changes[0].over == "3 seeds"
    assert mixed.changes[0].p == plain.changes[0].p


def test_many_changes_are_corrected_together(make_record):
    def side(shift):
        made = []
        for i in range(8):
            made += [make_record(40.0 + i + s * 0.7 + shift * (1 + 0.3 * (s + i) % 1.1), objective=f"o{i}", seed=s)
                     for s in range(3)]  # fmt: skip
        return side_of(build(made), "x")

    found = compare(side(0.0), side(1.0))
    assert len(found.changes) == 8
    assert all(change.corrected >= change.p for change in found.changes)
    assert any(change.corrected > change.p for change in found.changes)


def test_other_suites_are_refused(make_record):
    a, b = (side_of(build([make_record(1.0, suite=suite)]), suite) for suite in ("embedded", "mini"))
    with pytest.raises(TableError, match="nothing to compare"):
        compare(a, b)


def test_what_is_no_table_is_one_line(tmp_path):
    for content in ("", "{", "[]", '{"schema": 2}', '{"schema": 1, "suite": "x", "columns": [{}], "rows": []}', "\0"):
        path = tmp_path / "x.json"
        path.write_text(content)
        with pytest.raises(RecordError, match=r"x\.json") as caught:
            read_side(path)
        assert "\n" not in str(caught.value)
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(RecordError):
            read_side(path)


@pytest.mark.parametrize(("key", "value"), [
    ("ci95", []), ("ci95", [1]), ("ci95", [2, 1]), ("ci95", "ab"), ("ci95", [None, 1]), ("mean", 1e31), ("mean", "1"),
    ("mean", True), ("n", 10**9), ("n", 1.5), ("n", -1), ("rank", "1"),
])  # fmt: skip
def test_impossible_cells_are_refused(tmp_path, make_record, key, value):
    document = json.loads(render(build(records(make_record, A)), "json"))
    document["rows"][0]["cells"]["classification.frozen"][key] = value
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(RecordError, match=r"x\.json: no table"):
        read_side(tmp_path / "x.json")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_fuzzed_tables_are_compared_or_refused(tmp_path_factory, make_record, data):
    document = json.loads(render(build(records(make_record, A)), "json"))
    row = data.draw(st.sampled_from(document["rows"]))
    part = data.draw(st.sampled_from([document, document["columns"][0], row, row["cells"]["classification.frozen"]]))
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(VALUES)
    path = tmp_path_factory.mktemp("fuzz") / "a.json"
    path.write_text(json.dumps(document))
    good = side_of(build(records(make_record, B)), "b")
    told = ""
    try:
        found = compare(read_side(path), good)
        text(found, "github").encode("utf-8", "replace")
        json.dumps(as_json(found))
    except (RecordError, TableError) as error:
        told = str(error)
    assert "\n" not in told


def test_the_command(tmp_path, make_record):
    for name, scores in (("a", A), ("b", B)):
        for record in records(make_record, scores):
            write_record(tmp_path / name / f"{record.objective}{record.seed}", record)
    write_record(tmp_path / "two" / "x", make_record(1.0))
    write_record(tmp_path / "two" / "y", make_record(1.0, suite="mini"))

    def bench(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.cli", "compare", *map(str, arguments)], capture_output=True, text=True,
            cwd=ROOT, check=False,
        )  # fmt: skip

    done = bench(tmp_path / "a", tmp_path / "b", "--format", "json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["rows_added"] == [["new", "vit_tiny", "default"]]
    assert document["changes"][0]["finding"] == "significantly better"
    refused = bench(tmp_path / "two", tmp_path / "b")
    assert refused.returncode == 2
    assert refused.stderr.startswith("bench: records of several suites")
    assert refused.stderr.count("\n") == 1
