"""The grid of heads timed beside one head."""

import json
from dataclasses import replace

from benchmarks import suite as suites


def test_speed_of_heads(data, call, tmp_path, monkeypatch):
    suite = suites.get("embedded")
    settings = {**suite.settings, "classification": {"frozen": {"input_size": 64, "batch_size": 4, "lr": [1e-2]}}}
    monkeypatch.setattr(suites, "get", lambda name: replace(suite, settings=settings, scenes=None))
    kept = tmp_path / "heads.json"
    code, out, err = call("speed", "--heads", "--data-root", data, "--steps", 1, "--turns", 2, "--device", "cpu",
                          "--output", kept)
    assert code == 0, err
    record = json.loads(kept.read_text())
    assert record["features"] == [[128], [128]]  # pooled once, of two layers
    assert record["pictures"] == 12
    one, grid = record["rows"]
    assert (one["heads"], grid["heads"]) == (1, 16)
    assert one["ratio"] == 1.0
    half = 0.00005  # the ratio is of the seconds before they were rounded for the record
    least, most = ((grid["seconds"] - d) / (one["seconds"] + d) - 100 * d for d in (half, -half))
    assert least <= grid["ratio"] <= most
    assert "12 pictures" in out
