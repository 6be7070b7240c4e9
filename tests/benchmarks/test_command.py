"""The command as a user types it."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.options import COMMITTED

TINY = [
    "--cfg-options", "suite.images_seen=128", "--cfg-options", "suite.batch_size=32",
    "--cfg-options", "suite.kwargs.depth=1", "--cfg-options", "suite.kwargs.embed_dim=32",
    "--cfg-options", "suite.kwargs.num_heads=2",
]


def bench(*arguments, cwd=None, timeout=600, **environment):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.cli", *map(str, arguments)], capture_output=True, text=True,
        timeout=timeout, cwd=cwd, check=False, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
    )


def refused(done, code=2):
    """The one line of a refusal: exit code, one line on stderr, nothing on stdout, no traceback."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("bench: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return lines[0]


@pytest.mark.parametrize("arguments", [["--help"], ["list", "objectives"], ["list", "tasks"], ["list", "suites"]])
def test_help_and_lists_import_nothing_heavy(arguments):
    code = (
        f"import sys; sys.argv = ['bench', *{arguments!r}]\n"
        "from benchmarks.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'timm', 'mmengine', 'mmcv', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(("command", "module", "name", "words"), [
    (["run", "--objective", "random_init", "--tasks", "depth"], "run", "carry_out",
     "finished cells are kept, the same command goes on"),
    (["speed", "--objective", "mae"], "speed", "_plans", "nothing is kept of what was under way"),
])
def test_ctrl_c_leaves_with_one_line(command, module, name, words, monkeypatch, capsys):
    from benchmarks import cli

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"benchmarks.commands.{module}"), name, interrupted)
    monkeypatch.setattr(sys, "argv", ["bench", *command])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == f"bench: interrupted; {words}\n"


