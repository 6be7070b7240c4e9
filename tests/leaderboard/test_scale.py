"""Ten thousand records: read, checked and rendered within 5 seconds of processor time and 500 MB."""

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from leaderboard.records import checked

ROOT = Path(__file__).parents[2]
TASKS = ("classification", "segmentation", "pose", "depth", "tracking")

CODE = """
import json, sys, time
from pathlib import Path
from leaderboard.records import read_records
from leaderboard.render import render
from leaderboard.table import build
started, clock = time.process_time(), time.perf_counter()
records, invalid = read_records([Path(sys.argv[1])])
read = time.process_time() - started
table = build(records, invalid)
built = time.process_time() - started
sizes = {format: len(render(table, format)) for format in sys.argv[2].split(",")}
used = time.process_time() - started
# not ru_maxrss: that begins with the size of the process that started this one
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
print(json.dumps(dict(records=len(records), invalid=len(invalid), rows=len(table.rows), pairs=len(table.comparisons),
                      read=read, built=built, used=used, wall=time.perf_counter() - clock, peak_mb=peak, sizes=sizes)))
"""


@pytest.mark.slow
def test_ten_thousand_records(tmp_path, make_record):
    for i in range(10_000):
        objective, task, seed = i // 50, TASKS[i % 5], i // 5 % 10
        record = checked(make_record(
            1 + (i * 7919 % 997) / 20, objective=f"objective{objective}", task=task, seed=seed,
            config={"pretraining": {f"option{k}": objective + k / 7 for k in range(20)}, "settings": {"lr": [0.1]}},
        ))  # fmt: skip
        folder = tmp_path / "embedded" / record.objective / f"seed{seed}" / f"{task}.frozen"
        folder.mkdir(parents=True)
        content = {field.name: getattr(record, field.name) for field in fields(record) if field.name != "items"}
        (folder / "result.json").write_text(json.dumps(content))
    for formats in ("md", "md,csv,json,tex,html"):
        done = subprocess.run(
            [sys.executable, "-c", CODE, tmp_path, formats], capture_output=True, text=True, check=True, cwd=ROOT
        )
        found = json.loads(done.stdout)
        print(found)
        assert (found["records"], found["invalid"], found["rows"]) == (10_000, 0, 200)
        assert found["pairs"] == 5 * 200 * 199 / 2
        assert found["peak_mb"] < 500
        # Processor time, as the clock on the wall also measures what else the machine does; 5 s are meant for a core
        # of its own, a shared one is up to twice as slow.
        assert found["used"] < (8 if formats == "md" else 14)
