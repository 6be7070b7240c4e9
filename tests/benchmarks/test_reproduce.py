"""Reproduction of a record; nothing is trained here."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fuzzing import FINITE, change
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks import execute
from benchmarks.errors import RequestError
from benchmarks.reproduce import (
    DIFFERS,
    FAILED,
    IDENTICAL,
    WITHIN,
    arithmetic_of,
    cell_of,
    changed_settings,
    differences,
    reproduce,
    verdict,
)
from leaderboard.records import RecordError, checked, read_record, write_record

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "leaderboard" / "records"
# whichever budget the committed table was made at
ROW = str(sorted(COMMITTED.glob("embedded/mae*/seed0/depth.frozen"))[0].relative_to(COMMITTED))


@pytest.fixture
def record():
    return read_record(COMMITTED / ROW / "result.json")


@pytest.mark.parametrize("path", sorted(COMMITTED.rglob("result.json")), ids=lambda p: "/".join(p.parts[-5:-1]))
def test_every_committed_record_is_planned_as_it_was(path):
    record = read_record(path)
    cell = cell_of(record)
    # only versions and keys added since may have moved on: the configuration is the record's, not today's recipe's
    changed = changed_settings(record, cell)
    assert all("version: " in line or "none then" in line for line in changed), changed
    settings = json.loads(json.dumps(cell.pretraining.config()))
    recorded = record.config["pretraining"]
    assert all(settings[key] == value for key, value in recorded.items() if key != "version")
    assert cell.pretraining.seed == record.seed
    assert cell.folder.name == f"{record.task}.{record.protocol}"


def test_the_plan_is_the_records_and_not_todays(record):
    config = json.loads(json.dumps(record.config))
    config["pretraining"]["optimiser"]["lr"] = 0.5
    config["pretraining"]["slots"]["corruption"]["ratio"] = 0.1
    config["pretraining"]["images_seen"] = 77
    config["settings"]["epochs"] = 3
    cell = cell_of(replace(record, config=config, seed=4))
    assert cell.pretraining.optimiser.lr == 0.5
    assert cell.pretraining.slots["corruption"]["ratio"] == 0.1
    assert cell.pretraining.images_seen == 77
    assert cell.settings["epochs"] == 3
    assert cell.pretraining.seed == 4


@pytest.mark.parametrize("config", [{}, {"pretraining": 3}, {"pretraining": {"optimiser": {"nonsense": 1}}}])
def test_a_configuration_of_something_else_is_one_line(record, config):
    with pytest.raises(RequestError, match="cannot be planned again"):
        cell_of(replace(record, config=config))


def test_data_that_are_no_mapping_are_one_line(record):
    config = json.loads(json.dumps(record.config))
    pairs = checked(replace(record, config={**config, "data": [["ann_file", "../x.json"]]}))
    with pytest.raises(RequestError, match=r"its data.ann_file='../x.json' leads out"):
        cell_of(pairs)
    for data in (3, None, "x", [1, 2], [[[], 1]]):
        with pytest.raises(RequestError, match="cannot be planned again"):
            cell_of(checked(replace(record, config={**config, "data": data})))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_fuzzed_configuration_is_a_plan_or_one_line(record, data):
    """The digest fits: such a record may come from anybody."""
    record = replace(record, items=None)  # that many numbers would take all the time
    payload = json.loads(json.dumps({"config": record.config, "variant": record.variant}))
    change(data.draw, payload, FINITE, rooted=True)
    message = ""
    try:
        made = checked(replace(record, **{"variant": record.variant, **payload}))
        changed_settings(made, cell_of(made))
    except (RequestError, RecordError) as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("changes", [{"objective": "maee"}, {"suite": "embeded"}, {"task": "deppth"}])
def test_unknown_names_offer_the_nearest(record, changes):
    with pytest.raises(RequestError, match="did you mean"):
        cell_of(replace(record, **changes))


def test_verdicts(record):
    def ours(value):
        return replace(record, metrics={**record.metrics, "rmse": {**record.metrics["rmse"], "value": value}})

    theirs = record.metrics["rmse"]["value"]
    assert verdict(record, ours(theirs)).word == IDENTICAL
    found = verdict(record, ours(theirs + 0.01))
    assert found.word == WITHIN
    assert "900 test items" in found.line
    assert verdict(record, ours(theirs + 0.1)).word == DIFFERS
    seeds = [replace(ours(theirs + 0.2 * seed), seed=seed) for seed in (1, 2)]
    found = verdict(record, ours(theirs + 0.1), seeds)
    assert (found.word, found.band) == (WITHIN, "the 95 % prediction interval of one more run, from 3 seeds")
    # seeds at 0, 0.2 and 0.4: s = 0.2, t(2) = 4.303, √(4/3): one more run may be 0.994 off, their mean only 0.497
    assert found.high - found.low == pytest.approx(2 * 4.302653 * 0.2 * (4 / 3) ** 0.5, rel=1e-6)
    assert verdict(record, ours(theirs + 0.9), seeds).word == WITHIN
    assert verdict(record, ours(theirs + 1.3), seeds).word == DIFFERS
    # the recorded run itself is the odd one of many: its repetition lies where it does
    many = [replace(ours(theirs + 1 + 1e-3 * seed), seed=seed) for seed in range(1, 20)]
    assert verdict(record, ours(theirs + 1e-6), many).word == WITHIN
    bare = replace(record, items=None)
    assert verdict(bare, ours(theirs * 1.01)).band.startswith("a fixed band")
    with pytest.raises(RequestError, match="no main metric"):
        verdict(record, replace(record, metrics={}))


def test_differences_of_environments(record):
    now = {**record.environment, "python": "9.9", "packages": {**record.environment["packages"], "torch": None}}
    assert differences(record.environment, record.environment) == []
    found = differences(record.environment, now)
    assert any(line.startswith("python: 3.") and line.endswith("9.9 now") for line in found)
    assert any(line.startswith("torch: ") and line.endswith("none now") for line in found)
    assert differences({"packages": 3, "hardware": None}, {"packages": "x"}) == []


@pytest.fixture
def runner(monkeypatch, record):
    """Stands in for training: ``runner.value`` is what the new run finds (None: it fails)."""

    class Runner:
        value = record.metrics["rmse"]["value"]
        calls: list = []  # noqa: RUF012
        requests: list = []  # noqa: RUF012

    def run(self, cells):
        Runner.calls.append((self.runs, self.overwrite, [cell.name for cell in cells]))
        Runner.requests.append(self.request)
        metrics = {**record.metrics, "rmse": {**record.metrics["rmse"], "value": Runner.value}}
        failed = {"status": "failed", "reason": "no memory", "metrics": {}}
        return [replace(record, **failed) if Runner.value is None else replace(record, metrics=metrics)]

    Runner.calls.clear()
    Runner.requests.clear()
    monkeypatch.setattr(execute.Execution, "run", run)
    monkeypatch.setattr(execute.Execution, "check", lambda self, cells: None)
    monkeypatch.setattr("benchmarks.data.data_root", lambda *_: Path("nowhere"))
    return Runner


@pytest.mark.parametrize(("shift", "word"), [(0.0, IDENTICAL), (0.005, WITHIN), (0.5, DIFFERS), (None, FAILED)])
def test_reproduce_says_theirs_ours_and_verdict(runner, record, tmp_path, shift, word):
    runner.value = None if shift is None else runner.value + shift
    said = []
    found = reproduce(ROW, tmp_path / "new", tmp_path, COMMITTED, None, "cpu", False, said.append)
    assert found == [word]
    assert runner.calls == [(tmp_path / "new", "always", ["mae depth.frozen seed 0"])]
    text = "\n".join(said)
    assert f"verdict: {word}" in text
    assert "git_commit" in text
    assert "the test data are not the same" in text
    assert ("no memory" if shift is None else f"theirs {record.metrics['rmse']['value']:.6g}") in text


def test_every_call_runs_all_cells_anew_and_trains_a_backbone_once(runner, tmp_path, record):
    for seed in range(2):
        for task in ("classification", "depth"):
            folder = tmp_path / f"runs/embedded/mae/seed{seed}/{task}.frozen"
            write_record(folder, replace(record, seed=seed, task=task))
    for _ in range(2):
        found = reproduce("embedded/mae", tmp_path / "new", tmp_path / "runs", COMMITTED, None, "cpu", False, str)
        assert len(found) == 4
    assert [overwrite for _, overwrite, _ in runner.calls] == ["always"] * 8
    first, second = set(runner.requests[:4]), set(runner.requests[4:])
    assert len(first) == len(second) == 1  # by which the execution knows a backbone of this call
    assert first != second


def test_dry_run_runs_nothing(runner, tmp_path):
    said = []
    assert reproduce(ROW, tmp_path / "new", tmp_path, COMMITTED, None, "cpu", True, said.append) == []
    assert runner.calls == []
    assert any("command: bench run --suite embedded --objective mae --tasks depth" in line for line in said)


def test_refusals(runner, tmp_path):
    def refused(what, output=tmp_path / "new"):
        with pytest.raises(RequestError) as caught:
            reproduce(what, output, tmp_path, COMMITTED, None, "cpu", False, str)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "name a row like" in refused("embedded/nobody")
    assert "holds the old records" in refused(ROW, tmp_path)
    assert "holds the old records" in refused(ROW, COMMITTED)
    target = tmp_path / ROW
    shutil.copytree(COMMITTED / ROW, target)
    (target / "result.json").write_text("{")
    assert "not JSON" in refused(str(target))
    assert runner.calls == []


@pytest.mark.parametrize("odd", [None, 3, "x", ["fused"], {"fused": "yes", "compiled": 1, "pretraining": "all",
                                         "task": -1}])  # fmt: skip
def test_what_a_stranger_says_of_threads_and_arithmetic_is_no_order(record, odd):
    odd_record = checked(replace(record, environment={**record.environment, "threads": odd, "arithmetic": odd}))
    threads = execute.Threads.of(odd_record)
    assert 1 <= threads.pretraining <= execute.cores()
    assert 1 <= threads.task <= execute.cores()
    assert arithmetic_of(odd_record) == (False, False)
    with pytest.raises(RecordError, match=r"environment\.hardware"):
        checked(replace(record, environment={**record.environment, "hardware": "fast"}))
