"""``--launcher``: several processes carry out one command together. Gloo, on the CPU, two processes as torchrun's."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from types import SimpleNamespace

import commands
import pytest
import torch

from benchmarks import launch
from benchmarks.cli import main
from benchmarks.errors import RequestError
from benchmarks.execute import Execution
from benchmarks.jointly import Jointly
from benchmarks.launch import Place, place
from leaderboard.records import read_records

FORK = multiprocessing.get_context("fork")


def one(rank, folder, variables, arguments):
    torch.set_num_threads(1)
    launch.GRACE = timedelta(seconds=5)
    os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank))
    for name in ("stdout", "stderr"):
        setattr(sys, name, open(folder / f"{name}{rank}", "w"))  # noqa: SIM115 (as long as the process lives)
    sys.argv = ["bench", *map(str, arguments)]
    try:
        main()
    except SystemExit as stop:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(stop.code)


def launched(folder, world, *arguments, during=None):
    """Exit code, stdout and stderr of each process; ``during`` is called with the processes when they have begun."""
    import downstream.engine  # noqa: F401 (once, not in every process)
    import objectives.pretrain  # noqa: F401

    torch.set_num_threads(1)  # a fork has but one
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(port)}
    children = [FORK.Process(target=one, args=(rank, folder, variables, arguments)) for rank in range(world)]
    for child in children:
        child.start()
    if during is not None:
        during(children)
    for child in children:
        child.join(280)
        child.kill()
    return [(child.exitcode, (folder / f"stdout{rank}").read_text(), (folder / f"stderr{rank}").read_text())
            for rank, child in enumerate(children)]


def request(mini, runs, tiny, *more, tasks=("classification", "depth")):
    options = [flag for option in (*tiny(*tasks), *more) for flag in ("--cfg-options", option)]
    return ["run", "--suite", "mini", "--data-root", mini, "--objective", "mae", "--tasks", ",".join(tasks), "--runs",
            runs, "--device", "cpu", "--launcher", "pytorch", *options]


def test_two_processes_carry_out_a_request(mini, tiny, tmp_path):
    words = [*request(mini, tmp_path / "runs", tiny), "--protocol", "frozen,finetune", "--format", "json"]
    (code, out, err), (other, silent, said) = launched(tmp_path, 2, *words)
    assert (code, other) == (0, 0), err + said
    assert len(json.loads(out)["rows"]) == 1
    assert silent == ""
    assert "mae" not in said
    assert err.count("trained mae") == 1
    records, invalid = read_records([tmp_path / "runs"])
    assert not invalid
    assert {(r.task, r.protocol): r.environment["processes"] for r in records} == {
        (task, protocol): {"pretraining": 2, "task": count}
        for task in ("classification", "depth") for protocol, count in (("frozen", 1), ("finetune", 2))
    }
    assert len(next(r for r in records if (r.task, r.protocol) == ("depth", "finetune")).items["rmse"]) == 8
    assert not (tmp_path / "runs" / ".locks").exists()
    assert not list((tmp_path / "runs").rglob("mmengine"))
    again = launched(tmp_path, 2, *words)  # nothing is left to do
    assert [code for code, *_ in again] == [0, 0]
    assert "0 cells to run" in again[0][2]
    assert again[0][1] == out


def test_a_batch_that_does_not_divide_is_refused_once(mini, tiny, tmp_path):
    words = request(mini, tmp_path / "runs", tiny, "suite.batch_size=9", tasks=("depth",))
    (code, out, err), (other, _, said) = launched(tmp_path, 2, *words)
    assert code == 2
    assert "suite.batch_size=9 does not divide among 2 processes" in err.splitlines()[-1]
    assert "suite.batch_size=10" in err.splitlines()[-1]
    assert (other, said, out) == (0, "", "")


def test_what_fails_in_one_process_only_ends_the_command(mini, tiny, tmp_path, monkeypatch):
    import objectives.pretrain

    train = objectives.pretrain._train

    def wrong(*arguments):
        if os.environ["RANK"] == "1":
            raise OSError(5, "Input/output error", "/data/x.jpg")
        return train(*arguments)

    monkeypatch.setattr(objectives.pretrain, "_train", wrong)
    found = launched(tmp_path, 2, *request(mini, tmp_path / "runs", tiny, tasks=("depth",)))
    for code, _, err in found:
        assert code == 2
        assert "process 1 of 2 failed and others did not" in err.splitlines()[-1]
        assert "/data/x.jpg" in err.splitlines()[-1]
    assert not list((tmp_path / "runs").rglob("result.json"))


def test_cells_of_a_process_that_dies_are_dealt_again(mini, tiny, tmp_path, monkeypatch):
    from benchmarks.execute import Execution

    monkeypatch.setattr("benchmarks.jointly.TAKES", 0.5)
    score, died = Execution._score, tmp_path / "died"

    def dies(self, cell, backbone):
        if os.environ["RANK"] == "1":
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        for _ in range(600):  # until the other process has taken the other cell
            if died.exists():
                return score(self, cell, backbone)
            time.sleep(0.1)

    monkeypatch.setattr(Execution, "_score", dies)
    words = request(mini, tmp_path / "runs", tiny, "suite.images_seen=8")
    (code, _, err), (other, *_) = launched(tmp_path, 2, *words)
    assert (code, other) == (0, -signal.SIGKILL), err
    assert err.count("the process that took it has ended; it is done here") == 1
    assert err.splitlines()[-1] == "process 1 of 2 did not come to its end; nothing of its work is missing"
    records, _ = read_records([tmp_path / "runs"])
    assert {record.task: record.status for record in records} == {"classification": "ok", "depth": "ok"}
    assert not (tmp_path / "runs" / ".locks").exists()


def test_interrupted_processes_save_their_step_and_one_says_so(mini, tiny, tmp_path):
    def interrupt(children):
        for _ in range(1000):
            if commands.steps_noted(tmp_path / "runs"):  # training has begun
                break
            time.sleep(0.1)
        for child in children:  # as torchrun does
            os.kill(child.pid, signal.SIGTERM)

    words = request(mini, tmp_path / "runs", tiny, "suite.images_seen=80000", tasks=("depth",))
    (code, out, err), (other, silent, said) = launched(tmp_path, 2, *words, during=interrupt)
    assert (code, other) == (130, 130), err + said
    assert (out, silent, said) == ("", "", "")
    assert err.splitlines()[-1] == "bench: interrupted; finished cells are kept, the same command goes on"
    assert "Traceback" not in err
    assert len(list((tmp_path / "runs").rglob("checkpoint-*.pt"))) == 1


def test_what_fails_in_all_processes_is_a_failed_cell(mini, tiny, tmp_path):
    words = request(mini, tmp_path / "runs", tiny, "optimiser.lr=1e30", tasks=("depth",))
    (code, _, err), (other, *_) = launched(tmp_path, 2, *words)
    assert (code, other) == (1, 0), err
    (record,), _ = read_records([tmp_path / "runs"])
    assert record.status == "failed"
    assert "the loss is" in record.reason


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--launcher", "pytorch"], "RANK is not set; start the command by torchrun"),
        (["--launcher", "slurm"], "SLURM_PROCID is not set; start the command by srun"),
        (["--launcher", "mpi"], "OMPI_COMM_WORLD_RANK is not set; start the command by mpirun"),
        (["--launcher", "torchrun"], "torchrun"),
        (["--sharded"], "name what started them by --launcher"),
        (["--launcher", "pytorch", "--jobs", "2"], "--jobs with --launcher"),
    ],
)
def test_wrong_requests(words, said, call, monkeypatch, tmp_path):
    for names in launch._VARIABLES.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    code, out, err = call("run", "--objective", "mae", "--runs", tmp_path, *words)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert out == ""


def test_places_of_launchers():
    mpi = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert place("mpi", mpi) == Place(0, 2, 0, 2)
    with pytest.raises(RequestError, match="set MASTER_ADDR"):
        launch._address("pytorch", Place(0, 8, 0, 4), {})
    assert launch._address("slurm", Place(0, 8, 0, 4), {"SLURM_NNODES": "1"}) == "127.0.0.1"


def task(rank, **more):
    """A task of ``srun --ntasks 16 --gpus-per-task 1`` on two machines, ten on the first one."""
    node, local = (0, rank) if rank < 10 else (1, rank - 10)
    return {"SLURM_PROCID": str(rank), "SLURM_NTASKS": "16", "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node),
            "SLURM_NNODES": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "10,6",
            "SLURM_JOB_NODELIST": "gpu[007,009-011]", "SLURM_STEP_NODELIST": "gpu[009-010]", **more}


def test_tasks_on_two_machines_find_each_other():
    first, last = (task(rank) for rank in (9, 15))
    assert place("slurm", first) == Place(9, 16, 9, 10)
    assert place("slurm", last) == Place(15, 16, 5, 6)
    assert {launch._address("slurm", place("slurm", task(rank)), task(rank)) for rank in range(16)} == {"gpu009"}
    assert launch._address("slurm", place("slurm", last), {**last, "MASTER_ADDR": "10.0.0.7"}) == "10.0.0.7"
    alike = task(12, SLURM_STEP_TASKS_PER_NODE="8(x2)")
    assert place("slurm", alike).local_world == 8
    del alike["SLURM_STEP_TASKS_PER_NODE"]
    assert place("slurm", alike).local_world == 8  # all that is known: 16 on two
    assert place("slurm", {**alike, "SLURM_NTASKS_PER_NODE": "9"}).local_world == 9


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[003-010,12],login", "gpu003"), ("a1,a2", "a1"), ("one", "one"), ("r[1-2]n[04-05]-ib", "r1n04-ib"), ("", "")],
)
def test_the_first_machine_of_a_node_list(nodes, first):
    assert launch._first_host(nodes) == first


def test_a_task_takes_its_device_or_the_only_one_it_sees(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert launch._cuda("auto", Place(9, 16, 9, 10), "slurm") == 0
    with pytest.raises(RequestError, match="2 processes on this machine and 1 CUDA devices"):
        launch._cuda("cuda", Place(1, 2, 1, 2), "pytorch")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert launch._cuda("auto", Place(9, 16, 3, 8), "slurm") == 3
    with pytest.raises(RequestError, match="10 processes on this machine and 8 CUDA devices"):
        launch._cuda("auto", Place(9, 16, 9, 10), "slurm")
    assert launch._cuda("cpu", Place(9, 16, 9, 10), "slurm") is None


def test_a_team_computes_as_it_was_asked(tmp_path):
    asked = Execution(tmp_path, tmp_path, "cpu", "always", fast=True, compiled=True)
    team = SimpleNamespace(local_world=2, world=2)
    made = Jointly.of(asked, team, sharded=True)
    same = ("runs", "root", "device", "overwrite", "reporter", "store", "fast", "compiled")
    assert {name: getattr(made, name) for name in same} == {name: getattr(asked, name) for name in same}
    assert (made.processes, made.sharded, made.team) == (2, True, team)
    alone = made._alone()
    assert (alone.fast, alone.compiled, alone.processes) == (True, True, 1)
