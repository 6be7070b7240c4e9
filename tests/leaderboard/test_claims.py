"""The claims of 2205.13543 held against records: the rule, and a document that says what is missing."""

import pytest

from leaderboard.claims import (
    CLAIMED,
    CLAIMS,
    DIVERSITY,
    FAILS,
    FARTHEST,
    HOLDS,
    MARGIN,
    NO_RECORD,
    SHOWN,
    UNDECIDED,
    Claim,
    budget_of,
    document,
    held,
    lines_of,
    numbers,
    verdict,
)
from leaderboard.statistics import Summary


@pytest.mark.parametrize(
    ("wanted", "low", "high", "word"),
    [("more", 0.1, 2, HOLDS), ("more", -1, 2, UNDECIDED), ("more", -2, -0.1, FAILS), ("more", 0, 2, UNDECIDED),
     ("less", -2, -0.1, HOLDS), ("less", 0.1, 2, FAILS), ("less", -1, 1, UNDECIDED),
     ("parity", -MARGIN + 0.1, 9, HOLDS), ("parity", -MARGIN - 0.1, 1, UNDECIDED),
     ("parity", -9, -MARGIN - 0.1, FAILS)],
)
def test_the_rule(wanted, low, high, word):
    assert verdict(wanted, Summary((low + high) / 2, (low, high), 3)) == word


def test_one_seed_decides_nothing_and_no_record_is_said():
    assert verdict("more", Summary(5.0, None, 1)) == UNDECIDED
    assert verdict("more", None) == NO_RECORD
    claim = Claim("x", "", "more")
    assert held(claim, "mae", {"mae": {0: 1.0}}).verdict == NO_RECORD
    assert held(claim, "mae", {"supervised": {0: 1.0}}).verdict == NO_RECORD
    assert held(claim, "mae", {"mae": {0: 1.0}, "supervised": {1: 1.0}}).verdict == UNDECIDED  # no common seed


def test_differences_are_taken_seed_by_seed():
    values = {"mae": {0: 10.0, 1: 20.0, 2: 30.0, 7: 0.0}, "supervised": {0: 9.0, 1: 19.0, 2: 29.0}}
    line = held(Claim("x", "", "more"), "mae", values)
    assert line.difference.ci95 == pytest.approx((1, 1))
    assert line.difference.n == 3
    assert line.verdict == HOLDS
    assert held(Claim("x", "", "more"), "mae", values, lower_is_better=True).verdict == FAILS
    assert line.theirs.n == 4


@pytest.fixture
def world(make_record, make_analysis):
    """Records and analyses where mae is local, diverse, good at depth and pose, behind at classification."""
    better = {"mae": {"depth": 0.5, "pose": 40.0, "classification": 30.0, "segmentation": 50.0},
              "supervised": {"depth": 0.9, "pose": 20.0, "classification": 60.0, "segmentation": 50.0}}
    records, analyses = [], []
    for objective, scores in better.items():
        for seed in range(3):
            for task, score in scores.items():
                records.append(make_record(score * (1 + 0.01 * seed), task=task, objective=objective, seed=seed))
            analyses.append(make_analysis(
                objective, seed, distance=(4.0 if objective == "mae" else 8.0) + 0.1 * seed,
                kl=1.0 if objective == "mae" else 0.2))
    return records, analyses


def test_numbers_by_objective_and_seed(world, make_record):
    found = numbers(*world)
    assert found[FARTHEST]["mae"][0] == pytest.approx(8 / 20)  # of the second layer
    assert found[DIVERSITY]["supervised"][2] == 0.2
    assert found["depth"]["mae"][1] == pytest.approx(0.505)
    newer = make_record(1.0, task="depth", objective="simmim", task_version=9)
    assert set(numbers([*world[0], newer], [])["depth"]) == {"simmim"}


def test_lines(world):
    lines = lines_of(*world)
    assert list(lines) == list(CLAIMS)
    found = {(line.claim.title, line.objective): line.verdict for rows in lines.values() for line in rows}
    assert found[FARTHEST, "mae"] == HOLDS
    assert found[DIVERSITY, "mae"] == HOLDS
    assert found["depth", "mae"] == HOLDS  # lower is better
    assert found["pose", "mae"] == HOLDS
    assert found["tracking", "mae"] == NO_RECORD
    assert found["classification", "mae"] == FAILS
    assert found["segmentation", "mae"] == HOLDS
    assert {found[title, "zoomed_in_mask"] for title in (FARTHEST, "depth")} == {NO_RECORD}


def test_the_document_names_what_is_missing(world):
    text = document(*world, ["embedded", "mini"])
    assert "## Suite `embedded`" in text
    assert "## Suite `mini`" not in text
    assert "zoomed_in_mask: no record" in text
    assert "| depth, frozen: rmse (m) ↓ | mae |" in text
    for word in (HOLDS, FAILS, NO_RECORD):
        assert f"| {word} |" in text
    assert "No record." in text  # of layer-wise transfer
    assert all(len(line.split("|")) == 8 for line in text.splitlines() if line.startswith("| depth, frozen"))
    empty = document([], [], ["embedded"])
    assert "## Suite" not in empty


def test_the_fullest_budget_is_studied(make_record):
    cost = make_record().cost
    long = [make_record(objective=name, budget="long", cost={**cost, "pretrain_images": 10**6}) for name in SHOWN[:2]]
    default = [make_record(objective=name) for name in SHOWN[:2]]
    assert budget_of([*default, *long], "embedded") == "long"
    assert budget_of([*default, *long, make_record(objective=CLAIMED[2])], "embedded") == "default"
    assert budget_of(default, "mini") is None
