import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from fuzzing import VALUES, change
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboard.records import (
    SCHEMA,
    InvalidRecord,
    RecordError,
    checked,
    read_record,
    read_records,
    same_result,
    write_record,
)
from leaderboard.render import render
from leaderboard.table import build


def edit(path: Path, **changes: object) -> None:
    payload = json.loads(path.read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        target = payload
        for key in parents:
            target = target[key]
        if value is ...:
            del target[last]
        else:
            target[last] = value
    path.write_text(json.dumps(payload))


def test_round_trip(tmp_path, make_record):
    record = make_record(1 / 3, variant={"objective.loss.type": "L1"}, items={"top1": [0.1, 1]})
    path = write_record(tmp_path / "a" / "b", record)
    assert path == tmp_path / "a" / "b" / "result.json"
    read = read_record(path)
    assert read == checked(record)
    assert read.digest
    assert read.metrics["top1"]["value"] == 1 / 3
    assert read.main_metric == ("top1", record.metrics["top1"])


def test_the_same_record_gives_the_same_bytes(tmp_path, make_record):
    record = make_record()
    shuffled = replace(record, metrics=dict(reversed(record.metrics.items())),
                       config=dict(reversed(record.config.items())))
    assert write_record(tmp_path / "a", record).read_bytes() == write_record(tmp_path / "b", shuffled).read_bytes()


@pytest.mark.parametrize("step", ["fsync", "replace", "open"])
@pytest.mark.parametrize(("code", "mend"), [(errno.ENOSPC, "free some space"), (errno.EACCES, "writable")])
def test_a_failed_write_leaves_the_old_record_and_nothing_else(tmp_path, make_record, monkeypatch, step, code, mend):
    path = write_record(tmp_path, make_record(1))
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open" if step == "open" else f"os.{step}", fail)
        with pytest.raises(RecordError) as caught:
            write_record(tmp_path, make_record(2))
    message = str(caught.value)
    assert str(path) in message
    assert mend in message
    assert "\n" not in message
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_an_interrupted_write_cleans_up(tmp_path, make_record, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_record(tmp_path, make_record())
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_one_line(tmp_path, make_record):
    (tmp_path / "cell").write_text("")
    with pytest.raises(RecordError, match=r"cannot write .*result\.json"):
        write_record(tmp_path / "cell", make_record())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 100.5])
