import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leaderboard.records import InvalidRecord, checked
from leaderboard.render import comparisons, render
from leaderboard.statistics import holm, pooled_tests, summarise
from leaderboard.table import TableError, build


def row(table, objective):
    return next(row for row in table.rows if row.objective == objective)


def test_columns_stand_in_canonical_order(make_record):
    tasks = ["tracking", "zebra", "depth", "pose_lsp", "pose", "segmentation", "classification"]
    records = [make_record(1.0, task=task) for task in tasks]
    records += [make_record(1.0, task="pose", protocol=protocol) for protocol in ("knn", "finetune")]
    assert [column.id for column in build(records).columns] == [
        "classification.frozen", "segmentation.frozen", "pose.frozen", "pose.finetune", "pose.knn",
        "pose_lsp.frozen", "depth.frozen", "tracking.frozen", "zebra.frozen",
    ]  # fmt: skip
    depth = build(records).columns[6]
    assert depth.heading == ("depth", "frozen v1", "rmse (m) ↓")


def test_a_cell_is_the_mean_over_seeds(make_record):
    values = [50.0, 51.0, 53.5]
    table = build([make_record(value, seed=seed) for seed, value in enumerate(values)])
    cell = table.rows[0].cells["classification.frozen"]
    assert cell.summary == summarise(values)
    assert cell.text == "51.50 ± 4.48"
    assert (cell.n, cell.rank, cell.status) == (3, 1, "ok")


def test_rows_are_sorted_by_mean_rank_and_direction_counts(make_record):
    records = []
    for objective, top1, rmse in (("a", 50, 0.5), ("b", 60, 0.4), ("c", 40, 0.45)):
        records += [make_record(top1, objective=objective), make_record(rmse, objective=objective, task="depth")]
    table = build(records)
    assert [(found.objective, found.mean_rank) for found in table.rows] == [("b", 1.0), ("a", 2.5), ("c", 2.5)]


def test_equal_numbers_share_a_rank(make_record):
    values = {"a": 50.0, "b": 60.001, "c": 60.002}  # b and c are shown alike
    table = build([make_record(value, objective=name) for name, value in values.items()])
    ranks = {found.objective: found.cells["classification.frozen"].rank for found in table.rows}
    assert ranks == {"a": 3, "b": 1, "c": 1}


def test_lower_versions_are_shown_and_not_ranked(make_record):
    records = [
        make_record(90.0, objective="old", task_version=1),
        make_record(50.0, objective="new", task_version=2),
        make_record(60.0, objective="both", task_version=2),
        make_record(99.0, objective="both", task_version=1),
    ]
    table = build(records)
    assert [column.version for column in table.columns] == [2]
    old = row(table, "old").cells["classification.frozen"]
    assert (old.text, old.rank, old.status) == ("90.00", None, "ok")
    assert table.notes[old.notes[0] - 1].endswith("task version 1, not ranked beside version 2")
    assert row(table, "both").cells["classification.frozen"].text == "60.00"
    assert row(table, "both").cells["classification.frozen"].rank == 1
    assert row(table, "new").cells["classification.frozen"].rank == 2
    assert table.rows[-1].objective == "old"


def test_statuses_and_notes(make_record):
    records = [
        make_record(50.0, seed=0), make_record(None, seed=1), make_record(None, seed=2),
        make_record(None, task="pose"),
        make_record(None, task="depth", status="skipped", reason="no data\nanywhere"),
        make_record(40.0, objective="other", task="tracking"),
    ]  # fmt: skip
    broken = InvalidRecord(Path("x/result.json"), "the digest does not fit", make_record(1.0, task="segmentation").cell)
    unknown = InvalidRecord(Path("y/result.json"), "not JSON")
    table = build(records, [broken, unknown])
    cells = row(table, "mae").cells
    assert {name.split(".")[0]: cell.status for name, cell in cells.items()} == {
        "classification": "ok", "segmentation": "invalid", "pose": "failed", "depth": "skipped", "tracking": "missing",
    }  # fmt: skip
    assert cells["classification.frozen"].n == 1
    assert cells["classification.frozen"].notes
    assert [cell.text for cell in cells.values()] == ["50.00", "invalid", "failed", "skipped", "–"]
    assert sorted(table.notes) == sorted([
        "mae, classification.frozen, seeds 1, 2: failed: out of memory",
        "mae, segmentation.frozen, seed 0: invalid: x/result.json: the digest does not fit",
        "mae, pose.frozen, seed 0: failed: out of memory",
        "mae, depth.frozen, seed 0: skipped: no data anywhere",
        "invalid: y/result.json: not JSON",
    ])
    for cell in cells.values():
        assert all(table.notes[number - 1].startswith("mae, ") for number in cell.notes)
    assert all(cell.rank is None for cell in cells.values() if cell.status != "ok")


