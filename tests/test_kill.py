"""The kill test in brief; ``make kill-test`` runs it at length."""

import multiprocessing
import os
import sys

import commands
import kill
import pytest
import torch

FORK = multiprocessing.get_context("fork")


def bench(words, out, err):
    from benchmarks import crew
    from benchmarks.cli import main

    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    crew.get_context = lambda kind: FORK  # workers that have imported torch already
    crew.LEAVE_WITHIN = 0.5  # they inherit each other's pipes, and so do not notice that theirs was closed
    sys.argv = ["bench", *words]
    main()


class Forked:
    """A command that has imported torch already: its start takes no time."""

    def __init__(self, words, out, err):
        torch.set_num_threads(1)  # a fork has but one
        self.process = FORK.Process(target=bench, args=(words, out, err))
        self.process.start()
        self.pid = self.process.pid

    def wait(self, seconds):
        self.process.join(seconds)
        return self.process.exitcode


@pytest.mark.slow
def test_kills_of_commands_and_workers_change_no_record_and_leave_nothing(tmp_path):
    import objectives.pretrain  # noqa: F401 (once, not in every process)
    from downstream.engine import quiet

    for scope in ("mmpretrain", "mmseg"):
        with quiet(scope):
            pass
    options = (commands.scenes(16, 1), "suite.images_seen=816")  # 102 steps, a checkpoint after the 100th
    tally = kill.trial(tmp_path, 3, 1, "mae,simmim", "classification,depth", options, Forked)
    assert not tally.found
    assert (tally.whole, tally.single) == (2, 1)
    assert tally.restarts >= 2
    assert len(list((tmp_path / "calm").rglob("result.json"))) == 4
    assert "records identical, none lost, none double, no stale lock" in str(tally)


def test_what_is_left_behind_is_seen(tmp_path):
    (tmp_path / "checkpoint-00000100-0.pt").write_text("")
    (tmp_path / ".result.json.1.tmp").write_text("")
    (tmp_path / "result.json").write_text("")
    assert len(kill.left_behind(tmp_path)) == 2
