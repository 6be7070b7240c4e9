"""The numbers in the documents are those of the committed records."""

import subprocess
import sys
from pathlib import Path

from leaderboard.records import read_records

ROOT = Path(__file__).parent.parent


def test_readme_agrees_with_the_records():
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make.py", "--check"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    assert (done.stdout, done.returncode) == ("", 0), f"run: python docs/make.py {done.stderr}"


def test_committed_records_are_valid():
    records, invalid = read_records([ROOT / "leaderboard" / "records"])
    assert records
    assert not invalid


def test_committed_numbers_of_a_task_are_of_the_same_data():
    """Scenes drawn anew mean new records of every row and protocol, not of some."""
    records, _ = read_records([ROOT / "leaderboard" / "records"])
    found = {}
    for record in records:
        if not record.variant and record.status == "ok":
            found.setdefault((record.suite, record.task), set()).add(record.fingerprints["data"])
    assert {cell: len(data) for cell, data in found.items()} == dict.fromkeys(found, 1)


def test_the_wheel_holds_exactly_the_four_packages(tmp_path):
    import configparser

    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    found = {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("objectives", "downstream", "leaderboard", "benchmarks")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert listed == found
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT],
        check=True, capture_output=True,
    )
    import zipfile

    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"objectives", "downstream", "leaderboard", "benchmarks"}


def test_the_page_of_speeds_shows_what_a_gpu_did(tmp_path, monkeypatch):
    import json
    import shutil

    monkeypatch.syspath_prepend(ROOT / "docs")
    import speed

    steps = ROOT / "benchmarks" / "speed" / "steps-cpu-bf16-mae.json"
    shutil.copy(steps, tmp_path)
    assert "Not measured: no GPU" in speed.page(tmp_path)
    record = json.loads(steps.read_text())
    record["environment"]["hardware"] |= {"accelerator": "NVIDIA Fast", "device": "cuda"}
    record["environment"]["git_commit"] = None  # of a copy of the tree alone
    whole = {"format": 1, "kind": "gpu", "failed": {"job": "not done after 110 s"}, "seconds": {"job": 110.2},
             "parts": {"compiled": record, "objectives": {**record, "ratios": []}}}
    (tmp_path / "gpu.json").write_text(json.dumps(whole))
    text = speed.page(tmp_path)
    part = text[text.index("## On a GPU"):]
    assert "| `mae` | mmpretrain bf16 |" in part[part.index("### compiled"):part.index("### objectives")]
    for said in ("NVIDIA Fast", "**1.35**", "### objectives", "`job` failed: not done after 110 s", "all`: 110 s"):
        assert said in part
    assert "Not measured" not in text