def test_what_is_had_without_learning_stands_in_a_note(make_record):
    still = {"baselines": {"SUC": {"a box that never moves": 8.896}, "P": {"chance": 1.0}}}
    records = [make_record(40.0, task="tracking", seed=seed, details=still) for seed in (0, 1)]
    records += [make_record(41.0, task="tracking", objective="older"), make_record(50.0)]
    assert build(records).notes == ("tracking.frozen: a box that never moves scores SUC 8.90 %",)
def test_a_collapse_is_noted_once_a_row_and_the_number_counts(make_record):
    told = {"details": {"collapse": "effective rank 1, at initialisation 60"}}
    records = [make_record(50.0, task=task, seed=seed, **(told if seed else {}))
               for task in ("classification", "pose") for seed in (0, 1, 2)]
    table = build([*records, make_record(40.0, objective="other")], [])
    assert table.notes == ("mae, seeds 1, 2: features collapsed: effective rank 1, at initialisation 60",)
    cells = row(table, "mae").cells
    assert [(cell.n, cell.notes) for cell in cells.values()] == [(3, (1,))] * 2
    assert cells["classification.frozen"].rank is not None


def test_a_record_with_another_main_metric_is_invalid(make_record):
    other = make_record(99.0, objective="other")
    other = replace(other, metrics={"score": other.metrics["top1"]})
    table = build([make_record(50.0), make_record(51.0, objective="dino"), other])
    cell = row(table, "other").cells["classification.frozen"]
    assert (cell.status, cell.rank) == ("invalid", None)
    assert table.notes == (
        "other, classification.frozen, seed 0: invalid: its main metric is score (%) ↑, the column's is top1 (%) ↑",
    )


def test_leaving_out_a_task_does_not_help(make_record):
    records = [make_record(90.0, objective="partial")]
    for task in ("classification", "pose"):
        records += [make_record(50.0, objective="a", task=task), make_record(40.0, objective="b", task=task)]
    table = build(records)
    assert [found.objective for found in table.rows] == ["a", "b", "partial"]
    assert table.rows[-1].rank_text == "1.00 (1 of 2)"


def test_a_column_of_one_row_is_not_contested(make_record):
    records = [make_record(60.0, objective="a"), make_record(50.0, objective="b")]
    table = build([*records, make_record(50.0, objective="b", protocol="finetune")])
    assert [found.objective for found in table.rows] == ["a", "b"]
    assert [found.missing_ranks for found in table.rows] == [0, 0]


def test_variants_budgets_and_backbones_have_their_own_rows(make_record):
    records = [
        make_record(1.0),
        make_record(2.0, variant={"loss.type": "L1", "mask.ratio": 0.6}),
        make_record(3.0, budget="long", cost={**make_record().cost, "pretrain_images": 1_000_000}),
        make_record(4.0, backbone="swin_tiny"),
        make_record(5.0, variant={"x": "y" * 500}),
        make_record(6.0, variant={"x": "y" * 501}),
    ]
    rows = build(records).rows
    assert len(rows) == len({(found.objective, found.backbone, found.budget) for found in rows}) == 6
    assert "mae (loss.type=L1, mask.ratio=0.6)" in {found.objective for found in rows}
    assert "long (1,000,000 images)" in {found.budget_text for found in rows}
    assert all(len(found.objective) < 150 for found in rows)


def test_pretraining_is_paid_once_a_seed(make_record):
    records = [make_record(50.0, task=task, seed=seed) for task in ("pose", "tracking") for seed in (0, 1)]
    cost = build(records).rows[0].cost
    assert cost.pretrain_seconds == 60
    assert cost.device_hours == pytest.approx((2 * 60 + 4 * 30) / 3600)
    assert cost.pretrain_images == 100_000
    assert cost.device == "2 CPU cores"


