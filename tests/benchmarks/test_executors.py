"""Executors: a plan as a graph, workers that die, thousands of cells, Ray and Slurm (submitit) themselves."""

import importlib
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import commands
import pytest

from benchmarks import scheduling
from benchmarks.errors import RequestError
from benchmarks.execute import Execution, Threads
from benchmarks.plan import Request, plan
from benchmarks.progress import Kept
from benchmarks.scheduling import Remote, WorkerLost, work
from benchmarks.slurm_jobs import SlurmJobs, parameters
from leaderboard.records import same_result

TASKS = ["classification", "pose", "depth"]


def cells(objectives, tasks=TASKS, seeds=(0,)):
    return plan(Request(list(objectives), list(tasks), "embedded", [], "default", seeds, []))


@pytest.fixture
def light(monkeypatch, tmp_path):
    """An execution without work on ``tmp_path``, whose class workers can import."""
    here = Path(__file__).parent
    monkeypatch.syspath_prepend(here)
    monkeypatch.setenv("PYTHONPATH", str(here), prepend=":")
    monkeypatch.setattr(scheduling, "LOOK_EVERY", 0.1)
    return importlib.import_module("executor_trial").Light(tmp_path, tmp_path, "cpu", reporter=Kept())


class Instant(Remote):
    """A cluster that does everything at once, and loses what the test names."""

    def __init__(self, *arguments, loses=(), retries=0):
        super().__init__(*arguments)
        self.loses, self.retries, self.order = loses, retries, []

    def submit(self, piece):
        self.order.append(piece)
        return len(self.order) - 1

    def done(self):
        return list(self.under_way)

    def result(self, handle):
        piece = self.order[handle]
        if piece.name in self.loses:
            raise WorkerLost("the worker died")
        return work(self.bare, piece, self.mark)

    def cancel(self):
        pass


def test_a_plan_of_a_thousand_cells_is_scheduled_in_seconds(light):
    asked = cells(["mae"], ["classification", "segmentation", "pose", "depth", "tracking"], range(200))
    (light.runs / "died-mae").touch()
    started = time.monotonic()
    with Instant(light, None) as cluster:
        found = cluster.run(asked)
    assert time.monotonic() - started < 10
    assert len(found) == len(asked) == 1000
    assert len(cluster.order) == 1200
    ready = {}
    for number, piece in enumerate(cluster.order):  # a cell comes after its backbone
        if piece.method == "pretrain":
            ready[piece.arguments[0].folder] = number
        else:
            assert ready[piece.arguments[0].pretraining.folder] < number


@pytest.mark.parametrize(("backbones", "kinds"), [
    (3, ["pretrain"] * 3 + ["score"] * 6),  # the last one is not left to one worker alone in the end
    (4, ["pretrain"] * 2 + ["score"] * 4 + ["pretrain"] * 2 + ["score"] * 4),  # results come as early as they can
])
def test_the_last_backbones_go_before_the_cells_of_those_that_are_trained(light, backbones, kinds):
    with Instant(light, 2) as cluster:
        cluster.run(cells(["mae"], ["classification", "depth"], range(backbones)))
    assert [piece.method for piece in cluster.order] == kinds
    assert next(piece for piece in cluster.order if piece.method == "score").cells[0].task.name == "depth"


def test_splitting_a_thousand_cells_takes_seconds(tmp_path, monkeypatch):
    asked = cells(["mae"], ["classification", "segmentation", "pose", "depth", "tracking"], range(200))
    monkeypatch.setattr("benchmarks.data.fingerprint", lambda section: "data")
    started = time.monotonic()
    assert Execution(tmp_path, tmp_path).split(asked) == (asked, [])
    assert time.monotonic() - started < 10


