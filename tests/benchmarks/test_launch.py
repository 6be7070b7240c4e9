"""``--launcher``: several processes carry out one command together. Gloo, on the CPU, two processes as torchrun's."""

import json
import multiprocessing
import os
import socket
import sys
from datetime import timedelta

import pytest
import torch

from benchmarks import launch
from benchmarks.cli import main
from benchmarks.errors import RequestError
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


def launched(folder, world, *arguments):
    """Exit code, stdout and stderr of each process."""
    torch.set_num_threads(1)  # a fork has but one
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(port)}
    children = [FORK.Process(target=one, args=(rank, folder, variables, arguments)) for rank in range(world)]
    for child in children:
        child.start()
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
    assert place("slurm", {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1",
                           "SLURM_NTASKS_PER_NODE": "2"}) == Place(3, 8, 1, 2)
    mpi = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}
    assert place("mpi", mpi) == Place(0, 2, 0, 2)
    with pytest.raises(RequestError, match="set MASTER_ADDR"):
        launch._address("pytorch", Place(0, 8, 0, 4), {})
    assert launch._address("slurm", Place(0, 8, 0, 4), {"SLURM_NNODES": "1"}) == "127.0.0.1"