@pytest.mark.parametrize(("devices", "words"), [
    (["1 CPU cores"], "1 CPU core"), (["2 CPU cores", "1 CPU cores"], "1–2 CPU cores"),
    (["H200", "16 CPU cores"], "H200, 16 CPU cores"),
])  # fmt: skip
def test_devices_of_a_row_in_words(devices, words, make_record):
    cost = make_record().cost
    records = [make_record(seed=seed, cost={**cost, "device": device}) for seed, device in enumerate(devices)]
    assert build([checked(record) for record in records]).rows[0].cost.device == words


@pytest.mark.parametrize(("device", "said"), [("4 CPU cores", "0.20 CPU-h"), ("H200", "0.10 GPU-h")])
def test_every_process_of_a_launcher_is_paid(make_record, device, said):
    environment = {**make_record().environment, "threads": {"pretraining": 2, "task": 2},
                   "processes": {"pretraining": 4, "task": 4}}
    cost = {**make_record().cost, "device": device}
    found = build([make_record(cost=cost, environment=environment)]).rows[0].cost
    assert found.compute_text == said  # (60 + 30) s in four processes, of two cores or one GPU each
    odd = [make_record(cost=cost, environment={**environment, "processes": told}) for told in (3, {"task": "x"}, None)]
    assert {build([record]).rows[0].cost.compute_text for record in odd} == {
        "0.05 CPU-h" if "CPU" in device else "0.03 GPU-h"}  # 90 s: 0.025 h in round numbers


def test_unknown_costs_are_a_dash(make_record):
    nothing = dict.fromkeys(make_record().cost) | {"device": "somewhere"}
    found = build([checked(make_record(cost=nothing))]).rows[0]
    assert found.right == ("1", "–", "–", "–", "somewhere")
    assert found.budget_text == "default"


def test_only_rows_of_one_budget_are_compared(make_record):
    records = [
        make_record(value, objective=name, budget=budget, cost={**make_record().cost, "pretrain_images": images})
        for budget, images, base in (("long", 640_000, 60.0), ("default", 100_000, 50.0), ("elsewhere", None, 70.0))
        for name, value in (("a", base), ("b", base - 5), ("c", base - 9))
    ]
    table = build(records)
    assert [(group.budget, [found.objective for found in group.rows]) for group in table.groups] == [
        ("default", ["a", "b", "c"]), ("long", ["a", "b", "c"]), ("elsewhere", ["a", "b", "c"]),
    ]  # fmt: skip
    for group in table.groups:
        assert [found.cells["classification.frozen"].rank for found in group.rows] == [1, 2, 3]
        assert [found.cells["classification.frozen"].place for found in group.rows] == [1, 2, 3]
        assert [found.mean_rank for found in group.rows] == [1, 2, 3]
    assert [group.heading for group in table.groups] == [
        "Budget default (100,000 images)", "Budget long (640,000 images)",
        "Weights from elsewhere, each with a budget of its own",
    ]  # fmt: skip
    assert "within one budget only" in table.legend
    assert all(pair.a[2] == pair.b[2] for pair in table.comparisons)
    text = render(table, "md")
    assert text.index("Budget default") < text.index("Budget long") < text.index("Weights from elsewhere")
    assert [r["rank"] for r in json.loads(render(table, "json"))["rows"]] == [1, 2, 3] * 3


def test_what_all_rows_share_stands_above_them(make_record):
    records = [make_record(50.0 + i, objective=name, seed=seed) for i, name in enumerate("ab") for seed in range(2)]
    (group,) = build(records).groups
    assert group.title == "Budget default (100,000 images). All rows: backbone vit_tiny, 2 seeds, 2 CPU cores."
    assert group.left_heads == ("mean rank", "objective")
    assert group.right_heads == ("pre-training", "compute", "FLOPs")
    mixed = build([*records, make_record(1.0, objective="c", backbone="vit_small")]).groups[0]
    assert mixed.left_heads == ("mean rank", "objective", "backbone")
    assert mixed.rows[-1].under(["backbone", "seeds"]) == ["vit_small", "1"]


