"""Workers side by side: every cell gets its record, whatever happens to a worker; threads follow from the request."""

import importlib
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import commands
import pytest

from benchmarks import crew as crew_module
from benchmarks import suite as suites
from benchmarks.crew import Crew, divide, resolve_jobs, shared_gpu_memory
from benchmarks.errors import EXIT_INTERRUPTED, RequestError
from benchmarks.execute import Threads, Work
from benchmarks.plan import Request, plan
from benchmarks.progress import Reporter
from objectives.recipe import ObjectiveError


class Shown(Reporter):
    def __init__(self):
        super().__init__()
        self.reports = []

    def show(self, *report):
        self.reports.append(report)


@pytest.fixture
def trial(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("crew_trial").Trial


def cells(objectives, tasks=("classification", "depth"), seeds=(0,)):
    return plan(Request(list(objectives), list(tasks), "embedded", [], "default", seeds, []))


def test_threads_follow_from_the_request(monkeypatch):
    monkeypatch.setattr(crew_module, "cores", lambda: 4)
    assert divide(cells(["mae"]), 4) == Threads(pretraining=4, task=2)
    assert divide(cells(["mae", "random_init"]), 4) == Threads(pretraining=4, task=1)  # nothing to train in one of them
    assert divide(cells(["mae"], seeds=(0, 1, 2)), 4) == Threads(pretraining=1, task=1)
    assert divide(cells(["mae"], seeds=(0, 1, 2)), 1) == Threads(pretraining=4, task=4)
    assert divide(cells(["random_init"], ["depth"]), 8) == Threads(pretraining=4, task=4)


def test_jobs_follow_from_cores_and_memory(monkeypatch):
    monkeypatch.setattr(crew_module, "cores", lambda: 8)
    monkeypatch.setattr(crew_module, "available_memory", lambda: 13 * 2**30)
    assert resolve_jobs(None, "cpu") == 4
    assert resolve_jobs(None, "cuda") == 1
    assert resolve_jobs(3, "cpu") == 3
    monkeypatch.setattr(crew_module, "free_gpu_memory", lambda device: 7 * 2**30)
    assert resolve_jobs(None, "cuda", 2 * 2**30) == 3
    assert resolve_jobs(None, "cuda", 2**30) == 4
    assert resolve_jobs(None, "cuda", 2**34) == 1
    monkeypatch.setattr(crew_module, "available_memory", lambda: 2**30)
    assert resolve_jobs(None, "cpu") == 1


def worker(execution):
    """A worker with ``execution``, and the command's end of its pipe; the worker's own is ``execution.its``."""
    context = multiprocessing.get_context("fork")
    ours, execution.its = context.Pipe()

    def serve():
        ours.close()
        crew_module._serve(execution.its, execution)

    process = context.Process(target=serve)
    process.start()
    execution.its.close()
    return process, ours


def test_a_worker_whose_command_has_left_ends_without_a_word(capfd):
    class Slow:
        def check(self, asked):
            self.its.poll(10)  # until the command's end of the pipe closes

    process, ours = worker(Slow())
    ours.send([])
    time.sleep(0.5)
    ours.close()
    process.join(120)
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""


class Told:
    """Is told to end in the middle of what it does."""

    def __init__(self, folder):
        self.folder = folder

    def check(self, asked=None):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            (self.folder / "in order").touch()

    def attempt(self, piece):
        self.check()


def test_a_worker_that_checks_is_ended_at_once(tmp_path, capfd):
    """Not by a KeyboardInterrupt, which modules that are being imported turn into other errors."""
    process, ours = worker(Told(tmp_path))
    ours.send([])
    process.join(120)
    assert process.exitcode == -signal.SIGTERM
    assert capfd.readouterr().err == ""
    assert not list(tmp_path.iterdir())


def test_a_worker_puts_a_piece_of_work_in_order_before_it_ends(tmp_path, capfd):
    process, ours = worker(Told(tmp_path))
    ours.send(Work("score", (), 1, (), "a cell"))
    process.join(120)
    assert process.exitcode == 0
    assert capfd.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["in order"]


def test_an_interruption_while_workers_are_born_is_one_line(tmp_path):
    options = (commands.scenes(16, 1), "suite.images_seen=8")
    words = commands.command(commands.arguments(tmp_path, "mae,simmim", "depth", "--jobs", "2", options=options))
    command = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while command.poll() is None and not commands.workers(command.pid):
        time.sleep(0.02)
    time.sleep(0.4)  # they import what they need
    os.killpg(command.pid, signal.SIGINT)  # as a terminal does: all that are of the command's group
    out, err = command.communicate(timeout=300)
    assert command.returncode == EXIT_INTERRUPTED
    assert out == ""
    first, *plan, last = err.splitlines()
    assert all(line.startswith(("data", "plan:", "  ")) for line in (first, *plan)), err
    assert last.startswith("bench: interrupted;")


def test_every_cell_gets_a_number_or_a_reason(trial, tmp_path, monkeypatch):
    monkeypatch.setattr(crew_module, "cores", lambda: 2)
    asked = cells(["mae", "simmim"], ["classification", "pose", "depth"])
    reporter = Shown()
    with Crew(trial(tmp_path, tmp_path, "cpu", reporter=reporter), 2, asked) as crew:
        crew.check(asked)
        found = crew.run(asked)
    texts = [item for item in found if isinstance(item, str)]
    assert sorted(texts) == [f"{task} of mae, 1 threads, 1 threads" for task in ("classification", "depth")]
    records = {(item.objective, item.task): item for item in found if not isinstance(item, str)}
    assert len(records) == 4
    assert records["mae", "pose"].status == "failed"
    assert "killed by signal 9" in records["mae", "pose"].reason
    assert {records["simmim", task].reason for task in ("classification", "pose", "depth")} == {
        "pre-training failed: no pictures"
    }
    assert ("mae classification.frozen seed 0", "test", 1, 1) in reporter.reports
    assert not crew._workers


@pytest.mark.parametrize(("seed", "kind", "words"), [
    (9, RequestError, "seed 9 makes no sense"), (7, ObjectiveError, "seed 7 needs a compiler"),
])
def test_a_refusal_comes_back_from_the_worker(trial, tmp_path, seed, kind, words):
    asked = cells(["mae"], seeds=(seed,))
    with (
        pytest.raises(kind, match=f"^{words}$"),
        Crew(trial(tmp_path, tmp_path, "cpu", reporter=Shown()), 2, asked) as crew,
    ):
        crew.check(asked)


def test_a_worker_that_dies_idle_is_replaced(trial, tmp_path, monkeypatch):
    monkeypatch.setattr(crew_module, "cores", lambda: 2)
    asked = cells(["mae"], ["classification", "depth"])
    with Crew(trial(tmp_path, tmp_path, "cpu", reporter=Shown()), 2, asked) as crew:
        crew.check(asked)
        idle = list(crew._workers)
        assert len(idle) == 2  # one row, two cells: both have imported what they need
        for worker in idle:
            worker.process.kill()
            worker.process.join()
        found = crew.run(asked)
        assert not any(worker in crew._workers for worker in idle)
    assert found == [f"{task} of mae, 2 threads, 1 threads" for task in ("classification", "depth")]


class Gone:
    """A worker's pipe whose other end was closed between the look at the worker and the message to it."""

    def send(self, what):
        raise BrokenPipeError(32, "Broken pipe")

    def recv(self):
        raise EOFError

    def close(self):
        pass


class Ended:
    exitcode = -9

    def is_alive(self):
        return self.alive

    def join(self, seconds=None):
        pass


def test_a_worker_that_dies_while_it_is_told_costs_its_piece_only(trial, tmp_path):
    asked = cells(["mae"], ["classification", "depth"])
    crew = Crew(trial(tmp_path, tmp_path, "cpu", reporter=Shown()), 2, asked)
    piece = crew.execution.queue(asked)[0]
    worker = crew_module._Worker(Ended(), Gone())
    crew._workers.append(worker)
    worker.process.alive = True
    crew.begin(piece)
    worker.process.alive = False
    assert "killed by signal 9" in str(crew._listen(worker).result)
    assert not crew._workers


def test_a_worker_that_dies_in_the_check_is_one_line(trial, tmp_path):
    asked = cells(["mae"], seeds=(8,))
    with (
        pytest.raises(RequestError, match=r"^the worker process was killed by signal 9; .*nothing was begun yet$"),
        Crew(trial(tmp_path, tmp_path, "cpu", reporter=Shown()), 2, asked) as crew,
    ):
        crew.check(asked)


def test_a_gpu_is_shared_where_the_suite_says_what_a_process_takes():
    assert shared_gpu_memory(cells(["mae"])) == suites.get("embedded").gpu_memory
    assert shared_gpu_memory(plan(Request(["mae"], ["depth"], "paper"))) is None
    larger = plan(Request(["mae"], ["depth"], "embedded", options=["suite.kwargs.embed_dim=768"]))
    assert shared_gpu_memory(larger) is None
