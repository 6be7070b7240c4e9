"""Rows made under other conditions than their column's: marked in every format, named, and kept out of the ranks."""

import csv
import io
import json
import re

import pytest
from rich.console import Console

from leaderboard.comparable import departures, shared
from leaderboard.page import page
from leaderboard.render import print_terminal, render
from leaderboard.table import build

FINGERPRINTS = {"cell": "c", "config": "f", "data": "d", "backbone": "b"}
MADE = {"trains": True, "model": "vit", "kwargs": {"depth": 6}, "input_size": 64, "batch_size": 32, "images_seen": 9}


def config(made=(), **settings):
    return {"settings": {"epochs": 20, "lr": [0.1, 0.2], **settings}, "pretraining": {**MADE, **dict(made)}}


@pytest.fixture
def records(make_record):
    """Three rows of one kind; more are added by the tests."""
    values = {"a": 60.0, "b": 50.0, "c": 40.0}
    return [make_record(value, objective=name, config=config()) for name, value in values.items()]


def cell(table, objective):
    return next(row for row in table.rows if row.objective.startswith(objective)).cells["classification.frozen"]


def other(make_record, **changes):
    return make_record(99.0, objective="z", **({"config": config()} | changes))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"config": config(epochs=5)}, "head settings: epochs 5, the column's 20"),
        ({"config": config(head="deep")}, 'head settings: head "deep", the column\'s not set'),
        ({"fingerprints": {**FINGERPRINTS, "data": "another"}}, "test data: another, the column's d"),
        ({"config": config({"input_size": 96})}, "pre-training input_size: 96, the column's 64"),
        ({"config": config({"kwargs": {"depth": 9}})}, 'pre-training kwargs: {"depth":9}, the column\'s {"depth":6}'),
        ({"cost": {"pretrain_images": 500_000}}, "pictures of pre-training: 500,000, the column's 100,000"),
    ],
)
def test_a_row_made_otherwise_is_marked_and_not_ranked(records, make_record, changes, reason):
    if "cost" in changes:
        changes = {"cost": {**make_record().cost, **changes["cost"]}}
    table = build([*records, other(make_record, **changes)])
    odd = cell(table, "z")
    assert (odd.status, odd.text, odd.rank, odd.place, odd.comparable) == ("ok", "99.00", None, None, False)
    assert odd.unranked == reason
    assert table.notes == (f"z, classification.frozen: not ranked: {reason}",)
    assert [cell(table, name).rank for name in "abc"] == [1, 2, 3]
    assert table.rows[-1].objective == "z"
    assert table.rows[-1].mean_rank is None
    assert "†" in table.legend


def test_the_mark_stands_in_every_format(records, make_record):
    table = build([*records, other(make_record, config=config(epochs=5))])
    assert "99.00 <sup>†, 1</sup>" in render(table, "md")
    assert "99.00\\textsuperscript{$\\dagger$, 1}" in render(table, "tex")
    assert re.search(r"99\.00</span><sup>†, 1</sup>", page(table))
    line = next(line for line in csv.DictReader(io.StringIO(render(table, "csv"))) if line["objective"] == "z")
    assert line["classification.frozen.top1.unranked"] == "head settings: epochs 5, the column's 20"
    assert line["classification.frozen.top1.rank"] == ""
    row = next(row for row in json.loads(render(table, "json"))["rows"] if row["objective"] == "z")
    assert row["cells"]["classification.frozen"]["unranked"] == "head settings: epochs 5, the column's 20"
    assert row["cells"]["classification.frozen"]["rank"] is None
    console = Console(file=io.StringIO(), width=300)
    print_terminal(table, console)
    assert "99.00 [†, 1]" in console.file.getvalue()
    for text in (render(table, "md"), page(table), console.file.getvalue()):
        assert "not ranked: head settings: epochs 5" in text


def test_nothing_is_marked_where_all_agree(records):
    table = build(records)
    assert not table.notes
    assert "†" not in render(table, "md")