def test_suites_are_not_mixed(make_record):
    records = [make_record(1.0), make_record(2.0, suite="mini")]
    with pytest.raises(TableError, match="embedded, mini"):
        build(records)
    table = build(records, suite="mini")
    assert table.suite == "mini"
    assert [cell.text for cell in table.rows[0].cells.values()] == ["2.00"]


def test_no_records():
    table = build([])
    assert (table.suite, table.columns, table.rows, table.notes) == (None, (), (), ())


# --- statistics in the table ------------------------------------------------------------------------------------------


def cells(table, column="classification.frozen"):
    return {found.objective: found.cells[column] for found in table.rows}


def made(make_record, scores):
    """Records of objective -> scores by seed."""
    return [
        make_record(value, objective=name, seed=seed) for name, values in scores.items()
        for seed, value in (values.items() if isinstance(values, dict) else enumerate(values))
    ]  # fmt: skip


def test_rows_tie_where_seeds_do_not_separate_them(make_record):
    scores = {"a": [60.0, 61.0, 62.0], "b": [59.5, 61.5, 61.9], "c": [40.0, 41.1, 42.0]}
    table = build(made(make_record, scores))
    assert {name: (cell.rank, cell.place) for name, cell in cells(table).items()} == {
        "a": (1, 1), "b": (1, 2), "c": (3, 3),
    }  # fmt: skip
    assert [found.objective for found in table.rows] == ["a", "b", "c"]  # equal mean ranks: by place
    found = {(pair.a[0], pair.b[0]): pair for pair in table.comparisons}
    assert found["a", "b"].basis == "seeds, 4 degrees of freedom"
    of_all = pooled_tests([dict(enumerate(values)) for values in scores.values()])
    assert found["a", "b"].p == pytest.approx(of_all.p[0, 1])
    assert not found["a", "b"].significant
    assert found["a", "c"].significant
    assert found["a", "c"].difference == pytest.approx(61 - 41.0333, abs=1e-3)
    raw = [pair.p for pair in table.comparisons]
    assert [pair.corrected for pair in table.comparisons] == holm(raw)
    assert "significantly better (t tests of score = row + seed + noise" in table.legend
    assert "as shown" not in table.legend
    text = comparisons(table)
    assert "first is better" in text
    assert "tie" in text
    assert "4 degrees of freedom" in text
    assert "score = row + seed + noise" in text


def test_ranks_do_not_contradict_the_means(make_record):
    """Six rows of three seeds with unequal spreads: pair by pair on two degrees of freedom the fourth was first."""
    scores = {
        "first": [37.0, 37.4, 38.7], "second": [27.1, 27.6, 28.9], "third": [24.3, 24.4, 24.9],
        "fourth": [11.0, 17.5, 24.0], "fifth": [14.0, 14.6, 15.2], "sixth": [11.8, 11.9, 12.1],
    }  # fmt: skip
    found = [row.cells["classification.frozen"] for row in build(made(make_record, scores)).rows]
    assert [cell.place for cell in found] == [1, 2, 3, 4, 5, 6]
    ranks = [cell.rank for cell in found]
    assert ranks == sorted(ranks)
    assert ranks[3] > 1


@settings(max_examples=60, deadline=None)
@given(scores=st.integers(2, 4).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 400), min_size=n, max_size=n), min_size=2, max_size=6)
))  # fmt: skip
def test_ranks_rise_with_the_means_where_all_have_the_same_seeds(make_record, scores):
    rows = {f"o{i}": [value / 4 for value in values] for i, values in enumerate(scores)}
    found = cells(build(made(make_record, rows)))
    for (a, first), (b, second) in itertools.permutations(found.items(), 2):
        if sum(rows[a]) > sum(rows[b]):
            assert first.rank <= second.rank
        elif sum(rows[a]) == sum(rows[b]):
            assert first.rank == second.rank


def test_a_row_of_one_seed_is_tested_beside_rows_of_several(make_record):
    """Its number alone, by its size, decides nothing; nor do test items, which the others do not speak of."""
    hard = [float(x) for x in range(40, 80)]
    scores = {"a": [60.0, 61.5, 61.0], "b": [60.5, 59.5, 61.8], "far": [41.0, 40.3, 42.0]}
    single = with_items(make_record, [x + 1 for x in hard], "single")  # 60.5, below a's mean, above b's
    found = build([*made(make_record, scores), single])
    assert {pair.over for pair in found.comparisons} == {"seeds"}
    assert len(found.comparisons) == 6
    assert {name: cell.rank for name, cell in cells(found).items()} == {"a": 1, "b": 1, "single": 1, "far": 4}
    assert "as shown" not in found.legend


