"""Analyses beside scores: reading them, joining seeds, and Spearman's correlation over objectives."""

import json
from dataclasses import replace

import pytest
from fuzzing import FINITE, change
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from leaderboard.analyses import (
    LAYERS,
    correlate,
    correlation_table,
    curves,
    permutation_p,
    read_analyses,
    spearman,
    studied,
    summary_table,
    worded,
)
from leaderboard.claims import document
from leaderboard.details import CUT, problem
from leaderboard.learned import section
from leaderboard.records import ANALYSIS, RecordError, read_record, read_records, write_record
from leaderboard.statistics import Summary
from leaderboard.table import build


@pytest.fixture(scope="module")
def transferred(make_record):
    """``make(objective, seed, scores, protocol)``: the frozen score from each layer."""

    def make(objective, seed, scores, protocol=LAYERS, **more):
        layers = [
            {"name": str(n), "metrics": {"top1": score}, "chosen": {"lr": 0.1}} for n, score in enumerate(scores, 1)
        ]
        fields = dict(objective=objective, seed=seed, protocol=protocol, details={"layers": layers})
        return make_record(scores[-1], **fields, **more)

    return make


def keep(root, record):
    folder = root / record.suite / record.objective / f"seed{record.seed}" / f"{record.task}.{record.protocol}"
    return write_record(folder, record, ANALYSIS)


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


def analysed(make_record, make_analysis, distances, scores, task="classification", **more):
    """Analyses and records of objectives a, b, c, …: one seed each."""
    analyses, records = [], []
    for name, distance, score in zip("abcdef", distances, scores, strict=False):
        analyses.append(make_analysis(name, distance=distance, **more))
        prints = dict(cell=name, config="f", data="d", backbone=f"{name}0")
        records.append(make_record(score, task=task, objective=name, fingerprints=prints, **more))
    return analyses, records


def of(found, number="attention_distance_last"):
    return next(c for c in found if c.number == number)


def test_an_analysis_is_a_record_that_no_ranking_reads(tmp_path, make_record, make_analysis):
    record = make_analysis("mae", 1)
    path = keep(tmp_path, record)
    assert path.name == "analysis.json"
    assert read_record(path).details == record.details
    assert read_records([tmp_path]) == ([], [])
    (found,) = read_analyses([tmp_path])
    assert found.metrics == record.metrics
    content = json.loads(path.read_text())
    content["details"]["cka"][0][1] = 0.99
    path.write_text(json.dumps(content))
    with pytest.raises(RecordError, match=r"the digest does not fit.*bench analyze --overwrite always"):
        read_analyses([tmp_path])
    path.unlink()
    write_record(path.parent, make_record(), ANALYSIS)
    with pytest.raises(RecordError, match="no details"):
        read_analyses([tmp_path])


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"schema": 9})])
def test_a_damaged_analysis_is_one_line(tmp_path, content):
    (tmp_path / "analysis.json").write_text(content)
    with pytest.raises(RecordError, match=r"analysis.json: ") as caught:
        read_analyses([tmp_path])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("details", [
    {}, {"layers": []}, {"layers": 3}, {"layers": [{}]}, {"layers": [{"name": "1"}], "cka": [[1.0]], "note": ""},
])  # fmt: skip
@pytest.mark.parametrize("kind", ["analysis", LAYERS, CUT])
def test_details_of_another_shape_are_one_line(tmp_path, make_analysis, transferred, details, kind):
    """Their digest fits: such a file may come from anybody, and was a traceback."""
    record = make_analysis() if kind == "analysis" else transferred("mae", 0, [1.0, 2.0], protocol=kind)
    path = keep(tmp_path, replace(record, details=details))
    with pytest.raises(RecordError, match="write it anew: bench analyze --overwrite always") as caught:
        read_analyses([tmp_path])
    assert str(caught.value).startswith(f"{path}: ")
    assert "details: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_seeds_of_different_networks_are_one_line(tmp_path, make_analysis, transferred):
    first, other = make_analysis("mae", 0), make_analysis("mae", 1)
    for other_layer in ({"name": "x"}, {"heads": None}):
        details = json.loads(json.dumps(other.details))
        details["layers"][0] |= other_layer
        with pytest.raises(RecordError, match="not the layers of"):
            studied([first, replace(other, details=details)])
    fewer = {"layers": other.details["layers"][:1], "cka": [[1.0]], "note": ""}
    with pytest.raises(RecordError, match="not the layers of"):
        studied([first, replace(other, details=fewer)])
    score = transferred("mae", 1, [1.0, 2.0])
    renamed = replace(score, metrics={"top5": score.metrics["top1"]})
    with pytest.raises(RecordError, match="not the main metric of"):
        curves([transferred("mae", 0, [1.0, 2.0]), renamed])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_analyses_are_shown_or_one_line(tmp_path_factory, make_record, make_analysis, transferred, data):
    root = tmp_path_factory.mktemp("fuzz")
    kind = data.draw(st.sampled_from(["analysis", LAYERS, CUT]))
    made = make_analysis if kind == "analysis" else lambda o, s: transferred(o, s, [1.0, 2.0], protocol=kind)
    for seed in range(2):
        keep(root, made("mae", seed))
    record = made("mae", 2)
    payload = json.loads(json.dumps({"details": record.details, "config": record.config, "metrics": record.metrics}))
    change(data.draw, payload, FINITE, rooted=True)
    told = ""
    try:
        keep(root, replace(record, **payload))
        found = read_analyses([root])
        scores = [make_record(50.0, objective="mae", seed=seed) for seed in range(3)]
        section(found, scores, "embedded").encode()
        summary_table(studied(found), scores)
        document(scores, found, ["embedded"]).encode()
    except RecordError as error:
        told = str(error)
    assert "\n" not in told


