import json
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leaderboard import bundle as bundles
from leaderboard.bundle import BundleError, bundle, records_of, row_folder, verify
from leaderboard.records import InvalidRecord, write_record

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path, make_record):
    for seed in range(2):
        for task in ("classification", "depth"):
            folder = tmp_path / "runs" / "embedded" / "mae" / f"seed{seed}" / f"{task}.frozen"
            write_record(folder, make_record(40.0 + seed, task=task, seed=seed, variant={"objective.loss.type": "L1"}))
            (folder / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
        pretrain = tmp_path / "runs" / "embedded" / "mae" / f"seed{seed}" / "pretrain"
        pretrain.mkdir()
        (pretrain / "backbone.json").write_text("{}")
        (pretrain / "backbone.safetensors").write_bytes(b"weights")
    return tmp_path / "runs"


@pytest.fixture
def archive(runs, tmp_path):
    assert bundle(row_folder("embedded/mae", [runs]), tmp_path / "out.zip") == 4
    return tmp_path / "out.zip"


def rewritten(archive, change):
    """The bundle with its files changed in place: ``change`` gets name -> content."""
    with zipfile.ZipFile(archive) as old:
        files = {name: old.read(name) for name in old.namelist()}
    change(files)
    with zipfile.ZipFile(archive, "w") as new:
        for name, data in files.items():
            new.writestr(name, data)
    return archive


def test_a_bundle_holds_and_keeps_no_weights(archive):
    names = zipfile.ZipFile(archive).namelist()
    assert "records/embedded/mae/seed0/depth.frozen/log.jsonl" in names
    assert "records/embedded/mae/seed1/pretrain/backbone.json" in names
    assert not any("safetensors" in name for name in names)
    found = verify(archive)
    assert all(holds for holds, _ in found), found
    assert any("2 cells recomputed" in line for _, line in found)
    manifest = json.loads(zipfile.ZipFile(archive).read("manifest.json"))
    assert any("--cfg-options objective.loss.type=L1" in command for command in manifest["commands"])


def test_the_same_records_give_the_same_bytes(runs, tmp_path):
    for name in ("a.zip", "b.zip"):
        bundle(runs / "embedded" / "mae", tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


RESULT = "records/embedded/mae/seed0/depth.frozen/result.json"


def edited(files):
    files[RESULT] = files[RESULT].replace(b"40.0", b"39.0")


def edited_with_hash(files):
    edited(files)
    manifest = json.loads(files["manifest.json"])
    manifest["files"][RESULT] = {"bytes": len(files[RESULT]), "sha256": bundles._sha256(files[RESULT])}
    files["manifest.json"] = json.dumps(manifest).encode()


def better_mean(files):
    manifest = json.loads(files["manifest.json"])
    manifest["table"]["rows"][0]["cells"]["depth.frozen"]["mean"] -= 1
    files["manifest.json"] = json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (edited, "fingerprints: "), (edited_with_hash, "digest"), (better_mean, "aggregates"),
        (lambda files: files.pop(RESULT), "missing"),
        (lambda files: files.update({"records/extra.txt": b""}), "not in the manifest"),
        (lambda files: files.update({RESULT.replace("seed0", "seed7"): files[RESULT]}), "holds the record of"),
    ],
)  # fmt: skip
def test_what_was_changed_is_named(archive, change, line):
    found = verify(rewritten(archive, change))
    assert any(not holds and line in text for holds, text in found), found


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "records/../../evil", "C:/evil", "records\\..\\evil", "a//b"])
def test_paths_that_lead_out_are_refused(archive, name):
    with zipfile.ZipFile(archive, "a") as file:
        entry = zipfile.ZipInfo("x")
        entry.filename = name
        file.writestr(entry, b"")
    with pytest.raises(BundleError, match="leads out"):
        verify(archive)


def test_links_and_doubles_and_bombs_are_refused(archive, runs, tmp_path, monkeypatch):
    link = zipfile.ZipInfo("records/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(BundleError, match="a link"):
        verify(archive)
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.json", b"0" * (8 * 2**20))
    with pytest.raises(BundleError, match="times its size"):
        verify(bomb)
    double = tmp_path / "double.zip"
    with zipfile.ZipFile(double, "w") as file:
        file.writestr("a", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("a", b"2")
    with pytest.raises(BundleError, match="twice"):
        verify(double)
    good = tmp_path / "good.zip"
    bundle(runs / "embedded" / "mae", good)
    monkeypatch.setattr(bundles, "MAX_BYTES", 1000)
    with pytest.raises(BundleError, match="more than"):
        verify(good)
    monkeypatch.setattr(bundles, "MAX_FILES", 2)
    with pytest.raises(BundleError, match="files, more than 2"):
        verify(good)


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_other_packings_are_refused(tmp_path, method):
    path = tmp_path / "other.zip"
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("manifest.json", b"0" * 100)
    content = bytearray(path.read_bytes())
    content[50:60] = b"\xff" * 10  # a damaged one raises errors of its own kind
    path.write_bytes(content)
    with pytest.raises(BundleError, match="another method than deflate"):
        verify(path)


def test_a_size_that_lies_is_noticed(tmp_path):
    path = tmp_path / "lie.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("manifest.json", b"0" * 100_000)
    data = bytearray(path.read_bytes())
    place = data.rindex(b"PK\x01\x02")  # the directory's entry: unpacked size at 24
    data[place + 24 : place + 28] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(BundleError):
        verify(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bundles_never_raise_anything_else(archive, tmp_path, data):
    content = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged.zip"
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
    message = ""
    try:
        verify(damaged)
    except BundleError as error:
        message = str(error)
    assert message == "" or str(damaged) in message
    assert "\n" not in message


def test_rows_are_found_or_refused(runs, tmp_path):
    assert row_folder("embedded/mae/seed0/depth.frozen", [runs]).name == "depth.frozen"
    assert row_folder(str(runs / "embedded/mae/seed0/depth.frozen/result.json"), []).name == "depth.frozen"
    with pytest.raises(BundleError, match="name a row like"):
        row_folder("embedded/nobody", [runs])
    (runs / "embedded/mae/seed0/depth.frozen/result.json").write_text("{")
    with pytest.raises(InvalidRecord, match=r"result\.json"):
        records_of(runs)


def test_the_commands(archive, runs, tmp_path):
    def bench(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "benchmarks.cli", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT,
            check=False,
        )  # fmt: skip

    made = bench("bundle", "embedded/mae", tmp_path / "cli.zip", "--runs", runs)
    assert made.returncode == 0, made.stderr
    assert (tmp_path / "cli.zip").read_bytes() == archive.read_bytes()
    assert bench("verify", archive).returncode == 0
    rewritten(archive, better_mean)
    failed = bench("verify", archive)
    assert failed.returncode == 1
    assert "BAD  aggregates" in failed.stdout
    refused = bench("verify", tmp_path / "nothing.zip")
    assert refused.returncode == 2
    assert refused.stderr.startswith("bench: ")
    assert bench("bundle", "embedded/nobody", tmp_path / "x.zip", "--runs", runs).returncode == 2