def test_the_legend_says_what_decides(make_record):
    plain = build([make_record(50.0, objective="a"), make_record(60.0, objective="b")])
    assert {name: cell.rank for name, cell in cells(plain).items()} == {"a": 2, "b": 1}
    assert "shown decide the ranks: with one seed, and no common test items or too few, nothing" in plain.legend
    assert "significantly" not in plain.legend
    items = [with_items(make_record, range(s, s + 20), name) for s, name in ((0, "a"), (9, "b"))]
    assert "with one seed a row, sign flips" in build(items).legend
    assert "as shown" not in build(items).legend
    mixed = build([*items, make_record(99.0, objective="c")])
    assert "The numbers as shown decide the other ranks" in mixed.legend
    assert "decide" not in build([make_record(50.0)]).legend


def with_items(make_record, scores, objective, seed=0, data="d"):
    return make_record(
        float(np.mean(scores)), objective=objective, seed=seed, items={"top1": [float(s) for s in scores]},
        fingerprints=dict(cell="c", config="f", data=data, backbone="b"),
    )  # fmt: skip


def test_one_seed_is_tested_over_its_items(make_record):
    draw = np.random.default_rng(0)
    hard = draw.normal(50, 15, 200)  # what makes an item hard is shared
    near, far = hard + draw.normal(0.1, 3, 200), hard - 5 + draw.normal(0, 3, 200)
    records = [with_items(make_record, s, name) for name, s in (("a", hard), ("b", near), ("c", far))]
    table = build(records)
    assert {name: cell.rank for name, cell in cells(table).items()} == {"a": 1, "b": 1, "c": 3}
    assert {(pair.over, pair.n) for pair in table.comparisons} == {("items", 200)}
    low, high = cells(table)["a"].items95
    assert low < hard.mean() < high
    assert cells(table)["a"].summary.ci95 is None  # one seed: no interval over seeds
    assert cells(table)["a"].text == f"{hard.mean():.2f} [{low:.2f}, {high:.2f}]"
    assert "over test items" in table.legend
    document = json.loads(render(table, "json"))
    first = next(found for found in document["rows"] if found["objective"] == "a")
    assert first["cells"]["classification.frozen"]["items95"] == [low, high]


@pytest.mark.parametrize("change", ["data", "length", "mean"])
def test_items_count_only_where_they_make_the_number(make_record, change):
    scores = list(range(20, 60))
    a = with_items(make_record, scores, "a")
    b = with_items(make_record, [s - 9 for s in scores], "b")
    if change == "data":
        b = replace(b, fingerprints={**b.fingerprints, "data": "other"})
    elif change == "length":
        b = replace(b, items={"top1": [30.5] * 39})
    else:
        b = replace(b, items={"top1": scores})  # not the mean of the metric
    table = build([a, b])
    assert table.comparisons == ()
    ranks = {name: cell.rank for name, cell in cells(table).items()}
    assert ranks == ({"a": None, "b": 1} if change == "data" else {"a": 1, "b": 2})


def test_seeds_on_different_items_are_not_averaged(make_record):
    records = [with_items(make_record, range(s, s + 20), "a", seed=s, data=f"d{s}") for s in range(2)]
    table = build(records)
    assert cells(table)["a"].n == 1  # the last one used counts, the other is named
    assert "left out of the mean: test data: d0, the column's d1" in table.notes[0]
    same = [with_items(make_record, range(s, s + 20), "a", seed=s) for s in range(2)]
    assert cells(build(same))["a"].items95 is not None