def test_an_impossible_value_is_not_written(tmp_path, make_record, value):
    with pytest.raises(RecordError, match=r"mae classification\.frozen seed 0 is not a valid record"):
        write_record(tmp_path, make_record(value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics__top1__value": 50.001},
        {"seed": 1},
        {"config__lr": 2e-3},
        {"cost__pretrain_images": 1},
        {"cost__seconds": 1.0},
        {"fingerprints__data": "x"},
        {"reason": "none"},
    ],
)
def test_edited_values_are_noticed(tmp_path, make_record, changes):
    path = write_record(tmp_path, make_record())
    edit(path, **changes)
    with pytest.raises(InvalidRecord, match="digest") as caught:
        read_record(path)
    assert caught.value.path == path
    assert caught.value.cell is not None
    assert caught.value.cell.objective == "mae"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": 2}, "newer"),
        ({"schema": True}, "schema"),
        ({"suite": ...}, "'suite' is missing"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"objective": "a\nb"}, "objective"),
        ({"objective": "\x1b[31m"}, "objective"),
        ({"objective": ""}, "objective"),
        ({"objective": 3}, "objective"),
        ({"objective": "\ud800"}, "objective"),
        ({"environment__hardware": "\ud800"}, "surrogate"),
        ({"seed": -1}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"task_version": 0}, "task_version"),
        ({"task": "a.b"}, "full stop"),
        ({"variant": []}, "variant"),
        ({"status": "fine"}, "status"),
        ({"status": "failed"}, "without a reason"),
        ({"metrics": {}}, "main metric"),
        ({"metrics__top1__main": False}, "main metric"),
        ({"metrics__top1__main": 1}, "main"),
        ({"metrics__top1__value": "50"}, "top1"),
        ({"metrics__top1__value": None}, "top1"),
        ({"metrics__top1__value": True}, "top1"),
        ({"metrics__top1__value": 10**400}, "top1"),
        ({"metrics__top1__value": 101}, "outside 0 … 100"),
        ({"metrics__top1__value": 101, "metrics__top1__high": None}, "outside 0 … 100"),
        ({"metrics__top1__high": 10}, "outside"),
        ({"metrics__top1__unit": ...}, "'unit' is missing"),
        ({"cost__device": None}, "device"),
        ({"cost__seconds": -1}, "seconds"),
        ({"cost__pretrain_images": 0.5}, "pretrain_images"),
        ({"environment": {}}, "missing in environment"),
        ({"fingerprints__cell": None}, "cell"),
        ({"config": 1}, "config"),
        ({"items": {"top1": ["x"]}}, "item"),
        ({"items": {"top1": 1}}, "item"),
        ({"started": "yesterday"}, "started"),
        ({"digest": None}, "digest"),
    ],
)
def test_broken_records_say_why(tmp_path, make_record, changes, reason):
    path = write_record(tmp_path, make_record())
    edit(path, **changes)
    with pytest.raises(InvalidRecord, match=reason) as caught:
        read_record(path)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_rmse_of_zero_is_impossible(tmp_path, make_record):
    with pytest.raises(RecordError, match="not above 0"):
        write_record(tmp_path, make_record(0.0, task="depth"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b"null", "not an object"),
        (b"[" * 200_000, "deeply"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "deeply"),
        (b'{"schema": NaN}', "NaN"),
        (b'{"schema": ' + b"9" * 10_000 + b"}", "."),
    ],
)
def test_other_contents_are_invalid(tmp_path, content, reason):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(InvalidRecord, match=reason):
        read_record(path)


def test_infinity_written_as_a_number_is_refused(tmp_path, make_record):
    path = write_record(tmp_path, make_record())
    path.write_text(path.read_text().replace('"lr": 0.001', '"lr": 1e999'))
    with pytest.raises(InvalidRecord):
        read_record(path)


def test_what_is_no_file_is_invalid(tmp_path):
    os.mkfifo(tmp_path / "result.json")
    with pytest.raises(InvalidRecord, match="not a file"):
        read_record(tmp_path / "result.json")
    with pytest.raises(InvalidRecord, match="cannot be read"):
        read_record(tmp_path / "missing.json")
    with pytest.raises(InvalidRecord):
        read_record(tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_records_never_raise_anything_else(tmp_path, make_record, data):
    path = write_record(tmp_path, make_record(items={"top1": [1.0]}))
    payload = json.loads(path.read_text())
    change(data.draw, payload, VALUES, most=1)
    text = json.dumps(payload)
    path.write_text(text[: data.draw(st.integers(0, len(text)))] if data.draw(st.booleans()) else text)
    records, invalid = read_records([tmp_path])
    assert len(records) + len(invalid) == 1
    assert all(same_result(record, checked(record)) for record in records)
    assert all(str(path) in str(error) and "\n" not in str(error) for error in invalid)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary() | VALUES.map(lambda value: json.dumps(value).encode()))
