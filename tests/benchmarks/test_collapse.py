"""A backbone whose features have collapsed: said in the run, kept in its record, noted under the table."""

import json

from benchmarks.execute import Execution, Threads
from benchmarks.plan import Request, plan
from benchmarks.progress import Kept
from leaderboard.records import read_records
from leaderboard.table import build


def test_a_collapse_is_told_everywhere_and_the_number_stands(tiny, mini, tmp_path, monkeypatch):
    reason = "effective rank 1, at initialisation 14"
    monkeypatch.setattr("objectives.pretrain.collapse", lambda found, start: reason)
    cells = plan(Request(["mae"], ["depth"], "mini", options=tiny("depth")))
    notes = Kept()
    (record,) = Execution(tmp_path, mini, "cpu", reporter=notes, threads=Threads(1, 1)).run(cells)
    assert record.status == "ok"
    assert record.details == {"collapse": reason}
    assert any(line.startswith("warning: mae") and line.endswith(reason) for line in notes.lines)
    about = json.loads((tmp_path / cells[0].pretraining.folder / "pretrain" / "backbone.json").read_text())
    assert about["collapse"] == reason
    assert record.cost["pretrain_seconds"] == about["seconds"]
    (read,), invalid = read_records([tmp_path])
    assert not invalid
    assert any(note.endswith(f"seed 0: features collapsed: {reason}") for note in build([read], []).notes)
