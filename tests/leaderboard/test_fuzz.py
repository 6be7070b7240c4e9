"""Whatever a folder of records holds: a table in every format, and a line that names each file that is no record."""

import copy
import json
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from fuzzing import change, json_values
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboard.bundle import BundleError, bundle, verify
from leaderboard.page import page
from leaderboard.published import beside, legend
from leaderboard.published import text as published_text
from leaderboard.records import (
    InvalidRecord,
    RecordError,
    _digest,
    checked,
    parse_record,
    read_records,
    write_record,
)
from leaderboard.render import FORMATS, comparisons, render
from leaderboard.table import TableError, build

ROOT = Path(__file__).parents[2]
ODD = [1e308, -1e308, 1e-308, 10**400, float("nan"), float("inf"), "\ud800", "\x1b[31m", "\u202e", "", "\0",
       "<script>alert(1)</script>", "=1+1", "a|b", "\\input{x}", "x" * 10_000, "../../etc/passwd"]  # fmt: skip
VALUES = json_values(odd=ODD)


def nested(depth):
    value = 0
    for _ in range(depth):
        value = {"a": value}
    return value


@st.composite
def fuzzed(draw, payload):
    """The bytes of a record with a few places changed, or cut short; sometimes with a digest that fits."""
    payload = copy.deepcopy(payload)
    change(draw, payload, VALUES | st.integers(1, 300).map(nested))
    if draw(st.booleans()):
        with suppress(ValueError, TypeError, RecursionError, AttributeError):
            payload["digest"] = _digest(payload)
    content = json.dumps(payload).encode()
    return content[: draw(st.integers(0, len(content)))] if draw(st.integers(0, 4)) == 0 else content


def everything(records, invalid):
    """Every table of every suite in every format, as text."""
    suites = {r.suite for r in records} | {e.cell.suite for e in invalid if e.cell is not None} or {None}
    told = []
    for suite in suites:
        table = build(records, invalid, suite=suite)
        found = beside(table)
        told += [render(table, format) for format in FORMATS]
        told += [comparisons(table), page(table, found), published_text(table, found, "md"), legend(table, found)]
        json.loads(render(table, "json"), parse_constant=pytest.fail)
    return told


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_fuzzed_records_reach_every_format(tmp_path, make_record, data):
    folders = [tmp_path / "embedded" / "mae" / f"seed{seed}" / "classification.frozen" for seed in range(2)]
    scores = [float(i) for i in range(40, 60)]
    for seed, folder in enumerate(folders):
        write_record(folder, make_record(49.5, seed=seed, items={"top1": scores}))
    write_record(tmp_path / "o" / "x", make_record(40.0, objective="simmim"))
    broken = folders[1] / "result.json"
    broken.write_bytes(data.draw(fuzzed(json.loads(broken.read_text()))))
    records, invalid = read_records([tmp_path])
    assert len(records) + len(invalid) >= 2
    for error in invalid:
        assert "result.json" in str(error)
        assert "\n" not in str(error)
        str(error).encode()
    for told in everything(records, invalid):
        told.encode()
        assert not told.startswith("<!DOCTYPE") or "<script>alert" not in told
    message = ""
    try:
        bundle(tmp_path / "embedded", tmp_path / "out.zip")
        verify(tmp_path / "out.zip")
    except (BundleError, InvalidRecord, RecordError) as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("depth", [50, 200, 900, 5_000, 100_000])
def test_deep_nesting_is_told_or_shown(tmp_path, make_record, depth):
    write_record(tmp_path, make_record(1.0))
    path = tmp_path / "result.json"
    deep = '{"a":' * depth + "1" + "}" * depth
    path.write_text(re.sub(r'"hardware": \{\}', f'"hardware": {deep}', path.read_text()))
    records, invalid = read_records([tmp_path])  # the digest does not cover the environment
    assert len(records) + len(invalid) == 1
    assert all(str(path) in str(error) for error in invalid)
    everything(records, invalid)


@pytest.mark.parametrize("value", [1e29, -1e29, 1e-300, 5e-324])
def test_extreme_numbers_are_shown(make_record, value):
    metric = dict(value=value, higher_is_better=True, unit="", main=True, low=None, high=None)
    records = []
    for objective in ("a", "b"):
        for seed in range(3):
            metrics = {"score": {**metric, "value": value * (1 + seed / 7)}}
            cost = {**make_record().cost, "seconds": 1e29, "pretrain_seconds": 5e-324, "pretrain_images": 2**62}
            items = {"score": [value * (1 + seed / 7)] * 9}
            records.append(checked(make_record(
                1.0, objective=objective, task="x", seed=seed, metrics=metrics, cost=cost, items=items,
            )))  # fmt: skip
    everything(records, [])


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=300) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_one_line(content):
    with pytest.raises(InvalidRecord) as caught:
        parse_record(content, Path("some/result.json"))
    assert "some/result.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_names_the_file(tmp_path, make_record):
    write_record(tmp_path / "good", make_record(50.0))
    contents = [b"", b"{", b"\xff", b"[" * 100_000, b'{"schema": NaN}', b'{"schema": 1}', b"null"]
    for i, content in enumerate(contents):
        folder = tmp_path / f"bad{i}"
        folder.mkdir()
        (folder / "result.json").write_bytes(content)
    for style in ("terminal", "md", "html", "tex"):
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.cli", "leaderboard", "--runs", tmp_path, "--format", style],
            capture_output=True, text=True, check=False, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        shown = done.stdout.replace("{-}", "-").replace("\\_", "_")
        assert all(f"bad{i}/result.json" in shown for i in range(len(contents)))


def test_suites_must_be_named(make_record):
    with pytest.raises(TableError):
        build([make_record(1.0), make_record(1.0, suite="mini")])