def test_a_worker_that_dies_is_replaced_and_at_last_its_cell_fails(light):
    asked = cells(["mae"], ["classification", "depth"])
    lost = asked[1].name
    with Instant(light, 1, loses=[lost], retries=3) as cluster:
        found = cluster.run(asked)
    assert found[0] == "classification on backbone of mae"
    assert found[1].reason == "the worker died"
    assert [piece.name for piece in cluster.order].count(lost) == 4
    assert sum("its worker died; another one goes on" in line for line in light.reporter.lines) == 3
    assert not list(light.runs.glob(".shared-*"))


def submitit_that_refuses(monkeypatch, refuses):
    """A stand-in for submitit: every other job ends at the second look; ``refuses(number)`` of submissions."""
    failed = type("FailedJobError", (RuntimeError,), {})

    class Job:
        def __init__(self, looks, work, *arguments):
            self.looks, self.result = looks, lambda: work(*arguments)

        def done(self):
            self.looks -= 1
            return self.looks < 0

        def cancel(self):
            raise AssertionError("nothing was to be cancelled")

    class AutoExecutor:
        def __init__(self, folder, cluster):
            self.asked = 0

        def update_parameters(self, **_):
            pass

        def submit(self, *what):
            self.asked += 1
            if refuses(self.asked):
                raise failed("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed\n")
            return Job((self.asked + 1) % 2, *what)

    errors = SimpleNamespace(UncompletedJobError=KeyError, FailedJobError=failed)
    module = SimpleNamespace(AutoExecutor=AutoExecutor, core=SimpleNamespace(utils=errors))
    monkeypatch.setitem(sys.modules, "submitit", module)


def test_a_job_that_slurm_refuses_is_offered_again(light, monkeypatch):
    submitit_that_refuses(monkeypatch, lambda number: number in (3, 4, 6))
    asked = cells(["mae"], ["classification", "depth"], range(3))
    with SlurmJobs(light, "", None, asked) as jobs:
        found = jobs.run(asked)
    assert found == [f"{cell.task.name} on backbone of mae" for cell in asked]
    assert sum("offered again: sbatch: error: Batch job" in line for line in light.reporter.lines) == 3


def test_a_first_job_that_slurm_refuses_is_one_line(light, monkeypatch):
    submitit_that_refuses(monkeypatch, lambda number: True)
    asked = cells(["mae"], ["depth"])
    with (
        pytest.raises(RequestError, match=r"refuses mae seed 0: sbatch: error: Batch job submission failed;[^\n]*$"),
        SlurmJobs(light, "", None, asked) as jobs,
    ):
        jobs.run(asked)


def test_a_runs_folder_that_a_worker_does_not_see_ends_the_request(light, monkeypatch):
    monkeypatch.setattr(scheduling, "SEEN_WITHIN", 0.0)
    with Instant(light, 1) as cluster:
        cluster.mark.unlink()
        with pytest.raises(RequestError, match="does not see this folder"):
            cluster.run(cells(["mae"], ["depth"]))


def check_graph(light, found):
    """What a real cluster has to make of mae and simmim, and of a worker that died once."""
    assert found[:3] == [f"{task} on backbone of mae" for task in TASKS]
    assert {record.reason for record in found[3:]} == {"pre-training failed: no pictures"}
    assert (light.runs / "died-mae").exists()
    assert any(line.startswith("at mae depth") for line in light.reporter.lines)


def test_ray_takes_the_plan_as_a_graph_and_replaces_a_dead_worker(light):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from benchmarks.ray_cluster import RayCluster

    asked = cells(["mae", "simmim"])
    with RayCluster(light, "", 2, asked) as cluster:
        check_graph(light, cluster.run(asked))
        assert light.threads.task == 1 or cluster._machines()[0][0] > 1
    assert not list(light.runs.glob(".shared-*"))


