"""Several ``bench run`` on one runs folder: the work is shared, a dead process's lock is taken over."""

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.execute import Execution, Threads, forget_peak_memory, peak_memory, sha256
from benchmarks.locks import FOLDER, Busy, held
from benchmarks.plan import Request, plan
from benchmarks.progress import Kept
from leaderboard.records import read_records, same_result

FORK = multiprocessing.get_context("fork")
WORK = Path("suite/objective/seed0")


def execute(runs, root, cells, to=None):
    notes = Kept()
    records = Execution(runs, root, "cpu", reporter=notes, threads=Threads(1, 1)).run(cells)  # a fork has but one
    if to is not None:
        to.put(notes.lines)
    return notes.lines, records


@pytest.fixture
def cells(tiny):
    tasks = ["classification", "depth"]
    return plan(Request(["mae", "simmim"], tasks, "mini", options=tiny(*tasks)))


def hold(runs, entered):
    with held(runs, WORK, wait=False):
        entered.set()
        time.sleep(60)


def test_weights_are_hashed_once_as_long_as_they_are_the_same(tmp_path, monkeypatch):
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr("hashlib.file_digest", lambda file, kind: read.append(file.name) or digest(file, kind))
    path = tmp_path / "backbone.safetensors"
    for content in (b"one", b"two", b"longer"):
        path.write_bytes(content)
        os.utime(path, ns=(0, 10**9 * len(read)))
        assert {sha256(tmp_path) for _ in range(3)} == {hashlib.sha256(content).hexdigest()}
    assert len(read) == 3


def test_a_lock_excludes_and_leaves_nothing(tmp_path):
    with held(tmp_path, WORK, wait=False):
        with pytest.raises(Busy), held(tmp_path, WORK, wait=False):
            pass
        with held(tmp_path, WORK / "other", wait=False):
            pass
    with held(tmp_path, WORK, wait=True):
        pass
    assert not (tmp_path / FOLDER).exists()


def test_a_killed_processs_lock_is_taken_over(tmp_path):
    entered = FORK.Event()
    child = FORK.Process(target=hold, args=(tmp_path, entered))
    child.start()
    assert entered.wait(120)
    with pytest.raises(Busy), held(tmp_path, WORK, wait=False):
        pass
    os.kill(child.pid, signal.SIGKILL)
    with held(tmp_path, WORK, wait=True):
        pass
    child.join()
    assert not (tmp_path / FOLDER).exists()


def test_two_processes_share_the_work(mini, cells, tmp_path):
    torch.set_num_threads(1)
    _, alone = execute(tmp_path / "alone", mini, cells[:2])
    queue = FORK.Queue()
    children = [FORK.Process(target=execute, args=(tmp_path / "runs", mini, cells, queue)) for _ in range(2)]
    for child in children:
        child.start()
    try:
        said = [queue.get(timeout=300) for _ in children]
    finally:
        for child in children:
            child.kill()
            child.join()
    lines = [line for lines in said for line in lines]
    assert sum(line.startswith("trained ") for line in lines) == 2, lines
    for cell in cells:
        scored = [line for line in lines if line.startswith(f"{cell.name}: ") and line.endswith(" s)")]
        assert len(scored) == 1, lines
    assert any("another process is at work on it" in line or "finished by another process" in line for line in lines)
    records, invalid = read_records([tmp_path / "runs"])
    assert not invalid
    assert len(records) == 4
    by_cell = {record.cell: record for record in records}
    assert all(same_result(record, by_cell[record.cell]) for record in alone)
    assert not (tmp_path / "runs" / FOLDER).exists()


def test_who_waits_uses_the_finished_record(mini, cells, tmp_path, monkeypatch):
    """A second process comes while the first scores a cell; here both are one, the second within the first's work."""
    lines, begun = [], []

    def nested(self, cell, folder, score=Execution._score):
        if not begun:
            begun.append(cell)
            lines.extend(execute(tmp_path, mini, [c for c in cells if c != cell])[0])
        return score(self, cell, folder)

    monkeypatch.setattr(Execution, "_score", nested)
    said, records = execute(tmp_path, mini, cells)
    assert [r.status for r in records] == ["ok"] * 4
    assert any("finished by another process" in line for line in said), said
    assert sum(line.startswith("trained ") for line in said + lines) == 2


def test_a_second_attempt_of_an_overwriting_request_keeps_the_first_ones_work(mini, cells, tmp_path, monkeypatch):
    """Its worker was lost: another one, with a copy of the execution, goes on from its last checkpoint."""
    first, later = (Execution(tmp_path, mini, "cpu", "always", Kept()) for _ in range(2))
    again = replace(first)
    pretraining = cells[0].pretraining
    folder = tmp_path / pretraining.folder / "pretrain"
    checkpoint = folder / "checkpoint-00000100-0.pt"
    for execution, kept in ((first, False), (again, True), (later, False)):
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.touch()
        execution._clear_stale(folder, pretraining)
        assert checkpoint.exists() == kept
    monkeypatch.setattr(Execution, "_train", lambda self, pretraining: "trained again")
    about = {"fingerprint": pretraining.fingerprint(first.pictures_fingerprint(pretraining))}
    (folder / "backbone.json").write_text(json.dumps(about))
    (folder / "backbone.safetensors").touch()
    assert replace(later).pretrain(pretraining) == folder
    assert first.pretrain(pretraining) == "trained again"