def test_seeds_are_joined_and_baselines_come_last(make_analysis):
    made = [make_analysis(name, seed, distance=5.0 + seed) for name in ("supervised", "random_init", "simmim")
            for seed in (1, 0)]
    rows = studied(made)
    assert [row.name for row in rows] == ["simmim", "supervised", "random_init"]
    row = rows[0]
    assert [record.seed for record in row.records] == [0, 1]
    assert row.layers[0]["heads"]["distance"] == [4, 6, 5, 7]
    assert row.layers[1]["heads"]["uniform_distance"] == 20
    assert row.layers[1]["effective_rank"] == 16
    assert row.layers[1]["high_frequency_share"] is None
    assert row.cka[0][1] == pytest.approx(0.45)
    assert row.summary["attention_distance_last"].mean == 11
    assert row.summary["attention_distance_last"].n == 2


def test_cka_with_another_backbone_is_joined_and_contradicts_nothing(tmp_path, make_analysis):
    def other(record, value, objective="supervised", wide=3):
        between = {"objective": objective, "backbone": "x", "cka": [[value] * wide] * 2}
        return replace(record, details={**record.details, "between": between})

    first, second = make_analysis("mae", 0), make_analysis("mae", 1)
    (row,) = studied([other(first, 0.2), other(second, 0.4)])
    assert row.between.objective == "supervised"
    assert row.between.cka == [[pytest.approx(0.3)] * 3] * 2
    assert studied([first, second])[0].between is None
    assert studied([other(first, 0.2), other(second, 0.4, wide=4)])[0].between is None
    assert problem(other(first, 0.2)) == ""
    assert "between" in problem(replace(first, details={**first.details, "between": {"objective": "x"}}))
    keep(tmp_path / "a", first)  # the same analysis, before the other backbone was there
    keep(tmp_path / "b", other(first, 0.2))
    assert len(read_analyses([tmp_path / "a", tmp_path / "b"])) == 1


def test_a_row_without_attention(make_analysis):
    (row,) = studied([make_analysis("conv", distance=None)])
    assert row.layers[0]["heads"] is None
    assert row.note == "no attention"
    assert "attention_distance_last" not in row.summary
    assert row.summary["effective_rank_last"].mean == 16


def test_different_conventions_are_not_compared(make_record, make_analysis):
    analyses, records = analysed(make_record, make_analysis, [1, 2, 3], [5, 6, 7])
    other = make_analysis("d", config={**analyses[0].config, "settings": {"name": "other"}})
    for use in (lambda: studied([*analyses, other]), lambda: correlate([*analyses, other], records, "embedded")):
        with pytest.raises(RecordError, match=r"other \| plain"):
            use()


def test_correlation_over_objectives(make_record, make_analysis):
    analyses, records = analysed(make_record, make_analysis, [10, 20, 30, 40], [50, 60, 70, 80])
    found = of(correlate(analyses, records, "embedded"))
    assert found.column == "classification.frozen"
    assert found.rho == 1
    assert found.p == pytest.approx(2 / 24)
    assert found.objectives == ("a", "b", "c", "d")
    assert correlate(analyses, records, "mini") == []
    assert of(correlate(analyses, records, "embedded"), "head_kl_last3").rho is None  # the same for all


def test_lower_is_better_is_turned_round(make_record, make_analysis):
    analyses, records = analysed(make_record, make_analysis, [10, 20, 30], [0.5, 0.6, 0.7], task="depth")
    assert of(correlate(analyses, records, "embedded")).rho == -1  # longer distances, larger errors


