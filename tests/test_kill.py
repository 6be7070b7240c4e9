"""The kill test in brief; ``make kill-test`` runs it at length."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("kill", Path(__file__).parent / "kill.py")
kill = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(kill)


@pytest.mark.slow
def test_three_kills_change_no_record_and_leave_nothing(tmp_path):
    found, kills = kill.differences(tmp_path, kills=3, seed=1, objectives="mae", tasks="depth")
    assert kills == 3
    assert not found


def test_what_is_left_behind_is_seen(tmp_path):
    (tmp_path / "checkpoint-00000100-0.pt").write_text("")
    (tmp_path / ".result.json.1.tmp").write_text("")
    (tmp_path / "result.json").write_text("")
    assert len(kill.left_behind(tmp_path)) == 2
