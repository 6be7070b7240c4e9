"""``--store``: machines that share no folder, here two runs folders, meet in an object store (fsspec's local files)."""

import os

import pytest

from benchmarks import store
from benchmarks.errors import RequestError
from benchmarks.execute import Execution, Threads, Work
from benchmarks.plan import Request, plan
from benchmarks.progress import Kept
from leaderboard.records import read_record, same_result


def machine(runs, root, url):
    return Execution(runs, root, "cpu", reporter=Kept(), threads=Threads(1, 1), store=url)


def test_what_one_machine_made_the_others_go_on_with(mini, tiny, tmp_path):
    (cell,) = plan(Request(["random_init"], ["depth"], "mini", options=tiny("depth")))
    url = f"file://{tmp_path}/store"
    first, second, third = (machine(tmp_path / name, mini, url) for name in ("first", "second", "third"))
    (record,) = first.run([cell])
    assert record.status == "ok"
    there = tmp_path / "store" / cell.folder
    assert sorted(path.name for path in there.iterdir()) == ["log.jsonl", "result.json"]
    assert second.split([cell]) == ([cell], [])
    store.fetch(url, second.runs, [cell.folder, cell.pretraining.folder / "pretrain"])
    assert second.split([cell]) == ([], [cell])
    assert read_record(second.runs / cell.folder / "result.json") == record
    (there / "result.json").unlink()  # as if the second piece of work were another machine's
    folder = third.runs / cell.pretraining.folder / "pretrain"
    again = third.attempt(Work("score", (cell, folder), 1, (cell,), cell.name))
    assert same_result(again, record)
    assert (there / "result.json").is_file()
    assert not any("trained" in line for line in third.reporter.lines)


def test_only_the_files_of_a_run_come_back_and_the_newer_ones(tmp_path):
    url, folder = f"file://{tmp_path}/store", "suite/objective/seed0/depth.frozen"
    there, here = tmp_path / "store" / folder, tmp_path / "runs" / folder
    for place in (there, here):
        place.mkdir(parents=True)
        (place / "result.json").write_text(place.parts[-5])
    for name in ("checkpoint-00000100-0.pt", "evil.pkl", ".result.json.1.tmp"):
        (there / name).write_text("")
    os.utime(there / "result.json", (1, 1))
    store.fetch(url, tmp_path / "runs", [here.relative_to(tmp_path / "runs"), here.relative_to(tmp_path)])
    assert [path.name for path in here.iterdir()] == ["result.json"]
    assert (here / "result.json").read_text() == "runs"
    os.utime(here / "result.json", (0, 0))
    store.fetch(url, tmp_path / "runs", [here.relative_to(tmp_path / "runs")])
    assert (here / "result.json").read_text() == "store"
    store.send(url, tmp_path / "runs", here.relative_to(tmp_path / "runs"))
    assert (here / "result.json").stat().st_mtime >= (there / "result.json").stat().st_mtime


def test_a_store_that_fails_is_one_line_without_passwords(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"^--store file:///.*file/runs: .*finished cells are kept"):
        store.send(f"file://{tmp_path}/file/runs", tmp_path, tmp_path)
    with pytest.raises(RequestError, match=r"^--store nowhere://host/runs: Protocol not known: nowhere"):
        store.check("nowhere://name:secret@host/runs")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--store", "runs"], "--store runs: a URL, such as s3://bucket/runs"),
        (["--store", "nowhere://bucket/runs"], "--store nowhere://bucket/runs: Protocol not known"),
        (["--store", "file:///runs", "--launcher", "pytorch"], "--store with --launcher"),
    ],
)
def test_wrong_requests(words, said, call, mini, tmp_path):
    asked = ["run", "--objective", "random_init", "--tasks", "depth", "--suite", "mini", "--data-root", mini]
    code, out, err = call(*asked, "--runs", tmp_path, *words)
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert out == ""
