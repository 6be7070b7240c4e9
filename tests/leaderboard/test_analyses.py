"""Analyses beside scores: reading them, and Spearman's correlation over objectives."""

import json

import pytest
from scipy import stats

from leaderboard.analyses import correlate, permutation_p, read_analyses, read_analysis, spearman
from leaderboard.records import RecordError


def write(folder, objective, seed=0, **changes):
    fields = {
        "schema": 1, "label": f"{objective} seed{seed}", "suite": "embedded", "objective": objective,
        "weights": f"{objective}{seed}", "settings": {"name": "plain"}, "summary": {"attention_distance_last": 1.0},
    }
    folder = folder / objective / f"seed{seed}" / "pretrain"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "analysis.json").write_text(json.dumps(fields | changes))
    return folder / "analysis.json"


@pytest.mark.parametrize(
    ("x", "y"),
    [([1, 2, 3, 4], [10, 20, 30, 40]), ([1, 2, 3, 4], [4, 3, 2, 1]), ([3, 1, 4, 1, 5], [2, 7, 1, 8, 2]),
     ([1.5, -2, 0, 9, 3, 3], [0, 0, 1, 5, 2, 7])],
)
def test_spearman_is_that_of_scipy(x, y):
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_spearman_of_known_orders():
    assert spearman([1, 5, 9], [2, 3, 100]) == 1
    assert spearman([1, 5, 9], [100, 3, 2]) == -1
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="one length"):
        spearman([1, 2], [1])


def test_the_permutation_p():
    assert permutation_p([1, 2, 3], [1, 2, 3]) == pytest.approx(2 / 6)  # that order and its reverse
    assert permutation_p([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]) == pytest.approx(2 / 120)
    assert permutation_p([1, 1, 1], [1, 2, 3]) is None
    many = list(range(12))
    assert permutation_p(many, many) < 0.001
    assert permutation_p(many, [3, 9, 1, 7, 5, 11, 0, 10, 2, 8, 4, 6]) > 0.2


def analysed(tmp_path, make_record, distances, scores, task="classification", **more):
    """Analyses and records of objectives a, b, c, …: one seed each."""
    records = []
    for name, distance, score in zip("abcdef", distances, scores, strict=False):
        write(tmp_path, name, summary={"attention_distance_last": distance})
        prints = dict(cell=name, config="f", data="d", backbone=f"{name}0")
        records.append(make_record(score, task=task, objective=name, fingerprints=prints, **more))
    return read_analyses([tmp_path]), records


def test_correlation_over_objectives(tmp_path, make_record):
    analyses, records = analysed(tmp_path, make_record, [10, 20, 30, 40], [50, 60, 70, 80])
    (found,) = correlate(analyses, records, "embedded")
    assert (found.number, found.column) == ("attention_distance_last", "classification.frozen")
    assert found.rho == 1
    assert found.p == pytest.approx(2 / 24)
    assert found.objectives == ("a", "b", "c", "d")
    assert correlate(analyses, records, "mini") == []


def test_lower_is_better_is_turned_round(tmp_path, make_record):
    analyses, records = analysed(tmp_path, make_record, [10, 20, 30], [0.5, 0.6, 0.7], task="depth")
    assert correlate(analyses, records, "embedded")[0].rho == -1  # longer distances, larger errors


def test_seeds_are_averaged_and_strangers_left_out(tmp_path, make_record):
    _, records = analysed(tmp_path, make_record, [10, 20, 30], [50, 60, 70])
    write(tmp_path, "a", 1, summary={"attention_distance_last": 0})
    prints = dict(cell="x", config="f", data="d", backbone="a1")
    records.append(make_record(94.0, objective="a", seed=1, fingerprints=prints))
    found = correlate(read_analyses([tmp_path]), records, "embedded")[0]
    assert found.rho == pytest.approx(-0.5)  # a, b, c: distances 5, 20, 30 and scores 72, 60, 70
    prints = prints | {"backbone": "elsewhere"}
    records.append(make_record(1.0, objective="z", fingerprints=prints))
    assert correlate(read_analyses([tmp_path]), records, "embedded")[0].objectives == ("a", "b", "c")


def test_variants_failures_and_too_few_do_not_count(tmp_path, make_record):
    analyses, records = analysed(tmp_path, make_record, [10, 20], [50, 60])
    assert correlate(analyses, records, "embedded") == []
    analyses, records = analysed(tmp_path, make_record, [1, 2, 3], [5, 6, 7], variant={"optimiser.lr": 1})
    assert correlate(analyses, records, "embedded") == []
    analyses, records = analysed(tmp_path, make_record, [1, 2, 3], [5, None, 7])
    assert correlate(analyses, records, "embedded") == []


def test_older_task_versions_do_not_mix(tmp_path, make_record):
    analyses, records = analysed(tmp_path, make_record, [1, 2, 3, 4], [5, 6, 7, 8])
    prints = dict(cell="o", config="f", data="d", backbone="d0")
    newer = [*records[:3], make_record(1.0, objective="d", task_version=2, fingerprints=prints)]
    assert correlate(analyses, newer, "embedded") == []  # one point at the newest version
    assert correlate(analyses, records, "embedded")[0].rho == 1


def test_numbers_that_do_not_apply_are_left_out(tmp_path, make_record):
    analyses, records = analysed(tmp_path, make_record, [None, 2, 3, 4], [5, 6, 7, 8])
    assert correlate(analyses, records, "embedded")[0].objectives == ("b", "c", "d")


@pytest.mark.parametrize(
    "changes",
    [{"schema": 9}, {"summary": {"x": "y"}}, {"summary": {"x": True}}, {"weights": None}, {"settings": {}},
     {"summary": []}, {"summary": {"x": float("nan")}}],
)
def test_a_damaged_analysis_is_one_line(tmp_path, changes):
    path = write(tmp_path, "a", **changes)
    with pytest.raises(RecordError, match=r"analysis.json is no analysis") as caught:
        read_analysis(path)
    assert "\n" not in str(caught.value)


def test_different_conventions_are_not_compared(tmp_path, make_record):
    _, records = analysed(tmp_path, make_record, [1, 2, 3], [5, 6, 7])
    write(tmp_path, "a", settings={"name": "other"})
    with pytest.raises(RecordError, match=r"other \| plain"):
        correlate(read_analyses([tmp_path]), records, "embedded")


def test_a_file_that_is_no_json_is_one_line(tmp_path):
    path = write(tmp_path, "a")
    path.write_text("{")
    with pytest.raises(RecordError, match="no analysis"):
        read_analyses([tmp_path])