def test_list_as_json():
    rows = json.loads(bench("list", "objectives", "--format", "json").stdout)
    assert {"maskdistill", "mae", "simmim", "supervised", "random_init"} <= {row["name"] for row in rows}
    assert all(row["summary"] for row in rows)
    assert json.loads(bench("list", "tasks", "--format", "json").stdout)[0]["name"] == "classification"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--objective", "maskdistil"], "did you mean 'maskdistill'"),
        (["--objective", "mae", "--tasks", "poze"], "did you mean 'pose'"),
        (["--objective", "mae", "--suite", "nimi"], "did you mean 'mini'"),
        (["--objective", "mae", "--protocol", "finetuned"], "did you mean 'finetune'"),
        (["--objective", "mae", "--seeds", "-1"], "--seeds -1"),
        (["--objective", "mae", "--seeds", "0"], "--seeds 0"),
        (["--objective", "mae", "--seed", "-3"], "--seed -3"),
        (["--objective", "mae", "--seed", "1", "--seeds", "2"], "one of them"),
        (["--objective", "mae", "--overwrite", "sometimes"], "--overwrite"),
        (["--objective", "mae", "--format", "xml"], "--format"),
        (["--objective", "mae", "--suite", "mini"], "--data-root"),
        (["--objective", "mae", "--suite", "mini", "--data-root", "no-such-folder"], "no-such-folder"),
        (["--objective", "mae", "--cfg-options", "objective.loss.typ"], "key=value"),
        (["--objective", "mae", "--seeds", "many"], "Invalid value"),
        ([], "Missing option"),
    ],
)
def test_wrong_requests_are_one_line_and_exit_2(arguments, message, tmp_path):
    line = refused(bench("run", *arguments, cwd=tmp_path))
    assert message in line
    assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_dry_run_shows_the_plan_and_touches_nothing(tmp_path):
    done = bench("run", "--objective", "maskdistill,mae", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0
    assert "maskdistill seed 0" in done.stderr
    assert "10 cells" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere; run the tests as a user to see this one")
def test_a_folder_without_write_permission_is_refused(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    line = refused(bench("run", "--objective", "mae", "--runs", tmp_path / "closed" / "runs"))
    assert "cannot write" in line


def test_a_full_disk_is_refused(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    line = refused(bench("run", "--objective", "mae", "--runs", "/dev/full/runs", cwd=tmp_path))
    assert "cannot write" in line


def test_leaderboard_of_no_folder_is_refused(tmp_path):
    assert "no such folder" in refused(bench("leaderboard", "--runs", tmp_path / "nothing"))


def test_a_leaderboard_of_some_protocols_leaves_out_broken_records_of_others(call, tmp_path):
    whole = sorted((Path(__file__).parents[2] / "leaderboard" / "records").glob("embedded/mae*/seed0/depth.frozen"))[0]
    for protocol in ("frozen", "finetune"):
        broken = json.loads((whole / "result.json").read_text()) | {"protocol": protocol, "objective": "simmim"}
        (tmp_path / protocol).mkdir()
        (tmp_path / protocol / "result.json").write_text(json.dumps(broken))
    shutil.copytree(whole, tmp_path / "whole")
    code, out, err = call("leaderboard", tmp_path, "--protocol", "frozen", "--format", "json")
    assert code == 0, err
    assert [(column["task"], column["protocol"]) for column in json.loads(out)["columns"]] == [("depth", "frozen")]
    assert call("leaderboard", tmp_path, "--protocol", "finetune", "--format", "json")[0] == 0


def test_a_leaderboard_of_some_rows(call, tmp_path):
    records = ["leaderboard", "--runs", COMMITTED, "--protocol", "frozen"]
    code, out, err = call(*records, "--objective", "mae,simmim", "--budget", "long", "--format", "json")
    assert code == 0, err
    assert {(row["objective"], row["budget"]) for row in json.loads(out)["rows"]} == {
        ("mae", "long"), ("simmim", "long")}
    code, whole, _ = call(*records, "--pairs")
    code, out, err = call(*records, "--objective", "mae,simmim", "--budget", "long", "--pairs")
    assert code == 0, err
    pairs = [line for line in out.splitlines() if line.startswith("| ") and "simmim" in line]
    assert len(pairs) == 5
    cells = [[cell.strip() for cell in line.split("|")] for line in pairs]
    told = {tuple(cell.strip() for cell in line.split("|")) for line in whole.splitlines()}
    assert {tuple(row) for row in cells} <= told  # tested as in the whole column
    code, out, err = call(*records, "--objective", "mae", "--budget", "long", "--pairs")
    assert {"simmim", "dino"} <= set(out.replace("|", " ").split())
    code, _, err = call(*records, "--objective", "mea")
    assert (code, err) == (2, "bench: no objective of these records 'mea'; did you mean 'mae'?\n")


def test_the_ending_of_a_file_tells_the_format(call, tmp_path):
    for ending, begins in (("html", "<!"), ("json", "{"), ("csv", "mean_rank,"), ("md", "**")):
        asked = ["leaderboard", "--runs", COMMITTED, "--objective", "mae", "--output", tmp_path / f"x.{ending}"]
        code, _, err = call(*asked)
        assert code == 0, err
        assert (tmp_path / f"x.{ending}").read_text().startswith(begins)
    code, _, err = call("leaderboard", "--runs", COMMITTED, "--pairs", "--format", "json")
    assert (code, err) == (2, "bench: --pairs prints markdown: leave out --format json\n")
    code, _, err = call("leaderboard", "--runs", COMMITTED, "--pairs", "--output", tmp_path / "p.csv")
    assert (code, err) == (2, f"bench: --pairs prints markdown: let --output {tmp_path / 'p.csv'} end in .md\n")
    code, out, err = call("leaderboard", "--runs", COMMITTED, "--analyses", "--objective", "mae,simmim,supervised")
    assert code == 0, err
    assert "mae" in out
    assert "beitv2" not in out


def test_a_folder_without_records_is_said(call, tmp_path):
    code, out, err = call("leaderboard", "--runs", tmp_path)
    assert (code, out) == (2, "")
    assert err == f"bench: --runs {tmp_path}: no records there; `bench run` makes some\n"


def test_names_that_are_nearly_right(call):
    for arguments, said in (
        (("--objective", "mae simmim"), "'mae simmim': separate names by commas: mae,simmim"),
        (("--objective", "MAE"), "no objective 'MAE'; did you mean 'mae'?"),
        (("--objective", "mae", "--cfg-options", "loss.type=l1"),
         "no option 'loss.type'; did you mean 'objective.loss.type'?"),
        (("--objective", "mae", "--overwrite", "yes"), "--overwrite 'yes': one of only-missing, always, never"),
    ):
        code, _, err = call("run", "--tasks", "depth", "--dry-run", *arguments)
        assert (code, err) == (2, f"bench: {said}\n")


def test_what_a_suite_of_real_pictures_needs_is_listed(call):
    code, out, err = call("data", "prepare", "--suite", "paper")
    assert (code, err) == (0, "")
    assert "ADEChallengeData2016" in out
    assert "image-net.org" in out.replace("\n", "").replace(" ", "")
    code, out, _ = call("list", "suites", "--format", "json")
    assert {row["name"]: (row["protocol"], row["data"]) for row in json.loads(out)} == {
        "embedded": ("frozen", "rendered"), "mini": ("frozen", "--data-root"), "paper": ("finetune", "--data-root")}