def test_protocols_are_compared_on_the_seeds_that_all_have(monkeypatch, make_record):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs")
    import make

    records = [make_record(10.0 + seed, objective="mae", seed=seed) for seed in range(3)]
    records += [make_record(40.0, objective="mae", protocol="finetune", seed=1), make_record(90.0, objective="simmim")]
    monkeypatch.setattr(make, "read", lambda suite: (records, []))
    text = make.by_protocol("embedded")
    assert "seed 1.**" in text
    assert [line.split(" | ")[:3] for line in text.splitlines()[4:]] == [
        ["| frozen", "mae", "11.00 |"], ["| finetune", "mae", "40.00 |"]]
    # seed 1 of one task failed: no seed is left that both protocols have of every task
    more = [make_record(0.5, task="depth", seed=0), make_record(None, task="depth", seed=1)]
    monkeypatch.setattr(make, "read", lambda suite: (records + more, []))
    assert make.by_protocol("embedded") == ""


def test_protocols_beside_each_other_keep_their_marks_and_notes(monkeypatch, make_record):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs")
    import make

    records = [make_record(10.0, protocol=protocol) for protocol in ("frozen", "finetune")]
    records += [make_record(20.0, objective="simmim", protocol=protocol, task_version=1 + (protocol == "frozen"))
                for protocol in ("frozen", "finetune")]
    monkeypatch.setattr(make, "read", lambda suite: (records, []))
    text = make.by_protocol("embedded")
    assert "| frozen | mae | 10.00 <sup>†, 1</sup> |" in text
    assert "| finetune | mae | 10.00 |" in text
    assert text.endswith("\n1. mae, classification.frozen: task version 1, not ranked beside version 2")


def test_a_page_of_some_protocols_leaves_out_broken_records_of_others(monkeypatch, make_record):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs")
    import make

    broken = [InvalidRecord(Path(protocol), "damaged", make_record(objective="eva", protocol=protocol).cell)
              for protocol in ("frozen", "finetune")]
    monkeypatch.setattr(make, "read", lambda suite: ([make_record()], broken))
    make.built.cache_clear()
    made = make.built("embedded", "frozen")
    make.built.cache_clear()
    assert [column.id for column in made.columns] == ["classification.frozen"]


def test_a_long_column_is_ranked_as_a_short_one(make_record):
    """The least p value of the sign flips, times the number of pairs, must stay below the level."""
    ranks = {}
    for count in (5, 40):
        records = [
            make_record(float(level), objective=f"o{level:02}", items={"top1": (level + noise).tolist()})
            for level, noise in ((n, np.random.default_rng(n).normal(size=60)) for n in range(count))
            for noise in [noise - noise.mean()]
        ]
        table = build(records)
        ranks[count] = sorted(found.cells["classification.frozen"].rank for found in table.rows)
    assert ranks[5] == list(range(1, 6))
    assert max(ranks[40]) > 30


def test_two_items_test_nothing(make_record):
    values = {"a": [10.0, 20.0], "b": [30.0, 50.0], "c": [20.0, 40.0]}
    table = build([make_record(sum(v) / 2, objective=name, items={"top1": v}) for name, v in values.items()])
    assert not table.comparisons
    assert {found.objective: found.cells["classification.frozen"].rank for found in table.rows} == {
        "b": 1, "c": 2, "a": 3}
    assert "too few" in table.legend


def test_pairs_over_too_few_items_leave_the_others_their_tests(make_record):
    """Seven items can tell two rows apart; two rows with two items of their own must not take that from them."""
    levels = {"a": (10.0, 7), "b": (50.0, 7), "c": (20.0, 2), "d": (30.0, 2)}
    records = [with_items(make_record, [level + i for i in range(count)], name)
               for name, (level, count) in levels.items()]
    found = build(records).comparisons
    assert [({pair.a[0], pair.b[0]}, pair.significant) for pair in found] == [({"a", "b"}, True)]


def test_columns_on_other_weights_are_noted(make_record):
    prints = dict(cell="c", config="f", data="d", backbone="b")
    tasks = ("classification", "segmentation")
    records = [make_record(50.0, task=task, seed=seed) for task in tasks for seed in (0, 1, 2)]
    again = [make_record(50.0, task="tracking", seed=seed, fingerprints={**prints, "backbone": f"other{seed}"})
             for seed in (0, 2)]
    table = build([*records, *again, make_record(50.0, task="tracking", seed=1)])
    assert table.notes == (
        "mae, tracking.frozen, seeds 0, 2: scored on other weights than the row's other columns: the backbone was "
        "trained again",
    )
    assert table.rows[0].cells["tracking.frozen"].notes == (1,)
