"""The whole command on a tiny budget: scenes, pre-training, five tasks, records, table; again, elsewhere, damaged."""

import json
import os
import subprocess
import sys
import time

import pytest

from benchmarks.errors import RequestError
from benchmarks.execute import Execution
from benchmarks.plan import Request, plan
from leaderboard.records import read_records, same_result

OPTIONS = [
    "suite.scenes={'pictures_train': 40, 'pictures_val': 20, 'videos_train': 2, 'videos_test': 1, 'frames_train': 4, "
    "'frames_test': 4}",
    "suite.images_seen=64", "suite.batch_size=16", "suite.kwargs.depth=1", "suite.kwargs.embed_dim=32",
    "suite.kwargs.num_heads=2", "suite.decoder={'width': 32, 'depth': 1, 'heads': 2}",
    *[f"task.{task}.epochs=1" for task in ("classification", "segmentation", "pose", "depth", "tracking")],
    "task.tracking.pairs_per_epoch=16", "task.tracking.batch_size=8",
]


def bench(*arguments, cache, options=OPTIONS):
    flags = [flag for option in options for flag in ("--cfg-options", option)]
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.cli", "run", *map(str, arguments), *flags], capture_output=True, text=True,
        timeout=900, check=False, stdin=subprocess.DEVNULL, env={**os.environ, "BENCH_CACHE": str(cache)},
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(runs, cache, the finished command) of ``bench run`` for two objectives on all tasks."""
    folder = tmp_path_factory.mktemp("whole")
    runs, cache = folder / "runs", folder / "cache"
    return runs, cache, bench("--objective", "mae,random_init", "--runs", runs, "--format", "json", cache=cache)


@pytest.mark.slow
def test_every_cell_gets_a_number_and_nothing_else_is_on_stdout(place):
    runs, _, done = place
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert table["schema"] == 1
    assert len(table["columns"]) == 5
    assert len(table["rows"]) == 2
    for row in table["rows"]:
        assert {cell["status"] for cell in row["cells"].values()} == {"ok"}
    assert "plan: 2 backbones, 10 cells to run" in done.stderr
    records, invalid = read_records([runs])
    assert len(records) == 10
    assert not invalid
    assert {r.cost["pretrain_images"] for r in records if r.objective == "mae"} == {64}
    assert not list(runs.rglob("*.tmp"))


@pytest.mark.slow
def test_a_second_call_trains_nothing_and_prints_the_same(place):
    runs, cache, done = place
    started = time.monotonic()
    again = bench("--objective", "mae,random_init", "--runs", runs, "--format", "json", cache=cache)
    assert again.returncode == 0
    assert again.stdout == done.stdout
    assert "0 cells to run, 10 finished already" in again.stderr
    assert time.monotonic() - started < 20  # generous; five seconds on an idle machine


@pytest.mark.slow
def test_the_same_seed_elsewhere_gives_the_same_records(place, tmp_path):
    runs, cache, _ = place
    again = bench("--objective", "mae", "--tasks", "classification,depth,tracking", "--runs", tmp_path, cache=cache)
    assert again.returncode == 0, again.stderr
    theirs = {(r.objective, r.task): r for r in read_records([runs])[0]}
    ours = read_records([tmp_path])[0]
    assert len(ours) == 3
    for record in ours:
        assert same_result(record, theirs[record.objective, record.task])


@pytest.mark.slow
def test_a_damaged_picture_costs_its_own_cell(place, tmp_path):
    import shutil

    runs, cache, _ = place
    shutil.copytree(cache, tmp_path / "cache")
    shutil.copytree(runs, tmp_path / "runs")
    victim = sorted((tmp_path / "cache").glob("scenes*/ade/images/validation/*.jpg"))[0]
    data = victim.read_bytes()
    victim.unlink()  # the layouts share files by hard links; only this one is damaged
    victim.write_bytes(data[: len(data) // 2])
    done = bench(
        "--objective", "mae", "--tasks", "segmentation,classification", "--runs", tmp_path / "runs", "--format", "json",
        cache=tmp_path / "cache",
    )
    assert done.returncode == 1, done.stderr
    assert str(victim.name) in done.stderr
    cells = json.loads(done.stdout)["rows"][0]["cells"]
    assert cells["segmentation.frozen"]["status"] == "failed"
    assert cells["classification.frozen"]["status"] == "ok"


@pytest.mark.slow
def test_a_combination_that_makes_no_sense_is_refused_before_anything_is_trained(place, tmp_path):
    _, cache, _ = place
    options = [OPTIONS[0], "suite.model=swinv2_tiny_window8_256", "suite.kwargs.window_size=4"]
    done = bench("--objective", "mae", "--runs", tmp_path / "runs", cache=cache, options=options)
    assert done.returncode == 2, done.stderr
    assert "cannot be a Swin" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("backbone.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["suite.model=swinv2_tiny_window8_256", "suite.kwargs.window_size=4"], "cannot be a Swin"),
        (["objective.head.type=LinearHead"], "visible tokens only"),
        (["objective.loss.type=CrossEntropy"], "continuous"),
        (["objective.corruption.ratio=1.5"], "objective.corruption.ratio"),
        (["objective.teacher.type=FrozenNetwork", "objective.teacher.source=nowhere"], "objective.teacher.source"),
        (["objective.head.type=LinarHead"], "did you mean 'LinearHead'"),
        (["suite.kwargs.num_heads=5"], "backbone"),
    ],
)
def test_every_such_combination_is_told_in_a_line(options, message, tmp_path):
    with pytest.raises(RequestError, match=message) as refusal:
        Execution(tmp_path / "runs", tmp_path).check(plan(Request(["mae"], ["classification"], options=options)))
    assert len(str(refusal.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())