@pytest.mark.slow
def test_a_ray_worker_killed_in_training_costs_its_work_since_the_last_checkpoint(mini, tiny, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from benchmarks.ray_cluster import RayCluster

    options = [*tiny("depth"), "suite.images_seen=2000"]  # 250 steps
    asked = plan(Request(["mae"], ["depth"], "mini", options=options))
    alone = Execution(tmp_path / "calm", mini, "cpu", reporter=Kept(), threads=Threads(1, 1))
    (calm,) = alone.run(asked)
    monkeypatch.setattr("benchmarks.ray_cluster.divide", lambda *_: Threads(1, 1))
    wild, at, after = tmp_path / "wild", [], set()
    wild.mkdir()

    def harm():
        at.append(commands.kill_in_training(wild))
        while not list(wild.glob("mini/*/seed0/pretrain/backbone.json")):
            after.update(commands.steps_noted(wild))
            time.sleep(0.02)

    threading.Thread(target=harm, daemon=True).start()
    execution = Execution(wild, mini, "cpu", reporter=Kept())
    with RayCluster(execution, "", 1, asked) as cluster:
        (record,) = cluster.run(asked)
    assert at[0] in (100, 200)
    assert after
    assert min(after) > at[0]
    assert same_result(record, calm)
    weights = [(root / asked[0].pretraining.folder / "pretrain" / "backbone.safetensors").read_bytes()
               for root in (tmp_path / "calm", wild)]
    assert weights[0] == weights[1]
    assert not (wild / ".locks").exists()


def test_a_ray_cluster_that_does_not_answer(light, monkeypatch):
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    from benchmarks.ray_cluster import RayCluster

    def refuse(**_):
        raise ConnectionError("ray.init: could not connect\nadvice")

    monkeypatch.setattr(ray, "init", refuse)
    with (
        pytest.raises(RequestError, match=r"ray:10\.0\.0\.1:6379: the cluster does not answer .*could not connect\)"),
        RayCluster(light, "10.0.0.1:6379", None, cells(["mae"])),
    ):
        pass


@pytest.mark.parametrize("cluster", ["debug", "local"])
def test_slurm_takes_the_plan_through_submitit(light, cluster):
    """Without Slurm: in this process, and in processes of submitit's own, one of which dies."""
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    asked = cells(["mae", "simmim"]) if cluster == "debug" else cells(["mae"], ["pose"])
    if cluster == "debug":
        (light.runs / "died-mae").touch()
    with SlurmJobs(light, f"cluster={cluster},cores=1", 2, asked) as jobs:
        found = jobs.run(asked)
    if cluster == "debug":
        check_graph(light, found)
    else:
        assert found == ["pose on backbone of mae"]
        assert any("its worker died; another one goes on" in line for line in light.reporter.lines)
    assert light.threads.pretraining == 1


def test_no_slurm_here(light):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    with pytest.raises(RequestError, match="no Slurm here"):
        SlurmJobs(light, "", None, cells(["mae"]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--executor", "rai"], "'ray'"),
        (["--executor", "slurm:partion=x"], "partition"),
        (["--executor", "slurm:time=soon"], "time is a whole number"),
        (["--executor", "slurm:partition"], "write partition=VALUE"),
        (["--executor", "ray", "--launcher", "pytorch"], "--executor with --launcher"),
        (["--runs", "s3://bucket/runs"], "not a store's URL"),
    ],
)
def test_wrong_requests(words, said, call, mini, tmp_path):
    asked = ["run", "--objective", "random_init", "--tasks", "depth", "--suite", "mini", "--data-root", mini]
    code, out, err = call(*asked, "--runs", tmp_path, *words)
    assert code == 2
    assert said in err.splitlines()[-1]
    assert out == ""


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_named(executor, package, call, mini, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    code, _, err = call("run", "--objective", "random_init", "--tasks", "depth", "--suite", "mini", "--data-root", mini,
                        "--runs", tmp_path, "--executor", executor)
    assert code == 2
    assert err.splitlines()[-1].endswith(f"install the extra: pip install -e '.[{executor}]'")


def test_parameters_of_slurm():
    assert parameters("") == {"time": 1440, "cores": 4}
    assert parameters("partition=a,gpus=2,time=60") == {"partition": "a", "gpus": 2, "time": 60, "cores": 4}
