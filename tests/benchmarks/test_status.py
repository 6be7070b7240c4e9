"""``bench status``: what a runs folder tells of the requests on it."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks import notes
from benchmarks.locks import FOLDER, held, is_held
from benchmarks.notes import Note, announced, noting, progress, states
from benchmarks.plan import Request, plan

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def cells():
    return plan(Request(["mae", "simmim"], ["classification", "depth"], "embedded"))


def record(runs, cell, status, reason=None):
    folder = runs / cell.folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps({"status": status, "reason": reason}))


def at_work(runs, cells, begun):
    with announced(runs, cells, 3, "bench run"), held(runs, cells[1].folder, wait=False):
        noting(runs, cells[1].folder, lambda *report: None)("head 1 of 2", 30, 200)
        with held(runs, cells[2].pretraining.folder / "pretrain", wait=False):
            begun.set()
            time.sleep(60)


def test_another_process_is_seen_at_work_and_dead(cells, tmp_path, call):
    record(tmp_path, cells[2], "ok")  # an old one, to be computed again
    begun = FORK.Event()
    child = FORK.Process(target=at_work, args=(tmp_path, cells, begun))
    child.start()
    assert begun.wait(120)
    record(tmp_path, cells[0], "failed", "out of memory")
    (state,) = states(tmp_path)
    assert state.alive
    assert (state.finished, state.waiting, state.total) == (3, 2, 7)
    assert state.failed == {cells[0].name: "failed: out of memory"}
    assert state.under_way == {
        cells[1].name: Note("head 1 of 2", 30, 200), f"training for {cells[2].name} and 1 more": None
    }
    code, out, _ = call("status", "--runs", tmp_path)
    assert code == 0
    assert "running: 3 of 7 cells have a number, 1 failed or were skipped, 2 waiting" in out
    assert f"{cells[1].name}: head 1 of 2 30/200" in out
    assert f"{cells[0].name}: failed: out of memory" in out
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    (state,) = states(tmp_path)
    assert not state.alive
    assert not state.under_way
    assert state.waiting == 3
    code, out, _ = call("status", "--runs", tmp_path, "--format", "json")
    assert json.loads(out)[0]["alive"] is False


def put_aside(folder, name):
    """Rename the newest request: the next one of this process may come within its second and take its name."""
    (newest,) = folder.glob("2*.json")
    newest.rename(folder / f"{name}.json")


def test_only_the_last_request_is_shown_where_none_runs(cells, tmp_path):
    assert states(tmp_path) == []
    for words in ("first", "second"):
        with announced(tmp_path, cells, 0, words):
            assert [state.command for state in states(tmp_path)] == [words]
        put_aside(tmp_path / notes.REQUESTS, words)
    assert [state.command for state in states(tmp_path)] == ["second"]
    assert not (tmp_path / FOLDER).exists()


def test_old_requests_are_forgotten(cells, tmp_path, monkeypatch):
    monkeypatch.setattr(notes, "KEPT", 2)
    folder = tmp_path / notes.REQUESTS
    for number in range(4):
        with announced(tmp_path, cells, 0, "bench"):
            pass
        put_aside(folder, f"1{number}")
    assert len(list(folder.glob("*.json"))) == 2


def test_notes_are_rare_and_go_with_the_lock(tmp_path, monkeypatch):
    work, seen, clock = Path("a/b"), [], [10.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with held(tmp_path, work, wait=False):
        report = noting(tmp_path, work, lambda *report: seen.append(report))
        for step in range(3):
            report("train", step, 3)
        assert progress(tmp_path, work) == Note("train", 0, 3)
        clock[0] += 1.5
        report("train", 3, 3)
        assert progress(tmp_path, work) == Note("train", 3, 3)
        assert len(seen) == 4
    assert progress(tmp_path, work) is None
    assert not is_held(tmp_path, work)
    assert not (tmp_path / FOLDER).exists()


def test_a_damaged_note_is_none(cells, tmp_path):
    with announced(tmp_path, cells, 0, "bench"):
        next((tmp_path / notes.REQUESTS).glob("*.json")).write_text("{")
        assert states(tmp_path) == []


def test_no_such_folder(call, tmp_path):
    code, _, err = call("status", "--runs", tmp_path / "none")
    assert code == 2
    assert "no such folder" in err