@pytest.mark.parametrize("changes", [
    {"config": {}}, {"config": {"settings": 3, "pretraining": []}},  # does not say
    {"variant": {"suite.kwargs.depth": 9}, "config": config({"kwargs": {"depth": 9}})},  # says so in its name
    {"config": config({"trains": False, "batch_size": 1})},  # no pre-training, so no batches
    {"config": config({"slots": {"loss": "L1"}, "optimiser": {"lr": 9}, "crop": 1})},  # what makes an objective
    {"config": config({"weights": {"backbone": "timm:x"}, "input_size": 224, "model": "other"})},  # trained elsewhere
])  # fmt: skip
def test_what_makes_no_difference(records, make_record, changes):
    assert cell(build([*records, other(make_record, **changes)]), "z").rank == 1


def test_a_row_without_pretraining_stands_beside_trained_ones(records, make_record):
    cost = {**make_record().cost, "pretrain_images": 0}
    random = other(make_record, cost=cost, config=config({"trains": False, "images_seen": 0}))
    assert cell(build([*records, random]), "z").rank == 1


def test_seeds_made_otherwise_are_left_out_of_the_mean(records, make_record):
    seeds = [make_record(70.0, objective="z", seed=seed, config=config()) for seed in range(2)]
    odd = make_record(10.0, objective="z", seed=2, config=config(epochs=1))
    table = build([*records, *seeds, odd])
    assert (cell(table, "z").text, cell(table, "z").n, cell(table, "z").rank) == ("70.00 ± 0.00", 2, 1)
    assert table.notes == (
        "z, classification.frozen, seed 2: left out of the mean: head settings: epochs 1, the column's 20",
    )


def test_of_two_ways_the_one_of_most_rows_counts_then_the_latest(make_record):
    def row(name, epochs, day):
        return make_record(50.0, objective=name, config=config(epochs=epochs), finished=f"2026-01-0{day}")

    assert cell(build([row("a", 5, 1), row("b", 5, 1), row("c", 9, 2)]), "c").rank is None
    table = build([row("a", 5, 1), row("c", 9, 2)])
    assert (cell(table, "a").rank, cell(table, "c").rank) == (None, 1)


def test_settings_that_a_suite_gives_an_objective_are_its_own(records, make_record):
    own = other(make_record, config=config(epochs=100))
    odd = make_record(98.0, objective="y", config=config(epochs=7))

    def declared(record):
        return {"epochs": 100 if record.objective == "z" else 20, "lr": (0.1, 0.2)}

    table = build([*records, own, odd], declared=declared)
    assert cell(table, "z").rank == 1
    assert cell(table, "y").unranked == "changed head settings: epochs 7, the column's the suite's own"


def test_budgets_have_conditions_of_their_own(records, make_record):
    cost = {**make_record().cost, "pretrain_images": 999_999}
    longer = [make_record(70.0, objective=name, budget="long", cost=cost, config=config()) for name in "ab"]
    assert not build([*records, *longer]).notes


def test_conditions_of_nothing():
    assert shared([]) == {}
    assert departures({"test data": "x"}, {}) == ()


@pytest.mark.parametrize(("changes", "reason"), [
    ({"version": 1}, "objective's version: 1, the cell's 2"),
    ({"optimiser": {"lr": 99, "clip": 3}}, "objective's optimiser: lr 99, the cell's 1"),
    ({"slots": {"loss": "L1"}}, 'objective\'s slots: loss "L1", the cell\'s "MSE"'),
])
def test_seeds_trained_by_another_recipe_are_left_out_of_the_mean(make_record, changes, reason):
    made = {"version": 2, "slots": {"loss": "MSE"}, "optimiser": {"lr": 1, "clip": 3}, "crop": {"flip": True}}
    records = [make_record(50.0 + seed, seed=seed, config=config(made)) for seed in (0, 1)]
    table = build([*records, make_record(90.0, seed=2, config=config({**made, **changes}))])
    assert cell(table, "mae").text.startswith("50.50")
    assert table.notes == (f"mae, classification.frozen, seed 2: left out of the mean: {reason}",)


def test_the_newest_version_of_an_objective_counts(make_record):
    records = [make_record(value, seed=seed, config=config({"version": version}))
               for seed, (value, version) in enumerate([(10.0, 1), (20.0, 1), (30.0, 2)])]
    assert cell(build(records), "mae").text == "30.00"