@pytest.mark.parametrize(("mark", "by", "kept"), [
    ("{} 0123456789abcdef", {}, True),  # as it was before it named the arithmetic
    ("{}", {}, True), ("{}", {"fast": True}, False), ("{}", {"device": "cuda"}, False), ("", {}, False),
])
def test_checkpoints_of_another_arithmetic_or_device_are_left(mini, cells, tmp_path, monkeypatch, mark, by, kept):
    monkeypatch.setattr("benchmarks.execute.resolve_device", lambda device: device)
    execution = Execution(tmp_path, mini, **{"device": "cpu", "reporter": Kept(), **by})
    pretraining = cells[0].pretraining
    checkpoint = tmp_path / "checkpoint-00000100-0.pt"
    checkpoint.touch()
    wanted = pretraining.fingerprint(execution.pictures_fingerprint(pretraining))
    (tmp_path / "fingerprint").write_text(mark.format(wanted))
    execution._clear_stale(tmp_path, pretraining)
    assert checkpoint.exists() == kept
    checkpoint.touch()
    execution._clear_stale(tmp_path, pretraining)  # its own it goes on from
    assert checkpoint.exists()
    replace(execution, fast=not execution.fast, device="cpu")._clear_stale(tmp_path, pretraining)
    assert not checkpoint.exists()


def test_the_peak_of_memory_is_that_of_a_piece_of_work():
    forget_peak_memory()
    before = peak_memory()
    held = np.ones(2**25)  # 256 MiB
    most = peak_memory()
    assert most - before > 0.9 * held.nbytes
    size = held.nbytes
    del held
    assert abs(peak_memory() - most) < 2**20
    forget_peak_memory()
    assert most - peak_memory() > 0.9 * size


def fails(error):
    def raising(*_, **__):
        raise error

    return raising


@pytest.mark.parametrize(
    ("where", "error", "words"),
    [
        ("downstream.task.evaluate", OSError(errno.ENOSPC, "No space left on device", "/runs/x"), "/runs/x: no space"),
        ("downstream.task.evaluate", OSError(errno.ESTALE, "Stale file handle"), "stale file handle"),
        ("objectives.pretrain.pretrain", OSError(errno.EIO, "Input/output error", "/d/y"), "/d/y: input/output error"),
    ],
)
def test_a_disk_that_is_full_or_gone_ends_the_run_in_one_line(
    where, error, words, mini, tiny, tmp_path, monkeypatch, call
):
    monkeypatch.setattr(where, fails(error))
    options = [flag for option in tiny("depth") for flag in ("--cfg-options", option)]
    code, out, err = call("run", "--suite", "mini", "--data-root", mini, "--objective", "random_init", "--tasks",
                          "depth", "--runs", tmp_path / "runs", *options)
    assert code == 2
    assert words in err.splitlines()[-1]
    assert "finished cells are kept" in err.splitlines()[-1]
    assert out == ""
    assert not list(tmp_path.rglob("result.json"))
    assert not (tmp_path / "runs" / FOLDER).exists()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_runs_folder_that_takes_no_file_is_refused(number, tmp_path, monkeypatch, call):
    monkeypatch.setattr(Path, "write_bytes", fails(OSError(number, os.strerror(number))))
    code, _, err = call("run", "--objective", "mae", "--runs", tmp_path / "runs")
    assert code == 2
    assert f"cannot write there ({os.strerror(number)})" in err.splitlines()[-1]


def test_a_killed_reader_is_named(mini, cells, tmp_path, monkeypatch):
    killed = RuntimeError("DataLoader worker (pid 123) is killed by signal: Killed. ")
    monkeypatch.setattr("downstream.task.evaluate", fails(killed))
    _, (record,) = execute(tmp_path, mini, cells[:1])
    assert record.status == "failed"
    assert "reads data was killed" in record.reason


def test_data_that_change_under_way_give_no_number(mini, cells, tmp_path, monkeypatch):
    import shutil

    import downstream.task

    shutil.copytree(mini, tmp_path / "data")
    real = downstream.task.evaluate

    def evaluate(job):
        outcome = real(job)
        (tmp_path / "data" / "tiny_imagenet25" / "new.txt").write_text("x")
        return outcome

    monkeypatch.setattr(downstream.task, "evaluate", evaluate)
    _, (record,) = execute(tmp_path / "runs", tmp_path / "data", cells[:1])
    assert record.status == "failed"
    assert "changed while they were used" in record.reason


def test_a_backbone_that_is_trained_anew_while_it_is_scored_gives_no_number(cells, mini, tmp_path, monkeypatch):
    (cell,) = [cell for cell in cells if cell.task.name == "depth" and cell.pretraining.recipe.name == "mae"]
    path = tmp_path / cell.pretraining.folder / "pretrain" / "backbone.safetensors"
    evaluate = Execution.evaluate

    def disturbed(self, job):
        outcome = evaluate(self, job)
        path.write_bytes(path.read_bytes()[:-1] + b"0")
        return outcome

    monkeypatch.setattr(Execution, "evaluate", disturbed)
    (record,) = execute(tmp_path, mini, [cell])[1]
    assert record.status == "failed"
    assert "trained anew while it was scored" in record.reason