def test_budgets_are_kept_apart(make_record, make_analysis):
    analyses, records = analysed(make_record, make_analysis, [1, 2, 3], [5, 6, 7], budget="long")
    assert of(correlate(analyses, records, "embedded")).budget == "long"
    others = analysed(make_record, make_analysis, [1, 2], [5, 6])
    assert {c.budget for c in correlate(analyses + others[0], records[2:] + others[1], "embedded")} == set()


def test_seeds_are_averaged_and_strangers_left_out(make_record, make_analysis):
    analyses, records = analysed(make_record, make_analysis, [10, 20, 30], [50, 60, 70])
    analyses.append(make_analysis("a", 1, distance=0))
    prints = dict(cell="x", config="f", data="d", backbone="a1")
    records.append(make_record(94.0, objective="a", seed=1, fingerprints=prints))
    found = of(correlate(analyses, records, "embedded"))
    assert found.rho == pytest.approx(-0.5)  # a, b, c: distances 5, 20, 30 and scores 72, 60, 70
    records.append(make_record(1.0, objective="z", fingerprints=prints | {"backbone": "elsewhere"}))
    assert of(correlate(analyses, records, "embedded")).objectives == ("a", "b", "c")


def test_variants_failures_and_too_few_do_not_count(make_record, make_analysis):
    assert correlate(*analysed(make_record, make_analysis, [10, 20], [50, 60]), "embedded") == []
    varied = analysed(make_record, make_analysis, [1, 2, 3], [5, 6, 7], variant={"optimiser.lr": 1})
    assert correlate(*varied, "embedded") == []
    assert correlate(*analysed(make_record, make_analysis, [1, 2, 3], [5, None, 7]), "embedded") == []


def test_older_task_versions_do_not_mix(make_record, make_analysis):
    analyses, records = analysed(make_record, make_analysis, [1, 2, 3, 4], [5, 6, 7, 8])
    prints = dict(cell="o", config="f", data="d", backbone="d0")
    newer = [*records[:3], make_record(1.0, objective="d", task_version=2, fingerprints=prints)]
    assert correlate(analyses, newer, "embedded") == []  # one point at the newest version
    assert of(correlate(analyses, records, "embedded")).rho == 1


def test_numbers_that_do_not_apply_are_left_out(make_record, make_analysis):
    found = correlate(*analysed(make_record, make_analysis, [None, 2, 3, 4], [5, 6, 7, 8]), "embedded")
    assert of(found).objectives == ("b", "c", "d")
    assert of(found, "effective_rank_last").objectives == ("a", "b", "c", "d")


def test_tables(make_record, make_analysis):
    analyses, records = analysed(make_record, make_analysis, [5, 6, 7], [50, 60, 70])
    text = summary_table(studied(analyses), records, "pipe")
    assert "| a " in text
    assert "classification.frozen" in text
    assert "| 50.00 " in text
    assert "+1.00 (0.33)" in correlation_table(correlate(analyses, records, "embedded"))
    assert "fewer than 3" in correlation_table([])
    assert worded(None) == "–"
    assert worded(Summary(1.0, (0.5, 1.5), 3), 1) == "1.0 ± 0.5"


def test_scores_of_another_budget_are_not_averaged_in(make_record, make_analysis):
    analyses, records = analysed(make_record, make_analysis, [5, 6, 7], [50, 60, 70], budget="long")
    same_weights = make_record(90.0, objective="a", fingerprints=records[0].fingerprints)  # untrained: any budget's
    assert "| 50.00 " in summary_table(studied(analyses), [*records, same_weights], "pipe")


def test_curves_over_seeds(transferred):
    made = [transferred("mae", seed, [10.0 + seed, 30.0]) for seed in (0, 1)]
    made.append(transferred("mae", 2, [99.0], protocol=CUT))
    (line,) = curves(made)["classification"]
    assert (line.name, line.layers, line.metric, line.unit) == ("mae", ("1", "2"), "top1", "%")
    assert [score.mean for score in line.scores] == [10.5, 30]
    assert line.scores[1].ci95 == (30, 30)
    assert curves(made, CUT)["classification"][0].scores[0].mean == 99
    newer = transferred("simmim", 0, [1.0, 2.0], task_version=2)
    assert [line.name for line in curves([*made, newer])["classification"]] == ["simmim"]


def test_analyses_never_enter_the_table(tmp_path, make_record, make_analysis, transferred):
    keep(tmp_path, make_analysis("mae"))
    keep(tmp_path, transferred("mae", 0, [1.0, 2.0]))
    write_record(tmp_path / "embedded" / "mae" / "seed0" / "classification.frozen", make_record(50.0))
    table = build(*read_records([tmp_path]))
    assert [column.id for column in table.columns] == ["classification.frozen"]
    assert len(read_analyses([tmp_path])) == 2