def test_fuzzed_bytes_never_raise_anything_else(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(InvalidRecord):
        read_record(path)


# --- folders ----------------------------------------------------------------------------------------------------------


def test_records_are_found_below_the_roots(tmp_path, make_record):
    write_record(tmp_path / "embedded" / "mae" / "seed0" / "depth.frozen", make_record(1.0, task="depth"))
    write_record(tmp_path / "embedded" / "mae" / "seed0" / "pretrain", make_record(1.0, task="pose"))
    write_record(tmp_path / "embedded" / "mae" / "seed0" / "mmengine", make_record(1.0, task="pose"))
    broken = tmp_path / "other" / "result.json"
    broken.parent.mkdir()
    broken.write_text("{")
    (tmp_path / "circle").symlink_to(tmp_path)
    records, invalid = read_records([tmp_path, tmp_path / "embedded"])
    assert [record.task for record in records] == ["depth"]
    assert [error.path for error in invalid] == [broken]


def test_a_missing_root_is_an_error(tmp_path):
    with pytest.raises(RecordError, match="no folder"):
        read_records([tmp_path / "nothing"])


def test_the_same_result_twice_counts_once(tmp_path, make_record):
    first = make_record(50.0)
    elsewhere = replace(first, started="2026-01-01", cost={**first.cost, "seconds": 9.0, "device": "GPU"})
    write_record(tmp_path / "a", first)
    write_record(tmp_path / "b", elsewhere)
    records, invalid = read_records([tmp_path / "a", tmp_path / "b"])
    assert records == [checked(first)]
    assert invalid == []


def test_a_record_with_baselines_is_the_same_result_as_one_made_before_them(make_record):
    first = make_record(50.0)
    later = replace(first, details={"baselines": {"top1": {"chance": 10.0}}})
    assert same_result(checked(first), checked(later))
    assert not same_result(checked(first), checked(replace(first, details={"layers": []})))
    with pytest.raises(RecordError, match="baseline 'chance'"):
        checked(replace(first, details={"baselines": {"top1": {"chance": "low"}}}))


def test_contradicting_results_are_kept_out(tmp_path, make_record):
    paths = [write_record(tmp_path / name, make_record(value)) for name, value in (("a", 1), ("b", 2), ("c", 1))]
    records, invalid = read_records([tmp_path])
    assert records == []
    assert [error.path for error in invalid] == paths  # c says what a says, and is kept out with it
    assert [str(paths[at]) in error.reason for at, error in zip((1, 0, 1), invalid, strict=True)] == [True] * 3
    assert all("contradicts" in error.reason and error.cell is not None for error in invalid)


def test_a_contradiction_says_what_differs(tmp_path, make_record):
    first = make_record(50.0)
    second = replace(make_record(51.0), fingerprints={**first.fingerprints, "data": "other"})
    write_record(tmp_path / "ann", first)
    write_record(tmp_path / "bob", second)
    _, (one, two) = read_records([tmp_path / "ann", tmp_path / "bob"])
    assert "top1 50 here, top1 51 there" in one.reason
    assert "data fingerprint 'd' here, 'other' there" in one.reason
    assert "top1 51 here, top1 50 there" in two.reason
    assert str(tmp_path / "bob") in one.reason


OLD = Path(__file__).parent / "old_records"


@pytest.mark.parametrize("path", sorted(OLD.glob("*.json")), ids=lambda path: path.stem)
def test_old_records_still_load(path):
    """Files as earlier versions of this package wrote them; one is added whenever the layout changes."""
    record = read_record(path)
    assert record.status == "ok"
    assert record.main_metric is not None
    table = build([record])
    assert render(table, "md")


def test_every_schema_has_an_old_record():
    assert {json.loads(path.read_text())["schema"] for path in OLD.glob("*.json")} >= set(range(1, SCHEMA + 1))


def test_a_number_takes_precedence_over_a_failure(tmp_path, make_record):
    write_record(tmp_path / "a", make_record(None))
    write_record(tmp_path / "b", make_record(3.0))
    records, invalid = read_records([tmp_path])
    assert [record.status for record in records] == ["ok"]
    assert invalid == []


def test_same_result(make_record):
    record = make_record()
    assert same_result(record, replace(record, environment={}, started="x", digest="y"))
    assert same_result(record, replace(record, cost={**record.cost, "seconds": 1.0, "peak_memory_bytes": None}))
    assert not same_result(record, replace(record, cost={**record.cost, "pretrain_images": 1}))
    assert not same_result(record, make_record(50.0 + 1e-14))
