"""The claims of 2205.13543 held against records: the rule, and a document that says what is missing."""

import pytest

from leaderboard.claims import (
    CLAIMED,
    CLAIMS,
    DIVERSITY,
    EVEN,
    FAILS,
    FARTHEST,
    HOLDS,
    LAST_THREE,
    MARGIN,
    NO_RECORD,
    OWN_FIRST,
    REFERENCE,
    SHOWN,
    UNDECIDED,
    UNKNOWN,
    UNLEARNED,
    UNTRAINED,
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
              "supervised": {"depth": 0.9, "pose": 20.0, "classification": 60.0, "segmentation": 50.0},
              "random_init": {"classification": 10.0}}
    records, analyses = [], []
    for objective, scores in better.items():
        for seed in range(3):
            for task, score in scores.items():
                records.append(make_record(score * (1 + 0.01 * seed), task=task, objective=objective, seed=seed))
            analyses.append(make_analysis(
                objective, seed, distance={"mae": 4.0, "supervised": 8.0}.get(objective, 10.0) + 0.1 * seed,
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
    found = {
        (line.claim.column or (line.claim.title, line.claim.against), line.objective): line.verdict
        for rows in lines.values() for line in rows
    }
    assert found[(FARTHEST, REFERENCE), "mae"] == HOLDS
    assert found[(FARTHEST, UNTRAINED), "mae"] == HOLDS
    assert found[(FARTHEST, EVEN), "mae"] == HOLDS  # 0.4 of evenly spread attention
    assert found[(LAST_THREE, OWN_FIRST), "mae"] == NO_RECORD  # two layers: the first three are the last three
    assert found[(DIVERSITY, REFERENCE), "mae"] == HOLDS
    assert found["depth", "mae"] == HOLDS  # lower is better
    assert found["pose", "mae"] == HOLDS
    assert found["tracking", "mae"] == NO_RECORD
    assert found["classification", "mae"] == FAILS
    assert found["segmentation", "mae"] == HOLDS
    assert {found[title, "zoomed_in_mask"] for title in ((FARTHEST, REFERENCE), "depth")} == {NO_RECORD}
    assert all(line.untrained for line in lines["Parity on semantic tasks"] if line.claim.column == "classification")


def test_nothing_is_judged_by_a_reference_that_has_not_learned(world, make_record):
    """Supervised training that knows its own labels no better than no training at all proves nothing by losing."""
    records, analyses = world
    kept = [r for r in records if (r.objective, r.task) != (UNTRAINED, "classification")]
    good = [make_record(57.0 + 5 * seed, objective=UNTRAINED, seed=seed) for seed in range(3)]
    for untrained, doubt in ((good, UNLEARNED), ([], UNKNOWN)):
        lines = [line for rows in lines_of([*kept, *untrained], analyses).values() for line in rows]
        judged = [line for line in lines if line.claim.against == REFERENCE]
        assert {line.verdict for line in judged} == {doubt, NO_RECORD}
        assert {line.verdict for line in lines if line.claim.against == EVEN and line.objective == "mae"} == {HOLDS}
    text = document([*kept, *good], analyses, ["embedded"])
    assert "**the reference has not learned**" in text
    assert f"| {UNLEARNED} |" in text
    assert "the reference has learned." in document(*world, ["embedded"])
    assert "No record shows whether" in document(kept, analyses, ["embedded"])


def test_local_is_an_absolute_claim(make_analysis):
    """Nearly evenly spread attention is not local, however much farther supervised training looks."""
    def local(distance, **layers):
        made = [make_analysis("mae", seed, distance=distance + 0.01 * seed, **layers) for seed in range(3)]
        lines = lines_of([], made)["Local attention in all layers"]
        return {line.claim.against: line.verdict for line in lines if line.objective == "mae"}

    assert local(9.7)[EVEN] == FAILS  # 0.97 of evenly spread attention in the layer that looks farthest
    assert local(4.0)[EVEN] == HOLDS
    claim = next(c for claims in CLAIMS.values() for c in claims[1] if c.against == OWN_FIRST)
    near, far = {0: 0.5, 1: 0.52, 2: 0.51}, {0: 0.7, 1: 0.72, 2: 0.73}
    assert held(claim, "mae", {"mae": near}, own_first=near).verdict == HOLDS
    assert held(claim, "mae", {"mae": far}, own_first=near).verdict == FAILS


def test_heads_without_any_number_are_no_record(make_record, make_analysis):
    record = make_analysis("mae")
    for layer in record.details["layers"]:
        layer["heads"]["distance"] = [None, None]
        layer["heads"]["kl"] = []
    found = numbers([], [record])
    assert FARTHEST not in found
    text = document([make_record(objective="mae")], [record], ["embedded"])
    assert "| distance, share of evenly spread | mae | – | – |" in text
    assert "| KL between heads | mae | – | – |" in text


def test_the_document_names_what_is_missing(world):
    text = document(*world, ["embedded", "mini"])
    assert "## Suite `embedded`" in text
    assert "## Suite `mini`" not in text
    assert "zoomed_in_mask: no record" in text
    assert "| depth, frozen: rmse (m) ↓ | better than supervised | mae |" in text
    for word in (HOLDS, FAILS, NO_RECORD):
        assert f"| {word} |" in text
    assert "No record." in text  # of layer-wise transfer
    assert all(len(line.split("|")) == 10 for line in text.splitlines() if line.startswith("| depth, frozen"))
    empty = document([], [], ["embedded"])
    assert "## Suite" not in empty


def test_the_fullest_budget_is_studied(make_record):
    cost = make_record().cost
    long = [make_record(objective=name, budget="long", cost={**cost, "pretrain_images": 10**6}) for name in SHOWN[:2]]
    default = [make_record(objective=name) for name in SHOWN[:2]]
    assert budget_of([*default, *long], "embedded") == "long"
    assert budget_of([*default, *long, make_record(objective=CLAIMED[2])], "embedded") == "default"
    assert budget_of(default, "mini") is None
